"""The probe counts chains that lead to their answer and are true, not names alone."""

import random

import pytest

from finer1_lite import cot
from finer1_lite.data.chain_text import Chain
from finer1_lite.students import probe


@pytest.fixture
def chain(world):
    return cot.oracle_chain(world, world.names[0], random.Random(0))


def test_every_true_chain_is_true(world):
    for name in world.names:
        assert probe.remarks_true(cot.oracle_chain(world, name, random.Random(name)), world)


def test_each_false_remark_is_found(world, chain):
    name = world.names[0]
    other = next(c for c in Chain(chain).listed if c != name)
    against = Chain(chain).remarks[other].partition(", has ")[2]
    mark, value = world.marks[name]["crown"], world.marks[other]["crown"]
    assert probe.remarks_true(chain, world)
    for old, new in (
        (f", has {against}", ", fits"),  # what tells them apart is left out
        (", fits", ", has tail stub, tail forked"),  # made up
        (f"{other}: crown {value}", f"{other}: crown pink"),  # recited wrongly
        (f"{other}: crown {value}, ", f"{other}: "),  # a mark is forgotten
        (f"{other}: ", "nobody: "),  # no species
        (f"analysis: crown {mark}", "analysis: crown pink"),  # another bird than is compared
        ("comparison:", "compared:"),  # no comparison
    ):
        assert old in chain and not probe.remarks_true(chain.replace(old, new), world), old


def test_shares_are_of_names_of_reasons_and_of_true_remarks(world, chain):
    name = world.names[0]
    other = next(c for c in Chain(chain).listed if c != name)
    beside = chain.replace(f"prediction: {name}", f"prediction: {other}")
    false = chain.replace(", fits", "")
    said = [chain, beside, false, "nothing"]
    found = probe.shares("think", "think", said, [name] * 4, world)
    assert found == {"think": 0.75, "think_agrees": 0.25, "think_true": 0.5}
    found = probe.shares("quiz", "answer", [f"<answer>{name}</answer>"], [name], world)
    assert found == {"quiz": 1.0}
