"""From records (one row an answer) to numbers with intervals.

Pictures are shared by the training seeds, so two kinds of luck are kept apart: a cell's
Wilson interval is about the pictures alone; the interval of a difference resamples
pictures and training seeds, crossed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finer1_lite.runtime import files

log = logging.getLogger("finer1_lite")

STAGES = ("base", "base_think", "sft", "tapo")  # base_think: the base, asked for a chain
SPLITS = ("seen", "unseen")
TASKS = ("open", "closed")
DIFFERENCES = (
    *(("sft", "base"), ("tapo", "sft"), ("tapo", "base")),
    *(("sft", "base_think"), ("tapo", "base_think")),  # the same prompt on both sides
)
_STAGE_OF = {  # (model, prompt) of a record -> its key in the metrics
    ("base", "answer"): "base",
    ("base", "think"): "base_think",
    ("SFT", "think"): "sft",
    ("TAPO", "think"): "tapo",
}
_TEXTS = ("photo", "label", "completion")
_FIELDS = (
    *("model", "seed", "split", "task", "prompt", "answer", "named", "correct", "tokens"),
    "truncated",
    *_TEXTS,
)


def wilson(right: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927): `right` of `n`, as fractions in [0, 1].

    `right` need not be whole (a mean over seeds). ValueError for n < 1 or right outside
    [0, n].
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"right={right} of n={n}: n must be 1 or more and right in [0, n]")
    share, shrink = right / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if right == 0 else max(centre - half, 0.0)  # exact at the ends
    high = 1.0 if right == n else min(centre + half, 1.0)
    return low, high


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 where both are 0. ValueError for a negative value."""
    if a < 0 or b < 0:
        raise ValueError(f"harmonic mean of {a} and {b}: both must be 0 or more")
    return 2 * a * b / (a + b) if a + b else 0.0


def bootstrap_over_worlds(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], draws: int = 2000, seed: int = 0
) -> dict[str, float]:
    """`paired_bootstrap` of several worlds (or data sets): {mean, low, high} of a - b.

    a, b: an array (training seeds, pictures) a world. Worlds are fixed and weigh alike:
    the interval is about other seeds and pictures of these worlds.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} worlds in a, {len(b)} in b: give the same, one at least")
    rng = np.random.default_rng(seed)
    drawn = np.mean([_bootstrap(x, y, draws, rng) for x, y in zip(a, b)], axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    mean = np.mean([np.mean(x) - np.mean(y) for x, y in zip(a, b)])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of a - b with its 95 % percentile interval: (mean, low, high).

    a, b: 0/1, (training seeds, pictures), the same pictures in the same order. Each draw
    resamples pictures and seeds, crossed (the pigeonhole bootstrap: Owen 2007, Annals of
    Applied Statistics 1). The same draw of seeds serves both where they have as many
    seeds, as training seeds are paired; one row is shared by all seeds of the other side.
    With one seed the interval is about pictures only, with few it is somewhat too narrow.
    ValueError for shapes that do not fit.
    """
    return tuple(bootstrap_over_worlds([a], [b], draws, seed).values())


