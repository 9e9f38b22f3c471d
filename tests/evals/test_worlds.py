"""Worlds of species that are alike to a degree, out of one world."""

import itertools

import pytest

from finer1_lite import cot, paperbirds
from finer1_lite.data.chain_text import Chain
from finer1_lite.evals.worlds import some_apart
from finer1_lite.paperbirds import make_world


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("apart", [1, 2])
def test_some_species_of_a_genus_differ_by_so_many_marks(seed, apart):
    world = make_world(seed)
    some = some_apart(world, apart)
    names = some.names
    for genus in paperbirds.GENERA:
        members = [name for name in names if world.genus[name] == genus]
        assert 3 <= len(members) <= 4 and 0 < len(world.seen.intersection(members)) < len(members)
        pairs = itertools.combinations(members, 2)
        assert {len(world.differing(*pair)) for pair in pairs} == {apart}
    birds = paperbirds.collection(some, shots=2, test=24)
    assert birds.names == names and len(birds.train) == 2 * len(birds.seen_names)
    chains = cot.make_chains(birds, cot.oracle(some), seed=0).values()
    assert {name for chain in chains for name in Chain(chain).listed} <= set(names)


def test_no_two_species_of_a_genus_differ_in_three_marks(world):
    with pytest.raises(ValueError, match="differ in 3 marks: give 1 or 2"):
        some_apart(world, 3)
