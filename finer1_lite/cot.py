"""Structured chains of thought: what is seen, candidates, comparison, prediction.

Two writers need no model: an oracle that knows a paper bird's marks, and a table of
descriptions for real photographs.
"""

import logging
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from finer1_lite import paperbirds, prompts, rewards
from finer1_lite.data import wording
from finer1_lite.data.chain_text import section
from finer1_lite.data.folders import unknown
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Collection, Photo, Species, with_descriptions

log = logging.getLogger("finer1_lite")

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

    remarks = [remark(candidate) for candidate in chosen]
    return prompts.chain(analysis, chosen, remarks, name)


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


# --- chains that were written elsewhere ------------------------------------------------------


def several(chains: str | Sequence[str]) -> tuple[str, ...]:
    """The chains of a photo, where it may have one or several."""
    return (chains,) if isinstance(chains, str) else tuple(chains)


def check_chains(collection: Collection, chains: Chains) -> None:
    """Raise a DataError with everything that makes these chains unfit for stage 1.

    Photos that are not there, that are tested on, or whose chain has a broken form or another
    answer; no chain at all. Training photos without a chain are named in the log.
    """
    train = {photo.id: photo.species for photo in collection.train}
    problems = []
    for photo, own in chains.items():
        if photo in train:
            problems += _faults(collection, photo, train[photo], several(own))
        else:
            problems.append(_misplaced(collection, photo, chains))
    bare = [photo for photo in train if photo not in chains]
    if len(bare) == len(train):
        problems.append(f"none of the {len(train)} training photographs has a chain")
    if problems:
        headline = "these chains cannot be trained on (a chain of a test photograph is a leak):"
        raise DataError(problems, headline)
    if bare:
        said = "%d of %d training photographs have no chain: they are in stage 2 only: %s"
        log.warning(said, len(bare), len(train), ", ".join(bare))


def _misplaced(collection: Collection, photo: str, chains: Chains) -> str:
    """Why a photo is none that is trained on; one that was renamed may be one without a chain."""
    test = {one.id: one.species for one in collection.test}
    if photo in test:
        seen = test[photo] in collection.seen_names
        what = "is a test photograph" if seen else f"is of the unseen class {test[photo]!r}"
        mend = "drop its chain, or give --shots and --unseen-share as `cot make` had them"
        return f"{photo}: {what}; {mend}"
    folder, name = photo.split("/")[0], photo.split("/")[-1]
    free = [one.id for one in (*collection.train, *collection.test) if one.id not in chains]
    near = [one for one in free if {folder, name} & {*one.split("/")}]
    return f"{unknown(photo, near)} among the photographs; mend `photo`"


def _faults(collection: Collection, photo: str, name: str, chains: Sequence[str]) -> list[str]:
    """What is wrong with the chains of one training photo."""
    found = []
    for chain in chains:
        answer = rewards.parse_answer(chain)
        named = rewards.match_class(answer, collection.names, collection.aliases)
        if not rewards.format_reward(chain):
            found.append(f"{photo}: is not one <think>...</think>, then one <answer>...</answer>")
        elif named is None:
            found.append(f"{photo}: answers {answer!r}, which names no class")
        elif named != name:
            found.append(f"{photo}: answers {named!r}, the photograph shows {name!r}")
    return found


def described_by(collection: Collection, chains: Chains) -> Collection:
    """Describe each class without a description by the analyses of its chains."""
    bare = [one.name for one in collection.species if not one.description.strip()]
    texts: dict[str, list[str]] = {name: [] for name in bare}
    for photo in collection.train:
        if photo.species in texts:
            own = [section(chain, "analysis") for chain in several(chains.get(photo.id, ()))]
            texts[photo.species] += [one.removeprefix(LOOK_FOR) for one in own]
    found = {name: "; ".join(dict.fromkeys(told)) for name, told in texts.items()}
    told = sum(map(bool, found.values()))
    if told:
        said = "%d classes without a description: look-alikes go by the chains of %d"
        log.info(said, len(bare), told)
    return with_descriptions(collection, found)
