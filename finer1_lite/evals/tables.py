"""Records -> tables, as blocks of a page. Pure: nothing but records goes in.

A closed-world question may be asked in every rotation of its options; a picture then
counts with the mean of its rotations, so that n is a number of pictures throughout.
Answers about pictures that could not be read are counted apart and never scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finer1_lite.evals import controls
from finer1_lite.evals.pages import Block, Heading, Table, Text, visible
from finer1_lite.metrics import SPLITS, TASKS, harmonic_mean, wilson

# Whoever is compared with: the first model, under each of these. A gain over one of them alone
# may be a gain of the prompt, or of naming more exactly.
BASE_PROMPTS = ("answer", "think", "exact")
Row = Mapping
LEGEND = {
    "closed": "Our rule: the answer is the name of exactly one class (or its letter, where letters "
    "were shown), averaged over the rotations of the options; 95 % Wilson interval over the "
    "n pictures. Released rule: the label occurs in the answer. Controls answer the same "
    "questions without a picture: a model at their level shows nothing.",
    "open": "Exact: the name and nothing else. Included: the label occurs in the answer, as "
    "released. Similarity: relative to the coarse word, by the text encoder named in the head. "
    "No options are shown; a guess out of all the names is the last control.",
}


@dataclass(frozen=True)
class Group:
    """All answers of one answerer under one prompt: one line of a table."""

    model: str
    prompt: str
    picture: bool
    rows: tuple[Row, ...]

    @property
    def label(self) -> str:
        return self.model if self.picture else f"{self.model}, no picture"


def groups(rows: Sequence[Row], task: str) -> list[Group]:
    """The answerers of a task in the order of their first record; a model's prompts stand
    together, the control without a picture behind each, baselines at the end."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["task"] == task and not row["error"]:
            found.setdefault((row["model"], row["prompt"], row["picture"]), []).append(row)
    models = list(dict.fromkeys(model for model, _, _ in found))
    order = sorted(found, key=lambda k: (k[1] == "none", models.index(k[0]), k[1], not k[2]))
    return [Group(*key, tuple(found[key])) for key in order]


def last_student(rows: Sequence[Row], task: str) -> Group | None:
    """The last answerer of a task that is a student and sees; a baseline where there is none."""
    found = [g for g in groups(rows, task) if g.picture]
    return next((g for g in found[::-1] if g.prompt != "none"), found[-1] if found else None)


def per_photo(rows: Iterable[Row], value: Callable[[Row], float]) -> dict[tuple, float]:
    """(data set, photo) -> mean of `value` over its rotations and samples."""
    found: dict[tuple, list[float]] = {}
    for row in rows:
        found.setdefault((row["dataset"], row["photo"]), []).append(float(value(row)))
    return {key: sum(v) / len(v) for key, v in found.items()}


def right(row: Row) -> bool:
    return row["correct"]


def cell(rows: Sequence[Row], value: Callable[[Row], float] = right) -> dict | None:
    """{"accuracy", "low", "high", "n"} over pictures; None without rows."""
    shares = list(per_photo(rows, value).values())
    if not shares:
        return None
    mean, n = sum(shares) / len(shares), len(shares)
    low, high = wilson(min(mean * n, n), n)
    return {"accuracy": mean, "low": low, "high": high, "n": n}


def of_split(rows: Iterable[Row], split: str) -> list[Row]:
    return [row for row in rows if row["split"] == split]


# --- numbers as text ------------------------------------------------------------------------


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def shown(found: Mapping | None) -> str:
    if not found:
        return ""
    low, high = percent(found["low"]), percent(found["high"])
    return f"{percent(found['accuracy'])} [{low}, {high}], n = {found['n']}"


def both(rows: Sequence[Row], value: Callable[[Row], float]) -> str:
    """seen / unseen shares, in per cent."""
    cells = [cell(of_split(rows, split), value) for split in SPLITS]
    return " / ".join(percent(c["accuracy"]) for c in cells if c)


def harmonic(rows: Sequence[Row]) -> str:
    cells = [cell(of_split(rows, split)) for split in SPLITS]
    return percent(harmonic_mean(*(c["accuracy"] for c in cells))) if all(cells) else ""


# --- the main tables ------------------------------------------------------------------------


def main_blocks(rows: Sequence[Row]) -> list[Block]:
    """For each task: every answerer with its prompt, then the controls."""
    blocks: list[Block] = []
    for task in TASKS:
        found = groups(rows, task)
        if found:
            head, line = (_CLOSED, _closed) if task == "closed" else (_open_head(rows), _open)
            lines = [line(group) for group in found] + _control_lines(found, task, len(head))
            blocks += [
                Heading(f"{task.capitalize()} world"),
                Text(LEGEND[task]),
                Table(head, lines),
            ]
    return blocks + _fault_blocks(rows)


def _fault_blocks(rows: Sequence[Row]) -> list[Block]:
    """Who was not scored on what: pictures that cannot be read, endpoints that did not answer."""
    asked, problems = Counter(), {}
    for row in rows:
        key = (row["model"], row["prompt"], row["task"], row["picture"])
        asked[key] += 1
        if row["error"]:
            problems.setdefault(key, []).append(row["error"])
    lines = [
        (
            visible(model if picture else f"{model}, no picture", 80),
            prompt,
            task,
            f"{len(found)} of {asked[model, prompt, task, picture]}",
            visible(found[0], 120),
        )
        for (model, prompt, task, picture), found in problems.items()
    ]
    text = "Answers that are not there. They are counted here and scored nowhere."
    head = ("answerer", "prompt", "world", "not scored", "the first reason")
    return [Heading("Not scored"), Text(text), Table(head, lines)] if lines else []


