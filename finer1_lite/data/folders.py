"""Look through a folder of photographs and list what is in it, and all that is wrong.

Plain facts only: which picture goes to training and which class stays unseen is decided in
`splits`. Functions append to the list `problems`, so that one look tells every problem; each
sentence names the file or value and the mend.
"""

import difflib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from finer1_lite.data import duplicates, images, labels, layouts, marks, tables
from finer1_lite.data.layouts import CLASSES, DESCRIPTIONS, INDEX, PLAIN, ClassFolder, File, Reading
from finer1_lite.data.tables import name_key
from finer1_lite.rewards import normalise
from finer1_lite.runtime.files import DataError

log = logging.getLogger("finer1_lite")

SPLIT_COLUMNS = ("split", "upstream_split")
TEXT_COLUMNS = ("description", "product_description")
ALIASES = ("aliases", "alias", "synonyms")
SEEN = {"yes": True, "no": False}


def read_folder(
    root: Path, *, shots: int, descriptions: Path | None = None, reading: Reading = PLAIN
) -> tuple[list[ClassFolder], list[str]]:
    """The classes under `root`, sorted by name, and the problems of everything looked at."""
    problems: list[str] = []
    classes = _scan(root, reading, problems)
    if not classes:
        return classes, problems
    readers = {CLASSES: _read_classes, INDEX: _read_index, DESCRIPTIONS: _read_descriptions}
    # by name in any case: an unnoticed Index.csv would let a split leak
    found = {path.name.lower(): path for path in root.iterdir() if path.is_file()}
    found.pop(reading.table.lower(), None)
    if descriptions:
        found[DESCRIPTIONS] = descriptions
    for name, read in readers.items():
        if name in found:
            try:
                read(found[name], classes, problems)
            except DataError as error:
                problems += error.problems
    problems += _name_problems(classes)
    _check_pictures(classes, problems, reading.skip_broken)
    for one in classes:
        problems += _too_few(one, 0 if one.seen is False else shots)
    return sorted(classes, key=lambda one: one.name), problems


def write_template(root: Path, reading: Reading = PLAIN) -> Path:
    """Write `root`/descriptions.csv to fill in; its path. DataError if it is there, or no class."""
    path = root / DESCRIPTIONS
    problems: list[str] = [f"{path} is there already"] if path.exists() else []
    classes = [] if problems else _scan(root, reading, problems)
    if not classes:
        raise DataError(problems, "no template was written:")
    tables.write(path, ("class", TEXT_COLUMNS[0]), sorted([one.folder, ""] for one in classes))
    return path


def unknown(value: str, known: Iterable[str]) -> str:
    """The value, and the known one it may have been meant to be."""
    known = list(known)
    close = difflib.get_close_matches(value, known, 1) or known[:1]
    return f"{value!r} is not known" + (f" (perhaps {close[0]!r})" if close else "")


def _scan(root: Path, reading: Reading, problems: list[str]) -> list[ClassFolder]:
    """The classes with their picture files, none of them opened yet."""
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        problems.append(f"{root} {what}; give the folder that holds one folder per class")
        return []
    walk = layouts.Walk(root, problems)
    named = labels.label_tables(root, reading)
    if named:
        classes = labels.from_tables(walk, reading, named)
        if len(classes) < 2 and not problems:
            what = f"{', '.join(map(str, named))}: {len(classes)} classes have pictures"
            problems.append(f"{what}; 2 or more are needed")
    else:
        classes = layouts.from_folders(walk, reading)
        why_not = _no_classes(walk, classes)
        if why_not:
            problems.append(why_not)
            classes = [one for one in classes if one.files]
    walk.say()
    return sorted(classes, key=lambda one: one.name)


