"""Answerers that need no picture: a score at their level shows nothing. Pure.

A question row is (where it stands, its options in the order shown, the right one); each
control returns for every row the probability that it answers rightly.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from finer1_lite.data import scoring
from finer1_lite.data.benchmark import Question, rotations, shuffled

QuestionRow = tuple[str, Sequence[str], str]


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
    "always the first option": lambda rows: [float(shown[0] == label) for _, shown, label in rows],
    "random option": lambda rows: [1 / len(shown) for _, shown, _ in rows],  # exactly
    "least used as a wrong option": least_used,
}
COMPLETIONS = {"always first": lambda options: options[0], "list all": ", ".join}


def score_completions(questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """{"always first"|"list all": {"released"|"ours": share right}} of two image-free answerers.

    Released: the options as they stand in the file, scored by inclusion. Ours: every
    rotation of the options, scored by our parser.
    """
    right = {who: dict.fromkeys(scoring.PROTOCOLS, 0.0) for who in COMPLETIONS}
    for q in questions:
        orders = rotations(shuffled(q.options, q.photo))
        for who, complete in COMPLETIONS.items():
            said = complete(q.options).strip()
            right[who]["released"] += scoring.released_inclusion(said, q.label)
            for order in orders:
                text = f"<answer>{complete(order)}</answer>"
                verdict = scoring.judge(text, q.label, order, options=order)
                right[who]["ours"] += verdict.correct / len(orders)
    total = max(len(questions), 1)
    return {who: {p: n / total for p, n in by.items()} for who, by in right.items()}
