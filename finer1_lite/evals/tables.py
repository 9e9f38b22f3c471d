"""Numbers -> tables of text (pandas DataFrames) and sentences: what a page says.

Most tables have a line an answerer and prompt; columns in which nothing stands are left out, and
`attrs["note"]` holds what is to be said of a table as a whole. Pure: nothing but the table of
records (`metrics.table`) or its numbers goes in.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product

import numpy as np
import pandas as pd
from statsmodels.stats import multitest

from finer1_lite import metrics
from finer1_lite.evals.controls import CONTROLS, least_used
from finer1_lite.metrics import DIFFERENCES, PHOTO, SPLITS, STAGES, TASKS, Entry, entries

# Whoever is compared with: the first model, under each of these. A gain over one of them alone
# may be a gain of the prompt, or of naming more exactly.
BASE_PROMPTS = ("answer", "think", "exact")
MAX_PAIRS = 60  # lines of a table of differences
MAX_CLASSES = 1000  # with more, the classes with the lowest accuracy are listed
CONFUSIONS = 15  # pairs of classes listed
PER_KIND = 3  # sample pictures answered rightly, and as many wrongly

Pair = tuple[Entry, Entry]
Difference = tuple[str, str, Mapping]  # name, split, cell of `metrics.difference`


# --- numbers as text -----------------------------------------------------------------------


def percent(share: float | None, cell: Mapping | None = None) -> str:
    """A share in per cent, with the 95 % interval of its cell if one is given; "" for None."""
    if share is None:
        return ""
    ends = f" [{percent(cell['low'])}, {percent(cell['high'])}]" if cell else ""
    return f"{100 * share:.1f}{ends}"


def interval(cell: Mapping) -> str:
    """An accuracy with its interval and number of photos, in per cent; "" without."""
    return f"{percent(cell['accuracy'], cell)}, n = {cell['n']}" if cell else ""


def points(cell: Mapping) -> str:
    """A difference with its interval, in points."""
    mean, low, high = (100 * cell[key] for key in ("mean", "low", "high"))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def verdict(cell: Mapping) -> str:
    """Better, worse, or not significant where the 95 % interval includes 0."""
    if cell["low"] > 0:
        return "better"
    return "worse" if cell["high"] < 0 else "not significant"


def text_table(lines: Iterable[Mapping[str, str]], note: str = "") -> pd.DataFrame:
    """Lines as a table, without the columns in which nothing stands."""
    frame = pd.DataFrame(list(lines)).fillna("")
    frame = frame.loc[:, (frame != "").any()]
    frame.attrs["note"] = note
    return frame


def _who(who: Entry) -> dict[str, str]:
    return {"answerer": who.label, "prompt": who.prompt}


# --- the main tables -----------------------------------------------------------------------


def main_table(found: Mapping, task: str, frame: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every answerer of a task, then the controls where there is a `frame` of records.

    found: as `metrics.scores`, `lab_scores` or `summarise` return it.
    """
    rows = None if frame is None else frame[frame["task"] == task]
    encoders = "" if rows is None else ", ".join(sorted(set(rows["encoder"].dropna())))
    lines = []
    for key, cells in found.items():
        of = [cells.get(split, {}).get(task, {}) for split in SPLITS]
        if any(of):
            lines.append(_who(STAGES.get(key, key)) | _scores(of) | _shares(of, encoders))
    lines += control_lines(rows, task) if rows is not None and lines else []
    return text_table(lines)


def _scores(of: Sequence[Mapping]) -> dict[str, str]:
    """of: the cells of seen and of unseen classes, {} where there is none."""
    shares = [cell["accuracy"] for cell in of if cell]
    both = metrics.harmonic_mean(*shares) if len(shares) == len(SPLITS) else None
    cells = {f"{split}, %": interval(cell) for split, cell in zip(SPLITS, of, strict=True)}
    return cells | {"harmonic mean, %": percent(both)}


