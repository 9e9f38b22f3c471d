"""Look through a folder of class folders and list what is in it, and all that is wrong.

Plain facts only: which picture goes to training and which class stays unseen is decided in
`species`. Functions append to the list `problems`, so that one look tells every problem; each
sentence names the file or value and the mend.
"""

from __future__ import annotations

import csv
import difflib
import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from finer1_lite.data import images
from finer1_lite.runtime.files import DataError

log = logging.getLogger("finer1_lite")

INDEX = "index.csv"
DESCRIPTIONS = "descriptions.csv"
CLASSES = "classes.csv"
SPLIT_COLUMNS = ("split", "upstream_split")
TEXT_COLUMNS = ("description", "product_description")
SEEN = {"yes": True, "no": False}


@dataclass(frozen=True)
class Reading:
    """How a folder of photographs is read; the defaults are those of one folder a class.

    recursive: pictures in folders inside a class folder belong to the class; table: a table of
    files and labels, as seen from the folder; its columns, "" for the usual names;
    research_grade and names: of an iNaturalist export; skip_broken: go on without pictures that
    cannot be used.
    """

    recursive: bool = False
    table: str = ""
    file_column: str = ""
    label_column: str = ""
    research_grade: bool = False
    names: Literal["scientific", "common"] = "scientific"
    skip_broken: bool = False


PLAIN = Reading()


@dataclass(frozen=True)
class File:
    """A picture: its id (the NFC path inside the root), its path, and its split ("" if none)."""

    id: str
    path: Path
    split: str = ""


@dataclass
class ClassFolder:
    """One class as found on disk; `seen` is None where no table says it."""

    name: str
    folder: str
    files: list[File] = field(default_factory=list)
    group: str = ""
    description: str = ""
    seen: bool | None = None


def read_folder(
    root: Path, *, shots: int, descriptions: Path | None = None
) -> tuple[list[ClassFolder], list[str]]:
    """The classes under `root`, sorted by name, and the problems of everything looked at."""
    problems: list[str] = []
    classes = _scan(root, problems)
    if not classes:
        return classes, problems
    readers = {CLASSES: _read_classes, INDEX: _read_index, DESCRIPTIONS: _read_descriptions}
    # by name in any case: an unnoticed Index.csv would let a split leak
    tables = {path.name.lower(): path for path in root.iterdir() if path.is_file()}
    if descriptions:
        tables[DESCRIPTIONS] = descriptions
    for name, read in readers.items():
        if name in tables:
            try:
                read(tables[name], classes, problems)
            except DataError as error:
                problems += error.problems
    problems += _name_problems(classes)
    _check_pictures(classes, problems)
    for one in classes:
        problems += _too_few(one, 0 if one.seen is False else shots)
    return sorted(classes, key=lambda one: one.name), problems


def unknown(value: str, known: Iterable[str]) -> str:
    """The value, and the known one it may have been meant to be."""
    known = list(known)
    close = difflib.get_close_matches(value, known, 1) or known[:1]
    return f"{value!r} is not known" + (f" (perhaps {close[0]!r})" if close else "")


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _display(folder: str) -> str:
    """'Granny_Smith-Apple' -> 'Granny Smith Apple', in NFC."""
    return " ".join(_nfc(folder).replace("-", " ").replace("_", " ").split())


def _key(name: str) -> str:
    """What two class names have in common if they differ in case, dash or space only."""
    return _nfc(_display(name).replace(" ", "").casefold())


def _scan(root: Path, problems: list[str]) -> list[ClassFolder]:
    """The class folders with their picture files, none of them opened yet."""
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        problems.append(f"{root} {what}; give the folder that holds one folder per class")
        return []
    skipped: Counter[str] = Counter()
    classes = []
    for entry in _visible(root, skipped, problems):
        if entry.is_dir():
            own = ClassFolder(_display(entry.name), entry.name)
            for path in _visible(entry, skipped, problems):
                if path.suffix.lower() in images.ENDINGS and not path.is_dir():
                    own.files.append(File(f"{_nfc(entry.name)}/{_nfc(path.name)}", path))
                else:
                    skipped[_kind(path)] += 1
            classes.append(own)
        elif entry.name.lower() not in (INDEX, DESCRIPTIONS, CLASSES):
            skipped[f"{_kind(entry)} beside the class folders"] += 1
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(skipped.items()))
        log.info("%s: skipped %s", root, kinds)
    if len(classes) < 2:
        need = "2 or more are needed, with each class's pictures directly inside"
        others = f"(skipped: {dict(skipped) or 'nothing'})"
        problems.append(f"{root} holds {len(classes)} class folders; {need} {others}")
    return sorted(classes, key=lambda one: one.name)


