"""What each part of TAPO contributes: `python -m finer1_lite ablate`.

Every row is the same trainer with other settings, from the same SFT adapter, with the same
number of steps and rollouts, on the same training seeds and worlds. Learning rates are
searched once a family, on a training seed and pictures that are not reported.
"""

import json
import logging
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finer1_lite import cot, evaluate, lab, metrics, models, paperbirds, plots
from finer1_lite.evals import report
from finer1_lite.evals.findings import points
from finer1_lite.evals.pages import Picture, Table, Text, markdown
from finer1_lite.evaluate import Cell
from finer1_lite.presets import Preset
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.files import open_folder, write_atomically
from finer1_lite.runtime.workers import choose_workers, worker_pool
from finer1_lite.sft import chain_rows, train_sft
from finer1_lite.students.probe import marks_right
from finer1_lite.tapo import train_tapo

log = logging.getLogger("finer1_lite")


@dataclass(frozen=True)
class Row:
    """One line of the table: a recipe and what is changed in it."""

    label: str
    recipe: str = "tapo"
    changes: dict = field(default_factory=dict)
    rate_of: str = "tapo"  # the row whose searched learning rate it takes
    from_base: bool = False  # no SFT before it

    def preset(self, preset: Preset, rate: float) -> Preset:
        changes = {f"tapo__{key}": value for key, value in self.changes.items()}
        return preset.recipe(self.recipe).with_(tapo__learning_rate=rate, **changes)


N = Preset.lab().tapo.anchor_rollouts + Preset.lab().tapo.positive_rollouts
ROWS = {
    "cls_rl": Row("CLS-RL (answer only, no SFT)", "cls_rl", rate_of="cls_rl", from_base=True),
    "dapo": Row("DAPO", "dapo", rate_of="dapo"),
    "tapo": Row("TAPO"),
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
}
RATES = (5e-4, 1e-3, 2e-3)
SEARCH_SEED, SEARCH_WORLD, SEARCH_PICTURES = 100, 0, 144
STARTS = {"sft": "SFT", "sft_long": "SFT, as many steps more"}


