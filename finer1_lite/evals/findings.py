"""What a run's numbers say: sentences, tables and sample answers, as blocks of a page.

Pure: a summary (`metrics.summarise`) or records in, `pages` blocks out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

from finer1_lite.evals.pages import Block, Code, Heading, Picture, Sample, Table, Text
from finer1_lite.metrics import DIFFERENCES, SPLITS, STAGES, TASKS, cells_of
from finer1_lite.plots import STAGE_NAMES

PER_KIND = 3  # sample pictures answered rightly, and as many wrongly
ACCURACY, LEARNING = "figures/accuracy.png", "figures/learning.png"
_FEW_SEEDS = 5
_PLACES = [(task, split) for task in TASKS for split in SPLITS]
_HEAD = (
    *("stage", "prompt", "seeds", "seen classes", "unseen classes", "harmonic mean"),
    *("names no class", "cut off", "tokens"),
)
_LEGEND = (
    "Share of right answers, mean over training seeds, with a 95 % interval over the n pictures; "
    "the last three columns are seen / unseen, tokens an answer at the end."
)


def pick_samples(records: Sequence[Mapping]) -> list[Mapping]:
    """Three right and three wrong open-world answers, by a rule that cannot choose.

    From the last stage that ran (TAPO, else SFT, else the base under the chain prompt) and
    its first seed, ordered by the SHA-256 of the photo's id: the first of each split, then
    whoever comes next. Fewer where there are not so many.
    """
    open_world = [r for r in records if r["task"] == "open" and r["prompt"] == "think"]
    for stage in ("TAPO", "SFT", "base"):
        answers = [r for r in open_world if r["model"] == stage]
        if answers:
            break
    else:
        return []
    first = min((r["seed"] for r in answers), key=lambda seed: -1 if seed is None else seed)
    answers = [r for r in answers if r["seed"] == first]
    answers.sort(key=lambda r: hashlib.sha256(r["photo"].encode()).hexdigest())
    chosen = []
    for right in (True, False):
        kind = [r for r in answers if bool(r["correct"]) == right]
        heads = [next((r for r in kind if r["split"] == split), None) for split in SPLITS]
        heads = [r for r in heads if r is not None]
        chosen += [*heads, *(r for r in kind if r not in heads)][:PER_KIND]
    return chosen


def summary(metrics: Mapping) -> str:
    """The run in a few plain sentences, computed from its numbers."""
    stages = [stage for stage in STAGES if stage in metrics]
    if not stages:
        return "No answers have been scored yet."
    said = []
    for task, split in _PLACES:
        here = {s: c for s, where, c in cells_of(metrics, stages, (task,)) if where == split}
        if here:
            scores = [f"{STAGE_NAMES[s]} {_percent(c['accuracy'])}" for s, c in here.items()]
            n = _range(cell["n"] for cell in here.values())
            said.append(f"{_place(task, split)} ({n} pictures): {', '.join(scores)}")
    scores = f"Share of right answers in the {'; in the '.join(said)}."
    return " ".join([_verdict_on_tapo(metrics), scores, _caveat(metrics)]).strip()


def verdict(difference: Mapping) -> str:
    """ "better", "worse", or "not settled" where the 95 % interval includes 0."""
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "not settled"


def _verdict_on_tapo(metrics: Mapping) -> str:
    cells = metrics.get("differences", {}).get("tapo-sft", {})
    found = [
        (place, cells[place[1]][place[0]])
        for place in _PLACES
        if place[0] in cells.get(place[1], {})
    ]
    if not found:
        return "TAPO has not been compared with SFT yet."
    said: dict[str, list[str]] = {"better": [], "worse": [], "not settled": []}
    for place, cell in found:
        said[verdict(cell)].append(f"{_place(*place)} {points(cell)} points")
    better, worse, open_ = ("; ".join(said[word]) for word in said)
    sentences = [f"TAPO beats SFT: {better}." if better else "TAPO does not beat SFT in this run."]
    if worse:
        sentences.append(f"It is worse than SFT: {worse}.")
    if open_:
        sentences.append(f"Not settled, as the interval includes 0: {open_}.")
    return " ".join(sentences)


def _caveat(metrics: Mapping) -> str:
    trained = [len(c["seeds"]) for _, _, c in cells_of(metrics, ("sft", "tapo"))]
    if not trained:
        return ""
    if min(trained) == 1:
        return "One training seed: the intervals speak of pictures, not of luck in training."
    few = min(trained) < _FEW_SEEDS
    return f"{_range(trained)} training seeds" + (
        ": so few make the intervals of differences somewhat too narrow." if few else "."
    )


def _place(task: str, split: str) -> str:
    return f"{task} world, {split} classes"


def _percent(share: float) -> str:
    return _unbroken(f"{100 * share:.1f} %")


def _score(cell: Mapping) -> str:
    interval = _unbroken(f"[{100 * cell['low']:.1f}, {100 * cell['high']:.1f}],")
    return f"{_percent(cell['accuracy'])} {interval} " + _unbroken(f"n = {cell['n']}")


def _unbroken(text: str) -> str:
    """`text` on one line: its spaces become no-break spaces."""
    return text.replace(" ", "\u00a0")


def points(cell: Mapping) -> str:
    """A difference with its interval, in points."""
    mean, low, high = (100 * cell[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _range(values: Iterable[int]) -> str:
    low, high = min(values := list(values)), max(values)
    return str(low) if low == high else f"{low} to {high}"


def results(metrics: Mapping, trained: bool) -> list[Block]:
    """Summary, figures and tables; `trained`: there are learning curves to show."""
    blocks: list[Block] = [Heading("Summary"), Text(summary(metrics))]
    if any(stage in metrics for stage in STAGES):
        blocks.append(Picture(ACCURACY, "Accuracy of each stage"))
    for task in TASKS:
        rows = [
            _row(stage, metrics[stage], task)
            for stage in STAGES
            if any(cells_of(metrics, [stage], [task]))
        ]
        if rows:
            blocks += [Heading(f"{task.capitalize()} world"), Text(_LEGEND), Table(_HEAD, rows)]
    if metrics.get("differences"):
        blocks += _difference_blocks(metrics["differences"])
    if trained:
        blocks += [Heading("Training"), Picture(LEARNING, "Learning curves")]
    return blocks


def _row(stage: str, numbers: Mapping, task: str) -> tuple[str, ...]:
    cells = [numbers.get(split, {}).get(task) for split in SPLITS]
    there = [cell for cell in cells if cell]
    scores = (_score(cell) if cell else "" for cell in cells)
    name, prompt = (
        "base" if stage.startswith("base") else STAGE_NAMES[stage],
        "answer" if stage == "base" else "think",
    )
    harmonic = numbers.get("harmonic", {}).get(task)
    shares = (
        _unbroken(" / ".join(f"{100 * c[key]:.1f}" for c in there) + " %")
        for key in ("invalid", "truncated")
    )
    tokens = " / ".join(f"{c['tokens']:.0f}" for c in there)
    seeds = "none" if stage.startswith("base") else _range(len(c["seeds"]) for c in there)
    total = "" if harmonic is None else _percent(harmonic)
    return (name, prompt, seeds, *scores, total, *shares, tokens)


def _difference_blocks(differences: Mapping) -> list[Block]:
    rows = []
    for more, less in DIFFERENCES:
        for task in TASKS:
            cells = differences.get(f"{more}-{less}", {})
            found = [cells.get(split, {}).get(task) for split in SPLITS]
            if any(found):
                names = f"{STAGE_NAMES[more]} minus {STAGE_NAMES[less]}"
                shown = [f"{points(c)}, {verdict(c)}" if c else "" for c in found]
                rows.append((names, task, *shown))
    text = (
        "Points with 95 % intervals from a paired bootstrap over pictures and training seeds; "
        "each interval stands for itself. One that includes 0 is called not settled."
    )
    head = ("difference", "world", "seen classes", "unseen classes")
    return [Heading("Differences"), Text(text), Table(head, rows)]


def samples(chosen: Sequence[Mapping]) -> list[Block]:
    """The chosen records (`pick_samples`), each beside its picture."""
    if not chosen:
        return []
    right = sum(bool(record["correct"]) for record in chosen)
    stage = _stage_name(chosen[0])
    text = (
        f"Open world, {stage}: {right} right and {len(chosen) - right} wrong answers, taken in the "
        "order of a hash of the photo's id (the first seen, the first unseen, then the next), "
        f"{PER_KIND} of each kind at most. The page colours the four parts of a chain."
    )
    shown: list[Block] = []
    for number, record in enumerate(chosen, 1):
        kind = "right" if record["correct"] else "wrong"
        answer = record.get("answer")
        facts = (
            ("verdict", kind),
            ("class", f"{record['label']} ({record['split']})"),
            ("answer", "none" if answer is None else answer),
            ("photo", record["photo"]),
            ("seed", str(record["seed"])),
        )
        picture = Picture(sample_path(number), f"Test picture {number}, answered {kind}")
        shown.append(Sample(picture, bool(record["correct"]), facts, record["completion"]))
    count = "Six test" if len(chosen) == 2 * PER_KIND else "Test"
    return [Heading(f"{count} pictures"), Text(text), *shown]


def _stage_name(record: Mapping) -> str:
    return STAGE_NAMES["base_think" if record["model"] == "base" else record["model"].lower()]


def sample_path(number: int) -> str:
    """Where the picture of the n-th sample lies (n from 1), below the run folder."""
    return f"figures/samples/{number}.png"


def what_ran(config: Mapping, facts: Mapping) -> list[Block]:
    """Settings, time and hardware, as they were written down."""
    shown = [json.dumps(part, indent=2, ensure_ascii=False) for part in (config, facts)]
    return [
        Heading("What was run"),
        Text("Settings:"),
        Code(shown[0]),
        Text("Time, and the machine that wrote this report:"),
        Code(shown[1]),
    ]