def _no_classes(walk: layouts.Walk, classes: Sequence[ClassFolder]) -> str:
    """Why a root gives no two classes: what is there instead, and the way that works; or ""."""
    root, split = walk.root, [one.folder for one in classes if one.folder.lower() in layouts.SPLITS]
    flat = len(split) > 1 and any(one.files for one in classes)  # train/*.jpg, test/*.jpg
    if len(classes) > 1 and any(one.files for one in classes) and not flat:
        return ""
    ways = [way for way in (labels.table_that_labels(walk),) if way]
    # the folders that hold folders of pictures; of a split, the folder of the splits
    above = [path.parent for path in {path.parent for path in walk.pictures} - {root}]
    above = [path.parent if path.name.lower() in layouts.SPLITS else path for path in above]
    layers = Counter(path for path in above if path != root and root in path.parents)
    found = sorted(f"{path} ({count} folders)" for path, count in layers.items() if count > 1)
    if found:
        what = "no folder here holds pictures itself; give the folder of the class folders"
        whole = "use --recursive, where each folder here is a class with all that is inside"
        return f"{root}: {what}: {' or '.join([*found, *ways, whole])}"
    if len(classes) > 1 and not flat:
        return ""
    if any(path.suffix in (".parquet", ".arrow") for path in walk.others):
        ways.append(f"make class folders of its tables of pictures: fetch {root} --out OUT")
    if walk.pictures and not ways:
        ways.append("give a table of files and labels with --table")
    if walk.pictures and not classes:
        beside = [path.name for path in root.resolve().parent.glob("*/") if path.name != root.name]
        if beside and root.name.lower() not in layouts.SPLITS:
            ways.append(f"give the folder above, if {root.name} and {beside[0]} are classes")
        ways.append("name photographs without labels with `predict`")
    need = "2 or more are needed, with each class's pictures directly inside"
    have = f"{root} holds {len(classes)} class folders"
    if flat:
        have = f"{root} holds pictures in {', '.join(split)}, which are splits and no classes"
    others = dict(walk.skipped) or "nothing"
    return f"{have}; {'; or '.join([need, *ways])} (skipped: {others})"


def _name_problems(classes: list[ClassFolder]) -> list[str]:
    """Names that a completion cannot hold, and names that are nearly the same."""
    problems = []
    same = defaultdict(list)
    for one in classes:
        spellings = (one.name, one.folder, normalise(one.name))  # as in tables and in answers
        for spelling in {name_key(name) for name in spellings}:
            same[spelling].append(one.folder)
        for name in (one.name, *one.aliases):
            if not normalise(name) or set(name) & set("<>"):
                called = one.folder if name == one.name else f"{one.folder}, alias {name!r}"
                problems.append(f"{called}: an answer cannot hold this name; rename it")
    mend = "these names differ only in case, dash, space, article or kind of sign; merge or rename"
    alike = {", ".join(found): None for found in same.values() if len(found) > 1}
    problems += [f"{found}: {mend}" for found in alike]
    return problems


def _read_index(path: Path, classes: list[ClassFolder], problems: list[str]) -> None:
    """Give the files their split and the classes their group; every picture needs a row."""
    ids = [file.id for one in classes for file in one.files]
    files = {file_id.casefold(): file_id for file_id in ids} | dict(zip(ids, ids, strict=True))
    by_file: dict[str, dict[str, str]] = {}
    table = tables.read(path, [("file",)])
    problems += table.problems
    split = table.first_of(SPLIT_COLUMNS)
    table.say_unused(("file", "class", "coarse", split))
    for line, row in table.rows:
        spellings = (row["file"], *layouts.ends(row["file"]))
        file_id = next((files[one] for one in spellings if one in files), "")
        where = f"{path}, line {line}"
        if not file_id:
            problems.append(f"{where}: there is no picture {row['file']!r}; remove the row")
        elif file_id in by_file:
            problems.append(f"{where}: {file_id!r} has a row already; remove one")
        if split and row[split].lower() not in ("train", "test"):
            problems.append(f"{where}: the split {row[split].lower()!r} must be train or test")
        by_file.setdefault(file_id, row)
    for one in classes:
        lacking = [file.id for file in one.files if file.id not in by_file]
        if lacking:
            problems.append(f"{path}: has no row for {', '.join(lacking)}; add rows")
        own = [by_file.get(file.id, {}) for file in one.files]
        said = (row.get(split, "").lower() for row in own)
        one.files = [replace(f, split=s or f.split) for f, s in zip(one.files, said, strict=True)]
        groups = sorted({row.get("coarse", "") for row in own if row})
        if len(groups) > 1:
            problems.append(f"{path}: {one.folder} has the coarse groups {groups}; keep one")
        one.group = groups[0] if groups else ""


