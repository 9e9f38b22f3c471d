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
from itertools import combinations

from PIL import Image, ImageDraw

from finer1_lite.species import Collection, Photo, Species

COLOURS = {
    "red": (200, 45, 40),
    "yellow": (235, 195, 45),
    "green": (50, 140, 65),
    "blue": (55, 85, 190),
    "black": (35, 35, 40),
    "white": (240, 240, 240),
}
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
SIZE = 84  # pixels a side: 6 x 6 patches of 14, merged to 3 x 3 visual tokens


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


def draw(marks: dict[str, str], rng: random.Random, more_leaves: int = 0) -> Image.Image:
    """One picture of a bird with these marks: `SIZE` x `SIZE` RGB.

    Everything else (pose, size, side, light, background, leaves) comes from `rng`, with so many
    more leaves.
    """
    side = SIZE * 2  # drawn at twice the size, then reduced: smooth edges
    ground = tuple(rng.randint(120, 225) for _ in range(3))
    scene = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(scene)
    for _ in range(rng.randint(1, 4)):  # blurred shapes far behind
        x, y, r = rng.uniform(0, side), rng.uniform(0, side), rng.uniform(10, 50)
        shade = tuple(max(0, min(255, c + rng.randint(-35, 35))) for c in ground)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=shade)
    bird = _bird(marks)
    if rng.random() < 0.5:
        bird = bird.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    bird = bird.rotate(rng.uniform(-22, 22), resample=Image.Resampling.BILINEAR)
    scale = rng.uniform(0.72, 1.0)
    bird = bird.resize((int(side * scale),) * 2, Image.Resampling.BILINEAR)
    slack = side - bird.width
    scene.paste(bird, (rng.randint(0, slack), rng.randint(0, slack)), bird)
    _leaves(ImageDraw.Draw(scene), rng, side, more_leaves)
    return _light(scene, rng).resize((SIZE, SIZE), Image.Resampling.BOX)


def _bird(marks: dict[str, str]) -> Image.Image:
    """The bird alone, facing left, on a transparent 168 x 168 sheet."""
    sheet = Image.new("RGBA", (SIZE * 2, SIZE * 2), (0, 0, 0, 0))
    pen = ImageDraw.Draw(sheet)
    line = (70, 60, 55, 255)
    crown, back, belly = (COLOURS[marks[m]] for m in ("crown", "back", "belly"))
    pen.polygon(_TAILS[marks["tail"]], fill=(125, 110, 95), outline=line)
    for x in (80, 94):
        pen.line((x, 118, x - 3, 150), fill=(150, 100, 40), width=4)
    body = (42, 58, 128, 126)
    pen.pieslice(body, 0, 360, fill=belly, outline=line)
    pen.chord(body, 175, 350, fill=back, outline=line)
    head = (22, 28, 70, 76)
    pen.polygon(_BILLS[marks["bill"]], fill=(235, 150, 40), outline=line)
    pen.ellipse(head, fill=(170, 150, 130), outline=line)
    pen.chord(head, 180, 360, fill=crown, outline=line)
    pen.ellipse((33, 52, 40, 59), fill=(15, 15, 15))
    _wing(pen, marks["wing"])
    return sheet


_BILLS = {
    "short": [(26, 48), (26, 60), (14, 55)],
    "long": [(26, 50), (26, 58), (0, 55)],
    "hooked": [(27, 44), (4, 50), (6, 68), (13, 58), (27, 60)],
    "curved": [(27, 48), (10, 54), (0, 74), (14, 63), (27, 58)],
    "stout": [(28, 40), (28, 68), (8, 57)],
    "upturned": [(27, 50), (12, 48), (0, 32), (8, 54), (27, 60)],
}
_TAILS = {
    "stub": [(120, 82), (136, 80), (136, 96), (120, 98)],
    "forked": [(118, 80), (162, 60), (142, 88), (164, 112), (118, 100)],
    "fanned": [(118, 88), (150, 58), (162, 84), (154, 116), (118, 98)],
    "pointed": [(118, 78), (166, 92), (118, 102)],
    "square": [(118, 80), (156, 74), (158, 106), (118, 100)],
    "trailing": [(118, 84), (160, 104), (166, 142), (154, 140), (148, 112), (118, 98)],
}


