"""What a run of the main job is: settings, data, chains, seeds, folder."""

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finer1_lite import cot, paperbirds
from finer1_lite.data import given_chains, marks, tables
from finer1_lite.data.folders import Reading
from finer1_lite.presets import Preset
from finer1_lite.runtime.files import digest, fingerprint
from finer1_lite.runtime.options import given
from finer1_lite.species import Collection, Photo, load_folder

log = logging.getLogger("finer1_lite")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Where pictures come from: a folder of photographs and how it is read, or paper birds."""

    photos: Path | None = None  # a folder of photographs instead of paper birds
    descriptions: Path | None = None
    coarse: str = "bird"
    unseen_share: float = 0.4  # of the photographs' classes
    reading: Reading = Reading()  # how the folder of photographs is read
    world_seed: int = 0

    def __post_init__(self) -> None:
        marks.refuse(self.coarse)  # it stands in every question

    def pictures(self, shots: int = 4, test: int = 432, seed: int = 0) -> Collection:
        """The pictures, divided; test: birds a split; seed: of the photographs' division."""
        if self.photos is None:
            world = paperbirds.make_world(self.world_seed)
            return paperbirds.collection(world, shots=shots, test=test)
        own = given(self, "unseen_share", "descriptions", "coarse", "reading")
        return load_folder(self.photos, shots=shots, seed=seed, **own)

    def contents(self, collection: Collection | None) -> dict[str, str]:
        """What must be equal in a folder for work on it to go on: bytes, labels and aliases."""
        if self.photos is None or collection is None:
            return {}
        photos = (*collection.train, *collection.test)
        told = {
            "photographs": [digest(photo.source) for photo in photos],
            "labels": [f"{photo.id}/{photo.species}" for photo in photos],
            "aliases": [f"{name}: {', '.join(own)}" for name, own in collection.aliases.items()],
        }
        return {key: fingerprint(texts) for key, texts in told.items()}

    def of_preset(self, preset: Preset) -> Collection:
        """The pictures of a run: of a folder at most `preset.test_pictures` are asked about."""
        found = self.pictures(preset.shots, preset.test_pictures)
        if self.photos is None or len(found.test) <= preset.test_pictures:
            return found
        asked = evenly(found.test, preset.test_pictures)
        message = "%d of %d test pictures are asked about, drawn evenly over classes "
        message += "(--test-pictures says how many)"
        log.info(message, len(asked), len(found.test))
        return replace(found, test=asked)


@dataclass(frozen=True)
class Run(Pictures):
    """The main job, `lab.run`: its settings, its data, its seeds, its folder."""

    folder: Path
    preset: Preset
    seeds: tuple[int, ...] = (0, 1, 2)
    chains: cot.Chains | None = None  # of stage 1, written elsewhere; None: the teacher's
    report_to: str = "none"  # tracker that stage 2 is logged to: train_tapo's `report_to`

    def collection(self) -> tuple[Collection, cot.ChainWriter]:
        """The data and the teacher that writes chains about them."""
        found = self.of_preset(self.preset)
        if self.photos is None:
            return found, cot.oracle(paperbirds.make_world(self.world_seed))
        if self.chains is None:
            cot.require_descriptions(found, f"{self.photos}: the teacher")
        else:
            found = given_chains.described_by(found, self.chains)
        return found, lambda photo, rng: cot.table_chain(found, photo.species, rng)

    def config(self, collection: Collection) -> dict[str, Any]:
        """What must be equal for a folder's content to be used again."""
        own = self.contents(collection)
        if self.photos is not None:
            own["descriptions"] = fingerprint([one.description for one in collection.species])
        if self.chains is not None:
            own["chains"] = fingerprint([*map(str, chain_lines(collection, self.chains))])
        return {
            "name": self.folder.name,
            "coarse": collection.coarse,
            "seeds": list(self.seeds),
            "world_seed": self.world_seed if self.photos is None else None,
            "species": len(collection.species),
            "train_pictures": len(collection.train),
            "test_pictures": len(collection.test),
            "data": fingerprint([p.id for p in (*collection.train, *collection.test)]),
            "preset": self.preset.to_dict(),
            **own,
        }


def evenly(photos: Sequence[Photo], most: int) -> tuple[Photo, ...]:
    """At most so many photographs, the same at every call, in the order in which they stand.

    Of no class two more than of another that has some left.
    """
    drawn: list[tuple[int, int]] = []  # (how many of its class came before, place in `photos`)
    before: Counter[str] = Counter()
    for place in random.Random(0).sample(range(len(photos)), len(photos)):
        drawn.append((before[photos[place].species], place))
        before[photos[place].species] += 1
    rounds = sorted(drawn, key=lambda one: one[0])  # stable: in a round, classes as drawn
    return tuple(photos[place] for place in sorted(place for _, place in rounds[:most]))


def chain_lines(collection: Collection, chains: cot.Chains) -> list[Mapping[str, str]]:
    """The lines of a run's chains.jsonl: those of training photographs that have a chain."""
    return [
        {"photo": photo.id, "species": photo.species, "chain": chain}
        for photo in collection.train
        for chain in cot.several(chains.get(photo.id, ()))
    ]


def write_attribution(collection: Collection, path: Path) -> None:
    """Write a CSV of whose photographs these are, and their licences, where a table tells it."""
    if not collection.credits:
        return
    photos = (*collection.train, *collection.test)
    rows = ([p.id, p.species, *collection.credits.get(p.id, ("", "", ""))] for p in photos)
    tables.write(path, ("file", "class", "licence", "observer", "source"), rows)
