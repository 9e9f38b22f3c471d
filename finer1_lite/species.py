"""Folders of photos -> a Collection: species, few-shot training photos, fresh test photos.

The setting is the paper's (section "The problem and the claim" of Fine-R1, arXiv 2602.07605):
a few training photos a class, 60 % of the classes seen and 40 % unseen, training on seen ones
only. The user's data is checked completely before any model is loaded (`data.folders` looks,
nothing is written), and all problems come in one `DataError`.
"""

import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from PIL import Image

from finer1_lite.data import folders, images, splits
from finer1_lite.runtime.files import DataError, near, require_none

log = logging.getLogger("finer1_lite")

OPTION_POOL = 9  # look-alikes that the closed world draws wrong options from
NAME_WEIGHT = 3  # a word of the name counts as much as three of the description


@dataclass(frozen=True)
class Species:
    """One class: display name, coarse group ("" if none), whether training sees it."""

    name: str
    group: str
    seen: bool
    description: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Photo:
    """One labelled picture, decoded when asked for; `id` is unique in its collection."""

    id: str
    species: str
    source: Path | Callable[[], Image.Image]

    def image(self, whole: bool = False) -> Image.Image:
        """The upright RGB picture in at most `images.MOST` pixels, or whole; decoded at each call.

        Raises PictureError if the file broke or vanished since it was checked.
        """
        if callable(self.source):
            return images.to_rgb(self.source())
        return images.decode(self.source, whole)


