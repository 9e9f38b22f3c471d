"""What a run is good for, in sentences: chance, another tool, whether chains lead to answers. Pure.

They are computed from the records and intervals of the tables.
"""

from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd

from finer1_lite import metrics
from finer1_lite.data.chain_text import agreement, fold
from finer1_lite.evals.tables import names_of, percent, points, text_table, verdict
from finer1_lite.metrics import PHOTO, SPLITS, TASKS, Entry, entries
from finer1_lite.runtime.lessons import ENDED, drifts, lessons
from finer1_lite.students.card import STAGES

ALSO = "The student additionally writes a chain of thought."
ALL_CUT = 0.9  # a share of completions without an end, from which their scores mean nothing
TOOLS = {  # models in the records that are classifiers and no students
    "baseline lite0": "the mean of a class's training photographs on an ImageNet encoder",
    "baseline tower_prototypes": "the same mean on the student's own vision tower",
    "baseline vision_tower": "the nearest training photograph on the student's vision tower",
}
CHOICES = {  # what the difference of student and classifier means for whoever must choose
    "better": "so the student is the better choice.",
    "worse": f"so for naming alone use the classifier. {ALSO}",
    "not significant": (
        "not significant. For naming alone the classifier, made in seconds, serves as well. " + ALSO
    ),
}
CHAINS = {  # column -> what is counted in it
    "four parts, %": "parts",
    "distinct candidates, %": "distinct",
    "label listed, %": "listed",
    "compares all, picks one, %": "compared",
    "prediction = answer, %": "same",
    "right and agrees, %": "good",
}


def share(cell: Mapping) -> str:
    """An accuracy with its interval, as it stands in a sentence."""
    return percent(cell["accuracy"], cell).replace(" [", " % [")


def advice(frame: pd.DataFrame, who: Entry, tools: pd.DataFrame) -> list[str]:
    """What a user can act on, the most useful first; who: the student that is meant.

    frame: the records of the run; tools: those among which its classifiers are. Sentences that
    the records cannot support are left out.
    """
    task = "open" if who in entries(frame[frame["task"] == "open"]) else "closed"
    asked, tools = (rows[rows["task"] == task] for rows in (frame, tools))
    told = [better_tool(asked, who, tools), agreement_sentence(who, judged(asked))]
    return [sentence for sentence in told if sentence]


def idle(logs: Mapping[str, Mapping[int, list]], frame: pd.DataFrame | None) -> list[str]:
    """What makes the numbers of a run no result: training without a lesson, or astray; answers cut.

    logs: stage -> training seed -> the rows of its log; frame: the records.
    """
    told = []
    for stage, seeds in logs.items():
        for seed, rows in seeds.items():
            found = [f"{said}: what follows says nothing of this stage" for said in lessons(rows)]
            found += drifts(rows)
            told += [f"{STAGES[stage]}, seed {seed}: {said}." for said in found]
    for who, rows in entries(frame).items() if frame is not None else ():
        cut = int(rows["truncated"].sum())
        if cut >= ALL_CUT * len(rows):
            told.append(f"{who}: {cut} of {len(rows)} completions have no end: {ENDED}.")
    return told


def against_chance(cell: Mapping, chance: float) -> str:
    """Whether the whole 95 % interval lies above or below chance, or includes it."""
    if cell["low"] > chance:
        return "above chance"
    return "below chance" if cell["high"] < chance else "not to be told from chance"


def chance_sentences(found: Mapping, names: int | None) -> list[str]:
    """A sentence for each answerer that sees: where it is above chance, below, or at it.

    found: as `metrics.scores` returns it; names: how many there are to guess from in the open
    world. The last answerer comes first: it is the one that a user has.
    """
    told = []
    for who, cells in found.items():
        places: dict[str, list[str]] = {}
        for task, split in product(TASKS, SPLITS):
            cell = cells.get(split, {}).get(task, {})
            chance = cell.get("chance") if task == "closed" else names and 1 / names
            if cell and chance and who.picture and who.prompt != "none":
                place = f"in the {task} world (chance {percent(chance)} %) {{}} classes are "
                places.setdefault(place + against_chance(cell, chance), []).append(split)
        said = [place.format(" and ".join(splits)) for place, splits in places.items()]
        told += [f"{who}: {'; '.join(said)}."] if said else []
    return told[::-1]


