"""A hub's data set, or a local one, as streams of (picture bytes, class label).

Everything goes through `datasets`, shard by shard: nothing is unpacked, and no picture is
decoded here. Only formats that hold data and no code are opened (parquet, Arrow, folders of
pictures); loading scripts and pickles are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import fsspec
import httpx

from finer1_lite.data.hubsets import HUBSETS, HubSet
from finer1_lite.runtime.files import DataError

FORMATS = ("parquet", "arrow", "imagefolder")
TRAIN, VALIDATION, TEST = ("train", "training"), ("validation", "valid", "val", "dev"), ("test",)
# what `datasets` raises when a hub fails in the middle
NETWORK = (OSError, httpx.HTTPError)


@dataclass(frozen=True)
class Source:
    """What to read: a key of HUBSETS, a hub name or a local folder, and how it is laid out.

    `origin` reads a key's pictures from another hub name or folder. Empty names of columns
    and splits mean: find out.
    """

    name: str
    origin: str = ""
    config: str = ""
    revision: str = ""
    image_column: str = ""
    label_column: str = ""
    train_splits: tuple[str, ...] = ()
    test_splits: tuple[str, ...] = ()

    @property
    def hubset(self) -> HubSet | None:
        return HUBSETS.get(self.name)

    @property
    def place(self) -> str:
        """The hub name or folder that is read."""
        return self.origin or (self.hubset.repository if self.hubset else self.name)


@dataclass(frozen=True)
class Stream:
    """One split in one role (train, test, or all where nothing divides them)."""

    role: str
    split: str
    rows: datasets.IterableDataset = field(repr=False)
    image: str
    label: str
    names: tuple[str, ...] = field(repr=False)  # of the classes, by number
    total: int | None = None  # rows, where the source tells

    def __iter__(self) -> Iterator[tuple[bytes, str | None]]:
        """(bytes of the picture file, label); b"" without a picture, None without a label.

        OSError where the hub or the disk fails in the middle.
        """
        try:
            for row in self.rows:
                number = row[self.label]
                known = number is not None and 0 <= number < len(self.names)
                yield picture_bytes(row[self.image]), self.names[number] if known else None
        except NETWORK as error:
            raise OSError(f"{self.split}: {error}; the same command goes on from here") from error


def picture_bytes(cell: dict | None) -> bytes:
    """The bytes as they came, from the row itself or from the file that it names."""
    if cell is None:
        return b""
    if cell["bytes"] is not None:
        return cell["bytes"]
    with fsspec.open(cell["path"], "rb") as file:
        return file.read()


def open_streams(source: Source) -> list[Stream]:
    """The streams to read, those of the test first. DataError lists every problem."""
    splits, totals = _open(source)
    roles, problems = _roles(source, list(splits))
    streams = []
    for role, split in roles:
        rows = splits[split]
        columns = _columns(source, rows.features, split, problems)
        if columns:
            image, label = columns
            names = tuple(rows.features[label].names)
            rows = rows.select_columns([image, label])
            rows = rows.cast_column(image, datasets.Image(decode=False))
            streams.append(Stream(role, split, rows, image, label, names, totals.get(split)))
    if len({stream.names for stream in streams}) > 1:
        problems.append(
            f"the splits {', '.join(s.split for s in streams)} number their classes "
            "differently; give splits of one numbering"
        )
    if problems:
        raise DataError(problems, f"{source.place} cannot be read; to mend: {len(problems)}")
    return streams


def _open(source: Source) -> tuple[dict[str, datasets.IterableDataset], dict[str, int]]:
    """(split -> rows as a stream, split -> number of rows where known)."""
    place, folder = source.place, Path(source.place).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            held = datasets.load_from_disk(str(folder))
            held = held if isinstance(held, datasets.DatasetDict) else {"train": held}
            return (
                {name: rows.to_iterable_dataset() for name, rows in held.items()},
                {name: len(rows) for name, rows in held.items()},
            )
        builder = datasets.load_dataset_builder(
            str(folder) if folder.exists() else place,
            source.config or None,
            revision=source.revision or None,
        )
        if builder.info.builder_name not in FORMATS:
            raise ValueError(f"its format is {builder.info.builder_name}, not of {FORMATS}")
        splits = dict(builder.as_streaming_dataset())
    except (*NETWORK, ValueError, RuntimeError) as error:
        raise DataError([_why_not(place, error)], "no data set:") from error
    known = builder.info.splits or {}
    return splits, {name: one.num_examples for name, one in known.items() if one.num_examples}


def _why_not(place: str, error: Exception) -> str:
    """One sentence with the mend for what stopped the opening of a data set."""
    said = " ".join(str(error).split())[:300]
    if "scripts are no longer supported" in said:
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
    else:
        mend = "give parquet files, a folder of save_to_disk, or FOLDER/<split>/<class>/*.jpg"
    return f"{place}: {said}: {mend}"


def _roles(source: Source, splits: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """((role, split), ...) with the test first, and problems."""
    train, test = source.train_splits, source.test_splits
    hubset = source.hubset
    if not (train or test) and hubset and {*hubset.train, *hubset.test} <= set(splits):
        train, test = hubset.train, hubset.test
    if not (train or test):
        given = {
            kind: [s for s in splits if s.lower() in kind] for kind in (TRAIN, VALIDATION, TEST)
        }
        train, test = given[TRAIN], given[TEST]
        if test:
            train = [*train, *given[VALIDATION]]
        elif train:
            test = given[VALIDATION]
        if not (train and test) and len(splits) == 1:
            return [("all", splits[0])], []
    missing = [name for name in (*train, *test) if name not in splits]
    if missing or not (train and test) or set(train) & set(test):
        return [], [
            f"splits: there are {', '.join(splits)}; say with --train-splits and "
            "--test-splits which to draw from, none in both"
        ]
    return [("test", s) for s in test] + [("train", s) for s in train], []


def _columns(
    source: Source, features: datasets.Features | None, split: str, problems: list[str]
) -> tuple[str, str] | None:
    """The columns of picture and label; None, and a problem for each that is not there."""
    features = features or {}
    shown = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
    spellings = source.hubset.label if source.hubset else ()
    found = []
    for what, kind, wanted, usual, option in (
        ("pictures", datasets.Image, source.image_column, (), "--image-column"),
        ("class labels", datasets.ClassLabel, source.label_column, spellings, "--label-column"),
    ):
        fit = [name for name, one in features.items() if isinstance(one, kind)]
        fit = [name for name in usual if name in fit][:1] or fit
        if wanted:
            fit = [name for name in fit if name == wanted]
        if len(fit) == 1:
            found.append(fit[0])
        else:
            problems.append(
                f"{split}: {len(fit) or 'no'} columns of {what}"
                f"{f' called {wanted!r}' if wanted else ''} among {shown or 'none'}; "
                f"choose one with {option} (its type: {kind.__name__})"
            )
    return tuple(found) if len(found) == 2 else None
