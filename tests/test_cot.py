"""Chains of thought: their four parts, and that nothing in their form gives the answer away."""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from finer1_lite import cot, paperbirds, prompts, rewards
from finer1_lite.data.chain_text import Chain, names_in
from finer1_lite.presets import Preset
from finer1_lite.species import Collection, Photo, Species

FORM = re.compile(
    r"<think>\nanalysis: (?P<analysis>.+)\ncandidates: (?P<candidates>.+)\n"
    r"comparison: (?P<comparison>.+)\nprediction: (?P<prediction>.+)\n</think>\n"
    r"<answer>(?P<answer>.+)</answer>"
)


def parts_of(chain: str) -> dict:
    found = FORM.fullmatch(chain)
    assert found, chain
    parts = found.groupdict()
    parts["candidates"] = parts["candidates"].split(", ")
    parts["comparison"] = dict(r.split(": ", 1) for r in parts["comparison"].split("; "))
    return parts


@pytest.fixture(scope="module")
def table() -> Collection:
    """Five classes described in words, one with its own and another's name in them."""
    told = {
        "red kite": "A Red kite with a deeply forked rusty tail, unlike the Black Kite.",
        "black kite": "Dark brown bird of prey, tail shallowly notched.",
        "barn owl": "Pale face in the shape of a heart, long legs.",
        "tawny owl": "Stocky, mottled; a round face and dark eyes.",
        "grey gull": "Small, plain, sooty; a pale hood.",
    }
    species = tuple(Species(n, "", n != "grey gull", d) for n, d in told.items())
    train = tuple(Photo(f"{n}/0", n, lambda: None) for n in told if n != "grey gull")
    order = list(told)
    near = lambda a, b: abs(order.index(a) - order.index(b))  # noqa: E731
    return Collection("bird", species, train, (), distance=near)


def test_oracle_chain_has_the_four_parts_and_the_full_reward(world):
    for name in world.names:
        chain = cot.oracle_chain(world, name, random.Random(name))
        parts = parts_of(chain)
        assert parts["prediction"] == parts["answer"] == name
        assert len(set(parts["candidates"])) == 4 and name in parts["candidates"]
        assert list(parts["comparison"]) == parts["candidates"]
        assert rewards.accuracy_reward(chain, name, classes=world.names) == 1.0
        assert rewards.format_reward(chain) == 1.0
        assert len(Chain(chain).parts) == 4 and all(Chain(chain).parts.values())


def test_oracle_tells_the_true_marks(world):
    for name in world.names:
        parts = parts_of(cot.oracle_chain(world, name, random.Random(0)))
        assert parts["analysis"] == paperbirds.describe(world.marks[name])
        assert name not in parts["analysis"]
        for candidate, remark in parts["comparison"].items():
            against = [f"{m} {world.marks[candidate][m]}" for m in world.differing(name, candidate)]
            verdict = "has " + ", ".join(against) if candidate != name else "fits"
            assert remark == f"{paperbirds.recite(world, candidate)}, {verdict}"


def test_candidates_are_the_nearest_of_seen_and_unseen_alike(world):
    """Candidates from seen species only would teach that an unseen bird does not exist."""
    halves = Counter()
    for name in world.names:
        for seed in range(5):
            chosen = parts_of(cot.oracle_chain(world, name, random.Random(seed)))["candidates"]
            others = [c for c in chosen if c != name]
            farthest = max(len(world.differing(name, c)) for c in others)
            rest = [n for n in world.names if n not in chosen]
            assert farthest <= min(len(world.differing(name, n)) for n in rest)
            halves.update(c in world.seen for c in others)
    share = halves[False] / halves.total()
    assert 0.3 < share < 0.5  # 40 % of the species are unseen


@pytest.mark.parametrize("teacher", ["oracle", "table"])
def test_the_right_name_stands_in_every_place_equally_often(world, table, teacher):
    """In the released chains it is the first candidate in more than nine of ten."""
    places = Counter()
    for seed in range(400):
        rng = random.Random(seed)
        if teacher == "oracle":
            name = world.names[seed % 60]
            chain = cot.oracle_chain(world, name, rng)
        else:
            name = table.names[seed % 5]
            chain = cot.table_chain(table, name, rng)
        places[parts_of(chain)["candidates"].index(name)] += 1
    assert sorted(places) == [0, 1, 2, 3] and min(places.values()) > 70  # 100 on average