def _wing(pen: ImageDraw.ImageDraw, pattern: str) -> None:
    """The folded wing over the body; the pattern is its mark."""
    base = (150, 130, 110)
    light = (250, 245, 235)
    dark = (30, 25, 25)
    box = (66, 74, 126, 108)
    pen.ellipse(box, fill=base, outline=dark)
    if pattern == "barred":
        for x in (80, 94, 108):
            pen.line((x, 78, x, 104), fill=light, width=6)
    elif pattern == "striped":
        for y in (84, 92, 100):
            pen.line((72, y, 120, y), fill=dark, width=4)
    elif pattern == "spotted":
        for x, y in ((78, 90), (92, 83), (92, 98), (107, 84), (107, 98), (118, 91)):
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=dark)
    elif pattern == "edged":
        pen.ellipse(box, outline=light, width=7)
    elif pattern == "tipped":
        pen.chord(box, -60, 60, fill=dark)


def _leaves(pen: ImageDraw.ImageDraw, rng: random.Random, side: int, more: int) -> None:
    """Up to three leaves, and more, in front of the bird: a mark may be hidden in one picture."""
    for _ in range(rng.choice((0, 1, 1, 2, 3)) + more):
        x, y = rng.uniform(0, side), rng.uniform(0, side)
        length, angle = rng.uniform(22, 46), rng.uniform(0, math.pi)
        dx, dy = math.cos(angle) * length, math.sin(angle) * length
        wide = rng.uniform(0.14, 0.24)
        leaf = [(x - dx, y - dy), (x - dy * wide, y + dx * wide)]
        leaf += [(x + dx, y + dy), (x + dy * wide, y - dx * wide)]
        pen.polygon(leaf, fill=(rng.randint(60, 110), rng.randint(95, 130), 60))


def _light(scene: Image.Image, rng: random.Random) -> Image.Image:
    """Brightness and a colour cast: the same white is grey at dusk, cream at noon."""
    bright = rng.uniform(0.72, 1.12)
    gains = [bright * rng.uniform(0.88, 1.1) for _ in range(3)]
    tables = [[min(255, int(v * g)) for v in range(256)] for g in gains]
    return scene.point(sum(tables, []))


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
    world: World,
    *,
    shots: int = 4,
    test: int = 432,
    split: str = "test",
    more_leaves: int = 0,
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


def some_apart(world: World, apart: int) -> World:
    """The world of up to four species a genus, any two of which differ in exactly `apart` marks.

    As many as there are, seen and unseen ones as evenly as can be; the base knows the others
    too. ValueError where a genus has no two of them.
    """
    found = []
    for genus in dict.fromkeys(world.genus.values()):
        members = [name for name in world.names if world.genus[name] == genus]
        sets = [
            names
            for size in (2, 3, 4)
            for names in combinations(members, size)
            if all(len(world.differing(*pair)) == apart for pair in combinations(names, 2))
        ]
        if not sets:
            raise ValueError(f"no two species of {genus} differ in {apart} marks: give 1 or 2")
        uneven = {
            names: abs(2 * len(world.seen.intersection(names)) - len(names)) for names in sets
        }
        found += max(sets, key=lambda names: (len(names), -uneven[names]))
    marks, genus = ({name: of[name] for name in found} for of in (world.marks, world.genus))
    return World(world.seed, marks, genus, world.seen.intersection(found))


def describe(marks: Mapping[str, str], which: Iterable[str] = MARKS) -> str:
    """The marks, or some of them, as a student or a field guide writes them."""
    return ", ".join(f"{mark} {marks[mark]}" for mark in which)


def knowledge(world: World, species: str) -> str:
    """The field guide's entry of one species."""
    return describe(world.marks[species])


def recite(world: World, species: str) -> str:
    """Its plumage alone, in which the species of a genus differ."""
    return describe(world.marks[species], PLUMAGE)
