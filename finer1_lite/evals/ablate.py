"""What each part of TAPO contributes: `python -m finer1_lite ablate`.

Every row is the same trainer with other settings, from the same SFT adapter, with the same
number of steps and rollouts, on the same training seeds and worlds. Learning rates are
searched once a family, on a training seed and pictures that are not reported.
"""

import json
import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from finer1_lite import cot, metrics, models, paperbirds
from finer1_lite.data.benchmark import Benchmark, Condition
from finer1_lite.data.chain_text import section
from finer1_lite.evals import figures
from finer1_lite.evals.report import Page
from finer1_lite.evals.tables import percent, points
from finer1_lite.evals.worlds import some_apart
from finer1_lite.evaluate import StudentAnswerer, evaluate
from finer1_lite.generation import Student
from finer1_lite.metrics import SPLITS
from finer1_lite.presets import Preset
from finer1_lite.runtime.checkpoints import NotFinite
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.files import open_folder, write_atomically
from finer1_lite.runtime.workers import choose_workers, worker_pool
from finer1_lite.sft import chain_rows, train_sft
from finer1_lite.species import Collection
from finer1_lite.students.card import ADAPTER
from finer1_lite.students.pretrain import prepare_base
from finer1_lite.students.probe import marks_right, remarks_true
from finer1_lite.tapo import train_tapo
from finer1_lite.triplets import require_enough

log = logging.getLogger("finer1_lite")


@dataclass(frozen=True)
class Row:
    """One line of the table: a recipe and what is changed in it."""

    label: str
    recipe: str = "tapo"  # called as the row whose searched learning rate it takes
    changes: dict = field(default_factory=dict)
    from_base: bool = False  # no SFT before it

    def preset(self, preset: Preset, rate: float) -> Preset:
        """The settings of this row."""
        changes = {f"tapo__{key}": value for key, value in self.changes.items()}
        return preset.recipe(self.recipe).with_(tapo__learning_rate=rate, **changes)


N = Preset.lab().tapo.anchor_rollouts + Preset.lab().tapo.positive_rollouts
ROWS = {
    "cls_rl": Row("CLS-RL (answer only, no SFT)", "cls_rl", from_base=True),
    "dapo": Row("DAPO", "dapo"),
    "tapo": Row("TAPO"),
    "dapo_agreement": Row("DAPO, agreement rewarded", "dapo_agreement"),
    "tapo_agreement": Row("TAPO, agreement rewarded", "tapo_agreement"),
    "tapo_half": Row("TAPO, half of it", "tapo_agreement", {"reward_agreement": 0.5}),
    "tapo_quarter": Row("TAPO, a quarter of it", "tapo_agreement", {"reward_agreement": 0.25}),
    "no_intra": Row(
        "TAPO without positives", changes={"anchor_rollouts": N, "positive_rollouts": 0}
    ),
    "no_inter": Row("TAPO without inter-class term", changes={"inter_class_weight": 0.0}),
    "no_entropy": Row(
        "TAPO without entropies",
        changes={"anchor_entropy_weight": 0.0, "negative_entropy_weight": 0.0},
    ),
    "own_scored": Row("positives scored on themselves", changes={"scored_on": "own"}),
    "negative_grad": Row("gradient through the negative", changes={"negative_grad": True}),
    "two_negatives": Row(
        f"two of {N} rollouts scored on the negative", changes={"negative_rollouts": 2}
    ),
    "random_negative": Row("random negatives", changes={"negative": "random"}),
    "clipped_ratio": Row(
        "positives with a clipped importance weight", changes={"positive_ratio": "clipped"}
    ),
    "picture_baseline": Row("advantages within each picture", changes={"baseline": "picture"}),
    "negative_on_right": Row(
        "right rollouts alone pushed from the negative", changes={"inter_class_on": "right"}
    ),
}
RATES = (5e-4, 1e-3, 2e-3)
SEARCH_SEED = 100
SEARCH_WORLD = 0
SEARCH_PICTURES = 144
COLUMNS = ("correct", "agrees", "listed", "true", "marks")  # what is kept of an answer
RESULTS = "results"  # folder of a study: a small file a training
CHAIN_SHARES = {  # seen / unseen, in %
    "marks": "marks right",
    "all_marks": "all marks right",
    "listed": "label listed",
    "true": "every remark true",
    "agrees": "chain and answer agree",
    "reason": "right for its reason",
}
STARTS = {"sft": "SFT", "sft_long": "SFT, as many steps more"}


