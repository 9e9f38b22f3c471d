"""Structured chains of thought: what is seen, candidates, comparison, prediction.

Two writers need no model: an oracle that knows a paper bird's marks, and a table of
descriptions for real photographs.
"""

import random
import re
from collections.abc import Callable, Sequence
from itertools import dropwhile

from finer1_lite import paperbirds, prompts, rewards
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Collection, Photo

ChainWriter = Callable[[Photo, random.Random], str]  # a picture's chain
SEEN_WORDS = 12  # words of a description that an analysis quotes
FILLERS = {"is", "are", "a", "an", "the", "of"}  # not at the beginning of a phrase
REMARK_WORDS = 6  # words of a candidate's description that a comparison quotes


def candidates(names: list[str], right: str, rng: random.Random) -> list[str]:
    """List the right name among its nearest ones, four at most, in shuffled order.

    names: neighbours of `right`, nearest first. Without the shuffle a student learns that
    the first candidate is right, as the released chains teach.
    """
    chosen = names[: prompts.MAX_CANDIDATES - 1] + [right]
    rng.shuffle(chosen)
    return chosen


def oracle_chain(world: paperbirds.World, name: str, rng: random.Random) -> str:
    """Write the true chain of a paper bird, as a teacher that knows its marks would.

    Candidates are neighbours of the same genus, seen and unseen alike; ties fall by chance.
    """
    genus = [n for n in world.names if world.genus[n] == world.genus[name] and n != name]
    rng.shuffle(genus)
    nearest = sorted(genus, key=lambda n: len(world.differing(n, name)))
    chosen = candidates(nearest, name, rng)
    remarks = [marks_against(world, name, c) for c in chosen]
    return prompts.chain(paperbirds.knowledge(world, name), chosen, remarks, name)


def oracle(world: paperbirds.World) -> ChainWriter:
    """Return the writer of an `oracle_chain` about each picture."""
    return lambda photo, rng: oracle_chain(world, photo.species, rng)


def marks_against(world: paperbirds.World, name: str, candidate: str) -> str:
    """List the candidate's marks that the bird does not have, or say that it fits."""
    against = [f"{m} {world.marks[candidate][m]}" for m in world.differing(name, candidate)]
    return "has " + ", ".join(against) if against else "fits"


def require_descriptions(collection: Collection, who: str) -> None:
    """Raise a DataError naming every class without a description; who: what needs them."""
    bare = [s.name for s in collection.species if not s.description.strip()]
    if bare:
        headline = f"{who} writes chains from descriptions.csv (columns class, description; "
        headline += "`lab --photos DIR --template` writes one to fill in)"
        raise DataError([f"{name}: no description" for name in bare], headline)


def table_chain(collection: Collection, name: str, rng: random.Random) -> str:
    """Write a chain from the descriptions of the class and its neighbours.

    It says what the class looks like in general: the picture has not been looked at.
    """
    return table_chain_of(collection, name, candidates(collection.neighbours(name), name, rng))


def table_chain_of(
    collection: Collection, name: str, chosen: Sequence[str], concepts: Sequence[str] = ()
) -> str:
    """Write the same with given candidates; concepts replace the description in the analysis."""

    def remark(candidate: str) -> str:
        looks = phrase(collection, candidate, REMARK_WORDS)
        if candidate == name:
            return "fits"
        return f"would be {looks}" if looks else "its looks are not known"

    remarks = [remark(candidate) for candidate in chosen]
    analysis = ", ".join(concepts) or phrase(collection, name, SEEN_WORDS)
    return prompts.chain(analysis, chosen, remarks, name)


def phrase(collection: Collection, name: str, words: int) -> str:
    """Quote the first words of a description, lower-case, without the words of class names.

    Names are taken out so that the analysis does not give the answer away.
    """
    found = re.findall(r"\w+", without_names(collection, collection.of(name).description))
    return " ".join(list(dropwhile(FILLERS.__contains__, found))[:words])


def without_names(collection: Collection, text: str) -> str:
    """Take every word that is part of a class name out of a text; lower-case."""
    of_names = {w for n in collection.names for w in re.findall(r"\w+", n.casefold())}
    return re.sub(r"\w+", lambda w: "" if w[0] in of_names else w[0], text.casefold())


def make_chains(collection: Collection, write: ChainWriter, seed: int) -> dict[str, str]:
    """Write a chain for each training picture: photo id -> chain.

    Raises ValueError listing the pictures whose chain has a broken form or a wrong answer.
    """
    chains = {p.id: write(p, random.Random(f"chain/{seed}/{p.id}")) for p in collection.train}
    problems = [
        p.id
        for p in collection.train
        if not rewards.format_reward(chains[p.id])
        or not rewards.accuracy_reward(chains[p.id], p.species, classes=collection.names)
    ]
    if problems:
        raise ValueError(f"{len(problems)} chains are unusable: {', '.join(problems[:5])}")
    return chains