def _shares(of: Sequence[Mapping], encoders: str) -> dict[str, str]:
    """Seen / unseen shares of completions, and how many training seeds they come from."""
    of = [cell for cell in of if cell]
    seeds = sorted({len(cell["seeds"]) for cell in of})
    keys = {
        "released rule, %": "included",
        f"similarity ({encoders}), %": "similarity",
        "names no class, %": "invalid",
        "not offered, %": "not_offered" if "chance" in of[0] else "",  # nothing was
        "truncated, %": "truncated",
        "label listed, %": "listed",
        "right for its reason, %": "for_its_reason",
    }
    shares = {n: " / ".join(percent(c[key]) for c in of if key in c) for n, key in keys.items()}
    shares["tokens"] = " / ".join(f"{cell['tokens']:.0f}" for cell in of)
    return shares | {"seeds": " to ".join(map(str, seeds)) if seeds[-1] > 1 else ""}


def names_of(frame: pd.DataFrame) -> int:
    """How many names there are to answer with: of the run, where it says so, else the labels."""
    return int(frame["names"].iloc[0]) if "names" in frame else frame["label"].nunique()


def controls(rows: pd.DataFrame, task: str) -> dict[str, pd.DataFrame]:
    """Name -> the questions of the answerer that was asked most, as if a control had answered."""
    asked = max(entries(rows).values(), key=len, default=rows[:0])
    asked = asked.drop_duplicates([*PHOTO, "options"])
    if asked.empty:
        return {}
    if task == "open":
        names = names_of(asked)
        chances = {f"a guess out of {names} names": 1 / names}
    else:
        offered = (
            asked["options"].map(sorted).map(tuple)
        )  # rotations are one question, counted once
        once = asked[~asked.assign(options=offered).duplicated([*PHOTO, "options"])]
        found = {}
        for name, control in CONTROLS.items():
            of = once if control is least_used else asked
            rows = zip(of["dataset"] + of["split"], of["options"], of["label"], strict=True)
            found[name] = of.assign(correct=control(list(rows)), seed=-1)
        return found
    return {name: asked.assign(correct=values, seed=-1) for name, values in chances.items()}


def control_lines(rows: pd.DataFrame, task: str) -> list[dict[str, str]]:
    """Lines of the controls, which answer without a picture, and of those that were not run."""
    lines = []
    for name, scored in controls(rows, task).items():
        of = [metrics.accuracy(scored[scored["split"] == split]) for split in SPLITS]
        lines.append({"answerer": f"control: {name}", "prompt": "none"} | _scores(of))
    there = list(entries(rows))
    missing = ["the model without the picture"] if all(who.picture for who in there) else []
    if base := next((who.model for who in there if who.prompt != "none"), None):
        done = {who.prompt for who in there if who.model == base}
        missing += [f"{base}, prompt {p}" for p in BASE_PROMPTS if p not in done]
    return [*lines, *({"answerer": f"control: {n}", "prompt": "not run"} for n in missing)]