def test_table_chain_keeps_class_names_out_of_the_analysis(table):
    """A description often names its class: the analysis must not give the answer away."""
    for name in table.names:
        parts = parts_of(cot.table_chain(table, name, random.Random(0)))
        assert not any(names_in(parts["analysis"], other) for other in table.names)
        assert parts["analysis"].startswith(cot.LOOK_FOR)  # nobody has looked at the picture
        assert parts["comparison"].pop(name) == "fits"
        assert all(r.startswith("would be ") for r in parts["comparison"].values())
    assert cot.looks(table, "red kite") == ["deeply forked rusty tail"]
    chain = cot.table_chain(table, "red kite", random.Random(0))
    assert parts_of(chain)["analysis"] == "to look for: deeply forked rusty tail"


def test_analyses_of_one_class_differ_and_say_only_what_its_description_says(table):
    """The description of a class is one text: its photographs must not all recite it."""
    said = Counter()
    for seed in range(60):
        chain = cot.table_chain(table, "tawny owl", random.Random(seed))
        said[parts_of(chain)["analysis"].removeprefix(cot.LOOK_FOR)] += 1
    assert len(said) >= 2 and max(said.values()) < 50
    told = cot.looks(table, "tawny owl")
    assert told == ["stocky, mottled", "round face and dark eyes"]
    for text in said:
        assert text in (", ".join(told), *told)


def test_of_a_class_of_unknown_looks_the_chain_says_so(table):
    bare = replace(table.species[0], description="It is a red kite.")
    unknown = replace(table, species=(bare, *table.species[1:]))
    parts = parts_of(cot.table_chain(unknown, "red kite", random.Random(0)))
    assert parts["analysis"] == cot.UNKNOWN
    parts = parts_of(cot.table_chain(unknown, "black kite", random.Random(0)))
    assert parts["comparison"]["red kite"] == cot.UNKNOWN


def test_a_remark_denies_in_words_that_fit_its_sentence(table):
    told = replace(table.species[1], description="Lacks wing bars; no crest at all")
    told = replace(table, species=(table.species[0], told, *table.species[2:]))
    parts = parts_of(cot.table_chain(told, "red kite", random.Random(0)))
    assert parts["comparison"]["black kite"] == "would be without wing bars"


def test_a_chain_needs_its_name_among_at_most_four_candidates():
    with pytest.raises(ValueError, match="'c' must be one of at most 4"):
        prompts.chain("x", ["a", "b"], ["r", "r"], "c")
    with pytest.raises(ValueError, match="at most 4"):
        prompts.chain("x", list("abcde"), ["r"] * 5, "a")
    with pytest.raises(ValueError):
        prompts.chain("x", ["a", "b"], ["one remark"], "a")


def test_every_training_picture_gets_its_own_chain(birds, world):
    def teacher(photo, rng):
        return cot.oracle_chain(world, photo.species, rng)

    chains = cot.make_chains(birds, teacher, seed=0)
    assert set(chains) == {p.id for p in birds.train}
    assert chains == cot.make_chains(birds, teacher, seed=0)
    assert chains != cot.make_chains(birds, teacher, seed=1)
    assert len(set(chains.values())) > 0.9 * len(chains)  # one text a class is recited


def test_unusable_chains_are_listed(table):
    def teacher(photo, rng):
        chain = cot.table_chain(table, photo.species, rng)
        if photo.species == "barn owl":
            return chain.replace("</think>", "")
        if photo.species == "red kite":
            return chain.replace("<answer>red kite", "<answer>black kite")
        return chain

    with pytest.raises(ValueError, match="^2 chains are unusable: red kite/0, barn owl/0$"):
        cot.make_chains(table, teacher, seed=0)


def test_the_longest_chain_fits_into_a_completion_of_the_lab(student, world):
    tokenizer, limit = student.processor.tokenizer, Preset.lab().max_new_tokens
    for name in world.names:
        chain = cot.oracle_chain(world, name, random.Random(name)) + tokenizer.eos_token
        assert len(tokenizer(chain).input_ids) < limit