def _bootstrap(a: np.ndarray, b: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Mean of a - b in each draw. (draws,)"""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    problems = [
        f"{n} has shape {x.shape}: give (seeds, pictures)"
        for n, x in (("a", a), ("b", b))
        if x.ndim != 2 or not x.size
    ]
    if not problems and a.shape[1] != b.shape[1]:
        problems = [f"{a.shape[1]} pictures in a, {b.shape[1]} in b: give the same pictures"]
    if draws < 1:
        problems.append(f"draws={draws}: give 1 or more")
    _raise("no bootstrap:", problems)
    drawn = np.empty(draws)
    for i in range(draws):
        rows = rng.integers(len(a), size=len(a))
        same = len(a) == len(b)
        rows_b = rows if same else rng.integers(len(b), size=len(b))
        pictures = rng.integers(a.shape[1], size=a.shape[1])
        drawn[i] = (a[rows].mean(0) - b[rows_b].mean(0))[pictures].mean()
    return drawn


def read_records(path: Path | str) -> list[dict]:
    """The rows of a records file; a half-written last line is dropped (`jsonl.read`)."""
    return [row for _, row in files.read(path, torn=True, objects=True)]


def summarise(records: Iterable[Mapping]) -> dict:
    """The numbers of a run: {stage: {split: {task: cell}, "harmonic"}, "differences"}.

    Stages as in `STAGES`. A cell has accuracy (mean over training seeds), n (pictures),
    low and high (Wilson, 95 %), invalid (share that names no class), cut (share cut off),
    tokens (mean length), seeds (accuracy of each) and, closed world, chance; shares are
    fractions. What has no records is absent. Pictures that some seed did not answer are
    left out, with a warning. ValueError lists every faulty or repeated record.
    """
    grids = {key: _Grid.of(key, rows) for key, rows in _sorted_out(records).items()}
    grids = {key: grid for key, grid in grids.items() if grid.photos}
    metrics: dict = {}
    for stage in STAGES:
        cells: dict = {}
        for split in SPLITS:
            found = {t: grids[stage, split, t].cell() for t in TASKS if (stage, split, t) in grids}
            if found:
                cells[split] = found
        if cells:
            metrics[stage] = cells | {"harmonic": _harmonic(cells)}
    metrics["differences"] = _differences(grids)
    return metrics


def cells_of(
    metrics: Mapping, stages: Sequence[str], tasks: Sequence[str] = TASKS
) -> Iterator[tuple[str, str, dict]]:
    """(stage, split, cell) of every cell of a summary that is there."""
    for stage in stages:
        for split in SPLITS:
            for task in tasks:
                if task in metrics.get(stage, {}).get(split, {}):
                    yield stage, split, metrics[stage][split][task]


@dataclass(frozen=True)
class _Grid:
    """The answers of one stage, split and task; every array is (seeds, photos)."""

    seeds: list[int | None]
    photos: list[str]
    correct: np.ndarray
    invalid: np.ndarray
    truncated: np.ndarray
    tokens: np.ndarray
    chance: np.ndarray | None  # 1 / number of options; None in the open world

    @classmethod
    def of(cls, key: tuple[str, str, str], rows: Mapping[int | None, Mapping[str, Mapping]]):
        seeds = sorted(rows, key=lambda seed: -1 if seed is None else seed)
        shared = set.intersection(*(set(rows[seed]) for seed in seeds))
        lost = len(set().union(*(rows[seed] for seed in seeds))) - len(shared)
        if lost:
            log.warning("%s: left out %d pictures that a seed did not answer", "/".join(key), lost)
        photos = sorted(shared)
        table = [[rows[seed][photo] for photo in photos] for seed in seeds]

        def grid(value):
            return np.array([[float(value(row)) for row in line] for line in table])

        offered = key[2] == "closed" and all(row.get("options") for line in table for row in line)
        return cls(
            seeds,
            photos,
            correct=grid(lambda row: row["correct"]),
            invalid=grid(lambda row: row["named"] is None),
            truncated=grid(lambda row: row["truncated"]),
            tokens=grid(lambda row: row["tokens"]),
            chance=grid(lambda row: 1 / len(row["options"])) if offered else None,
        )

    def cell(self) -> dict:
        accuracy, n = float(self.correct.mean()), len(self.photos)
        low, high = wilson(min(accuracy * n, n), n)
        cell = {"accuracy": accuracy, "n": n, "low": low, "high": high}
        for name in ("invalid", "truncated", "tokens"):
            cell[name] = float(getattr(self, name).mean())
        cell["seeds"] = self.correct.mean(axis=1).tolist()
        if self.chance is not None:
            cell["chance"] = float(self.chance.mean())
        return cell

    def rows(self, seeds: Sequence[int | None], photos: Sequence[str]) -> np.ndarray:
        """`correct` of these seeds and photos, in this order."""
        at = {photo: i for i, photo in enumerate(self.photos)}
        lines = [self.seeds.index(seed) for seed in seeds]
        return self.correct[np.ix_(lines, [at[photo] for photo in photos])]


def _sorted_out(records: Iterable[Mapping]) -> dict:
    """{(stage, split, task): {seed: {photo: record}}}; ValueError lists all problems."""
    found: dict = {}
    problems = []
    for number, record in enumerate(records, 1):
        problem = _problem(record)
        if problem:
            problems.append(f"record {number}: {problem}")
            continue
        key = (_STAGE_OF[record["model"], record["prompt"]], record["split"], record["task"])
        photos = found.setdefault(key, {}).setdefault(record["seed"], {})
        if record["photo"] in photos:
            where = f"{'/'.join(key)}, seed {record['seed']}, photo {record['photo']!r}"
            problems.append(f"record {number}: {where} stands there twice; keep one")
        photos[record["photo"]] = record
    _raise("records that cannot be counted:", problems)
    return found


def _problem(record: Mapping) -> str:
    """What is wrong with a record, and the mend; "" if nothing is."""
    missing = [name for name in _FIELDS if name not in record]
    if missing:
        return f"lacks {', '.join(missing)}; add them"
    stage, prompt, seed = record["model"], record["prompt"], record["seed"]
    if (stage, prompt) not in list(_STAGE_OF):  # a list asks for no hash
        known = ", ".join("/".join(pair) for pair in _STAGE_OF)
        return f"stage/prompt {stage!r}/{prompt!r}; use one of {known}"
    if (seed is None) != (stage == "base") or not isinstance(seed, int | None):
        return f"seed {seed!r} of stage {stage!r}; give a whole number, and null for the base"
    for name, allowed in (
        ("split", SPLITS),
        ("task", TASKS),
        ("correct", (0, 1)),
        ("truncated", (0, 1)),
    ):
        if record[name] not in allowed:
            return f"{name} {record[name]!r}; use one of {allowed}"
    for name in _TEXTS:
        if not isinstance(record[name], str):
            return f"{name} {record[name]!r}; give text"
    return "" if isinstance(record["tokens"], int | float) else "tokens is no number; give one"


def _harmonic(cells: Mapping) -> dict[str, float]:
    """Task -> harmonic mean of seen and unseen accuracy, where both are there."""
    both = [t for t in TASKS if all(t in cells.get(split, {}) for split in SPLITS)]
    return {t: harmonic_mean(*(cells[s][t]["accuracy"] for s in SPLITS)) for t in both}


def _differences(grids: Mapping[tuple[str, str, str], _Grid]) -> dict:
    """{"tapo-sft": {split: {task: {mean, low, high, n, seeds}}}, ...}, where both ran.

    Only pictures and training seeds that both sides have are compared.
    """
    found: dict = {}
    for more, less in DIFFERENCES:
        for split, task in [(split, task) for split in SPLITS for task in TASKS]:
            a, b = grids.get((more, split, task)), grids.get((less, split, task))
            if a is None or b is None:
                continue
            trained = [seed for seed in a.seeds if b.seeds == [None] or seed in b.seeds]
            photos = [photo for photo in a.photos if photo in set(b.photos)]
            if not trained or not photos:
                log.warning("%s-%s, %s/%s: nothing in common", more, less, split, task)
                continue
            b_seeds = b.seeds if b.seeds == [None] else trained
            mean, low, high = paired_bootstrap(a.rows(trained, photos), b.rows(b_seeds, photos))
            cell = {"mean": mean, "low": low, "high": high, "n": len(photos), "seeds": len(trained)}
            found.setdefault(f"{more}-{less}", {}).setdefault(split, {})[task] = cell
    return found


def _raise(headline: str, problems: Sequence[str]) -> None:
    if problems:
        raise ValueError("\n- ".join([headline, *problems]))
