"""The card of a student: what an adapter or a merged model was made of, and how good it is.

One JSON file beside the weights (`card.json`), read by every later command, so that none of its
facts is given twice; and README.md, the same for people, in the form of a hub's model card.
"""

import json
import logging
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finer1_lite.runtime.files import DataError, digest, write_atomically

log = logging.getLogger("finer1_lite")
FILE = "card.json"
README = "README.md"
ADAPTER = "adapter_config.json"
STAGES = {"sft": "SFT", "tapo": "TAPO"}  # folder of a run's adapter -> its model in records


class CardClass(BaseModel):
    """A class: its name in answers, whether training saw it, its further names."""

    name: str
    seen: bool
    group: str = ""
    aliases: tuple[str, ...] = ()
    description: str = ""


class Measured(BaseModel):
    """An accuracy with its 95 % interval, shares from 0 to 1, and the number of photographs."""

    task: str
    split: str
    accuracy: float
    low: float
    high: float
    n: int


class Card(BaseModel):
    """What a student is. Paths are relative to the folder of the card, so that a run can move.

    base: hub name, or way to a local folder; stage: SFT, TAPO, or what else it was made by;
    photos: way to the folder of photographs, None for paper birds (`world_seed`); shots,
    unseen_share, split_seed: how they were divided; trained_on: id -> SHA-256 of the file's
    bytes ("" for a drawn picture); settings: the preset; calibration: of `predict`.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    version: int = 1
    base: str
    stage: str
    seed: int | None = None
    coarse: str
    classes: tuple[CardClass, ...]
    prompt: str = "think"
    question: str = ""  # the words of the open world
    max_new_tokens: int
    pixels: int
    photos: str | None = None
    descriptions: str | None = None
    world_seed: int | None = None
    shots: int = 4
    unseen_share: float = 0.4
    split_seed: int = 0
    folder_options: dict[str, Any] = Field(default_factory=dict)  # how `photos` is read
    trained_on: dict[str, str] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    measured: tuple[Measured, ...] = ()
    calibration: dict[str, Any] | None = None

    @property
    def names(self) -> list[str]:
        """Every class, in the card's order."""
        return [one.name for one in self.classes]

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Class -> its further names."""
        return {one.name: one.aliases for one in self.classes}


def relative(path: Path | str, folder: Path | str) -> str:
    """A local path as it is written on the card of `folder`; a hub name stays as it is."""
    if not Path(path).exists():
        return str(path)
    way = Path(path).expanduser().resolve()
    try:
        return Path(os.path.relpath(way, Path(folder).resolve())).as_posix()
    except ValueError:  # another drive of Windows: there is no relative way
        return way.as_posix()


def resolved(written: str, folder: Path | str) -> str:
    """The opposite of `relative`: the folder that is there, else what is written."""
    found = Path(folder) / written
    return str(found.resolve()) if found.exists() else written


def moved(card: Card, source: Path, target: Path) -> Card:
    """The card of `source`, as it reads in the folder `target`."""
    written = {name: getattr(card, name) for name in ("base", "photos", "descriptions")}
    paths = {name: relative(resolved(w, source), target) for name, w in written.items() if w}
    return card.model_copy(update=paths)


def is_hub_name(name: str) -> bool:
    """Whether a name looks like OWNER/NAME: all that a hub is ever asked for."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def is_adapter(folder: Path | str) -> bool:
    """Whether this is the folder of an adapter."""
    return (Path(folder) / ADAPTER).is_file()


def adapter_of(source: Path | str) -> Path:
    """The folder of the weights that are meant.

    Of a run (`runs/flowers`), or of one of its seeds, the adapter of the last stage by the first
    seed; a folder of an adapter or a model is itself. DataError for anything else.
    """
    folder = Path(source)
    if is_adapter(folder):
        return folder
    seeds = [seed for seed in folder.glob("seed*") if seed.name[4:].isdecimal()]
    seeds.sort(key=lambda seed: int(seed.name[4:]))
    for place in (folder, *seeds):
        for stage in reversed(STAGES):
            if is_adapter(place / stage):
                if stage != [*STAGES][-1]:
                    _say_partial(place, stage)
                return place / stage
    if seeds:
        raise DataError([f"{folder}: no stage is trained yet; start its `lab` again"], "no model:")
    config = folder / "config.json"  # a run has one, too
    if config.is_file() and "model_type" in config.read_text(encoding="utf-8"):
        return folder
    what = "holds no run, no adapter (adapter_config.json) and no model (config.json)"
    raise DataError([f"{folder}: {what if folder.is_dir() else 'is no folder'}"], "no model:")


@cache
def _say_partial(place: Path, stage: str) -> None:
    """Once a folder: several readers ask for its adapter."""
    log.warning("%s: %s is its last adapter; stage 2 is not trained yet", place, stage)


def weights(folder: Path | str) -> list[str]:
    """SHA-256 of each file of weights in a folder: other weights there are another model."""
    return [digest(path) for path in sorted(Path(folder).glob("*.safetensors"))]


def write_card(folder: Path, card: Card) -> None:
    """Put card.json and README.md into the folder of an adapter or model, each in one step."""
    write_atomically(folder / README, model_card(card, is_adapter(folder)).encode())
    keep_card(folder, card)


def keep_card(folder: Path, card: Card) -> None:
    """Replace card.json alone, where the README tells none of what changed."""
    write_atomically(folder / FILE, card.model_dump_json(indent=1).encode())


def model_card(card: Card, adapter: bool) -> str:
    """The card for people, in the form of a hub: YAML at the head, then plain words.

    adapter: whether the weights are an adapter, and not a merged model.
    """
    local = not is_hub_name(card.base)
    head = ModelCardData(
        base_model=None if local else card.base,  # a hub refuses a README with a path there
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["fine-grained-classification", "finer1_lite", *(["lora"] if adapter else [])],
    )
    text = Path(__file__).with_name("card.md.jinja").read_text("utf-8")
    template = jinja2.Template(text, trim_blocks=True, lstrip_blocks=True)
    base = Path(card.base).name if local else card.base
    words = {"head": head.to_yaml(), "local": local, "base": base}
    return template.render(card=card, adapter=adapter, question=json.dumps(card.question), **words)


def read_card(folder: Path | str) -> Card | None:
    """The card of a folder; None where there is none. DataError for one that cannot be read."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        return Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problems = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise DataError(problems, "the card of this model cannot be read:") from None


def hashes(paths: Iterable[tuple[str, Path | None]]) -> dict[str, str]:
    """Id -> SHA-256 of the file's bytes; "" where a picture is drawn and has no file."""
    return {name: digest(path) if path else "" for name, path in paths}