def _rows_by_class(
    path: Path, classes: list[ClassFolder], problems: list[str], *columns: Sequence[str]
) -> list[tuple[ClassFolder, dict[str, str], str]]:
    """(class, row, where it stands) of a table with a row a class and one of these columns.

    columns: each as its spellings; rows use the first. A class may go by the name of its folder
    or by its own.
    """
    table = tables.read(path, [("class",), [name for names in columns for name in names]])
    problems += table.problems
    spelled = {names[0]: table.first_of(names) for names in columns}
    table.say_unused(("class", *spelled.values()))
    by_key = {name_key(name): one for one in classes for name in (one.folder, one.name)}
    lines: dict[str, int] = {}
    good = []
    for line, row in table.rows:
        keys = map(name_key, (row["class"], layouts.unnumbered(row["class"])))
        own = next((by_key[key] for key in keys if key in by_key), None)
        where = f"{path}, line {line}"
        if own is None:
            named = unknown(row["class"], [one.folder for one in classes])
            problems.append(f"{where}: the class {named}; rename or remove the row")
        elif own.folder in lines:
            first = lines[own.folder]
            problems.append(f"{where}: {row['class']!r} is on line {first} too; keep one")
        else:
            lines[own.folder] = line
            told = {name: row.get(column, "") for name, column in spelled.items()}
            good.append((own, told, where))
            mark = marks.problem(*told.values())
            problems += [f"{where}: {mark}"] if mark else []
    return good


def _read_descriptions(path: Path, classes: list[ClassFolder], problems: list[str]) -> None:
    """Give every class its description; the table must cover the classes and no others."""
    for one, row, _ in _rows_by_class(path, classes, problems, TEXT_COLUMNS):
        one.description = " ".join(row["description"].split())
    if not any(one.description for one in classes):
        log.warning("%s: holds no description yet", path)
    for one in classes:
        if not one.description and any(other.description for other in classes):
            problems.append(f"{path}: no description of the class {one.folder!r}; add one")


def _keys(name: str) -> set[str]:
    """What a name is told from others by: in tables, and where an answer is read."""
    return {name_key(name), name_key(normalise(name))}


def _read_classes(path: Path, classes: list[ClassFolder], problems: list[str]) -> None:
    """Give classes the name to show, for folders cannot hold every name, aliases, and `seen`.

    A column may be absent. One that says `seen` of a class must say it of all. Aliases are
    parted by ";" or "|".
    """
    columns = (("name",), ("seen",), ALIASES)
    for one, row, where in _rows_by_class(path, classes, problems, *columns):
        given = [" ".join(alias.split()) for alias in re.split("[;|]", row["aliases"])]
        one.aliases += tuple(alias for alias in given if alias and alias not in one.aliases)
        if any("," in alias for alias in given):
            log.warning("%s: %r is one alias; between several write ;", where, row["aliases"])
        one.name = " ".join(row["name"].split()) or one.name
        seen = row["seen"].lower()
        if seen and seen not in SEEN:
            problems.append(f"{where}: seen is {seen!r}; write yes or no")
        one.seen = SEEN.get(seen)
    owners = defaultdict(set)
    for one in classes:
        for name in (one.name, *one.aliases):
            for key in _keys(name):
                owners[key].add(one.folder)
    problems += [
        f"{path}: the alias {alias!r} of {one.folder} stands for {', '.join(others)} too; keep one"
        for one in classes
        for alias in one.aliases
        if (others := sorted(set().union(*map(owners.get, _keys(alias))) - {one.folder}))
    ]
    silent = [one.folder for one in classes if one.seen is None]
    if 0 < len(silent) < len(classes):
        problems.append(f"{path}: does not say yes or no in `seen` of {', '.join(silent)}; fill in")
    if not silent and not any(one.seen for one in classes):
        problems.append(f"{path}: no class is seen; training needs one or more")


