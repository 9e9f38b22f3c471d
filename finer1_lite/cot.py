"""Structured chains of thought: what is seen, candidates, comparison, prediction.

Two teachers write them without any model: an oracle that knows a paper bird's marks, and
a table of descriptions for real photographs.
"""

import random
import re
from collections.abc import Callable
from itertools import dropwhile

from finer1_lite import paperbirds, prompts, rewards
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
    remarks = [_marks_against(world, name, c) for c in chosen]
    return prompts.chain(paperbirds.knowledge(world, name), chosen, remarks, name)


def _marks_against(world: paperbirds.World, name: str, candidate: str) -> str:
    """The candidate's marks that the bird does not have, or that it fits."""
    against = [f"{m} {world.marks[candidate][m]}" for m in world.differing(name, candidate)]
    return "has " + ", ".join(against) if against else "fits"


def table_chain(collection: Collection, name: str, rng: random.Random) -> str:
    """A chain from the descriptions of the class and its neighbours.

    It says what the class looks like in general: this teacher has not seen the picture.
    """
    chosen = candidates(collection.neighbours(name), name, rng)
    remarks = [
        "fits" if c == name else f"would be {phrase(collection, c, REMARK_WORDS)}" for c in chosen
    ]
    return prompts.chain(phrase(collection, name, SEEN_WORDS), chosen, remarks, name)


def phrase(collection: Collection, name: str, words: int) -> str:
    """The first words of a description, lower-case, without the words of any class name.

    Names are taken out so that the analysis does not give the answer away.
    """
    of_names = {w for n in collection.names for w in re.findall(r"\w+", n.casefold())}
    said = re.findall(r"\w+", collection.of(name).description.casefold())
    left = list(dropwhile(FILLERS.__contains__, [w for w in said if w not in of_names]))
    return " ".join(left[:words])


def make_chains(collection: Collection, teacher: Teacher, seed: int) -> dict[str, str]:
    """A chain for each training picture: photo id -> chain.

    Raises ValueError listing the pictures whose chain has a broken form or a wrong answer.
    """
    chains, faults = {}, []
    for photo in collection.train:
        text = teacher(photo, random.Random(f"chain/{seed}/{photo.id}"))
        right = rewards.accuracy_reward(text, photo.species, classes=collection.names)
        if not (right and rewards.format_reward(text)):
            faults.append(photo.id)
        chains[photo.id] = text
    if faults:
        raise ValueError(f"{len(faults)} chains are unusable: {', '.join(faults[:5])}")
    return chains
