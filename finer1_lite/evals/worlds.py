"""Worlds of paper birds that an ablation makes of one: species that are alike to a degree."""

from itertools import combinations

from finer1_lite.paperbirds import World


def some_apart(world: World, apart: int) -> World:
    """The world of up to four species a genus, any two of which differ in exactly `apart` marks.

    As many as there are, seen and unseen ones as evenly as can be; the base knows the others
    too. ValueError where a genus has no two of them.
    """
    found = []
    for genus in dict.fromkeys(world.genus.values()):
        members = [name for name in world.names if world.genus[name] == genus]
        sets = [
            names
            for size in (2, 3, 4)
            for names in combinations(members, size)
            if all(len(world.differing(*pair)) == apart for pair in combinations(names, 2))
        ]
        if not sets:
            raise ValueError(f"no two species of {genus} differ in {apart} marks: give 1 or 2")
        seen = {names: len(world.seen.intersection(names)) for names in sets}
        found += max(sets, key=lambda names: (len(names), -abs(2 * seen[names] - len(names))))
    marks, genus = ({name: of[name] for name in found} for of in (world.marks, world.genus))
    return World(world.seed, marks, genus, world.seen.intersection(found))