@dataclass(frozen=True)
class Study:
    """Which rows, seeds and worlds; where. Rows and training seeds may be added later."""

    folder: Path
    preset: Preset
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    worlds: tuple[int, ...]
    more_leaves: int = 0  # see `paperbirds.collection`
    apart: int | None = None  # see `worlds.some_apart`; None: all species

    @property
    def dials(self) -> dict[str, int]:
        """Those that are turned."""
        held = {"more_leaves": self.more_leaves, "apart": self.apart}
        return {name: value for name, value in held.items() if value}

    def tasks(self, row: str, rate: float, seeds: Sequence[int]) -> list["Task"]:
        """A row's trainings in every world, world by world."""
        return [Task(self, w, s, row, rate) for w, s in product(self.worlds, seeds)]

    def finished(self, row: str, rate: float) -> list["Task"]:
        """A row's trainings of the seeds that are done in every world, whenever that was."""
        there = {p.name.split("-")[1] for p in (self.folder / RESULTS).glob("world*-seed*")}
        seeds = sorted({int(name.removeprefix("seed")) for name in there} - {SEARCH_SEED})
        done = [s for s in seeds if all(task.done for task in self.tasks(row, rate, [s]))]
        return self.tasks(row, rate, done)


@dataclass(frozen=True)
class Task:
    """One training and its evaluation: open world, under the prompt of its training."""

    study: Study
    world: int
    seed: int
    row: str  # a key of ROWS or STARTS
    rate: float = 0.0
    split: str = "test"

    @property
    def folder(self) -> Path:
        """Where adapter and records lie: called as the row, with a searched learning rate."""
        name = f"{self.row}-{self.rate:g}" if self.rate else self.row
        return self.study.folder / f"world{self.world}" / f"seed{self.seed}" / name

    @property
    def result(self) -> Path:
        """What was measured; with config.json and search.json enough to go on from elsewhere."""
        name = f"world{self.world}-seed{self.seed}-{self.folder.name}.json"
        return self.study.folder / RESULTS / name

    @property
    def start(self) -> "Task | None":
        """The stage 1 that it goes on from."""
        alone = self.row in STARTS or ROWS[self.row].from_base
        return None if alone else replace(self, row="sft", rate=0.0)

    @property
    def done(self) -> bool:
        """Whether it is trained and evaluated."""
        return self.result.exists()

    @property
    def condition(self) -> Condition:
        """How it is evaluated."""
        row = ROWS.get(self.row)
        return Condition(row.preset(self.study.preset, 1.0).tapo.prompt if row else "think", "open")

    @property
    def records(self) -> Path:
        """The file of its records."""
        return self.folder / f"{self.condition.name}.jsonl"


def run_study(study: Study, workers: int = 0) -> Path:
    """Train and evaluate everything that is not there yet; returns the report's path."""
    config = {"job": "an ablation", "worlds": list(study.worlds), "preset": study.preset.to_dict()}
    config |= study.dials
    open_folder(study.folder, config, fresh=False)
    for world in sorted({*study.worlds, SEARCH_WORLD}):
        prepare_base(study.preset, study.folder, world)  # pretrains where a world has no student
    rates = search(study, workers)
    starts = [study.tasks(start, 0.0, study.seeds) for start in STARTS]
    do_all(sum(starts, []), workers)
    rows = [study.tasks(row, rates[ROWS[row].recipe], study.seeds) for row in study.rows]
    do_all(sum(rows, []), workers)
    return write(study, rates)


def search(study: Study, workers: int) -> dict[str, float]:
    """The best learning rate of each family, on a seed and pictures that are not reported.

    Best by the harmonic mean of seen and unseen accuracy. search.json keeps them; new ones join.
    """
    path = study.folder / "search.json"
    held = json.loads(path.read_bytes()) if path.exists() else {"rates": {}, "tried": {}}
    families = sorted({ROWS[row].recipe for row in study.rows} - held["rates"].keys())
    if not families:
        return held["rates"]
    place = (study, SEARCH_WORLD, SEARCH_SEED)
    do_all([Task(*place, "sft", split="val")], workers)
    tasks = [Task(*place, family, rate, "val") for family, rate in product(families, RATES)]
    do_all(tasks, workers)
    tried: dict[str, dict[str, float]] = {family: {} for family in families}
    for task in tasks:
        score = 0.0  # of a rate at which the training broke
        if task.done:
            right = records_of([task]).groupby("split")["correct"].mean()
            score = metrics.harmonic_mean(*(right[split] for split in SPLITS))
        tried[task.row][f"{task.rate:g}"] = score
    rates = {family: float(max(scores, key=scores.get)) for family, scores in tried.items()}
    held = {"rates": held["rates"] | rates, "tried": held["tried"] | tried}
    write_atomically(path, json.dumps(held, indent=1).encode())
    return held["rates"]


