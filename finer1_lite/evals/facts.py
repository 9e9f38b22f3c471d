"""What the cards of the models say of a job, so that no option is given twice."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finer1_lite.data.benchmark import Benchmark
from finer1_lite.data.folders import Reading
from finer1_lite.data.given_chains import with_descriptions
from finer1_lite.data.splits import alike
from finer1_lite.rewards import normalise
from finer1_lite.runtime.files import CONFIG, DataError, require_none, run_config
from finer1_lite.species import Collection
from finer1_lite.students.card import ADAPTER, Card, adapter_of, hashes, read_card, resolved

log = logging.getLogger("finer1_lite")
FLAGS = {"quantize": "--preset", "reading": "--photos"}  # of settings without their own
SMALLEST = ("eval_batch", "test_pictures")  # of several cards: no part of the training
WEIGHTS = ("config.json", ADAPTER)
OF_PHOTOS = ("photos", "descriptions", "unseen_share", "reading")


def weights_of(source: str) -> str:
    """The folder of weights that a run's folder stands for; any other name as it is."""
    try:
        return str(adapter_of(source))
    except DataError:  # a hub name, or what `job` refuses together with all else
        return source


def cards_of(models: Iterable[str]) -> dict[str, Card]:
    """Model -> its card, of those that have one."""
    found = {model: read_card(model) for model in models}
    return {model: card for model, card in found.items() if card}


def settle(models: Sequence[str], asked: Mapping[str, Any], own: bool) -> dict[str, Any]:
    """Settings of a job: those asked for, and of the others those on the models' cards.

    What is asked otherwise than a card says is logged; one warning names the folders without a
    card. own: whether the job brings questions of its own. DataError lists the settings on which
    the cards contradict one another, and photographs that are not there.
    """
    facts = {model: _facts(card, model, own) for model, card in cards_of(models).items()}
    bare = [m for m in models if m not in facts and any((Path(m) / n).is_file() for n in WEIGHTS)]
    if bare:
        rest = "as the other models" if facts else "as defaults say"
        message = "%s: no card says what was asked in training; asked as options, else %s"
        log.warning(message, ", ".join(bare), rest)
    if asked.get("photos"):
        asked = {**asked, "photos": asked["photos"].expanduser().resolve()}
    settled, problems = _agreed(facts, asked)
    photos = settled.get("photos")
    if photos and "photos" not in asked and not photos.is_dir():
        problems.append(f"{photos}: these photographs are not here; give --photos")
    require_none(problems, "the cards of these models do not say what to ask:")
    others = any(asked.get("photos") != known.get("photos") for known in facts.values())
    if (asked.get("photos") and others) or asked.get("world_seed") is not None:
        settled = {k: v for k, v in settled.items() if k in asked or k not in OF_PHOTOS}
    return {name: value for name, value in settled.items() if value is not None}


def _agreed(facts: Mapping[str, Mapping], asked: Mapping) -> tuple[dict[str, Any], list[str]]:
    """(settings, contradictions) of what several cards say and of what is asked."""
    settled, problems = dict(asked), []
    for name in dict.fromkeys(name for known in facts.values() for name in known):
        said = {model: known[name] for model, known in facts.items() if name in known}
        values, flag = list(said.values()), FLAGS.get(name, f"--{name.replace('_', '-')}")
        told = ", ".join(
            f"{'none' if value is None else value} on the card of {model}"
            for model, value in said.items()
        )
        if name in SMALLEST:
            settled.setdefault(name, min(values))
        elif all(value == asked.get(name, values[0]) for value in values):
            settled[name] = values[0]
        elif name in asked:
            log.warning("%s %s as asked; %s", flag, asked[name], told)
        else:
            problems.append(f"{told}: give {flag}")
    return settled, problems


def _facts(card: Card, model: str, own: bool) -> dict[str, Any]:
    """The settings on a card that an evaluation takes over; photos None: paper birds."""
    kept = {k: v for k, v in card.settings.items() if k in ("quantize", "eval_batch")}
    facts = {"max_new_tokens": card.max_new_tokens} | kept
    if own:
        return facts
    facts |= {k: v for k, v in card.settings.items() if k == "test_pictures"}
    facts |= {"coarse": card.coarse, "shots": card.shots, "photos": None}
    if card.photos is None:
        return facts | {"world_seed": card.world_seed}
    facts |= {"unseen_share": card.unseen_share, "reading": Reading(**card.folder_options)}
    ways = {"photos": card.photos, "descriptions": card.descriptions}
    return facts | {name: Path(resolved(way, model)) for name, way in ways.items() if way}


def described(models: Iterable[str], collection: Collection) -> Collection:
    """Classes that the folder does not describe, as the cards do: the training's look-alikes."""
    known = {one.name: one.description for c in cards_of(models).values() for one in c.classes}
    bare = [one.name for one in collection.species if not one.description]
    return with_descriptions(collection, {name: known[name] for name in bare if name in known})


def as_taught(models: Iterable[str], asked: Benchmark) -> Benchmark:
    """Seen is what every model's card says was taught, however a folder would be divided now."""
    listed = [
        {normalise(n): one.seen for one in card.classes for n in (one.name, *one.aliases)}
        for card in cards_of(models).values()
    ]
    if not listed:
        return asked
    labels = sorted({item.label for item in asked.items})
    found = {label: [own.get(normalise(label)) for own in listed] for label in labels}
    if strange := [label for label in labels if None in found[label]]:
        said = "%d of %d classes are not on the card of every model, and count as unseen: %s"
        log.warning(said, len(strange), len(labels), ", ".join(strange))
    split = {label: "seen" if all(found[label]) else "unseen" for label in labels}
    taught = [*split.values()].count("seen")
    log.info("%d of %d classes were taught, as the cards say: seen", taught, len(labels))
    return replace(asked, items=tuple(replace(i, split=split[i.label]) for i in asked.items))


def trained_on(models: Iterable[str], files: Mapping[str, tuple[str, Path]]) -> set[str]:
    """The ids of the files that some model was trained on, or that look nearly the same as those.

    By content; what is found is said. files: id -> class and file of a test picture.
    """
    known = {m: set(card.trained_on.values()) - {""} for m, card in cards_of(models).items()}
    paths = ((name, path) for name, (_, path) in files.items())
    digests = hashes(paths) if any(known.values()) else {}
    found: set[str] = set()
    for model, trained in known.items():
        own = {name for name, digest in digests.items() if digest in trained}
        if own:
            message = "%d of %d photographs were trained on by %s: left out"
            log.warning(message, len(own), len(files), model)
        found |= own
    if near := alike(files, found):
        log.warning("%d more look nearly the same as those: left out, too", len(near))
    found |= near
    if found and len(found) == len(files):
        raise DataError([f"all {len(files)} photographs were trained on"], "nothing to ask about:")
    return found


def photos_of(run: Path) -> Path | None:
    """The folder of photographs of a run of `lab` or `evaluate`; None where no file says it."""
    written, folder = (run_config(run / CONFIG) or {}).get("photos"), run
    if not written:
        try:
            folder = adapter_of(run)
        except DataError:
            return None
        card = read_card(folder)
        written = card.photos if card else None
    found = Path(resolved(written, folder)) if written else None
    return found if found and found.is_dir() else None