def _check_pictures(classes: list[ClassFolder], problems: list[str], skip_broken: bool) -> None:
    """Keep the files that decode and are no copies; skip_broken: the others are logged alone."""
    notes = defaultdict(list)
    same = defaultdict(list)
    faults: list[str] = []
    unread = Counter()
    for one in classes:
        good = []
        for file in one.files:
            checked = images.check(file.path)
            for note in checked.notes:
                notes[note].append(file.id)
            if checked.problem == images.NO_HEIF:
                unread[one.folder] += 1
            elif checked.problem:
                faults.append(f"{file.id}: {checked.problem}")
            else:
                file = replace(file, look=checked.look)
                good.append(file)
                same[checked.digest].append((one.name, file))
        one.files = good
    if unread:
        counts = ", ".join(f"{folder}: {count}" for folder, count in unread.items())
        faults.append(f"{counts} pictures: each {images.NO_HEIF}")
    for note, ids in sorted(notes.items()):
        log.info("%s: %d pictures (first: %s)", note, len(ids), ids[0])
    found = [_copies(of_one, faults) for of_one in same.values()]
    found.append(_two_labels([first for first, *_ in same.values()], faults))
    dropped = {file for files, faulty in found for file in files if skip_broken or not faulty}
    for one in classes:
        one.files = [file for file in one.files if file not in dropped]
    if faults and skip_broken:
        what = "left out, as they cannot be used or carry two labels"
        log.warning("%d findings %s:\n%s", len(faults), what, "\n".join(faults))
    elif faults:
        problems += faults


def _copies(same: list[tuple[str, File]], faults: list[str]) -> tuple[list[File], bool]:
    """Byte-for-byte copies to drop, and whether they are a fault.

    Those of one split of one class are none. In a class without a split some seed would put one
    copy in train and one in test. Of two classes all go: nobody knows which label is right.
    """
    first, *copies = (file for _, file in same)
    ids = ", ".join(file.id for file in copies)
    if not copies:
        return [], False
    if first.split and len({(name, file.split) for name, file in same}) == 1:
        log.info("%s: kept once; the same picture is in %s", first.id, ids)
        return copies, False
    two = len({name for name, _ in same}) > 1
    carry = "carries two labels" if two else "could be in train and in test"
    faults.append(f"{first.id}, {ids}: the same picture, which {carry}; keep one")
    return [first, *copies] if two else copies, True


def _two_labels(pictures: Sequence[tuple[str, File]], faults: list[str]) -> tuple[list[File], bool]:
    """The pictures that another class holds too, saved again or made smaller: faults."""
    looks = [file.look for _, file in pictures]
    found = []
    for one, other, _ in duplicates.pairs(looks, looks, *duplicates.SAME):
        (name, file), (other_name, copy) = pictures[one], pictures[other]
        if one < other and name != other_name:
            what = "nearly the same picture, which carries two labels"
            faults.append(f"{file.id}, {copy.id}: {what} ({name}, {other_name}); keep one")
            found += [file, copy]
    return found, True


def _too_few(one: ClassFolder, shots: int) -> list[str]:
    """`shots` and a test picture: a class that may be seen must do as a seen one."""
    have = Counter(file.split for file in one.files)
    if have["train"] or have["test"]:
        need = {"train": shots, "test": 1}
        short = [split for split in need if have[split] < need[split]]
        lacks = [f"{have[s]} usable {s} pictures of the {need[s]} needed;" for s in short]
        enough = have["train"] if have["test"] else 0
    else:
        need = f"{shots + 1} needed ({shots} shots and a test)"
        lacks = [f"{len(one.files)} usable pictures of the {need};"]
        lacks = lacks if len(one.files) <= shots else []
        enough = len(one.files) - 1
    mend = "add pictures or remove the class"
    if one.others:
        left = ", ".join(f"{count} {ending}" for ending, count in sorted(one.others.items()))
        mend = f"skipped: {left} (save pictures as JPEG or PNG); {mend}"
    if 0 < enough < shots:
        mend += f", or train on fewer: --shots {enough}"
    if one.deeper:
        mend = f"{one.deeper} more lie in folders inside: --recursive takes them; or {mend}"
    return [f"{one.folder}: {lack} {mend}" for lack in lacks]
