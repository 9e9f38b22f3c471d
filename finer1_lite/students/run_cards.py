"""The cards of a run's adapters: what they were made of, and their accuracy once it is known.

And back from a card to its photographs: all of them, or those that were not trained on.
"""

import random
from dataclasses import asdict
from itertools import product
from pathlib import Path

from finer1_lite import metrics, models, paperbirds, prompts
from finer1_lite.data import folders, splits
from finer1_lite.data.runs import Pictures, Run
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Collection, Photo
from finer1_lite.students import card as cards
from finer1_lite.students.card import STAGES, Card, CardClass, Measured

HELD_OUT = 200  # photographs that a calibration takes, at most


def card_of(job: Run, collection: Collection, base: Path | str, stage: str, seed: int) -> Card:
    """What an adapter of this run is made of, its accuracy left out."""
    folder = job.folder / f"seed{seed}" / stage
    preset = job.preset
    prompt = preset.tapo.prompt if stage == "tapo" else "think"
    files = ((p.id, p.source if isinstance(p.source, Path) else None) for p in collection.train)
    where = {"photos": job.photos, "descriptions": job.descriptions}
    settings = preset.to_dict()
    if settings["student"] != "assets":  # a keyword, whatever folder is called so here
        settings["student"] = cards.relative(settings["student"], folder)
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
        **{name: cards.relative(path, folder) for name, path in where.items() if path},
        world_seed=None if job.photos else job.world_seed,
        unseen_share=job.unseen_share,
        folder_options=asdict(job.reading),
        settings=settings,
    )


def write_cards(job: Run, collection: Collection) -> None:
    """Give every adapter of an evaluated run its card, with its accuracy as it is now."""
    records = job.folder / "records.jsonl"
    frame = None  # read when wanted: it takes seconds
    for seed, (stage, model) in product(job.seeds, STAGES.items()):
        folder = job.folder / f"seed{seed}" / stage
        card = cards.read_card(folder)
        if not folder.is_dir() or (card and not records.is_file()):
            continue
        known = card
        if not card:  # an older version left it without
            try:
                base = models.base_of(folder)
            except DataError:
                base = job.preset.student
            card = card_of(job, collection, base, stage, seed)
        if records.is_file():
            frame = metrics.table(metrics.read_records(records)) if frame is None else frame
            said = frame[frame["error"].isna()]  # as `metrics.entries` counts
            rows = said[(said["model"] == model) & (said["seed"] == seed)]
            measured = [  # in each world, on seen and unseen classes
                Measured(task=task, split=split, **metrics.accuracy(part))
                for split, task, part in metrics.parts(rows)
            ]
            card = card.model_copy(update={"measured": tuple(measured)})
        if card != known:
            cards.write_card(folder, card)


def collection_of(card: Card, folder: Path, photos: Path | None = None) -> Collection:
    """The photographs of the card's folder, divided as it says; without one, paper birds.

    photos: their folder, where it is another. DataError where they cannot be read.
    """
    root = photos or (card.photos and Path(cards.resolved(card.photos, folder)))
    told = {"world_seed": card.world_seed or 0, "reading": folders.Reading(**card.folder_options)}
    found = Pictures(photos=root, coarse=card.coarse, unseen_share=card.unseen_share, **told)
    return found.pictures(card.shots, seed=card.split_seed)


def held_out(card: Card, folder: Path, limit: int = HELD_OUT) -> tuple[list[Photo], str]:
    """Photographs of the card's classes that were not trained on, and what they are, in words.

    By the card's folder of photographs, without what is or looks like one trained on; or
    paper birds of a split of their own. DataError where they are not there or cannot be read.
    """
    if card.photos is None:
        world = paperbirds.make_world(card.world_seed or 0)
        photos = paperbirds.collection(world, test=limit, split="val").test
        where = f"fresh paper birds of world {world.seed}"
    else:
        found = collection_of(card, folder)
        own = {p.id: (p.species, p.source) for p in (*found.train, *found.test)}
        hashed = cards.hashes((name, path) for name, (_, path) in own.items())
        known = {*card.trained_on.values()}
        trained = {name for name in own if hashed[name] in known}
        grown = trained != {p.id for p in found.train}  # else the division kept them apart
        stale = trained | splits.alike(own, trained if grown else set())
        if not known <= {*hashed.values()}:  # left out beside a neighbour that would train now
            stale |= {p.id for p in found.train}
        photos = [p for p in (*found.train, *found.test) if p.id not in stale]
        where = f"those of {Path(card.photos).name} that were not trained on"
    usable = [photo for photo in photos if photo.species in card.names]
    return random.Random(0).sample(usable, min(limit, len(usable))), where
