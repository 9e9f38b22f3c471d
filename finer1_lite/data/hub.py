"""A few pictures of each class of a large data set -> an ordinary folder of photographs.

One pass over the shards through `datasets`, in bounded memory: nothing is unpacked, and only
formats that hold data and no code are opened; loading scripts and pickles are refused. Of
every class those `k` pictures are kept whose bytes have the smallest hash with the seed: a
uniform draw without replacement, the same for any order of the rows and any cut into shards.
(Reservoir sampling would depend on the order.) So a killed pass is simply made again. OUT is
filled as OUT.partial and appears in one step, when it is whole.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import datasets
import fsspec
import httpx
import pandas as pd

from finer1_lite.data import folders, hubsets, images, labels, layouts, tables
from finer1_lite.data.hubsets import Wanted
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.files import DataError, require, require_none

log = logging.getLogger("finer1_lite")

FORMATS = ("parquet", "arrow", "imagefolder")
RECORD = "fetch.json"  # empty until the pass is finished
NO_LABEL = (None, "")
TOO_BROKEN = 1000  # pictures; more is no data set
NETWORK = (OSError, httpx.HTTPError)  # what `datasets` raises when a hub fails in the middle


@dataclass(frozen=True)
class Class:
    """One class to fetch: its folder, the name to show, and whether it is seen if released."""

    folder: str
    name: str
    seen: bool | None = None


@dataclass(frozen=True)
class Stream:
    """One split in one role (train, test, or all where nothing divides them)."""

    role: str
    split: str
    rows: datasets.Dataset | datasets.IterableDataset = field(repr=False)
    columns: list[str]  # of picture and label
    names: list[str] = field(repr=False)  # of the classes, by number where rows hold numbers
    total: int | None = None  # rows, where the source tells

    @property
    def numbered(self) -> bool:
        """Whether rows hold a class by its number, and not by its name."""
        return isinstance(self.rows.features[self.columns[1]], datasets.ClassLabel)

    def __iter__(self) -> Iterator[tuple[bytes, str | None]]:
        """Yield (bytes of the picture, or b""; label, or None). OSError where hub or disk fails."""
        with _network_failing(self.split):
            for row in self.rows:
                picture, label = (row[column] for column in self.columns)
                if self.numbered and label is not None:
                    label = self.names[label] if 0 <= label < len(self.names) else None
                yield picture_bytes(picture), None if label in NO_LABEL else str(label)


def fetch(wanted: Wanted, out: Path, allow_missing: bool = False) -> dict:
    """Fill the folder `out`; returns what `out`/fetch.json records. Repeated, it reads nothing.

    `allow_missing` leaves out classes that a released list or the source lacks. DataError
    lists every problem; `out` is then not there.
    """
    settings = json.loads(json.dumps(asdict(wanted)))
    if out.exists():
        return _finished(out, settings)
    counts = {"train": wanted.train, "test": wanted.test, "classes": wanted.classes}
    rules = {f"--{name} {n}: 0 (all) or more": n >= 0 for name, n in counts.items()}
    require(rules | {"--classes 1: 2 or more, or 0 for all": wanted.classes != 1})
    streams = open_streams(wanted)
    classes, mismatched = choose_classes(wanted, streams[0].names, allow_missing)
    partial = _emptied(out.with_name(out.name + ".partial"))
    draw = Draw(partial, wanted.limits, wanted.seed)
    remarks = {"broken": [], "unlabelled": 0, "copies_of_test_pictures": []}
    rows = {stream.split: _read(stream, classes, draw, remarks) for stream in streams}
    files, two_labels = _kept_files(partial)
    short = _short(classes.values(), files, undivided=streams[0].role == "all")
    kept = [one for one in classes.values() if one.folder not in short]
    problems = [
        f"the split {split} is empty; choose others with --train-splits and --test-splits"
        for split, count in rows.items()
        if not count
    ]
    if not (allow_missing and len(kept) > 1):
        mend = "leave such classes out with --allow-missing"
        problems += [f"{folder}: {lack}; {mend}" for folder, lack in short.items()]
    require_none(problems, f"{wanted.place}: not enough; to mend: {len(problems)}")
    files = files[~files["folder"].isin(short)]
    _write_tables(partial, kept, short, files)
    kinds = {True: "seen", False: "unseen", None: "seen or unseen by the seed"}
    record = {"settings": settings, "rows_read": rows}
    record["classes"] = Counter(kinds[one.seen] for one in kept)
    record["pictures"] = Counter(sorted(files["split"]))
    record["left_out"] = [f"{folder}: {lack}" for folder, lack in short.items()] + mismatched
    record |= remarks | {"two_labels": two_labels}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (partial / RECORD).write_text(text, encoding="utf-8")
    os.rename(partial, out)
    return json.loads(text)


def _finished(out: Path, settings: dict) -> dict:
    """The record of a fetched folder; DataError if it is anything else."""
    try:
        record = json.loads((out / RECORD).read_bytes())
    except (OSError, ValueError):
        record = {}
    if record.get("settings") != settings:
        mend = "give another --out, or delete it to fetch anew"
        problem = f"{out} is there and was not made by this command; {mend}"
        raise DataError([problem], "nothing fetched:")
    log.info("%s is complete already", out)
    return record


def _emptied(partial: Path) -> Path:
    """The folder to fill, without what an unfinished pass left; DataError if it is not ours."""
    partial.mkdir(parents=True, exist_ok=True)
    entries = [path for path in partial.iterdir() if path.name != RECORD]
    if entries and not (partial / RECORD).is_file():
        problem = f"{partial} is in the way and not of this command; delete it"
        raise DataError([problem], "nothing fetched:")
    (partial / RECORD).touch()
    if entries:
        log.info("%s: an unfinished pass, which is made again", partial)
    for path in entries:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return partial


@contextmanager
def _network_failing(split: str) -> Iterator[None]:
    """OSError, with what to do, where hub or disk fails while rows are read."""
    try:
        yield
    except NETWORK as error:
        raise OSError(f"{split}: {error}; give the same command again") from error


# Sources ---------------------------------------------------------------------------------


def picture_bytes(cell: dict | None) -> bytes:
    """The bytes as they came, from the row itself or from the file that it names."""
    if cell is None:
        return b""
    if cell["bytes"] is not None:
        return cell["bytes"]
    with fsspec.open(cell["path"], "rb") as file:
        return file.read()


def open_streams(wanted: Wanted) -> list[Stream]:
    """The streams to read, those of the test first. DataError lists every problem."""
    splits, totals = _open(wanted)
    roles = _roles(wanted, list(splits))
    streams, problems = [], []
    for role, split in roles:
        rows = splits[split]
        columns = _columns(wanted, rows.features or {}, split, problems)
        if len(columns) == 2:
            kind = rows.features[columns[1]]
            if isinstance(kind, datasets.ClassLabel):
                names = kind.names
            else:
                log.info("%s: labels in words, which are gathered first", columns[1])
                with _network_failing(split):
                    words = {row[columns[1]] for row in rows.select_columns(columns[1:])}
                names = sorted(str(word) for word in words - {*NO_LABEL})
            rows = rows.select_columns(columns)
            rows = rows.cast_column(columns[0], datasets.Image(decode=False))
            streams.append(Stream(role, split, rows, columns, names, totals.get(split)))
    if not roles:
        problems.append(
            f"splits: there are {', '.join(splits)}; say with --train-splits and "
            "--test-splits which to draw from, none in both"
        )
    if not any(stream.numbered for stream in streams):
        names = sorted({name for stream in streams for name in stream.names})
        streams = [replace(stream, names=names) for stream in streams]
    if any(stream.names != streams[0].names for stream in streams):
        problems.append(
            f"the splits {', '.join(stream.split for stream in streams)} number their classes "
            "differently; give splits of one numbering"
        )
    require_none(problems, f"{wanted.place} cannot be read; to mend: {len(problems)}")
    return streams


def _open(wanted: Wanted) -> tuple[dict[str, datasets.IterableDataset], dict[str, int]]:
    """(split -> rows as a stream, split -> number of rows where known)."""
    folder = Path(wanted.place).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            held = datasets.load_from_disk(str(folder))
            held = held if isinstance(held, datasets.DatasetDict) else {"train": held}
            return held, {split: len(rows) for split, rows in held.items()}
        place = str(folder) if folder.exists() else wanted.place
        builder = datasets.load_dataset_builder(
            place, wanted.config or None, revision=wanted.revision or None
        )
        if builder.info.builder_name not in FORMATS:
            raise ValueError(f"its format is {builder.info.builder_name}, not of {FORMATS}")
        streams = builder.as_streaming_dataset()
        if folder.is_dir() and builder.info.builder_name == "imagefolder":
            _say_unread(folder, builder.EXTENSIONS)
    except (*NETWORK, ValueError, RuntimeError) as error:
        raise DataError([_why_not(wanted.place, error)], "no data set:") from error
    known = builder.info.splits or {}
    return streams, {split: one.num_examples for split, one in known.items() if one.num_examples}


def _say_unread(folder: Path, known: Iterable[str]) -> None:
    """Log the pictures that `datasets` leaves out without a word, as it goes by their endings."""
    pictures = layouts.Walk(folder, []).pictures
    unread = [path for path in pictures if path.suffix.lower() not in known]
    if unread:
        mend = f"rename them, or use the folder itself: --photos {folder}"
        words = "%s: %d pictures have endings that `datasets` does not read (first: %s); %s"
        log.warning(words, folder, len(unread), unread[0].name, mend)


def _why_not(place: str, error: Exception) -> str:
    """One sentence with the mend for what stopped the opening of a data set."""
    reason = " ".join(str(error).split())[:300]
    mend = "give parquet files, a folder of save_to_disk, or FOLDER/<split>/<class>/*.jpg"
    if "scripts are no longer supported" in reason:
        mend = (
            "it is a program, which is not run; --revision refs/convert/parquet reads the "
            "hub's own conversion, or give another copy with --from"
        )
    elif isinstance(error, datasets.exceptions.DatasetNotFoundError):
        mend = "check the name; for one behind a licence accept it on the hub and `hf auth login`"
    elif isinstance(error, (ConnectionError, httpx.HTTPError)):
        mend = (
            "no hub is reached: connect, unset HF_HUB_OFFLINE, or give a local copy with "
            "--from FOLDER (parquet files, save_to_disk, or FOLDER/<class>/*.jpg)"
        )
    return f"{place}: {reason}: {mend}"


def _roles(wanted: Wanted, splits: list[str]) -> list[tuple[str, str]]:
    """((role, split), ...) with the test first; none if it is not clear which to draw from."""
    train, test = list(wanted.train_splits), list(wanted.test_splits)
    if not (train or test):
        named = layouts.roles(splits)
        train, test = ([s for s, role in named.items() if role == r] for r in ("train", "test"))
        if not named and len(splits) == 1:
            return [("all", splits[0])]
    if not (train and test) or set(train) & set(test) or {*train, *test} - set(splits):
        return []
    return [("test", split) for split in test] + [("train", split) for split in train]


def _columns(
    wanted: Wanted, features: Mapping[str, object], split: str, problems: list[str]
) -> list[str]:
    """The columns of picture and label; a problem for each that is not there."""
    present = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
    spellings = wanted.hubset.label if wanted.hubset else ()
    texts = ["string", "large_string", *["int32", "int64"] * bool(wanted.label_column)]
    words = {name for name, one in features.items() if getattr(one, "dtype", "") in texts}
    words &= {wanted.label_column} if wanted.label_column else set(labels.LABELS)
    columns = []
    for what, kind, given, usual, option in (
        ("pictures", datasets.Image, wanted.image_column, (), "--image-column"),
        ("class labels", datasets.ClassLabel, wanted.label_column, spellings, "--label-column"),
    ):
        fit = [n for n, one in features.items() if isinstance(one, kind) and given in ("", n)]
        if kind is datasets.ClassLabel and not fit:
            fit, usual = [n for n in features if n in words], (*usual, *labels.LABELS)
        fit = [name for name in usual if name in fit][:1] or fit
        if len(fit) == 1:
            columns += fit
            continue
        called = f" called {given!r}" if given else ""
        problems.append(
            f"{split}: {len(fit) or 'no'} columns of {what}{called} among {present or 'none'}; "
            f"choose one with {option} (type: {kind.__name__}{', text, numbers' * bool(columns)})"
        )
        if set(features) == {"image"} and Path(wanted.place).is_dir():
            mend = f"use the folder itself with another table: --photos {wanted.place} --table FILE"
            problems[-1] += f"; beside pictures, metadata.csv alone is read: {mend}"
    return columns


# Classes ---------------------------------------------------------------------------------


def choose_classes(
    wanted: Wanted, labels: Sequence[str], allow_missing: bool = False
) -> tuple[dict[str, Class], list[str]]:
    """(label -> its Class to fetch; what was left out). DataError lists all that do not match."""
    hubset = wanted.hubset
    names = layouts.shown(labels)
    seen, problems, left_out = {}, [], []
    if hubset:
        names, strange, lacking = hubsets.match(hubset, labels)
        seen = hubsets.released_classes(hubset.released)
        problems += [f"the label {label!r} is no released class" for label in strange]
        problems += [f"the released class {name} has no label, or several" for name in lacking]
    if hubset and allow_missing:
        left_out, problems = problems, []
        counts = Counter(names.values())
        names = {label: name for label, name in names.items() if counts[name] == 1}
    names = _draw_classes(wanted, names, seen)
    classes = {}
    for label, name in names.items():  # a folder of any file system: "F-16A/B" -> "F-16A-B"
        folder = re.sub(r'[\x00-\x1f<>:"/\\|?*]+', "-", name).strip(" .")
        classes[label] = Class(folder, name, seen.get(name))
    same = defaultdict(list)
    for label, one in classes.items():
        same[one.folder.casefold()].append(repr(label))
    problems += [
        f"the labels {', '.join(found)} need folders of one name; rename them in the source"
        for folder, found in same.items()
        if len(found) > 1 or not folder
    ]
    if len(classes) < 2:
        problems.append(f"{len(classes)} classes can be fetched; 2 or more are needed")
    mend = "try another copy with --from, or leave out what does not match: --allow-missing"
    require_none(problems, f"{wanted.place}: {len(problems)} problems of classes; {mend}")
    return classes, left_out


def _draw_classes(wanted: Wanted, names: dict[str, str], seen: dict[str, bool]) -> dict[str, str]:
    """The names of `wanted.classes` classes, seen and unseen ones in their proportion."""
    halves = defaultdict(list)
    for label in sorted(names, key=lambda label: rank(wanted.seed, names[label])):
        halves[seen.get(names[label])].append(label)
    placed = {}
    for half in halves.values():
        placed |= {label: ((i + 0.5) / len(half), label) for i, label in enumerate(half)}
    chosen = sorted(placed, key=placed.get)[: wanted.classes or len(placed)]
    return {label: name for label, name in names.items() if label in chosen}


# The pass --------------------------------------------------------------------------------


def rank(seed: int, text: str) -> str:
    """The order of a draw: the smallest are kept."""
    return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()


@dataclass
class Draw:
    """The pictures kept so far, as `folder`/<class>/<role>-<digest>.<ending>.

    What is kept is the set of the smallest ranks among all pictures offered, whatever their
    order; offering one again changes nothing. `limits` is {role: pictures a class, 0: all}.
    """

    folder: Path
    limits: Mapping[str, int]
    seed: int

    def __post_init__(self) -> None:
        self._kept: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)  # by rank

    def offer(self, role: str, own: str, data: bytes) -> str:
        """Keep the picture of class `own` if its rank is among the smallest.

        A training picture that is kept for the test already is not kept again, and its classes
        there are returned; else "". PictureError if the bytes are no usable picture.
        """
        digest = hashlib.sha256(data).hexdigest()[:32]
        kept, place = self._kept[role, own], rank(self.seed, digest)
        if role == "train":
            test = {name: ranks for (of, name), ranks in self._kept.items() if of == "test"}
            if copied := sorted(name for name, ranks in test.items() if place in ranks):
                return ", ".join(copied)
        worst = max(kept) if 0 < self.limits[role] <= len(kept) else ""
        if place in kept or (worst and place > worst):
            return ""
        checked = images.check_bytes(data)
        if checked.problem:
            raise images.PictureError(checked.problem)
        kept[place] = self.folder / own / f"{role}-{digest}{checked.ending}"
        kept[place].parent.mkdir(parents=True, exist_ok=True)
        kept[place].write_bytes(data)
        if worst:
            kept.pop(worst).unlink()
        return ""


def _read(stream: Stream, classes: dict[str, Class], draw: Draw, remarks: dict) -> int:
    """Offer the rows of one split that are of a class to fetch; returns how many rows it has."""
    row = 0
    with progress_bar(stream.total, f"{stream.role}: {stream.split}") as bar:
        for row, (data, label) in enumerate(stream, 1):
            bar.update()
            one = classes.get(label)
            remarks["unlabelled"] += label is None
            if one is None or (one.seen is False and stream.role == "train"):
                continue
            where = f"{stream.split}, row {row}"
            try:
                copied = draw.offer(stream.role, one.folder, data)
            except images.PictureError as error:
                remarks["broken"].append(f"{where}: the picture {error}")
                if len(remarks["broken"]) >= TOO_BROKEN:
                    raise DataError(remarks["broken"], "these pictures cannot be used:") from None
                continue
            if copied:
                remark = f"{where}: the same picture is in the test, as {copied}"
                remarks["copies_of_test_pictures"].append(remark)
    return row


# The folder ------------------------------------------------------------------------------


def _kept_files(partial: Path) -> tuple[pd.DataFrame, list[list[str]]]:
    """The pictures (file, folder, split, digest); files of two labels, which are deleted."""
    rows = [
        (path.relative_to(partial).as_posix(), path.parent.name, *path.stem.split("-"))
        for path in sorted(partial.glob("*/*-*"))
    ]
    files = pd.DataFrame(rows, columns=["file", "folder", "split", "digest"])
    double = files.duplicated("digest", keep=False)
    for name in files["file"][double]:
        (partial / name).unlink()
    groups = files[double].groupby("digest", sort=False)["file"]
    return files[~double], [list(names) for _, names in groups]


def _short(classes: Iterable[Class], files: pd.DataFrame, undivided: bool) -> dict[str, str]:
    """Folder -> what it lacks to be of use, in words, of each class with too few pictures."""
    have = Counter(zip(files["folder"], files["split"], strict=True))
    short = {}
    for one in classes:
        need = {"all": 2} if undivided else {"train": 1, "test": 1}
        if one.seen is False:
            need = {"all" if undivided else "test": 1}
        counts = {role: have[one.folder, role] for role in need}
        lack = [f"{n} pictures ({r}), {need[r]} needed" for r, n in counts.items() if n < need[r]]
        if lack:
            short[one.folder] = ", ".join(lack)
    return short


def _write_tables(
    partial: Path, kept: list[Class], short: Iterable[str], files: pd.DataFrame
) -> None:
    """Write classes.csv, with the released split, and index.csv where the hub has splits."""
    for folder in short:
        shutil.rmtree(partial / folder, ignore_errors=True)
    written = {None: "", True: "yes", False: "no"}
    rows = sorted((one.folder, one.name, written[one.seen]) for one in kept)
    tables.write(partial / folders.CLASSES, ("class", "name", "seen"), rows)
    if "all" not in set(files["split"]):
        rows = files[["file", "split"]].to_numpy()
        tables.write(partial / folders.INDEX, ("file", "split"), rows)
