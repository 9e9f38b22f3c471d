"""Pictures whose classes stand in a table: any CSV, Hugging Face's, iNaturalist's export."""

import logging
import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from finer1_lite.data import layouts, tables
from finer1_lite.data.layouts import ClassFolder, Reading, Walk
from finer1_lite.runtime.files import DataError

log = logging.getLogger("finer1_lite")

FILES = (
    *("file_name", "filename", "file", "image", "path", "image_path", "file_path", "filepath"),
    *("img", "picture", "photo", "image_id", "id"),
)
NAMES = ("scientific_name", "common_name")
LABELS = (
    *("label", "labels", "class", "class_name", "species", "breed", "category", "name"),
    *NAMES,
)
SPLIT = ("split", "upstream_split", "subset", "set")
LICENCE = ("license", "licence")
OBSERVER = ("user_login", "observer", "author", "photographer")
SOURCE = ("url", "source", "image_url")
GRADE = "quality_grade"
INATURALIST = {"id", "scientific_name"}  # columns by which its export is known


def label_tables(root: Path, reading: Reading) -> list[Path]:
    """The tables that label pictures: the one asked for, or Hugging Face's metadata files."""
    if reading.table:
        return [root / reading.table]
    folders = [root, *(p for p in sorted(root.iterdir()) if p.name.lower() in layouts.SPLITS)]
    found = [f / name for f in folders for name in layouts.METADATA if (f / name).is_file()]
    return [path for path in found if reading.label_column or _labels(path)]


def _labels(path: Path) -> bool:
    """Whether a metadata file has labels; one with captions alone is none of ours."""
    try:
        labelled = bool(tables.read(path).first_of(LABELS))
    except DataError:
        return True  # whoever reads it tells why
    if not labelled:
        log.info("%s: has no column of labels by a usual name, not used", path)
    return labelled


def table_that_labels(walk: Walk) -> str:
    """How to use the table of files and labels in a folder, one level inside, or beside it.

    One with the usual columns, else any at the top, whose columns can be named; "" for none.
    """
    root, above = walk.root, walk.root.resolve().parent
    near = [path for path in walk.others if root in (path.parent, path.parent.parent)]
    near += sorted(above.iterdir()) if os.access(above, os.R_OK) else []
    near = [path for path in near if path.name.lower() not in layouts.OWN]
    near = [path for path in near if path.suffix.lower() in layouts.TABLES]
    for path in near if walk.pictures else ():
        try:
            table = tables.read(path)
        except (DataError, OSError):
            continue
        if table.first_of(FILES) and table.first_of(LABELS):
            place = f"give {above} with" if path.parent == above else "use"
            return f"{place} --table {path.relative_to(above if path.parent == above else root)}"
    top = sorted((p.suffix == ".txt", p.name) for p in near if p.parent == root)
    return f"use --table {top[0][1]}, if that says what each picture shows" if top else ""


def from_tables(walk: Walk, reading: Reading, paths: Iterable[Path]) -> list[ClassFolder]:
    """The classes that tables name. Rows without pictures are problems; the reverse is counted."""
    own = _Labels(walk, reading)
    for path in paths:
        try:
            own.read(path)
        except DataError as error:
            walk.problems += error.problems
    return own.finish()