def do(task: Task) -> None:
    """Train and evaluate one task, or what a killed run left of it."""
    start = time.time()
    preset = task.study.preset
    world = paperbirds.make_world(task.world)
    pictures = preset.test_pictures if task.split == "test" else SEARCH_PICTURES
    apart, leaves = task.study.apart, task.study.more_leaves
    some = some_apart(world, apart) if apart else world
    how = {"shots": preset.shots, "split": task.split, "more_leaves": leaves}
    birds = paperbirds.collection(some, test=pictures, **how)
    checkpoints = task.folder / "checkpoints"
    resumed = checkpoints.exists()
    try:
        student = train(task, some, birds)
    except NotFinite as error:
        if task.split != "val":
            raise
        log.warning("the search leaves out %s at %g: %s", task.row, task.rate, error)
        return
    if task.done:  # only its adapter was missing, for what goes on from it
        return
    trained = time.time()
    answerer = StudentAnswerer(student, task.row, preset.max_new_tokens, task.seed)
    benchmark = Benchmark.of_collection(birds, as_drawn=True)
    for _ in evaluate(answerer, benchmark, task.condition, task.folder, preset.eval_batch):
        pass
    took = {"train_minutes": (trained - start) / 60, "minutes": (time.time() - start) / 60}
    facts = took | {"resumed": resumed, "steps": steps_of(task)} | answers_of(task, world)
    write_atomically(task.result, (json.dumps(facts, indent=1) + "\n").encode())
    shutil.rmtree(checkpoints, ignore_errors=True)  # not before: evaluation may be killed


def train(task: Task, world: paperbirds.World, birds: Collection) -> Student:
    """The student of a task: SFT from the base, or reinforcement from SFT or the base."""
    preset = task.study.preset
    require_enough(birds)
    student = models.load_student(prepare_base(preset, task.study.folder, task.world), preset)
    if task.start:
        student = models.load_adapter(student, task.start.folder, trainable=True)
    else:
        student = models.add_adapter(student, preset, task.seed)
    if task.row in ROWS:
        preset = ROWS[task.row].preset(preset, task.rate)
        train_tapo(student, birds, preset, task.seed, task.folder)
    else:
        if task.row == "sft_long":
            preset = preset.with_(sft__steps=preset.sft.steps + preset.tapo.steps)
        chains = cot.make_chains(birds, cot.oracle(world), seed=0)
        train_sft(student, chain_rows(birds, chains, preset.sft), preset, task.seed, task.folder)
    student.model.eval()
    return student


def do_all(tasks: list[Task], workers: int) -> None:
    """Tasks side by side, one core each where there is no GPU, with one progress bar.

    Where only the result of a stage 1 travelled, its adapter is made again first, once.
    """
    left = [task for task in tasks if not task.done]
    starts = dict.fromkeys(task.start for task in left if task.start)
    _run([start for start in starts if not (start.folder / ADAPTER).exists()], workers)
    _run(left, workers)


def _run(left: list[Task], workers: int) -> None:
    if not left:
        return
    on_gpu = models.choose_device().type != "cpu"
    workers = min(choose_workers(len(left), workers, "training", on_gpu), len(left))
    rows = ", ".join(dict.fromkeys(task.folder.name for task in left))
    with progress_bar(len(left), rows[:60]) as bar, worker_pool(workers, bars=False) as pool:
        for _ in pool.map(do, left):
            bar.update()


def steps_of(task: Task) -> dict[str, list[float]]:
    """Of rollouts, by step: the share right, right for its reason, and groups kept."""
    log = pd.DataFrame(list(metrics.read_records(task.folder / "log.jsonl")))
    return {key: log[key].tolist() for key in figures.STEPS if key in log}


