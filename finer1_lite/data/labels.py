"""Pictures whose classes stand in a table.

Any CSV of files and labels, Hugging Face's metadata files, and observations exported from
iNaturalist.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from finer1_lite.data import tables
from finer1_lite.data.layouts import (
    METADATA,
    SPLITS,
    ClassFolder,
    Reading,
    Walk,
    display,
    nfc,
    roles,
)
from finer1_lite.runtime.files import DataError

log = logging.getLogger("finer1_lite")

FILES = (
    *("file_name", "filename", "file", "image", "path", "image_path", "file_path", "filepath"),
    *("img", "picture", "photo", "image_id", "id"),
)
LABELS = (
    *("label", "labels", "class", "class_name", "species", "breed", "category", "name"),
    "scientific_name",
)
SPLIT = ("split", "upstream_split", "subset", "set")
CREDIT = (  # what an attribution names, and how tables call it
    ("licence", ("license", "licence")),
    ("observer", ("user_login", "observer", "author", "photographer")),
    ("source", ("url", "source", "image_url")),
)
INATURALIST = {"id", "scientific_name"}


def label_tables(root: Path, reading: Reading) -> list[Path]:
    """The tables that label pictures: the one asked for, or Hugging Face's metadata files."""
    if reading.table:
        return [root / reading.table]
    folders = [root, *(p for p in sorted(root.iterdir()) if p.name.lower() in SPLITS)]
    found = [f / name for f in folders for name in METADATA if (f / name).is_file()]
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


