"""The picture of a paper bird: its marks, and all that varies from one picture to the next."""

import math
import random

from PIL import Image, ImageDraw

COLOURS = {
    "red": (200, 45, 40),
    "yellow": (235, 195, 45),
    "green": (50, 140, 65),
    "blue": (55, 85, 190),
    "black": (35, 35, 40),
    "white": (240, 240, 240),
}
SIZE = 84  # pixels a side: 6 x 6 patches of 14, merged to 3 x 3 visual tokens


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
    light = (250, 245, 235)
    dark = (30, 25, 25)
    box = (66, 74, 126, 108)
    pen.ellipse(box, fill=(150, 130, 110), outline=dark)
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
    return scene.point([min(255, int(v * g)) for g in gains for v in range(256)])