@dataclass(frozen=True)
class Collection:
    """Species with their photos; `distance(a, b)` says how unlike two named species are.

    `coarse` is the word for all of them ("bird"). Training photos are of seen species
    only, which is checked here along with unique names and ids.
    """

    coarse: str
    species: tuple[Species, ...]
    train: tuple[Photo, ...]
    test: tuple[Photo, ...]
    distance: Callable[[str, str], float] = field(repr=False, compare=False)
    credits: Mapping[str, tuple[str, ...]] = field(  # photo's id -> licence, observer, source
        default_factory=dict, repr=False, compare=False
    )
    _ranked: dict[str, list[str]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        photos = (*self.train, *self.test)
        names = set(self.names)
        unseen = set(self.unseen_names)
        problems = [f"two species are called {n!r}; rename one" for n in _repeated(self.names)]
        mend = "each belongs in train or in test, once"
        ids = _repeated(photo.id for photo in photos)
        problems += [f"two photos have the id {i!r}; {mend}" for i in ids]
        mend = "is no species of this collection; add it"
        problems += [f"{p.id}: {p.species!r} {mend}" for p in photos if p.species not in names]
        mend = "is not seen; move the photo to test"
        problems += [f"{p.id}: {p.species!r} {mend}" for p in self.train if p.species in unseen]
        require_none(problems, "this collection contradicts itself:")

    @property
    def names(self) -> list[str]:
        """Every species' name, in the collection's order."""
        return [one.name for one in self.species]

    @property
    def seen_names(self) -> list[str]:
        """The names that training may touch."""
        return [one.name for one in self.species if one.seen]

    @property
    def unseen_names(self) -> list[str]:
        """The names kept for the test of generalisation."""
        return [one.name for one in self.species if not one.seen]

    @property
    def groups(self) -> dict[str, str]:
        """Name -> its coarse group."""
        return {one.name: one.group for one in self.species}

    @property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Name -> its further names, where it has some."""
        return {one.name: one.aliases for one in self.species if one.aliases}

    def of(self, name: str) -> Species:
        """The species called `name`; a DataError offers the closest if there is none."""
        found = next((one for one in self.species if one.name == name), None)
        if found is None:
            raise DataError([folders.unknown(name, self.names)], "no such species:")
        return found

    def neighbours(self, name: str, among: Iterable[str] | None = None) -> list[str]:
        """The other species (of `among`, if given), nearest first.

        Ties are broken by a hash of both names, so that no name wins by its alphabet.
        """
        self.of(name)
        if name not in self._ranked:
            others = [other for other in self.names if other != name]
            self._ranked[name] = sorted(
                others, key=lambda o: (self.distance(name, o), splits.tie(name, o))
            )
        if among is None:
            return list(self._ranked[name])
        wanted = {self.of(other).name for other in among}
        return [other for other in self._ranked[name] if other in wanted]

    def options(
        self, photo: Photo, n: int = 4, seed: int = 0, among: Iterable[str] | None = None
    ) -> list[str]:
        """Draw `n` names to choose from: the right one and others of its nearest, in any order.

        All depends on `seed` and the photo's id; where there are fewer names, all are given.
        The others are drawn from the nearest `OPTION_POOL`. Always the very nearest would give
        the answer away: a species in the middle of its genus would be a wrong option of all,
        and the one least used as a wrong option would often be right. Give
        `among=collection.seen_names` where training must not meet unseen names.
        """
        if n < 2:
            raise DataError([f"n={n}: a choice needs 2 options or more"], "no options:")
        rng = random.Random(f"{seed}/{photo.id}")
        near = self.neighbours(photo.species, among)[: max(OPTION_POOL, n - 1)]
        chosen = [photo.species, *rng.sample(near, min(n - 1, len(near)))]
        rng.shuffle(chosen)
        return chosen


def load_folder(
    folder: Path | str,
    *,
    shots: int = 4,
    unseen_share: float = 0.4,
    seed: int = 0,
    descriptions: Path | str | None = None,
    coarse: str = "object",
    reading: folders.Reading = folders.PLAIN,
) -> Collection:
    """Load a folder of photographs as a Collection; nothing is written to disk.

    `folder`/<class>/<pictures>, or as `reading` and `data.layouts` say. `shots` training photos
    for each seen class; its others, and all of an unseen class, are test, but for those that look
    like a training photo of theirs. Optional tables: `folder`/index.csv (file; coarse; split or
    upstream_split: then shots come from its train files and tests from its test files only),
    `folder`/descriptions.csv (class; description or product_description) and `folder`/classes.csv
    (class; name to show; aliases; seen: yes or no, instead of `unseen_share`).
    The same seed and files give the same collection. Raises DataError with every problem found.
    """
    root = near(Path(folder).expanduser())
    table = Path(descriptions).expanduser() if descriptions else None
    classes, faults = folders.read_folder(root, shots=shots, descriptions=table, reading=reading)
    rules = {
        f"shots={shots}: give 1 or more": shots >= 1,
        f"unseen_share={unseen_share}: give a share from 0 to below 1": 0 <= unseen_share < 1,
    }
    problems = [text for text, kept in rules.items() if not kept] + faults
    require_none(problems, f"{root} cannot be used; to mend: {len(problems)}")
    unseen = {one.name for one in classes if one.seen is False}
    why = folders.CLASSES
    if classes[0].seen is None:
        unseen = splits.draw_unseen({one.name: one.group for one in classes}, unseen_share, seed)
        why = f"drawn by seed {seed}: unseen share {unseen_share}"
    species = tuple(
        Species(c.name, c.group, c.name not in unseen, c.description, c.aliases) for c in classes
    )
    train, test = [], []
    for one in classes:
        shown, fresh = splits.draw_shots(one, 0 if one.name in unseen else shots, seed)
        fresh = splits.unlike_training(one, shown, fresh, problems)
        train += [Photo(file.id, one.name, file.path) for file in shown]
        test += [Photo(file.id, one.name, file.path) for file in fresh]
    require_none(problems, f"{root} cannot be used; to mend: {len(problems)}")
    credit = {file.id: file.credit for one in classes for file in one.files if file.credit}
    found = Collection(coarse, species, tuple(train), tuple(test), by_words(species), credit)
    _say(root, found, shots, why)
    return found


def _say(root: Path, found: Collection, shots: int, why: str) -> None:
    """Log in plain words how many photographs go where, and which classes are never taught."""
    taught, never = found.seen_names, found.unseen_names
    fresh = sum(photo.species in taught for photo in found.test)
    words = "%s: %d photographs train (%d of each of %d classes), %d others of these classes test"
    log.info(words, root, len(found.train), shots, len(taught), fresh)
    if never:
        words = "%d of %d classes are never taught, their %d photographs only test (%s): %s"
        counts = (len(never), len(found.species), len(found.test) - fresh)
        log.info(words, *counts, why, ", ".join(never))


def by_words(species: Iterable[Species]) -> Callable[[str, str], float]:
    """The distance between two classes by the words of their names and descriptions."""
    return partial(_unlike, {one.name: (one.group, _words(one)) for one in species})


def _words(one: Species) -> Counter[str]:
    """The words of name and description, each with its weight."""
    told, name = (re.findall(r"\w+", text.casefold()) for text in (one.description, one.name))
    return Counter(set(told)) + Counter(dict.fromkeys(name, NAME_WEIGHT))


def _unlike(known: dict[str, tuple[str, Counter[str]]], name: str, other: str) -> float:
    """1 - weighted Jaccard of the words, in [0, 1]; 1 more between two groups."""
    (group, words), (other_group, other_words) = known[name], known[other]
    shared = (words & other_words).total()
    return 1 - shared / max((words | other_words).total(), 1) + (group != other_group)


def _repeated(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]