def _visible(folder: Path, skipped: Counter[str], problems: list[str]) -> list[Path]:
    """What lies in a folder and is not hidden, in an order that no file system changes."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: (_nfc(path.name), path.name))
    except OSError as error:
        problems.append(f"{folder}: cannot be read ({error.strerror}); mend its permissions")
        return []
    visible = []
    taken = set()
    for path in entries:
        name = _nfc(path.name)
        if name.startswith(".") or name == "__MACOSX":
            skipped["hidden"] += 1
        elif not name.isprintable():  # a line break, or bytes that are not UTF-8
            problems.append(f"{ascii(str(path))}: unprintable name; rename it in UTF-8")
        elif name in taken and not path.is_dir():  # folders: see _name_problems
            problems.append(f"{path}: another file spells this name in Unicode; rename it")
        else:
            visible.append(path)
        taken.add(name)
    return visible


def _kind(path: Path) -> str:
    return "folder" if path.is_dir() else path.suffix.lower() or "file without ending"


def _name_problems(classes: list[ClassFolder]) -> list[str]:
    """Names that a completion cannot hold, and names that are nearly the same."""
    problems = []
    same = defaultdict(list)
    for one in classes:
        for spelling in {_key(one.name), _key(one.folder)}:  # tables may use either
            same[spelling].append(one.folder)
        if not one.name or set(one.name) & set("<>"):
            problems.append(f"{one.folder}: an answer cannot hold this name; rename it")
    mend = "these names differ only in case, dash or space; merge or rename them"
    problems += [f"{', '.join(found)}: {mend}" for found in same.values() if len(found) > 1]
    return problems


def _read_table(
    path: Path, needed: Iterable[tuple[str, ...]], problems: list[str]
) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of a UTF-8 CSV file, columns in lower case; DataError if it cannot be read.

    `needed` lists columns, each as its accepted spellings.
    """
    try:
        # utf-8-sig: Excel starts its UTF-8 files with a byte-order mark
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = [_nfc(name).strip().lower() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError:
        raise DataError([f"{path}: is not UTF-8; save it as 'CSV UTF-8'"]) from None
    except (OSError, csv.Error) as error:
        raise DataError([f"{path}: cannot be read ({error}); save it as CSV again"]) from error
    lacking = ", ".join(" or ".join(names) for names in needed if not set(names) & set(columns))
    if lacking:
        given = f"its first line, split at commas, gives {columns}"
        raise DataError([f"{path}: lacks the column {lacking}; {given}"])
    good = []
    for line, row in rows:
        if None in row or None in row.values():
            what = f"the values do not fit the {len(columns)} columns"
            problems.append(f"{path}, line {line}: {what}; put a text with commas in double quotes")
        else:
            good.append((line, {name: _nfc(text).strip() for name, text in row.items()}))
    return good


def _read_index(path: Path, classes: list[ClassFolder], problems: list[str]) -> None:
    """Give the files their split and the classes their group; every picture needs a row."""
    files = {file.id for one in classes for file in one.files}
    by_file: dict[str, dict[str, str]] = {}
    for line, row in _read_table(path, [("file",)], problems):
        file_id = PurePosixPath(row["file"].replace("\\", "/")).as_posix()
        where = f"{path}, line {line}"
        if file_id not in files:
            problems.append(f"{where}: there is no picture {file_id!r}; remove the row")
        elif file_id in by_file:
            problems.append(f"{where}: {file_id!r} has a row already; remove one")
        if _split_of(row) not in (None, "train", "test"):
            problems.append(f"{where}: the split {_split_of(row)!r} must be train or test")
        by_file.setdefault(file_id, row)
    for one in classes:
        lacking = [file.id for file in one.files if file.id not in by_file]
        if lacking:
            problems.append(f"{path}: has no row for {', '.join(lacking)}; add rows")
        own = [by_file.get(file.id, {}) for file in one.files]
        pairs = zip(one.files, own, strict=True)
        one.files = [replace(file, split=_split_of(row) or "") for file, row in pairs]
        groups = sorted({row.get("coarse", "") for row in own if row})
        if len(groups) > 1:
            problems.append(f"{path}: {one.folder} has the coarse groups {groups}; keep one")
        one.group = groups[0] if groups else ""


def _split_of(row: dict[str, str]) -> str | None:
    """The row's split in lower case; None where the table has no such column."""
    return next((row[name].lower() for name in SPLIT_COLUMNS if name in row), None)


def _rows_by_class(
    path: Path, column: tuple[str, ...], classes: list[ClassFolder], problems: list[str]
) -> list[tuple[ClassFolder, dict[str, str], str]]:
    """(class, row, where it stands) of a table with a row a class.

    A class may go by the name of its folder or by its own.
    """
    by_key = {_key(name): one for one in classes for name in (one.folder, one.name)}
    lines: dict[str, int] = {}
    good = []
    for line, row in _read_table(path, [("class",), column], problems):
        own = by_key.get(_key(row["class"]))
        where = f"{path}, line {line}"
        if own is None:
            named = unknown(row["class"], [one.folder for one in classes])
            problems.append(f"{where}: the class {named}; rename or remove the row")
        elif own.folder in lines:
            first = lines[own.folder]
            problems.append(f"{where}: {row['class']!r} is on line {first} too; keep one")
        else:
            lines[own.folder] = line
            good.append((own, row, where))
    return good


def _read_descriptions(path: Path, classes: list[ClassFolder], problems: list[str]) -> None:
    """Give every class its description; the table must cover the classes and no others."""
    for one, row, _ in _rows_by_class(path, TEXT_COLUMNS, classes, problems):
        text = next(row[column] for column in TEXT_COLUMNS if column in row)
        one.description = " ".join(text.split())
    for one in classes:
        if not one.description:
            problems.append(f"{path}: no description of the class {one.folder!r}; add one")


def _read_classes(path: Path, classes: list[ClassFolder], problems: list[str]) -> None:
    """Give classes the name to show, for folders cannot hold every name, and say which are seen.

    Either column may be absent. One that says `seen` of a class must say it of all.
    """
    for one, row, where in _rows_by_class(path, ("name", "seen"), classes, problems):
        one.name = " ".join(row.get("name", "").split()) or one.name
        seen = row.get("seen", "").lower()
        if seen and seen not in SEEN:
            problems.append(f"{where}: seen is {seen!r}; write yes or no")
        one.seen = SEEN.get(seen)
    silent = [one.folder for one in classes if one.seen is None]
    if 0 < len(silent) < len(classes):
        problems.append(f"{path}: does not say yes or no in `seen` of {', '.join(silent)}; fill in")
    if not silent and not any(one.seen for one in classes):
        problems.append(f"{path}: no class is seen; training needs one or more")


def _check_pictures(classes: list[ClassFolder], problems: list[str]) -> None:
    """Keep the files that decode and are no copies; log each kind of decision once."""
    notes = defaultdict(list)
    same = defaultdict(list)
    for one in classes:
        good = []
        for file in one.files:
            checked = images.check(file.path)
            for note in checked.notes:
                notes[note].append(file.id)
            if checked.problem:
                problems.append(f"{file.id}: {checked.problem}")
            else:
                good.append(file)
                same[checked.digest].append((one.name, file))
        one.files = good
    for note, ids in sorted(notes.items()):
        log.info("%s: %d pictures (first: %s)", note, len(ids), ids[0])
    copies = {file for found in same.values() for file in _copies(found, problems)}
    for one in classes:
        one.files = [file for file in one.files if file not in copies]


def _copies(same: list[tuple[str, File]], problems: list[str]) -> list[File]:
    """Byte-for-byte copies to drop, inside one split of one class; any others are a problem.

    In a class without a split some seed would put one copy in train and one in test.
    """
    first, *copies = (file for _, file in same)
    ids = ", ".join(file.id for file in copies)
    if first.split and len({(name, file.split) for name, file in same}) == 1:
        if copies:
            log.info("%s: kept once; the same picture is in %s", first.id, ids)
        return copies
    if copies:
        what = "the same picture, which could be in train and in test or carry two labels"
        problems.append(f"{first.id}, {ids}: {what}; keep one")
    return []


def _too_few(one: ClassFolder, shots: int) -> list[str]:
    """`shots` and a test picture: a class that may be seen must do as a seen one."""
    have = Counter(file.split for file in one.files)
    if have["train"] or have["test"]:
        need = {"train": shots, "test": 1}
        short = [split for split in need if have[split] < need[split]]
        lacks = [f"{have[s]} usable {s} pictures of the {need[s]} needed;" for s in short]
    elif len(one.files) <= shots:
        need = f"{shots + 1} needed ({shots} shots and a test)"
        lacks = [f"{len(one.files)} usable pictures of the {need};"]
    else:
        lacks = []
    return [f"{one.folder}: {lack} add pictures or remove the class" for lack in lacks]
