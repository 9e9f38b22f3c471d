"""Structured chains of thought: what is seen, candidates, comparison, prediction.

Two writers need no model: an oracle that knows a paper bird's marks, and a table of
descriptions for real photographs.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from finer1_lite import paperbirds, prompts, rewards
from finer1_lite.data import wording
from finer1_lite.runtime.files import require_none
from finer1_lite.species import Collection, Photo, Species

ChainWriter = Callable[[Photo, random.Random], str]  # a picture's chain
Chains = Mapping[str, str | Sequence[str]]  # photo id -> its chain, or several
SEEN_WORDS = 12  # words of a description that an analysis quotes
LOOK_FOR = "to look for: "  # what is said of a picture that nobody has looked at
UNKNOWN = "its looks are not known"
REMARK_WORDS = 6  # words of a candidate's description that a comparison quotes


def candidates(names: list[str], right: str, rng: random.Random) -> list[str]:
    """List the right name among its nearest ones, four at most, in shuffled order.

    names: neighbours of `right`, nearest first. Without the shuffle a student learns that
    the first candidate is right, as the released chains teach.
    """
    chosen = names[: prompts.MAX_CANDIDATES - 1] + [right]
    rng.shuffle(chosen)
    return chosen


def oracle_chain(
    world: paperbirds.World,
    name: str,
    rng: random.Random,
    seen: Mapping[str, str] | None = None,
    options: Sequence[str] | None = None,
) -> str:
    """Write the true chain of a paper bird, as a teacher that knows its marks would.

    Candidates are neighbours of the same genus, seen and unseen alike; ties fall by chance.
    The comparison recites what each candidate looks like before it says what tells it from
    the bird. seen: the marks that are seen of the bird, where some are mistaken; options: the
    choices of a closed world, which are then the candidates.
    """
    seen = seen or world.marks[name]
    genus = [n for n in world.names if world.genus[n] == world.genus[name] and n != name]
    rng.shuffle(genus)
    nearest = sorted(genus, key=lambda n: len(paperbirds.differing(seen, world.marks[n])))
    chosen = list(options) if options else candidates(nearest, name, rng)
    remarks = [remark(world, seen, candidate) for candidate in chosen]
    return prompts.chain(paperbirds.describe(seen), chosen, remarks, name)


def oracle(world: paperbirds.World) -> ChainWriter:
    """Return the writer of an `oracle_chain` about each picture."""
    return lambda photo, rng: oracle_chain(world, photo.species, rng)


def remark(world: paperbirds.World, seen: Mapping[str, str], candidate: str) -> str:
    """What a candidate looks like, then its marks that are not seen, or that it fits."""
    marks = world.marks[candidate]
    against = ", ".join(f"{m} {marks[m]}" for m in paperbirds.differing(seen, marks))
    return f"{paperbirds.recite(world, candidate)}, {f'has {against}' if against else 'fits'}"


def require_descriptions(collection: Collection, who: str) -> None:
    """Raise a DataError naming every class without a description; who: what needs them."""
    bare = [f"{s.name}: no description" for s in collection.species if not s.description.strip()]
    headline = f"{who} writes chains from descriptions.csv (columns class, description; "
    headline += "`lab --photos DIR --template` writes one to fill in)"
    require_none(bare, headline)


def table_chain(collection: Collection, name: str, rng: random.Random) -> str:
    """Write a chain from the descriptions of the class and its neighbours.

    The picture has not been looked at, so it says what there is to look for: some of what is
    told of the class, drawn anew for each chain.
    """
    chosen = candidates(collection.neighbours(name), name, rng)
    return table_chain_of(collection, name, chosen, to_look_for(looks(collection, name), rng))


def table_chain_of(collection: Collection, name: str, chosen: Sequence[str], analysis: str) -> str:
    """Write the same with given candidates and analysis."""

    def remark(candidate: str) -> str:
        told = phrase(collection, candidate, REMARK_WORDS)
        if candidate == name:
            return "fits"
        told = re.sub(r"^(?:no|lack(?:s|ing)?(?: of)?) ", "without ", told)
        return f"would be {told}" if told else UNKNOWN

    return prompts.chain(analysis, chosen, [remark(candidate) for candidate in chosen], name)


def to_look_for(told: Sequence[str], rng: random.Random, first: Sequence[str] = ()) -> str:
    """Say what to look for: half of what is told or more, `SEEN_WORDS` words at most.

    told: phrases; first: those of them of which one must be there.
    """
    if not told:
        return UNKNOWN
    chosen = [rng.choice(first or told)]
    others = [one for one in told if one not in chosen]
    rng.shuffle(others)
    wanted = rng.randint((len(told) + 1) // 2, len(told))
    for one in others:
        if len(chosen) < wanted and sum(len(c.split()) for c in (*chosen, one)) <= SEEN_WORDS:
            chosen.append(one)
    return LOOK_FOR + ", ".join(wording.cut(one, SEEN_WORDS) for one in told if one in chosen)


def phrase(collection: Collection, name: str, words: int) -> str:
    """Quote the first phrases of a description, `words` words at most, without class names.

    Names are taken out so that the analysis does not give the answer away.
    """
    chosen: list[str] = []
    for one in looks(collection, name):
        if chosen and sum(len(c.split()) for c in (*chosen, one)) > words:
            break
        chosen.append(wording.cut(one, words))
    return ", ".join(chosen)


def looks(collection: Collection, name: str) -> list[str]:
    """List what a class's description says that a photo can show (`wording.looks`)."""
    return _looks(collection.species)[name]


@lru_cache(maxsize=8)
def _looks(species: tuple[Species, ...]) -> dict[str, list[str]]:
    told = {one.name: one.description for one in species}
    return wording.looks(told, {one.name: one.aliases for one in species})


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


def several(chains: str | Sequence[str]) -> tuple[str, ...]:
    """The chains of a photo, where it may have one or several."""
    return (chains,) if isinstance(chains, str) else tuple(chains)
