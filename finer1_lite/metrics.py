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

import pandas as pd

from finer1_lite.data.records import SPLITS, STAGES, TASKS, Entry, LabRecord, Record, problems
from finer1_lite.data.statistics import bootstrap_over_worlds, harmonic_mean, mcnemar, wilson
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
    files.require_none(problems(rows, schema), "records that cannot be counted:")
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
