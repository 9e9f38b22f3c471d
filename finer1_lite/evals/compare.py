"""Two answerers on the same questions: how they differ, and on which pictures. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from finer1_lite.evals import stats, tables
from finer1_lite.evals.findings import points
from finer1_lite.evals.pages import Block, Heading, Table, Text, visible
from finer1_lite.evals.tables import Group, Row
from finer1_lite.metrics import SPLITS, paired_bootstrap

MAX_PAIRS = 60  # lines of a table of differences
SHOWN = 8  # differing pictures that a page shows


def common(a: Sequence[Row], b: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of both about the same question (picture, options in order, sample), in order."""

    def keyed(rows):
        return {(r["dataset"], r["photo"], tuple(r["options"] or ()), r["sample"]): r for r in rows}

    left, right = keyed(a), keyed(b)
    keys = sorted(left.keys() & right.keys())
    return [left[k] for k in keys], [right[k] for k in keys]


def difference(a: Sequence[Row], b: Sequence[Row]) -> dict | None:
    """a minus b on what both answered: mean, interval, n pictures, McNemar's counts and p.

    The bootstrap draws pictures (a picture's rotations stay together). McNemar's test
    counts each picture once, at its first common question: rotations are no new pictures.
    """
    rows_a, rows_b = common(a, b)
    if not rows_a:
        return None
    shares = [tables.per_photo(rows, tables.right) for rows in (rows_a, rows_b)]
    photos = list(shares[0])
    arrays = [np.array([[share[p] for p in photos]]) for share in shares]
    mean, low, high = paired_bootstrap(*arrays)
    once: dict[tuple, tuple[bool, bool]] = {}
    for x, y in zip(rows_a, rows_b):
        once.setdefault((x["dataset"], x["photo"]), (x["correct"], y["correct"]))
    only_a, only_b, p = stats.mcnemar(*zip(*once.values()))
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "n": len(photos),
        "only_a": only_a,
        "only_b": only_b,
        "p": p,
    }


Pair = tuple[Group, Group]


def within(rows: Sequence[Row], task: str) -> list[Pair]:
    """Answerers of one run that differ in one thing, the later one first.

    In the model, in the prompt, or in seeing the picture; a baseline, which is asked
    nothing, beside everyone who sees.
    """
    found = tables.groups(rows, task)
    pairs = [(found[j], found[i]) for i in range(len(found)) for j in range(i + 1, len(found))]
    return sorted((pair for pair in pairs if _one_thing(*pair)), key=_rank)


def _rank(pair: Pair) -> int:
    """Two models asked alike come first; then prompts; baselines; blindness."""
    a, b = pair
    if "none" in (a.prompt, b.prompt):
        return 2
    if not (a.picture and b.picture):
        return 3
    return 0 if a.model != b.model else 1


def _one_thing(a: Group, b: Group) -> bool:
    if "none" in (a.prompt, b.prompt):
        return a.picture and b.picture
    differ = (a.model != b.model) + (a.prompt != b.prompt) + (a.picture != b.picture)
    return differ == 1 and (a.picture or b.picture)


def between(left: Sequence[Row], right: Sequence[Row], task: str) -> list[Pair]:
    """Answerers of two runs: those of one name and prompt, else everyone with everyone."""
    mine, theirs = tables.groups(left, task), tables.groups(right, task)
    every = [(a, b) for a in mine for b in theirs if a.prompt == b.prompt] or [
        (a, b) for a in mine for b in theirs
    ]
    return [(a, b) for a, b in every if a.label == b.label] or every


def blocks(pairs: Sequence[Pair], task: str, runs: tuple[str, str] = ("", "")) -> list[Block]:
    """A table of differences; runs: names to put before the two answerers."""
    cells = [
        (a, b, split, cell)
        for a, b in pairs
        for split in SPLITS
        if (cell := difference(*(tables.of_split(g.rows, split) for g in (a, b))))
    ]
    if not cells:
        return []
    adjusted = stats.holm([cell["p"] for *_, cell in cells])
    lines = [
        (
            f"{_called(a, runs[0])} minus {_called(b, runs[1])}",
            split,
            points(cell),
            str(cell["n"]),
            f"{cell['only_a']} / {cell['only_b']}",
            f"{cell['p']:.3g}",
            f"{p:.3g}",
        )
        for (a, b, split, cell), p in list(zip(cells, adjusted))[:MAX_PAIRS]
    ]
    text = (
        "Paired bootstrap over pictures; McNemar's exact test counts each picture once; Holm's "
        f"p allows for the {len(cells)} comparisons of this table."
    )
    if len(cells) > MAX_PAIRS:
        text += f" The first {MAX_PAIRS} are shown."
    head = ("difference", "split", "points [95 %]", "n", "only one right", "McNemar p", "Holm p")
    return [Heading(f"Differences, {task} world"), Text(text), Table(head, lines)]


def _called(group: Group, run: str) -> str:
    own = f"{visible(group.label, 60)} ({group.prompt})"
    return f"{visible(run, 40)}: {own}" if run else own


def differing(a: Sequence[Row], b: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Questions that exactly one of the two answers rightly, in the order of a hash of the
    photo's id: nobody chooses. One a picture."""
    found = {}
    for x, y in zip(*common(a, b)):
        if bool(x["correct"]) != bool(y["correct"]):
            found.setdefault((x["dataset"], x["photo"]), (x, y))
    return sorted(
        found.values(), key=lambda pair: hashlib.sha256(pair[0]["photo"].encode()).hexdigest()
    )
