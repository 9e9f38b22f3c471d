"""Which classes training never meets, and which photographs it learns from: drawn by a seed."""

import hashlib
import logging
import random
from collections import defaultdict
from collections.abc import Mapping, Set
from contextlib import suppress
from pathlib import Path

from finer1_lite.data import duplicates, images
from finer1_lite.data.layouts import ClassFolder, File

log = logging.getLogger("finer1_lite")


def draw_unseen(groups: Mapping[str, str], share: float, seed: int) -> set[str]:
    """The names to keep from training: `share` of all and, nearly, of every group.

    `groups` maps a name to its group. Each group gives its share rounded down; what then
    lacks comes from the groups that lost most by the rounding (largest remainders). At
    least one class is seen, and at least one unseen unless `share` is 0.
    """
    members = defaultdict(list)
    for name in sorted(groups):
        members[groups[name]].append(name)
    for group, names in members.items():
        random.Random(f"{seed}/unseen/{group}").shuffle(names)
    total = min(max(int(share * len(groups) + 0.5), share > 0), len(groups) - 1)
    given = {group: int(share * len(names)) for group, names in members.items()}
    lost = {group: share * len(names) - given[group] for group, names in members.items()}
    by_loss = sorted(members, key=lambda group: (-lost[group], tie(seed, group)))
    for group in by_loss[: total - sum(given.values())]:
        given[group] += 1
    return {name for group, names in members.items() for name in names[: given[group]]}


def draw_shots(one: ClassFolder, shots: int, seed: int) -> tuple[list[File], list[File]]:
    """(train, test) of one class: `shots` drawn by seed, and what may be tested on."""
    pool = [file.id for file in one.files if file.split != "test"]
    drawn = set(random.Random(f"{seed}/shots/{one.name}").sample(pool, shots))
    train = [file for file in one.files if file.id in drawn]
    return train, [f for f in one.files if f.id not in drawn and f.split != "train"]


def unlike_training(
    one: ClassFolder, train: list[File], test: list[File], problems: list[str]
) -> list[File]:
    """The test pictures of a class that are no near-duplicate of one that trains."""
    pairs = duplicates.pairs([file.look for file in train], [file.look for file in test])
    near = {test[j].id: train[i].id for i, j, _ in pairs}
    if near:
        shown = ", ".join(f"{a} ~ {b}" for a, b in near.items())
        message = "%s: %d pictures left out of the test, nearly the same as a training one: %s"
        log.info(message, one.name, len(near), shown)
    if test and len(near) == len(test):
        what = "each of its test pictures is nearly the same as a training one; add others"
        problems.append(f"{one.folder}: {what}")
    return [file for file in test if file.id not in near]


def alike(files: Mapping[str, tuple[str, Path]], taught: Set[str]) -> set[str]:
    """The other files that look nearly the same as one of `taught` of their class: ids.

    files: id -> class, file. For a folder that has grown since the training, and is divided
    otherwise now.
    """
    from finer1_lite.runtime.console import progress_bar  # it loads torch

    if not taught:
        return set()
    looks, classes = {}, {files[name][0] for name in taught}
    wanted = {name: path for name, (label, path) in files.items() if label in classes}
    with progress_bar(len(wanted), "neighbours of training pictures") as bar:
        for name, path in wanted.items():
            with suppress(images.PictureError, OSError):
                looks[name] = duplicates.Look.of(images.decode(path))
            bar.update()
    own, others = ([name for name in looks if (name in taught) == t] for t in (True, False))
    pairs = duplicates.pairs([looks[n] for n in own], [looks[n] for n in others])
    return {others[j] for i, j, _ in pairs if files[own[i]][0] == files[others[j]][0]}


def tie(*values: object) -> str:
    """An arbitrary but fixed order, the same in every process."""
    return hashlib.sha256("/".join(map(str, values)).encode()).hexdigest()
