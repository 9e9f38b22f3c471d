"""What the log of a training says of its steps that taught nothing."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

ENDED = "raise max_new_tokens, or look whether the model ends its turns"
WHY = {  # a reason why a step of TAPO has no gradient -> whether its row of the log says so
    "float16 overflowed, and the step was left out": lambda row: not _finite(row),
    f"all completions were cut at the length limit ({ENDED})": lambda row: row["truncated"] == 1,
    "no completion was right (train stage 1 longer)": lambda row: row["accuracy"] == 0,
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