def answers_of(task: Task, world: paperbirds.World) -> dict[str, dict[str, str]]:
    """Split -> column -> a digit a picture, in the order of the records.

    correct; agrees: chain and answer (`chain_text.agreement`), listed: the label among its
    candidates, true: every remark is true of its candidate (`probe.remarks_true`), all absent
    without a chain; marks: how many of the bird's marks the analysis names rightly.
    """
    found: dict[str, dict[str, str]] = {}
    for record in metrics.read_records(task.records):
        if record.get("agrees") is not None:
            said = section(record["completion"], "analysis").partition("\n")[0]
            record["marks"] = marks_right(said, world.marks[record["label"]])
            record["true"] = remarks_true(record["completion"], world)
        columns = found.setdefault(record["split"], {})
        for name in COLUMNS:
            if record.get(name) is not None:
                columns[name] = columns.get(name, "") + str(int(record[name]))
    return found


def records_of(tasks: Iterable[Task]) -> pd.DataFrame:
    """A row a picture, in order: world, seed, split and what `answers_of` kept of it.

    reason: correct and agrees; marks: a share, all_marks: it is 1. NaN without a chain.
    """
    parts = []
    for task, split in product(tasks, SPLITS):
        kept = json.loads(task.result.read_bytes())[split]
        columns = pd.DataFrame({name: list(digits) for name, digits in kept.items()}, dtype=float)
        where = {"world": task.world, "seed": task.seed, "split": split}
        parts.append(columns.reindex(columns=COLUMNS).assign(**where))
    found = pd.concat(parts, ignore_index=True)
    found["marks"] /= len(paperbirds.MARKS)
    whole = (found["marks"] == 1).astype(float).where(found["marks"].notna())
    return found.assign(reason=found["correct"] * found["agrees"], all_marks=whole)


def measure(study: Study, rates: dict[str, float]) -> dict:
    """Row -> accuracy, `CHAIN_SHARES`, differences to SFT, DAPO and TAPO, minutes."""
    records: dict[str, pd.DataFrame] = {}
    found = {}
    for name in (*STARTS, *ROWS):
        tasks = study.finished(name, rates.get(ROWS[name].recipe, 1.0) if name in ROWS else 0.0)
        if not tasks:
            log.info("%s: no seed is finished in all worlds; not in the table", name)
            continue
        records[name] = records_of(tasks)
        found[name] = _facts(tasks, records[name])
        if "reason" in found[name]:
            cells = {split: _with_interval(records[name], split, "reason") for split in SPLITS}
            found[name]["reason_interval"] = cells
    for name, other in product(found, ("sft", "dapo", "tapo")):
        if other in found and name != other and (over := _over(records[name], records[other])):
            found[name][f"over_{other}"] = over
    for name, row in found.items():
        if "over_dapo" in row and "all_marks" in row and "all_marks" in found["dapo"]:
            row["all_marks_over_dapo"] = _over(records[name], records["dapo"], "all_marks")
    return found


def _facts(tasks: Sequence[Task], records: pd.DataFrame) -> dict:
    """What the table says of one row, apart from differences."""
    row = tasks[0].row
    took = [json.loads(task.result.read_bytes()) for task in tasks]
    whole = [one for one in took if not one.get("resumed")]  # a resumed one knows its last start
    worlds = records.groupby(["split", "world"])[["correct", *CHAIN_SHARES]].mean()
    means = {
        key: {split: float(worlds.loc[split, key].mean()) for split in SPLITS}
        for key in worlds
        if worlds[key].notna().all()
    }
    steps = pd.DataFrame([one.get("steps", {}) for one in took]).dropna(axis=1)
    return {
        "label": ROWS[row].label if row in ROWS else STARTS[row],
        "seeds": len({task.seed for task in tasks}),
        "minutes": float(np.mean([one["train_minutes"] for one in whole or took])),
        "steps": {key: np.mean([*all_], 0).round(4).tolist() for key, all_ in steps.items()},
        "accuracy": means.pop("correct"),
        "by_world": {split: worlds.loc[split, "correct"].tolist() for split in SPLITS},
        **means,
    }


