"""From records (one row a completion) to numbers with intervals.

Every number of a run comes from one table (`table`), through `accuracy` and `difference`. Photos
are shared by the training seeds, so two kinds of luck are kept apart: an accuracy's Wilson
interval is about the photos alone; the interval of a difference resamples photos and training
seeds, crossed. A photo counts once, with the mean of its rotations and samples.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError
from statsmodels.stats import contingency_tables

from finer1_lite.data.records import SPLITS, STAGES, TASKS, Entry, LabRecord, Record
from finer1_lite.runtime import files

log = logging.getLogger("finer1_lite")

PHOTO = ["dataset", "photo"]  # what names a photo
DIFFERENCES = (
    *(("sft", "base"), ("tapo", "sft"), ("tapo", "base")),
    *(("sft", "base_think"), ("tapo", "base_think")),  # the same prompt on both sides
)
_NUMBERS = ("correct", "included", "listed", "agrees", "truncated", "tokens", "similarity")
_PAGES_ONLY = {"included", "not_offered", "similarity", "only_a", "only_b", "p"}


def read_records(path: Path | str) -> list[dict]:
    """The rows of a file of JSON lines; a half-written last line is dropped (`files.read`)."""
    return [row for _, row in files.read(path, torn=True, objects=True)]


def table(records: Iterable[Mapping], schema: type[Record] = Record) -> pd.DataFrame:
    """The records, a row each: the columns of `Record` and five more.

    question: what two entries are compared on; for_its_reason: right, and the chain leads to it;
    invalid: names no class; not_offered: names one that was no option; chance: 1 / number of
    options. ValueError lists every record that does not fit the schema.
    """
    rows = list(records)
    files.require_none(_problems(rows, schema), "records that cannot be counted:")
    frame = pd.DataFrame(rows, columns=list(Record.model_fields), dtype=object)
    frame = frame.astype({"seed": "Int64", "picture": bool, **dict.fromkeys(_NUMBERS, float)})
    frame["options"] = [tuple(options or ()) for options in frame["options"]]
    asked = frame[[*PHOTO, "task", "options", "sample"]]
    frame["question"] = list(asked.itertuples(index=False, name=None))
    frame["invalid"] = frame["named"].isna().astype(float)
    frame["for_its_reason"] = frame["correct"] * frame["agrees"]
    pairs = list(zip(frame["named"], frame["options"], strict=True))
    frame["not_offered"] = [float(name is not None and name not in offer) for name, offer in pairs]
    frame["chance"] = [1 / len(offer) if offer else math.nan for _, offer in pairs]
    return frame


def _problems(rows: Sequence[Mapping], schema: type[Record]) -> list[str]:
    """A line for every record with something wrong, in their order."""
    wrong: dict[int, list[str]] = {}
    lacking: dict[int, list[str]] = {}
    try:
        TypeAdapter(list[schema]).validate_python(rows)
    except ValidationError as caught:
        for error in caught.errors():
            number, *field = error["loc"]
            given = f"{field[0]} {error['input']!r:.60}: " if field else ""
            if error["type"] == "missing":
                lacking.setdefault(number, []).append(field[0])
            else:
                wrong.setdefault(number, []).append(given + error["msg"])
    for number, names in lacking.items():
        wrong.setdefault(number, []).append(f"lacks {', '.join(names)}; evaluate again")
    seen = set()
    for number, row in enumerate(rows if schema.unique else ()):
        key = number if number in wrong else tuple(row[name] for name in schema.unique)
        if key in seen:
            wrong[number] = [f"{key} stands there twice; keep one"]
        seen.add(key)
    return [f"record {number + 1}: {'; '.join(wrong[number])}" for number in sorted(wrong)]


def entries(frame: pd.DataFrame) -> dict[Entry, pd.DataFrame]:
    """Each answerer's rows without error, models in the order of their first rows.

    A model's prompts stand together, the image-free baseline behind each; answerers that are
    asked nothing (prompt "none") at the end.
    """
    by = frame[frame["error"].isna()].groupby(list(Entry._fields), sort=False)
    found = {Entry(model, prompt, bool(seen)): rows for (model, prompt, seen), rows in by}
    models = list(dict.fromkeys(who.model for who in found))

    def place(who: Entry) -> tuple:
        return who.prompt == "none", models.index(who.model), who.prompt, not who.picture

    return {who: found[who] for who in sorted(found, key=place)}


def parts(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(split, task, its rows) of each part that has rows."""
    for split, task in product(SPLITS, TASKS):
        part = rows[(rows["split"] == split) & (rows["task"] == task)]
        if len(part):
            yield split, task, part


