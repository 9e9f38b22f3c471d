"""Which picture is of which class and split, in the ways in which people lay folders out.

DIR/<class>/*, DIR/<split>/<class>/*, pictures in folders inside a class folder, and (`labels`)
pictures with a table. Nothing is decoded here; every sentence in `problems` names the mend.
"""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finer1_lite.data import duplicates, hubsets, images

log = logging.getLogger("finer1_lite")

INDEX = "index.csv"
DESCRIPTIONS = "descriptions.csv"
CLASSES = "classes.csv"
METADATA = ("metadata.csv", "metadata.jsonl")  # of Hugging Face's ImageFolder
TRAIN = ("train", "training")  # what splits are called
VALIDATION = ("validation", "valid", "val", "dev")
TEST = ("test", "testing")
TABLES = (".csv", ".jsonl", ".tsv", ".txt")
SPLITS = (*TRAIN, *VALIDATION, *TEST)
DEPTH = 4  # folders below the root in which class folders are looked for, to name them


@dataclass(frozen=True)
class Reading:
    """How a folder of photographs is read; the defaults are those of one folder a class.

    recursive: pictures in folders inside a class folder belong to the class; table: a table of
    files and labels, as seen from the folder; its columns, "" for the usual names;
    research_grade and names: of an iNaturalist export; skip_broken: go on without pictures that
    cannot be used, or that carry two labels.
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
    """A picture: its id (the NFC path inside the root), its path, and its split ("" if none).

    credit: licence, observer and source, where a table tells them; look: once it is decoded.
    """

    id: str
    path: Path
    split: str = ""
    credit: tuple[str, ...] = ()
    look: duplicates.Look | None = field(default=None, compare=False, repr=False)


@dataclass
class ClassFolder:
    """One class as found on disk; `seen` is None where no table says it.

    deeper: pictures in folders inside, which are not read.
    """

    name: str
    folder: str
    files: list[File] = field(default_factory=list)
    group: str = ""
    description: str = ""
    seen: bool | None = None
    aliases: tuple[str, ...] = ()
    deeper: int = 0


def nfc(text: str) -> str:
    """The text with its accents composed."""
    return unicodedata.normalize("NFC", text)


def display(folder: str) -> str:
    """The name to show for a folder: 'Granny-Smith-Apple' and 'granny_smith' get spaces.

    Other hyphens belong to the name ("Hyacinthoides non-scripta", "Snake's-head", "F-16A"): they
    part words only where nothing else does, after a word such as "Granny", before capitals.
    """
    text = nfc(folder)
    first, *others = text.split("-")
    word = first[:1].isupper() and first[1:2].islower()
    if (
        word
        and not set(" _") & set(text)
        and all(o[:1].isupper() or o[:1].isdigit() for o in others)
    ):
        text = text.replace("-", " ")
    return " ".join(text.replace("_", " ").split())


def roles(splits: Iterable[str]) -> dict[str, str]:
    """Split -> "train" or "test"; {} if they do not divide. Validation fills the one that lacks."""
    kinds = (TRAIN, TEST, VALIDATION)
    names = list(splits)
    train, test, validation = ([s for s in names if s.lower() in kind] for kind in kinds)
    if test:
        train += validation
    elif train:
        test = validation
    if not (train and test):
        return {}
    return dict.fromkeys(train, "train") | dict.fromkeys(test, "test")


class Walk:
    """A walk through the folder `root`; counts what it leaves out in `skipped`."""

    def __init__(self, root: Path, problems: list[str]) -> None:
        self.root = root
        self.problems = problems
        self.skipped: Counter[str] = Counter()
        self.by_content: list[Path] = []

    def visible(self, folder: Path) -> list[Path]:
        """What lies in a folder and is not hidden, in an order that no file system changes."""
        try:
            entries = sorted(folder.iterdir(), key=lambda path: (nfc(path.name), path.name))
        except OSError as error:
            what = f"cannot be read ({error.strerror}); mend its permissions"
            self.problems.append(f"{folder}: {what}")
            return []
        shown = []
        taken = set()
        for path in entries:
            name = nfc(path.name)
            if name.startswith(".") or name == "__MACOSX":
                self.skipped["hidden"] += 1
            elif not name.isprintable():  # a line break, or bytes that are not UTF-8
                mend = "unprintable name; rename it in UTF-8"
                self.problems.append(f"{ascii(str(path))}: {mend}")
            elif name in taken and not path.is_dir():  # folders: see _name_problems
                what = "another file spells this name in Unicode; rename it"
                self.problems.append(f"{path}: {what}")
            else:
                shown.append(path)
            taken.add(name)
        return shown

    def is_picture(self, path: Path) -> bool:
        """Whether a file is a picture by its ending, or else by its content."""
        if path.is_dir():
            return False
        if path.suffix.lower() in images.ENDINGS:
            return True
        if images.starts_like_a_picture(path):
            self.by_content.append(path)
            return True
        return False

    def pictures(self, folder: Path, deep: bool, place: str = "") -> Iterator[Path]:
        """The pictures in a folder; `deep`: and in the folders inside. Others are counted."""
        for path in self.visible(folder):
            if path.is_dir() and deep and not path.is_symlink():
                yield from self.pictures(path, deep, place)
            elif self.is_picture(path):
                yield path
            elif not place or path.name.lower() not in (INDEX, DESCRIPTIONS, CLASSES, *METADATA):
                self.skipped[kind(path) + place] += 1

    def file(self, path: Path, split: str = "", credit: tuple[str, ...] = ()) -> File:
        """The entry of a picture below the root."""
        return File(nfc(path.relative_to(self.root).as_posix()), path, split, credit)

    def say(self) -> None:
        """Log what was left out, and what was taken against its ending."""
        if self.skipped:
            kinds = ", ".join(f"{count} {what}" for what, count in sorted(self.skipped.items()))
            log.info("%s: skipped %s", self.root, kinds)
        if self.by_content:
            first, count = self.by_content[0].name, len(self.by_content)
            log.info("%s: %d pictures told by content (first: %s)", self.root, count, first)


def kind(path: Path) -> str:
    """What a thing that is no picture is called in a count."""
    return "folder" if path.is_dir() else path.suffix.lower() or "file without ending"


def from_folders(walk: Walk, reading: Reading) -> list[ClassFolder]:
    """The classes of a folder of class folders, divided into splits or not."""
    parts = split_folders(walk.root)
    named = roles(part.name for part in parts)
    classes: dict[str, ClassFolder] = {}
    for top in parts or [walk.root]:
        for entry in walk.visible(top):
            if entry.is_dir():
                key = nfc(entry.name) if parts else entry.name  # one class of two splits
                own = classes.setdefault(key, ClassFolder("", entry.name))
                found = walk.pictures(entry, reading.recursive)
                own.files += [walk.file(path, named.get(top.name, "")) for path in found]
                if not reading.recursive:
                    own.deeper += _below(entry)
            else:
                _count_loose(walk, entry)
    if parts:
        roles_said = [f"{p.name}: {named.get(p.name, 'not divided')}" for p in parts]
        log.info("%s: split folders (%s)", walk.root, ", ".join(roles_said))
        for entry in walk.visible(walk.root):
            if entry not in parts:
                _count_loose(walk, entry)
    _name(classes.values())
    nested = sum(one.deeper for one in classes.values())
    if nested:
        walk.skipped["pictures in folders inside class folders (--recursive takes them)"] = nested
    return list(classes.values())


def _count_loose(walk: Walk, entry: Path) -> None:
    if entry.is_dir() or entry.name.lower() not in (INDEX, DESCRIPTIONS, CLASSES):
        walk.skipped[f"{kind(entry)} beside the class folders"] += 1


def _name(classes: Iterable[ClassFolder]) -> None:
    """Give each class the name to show; numbers of a data set go where all folders have one."""
    found = list(classes)
    numbered = all(hubsets.NUMBER.match(one.folder) for one in found)
    for one in found:
        one.name = display(hubsets.NUMBER.sub("", one.folder) if numbered else one.folder)
    if numbered and found:
        first = f"{found[0].folder!r} is {found[0].name!r}"
        log.info("numbers before names are left out (%s); %s may say others", first, CLASSES)


def split_folders(root: Path) -> list[Path]:
    """The folders train, val, test ... of a root that hold class folders; [] if there are none."""
    inside = {path: _holds(path) for path in _folders(root)}
    parts = [path for path in inside if path.name.lower() in SPLITS and not inside[path]]
    parts = [path for path in parts if any(_holds(p) or _below(p) for p in _folders(path))]
    return [] if any(held and path not in parts for path, held in inside.items()) else parts


def _entries(folder: Path) -> list[Path]:
    """What is not hidden in a folder; nothing where it cannot be read, which `Walk` tells."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for path in entries if not path.name.startswith((".", "__MACOSX"))]


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _holds(folder: Path) -> int:
    """The pictures that lie directly in a folder, as far as endings tell."""
    found = (path for path in _entries(folder) if path.suffix.lower() in images.ENDINGS)
    return sum(not path.is_dir() for path in found)


