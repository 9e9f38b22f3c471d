"""What a run is good for, in sentences: chance, another tool, whether chains lead to answers. Pure.

Every sentence is computed from the same records and intervals as the tables; what an interval
cannot tell apart is called so.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from finer1_lite import metrics
from finer1_lite.data.chain_text import agreement, fold
from finer1_lite.evals.tables import percent, points, text_table, verdict
from finer1_lite.metrics import PHOTO, SPLITS, TASKS, Entry, entries

TOOLS = {  # models in the records that are classifiers and no students
    "baseline lite0": "the mean of a class's training photographs on an ImageNet encoder",
    "baseline tower_prototypes": "the mean of a class's training photographs on the student's "
    "own vision tower",
    "baseline vision_tower": "the nearest training photograph on the student's own vision tower",
    "baseline clip": "CLIP, which reads the names and needs no training photograph",
    "baseline clip_probe": "a linear classifier on CLIP's features",
}
ZERO_SHOT = ("baseline clip",)  # it may name a class that it was never shown
CHAINS = {  # column -> what is counted in it
    "four parts, %": "parts",
    "distinct candidates, %": "distinct",
    "label listed, %": "listed",
    "picks one, %": "compared",
    "prediction = answer, %": "same",
    "right and agrees, %": "good",
}


class Side(NamedTuple):
    """An answerer with its rows of one world."""

    who: Entry
    rows: pd.DataFrame

    def cell(self, split: str) -> dict:
        """`metrics.accuracy` on the classes of one split; {} without any."""
        return metrics.accuracy(self.rows[self.rows["split"] == split])


def share(cell: Mapping, unit: str = " %") -> str:
    """An accuracy with its interval, as it stands in a sentence."""
    return f"{percent(cell['accuracy'])}{unit} [{percent(cell['low'])}, {percent(cell['high'])}]"


# --- chance --------------------------------------------------------------------------------


def against_chance(cell: Mapping, chance: float) -> str:
    """Whether the whole 95 % interval lies above or below chance, or includes it."""
    if cell["low"] > chance:
        return "above chance"
    return "below chance" if cell["high"] < chance else "not to be told from chance"


def chance_of(cell: Mapping, task: str, names: int | None) -> float | None:
    """1 / options in the closed world, 1 / names in the open one; None where unknown."""
    if task == "closed":
        return cell.get("chance")
    return 1 / names if names else None


def chance_sentences(found: Mapping, names: int | None) -> list[str]:
    """A sentence for each answerer that sees: where it is above chance, below, or at it.

    found: as `metrics.scores` returns it; names: how many there are to guess from. The last
    answerer comes first: it is the one that a user has.
    """
    told = []
    for who, cells in found.items():
        places: dict[tuple[str, str], list[str]] = {}
        for task in TASKS if who.picture and who.prompt != "none" else ():
            for split in SPLITS:
                cell = cells.get(split, {}).get(task, {})
                chance = chance_of(cell, task, names)
                if chance is not None and cell:
                    place = f"in the {task} world (chance {percent(chance)} %)"
                    key = (place, against_chance(cell, chance))
                    places.setdefault(key, []).append(split)
        said = "; ".join(f"{a} {' and '.join(s)} classes are {b}" for (a, b), s in places.items())
        told += [f"{who}: {said}."] if said else []
    return told[::-1]


# --- another tool --------------------------------------------------------------------------


def better_tool(student: Side, tools: Iterable[Side], names: int) -> str:
    """Which to take for naming, the student or the best of the classifiers; "" without one.

    Decided by the interval of their difference on the same pictures of seen classes (of
    unseen ones where there are no others); names: how many there are to guess from.
    """
    split = next((s for s in SPLITS if student.cell(s)), SPLITS[0])
    beside = [tool for tool in tools if tool.cell(split)]
    if not beside or not student.cell(split):
        return ""
    tool = max(beside, key=lambda t: t.cell(split)["accuracy"])
    rows = student.rows[student.rows["split"] == split]
    difference = metrics.difference(rows, tool.rows)
    if not difference:
        return ""
    told = f"An ordinary classifier ({tool.who.label}: {TOOLS[tool.who.model]}) names "
    told += f"{share(tool.cell(split))} of the pictures of {split} classes rightly, this student "
    told += f"({student.who.label}) {share(student.cell(split))}; {_choice(difference)}"
    return f"{told} {_never_shown(student, tool, names)}".strip()


def _choice(difference: Mapping) -> str:
    """What the paired difference of student and classifier means for whoever must choose."""
    told = f"student minus classifier: {points(difference)} points, "
    extra = "The student additionally writes a chain of thought."
    if verdict(difference) == "better":
        return f"{told}so the student is the better choice."
    if verdict(difference) == "worse":
        return f"{told}so for naming alone use the classifier. {extra}"
    told += "not significant. For naming alone the classifier, which is made in seconds, "
    return f"{told}serves as well. {extra}"


def _never_shown(student: Side, tool: Side, names: int) -> str:
    """What is to be said of classes without training pictures; "" where there are none."""
    cell = student.cell("unseen")
    if not cell or not student.cell("seen") or tool.who.model in ZERO_SHOT:
        return ""
    where = against_chance(cell, 1 / names)
    told = "Classes without training pictures the classifier can never name: 0 by construction"
    return f"{told}; the student names {share(cell)} of them ({where}, {percent(1 / names)} %)."


# --- chain and answer ----------------------------------------------------------------------


def judged(frame: pd.DataFrame) -> pd.DataFrame:
    """The completions to prompts that ask for a chain, a column each of what `CHAINS` counts."""
    rows = frame[(frame["prompt"] == "think") & frame["picture"] & frame["error"].isna()]
    found = []
    for text, answer, label in zip(rows["completion"], rows["answer"], rows["label"], strict=True):
        chain = agreement(text, answer, (), label)
        same = bool(answer) and fold(chain["predicted"] or "") == fold(answer)
        found.append({key: chain[key] for key in ("parts", "distinct", "listed", "compared")})
        found[-1] |= {"same": same, "agrees": chain["agrees"]}
    columns = [*dict.fromkeys(CHAINS.values()), "agrees"]
    judged = pd.DataFrame(found, rows.index, columns[:-2] + columns[-1:]).astype(float)
    return rows.join(judged.assign(good=judged["agrees"] * rows["correct"]))


def agreement_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of completions with 95 % Wilson intervals over the n pictures; rows: `judged`."""
    lines = []
    for task in TASKS:
        for who, part in entries(rows[rows["task"] == task]).items():
            for split in SPLITS:
                of = part[part["split"] == split]
                if len(of):
                    line = {"answerer": who.label, "world": task, "classes": split}
                    line |= {name: share(_rate(of, key), "") for name, key in CHAINS.items()}
                    lines.append(line | {"n": str(_rate(of, "good")["n"])})
    return text_table(lines)