def _over(ours: pd.DataFrame, theirs: pd.DataFrame, column: str = "correct") -> dict:
    """Split -> difference of two rows on the training seeds that both have; {} without any."""
    seeds = set(ours["seed"]) & set(theirs["seed"])
    both = [records[records["seed"].isin(seeds)] for records in (ours, theirs)]
    found = {}
    for split in SPLITS if seeds else ():
        a, b = (_grids(records, split, column) for records in both)
        found[split] = metrics.bootstrap_over_worlds(a, b) | {"seeds": len(seeds)}
    return found


def _grids(records: pd.DataFrame, split: str, column: str) -> list[np.ndarray]:
    """A column of a split, a world each, (seeds, pictures)."""
    rows, seeds = records[records["split"] == split], records["seed"].nunique()
    worlds = [world[column].to_numpy() for _, world in rows.groupby("world", sort=False)]
    return [values.reshape(seeds, -1) for values in worlds]


def _with_interval(records: pd.DataFrame, split: str, column: str) -> dict:
    """Mean, low and high of a column: the bootstrap of its difference to nothing."""
    grids = _grids(records, split, column)
    return metrics.bootstrap_over_worlds(grids, [np.zeros_like(grid) for grid in grids])


def table(found: dict) -> pd.DataFrame:
    """The ablation as a table: accuracy in %, differences in points with 95 % intervals."""
    rows = []
    for cell in found.values():
        line = {"row": cell["label"], "seeds": str(cell["seeds"])}
        line |= {split: percent(cell["accuracy"][split]) for split in SPLITS}
        for other, split in (("sft", "unseen"), ("dapo", "unseen"), ("sft", "seen")):
            over = cell.get(f"over_{other}")
            line[f"{split} over {other.upper()}"] = points(over[split]) if over else ""
        over = cell.get("all_marks_over_dapo")
        line["all marks right, unseen over DAPO"] = points(over["unseen"]) if over else ""
        for key, words in CHAIN_SHARES.items():
            line[words] = " / ".join(f"{100 * cell[key][s]:.0f}" for s in SPLITS if key in cell)
        if ends := cell.get("reason_interval"):
            shares = (percent(cell["reason"][s], ends[s]) for s in SPLITS)
            line[CHAIN_SHARES["reason"]] = " / ".join(shares)
        rows.append(line | {"minutes": f"{cell['minutes']:.1f}"})
    return pd.DataFrame(rows)


def write(study: Study, rates: dict[str, float]) -> Path:
    """ablation.json and the page of what is there; the path of the page."""
    found = measure(study, rates)
    facts = {"worlds": list(study.worlds)} | study.dials | {"rates": rates, "rows": found}
    write_atomically(study.folder / "ablation.json", json.dumps(facts, indent=1).encode())
    p = study.preset
    searched = ", ".join(f"{family} {rate:g}" for family, rate in rates.items())
    note = (
        f"Open world, exact name. The training seeds of each row x {len(study.worlds)} worlds, "
        f"{p.test_pictures} fresh pictures a split and world. Every RL row: {p.tapo.steps} steps "
        f"of {p.tapo.groups} groups of {N} rollouts. Learning rates {searched}, searched among "
        f"{', '.join(f'{r:g}' for r in RATES)} on training seed {SEARCH_SEED}, world "
        f"{SEARCH_WORLD} and other pictures. Intervals: 95 %, bootstrap over pictures and "
        "training seeds, worlds fixed. Of chains, seen / unseen: marks of the analysis that are "
        "right; all of a picture's are; the label is among the candidates; every remark is true; "
        "the comparison leaves one, which is predicted and answered; right in that way. Minutes: a "
        "training's, of those never interrupted if any."
    )
    for dial, value in study.dials.items():
        note += f" Dial of the world: {dial.replace('_', ' ')} {value}."
    page = Page("Ablation of TAPO")
    figure = page.picture("ablation", figures.ablation(found))
    page.add("Differences to SFT", table(found), note=note, figure=figure)
    note = (
        "How many answers are right, and how many of those by a chain that leads to them: on the "
        "dashed line all. Joined: the same method with more of a right name's pay due to agreement."
    )
    figure = page.picture("reasons", figures.reasons(found))
    page.add("Right, and for its reason", note=note, figure=figure)
    note = (
        f"Rollouts at temperature {p.tapo.temperature:g}, mean over training seeds and worlds; "
        f"groups kept of {p.tapo.groups}."
    )
    figure = page.picture("steps", figures.steps(found))
    page.add("Over the steps of training", note=note, figure=figure)
    return page.write(study.folder)