_CLOSED = (
    *("answerer", "prompt", "seen, %", "unseen, %", "harmonic mean, %", "released rule, %"),
    *("names no class, %", "not offered, %", "cut, %", "tokens"),
)


def _closed(group: Group) -> tuple[str, ...]:
    rows = group.rows
    return (
        visible(group.label, 80),
        group.prompt,
        *(shown(cell(of_split(rows, split))) for split in SPLITS),
        harmonic(rows),
        both(rows, lambda r: r["included"]),
        both(rows, lambda r: r["named"] is None),
        both(rows, lambda r: r["named"] is not None and r["named"] not in (r["options"] or ())),
        both(rows, lambda r: r["truncated"]),
        f"{np.mean([r['tokens'] for r in rows]):.0f}",
    )


def _open_head(rows: Sequence[Row]) -> tuple[str, ...]:
    encoders = sorted({r["encoder"] for r in rows if r.get("encoder")}) or ["no encoder"]
    return (
        "answerer",
        "prompt",
        "exact, seen, %",
        "exact, unseen, %",
        "harmonic mean, %",
        "included, %",
        f"similarity ({', '.join(encoders)}), %",
        "names no class, %",
        "cut, %",
        "tokens",
    )


def _open(group: Group) -> tuple[str, ...]:
    rows = group.rows
    measured = [r for r in rows if r.get("similarity") is not None]
    return (
        visible(group.label, 80),
        group.prompt,
        *(shown(cell(of_split(rows, split))) for split in SPLITS),
        harmonic(rows),
        both(rows, lambda r: r["included"]),
        both(measured, lambda r: r["similarity"]),
        both(rows, lambda r: r["named"] is None),
        both(rows, lambda r: r["truncated"]),
        f"{np.mean([r['tokens'] for r in rows]):.0f}",
    )


def control_blocks(records: Sequence[Mapping]) -> list[Block]:
    """The controls of the closed world alone, for a report with tables of its own."""
    rows = [r for r in records if r["task"] == "closed" and r.get("options")]
    found = groups(rows, "closed")
    if not found:
        return []
    head = ("control", "prompt", "seen, %", "unseen, %", "harmonic mean, %")
    text = "Answerers that see no picture, on the same closed-world questions."
    lines = [line for line in _control_lines(found, "closed", len(head)) if line[1] == "none"]
    return [Heading("Controls"), Text(text), Table(head, lines)]


def _control_lines(found: Sequence[Group], task: str, width: int) -> list[tuple[str, ...]]:
    """The controls, from the questions of the first answerer that was asked most of them."""
    asked = max((g.rows for g in found), key=len)
    if task == "open":
        names = len({r["label"] for r in asked})
        scores = {f"a guess out of {names} names": [1 / names] * len(asked)}
    else:
        questions = [(r["dataset"] + r["split"], r["options"], r["label"]) for r in asked]
        scores = {name: control(questions) for name, control in controls.CONTROLS.items()}
    lines = []
    for name, values in scores.items():
        scored = [{**r, "correct": v} for r, v in zip(asked, values)]
        cells = [shown(cell(of_split(scored, split))) for split in SPLITS]
        line = (f"control: {name}", "none", *cells, harmonic(scored))
        lines.append((*line, *[""] * (width - len(line))))
    missing = [] if any(not g.picture for g in found) else ["the model without the picture"]
    base = next((g.model for g in found if g.prompt != "none"), None)
    done = {g.prompt for g in found if g.model == base}
    missing += [f"{visible(base, 60)}, prompt {p}" for p in BASE_PROMPTS if base and p not in done]
    empty = [""] * (width - 2)
    return [*lines, *((f"control: {name}", "not run", *empty) for name in missing)]


def dataset_blocks(rows: Sequence[Row]) -> list[Block]:
    """Each data set by itself, the mean over data sets, and the mean without each."""
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    if len(datasets) < 2:
        return []
    blocks: list[Block] = []
    for task in TASKS:
        found = groups(rows, task)
        if found:
            blocks += [
                Heading(f"Data sets, {task} world"),
                Text(DATASETS),
                Table(_DATASET, [line for group in found for line in _each(group, datasets)]),
                Table(
                    (*_MEANS, *(f"without {d}" for d in datasets)),
                    [_means(group, datasets) for group in found],
                ),
            ]
    return blocks


DATASETS = (
    "Every data set by itself; then the mean over data sets of the mean of seen and unseen "
    "accuracy, %, every data set counting alike, and the same without each."
)
_MEANS = ("answerer", "prompt", "mean of data sets")
_DATASET = (
    "answerer",
    "prompt",
    "data set",
    "seen, %",
    "unseen, %",
    "harmonic mean, %",
    "released rule, %",
)


def _each(group: Group, datasets: Sequence[str]) -> list[tuple[str, ...]]:
    parts = {d: [r for r in group.rows if r["dataset"] == d] for d in datasets}
    return [
        (
            visible(group.label, 80),
            group.prompt,
            dataset,
            *(shown(cell(of_split(rows, split))) for split in SPLITS),
            harmonic(rows),
            both(rows, lambda r: r["included"]),
        )
        for dataset, rows in parts.items()
        if rows
    ]


def _means(group: Group, datasets: Sequence[str]) -> tuple[str, ...]:
    per = {d: _mean([r for r in group.rows if r["dataset"] == d]) for d in datasets}
    per = {d: v for d, v in per.items() if v is not None}
    without = [percent(_average([v for e, v in per.items() if e != d])) for d in datasets]
    return (visible(group.label, 80), group.prompt, percent(_average(per.values())), *without)


def _mean(rows: Sequence[Row]) -> float | None:
    return _average([c["accuracy"] for s in SPLITS if (c := cell(of_split(rows, s)))])


def _average(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