def _rate(rows: pd.DataFrame, key: str) -> dict:
    """A share of completions, each picture counting once, as a cell of accuracy."""
    means = rows.groupby(PHOTO)[key].mean()
    right, n = float(np.clip(means.sum(), 0, len(means))), len(means)
    low, high = metrics.wilson(right, n)
    return {"accuracy": right / n, "low": low, "high": high, "n": n}


def agreement_sentence(who: Entry, rows: pd.DataFrame) -> str:
    """How often the chain leads to the answer, all and right ones; rows: `judged`."""
    found = entries(rows[rows["task"] == "open"])
    of = found.get(who, rows[:0])
    split = next((s for s in SPLITS if (of["split"] == s).any()), None)
    if split is None:
        return ""
    of = of[of["split"] == split]
    agree, right = _rate(of, "agrees"), of[of["correct"] == 1]
    told = f"Chain and answer of {who} say the same in {share(agree)} of the completions (open "
    told += f"world, {split} classes; {percent(1 - of['parts'].mean())} % lack a part of the chain)"
    if len(right):
        told += f", and in {right['agrees'].sum():.0f} of the {len(right)} right ones"
    if agree["low"] > 0.9:
        return f"{told}. The chain can be read beside the answer."
    return f"{told}. Where they differ the chain does not explain the answer."


def classifiers(found: Mapping[Entry, pd.DataFrame]) -> list[Side]:
    """Those of the answerers that are classifiers of `TOOLS`."""
    return [Side(who, rows) for who, rows in found.items() if who.model in TOOLS]


def advice(frame: pd.DataFrame, who: Entry, tools: pd.DataFrame | None = None) -> Sequence[str]:
    """What a user can act on, the most useful first; tools: records of classifiers.

    who: the student that is meant. Sentences that the records cannot support are left out.
    """
    asked = frame[frame["task"] == "open"]
    task = "open" if who in entries(asked) else "closed"
    rows = entries(frame[frame["task"] == task])
    others = rows if tools is None else entries(tools[tools["task"] == task])
    names = frame["label"].nunique()
    told = [better_tool(Side(who, rows[who]), classifiers(others), names)] if who in rows else []
    told.append(agreement_sentence(who, judged(frame)))
    return [sentence for sentence in told if sentence]
