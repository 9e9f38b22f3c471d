"""What the log of a training says of itself: steps that taught nothing, and drifts."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

ENDED = "raise max_new_tokens, or look whether the model ends its turns"
REASONED = ("right_and_agrees", "accuracy")  # what is right for its reason, and what is right
NONE_RIGHT = "train stage 1 longer; if some had been right, lower the rate"
WHY = {  # a reason why a step of TAPO has no gradient -> whether its row of the log says so
    "float16 overflowed, and the step was left out": lambda row: not _finite(row),
    f"all completions were cut at the length limit ({ENDED})": lambda row: row["truncated"] == 1,
    f"no completion was right ({NONE_RIGHT})": lambda row: row["accuracy"] == 0,
    "every completion was right": lambda row: row["accuracy"] == 1,
    "the completions of each group were all right or all wrong (sample hotter)": lambda row: True,
}


def taught_nothing(row: Mapping) -> bool:
    """Whether a step, by its row of log.jsonl, had no gradient or rewards without variance."""
    idle = row.get("skipped") or row.get("grad_norm") == 0 or row.get("varied") == 0
    return bool(idle) or not _finite(row)


def _finite(row: Mapping) -> bool:
    return math.isfinite(row.get("grad_norm") or 0)


def lessons(log: Sequence[Mapping]) -> list[str]:
    """What is wrong with a training of which most steps taught nothing, in sentences."""
    idle = [row for row in log if taught_nothing(row)]
    told = []
    if idle and 2 * len(idle) >= len(log):
        rewarded = [row for row in idle if "accuracy" in row and "truncated" in row]
        why = Counter(next(w for w, so in WHY.items() if so(row)) for row in rewarded)
        reasons = "".join(f"; in {n} of them {reason}" for reason, n in why.items())
        told.append(f"{len(idle)} of {len(log)} logged steps had nothing to learn from{reasons}")
    if log and log[-1].get("moved") == 0 and len(idle) < len(log):
        told.append("the adapter did not move: its learning rate may be too small")
    return told


def drifts(log: Sequence[Mapping]) -> list[str]:
    """What went wrong in stage 2 little by little, in sentences.

    The means of a log's first and last quarter are compared, three steps at least each.
    """
    rows = [row for row in log if "accuracy" in row]
    width = max(3, len(rows) // 4)
    if len(rows) < 2 * width:
        return []
    ends = {}
    for name in sorted({name for row in rows for name in row}):
        parts = ([r.get(name) for r in part] for part in (rows[:width], rows[-width:]))
        first, last = ([x for x in part if isinstance(x, float | int)] for part in parts)
        if first and last:
            ends[name] = fmean(first), fmean(last)

    def rise(name: str) -> float:
        first, last = ends.get(name, (0, 0))
        return last - first

    def factor(name: str) -> float:
        first, last = ends.get(name, (1, 1))
        return last / first if first else 1

    def said(*names: str) -> str:
        return ", ".join("{} from {:.3g} to {:.3g}".format(name, *ends[name]) for name in names)

    told = []
    if factor("format") < 1 / 2:
        mend = "take a tenth of the learning rate and a checkpoint from before the fall"
        told.append(f"the right form was lost ({said('format')}): {mend}")
    if rise("reward") > 0.1 and rise("accuracy") < -0.1:
        paid = [name for name in ends if name.startswith("rewards/") and rise(name) > 0]
        what = said("reward", "accuracy", *paid)
        told.append(f"something other than the right name is paid ({what}): pay the name most")
    (was, reasoned), (before, right) = (ends.get(name, (0, 0)) for name in REASONED)
    if reasoned * before < 2 / 3 * was * right:  # the ratio of the two fell
        mend = "pay agreement (reward_agreement), or take a checkpoint from before the fall"
        told.append(f"right names are found beside the chain ({said(*REASONED)}): {mend}")
    if not 2 / 3 < factor("length") < 3 / 2:
        told.append(f"completions changed in size ({said('length')}): read some of both ends")
    if factor("anchor_entropy") < 1 / 5:
        mend = "sample hotter and with top_p 1, and weigh the entropy less"
        told.append(f"completions become all alike ({said('anchor_entropy')}): {mend}")
    return told
