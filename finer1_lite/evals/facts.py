"""What the cards of the models say of a job, so that no option is given twice."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finer1_lite.data.folders import Reading
from finer1_lite.runtime.files import DataError
from finer1_lite.students.card import ADAPTER, Card, adapter_of, hashes, read_card, resolved

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("finer1_lite")
FLAGS = {"quantize": "--preset", "reading": "--photos"}  # of settings without their own
SMALLEST = ("eval_batch", "test_pictures")  # of several cards: no part of the training
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
    _warn([model for model in models if model not in facts and _is_weights(Path(model))], facts)
    if asked.get("photos"):
        asked = {**asked, "photos": asked["photos"].expanduser().resolve()}
    settled, problems = dict(asked), []
    for name in dict.fromkeys(name for known in facts.values() for name in known):
        said = {model: known[name] for model, known in facts.items() if name in known}
        first, flag = next(iter(said.values())), FLAGS.get(name, f"--{name.replace('_', '-')}")
        told = [f"{_word(value)} on the card of {model}" for model, value in said.items()]
        if name in SMALLEST:
            settled.setdefault(name, min(said.values()))
        elif name in asked:
            if any(value != asked[name] for value in said.values()):
                log.warning("%s %s as asked; %s", flag, asked[name], ", ".join(told))
        elif any(value != first for value in said.values()):
            problems.append(f"{', '.join(told)}: give {flag}")
        else:
            settled[name] = first
    photos = settled.get("photos")
    if photos and "photos" not in asked and not photos.is_dir():
        problems.append(f"{photos}: these photographs are not here; give --photos")
    if problems:
        raise DataError(problems, "the cards of these models do not say what to ask:")
    return _without_elsewhere(settled, asked, facts)


def _is_weights(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / ADAPTER).is_file()


def _warn(bare: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Name the folders without a card, once."""
    if bare:
        rest = "as the other models" if facts else "as defaults say"
        message = "%s: no card says what was asked in training; asked as options, else %s"
        log.warning(message, ", ".join(bare), rest)


def _without_elsewhere(settled: dict, asked: Mapping, facts: Mapping[str, dict]) -> dict[str, Any]:
    """Without what the cards say of a folder of photographs that is not asked about."""
    others = any(asked.get("photos") != known.get("photos") for known in facts.values())
    if (asked.get("photos") and others) or (asked.get("world_seed") is not None):
        settled = {k: v for k, v in settled.items() if k in asked or k not in OF_PHOTOS}
    return {name: value for name, value in settled.items() if value is not None}


def _word(value: Any) -> str:
    return "none" if value is None else str(value)


def _facts(card: Card, model: str, own: bool) -> dict[str, Any]:
    """The settings on a card that an evaluation takes over; photos None: paper birds."""
    facts = {"max_new_tokens": card.max_new_tokens}
    facts |= _kept(card, "quantize", "eval_batch")
    if own:
        return facts
    facts |= {"coarse": card.coarse, "shots": card.shots, "photos": None}
    if card.photos is None:
        return facts | {"world_seed": card.world_seed, **_kept(card, "test_pictures")}
    facts |= {"unseen_share": card.unseen_share, "reading": Reading(**card.folder_options)}
    ways = {"photos": card.photos, "descriptions": card.descriptions}
    return facts | {name: Path(resolved(way, model)) for name, way in ways.items() if way}


def _kept(card: Card, *names: str) -> dict[str, Any]:
    return {name: card.settings[name] for name in names if name in card.settings}


def trained_on(models: Iterable[str], files: Mapping[str, Path]) -> set[str]:
    """The ids of the files that some model was trained on, by content; what is found is said.

    files: id -> file of a test picture.
    """
    known = {
        model: set(card.trained_on.values()) - {""} for model, card in cards_of(models).items()
    }
    if not any(known.values()):
        return set()
    found: set[str] = set()
    digests = hashes(files.items())
    for model, trained in known.items():
        own = {name for name, digest in digests.items() if digest in trained}
        if own:
            message = "%d of %d photographs were trained on by %s: left out"
            log.warning(message, len(own), len(files), model)
        found |= own
    if found and len(found) == len(files):
        raise DataError([f"all {len(files)} photographs were trained on"], "nothing to ask about:")
    return found


# --- finished runs -------------------------------------------------------------------------


def photos_of(run: Path) -> Path | None:
    """The folder of photographs of a run of `lab` or `evaluate`; None where no file says it."""
    written = _config(run).get("photos")
    folder = run
    if not written:
        try:
            folder = adapter_of(run)
        except DataError:
            return None
        card = read_card(folder)
        written = card.photos if card else None
    found = Path(resolved(written, folder)) if written else None
    return found if found and found.is_dir() else None


def beside(runs: Sequence[Path], frames: Sequence[pd.DataFrame]) -> list[str]:
    """What a reader must know of two runs that stand side by side, in sentences."""
    told = []
    pictures = [set(frame["photo"]) for frame in frames]
    datasets = [set(frame["dataset"]) for frame in frames]
    if not pictures[0] & pictures[1]:
        told.append("These runs share no picture: nothing is paired, and no test compares them.")
    elif not datasets[0] & datasets[1]:
        names = " and ".join(", ".join(sorted(one)) for one in datasets)
        told.append(f"The same pictures go by two names of data sets ({names}): nothing is paired.")
    configs = [_config(run) for run in runs]
    sizes = [config.get("preset", {}) for config in configs]
    for what, name, found in (
        ("They asked for two words", "coarse", configs),
        ("Their completions end at two limits of tokens", "max_new_tokens", sizes),
        ("They reduced pictures to two numbers of pixels", "pixels", sizes),
    ):
        values = [one.get(name) for one in found]
        if None not in values and values[0] != values[1]:
            told.append(f"{what}: {values[0]} in {runs[0]}, {values[1]} in {runs[1]}.")
    return told


def _config(run: Path) -> dict[str, Any]:
    """What config.json of a run says; {} where there is none."""
    try:
        found = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
