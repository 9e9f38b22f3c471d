"""A few pictures of each class of a large data set -> an ordinary folder of photographs.

One pass over the shards, in bounded memory. Of every class those `k` pictures are kept
whose bytes have the smallest hash with the seed: a uniform draw that depends on the
pictures and the seed alone, not on their order or on how they are cut into shards. The
pictures kept so far lie in OUT.partial, so a killed pass goes on from its last row; reading
a row twice changes nothing. OUT appears in one step, when it is whole.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import logging
import os
import re
import shutil
import time
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from finer1_lite.data import draw, folders, hubsets, images
from finer1_lite.data.hubstreams import Source, Stream, open_streams
from finer1_lite.runtime.files import DataError, write_atomically

log = logging.getLogger("finer1_lite")

RECORD = "fetch.json"
STATE = ".state.json"
SAVE_SECONDS = 20.0  # between two notes of the position
SAMPLE = 64  # rows that tell the usual size of a picture
ROLES = ("train", "test", "all")
TOO_BROKEN = 1000  # pictures; more is no data set


@dataclass(frozen=True)
class Wanted:
    """What to fetch: pictures a class for training and for the test (0: all), of how many
    classes (0: all). Unseen classes of a released list need no training pictures."""

    source: Source
    train: int = 16
    test: int = 0
    classes: int = 0
    seed: int = 0

    def limit(self, role: str) -> int:
        """Pictures a class to keep in a role; 0 is all."""
        if role == "all":
            return self.train + self.test if self.train and self.test else 0
        return self.train if role == "train" else self.test


@dataclass(frozen=True)
class Class:
    """One class to fetch: its folder, the name to show, and whether it is seen if released."""

    folder: str
    name: str
    seen: bool | None = None


def fetch(wanted: Wanted, out: Path, allow_missing: bool = False) -> dict:
    """Fill the folder `out`; returns what `out`/fetch.json records. Repeated, it reads nothing.

    `allow_missing` leaves out classes that a released list or the source lacks. DataError
    lists every problem; `out` is then not there, and OUT.partial keeps what was read.
    """
    settings = json.loads(json.dumps(asdict(wanted)))
    if out.exists():
        return _finished(out, settings)
    _check(wanted)
    partial = out.with_name(out.name + ".partial")
    state = _resume(partial, settings)
    streams = open_streams(wanted.source)
    classes, left_out = choose_classes(wanted, streams[0].names, allow_missing)
    if not (partial / STATE).exists():
        _tell_need(wanted, streams, classes, out)
        _save(partial, state)
    reading = _Pass(wanted, partial, classes, state)
    for stream in streams[state["stage"] :]:
        reading.read(stream)
    record = _finish(wanted, streams, classes, state, partial, allow_missing)
    record["left_out"] += left_out
    write_atomically(partial / RECORD, json.dumps(record, indent=1, ensure_ascii=False).encode())
    os.rename(partial, out)
    (out / STATE).unlink()
    return record


def _finished(out: Path, settings: dict) -> dict:
    """The record of a fetched folder; DataError if it is anything else."""
    try:
        record = json.loads((out / RECORD).read_bytes())
    except (OSError, ValueError):
        record = {}
    if record.get("settings") != settings:
        raise DataError(
            [
                f"{out} is there and was not made by this command; give another --out, "
                "or delete it to fetch anew"
            ],
            "nothing fetched:",
        )
    log.info("%s is complete already", out)
    return record


def _resume(partial: Path, settings: dict) -> dict:
    """The state of a pass that was cut off, or that of a new one."""
    if (partial / STATE).is_file():
        state = json.loads((partial / STATE).read_bytes())
        if state["settings"] != settings:
            raise DataError(
                [
                    f"{partial} was begun with other settings; use those, give another "
                    "--out, or delete it"
                ],
                "nothing fetched:",
            )
        log.info("%s: goes on after %d rows", partial, sum(state["rows"].values()))
        return state
    if partial.exists() and any(partial.iterdir()):
        raise DataError(
            [f"{partial} is in the way and not of this command; delete it"], "nothing fetched:"
        )
    return {
        "settings": settings,
        "stage": 0,
        "position": None,
        "rows": {},
        "broken": [],
        "copies": [],
        "unlabelled": 0,
    }


def _save(partial: Path, state: dict) -> None:
    write_atomically(partial / STATE, json.dumps(state).encode())


def _check(wanted: Wanted) -> None:
    counts = {"train": wanted.train, "test": wanted.test, "classes": wanted.classes}
    problems = [f"--{name} {n}: 0 (all) or more" for name, n in counts.items() if n < 0]
    if wanted.classes == 1:
        problems.append("--classes 1: 2 or more, or 0 for all")
    if problems:
        raise DataError(problems, "settings that make no sense:")


# Classes ---------------------------------------------------------------------------------


def choose_classes(
    wanted: Wanted, labels: tuple[str, ...], allow_missing: bool = False
) -> tuple[dict[str, Class], list[str]]:
    """(label -> its Class, for those to fetch; sentences on what was left out)."""
    hubset, problems, left_out = wanted.source.hubset, [], []
    names = {label: hubsets.display(label) for label in labels}
    seen: dict[str, bool] = {}
    if hubset:
        names, strange, lacking = hubsets.match(hubset, labels)
        seen = hubsets.released_classes(hubset.released)
        problems += [f"the label {label!r} is no released class" for label in strange]
        problems += [f"the released class {name} has no label, or several" for name in lacking]
        if allow_missing:
            left_out, problems = problems, []
            twice = {name for name, n in Counter(names.values()).items() if n > 1}
            names = {label: name for label, name in names.items() if name not in twice}
    chosen = _draw_classes(wanted, names, seen)
    classes = {
        label: Class(folder_name(names[label]), names[label], seen.get(names[label]))
        for label in labels
        if label in chosen
    }
    for own, n in Counter(one.folder.casefold() for one in classes.values()).items():
        same = [label for label, one in classes.items() if one.folder.casefold() == own]
        if n > 1 or not own:
            problems.append(
                f"the labels {', '.join(map(repr, same))} need folders of one name; "
                "rename them in the source"
            )
    if len(classes) < 2:
        problems.append(f"{len(classes)} classes can be fetched; 2 or more are needed")
    if problems:
        mend = "try another copy with --from, or leave out what does not match: --allow-missing"
        raise DataError(
            problems, f"{wanted.source.place}: {len(problems)} problems of classes; {mend}"
        )
    return classes, left_out


def _draw_classes(wanted: Wanted, names: dict[str, str], seen: dict[str, bool]) -> set[str]:
    """The labels of `wanted.classes` classes, seen and unseen ones in their proportion."""
    halves = defaultdict(list)
    for label in sorted(names, key=lambda label: draw.rank(wanted.seed, names[label])):
        halves[seen.get(names[label])].append(label)
    spread = [
        ((i + 0.5) / len(half), label) for half in halves.values() for i, label in enumerate(half)
    ]
    return {label for _, label in sorted(spread)[: wanted.classes or len(spread)]}


def folder_name(name: str) -> str:
    """A name as a folder of any file system can be called: "F-16A/B" -> "F-16A-B"."""
    return re.sub(r'[\x00-\x1f<>:"/\\|?*]+', "-", name).strip(" .")


# The pass --------------------------------------------------------------------------------


class _Pass:
    """The reading of all streams; `state` is what lies in STATE, apart from a new position."""

    def __init__(self, wanted: Wanted, partial: Path, classes: dict[str, Class], state: dict):
        self.partial, self.classes, self.state = partial, classes, state
        limits = {role: wanted.limit(role) for role in ROLES}
        self.drawn = draw.Draw(partial, limits, wanted.seed)

    def read(self, stream: Stream) -> None:
        """Read one split from where the state says to its end."""
        from finer1_lite.runtime.console import progress_bar

        state, split, rows = self.state, stream.split, stream.rows
        if state["position"]:
            rows.load_state_dict(state["position"])
        row, saved = state["rows"].get(split, 0), time.monotonic()
        with progress_bar(stream.total, f"{stream.role}: {split}") as bar:
            bar.update(row)
            for data, label in stream:
                row += 1
                broken = self.take(f"{split}, row {row}", stream.role, data, label)
                # a broken picture is met once only: what is told of it must not get lost
                if broken or time.monotonic() - saved >= SAVE_SECONDS:
                    state["rows"][split] = row
                    _save(self.partial, state | {"position": rows.state_dict()})
                    saved = time.monotonic()
                bar.update()
        state["rows"][split] = row
        state |= {"stage": state["stage"] + 1, "position": None}
        _save(self.partial, state)

    def take(self, where: str, role: str, data: bytes, label: str | None) -> bool:
        """Offer one row, if it is of a class to fetch; True if its picture is broken."""
        one, state = self.classes.get(label), self.state
        if label is None:
            state["unlabelled"] += 1
        if one is None or (one.seen is False and role == "train"):
            return False
        try:
            copy = self.drawn.offer(role, one.folder, data)
        except images.PictureError as error:
            state["broken"].append(f"{where}: the picture {error}")
            if len(state["broken"]) >= TOO_BROKEN:
                raise DataError(state["broken"], "these pictures cannot be used:") from None
            return True
        if copy:
            state["copies"].append(f"{where}: the same picture is in the test, as {copy}")
        return False


def _tell_need(wanted: Wanted, streams: list[Stream], classes: dict[str, Class], out: Path) -> None:
    """Say what will lie on the disk; DataError if the disk is too small for it."""
    sizes = [len(data) for data, _ in itertools.islice(streams[0], SAMPLE)]
    mean, pieces = sum(sizes) / max(len(sizes), 1), []
    for role in dict.fromkeys(stream.role for stream in streams):
        totals = [stream.total for stream in streams if stream.role == role]
        most = wanted.limit(role) * len(classes) or None
        known = None if None in totals else sum(totals)
        pieces.append(min((n for n in (most, known) if n is not None), default=None))
    if None in pieces:
        log.info("disk: %.0f kB a picture; the source does not tell how many it has", mean / 1e3)
        return
    need = int(mean * sum(pieces))
    free = shutil.disk_usage(next(p for p in out.resolve().parents if p.exists())).free
    log.info(
        "disk: up to %d pictures, about %.1f MB of %.0f MB free",
        sum(pieces),
        need / 1e6,
        free / 1e6,
    )
    if need > free:
        raise DataError(
            [
                f"{out}: about {need / 1e6:.0f} MB are needed and {free / 1e6:.0f} free; "
                "lower --train, --test or --classes"
            ],
            "nothing fetched:",
        )


# The folder ------------------------------------------------------------------------------


def _finish(
    wanted: Wanted,
    streams: list[Stream],
    classes: dict[str, Class],
    state: dict,
    partial: Path,
    allow_missing: bool,
) -> dict:
    """Check what was drawn, write the tables, and return the record."""
    if "dropped" not in state:  # decided once: a kill between two deletions loses nothing
        state["dropped"] = draw.two_labels(partial)
        _save(partial, state)
    for name in itertools.chain(*state["dropped"].values()):
        (partial / name).unlink(missing_ok=True)
    problems = [
        f"the split {split} is empty; choose others with --train-splits and --test-splits"
        for split, n in state["rows"].items()
        if not n
    ]
    counts = {
        one.folder: Counter(
            path.name.partition("-")[0] for path in (partial / one.folder).glob("*-*")
        )
        for one in classes.values()
    }
    short = {one.folder: said for one in classes.values() if (said := _lack(one, counts, streams))}
    left_out = [f"{folder}: {said}" for folder, said in short.items()]
    kept = [one for one in classes.values() if one.folder not in short]
    if not allow_missing or len(kept) < 2:
        problems += [f"{said}; leave such classes out with --allow-missing" for said in left_out]
    if problems:
        raise DataError(problems, f"{wanted.source.place}: not enough; to mend: {len(problems)}")
    for folder in short:
        shutil.rmtree(partial / folder, ignore_errors=True)
    _write_tables(partial, kept)
    told = {True: "seen", False: "unseen", None: "seen or unseen by the seed"}
    return {
        "settings": state["settings"],
        "rows_read": state["rows"],
        "classes": dict(Counter(told[one.seen] for one in kept)),
        "pictures": dict(sum((counts[one.folder] for one in kept), Counter())),
        "left_out": left_out,
        "broken": state["broken"],
        "unlabelled": state["unlabelled"],
        "copies_of_test_pictures": state["copies"],
        "two_labels": list(state["dropped"].values()),
    }


def _lack(one: Class, counts: dict[str, Counter], streams: list[Stream]) -> str:
    """What a class lacks to be of use, in words; "" if nothing."""
    have = counts[one.folder]
    if any(stream.role == "all" for stream in streams):
        need = {"all": 1 if one.seen is False else 2}
    else:
        need = {"test": 1} if one.seen is False else {"train": 1, "test": 1}
    told = [
        f"{have[role]} pictures ({role}), {n} needed" for role, n in need.items() if have[role] < n
    ]
    return ", ".join(told)


def _write_tables(partial: Path, classes: list[Class]) -> None:
    """classes.csv for the names and the released split; index.csv where the hub has splits."""
    rows = [("class", "name", "seen")]
    rows += [
        (one.folder, one.name, {None: "", True: "yes", False: "no"}[one.seen])
        for one in sorted(classes, key=lambda one: one.folder)
    ]
    _write_csv(partial / folders.CLASSES, rows)
    files = [path.relative_to(partial).as_posix() for path in sorted(partial.glob("*/*-*"))]
    splits = [(name, name.split("/")[1].partition("-")[0]) for name in files]
    if all(split != "all" for _, split in splits):
        _write_csv(partial / folders.INDEX, [("file", "split"), *splits])


def _write_csv(path: Path, rows: list[tuple]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())
