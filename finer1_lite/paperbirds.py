"""The lab's world: paper birds, drawn from a seed.

A world has six genera of ten species. A genus shares bill and tail. Its species are a
prototype and neighbours of that prototype with one mark changed, so that any two species
of a genus differ in one or two of the four plumage marks: small variance between classes.
Pose, size, light, background and leaves in front of the bird vary from picture to picture:
large variance inside a class. The name says nothing about the marks.
"""

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from PIL import Image

from finer1_lite.data.drawing import COLOURS, draw
from finer1_lite.species import Collection, Photo, Species

PLUMAGE = {  # the marks in which species of one genus differ
    "crown": tuple(COLOURS),
    "back": tuple(COLOURS),
    "belly": tuple(COLOURS),
    "wing": ("plain", "barred", "spotted", "edged", "tipped", "striped"),
}
SHAPE = {  # the marks that a genus shares
    "bill": ("short", "long", "hooked", "curved", "stout", "upturned"),
    "tail": ("stub", "forked", "fanned", "pointed", "square", "trailing"),
}
MARKS = PLUMAGE | SHAPE
GENERA = ("finch", "wren", "tern", "robin", "lark", "heron")
_FIRST = ("ta", "me", "lo", "vi", "ru", "ka", "so", "ne", "pi", "da")
_LAST = ("len", "ris", "vok", "mar", "dun", "sil")
EPITHETS = tuple(a + b for b in _LAST for a in _FIRST)
PER_GENUS = 10
SEEN_PER_GENUS = 6  # 60 % seen, 40 % unseen, exactly


@dataclass(frozen=True)
class World:
    """Sixty species and their marks, a function of the seed alone."""

    seed: int
    marks: dict[str, dict[str, str]]  # species -> mark -> value
    genus: dict[str, str]
    seen: frozenset[str]

    @property
    def names(self) -> list[str]:
        """Every species' name, genus by genus."""
        return list(self.marks)

    def differing(self, a: str, b: str) -> list[str]:
        """The marks in which two species differ, in the order of `MARKS`."""
        return differing(self.marks[a], self.marks[b])


def differing(marks: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """The marks in which two birds differ, in the order of `MARKS`."""
    return [m for m in MARKS if marks[m] != others[m]]


def make_world(seed: int = 0) -> World:
    """Draw a world: names, prototypes, changed marks and the seen/unseen split."""
    rng = random.Random(f"paperbirds/{seed}")
    pools = [list(pool) for pool in (EPITHETS, GENERA, SHAPE["bill"], SHAPE["tail"])]
    for pool in pools:
        rng.shuffle(pool)
    epithets, *shapes = pools
    marks, genus_of, seen = {}, {}, set()
    for genus, bill, tail in zip(*shapes, strict=True):
        names = [f"{epithets.pop(0)} {genus}" for _ in range(PER_GENUS)]
        for name, plumage in zip(names, _genus_plumages(rng), strict=True):
            marks[name] = plumage | {"bill": bill, "tail": tail}
            genus_of[name] = genus
        seen.update(rng.sample(names, SEEN_PER_GENUS))
    return World(seed, marks, genus_of, frozenset(seen))


def _genus_plumages(rng: random.Random) -> list[dict[str, str]]:
    """A prototype and nine of its twenty one-mark neighbours, shuffled."""
    prototype = {mark: rng.choice(values) for mark, values in PLUMAGE.items()}
    changed = [
        prototype | {mark: value}
        for mark, values in PLUMAGE.items()
        for value in values
        if value != prototype[mark]
    ]
    plumages = [prototype, *rng.sample(changed, PER_GENUS - 1)]
    rng.shuffle(plumages)
    return plumages


def photo(world: World, species: str, split: str, index: int, more_leaves: int = 0) -> Photo:
    """The `index`-th picture of a species in a split.

    The identifier is the seed of the drawing, so that pictures of different splits
    (`pretrain`, `train`, `test`) can never be the same drawing; `draw_id` draws it.
    """
    split += f"+{more_leaves}" if more_leaves else ""
    name = f"paperbirds/{world.seed}/{split}/{species.replace(' ', '-')}/{index}"
    return Photo(name, species, partial(draw_id, world.marks[species], name))


def draw_id(marks: dict[str, str], name: str) -> Image.Image:
    """The picture of an identifier: "train+8" is the training split with 8 leaves more."""
    return draw(marks, random.Random(name), int(name.split("/")[2].partition("+")[2] or 0))


def collection(
    world: World, *, shots: int = 4, test: int = 432, split: str = "test", more_leaves: int = 0
) -> Collection:
    """`shots` training pictures a seen species, about `test` fresh ones of each half.

    The test count is rounded up to a whole number of pictures a species. split: settings
    are chosen on `val`, results are reported on `test`. more_leaves: in front of every bird, so
    that single pictures mislead.
    """
    species, train, tests = [], [], []
    for name in world.names:
        seen = name in world.seen
        species.append(Species(name, world.genus[name], seen, knowledge(world, name)))
        half = len(world.seen) if seen else len(world.names) - len(world.seen)
        count = math.ceil(test / half)
        train += [photo(world, name, "train", i, more_leaves) for i in range(shots * seen)]
        tests += [photo(world, name, split, i, more_leaves) for i in range(count)]

    def distance(a: str, b: str) -> int:
        return len(world.differing(a, b)) + (world.genus[a] != world.genus[b])

    return Collection("bird", tuple(species), tuple(train), tuple(tests), distance)


def describe(marks: Mapping[str, str], which: Iterable[str] = MARKS) -> str:
    """The marks, or some of them, as a student or a field guide writes them."""
    return ", ".join(f"{mark} {marks[mark]}" for mark in which)


def knowledge(world: World, species: str) -> str:
    """The field guide's entry of one species."""
    return describe(world.marks[species])


def recite(world: World, species: str) -> str:
    """Its plumage alone, in which the species of a genus differ."""
    return describe(world.marks[species], PLUMAGE)
