"""Structured chains of thought: what is seen, candidates, comparison, prediction.

Two teachers write them without any model: an oracle that knows a paper bird's marks, and
a table of descriptions for real photographs.
"""

import random
import re
from collections.abc import Callable, Sequence
from itertools import dropwhile

from finer1_lite import paperbirds, prompts, rewards
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Collection, Photo

Teacher = Callable[[Photo, random.Random], str]  # a picture's chain
SEEN_WORDS = 12  # words of a description that an analysis quotes
FILLERS = {"is", "are", "a", "an", "the", "of"}  # not at the beginning of a phrase
REMARK_WORDS = 6  # words of a candidate's description that a comparison quotes


def candidates(names: list[str], right: str, rng: random.Random) -> list[str]:
    """The right name among its nearest ones, four at most, in shuffled order.

    names: neighbours of `right`, nearest first. Without the shuffle a student learns that
    the first candidate is right, as the released chains teach.
    """
    chosen = names[: prompts.MAX_CANDIDATES - 1] + [right]
    rng.shuffle(chosen)
    return chosen


def oracle_chain(world: paperbirds.World, name: str, rng: random.Random) -> str:
    """The true chain of a paper bird, as a teacher with perfect eyes would write it.

    Candidates are neighbours of the same genus, seen and unseen alike; ties fall by chance.
    """
    genus = [n for n in world.names if world.genus[n] == world.genus[name] and n != name]
    rng.shuffle(genus)
    nearest = sorted(genus, key=lambda n: len(world.differing(n, name)))
    chosen = candidates(nearest, name, rng)
    remarks = [marks_against(world, name, c) for c in chosen]
    return prompts.chain(paperbirds.knowledge(world, name), chosen, remarks, name)


def oracle(world: paperbirds.World) -> Teacher:
    """The teacher that writes `oracle_chain` about each picture."""
    return lambda photo, rng: oracle_chain(world, photo.species, rng)


def marks_against(world: paperbirds.World, name: str, candidate: str) -> str:
    """The candidate's marks that the bird does not have, or that it fits."""
    against = [f"{m} {world.marks[candidate][m]}" for m in world.differing(name, candidate)]
    return "has " + ", ".join(against) if against else "fits"


def require_descriptions(collection: Collection, who: str) -> None:
    """DataError naming every class without a description; who: the teacher that needs them."""
    bare = [s.name for s in collection.species if not s.description.strip()]
    if bare:
        raise DataError(
            [f"{name}: no description" for name in bare],
            f"{who} writes chains from descriptions.csv (columns class, description)",
        )


def table_chain(collection: Collection, name: str, rng: random.Random) -> str:
    """A chain from the descriptions of the class and its neighbours.

    It says what the class looks like in general: this teacher has not seen the picture.
    """
    return table_chain_of(collection, name, candidates(collection.neighbours(name), name, rng))


def table_chain_of(
    collection: Collection, name: str, chosen: Sequence[str], concepts: Sequence[str] = ()
) -> str:
    """The same with given candidates; concepts replace the description in the analysis."""
    told = [phrase(collection, c, REMARK_WORDS) for c in chosen]
    remarks = [
        "fits" if c == name else f"would be {t}" if t else "its looks are not known"
        for c, t in zip(chosen, told)
    ]
    analysis = ", ".join(concepts) or phrase(collection, name, SEEN_WORDS)
    return prompts.chain(analysis, chosen, remarks, name)


def phrase(collection: Collection, name: str, words: int) -> str:
    """The first words of a description, lower-case, without the words of any class name.

    Names are taken out so that the analysis does not give the answer away.
    """
    said = re.findall(r"\w+", without_names(collection, collection.of(name).description))
    return " ".join(list(dropwhile(FILLERS.__contains__, said))[:words])


def without_names(collection: Collection, text: str) -> str:
    """The text in lower case, less every word that is part of a class name."""
    of_names = {w for n in collection.names for w in re.findall(r"\w+", n.casefold())}
    return re.sub(r"\w+", lambda w: "" if w[0] in of_names else w[0], text.casefold())


def make_chains(collection: Collection, teacher: Teacher, seed: int) -> dict[str, str]:
    """A chain for each training picture: photo id -> chain.

    Raises ValueError listing the pictures whose chain has a broken form or a wrong answer.
    """
    chains, problems = {}, []
    for photo in collection.train:
        text = teacher(photo, random.Random(f"chain/{seed}/{photo.id}"))
        right = rewards.accuracy_reward(text, photo.species, classes=collection.names)
        if not (right and rewards.format_reward(text)):
            problems.append(photo.id)
        chains[photo.id] = text
    if problems:
        raise ValueError(f"{len(problems)} chains are unusable: {', '.join(problems[:5])}")
    return chains