def _below(folder: Path) -> int:
    """The pictures in the folders inside a folder."""
    inside = [path for path in _folders(folder) if not path.is_symlink()]  # it may lead back
    return sum(_holds(path) + _below(path) for path in inside)


def class_layers(root: Path) -> dict[str, int]:
    """Where class folders seem to lie: folder -> how many folders with pictures are in it."""
    found: Counter[Path] = Counter()
    level = [root]
    for _ in range(DEPTH):
        level = [inner for folder in level for inner in _folders(folder)]
        found.update(path.parent for path in level if _holds(path))
    layers: dict[str, int] = defaultdict(int)
    for path, count in found.items():
        above = path.parent if path.name.lower() in SPLITS else path
        layers[str(above)] = max(layers[str(above)], count)
    return {path: count for path, count in layers.items() if count > 1}


def too_few_classes(root: Path, classes: Sequence[ClassFolder], skipped: Counter[str]) -> str:
    """Why a root gives no two classes: what is there instead, and the way that works; or ""."""
    with_pictures = [one for one in classes if one.files]
    if with_pictures and len(classes) > 1:
        return ""
    layers = class_layers(root)
    layers.pop(str(root), None)
    if layers:
        ways = " or ".join(f"{path} ({count} folders)" for path, count in layers.items())
        whole = "or use --recursive, where each folder here is a class with all that is inside"
        what = "no folder here holds pictures itself; give the folder of the class folders"
        return f"{root}: {what}: {ways}, {whole}"
    if len(classes) > 1:
        return ""
    own = (INDEX, DESCRIPTIONS, CLASSES)
    found = [path.name for path in _entries(root) if path.suffix.lower() in TABLES]
    found = [name for name in found if name.lower() not in own]
    need = "2 or more are needed, with each class's pictures directly inside"
    if found:
        need += f"; or, if {found[0]} says what each picture shows, --table {found[0]}"
    others = dict(skipped) or "nothing"
    return f"{root} holds {len(classes)} class folders; {need} (skipped: {others})"
