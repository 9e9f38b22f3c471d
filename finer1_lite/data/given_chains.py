"""Chains of stage 1 that were written elsewhere: whether they fit the photographs of a run."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from finer1_lite import cot, rewards
from finer1_lite.data import marks
from finer1_lite.data.chain_text import section
from finer1_lite.data.folders import unknown
from finer1_lite.runtime.files import require_none
from finer1_lite.species import Collection, by_words

log = logging.getLogger("finer1_lite")


def check_chains(collection: Collection, chains: cot.Chains) -> None:
    """Raise a DataError with everything that makes these chains unfit for stage 1.

    Photos that are not there, that are tested on, or whose chain has a broken form or another
    answer; no chain at all. Training photos without a chain are named in the log.
    """
    train = {photo.id: photo.species for photo in collection.train}
    problems = []
    for photo, own in chains.items():
        if photo in train:
            problems += _faults(collection, photo, train[photo], cot.several(own))
        else:
            problems.append(_misplaced(collection, photo, chains))
    bare = [photo for photo in train if photo not in chains]
    if len(bare) == len(train):
        problems.append(f"none of the {len(train)} training photographs has a chain")
    headline = "these chains cannot be trained on (a chain of a test photograph is a leak):"
    require_none(problems, headline)
    if bare:
        said = "%d of %d training photographs have no chain: they are in stage 2 only: %s"
        log.warning(said, len(bare), len(train), ", ".join(bare))


def _misplaced(collection: Collection, photo: str, chains: cot.Chains) -> str:
    """Why a photo is none that is trained on; one that was renamed may be one without a chain."""
    test = {one.id: one.species for one in collection.test}
    folders = {rewards.normalise(part) for part in photo.split("/")[:-1]}
    never = next((n for n in collection.unseen_names if rewards.normalise(n) in folders), "")
    if photo in test or never:
        name = test.get(photo, never)
        seen = name in collection.seen_names
        what = "is a test photograph" if seen else f"is of the unseen class {name!r}"
        mend = "drop its chain, or give --shots and --unseen-share as `cot make` had them"
        return f"{photo}: {what}; {mend}"
    folder, name = photo.split("/")[0], photo.split("/")[-1]
    free = [one.id for one in (*collection.train, *collection.test) if one.id not in chains]
    near = [one for one in free if {folder, name} & {*one.split("/")}]
    mend = "mend `photo`, or give --test-pictures and the others as `cot make` had them"
    return f"{unknown(photo, near)} among the photographs that train or test; {mend}"


def _faults(collection: Collection, photo: str, name: str, chains: Sequence[str]) -> list[str]:
    """What is wrong with the chains of one training photo."""
    found = []
    for chain in chains:
        answer = rewards.parse_answer(chain)
        named = rewards.match_class(answer, collection.names, collection.aliases)
        mark = marks.problem(chain)
        found += [f"{photo}: {mark}"] if mark else []
        if not rewards.format_reward(chain):
            found.append(f"{photo}: is not one <think>...</think>, then one <answer>...</answer>")
        elif named is None:
            found.append(f"{photo}: answers {answer!r}, which names no class")
        elif named != name:
            found.append(f"{photo}: answers {named!r}, the photograph shows {name!r}")
    return found


def described_by(collection: Collection, chains: cot.Chains) -> Collection:
    """Describe each class without a description by the analyses of its chains."""
    bare = [one.name for one in collection.species if not one.description.strip()]
    texts: dict[str, list[str]] = {name: [] for name in bare}
    for photo in collection.train:
        if photo.species in texts:
            own = [section(chain, "analysis") for chain in cot.several(chains.get(photo.id, ()))]
            texts[photo.species] += [one.removeprefix(cot.LOOK_FOR) for one in own]
    found = {name: "; ".join(dict.fromkeys(told)) for name, told in texts.items()}
    told = sum(map(bool, found.values()))
    if told:
        said = "%d classes without a description: look-alikes go by the chains of %d"
        log.info(said, len(bare), told)
    return with_descriptions(collection, found)


def with_descriptions(collection: Collection, texts: Mapping[str, str]) -> Collection:
    """The same photos, these classes (name -> text) described anew; likeness goes by words."""
    species = tuple(
        replace(one, description=texts.get(one.name, one.description)) for one in collection.species
    )
    return replace(collection, species=species, distance=by_words(species))