@dataclass(frozen=True)
class Study:
    """Which rows, seeds and worlds; where."""

    folder: Path
    preset: Preset
    rows: tuple[str, ...] = tuple(ROWS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    worlds: tuple[int, ...] = (0, 1)

    def config(self) -> dict:
        """What must be equal for a folder's content to be used again.

        Rows and training seeds may be added to a study.
        """
        worlds = {"job": "an ablation", "worlds": list(self.worlds)}
        return worlds | {"preset": self.preset.to_dict()}

    def finished(self, row: str, rate: float) -> list[int]:
        """The training seeds of a row that are done in every world, of this start or another."""
        found = {int(p.name.removeprefix("seed")) for p in self.folder.glob("world*/seed*")}
        return [
            seed
            for seed in sorted(found - {SEARCH_SEED})
            if all(Task(self, w, seed, row, rate).done for w in self.worlds)
        ]


@dataclass(frozen=True)
class Task:
    """One training and its evaluation."""

    study: Study
    world: int
    seed: int
    row: str  # a key of ROWS or STARTS
    rate: float = 0.0
    split: str = "test"

    @property
    def folder(self) -> Path:
        return self.study.folder / f"world{self.world}" / f"seed{self.seed}" / self.name

    @property
    def name(self) -> str:
        return f"{self.row}-{self.rate:g}" if self.rate else self.row

    @property
    def done(self) -> bool:
        return (self.folder / "finished.json").exists()

    @property
    def answers(self) -> Path:
        return self.folder / f"{self.cell.name}.jsonl"

    @property
    def cell(self) -> Cell:
        row = ROWS.get(self.row)
        kind = row.preset(self.study.preset, 1.0).tapo.prompt if row else "think"
        return Cell(self.row, self.seed, kind, "open")


def run(study: Study, workers: int = 0) -> Path:
    """Train and evaluate everything that is not there yet; returns the report's path."""
    open_folder(study.folder, study.config(), fresh=False)
    for world in sorted({*study.worlds, SEARCH_WORLD}):
        lab.prepare_base(_job(study, world), None)  # pretrains where a world has no student
    rates = search(study, workers)
    places = [(w, s) for s in study.seeds for w in study.worlds]
    _do([Task(study, w, s, start) for start in STARTS for w, s in places], workers)
    tasks = [Task(study, w, s, r, rates[ROWS[r].rate_of]) for r in study.rows for w, s in places]
    _do(tasks, workers)
    return write(study, rates)


def search(study: Study, workers: int) -> dict[str, float]:
    """The best learning rate of each family, on a seed and pictures that are not reported.

    Best is the harmonic mean of seen and unseen accuracy; kept in search.json.
    """
    path = study.folder / "search.json"
    if path.exists():
        return json.loads(path.read_text())["rates"]
    families = sorted({ROWS[row].rate_of for row in study.rows})
    _do([Task(study, SEARCH_WORLD, SEARCH_SEED, "sft", split="val")], workers)
    tasks = [
        Task(study, SEARCH_WORLD, SEARCH_SEED, family, rate, "val")
        for family in families
        for rate in RATES
    ]
    _do(tasks, workers)
    found: dict[str, dict[float, float]] = {family: {} for family in families}
    for task in tasks:
        right = _right(task)
        found[task.row][task.rate] = metrics.harmonic_mean(*(v.mean() for v in right.values()))
    rates = {family: max(scores, key=scores.get) for family, scores in found.items()}
    tried = {family: {f"{k:g}": v for k, v in scores.items()} for family, scores in found.items()}
    write_atomically(path, json.dumps({"rates": rates, "tried": tried}, indent=1).encode())
    return rates


# --- one training --------------------------------------------------------------------


def _job(study: Study, world: int) -> lab.Run:
    """The lab run of the same world: its student, data and chains."""
    return lab.Run(study.folder, study.preset, world_seed=world)


def do(task: Task) -> None:
    """Train and evaluate one task, or what a killed run left of it."""
    if task.done:
        return
    start, study = time.time(), task.study
    job = _job(study, task.world)
    world = paperbirds.make_world(task.world)
    pictures = study.preset.test_pictures if task.split == "test" else SEARCH_PICTURES
    birds = paperbirds.collection(world, shots=study.preset.shots, test=pictures, split=task.split)
    base = lab.prepare_base(job, birds)
    preset, first = study.preset, task.folder.parent / "sft"
    student = models.load_student(base, preset)
    if task.row in STARTS:
        chains = cot.make_chains(birds, cot.oracle(world), seed=0)
        if task.row == "sft_long":
            steps = preset.sft.steps + preset.tapo.steps
            preset = preset.with_(sft__steps=steps)
        student = models.add_adapter(student, preset, task.seed)
        train_sft(student, chain_rows(birds, chains), preset, task.seed, task.folder)
    else:
        row = ROWS[task.row]
        preset = row.preset(preset, task.rate)
        if row.from_base:
            student = models.add_adapter(student, preset, task.seed)
        else:
            student = models.load_adapter(student, first, trainable=True)
        train_tapo(student, birds, preset, task.seed, task.folder)
    shutil.rmtree(task.folder / "checkpoints", ignore_errors=True)
    trained = time.time()
    student.model.eval()
    for _ in evaluate.evaluate(
        student,
        birds,
        task.cell,
        task.folder,
        max_new_tokens=preset.max_new_tokens,
        batch_size=preset.eval_batch,
    ):
        pass
    took = {"train_minutes": (trained - start) / 60, "minutes": (time.time() - start) / 60}
    write_atomically(task.folder / "finished.json", json.dumps(took).encode())


def _do(tasks: list[Task], workers: int) -> None:
    """Tasks side by side, one core each where there is no GPU, with one progress bar."""
    left = [task for task in tasks if not task.done]
    if not left:
        return
    workers = min(
        choose_workers(len(left), workers, "training", models.choose_device().type == "cuda"),
        len(left),
    )
    rows = ", ".join(dict.fromkeys(task.name for task in left))
    with progress_bar(len(left), rows[:60]) as bar, worker_pool(workers, bars=False) as pool:
        for _ in pool.map(do, left):
            bar.update()


# --- the table -----------------------------------------------------------------------


def _records(task: Task) -> list[dict]:
    return metrics.read_records(task.answers)


def _right(task: Task) -> dict[str, np.ndarray]:
    """Split -> 1 or 0 a picture, in the order of the collection."""
    found: dict[str, list[float]] = {split: [] for split in metrics.SPLITS}
    for row in _records(task):
        found[row["split"]].append(float(row["correct"]))
    return {split: np.array(values) for split, values in found.items()}


def _marks(task: Task, world: paperbirds.World) -> dict[str, float]:
    """Share of marks named rightly inside the chains, seen and unseen."""
    found: dict[str, list[float]] = {split: [] for split in metrics.SPLITS}
    for row in _records(task):
        said = row["completion"].partition("analysis:")[2].partition("\n")[0]
        right = marks_right(said, world.marks[row["label"]]) / len(paperbirds.MARKS)
        found[row["split"]].append(right)
    return {split: float(np.mean(values)) for split, values in found.items()}


def measure(study: Study, rates: dict[str, float]) -> dict:
    """Row -> accuracy, differences to SFT, DAPO and TAPO with intervals, marks, minutes."""
    seeds, grids, found = {}, {}, {}
    for name in (*STARTS, *ROWS):
        rate = rates.get(ROWS[name].rate_of, 1.0) if name in ROWS else 0.0
        seeds[name] = study.finished(name, rate)
        if not seeds[name]:
            log.info("%s: no seed is finished in all worlds; not in the table", name)
            continue
        tasks = [[Task(study, w, s, name, rate) for s in seeds[name]] for w in study.worlds]
        grids[name] = _grids(tasks)
        found[name] = _facts(tasks, grids[name])
    for name, other in [(n, o) for n in found for o in ("sft", "dapo", "tapo") if o in found]:
        both = sorted({*seeds[name]} & {*seeds[other]})
        if name != other and both:
            found[name][f"over_{other}"] = _over(grids, seeds, name, other, both)
    return found


def _over(grids, seeds, name: str, other: str, both: list[int]) -> dict:
    """Differences of two rows on the training seeds that both have."""

    def of(row, split):
        lines = [seeds[row].index(seed) for seed in both]
        return [grid[lines] for grid in grids[row][split]]

    return {
        split: metrics.bootstrap_over_worlds(of(name, split), of(other, split))
        | {"seeds": len(both)}
        for split in metrics.SPLITS
    }


def _grids(tasks: list[list[Task]]) -> dict[str, list[np.ndarray]]:
    """Split -> a world each, (seeds, pictures)."""
    right = [[_right(task) for task in row] for row in tasks]
    return {s: [np.stack([r[s] for r in row]) for row in right] for s in metrics.SPLITS}


def _facts(tasks: list[list[Task]], grids: dict[str, list[np.ndarray]]) -> dict:
    """What the table says of one row, apart from differences."""
    every = [task for row in tasks for task in row]
    marks = [_marks(t, paperbirds.make_world(t.world)) for t in every]
    took = [json.loads((t.folder / "finished.json").read_text()) for t in every]
    by_world = {s: [float(grid.mean()) for grid in grids[s]] for s in metrics.SPLITS}
    return {
        "label": ROWS[every[0].row].label if every[0].row in ROWS else STARTS[every[0].row],
        "seeds": len(tasks[0]),
        "minutes": float(np.mean([t["train_minutes"] for t in took])),
        "accuracy": {s: float(np.mean(values)) for s, values in by_world.items()},
        "by_world": by_world,
        "marks": {s: float(np.mean([m[s] for m in marks])) for s in metrics.SPLITS},
    }


def _over_text(cell: dict, other: str, split: str) -> str:
    over = cell.get(f"over_{other}", {}).get(split)
    return points(over) if over else ""


def table(found: dict) -> Table:
    """The ablation as a table: accuracy in %, differences in points with 95 % intervals."""
    head = (
        "row",
        "seeds",
        "seen",
        "unseen",
        "unseen over SFT",
        "unseen over DAPO",
        "seen over SFT",
        "marks right in chains, seen / unseen",
        "minutes",
    )
    rows = [
        (
            cell["label"],
            str(cell["seeds"]),
            *(f"{100 * cell['accuracy'][s]:.1f}" for s in metrics.SPLITS),
            _over_text(cell, "sft", "unseen"),
            _over_text(cell, "dapo", "unseen"),
            _over_text(cell, "sft", "seen"),
            " / ".join(f"{100 * cell['marks'][s]:.0f}" for s in metrics.SPLITS)
            if cell["marks"]["seen"]
            else "no chain",
            f"{cell['minutes']:.1f}",
        )
        for cell in found.values()
    ]
    return Table(head, rows)


def write(study: Study, rates: dict[str, float]) -> Path:
    """ablation.json, ablation.png and ablation.md of what is there."""
    found = measure(study, rates)
    given = {"worlds": list(study.worlds), "rates": rates}
    text = json.dumps(given | {"rows": found}, indent=1)
    write_atomically(study.folder / "ablation.json", text.encode())
    figure = plots.ablation(found)
    write_atomically(study.folder / "ablation.png", report.png(figure))
    p = study.preset
    blocks = [
        Text(
            f"Open world, exact name. The training seeds of each row x {len(study.worlds)} "
            f"worlds, {p.test_pictures} fresh pictures a split and world. Every RL row: "
            f"{p.tapo.steps} steps of {p.tapo.groups} groups of {N} rollouts. Learning rates "
            f"{', '.join(f'{k} {v:g}' for k, v in rates.items())}, searched among "
            f"{', '.join(f'{r:g}' for r in RATES)} on training seed {SEARCH_SEED}, world "
            f"{SEARCH_WORLD} and other pictures. Intervals: 95 %, bootstrap over pictures and "
            "training seeds, worlds fixed."
        ),
        table(found),
        Picture("ablation.png", "Differences to SFT with 95 % intervals"),
    ]
    path = study.folder / "ablation.md"
    write_atomically(path, markdown("Ablation of TAPO", blocks).encode())
    return path
