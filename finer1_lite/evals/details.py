"""Records -> the tables behind a number: errors, classes, lengths, samples. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from finer1_lite.evals import stats
from finer1_lite.evals.pages import Block, Heading, Table, Text, visible
from finer1_lite.evals.tables import Group, Row, groups, last_student, percent
from finer1_lite.metrics import TASKS, wilson

MAX_CLASSES = 60  # with more, the classes with the lowest accuracy are listed
CONFUSIONS = 15  # pairs of classes listed


def detail_blocks(rows: Sequence[Row]) -> list[Block]:
    """Errors inside and outside groups, the hardest classes, length, samples."""
    return [
        *_error_blocks(rows),
        *_class_blocks(rows),
        *_length_blocks(rows),
        *_sample_blocks(rows),
    ]


def _error_blocks(rows: Sequence[Row]) -> list[Block]:
    lines = []
    for task in TASKS:
        for group in groups([r for r in rows if r["group"]], task):
            of = {r["label"]: r["group"] for r in group.rows}
            of |= {r["named"]: r["named_group"] for r in group.rows if r["named"]}
            labels = [r["label"] for r in group.rows]
            kinds = stats.errors_by_kind(labels, [r["named"] for r in group.rows], of)
            shares = [percent(count / len(labels)) for count in kinds.values()]
            lines.append((visible(group.label, 80), group.prompt, task, *shares))
    head = (
        "answerer",
        "prompt",
        "world",
        "right, %",
        "wrong class of the right group, %",
        "other group, %",
        "no class, %",
    )
    return [Heading("Where answers go"), Table(head, lines)] if lines else []


def _class_blocks(rows: Sequence[Row]) -> list[Block]:
    """Accuracy of every class, and who is called whom, of the last student that sees."""
    group = last_student(rows, "open") or last_student(rows, "closed")
    if group is None:
        return []
    labels, right = ([r[key] for r in group.rows] for key in ("label", "correct"))
    scores = stats.per_class(labels, right)
    listed = sorted(scores, key=lambda c: (scores[c][0] / scores[c][1], c))[:MAX_CLASSES]
    split = {r["label"]: r["split"] for r in group.rows}
    lines = []
    for name in listed:
        ok, n = scores[name]
        named = [r["named"] for r in group.rows if r["label"] == name and not r["correct"]]
        called, share = stats.majority(named)
        said = f"{visible(str(called), 60)} ({percent(share)} % of its errors)" if called else ""
        low, high = (percent(x) for x in wilson(ok, n))
        lines.append(
            (
                visible(name, 60),
                split[name],
                f"{ok} of {n}",
                f"{percent(ok / n)} [{low}, {high}]",
                said,
            )
        )
    who = f"{visible(group.label, 80)}, prompt {group.prompt}"
    mean = percent(stats.macro_accuracy(labels, right))
    text = f"{who}; lowest first; mean over classes {mean} %."
    if len(listed) < len(scores):
        text += f" The first {len(listed)} of {len(scores)}."
    head = ("class", "split", "right", "% [95 %]", "most often called")
    return [Heading("Classes"), Text(text), Table(head, lines), *_confused(group, who)]


def _confused(group: Group, who: str) -> list[Block]:
    """The most frequent confusions, those inside a group apart."""
    wrong = [r for r in group.rows if r["named"] and not r["correct"] and r["group"]]
    if not wrong:
        return []
    pairs = Counter((r["label"], r["named"], r["group"] == r["named_group"]) for r in wrong)
    inside = sum(r["group"] == r["named_group"] for r in wrong)
    asked = Counter(r["label"] for r in group.rows)
    top = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))[:CONFUSIONS]
    lines = [
        (
            visible(label, 60),
            visible(named, 60),
            "inside" if same else "outside",
            f"{n} of {asked[label]}",
        )
        for (label, named, same), n in top
    ]
    text = f"{who}: {inside} of {len(wrong)} wrong names are of the right group (genus, kind)."
    head = ("class", "called", "its group", "times")
    return [Heading("Confusions"), Text(text), Table(head, lines)]


def _length_blocks(rows: Sequence[Row]) -> list[Block]:
    lines = []
    for task in TASKS:
        for group in groups(rows, task):
            bins = stats.by_length(
                [r["tokens"] for r in group.rows], [r["correct"] for r in group.rows]
            )
            if len(bins) > 1:
                said = "; ".join(
                    f"{lo:.0f}-{hi:.0f}: {percent(ok / n)} % of {n}" for lo, hi, ok, n in bins
                )
                lines.append((visible(group.label, 80), group.prompt, task, said))
    head = ("answerer", "prompt", "world", "tokens of the answer: right")
    return [Heading("Accuracy against length"), Table(head, lines)] if lines else []


def _sample_blocks(rows: Sequence[Row]) -> list[Block]:
    """pass@k, majority vote and its calibration, where questions were answered repeatedly."""
    lines = [
        (visible(group.label, 80), group.prompt, task, *line)
        for task in TASKS
        for group in groups(rows, task)
        if (line := _samples(group.rows))
    ]
    head = (
        "answerer",
        "prompt",
        "world",
        "samples",
        "pass@k, %",
        "majority vote, %",
        "calibration error",
    )
    text = (
        "pass@k: one of k samples is right, without bias. The vote's share of all samples is its "
        "confidence; the error is how far confidence and accuracy lie apart, in shares."
    )
    return [Heading("Several samples"), Text(text), Table(head, lines)] if lines else []


def _samples(rows: Sequence[Row]) -> tuple[str, ...] | None:
    """The cells of one answerer; None where nothing was asked twice."""
    asked: dict[tuple, list[Row]] = {}
    for r in rows:
        asked.setdefault((r["dataset"], r["photo"], r["rotation"]), []).append(r)
    n = min(map(len, asked.values()))
    if n < 2:
        return None
    counts = [(len(a), sum(r["correct"] for r in a)) for a in asked.values()]
    ks = sorted({1, *(2**i for i in range(1, n.bit_length()) if 2**i < n), n})
    passed = [np.mean([stats.pass_at_k(m, right, k) for m, right in counts]) for k in ks]
    votes = [stats.majority([r["named"] for r in a]) for a in asked.values()]
    hits = [name == a[0]["label"] for (name, _), a in zip(votes, asked.values())]
    error = stats.calibration_error([share for _, share in votes], hits)
    said = "; ".join(f"k = {k}: {percent(p)}" for k, p in zip(ks, passed))
    return str(n), said, percent(np.mean(hits)), f"{error:.3f}"