def photo_means(frame: pd.DataFrame) -> pd.DataFrame:
    """Means of one answerer over rotations and samples: a row a (seed, data set, photo), sorted.

    Photos that some training seed did not answer are left out, with a warning. An untrained
    model has the seed -1.
    """
    seeds = frame["seed"].fillna(-1).astype(int)
    shares = [*_NUMBERS, "for_its_reason", "invalid", "not_offered", "chance"]
    means = frame.groupby([seeds, *PHOTO])[shares].mean()
    count = means.groupby(level=PHOTO)["tokens"].transform("size")
    whole = means[count == seeds.nunique()]
    if len(whole) < len(means):
        lost = len(means[count < seeds.nunique()].groupby(level=PHOTO))
        model = frame["model"].iat[0]
        log.warning("%s: left out %d pictures that a seed did not answer", model, lost)
    return whole


def accuracy(frame: pd.DataFrame) -> dict:
    """Of one answerer's rows: accuracy, n, low, high and further shares; {} without rows.

    accuracy: mean over training seeds and photos, a fraction; low, high: its 95 % interval over
    the n photos; seeds: the accuracy of each. tokens is a mean length, the others are shares of
    completions (invalid: names no class; listed, agrees, for_its_reason: of the chain). What
    was not measured is absent.
    """
    means = photo_means(frame)
    if means.empty:
        return {}
    shares = means.mean().dropna().to_dict()
    share = float(shares.pop("correct"))
    n = len(means.groupby(level=PHOTO))
    low, high = wilson(min(share * n, n), n)
    cell = {"accuracy": share, "n": n, "low": low, "high": high}
    cell |= {key: shares[key] for key in ("invalid", "truncated", "tokens")}
    cell["seeds"] = means["correct"].groupby(level="seed").mean().tolist()
    return cell | shares


def difference(a: pd.DataFrame, b: pd.DataFrame, draws: int = 2000) -> dict:
    """What a is better by on what both answered: mean, low, high, n photos, seeds; {} of nothing.

    Training seeds are paired; an untrained model stands beside every seed of the other. Where
    both have one seed, McNemar's test is added (only_a, only_b, p), which counts each photo once,
    at its first common question. draws=0: without mean and interval.
    """
    if a["seed"].notna().all() and b["seed"].notna().all():
        a, b = a[a["seed"].isin(b["seed"])], b[b["seed"].isin(a["seed"])]
    a, b = a[a["question"].isin(b["question"])], b[b["question"].isin(a["question"])]
    grids = [photo_means(side)["correct"].unstack(PHOTO) for side in (a, b)]
    photos = grids[0].columns.intersection(grids[1].columns)
    grids = [grid[photos].to_numpy() for grid in grids]
    if not all(grid.size for grid in grids):
        return {}
    found = bootstrap_over_worlds(grids[:1], grids[1:], draws) if draws else {}
    found |= {"n": len(photos), "seeds": max(map(len, grids))}
    if len(grids[0]) == len(grids[1]) == 1:
        both = a.merge(b, on="question").sort_values("question")
        once = both.drop_duplicates(["dataset_x", "photo_x"])
        test = mcnemar(once["correct_x"], once["correct_y"])
        found |= dict(zip(("only_a", "only_b", "p"), test, strict=True))
    return found


# --- the numbers of a run ------------------------------------------------------------------


def scores(frame: pd.DataFrame) -> dict[Entry, dict]:
    """Entry -> split -> task -> `accuracy`."""
    found: dict[Entry, dict] = {}
    for who, rows in entries(frame).items():
        found[who] = {}
        for split, task, part in parts(rows):
            found[who].setdefault(split, {})[task] = accuracy(part)
    return found