def from_tables(walk: Walk, reading: Reading, paths: Iterable[Path]) -> list[ClassFolder]:
    """The classes that tables name, with the pictures of their rows.

    A row without its picture is a problem; pictures without a row are counted as skipped.
    """
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
        self.files = {walk.file(p).id: p for p in walk.pictures(walk.root, True, " in the folder")}
        self.said: dict[str, tuple[str, str, str, tuple[str, ...]]] = {}  # by id of the picture
        self.aliases: dict[str, set[str]] = defaultdict(set)
        self.lost: list[str] = []  # sentences on rows without a picture
        self.places: dict[str, set[str]] = defaultdict(set)  # end of a path -> ids
        for name in self.files:
            for end in _ends(name):
                self.places[end].add(name)

    def read(self, path: Path) -> None:
        """Take one table over."""
        table = tables.read(path)
        self.walk.problems += table.problems
        wild = table.columns and set(table.columns) >= INATURALIST and not self.reading.label_column
        file = "" if wild and not self.reading.file_column else self._column(table, "file", FILES)
        label = self._naming(table)[0] if wild else self._column(table, "label", LABELS)
        split = table.first_of(SPLIT)
        credit = [table.first_of(names) for _, names in CREDIT]
        grade = self.reading.research_grade
        if grade and "quality_grade" not in table.columns:
            problem = f"{path}: has no column quality_grade; leave --research-grade out"
            raise DataError([problem], "no table:")
        by_number = {} if file else self._numbered()
        casual = 0
        for line, row in table.rows:
            if grade and row["quality_grade"].lower() != "research":
                casual += 1
                continue
            where = f"{path}, line {line}"
            names = self._naming(table)
            name = next((row[n] for n in names if row[n]), "") if wild else row[label]
            found = self._find(row[file], path) if file else _by_ids(row, by_number)
            facts = (row.get(split, ""), tuple(row.get(c, "") for c in credit))
            self._take(where, row[file] if file else row["id"], found, name, facts, bool(wild))
            others = {row[n] for n in names if row[n]} - {name} if wild else ()
            self.aliases[name].update(others)
        if casual:
            log.info("%s: %d observations are not of research grade, left out", path, casual)
        table.say_unused(
            (file, label, split, *credit, *INATURALIST, "common_name", "quality_grade")
        )

    def _column(self, table: tables.Table, what: str, usual: tuple[str, ...]) -> str:
        """The column of files or of labels. DataError listing all if it is not clear."""
        given = getattr(self.reading, f"{what}_column")
        name = tables.column_key(given) if given else table.first_of(usual)
        if name not in table.columns or not name:
            which = f"the column {given!r}" if given else f"a column of {what}s by a usual name"
            have = ", ".join(table.columns) or "none"
            problem = f"{table.path}: lacks {which}; choose with --{what}-column among: {have}"
            raise DataError([problem, *table.problems], "no table:")
        return name

    def _naming(self, table: tables.Table) -> list[str]:
        """The columns of the two names of an observation, the one to show first."""
        order = ["scientific_name", "common_name"]
        if self.reading.names == "common":
            order.reverse()
        return [name for name in order if name in table.columns]

    def _numbered(self) -> dict[str, set[str]]:
        """Number in a file name -> ids of the pictures."""
        found = defaultdict(set)
        for name in self.files:
            for number in re.findall(r"\d{3,}", Path(name).stem) or [Path(name).stem]:
                found[number].add(name)
        return found

    def _find(self, written: str, table: Path) -> set[str]:
        """The ids that a path in a table can mean: from its own folder, the root, or anywhere."""
        text = nfc(written).replace("\\", "/").removeprefix("./")
        try:
            below = (table.parent / text).relative_to(self.walk.root).as_posix()
        except ValueError:
            below = text
        for exact in (below, text):
            if exact in self.files:
                return {exact}
        parts = text.casefold().split("/")
        ends = ("/".join(parts[at:]) for at in range(len(parts)))
        return next((self.places[end] for end in ends if end and end in self.places), set())

    def _take(
        self, where: str, written: str, found: set[str], name: str, facts: tuple, many: bool
    ) -> None:
        """Note what one row says of its picture, or what is wrong with the row."""
        if not name:
            self.lost.append(f"{where}: {written!r} has no label; fill it in or remove the row")
        elif not found:
            self.lost.append(f"{where}: there is no picture {written!r}; add it or remove the row")
        elif len(found) > 1 and not many:
            mend = "write the path from the folder"
            self.lost.append(f"{where}: {written!r} can be {' or '.join(sorted(found))}; {mend}")
        for one in sorted(found) if name and (many or len(found) == 1) else ():
            held = self.said.setdefault(one, (name, where, *facts))
            if held[0] != name:
                what = f"{one} is {held[0]!r} on {held[1].rpartition(', ')[2]}; keep one"
                self.walk.problems.append(f"{where}: {name!r}, but {what}")

    def finish(self) -> list[ClassFolder]:
        """The classes; rows that are lost are problems, or are logged with --skip-broken."""
        if self.lost and self.reading.skip_broken:
            log.warning("rows left out: %d\n%s", len(self.lost), "\n".join(self.lost))
        else:
            self.walk.problems += self.lost
        splits = {one: held[2] or self._split_folder(one) for one, held in self.said.items()}
        named = roles(dict.fromkeys(filter(None, splits.values())))
        strange = sorted({s for s in splits.values() if s and s.lower() not in SPLITS})
        if strange:
            log.warning("splits that say neither train nor test are not kept: %s", strange)
        classes: dict[str, ClassFolder] = {}
        for one, (name, _, _, credit) in sorted(self.said.items()):
            own = classes.setdefault(name, ClassFolder(_shown(name, self.aliases), name))
            split = named.get(splits[one], "")
            own.files.append(self.walk.file(self.files[one], split, credit if any(credit) else ()))
        self._give_aliases(classes)
        if classes and all(name.isdigit() for name in classes):
            log.warning("the labels are numbers; a column `name` in classes.csv gives names")
        silent = len(self.files) - len(self.said)
        if silent:
            self.walk.skipped["pictures that no row names"] = silent
        return list(classes.values())

    def _split_folder(self, name: str) -> str:
        """The split folder that a picture lies in, or ""."""
        return next((part for part in name.split("/")[:-1] if part.lower() in SPLITS), "")

    def _give_aliases(self, classes: dict[str, ClassFolder]) -> None:
        """The other name of an observation, where no second class has it."""
        owners = Counter(tables.name_key(a) for name in classes for a in self.aliases[name])
        owners.update(tables.name_key(name) for name in classes)
        for name, own in classes.items():
            kept = [a for a in sorted(self.aliases[name]) if owners[tables.name_key(a)] == 1]
            own.aliases = tuple(kept)
            shared = sorted(self.aliases[name] - set(kept))
            if shared:
                log.info("%s: also called %s, as another class is; no alias", name, shared)


def _shown(label: str, aliases: dict[str, set[str]]) -> str:
    """A label as a name; one with an alias is a name as it stands."""
    return " ".join(label.split()) if aliases.get(label) else display(label)


def _ends(name: str) -> list[str]:
    """Every end of a path, with and without its ending, in lower case."""
    parts = name.casefold().split("/")
    ends = ["/".join(parts[at:]) for at in range(len(parts))]
    return [*ends, *(end.rpartition(".")[0] for end in ends if "." in end.rpartition("/")[2])]


def _by_ids(row: dict[str, str], numbered: dict[str, set[str]]) -> set[str]:
    """The pictures of an observation: by its own id, or by that of the photo in `image_url`."""
    photo = re.search(r"/photos/(\d+)", row.get("image_url", ""))
    return numbered.get(row["id"], set()) | (numbered.get(photo[1], set()) if photo else set())