class _Labels:
    """What the tables say, collected."""

    def __init__(self, walk: Walk, reading: Reading) -> None:
        self.walk = walk
        self.reading = reading
        self.files = {walk.file(path).id: path for path in walk.pictures}
        self.said: dict[str, tuple[str, str, str, tuple[str, ...]]] = {}  # by id of the picture
        self.aliases: dict[str, set[str]] = defaultdict(set)
        self.lost: list[str] = []  # sentences on rows without a picture
        self.places: dict[str, set[str]] = defaultdict(set)  # end of a path -> ids
        self.numbers: dict[str, set[str]] = defaultdict(set)  # number in a file's name -> ids
        for name in self.files:
            for end in layouts.ends(name):
                self.places[end].add(name)
                self.places[end.rpartition(".")[0] or end].add(name)
            for number in re.findall(r"\d+", Path(name).stem):
                self.numbers[number].add(name)

    def read(self, path: Path) -> None:
        """Take one table over."""
        table = tables.read(path)
        self.walk.problems += table.problems
        names = NAMES if self.reading.names == "scientific" else NAMES[::-1]
        wild = INATURALIST <= set(table.columns) and not self.reading.label_column
        names = [n for n in names if n in table.columns] if wild else [self._column(table, "label")]
        file = "" if wild and not self.reading.file_column else self._column(table, "file")
        split, *credit = (table.first_of(n) for n in (SPLIT, LICENCE, OBSERVER, SOURCE))
        if self.reading.research_grade and GRADE not in table.columns:
            problem = f"{path}: has no column {GRADE}; leave --research-grade out"
            raise DataError([problem], "no table:")
        table.say_unused((file, split, *credit, *names, "id", "image_url", GRADE))
        casual = 0
        for line, row in table.rows:
            if self.reading.research_grade and row[GRADE].lower() != "research":
                casual += 1
                continue
            name, *others = [row[n] for n in names if row[n]] or [""]
            self.aliases[name].update(others)
            told = tuple(row.get(column, "") for column in credit)
            facts = (row.get(split, ""), told if any(told) else ())
            found = self._find(row[file], path) if file else self._photos_of(row)
            if file and len(found) > 1:
                mend = "write the path from the folder"
                what = f"{row[file]!r} can be {' or '.join(found)}; {mend}"
                self.lost.append(f"{path}, line {line}: {what}")
                continue
            self._take(f"{path}, line {line}", row[file or "id"], name, found, facts)
        if casual:
            log.info("%s: %d observations are not of research grade, left out", path, casual)

    def _column(self, table: tables.Table, what: str) -> str:
        """The column of files or of labels. DataError listing all if it is not clear."""
        given = getattr(self.reading, f"{what}_column")
        usual = FILES if what == "file" else LABELS
        name = tables.column_key(given) if given else table.first_of(usual)
        if not name or name not in table.columns:
            which = f"the column {given!r}" if given else f"a column of {what}s by a usual name"
            have = ", ".join(table.columns) or "none"
            problem = f"{table.path}: lacks {which}; choose with --{what}-column among: {have}"
            raise DataError([problem, *table.problems], "no table:")
        return name

    def _find(self, written: str, table: Path) -> list[str]:
        """The ids that a path can mean: from the table's folder, the root, or by its end.

        One of the two paths is the other's end: a/1.jpg is never b/1.jpg.
        """
        text = posixpath.normpath(layouts.nfc(written).replace("\\", "/"))
        for folder in (table.parent, self.walk.root):
            exact = os.path.relpath(folder / text, self.walk.root).replace(os.sep, "/")
            if exact in self.files:
                return [exact]
        whole = layouts.ends(text) or [text]
        end = next((e for e in whole if self.places.get(e)), "")
        found = self.places.get(end, ())
        return sorted(i for i in found if end == whole[0] or i.casefold().startswith(end))

    def _photos_of(self, row: dict[str, str]) -> list[str]:
        """The pictures of an observation: by its own id, or by that of the photo in its URL."""
        photo = re.search(r"/photos/(\d+)", row.get("image_url", ""))
        ids = (row["id"], photo[1] if photo else "")
        return sorted(set().union(*(self.numbers.get(one, ()) for one in ids)))

    def _take(self, where: str, written: str, name: str, found: list[str], facts: tuple) -> None:
        """Note what one row says of its pictures, or what is wrong with the row."""
        if not name:
            self.lost.append(f"{where}: {written!r} has no label; fill it in or remove the row")
        elif not found:
            self.lost.append(f"{where}: there is no picture {written!r}; add it or remove the row")
        for one in found if name else ():
            folders = (part for part in one.split("/")[:-1] if part.lower() in layouts.SPLITS)
            split, credit = facts
            held = self.said.setdefault(one, (name, where, split or next(folders, ""), credit))
            for said, before in ((name, held[0]), (split or held[2], held[2])):
                if said != before:
                    what = f"{one} is {before!r} on {held[1].rpartition(', ')[2]}; keep one"
                    self.walk.problems.append(f"{where}: {said!r}, but {what}")

    def finish(self) -> list[ClassFolder]:
        """The classes; rows that are lost are problems, or are logged with --skip-broken."""
        if self.lost and self.reading.skip_broken:
            log.warning("rows left out: %d\n%s", len(self.lost), "\n".join(self.lost))
        else:
            self.walk.problems += self.lost
        splits = {split: None for _, _, split, _ in self.said.values()}
        named = layouts.roles(splits)
        strange = sorted(s for s in splits if s and s.lower() not in layouts.SPLITS)
        if strange:
            log.warning("splits that say neither train nor test are not kept: %s", strange)
        classes: dict[str, ClassFolder] = {}
        names = layouts.shown(sorted({name for name, *_ in self.said.values()}))
        for one, (name, _, split, credit) in sorted(self.said.items()):
            said = " ".join(name.split()) if self.aliases[name] else names[name]
            file = self.walk.file(self.files[one], named.get(split, ""), credit)
            classes.setdefault(name, ClassFolder(said, name)).files.append(file)
        # the other name of an observation is an alias where no second class has it
        owners = Counter(tables.name_key(a) for n in classes for a in (n, *self.aliases[n]))
        for name, own in classes.items():
            shared = {a for a in self.aliases[name] if owners[tables.name_key(a)] > 1}
            own.aliases = tuple(sorted(self.aliases[name] - shared))
            if shared:
                log.info("%s: also called %s, as another class is; no alias", name, sorted(shared))
        silent = len(self.files) - len(self.said)
        if silent:
            self.walk.skipped["pictures that no row names"] = silent
        return list(classes.values())