def lab_scores(frame: pd.DataFrame) -> dict:
    """`scores` of a lab run by stage, with harmonic means, and its "differences".

    {"tapo": {"seen": {"open": cell, ...}, ..., "harmonic": {"open": mean, ...}}, ...,
    "differences": {"tapo-sft": {"seen": {"open": cell, ...}, ...}, ...}}.
    """
    rows, of = entries(frame), scores(frame)
    found = {stage: of[who] for stage, who in STAGES.items() if who in of}
    for cells in found.values():
        both = [t for t in TASKS if all(t in cells.get(split, {}) for split in SPLITS)]
        pairs = {t: [cells[split][t]["accuracy"] for split in SPLITS] for t in both}
        cells["harmonic"] = {t: harmonic_mean(*pair) for t, pair in pairs.items()}
    differences: dict = {}
    for more, less in [pair for pair in DIFFERENCES if found.keys() >= set(pair)]:
        for split, task, part in parts(rows[STAGES[more]]):
            if cell := difference(part, rows[STAGES[less]]):
                differences.setdefault(f"{more}-{less}", {}).setdefault(split, {})[task] = cell
            else:
                log.warning("%s-%s, %s/%s: nothing in common", more, less, split, task)
    return found | {"differences": differences}


def summarise(records: Iterable[Mapping]) -> dict:
    """What metrics.json holds: `lab_scores` without the numbers that stand on pages only.

    Stages without records are absent. ValueError lists every faulty or repeated record.
    """

    def stored(found: Mapping) -> dict:
        kept = {key: value for key, value in found.items() if key not in _PAGES_ONLY}
        return {key: stored(v) if isinstance(v, Mapping) else v for key, v in kept.items()}

    return stored(lab_scores(table(records, LabRecord)))


def cells_of(
    metrics: Mapping, stages: Sequence[str], tasks: Sequence[str] = TASKS
) -> Iterator[tuple[str, str, dict]]:
    """(stage, split, cell) of every cell of a summary that is there."""
    for stage, split, task in product(stages, SPLITS, tasks):
        if task in metrics.get(stage, {}).get(split, {}):
            yield stage, split, metrics[stage][split][task]


# --- statistics ----------------------------------------------------------------------------


def wilson(right: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927): `right` of `n`, as fractions in [0, 1].

    `right` need not be whole (a mean over seeds), and the ends are exact: statsmodels leaves
    3e-17 of 0 right. ValueError for n < 1 or right outside [0, n].
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"right={right} of n={n}: n must be 1 or more and right in [0, n]")
    share, shrink = right / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if right == 0 else max(centre - half, 0.0)
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
    """Mean of a - b with its 95 % percentile interval: {mean, low, high}.

    a, b: shares, an array (training seeds, photos) a world (or data set), the same photos in the
    same order. Worlds are fixed and weigh alike: the interval is about other seeds and photos of
    these worlds. Each draw resamples photos and seeds, crossed (the pigeonhole bootstrap: Owen
    2007, Annals of Applied Statistics 1). One draw of seeds serves both sides where they have as
    many, as training seeds are paired; a single row is shared by all seeds of the other side.
    With one seed the interval is about photos only, with few it is somewhat too narrow.
    ValueError for shapes that do not fit.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} worlds in a, {len(b)} in b: give the same, one at least")
    rng = np.random.default_rng(seed)
    drawn = np.mean([_bootstrap(x, y, draws, rng) for x, y in zip(a, b, strict=True)], axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    mean = np.mean([np.mean(x) - np.mean(y) for x, y in zip(a, b, strict=True)])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def _bootstrap(a: np.ndarray, b: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Mean of a - b in each draw, (draws,)."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    sides = zip("ab", (a, b), strict=True)
    problems = [f"{name} has shape {x.shape}" for name, x in sides if x.ndim != 2 or not x.size]
    if not problems and a.shape[1] != b.shape[1]:
        problems = [f"{a.shape[1]} photos in a, {b.shape[1]} in b"]
    problems += [f"draws={draws}: give 1 or more"] if draws < 1 else []
    files.require_none(problems, "no bootstrap; give (seeds, same photos):")
    drawn = np.empty(draws)
    for i in range(draws):
        rows = rng.integers(len(a), size=len(a))
        rows_b = rows if len(a) == len(b) else rng.integers(len(b), size=len(b))
        photos = rng.integers(a.shape[1], size=a.shape[1])
        drawn[i] = (a[rows].mean(0) - b[rows_b].mean(0))[photos].mean()
    return drawn


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int, float]:
    """(only a right, only b right, p) of two answerers on the same photos, in the same order.

    p: the exact two-sided test that both are equally often right where they differ (McNemar
    1947, Psychometrika 12).
    """
    pairs = list(zip(a, b, strict=True))
    only_a = sum(bool(x) and not y for x, y in pairs)
    only_b = sum(bool(y) and not x for x, y in pairs)
    counts = [[0, only_a], [only_b, 0]]
    return only_a, only_b, float(contingency_tables.mcnemar(counts, exact=True).pvalue)