def dataset_table(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """Each data set by itself; empty of one."""
    lines = []
    for who, rows in entries(frame[frame["task"] == task]).items():
        for dataset, part in rows.groupby("dataset", sort=False):
            of = [metrics.accuracy(part[part["split"] == split]) for split in SPLITS]
            released = " / ".join(percent(cell["included"]) for cell in of if cell)
            more = {"data set": dataset} | _scores(of) | {"released rule, %": released}
            lines.append(_who(who) | more)
    return text_table(lines if frame["dataset"].nunique() > 1 else [])


# --- differences ---------------------------------------------------------------------------


def within(found: Iterable[Entry]) -> list[Pair]:
    """Answerers of one run that are to be compared, the later one first.

    Those that differ in one thing: the model (these come first), the prompt, or seeing the
    picture; and a baseline, which is asked nothing, beside everyone who sees.
    """
    every = [(b, a) for a, b in combinations(found, 2)]
    return sorted((pair for pair in every if _rank(*pair) is not None), key=lambda p: _rank(*p))


def _rank(a: Entry, b: Entry) -> int | None:
    """Models, prompts, baselines, image-free baselines; None where too much differs."""
    if "none" in (a.prompt, b.prompt):
        return 2 if a.picture and b.picture else None
    differ = [x != y for x, y in zip(a, b, strict=True)]
    if sum(differ) != 1 or not (a.picture or b.picture):
        return None
    return 3 if not (a.picture and b.picture) else differ.index(True)


def between(mine: Iterable[Entry], theirs: Iterable[Entry]) -> list[Pair]:
    """Answerers of two runs: those of one name and prompt, else everyone with everyone."""
    every = list(product(mine, theirs))
    every = [(a, b) for a, b in every if a.prompt == b.prompt] or every
    return [(a, b) for a, b in every if a.label == b.label] or every


def differences(
    pairs: Iterable[Pair],
    left: Mapping[Entry, pd.DataFrame],
    right: Mapping[Entry, pd.DataFrame],
    runs: tuple[str, str] = ("", ""),
) -> list[Difference]:
    """`metrics.difference` of each pair and split; runs: names put before the two answerers."""
    found: list[Difference] = []
    for (a, b), split in product(pairs, SPLITS):
        rows = left[a][left[a]["split"] == split]
        draws = 2000 if len(found) < MAX_PAIRS else 0  # the others count for Holm alone
        if cell := metrics.difference(rows, right[b], draws):
            found.append((f"{runs[0]}{a} minus {runs[1]}{b}", split, cell))
    return found


def stored_differences(summary: Mapping, task: str) -> list[Difference]:
    """The differences that `metrics.summarise` or `lab_scores` returned, of one task."""
    names = {f"{a}-{b}": f"{STAGES[a]} minus {STAGES[b]}" for a, b in DIFFERENCES}
    found = metrics.cells_of(summary.get("differences", {}), list(names), (task,))
    return [(names[pair], split, cell) for pair, split, cell in found]


def difference_table(found: Sequence[Difference]) -> pd.DataFrame:
    """Differences with interval and, where there is McNemar's p, with Holm's beside it."""
    tested = [cell["p"] for *_, cell in found if "p" in cell]
    adjusted = iter(holm(tested))
    lines = []
    for name, split, cell in found[:MAX_PAIRS]:
        line = {"difference": name, "split": split, "points [95 %]": points(cell)}
        line |= {"n": str(cell["n"]), "seeds": str(cell["seeds"]) if cell["seeds"] > 1 else ""}
        if "p" in cell:
            line["only one right"] = f"{cell['only_a']} / {cell['only_b']}"
            line |= {"McNemar p": f"{cell['p']:.3g}", "Holm p": f"{next(adjusted):.3g}"}
        else:
            line["verdict"] = verdict(cell)
        lines.append(line)
    note = f"Holm's p allows for the {len(tested)} comparisons of this table." if tested else ""
    if len(found) > MAX_PAIRS:
        note += f" The first {MAX_PAIRS} are shown."
    return text_table(lines, note)


def differing(a: pd.DataFrame, b: pd.DataFrame) -> list[tuple[dict, dict]]:
    """Records of questions that exactly one of the two answers rightly, one a photo.

    In the order of a hash of the photo's id: nobody chooses. Of the first training seed.
    """
    left, right = ({r["question"]: r for r in first_seed(x).to_dict("records")} for x in (a, b))
    found = {}
    for key in sorted(left.keys() & right.keys()):
        if left[key]["correct"] != right[key]["correct"]:
            found.setdefault(key[: len(PHOTO)], (left[key], right[key]))
    return sorted(found.values(), key=lambda pair: by_hash(pair[0]))


def by_hash(record: Mapping) -> str:
    """What records are sorted by, so that nobody chooses: a hash of the photo's id."""
    return hashlib.sha256(record["photo"].encode()).hexdigest()


def on_shared_pictures(first: pd.DataFrame, second: pd.DataFrame) -> tuple[list[pd.DataFrame], str]:
    """Two runs, and in words how many pictures they share; "" where they share all.

    A picture is the same where id and label are. Two runs that each have one data set, under
    two names, are brought under one where they share a picture, so that they can be paired.
    """
    frames = [first, second]
    photos = [set(zip(frame["photo"], frame["label"], strict=True)) for frame in frames]
    shared = len(photos[0] & photos[1])
    if shared and all(frame["dataset"].nunique() == 1 for frame in frames):
        name = first["dataset"].iat[0]
        second = second.assign(dataset=name)
        second["question"] = [(name, *question[1:]) for question in second["question"]]
    told = f"The two runs share {shared} pictures of {len(photos[0])} and {len(photos[1])}; "
    told += "differences are about those alone."
    if not shared:
        told = "The two runs share no picture: their numbers are about different pictures."
    return [first, second], "" if shared == len(photos[0]) == len(photos[1]) else told


# --- what stands behind a number -----------------------------------------------------------


def first_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first training seed; all of an untrained model's."""
    return rows[rows["seed"].fillna(-1) == rows["seed"].fillna(-1).min()]


def last_student(frame: pd.DataFrame) -> tuple[Entry, pd.DataFrame] | None:
    """The last answerer that sees, and the rows of its first seed; in the open world if any."""
    for task in TASKS:
        found = entries(frame[frame["task"] == task])
        seeing = [who for who in found if who.picture]
        students = [who for who in seeing if who.prompt != "none"] or seeing
        if students:
            return students[-1], first_seed(found[students[-1]])
    return None


def per_entry(frame: pd.DataFrame, tell: Callable[[pd.DataFrame], dict]) -> pd.DataFrame:
    """A line a task and entry, with what `tell` says of its rows; none where it says nothing."""
    lines = []
    for task in TASKS:
        for who, rows in entries(frame[frame["task"] == task]).items():
            told = tell(rows)
            lines += [_who(who) | {"world": task} | told] if told else []
    return text_table(lines)


def class_table(who: Entry, rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of every class, lowest first, and what it is called instead."""
    by = rows.groupby("label")
    shares = by["correct"].mean().reset_index().sort_values(["correct", "label"])
    lines = []
    for label, right in shares.head(MAX_CLASSES).itertuples(index=False):
        of = by.get_group(label)
        called, share = majority(of[of["correct"] == 0]["named"])
        low, high = metrics.wilson(of["correct"].sum(), len(of))
        line = {"class": label, "split": of["split"].iat[0]}
        line["right"] = f"{of['correct'].sum():.0f} of {len(of)}"
        line["% [95 %]"] = percent(right, {"low": low, "high": high})
        often = f"{called} ({percent(share)} % of its errors)" if called else ""
        lines.append(line | {"most often called": often})
    mean = percent(shares["correct"].mean())
    note = f"{described(who, rows['seed'].iat[0])}; lowest first; mean over classes {mean} %."
    if len(lines) < len(shares):
        note += f" The first {len(lines)} of {len(shares)}."
    return text_table(lines, note)


def confusions(rows: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """The rows of each confused pair of classes, the most frequent first, and how often."""
    wrong = rows[rows["named"].notna() & (rows["correct"] == 0)]
    asked = rows["label"].value_counts()
    pairs = sorted(wrong.groupby(["label", "named"]), key=lambda pair: (-len(pair[1]), pair[0]))
    return [(part, f"{len(part)} of {asked[label]}") for (label, _), part in pairs]


def confusion_table(who: Entry, rows: pd.DataFrame) -> pd.DataFrame:
    """The most frequent confusions, those inside a group apart."""
    lines, counts = [], {"inside": 0, "outside": 0}
    for part, times in confusions(rows):
        one = part.iloc[0]
        if one["group"]:
            where = "inside" if one["group"] == one["named_group"] else "outside"
            counts[where] += len(part)
            line = {"class": one["label"], "called": one["named"]}
            lines.append(line | {"its group": where, "times": times})
    told = f"{counts['inside']} of {sum(counts.values())} wrong names are of the right group"
    note = f"{described(who, rows['seed'].iat[0])}: {told} (genus, kind)."
    return text_table(lines[:CONFUSIONS], note)


def described(who: Entry, seed: int | None) -> str:
    """An entry with its training seed, if it has one."""
    return f"{who}" + ("" if pd.isna(seed) else f", seed {seed}")


def length_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in bins of the completion's length (`by_length`)."""

    def tell(rows: pd.DataFrame) -> dict[str, str]:
        bins = by_length(rows).itertuples()
        told = [f"{b.shortest:.0f}-{b.longest:.0f}: {percent(b.accuracy)} % of {b.n}" for b in bins]
        return {"tokens of the completion: right": "; ".join(told)} if len(told) > 1 else {}

    return per_entry(frame, tell)


def sample_table(frame: pd.DataFrame) -> pd.DataFrame:
    """pass@k, majority vote and its calibration, where questions were asked repeatedly."""

    def tell(rows: pd.DataFrame) -> dict[str, str]:
        asked = rows.groupby([rows["seed"].fillna(-1), *PHOTO, "rotation"])
        n = int(asked.size().min())
        if n < 2:
            return {}
        counts = asked["correct"].agg(["size", "sum"]).astype(int).to_numpy()
        ks = sorted({*(2**i for i in range(n.bit_length()) if 2**i < n), n})
        passed = {k: np.mean([pass_at_k(m, right, k) for m, right in counts]) for k in ks}
        votes = [(*majority(part["named"]), part["label"].iat[0]) for _, part in asked]
        hits = [name == label for name, _, label in votes]
        error = calibration_error([share for _, share, _ in votes], hits)
        return {
            "samples": str(n),
            "pass@k, %": "; ".join(f"k = {k}: {percent(p)}" for k, p in passed.items()),
            "majority vote, %": percent(np.mean(hits)),
            "calibration error": f"{error:.3f}",
        }

    return per_entry(frame, tell)


def not_scored_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Who has no completion for what, and the first reason."""
    lines = []
    for (*who, task), rows in frame.groupby([*Entry._fields, "task"], sort=False):
        errors = rows["error"].dropna()
        if len(errors):
            line = {"world": task, "not scored": f"{len(errors)} of {len(rows)}"}
            lines.append(_who(Entry(*who)) | line | {"the first reason": errors.iat[0]})
    return text_table(lines)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that one of k samples, drawn from n of which `right` are right, is right.

    1 - C(n - right, k) / C(n, k), without bias (Chen et al. 2021, arXiv 2107.03374).
    ValueError unless 0 <= right <= n and 1 <= k <= n.
    """
    if not (0 <= right <= n and 1 <= k <= n):
        raise ValueError(f"n={n}, right={right}, k={k}: 0 <= right <= n and 1 <= k <= n")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def majority(names: Iterable[str | None]) -> tuple[str | None, float]:
    """(most frequent name, its share of all); completions that name nothing have no vote.

    A tie goes to the name that came first: no alphabet decides. (None, 0) without votes.
    """
    names = list(names)
    votes = Counter(name for name in names if name is not None)
    name, count = votes.most_common(1)[0] if votes else (None, 0)
    return name, count / max(len(names), 1)


def calibration_error(confidence: Sequence[float], right: Sequence[bool]) -> float:
    """Expected calibration error: |right - confidence|, averaged over ten equally wide bins.

    Guo et al. 2017 (ICML). A confidence is in [0, 1]; 1 belongs to the last bin.
    """
    c, r = np.asarray(confidence, float), np.asarray(right, float)
    if len(c) != len(r) or not len(c) or c.min() < 0 or c.max() > 1:
        raise ValueError("give as many verdicts as confidences in [0, 1], one at least")
    gaps = np.bincount(np.minimum((c * 10).astype(int), 9), weights=r - c)
    return float(np.abs(gaps).sum() / len(c))


def pick_samples(frame: pd.DataFrame) -> list[dict]:
    """Three right and three wrong open-world records of a lab run, by a rule that cannot choose.

    From the last stage that ran (TAPO, else SFT, else the base under the chain prompt) and
    its first seed, ordered by the SHA-256 of the photo's id: the first of each split, then
    whoever comes next. Fewer where there are not so many.
    """
    found = entries(frame[frame["task"] == "open"])
    stages = [who for who in list(STAGES.values())[1:] if who in found]
    if not stages:
        return []
    records = sorted(first_seed(found[stages[-1]]).to_dict("records"), key=by_hash)
    chosen = []
    for right in (1, 0):
        kind = [r for r in records if r["correct"] == right]
        firsts = {r["split"]: r for r in reversed(kind)}
        heads = [firsts[split] for split in SPLITS if split in firsts]
        chosen += [*heads, *(r for r in kind if r not in heads)][:PER_KIND]
    return chosen


def by_length(rows: pd.DataFrame, bins: int = 5) -> pd.DataFrame:
    """Rows in bins of about equal size by tokens: shortest, longest, accuracy, n.

    Short ones first; completions of one length are never split over two bins.
    """
    edges = np.unique(rows["tokens"].quantile(np.linspace(0, 1, bins + 1)[1:-1]))
    by = rows.groupby(np.searchsorted(edges, rows["tokens"]))
    found = by["tokens"].agg(shortest="min", longest="max", n="size")
    return found.assign(accuracy=by["correct"].mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being many (Holm 1979, Scand. J. Statistics 6), in their order."""
    return multitest.multipletests(p_values, method="holm")[1].tolist() if len(p_values) else []
