"""Does naming help with what cannot be seen? One mark is covered, and asked for.

In the manner of ImageWikiQA: a patch of one shape covers a mark of the bird, and the student is
asked for the marks. The others identify the species, so that whoever recognises it and knows
the field guide knows the covered mark too.

In this world a species is its genus' prototype with one mark changed, so a mark that the
others identify is always the prototype's: recognising the *genus* is enough. The control
"most frequent in the genus" says so with 100 %; the exact name is never needed here.
"""

import random
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageFilter

from finer1_lite import paperbirds, prompts, rewards
from finer1_lite.paperbirds import PLUMAGE, World
from finer1_lite.species import Photo

PATCH = (140, 90, 150)  # violet: the colour of no mark, so that it reads as no value
# (questions, pictures or None) -> completions
Complete = Callable[[Sequence[str], Sequence[Image.Image] | None], list[str]]
Covered = tuple[Photo, str, Image.Image]


def hideable(world: World, name: str) -> list[str]:
    """Marks of the plumage that can be known without being seen; none of a prototype."""
    differing = [world.differing(name, other) for other in world.names if other != name]
    return [mark for mark in PLUMAGE if [mark] not in differing]


def covered(marks: dict[str, str], mark: str, name: str) -> Image.Image:
    """The drawing called `name` with one mark under a patch.

    The patch lies over every pixel in which the mark could show: the six drawings with each
    value of the mark are equal outside of it, so that the picture does not depend on it.
    """
    drawn = [paperbirds.draw(marks | {mark: v}, random.Random(name)) for v in PLUMAGE[mark]]
    every = [np.asarray(picture) for picture in drawn]
    shows = np.any([(one != every[0]).any(-1) for one in every], axis=0)
    patch = Image.fromarray((shows * 255).astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
    picture = Image.fromarray(every[PLUMAGE[mark].index(marks[mark])])
    picture.paste(PATCH, mask=patch)
    return picture


def said_of(text: str, mark: str) -> str | None:
    """The value that a list of marks ("crown red, back blue") gives a mark; None without one."""
    for part in text.replace(".", "").split(","):
        first, _, value = part.strip().partition(" ")
        if first == mark and value in paperbirds.MARKS[mark]:
            return value
    return None


def cover(world: World, photos: Sequence[Photo]) -> list[Covered]:
    """(photo, mark, picture without it), the mark by chance; without species that have none."""
    rng = random.Random("covered/0")
    chosen = [(p, rng.choice(found)) for p in photos if (found := hideable(world, p.species))]
    return [(p, mark, covered(world.marks[p.species], mark, p.id)) for p, mark in chosen]


def measure(complete: Complete, world: World, shown: Sequence[Covered]) -> list[dict]:
    """Rows of one student: what it says of a covered mark, asked in three ways.

    in one step: "list the marks of the bird", with the picture and without; in two steps,
    under each prompt: the name first, then what a bird of that name looks like, in words
    alone. A name that is none has no second step and is wrong; how often the name is right
    has rows of its own.
    """
    images = [image for *_, image in shown]
    questions = [prompts.LIST.format(coarse="bird")] * len(shown)
    rows = []
    for way, pictures in (("in one step", images), ("in one step, no picture", None)):
        completions = complete(questions, pictures)
        rows += [_row(world, way, *one, text) for one, text in zip(shown, completions, strict=True)]
    for kind in prompts.QUESTIONS:
        first = complete([prompts.question(kind, "bird")] * len(shown), images)
        named = [rewards.match_class(rewards.parse_answer(t), world.names) for t in first]
        known = sorted({name for name in named if name})
        completions = complete([prompts.LOOKS.format(name=name) for name in known], None)
        looks = dict(zip(known, completions, strict=True))
        for one, name, text in zip(shown, named, first, strict=True):
            row = _row(world, f"in two steps ({kind})", *one, looks.get(name, ""))
            right = {"measure": f"named with a mark covered ({kind})", "said": name}
            right |= {"wanted": row["label"], "correct": name == row["label"], "completion": text}
            rows += [row | right, row]
    return rows


def _row(world: World, way: str, photo: Photo, mark: str, _: Image.Image, text: str) -> dict:
    said = said_of(text, mark)
    truth = world.marks[photo.species][mark]
    return {
        "measure": f"covered mark {way}",
        "item": photo.id,
        "label": photo.species,
        "split": "seen" if photo.species in world.seen else "unseen",
        "mark": mark,
        "wanted": truth,
        "said": said,
        "correct": said == truth,
        "completion": text,
    }


def control_rows(world: World, rows: Sequence[dict]) -> list[dict]:
    """The same questions answered by counting, in the genus or in all species: image-free.

    The value that most of these species have; the first of `PLUMAGE` where some tie.
    """
    found = []
    for row in rows:
        mark = row["mark"]
        genus = [n for n in world.names if world.genus[n] == world.genus[row["label"]]]
        for way, among in (("most frequent in the genus", genus), ("most frequent", world.names)):
            counts = Counter(world.marks[name][mark] for name in among)
            said = max(PLUMAGE[mark], key=counts.__getitem__)
            right = {"said": said, "correct": said == row["wanted"]}
            found.append(row | {"measure": f"covered mark, {way}", "completion": ""} | right)
    return found