def better_tool(frame: pd.DataFrame, who: Entry, tools: pd.DataFrame) -> str:
    """Which to take for naming, the student or the best of the classifiers; "" without one.

    Decided by the interval of their difference on the same pictures of seen classes (of unseen
    ones where there are no others). frame, tools: records of one world.
    """
    rows = entries(frame).get(who, frame[:0])
    of = {split: metrics.accuracy(part) for split, part in rows.groupby("split")}
    split = "seen" if "seen" in of else "unseen"
    of_tools = entries(tools[tools["model"].isin(TOOLS) & (tools["split"] == split)])
    beside = {tool: metrics.accuracy(theirs) for tool, theirs in of_tools.items()}
    tool = max(beside, key=lambda tool: beside[tool].get("accuracy", -1), default=None)
    theirs = of_tools.get(tool, tools[:0])
    difference = metrics.difference(rows[rows["split"] == split], theirs)
    if not difference:
        return ""
    told = (
        f"An ordinary classifier ({tool.label}: {TOOLS[tool.model]}) names {share(beside[tool])} "
        f"of the pictures of {split} classes rightly, this student ({who.label}) "
        f"{share(of[split])}; student minus classifier: {points(difference)} points, "
        f"{CHOICES[verdict(difference)]}"
    )
    if len(of) < len(SPLITS):
        return told
    chance = 1 / names_of(frame)
    where = f"{against_chance(of['unseen'], chance)}, {percent(chance)} %"
    return (
        f"{told} Classes without training pictures the classifier can never name: 0 by "
        f"construction; the student names {share(of['unseen'])} of them ({where})."
    )


def judged(frame: pd.DataFrame) -> pd.DataFrame:
    """The completions that were to hold a chain, a column each of what `CHAINS` counts."""
    rows = frame[(frame["prompt"] == "think") & frame["picture"] & frame["error"].isna()]
    answers = rows["named"].where(rows["named"].notna(), rows["answer"])
    said = zip(rows["completion"], answers, rows["label"], strict=True)
    chains = [agreement(text, answer, label=label) for text, answer, label in said]
    found = pd.DataFrame(chains, rows.index, [*agreement("", None)])
    for name in ("listed", "agrees"):  # as recorded, with the aliases known; old records had none
        found[name] = rows[name].where(rows[name].notna(), found[name].astype(float))
    said = zip(found["predicted"], rows["named"], rows["answer"], strict=True)
    folded = ([fold(one) if isinstance(one, str) else "" for one in row] for row in said)
    found["same"] = [bool(predicted) and predicted in given for predicted, *given in folded]
    found["good"] = found["agrees"].astype(bool) & (rows["correct"] == 1)
    return rows.drop(columns=found.columns, errors="ignore").join(found)


def agreement_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Shares of completions with 95 % Wilson intervals over the n pictures; rows: `judged`."""
    lines = []
    for task in TASKS:
        for who, part in entries(rows[rows["task"] == task]).items():
            for split, of in part.groupby("split"):
                line = {"answerer": who.label, "world": task, "classes": split}
                rates = {name: _rate(of, key) for name, key in CHAINS.items()}
                line |= {name: percent(rate["accuracy"], rate) for name, rate in rates.items()}
                lines.append(line | {"n": str(rates["right and agrees, %"]["n"])})
    return text_table(lines)


def _rate(rows: pd.DataFrame, key: str) -> dict:
    """A share of completions, each picture counting once, as a cell of accuracy."""
    means = rows[key].astype(float).groupby([rows[name] for name in PHOTO]).mean()
    right, n = float(np.clip(means.sum(), 0, len(means))), len(means)
    low, high = metrics.wilson(right, n)
    return {"accuracy": right / n, "low": low, "high": high, "n": n}


def agreement_sentence(who: Entry, rows: pd.DataFrame) -> str:
    """How often the chain leads to the answer, of all and of right ones.

    rows: `judged`, of one world.
    """
    of = entries(rows).get(who, rows[:0])
    if of.empty:
        return ""
    split = of["split"].min()  # seen, where there are any
    of = of[of["split"] == split]
    agree, right, lack = _rate(of, "agrees"), of[of["correct"] == 1], 1 - of["parts"].mean()
    told = (
        f"The chain of {who} leads to its answer in {share(agree)} of the completions "
        f"({of['task'].iat[0]} world, {split} classes; {percent(lack)} % lack a part of the chain)"
    )
    if len(right):
        told += f", and in {right['good'].sum()} of the {len(right)} right ones"
    if agree["low"] > 0.9:
        return f"{told}. The chain can be read beside the answer."
    return f"{told}. Elsewhere the chain does not explain the answer."
