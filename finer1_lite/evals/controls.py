"""Answerers that need no picture: a score below theirs shows nothing. Pure.

A question is (where it stands, its options in the order shown, the right one); each
control returns for every question the probability that it answers rightly.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

QuestionRow = tuple[str, Sequence[str], str]


def always_first(rows: Sequence[QuestionRow]) -> list[float]:
    """Takes the option that stands first."""
    return [float(options[0] == label) for _, options, label in rows]


def random_choice(rows: Sequence[QuestionRow]) -> list[float]:
    """Draws an option: 1 / number of options, exactly."""
    return [1 / len(options) for _, options, _ in rows]


def least_used(rows: Sequence[QuestionRow]) -> list[float]:
    """Takes the option that is least often a wrong option in the *other* rows of its file.

    It reads option statistics alone. Ties share: 1 / number of tied options where the
    right one is among them.
    """
    wrong: dict[str, Counter] = defaultdict(Counter)
    for where, options, label in rows:
        wrong[where].update(o for o in options if o != label)
    found = []
    for where, options, label in rows:
        used = {o: wrong[where][o] - (o != label) for o in options}
        fewest = [o for o in options if used[o] == min(used.values())]
        found.append((label in fewest) / len(fewest))
    return found


CONTROLS = {
    "always the first option": always_first,
    "random option": random_choice,
    "least used as a wrong option": least_used,
}
