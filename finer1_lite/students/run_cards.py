"""The cards of a run's adapters: what they were made of, and their accuracy once it is known."""

from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from finer1_lite import metrics, models, prompts
from finer1_lite.data.runs import Run
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Collection
from finer1_lite.students import card as cards
from finer1_lite.students.card import STAGES, Card, CardClass, Measured


def card_of(job: Run, collection: Collection, base: Path | str, stage: str, seed: int) -> Card:
    """What an adapter of this run is made of, its accuracy left out."""
    folder = job.folder / f"seed{seed}" / stage
    preset = job.preset
    prompt = preset.tapo.prompt if stage == "tapo" else "think"
    files = ((p.id, p.source if isinstance(p.source, Path) else None) for p in collection.train)
    return Card(
        base=cards.relative(base, folder),
        stage=STAGES[stage],
        seed=seed,
        coarse=collection.coarse,
        classes=tuple(CardClass.model_validate(vars(one)) for one in collection.species),
        prompt=prompt,
        question=prompts.question(prompt, collection.coarse),
        max_new_tokens=preset.max_new_tokens,
        pixels=preset.pixels,
        shots=preset.shots,
        trained_on=cards.hashes(files),
        **_origin(job, folder),
    )


def _origin(job: Run, folder: Path) -> dict[str, Any]:
    """The fields of a card about where the pictures came from, and the settings."""
    where = {"photos": job.photos, "descriptions": job.descriptions}
    settings = job.preset.to_dict()
    if settings["student"] != "assets":  # a keyword, whatever folder is called so here
        settings["student"] = cards.relative(settings["student"], folder)
    return {
        **{name: cards.relative(path, folder) for name, path in where.items() if path},
        "world_seed": None if job.photos else job.world_seed,
        "unseen_share": job.unseen_share,
        "folder_options": asdict(job.reading),
        "settings": settings,
    }


def write_cards(job: Run, collection: Collection) -> None:
    """Give every adapter of an evaluated run its card, where it has none with its accuracy."""
    records = job.folder / "records.jsonl"
    frame = None  # read when wanted: it takes seconds
    for seed, (stage, model) in product(job.seeds, STAGES.items()):
        folder = job.folder / f"seed{seed}" / stage
        card = cards.read_card(folder)
        if not folder.is_dir() or (card and (card.measured or not records.is_file())):
            continue
        card = card or card_of(job, collection, _base_below(job, folder), stage, seed)
        if records.is_file():
            frame = metrics.table(metrics.read_records(records)) if frame is None else frame
            rows = frame[(frame["model"] == model) & (frame["seed"] == seed)]
            card = card.model_copy(update={"measured": measured(rows)})
        cards.write_card(folder, card)


def measured(rows: pd.DataFrame) -> tuple[Measured, ...]:
    """The accuracy of a model's rows in each world, on seen and unseen classes."""
    return tuple(
        Measured(task=task, split=split, **metrics.accuracy(part))
        for split, task, part in metrics.parts(rows)
    )


def _base_below(job: Run, folder: Path) -> str:
    """The base of an adapter that an older version left without a card."""
    try:
        return models.base_of(folder)
    except DataError:
        return job.preset.student
