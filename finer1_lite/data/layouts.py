"""Which picture is of which class and split, in the ways in which people lay folders out.

DIR/<class>/*, DIR/<split>/<class>/*, pictures in folders inside a class folder, and (`labels`)
pictures with a table. Nothing is decoded here; every sentence in `problems` names the mend.
"""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finer1_lite.data import duplicates, images
from finer1_lite.runtime.options import option

log = logging.getLogger("finer1_lite")

INDEX = "index.csv"
DESCRIPTIONS = "descriptions.csv"
CLASSES = "classes.csv"
METADATA = ("metadata.csv", "metadata.jsonl")  # of Hugging Face's ImageFolder
TRAIN = ("train", "training")  # what splits are called
VALIDATION = ("validation", "valid", "val", "dev")
TEST = ("test", "testing")
TABLES = (".csv", ".jsonl", ".tsv", ".xlsx", ".txt")
SPLITS = (*TRAIN, *VALIDATION, *TEST)
OWN = (INDEX, DESCRIPTIONS, CLASSES)  # tables of a folder that are no labels of pictures
BESIDE = " beside the class folders"
# what data sets put before names ("001.", "n02085936-"); a `count` may as well belong to the name
_NUMBER = r"\d{1,5}\.\s*(?=[^\W\d_])|n\d{8}[-_. ]+(?=[^\W_])"
_NUMBERED = re.compile(rf"(?:{_NUMBER}|(?P<count>\d{{1,5}})(?:\.(?=\d)|[)_ -]+(?=[^\W\d_])))")


@dataclass(frozen=True)
class Reading:
    """How a folder of photographs is read; the defaults are those of one folder a class.

    The fields are options of commands, but for the table: a path as seen from the folder.
    """

    recursive: bool = option(False, "pictures in folders inside a class folder are of that class")
    table: str = ""
    file_column: str = option("", "of --table (default: the usual names, such as file or image)")
    label_column: str = option("", "of --table (default: the usual names, such as label or class)")
    research_grade: bool = option(False, "iNaturalist: research-grade observations alone")
    names: Literal["scientific", "common"] = option(
        "scientific", "iNaturalist: what to call the classes; the other name is an alias"
    )
    skip_broken: bool = option(
        False, "go on without pictures that cannot be used or carry two labels, and list them"
    )


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

    deeper: pictures in folders inside, which are not read; others: what is no picture, by ending.
    """

    name: str
    folder: str
    files: list[File] = field(default_factory=list)
    group: str = ""
    description: str = ""
    seen: bool | None = None
    aliases: tuple[str, ...] = ()
    deeper: int = 0
    others: Counter[str] = field(default_factory=Counter)


def nfc(text: str) -> str:
    """The text with its accents composed."""
    return unicodedata.normalize("NFC", text)


def file_of(root: Path, name: str) -> Path:
    """Where the file of an id should lie; its name on disk may spell the same in Unicode."""
    path = root
    for part in Path(name).parts:
        if path.is_dir() and not (path / part).exists():
            part = next((p.name for p in path.iterdir() if nfc(p.name) == nfc(part)), part)
        path /= part
    return path


def display(folder: str) -> str:
    """The name to show for a folder: 'Granny-Smith-Apple' and 'granny_smith' get spaces.

    Other hyphens belong to the name ("Hyacinthoides non-scripta", "Snake's-head", "F-16A"): they
    part words only where nothing else does, after a word such as "Granny", before capitals.
    """
    text = nfc(folder)
    first, *others = text.split("-")
    word = first[:1].isupper() and first[1:2].islower()
    capitals = all(o[:1].isupper() or o[:1].isdigit() for o in others)
    if word and capitals and not set(" _") & set(text):
        text = text.replace("-", " ")
    return " ".join(text.replace("_", " ").split())


def unnumbered(name: str) -> str:
    """A name without the number that only a data set puts before it."""
    return re.sub(f"^(?:{_NUMBER})", "", name)


def shown(names: Iterable[str]) -> dict[str, str]:
    """Each name as a folder, a table or a hub gives it -> the name to show.

    Numbers of the data set go where every name has one ("001.Cardinal", "n02085620-Chihuahua");
    with other signs than a dot they must count as well: "01_rose, 02_iris", but "707-320".
    """
    names = list(names)
    found = [_NUMBERED.match(name) for name in names]
    counts = [one["count"] for one in found if one and one["count"]]
    padded = {len(count) for count in counts} in ({2}, {3}, {4}, {5}) and min(counts)[0] == "0"
    running = sorted(map(int, counts)) in (list(range(at, at + len(counts))) for at in (0, 1))
    counted = not counts or (padded and len({*counts}) == len(counts)) or running
    parts = zip(names, found, strict=True)
    plain = {name: display(name[one.end() :]) for name, one in parts if one}
    if names and counted and len({*plain.values()}) == len({*names}):  # all have one; none alike
        first = f"{names[0]!r} is {plain[names[0]]!r}"
        log.info("numbers before names are left out (%s); %s may say others", first, CLASSES)
        return plain
    some = [one.string for one in found if one]
    if some:
        what = "%d of %d names begin with a number, which stays (%s); %s may say others"
        log.info(what, len(some), len(names), some[0], CLASSES)
    if names and all(re.fullmatch(r"n?\d+", name) for name in names):
        log.warning("the classes are numbers; a column `name` in %s gives names", CLASSES)
    return {name: display(name) for name in names}


def ends(written: str) -> list[str]:
    """Every end of a path, the longest first, in lower case and with "/" alone."""
    parts = [part for part in nfc(written).replace("\\", "/").casefold().split("/") if part]
    return ["/".join(parts[at:]) for at in range(len(parts))]


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
    """Everything below `root` that is not hidden: pictures, other files, folders, in a fixed order.

    What cannot be taken is a problem; `skipped` counts what is left out.
    """

    def __init__(self, root: Path, problems: list[str]) -> None:
        self.root = root
        self.problems = problems
        self.skipped: Counter[str] = Counter()
        self.pictures: list[Path] = []
        self.others: list[Path] = []
        self.folders: list[Path] = []
        self._enter(root, {root.resolve()})
        by_content = [p.name for p in self.pictures if p.suffix.lower() not in images.ENDINGS]
        if by_content:
            count, first = len(by_content), by_content[0]
            log.info("%s: %d pictures told by content (first: %s)", root, count, first)

    def _enter(self, folder: Path, above: set[Path]) -> None:
        """Look through a folder; above: those on the way, which a link may lead back to."""
        for path in self._visible(folder):
            if path.is_dir():
                self.folders.append(path)
                if path.resolve() not in above:
                    self._enter(path, above | {path.resolve()})
            elif path.suffix.lower() in images.ENDINGS or images.starts_like_a_picture(path):
                self.pictures.append(path)
            else:
                self.others.append(path)

    def _visible(self, folder: Path) -> list[Path]:
        try:
            entries = sorted(folder.iterdir(), key=lambda path: (nfc(path.name), path.name))
        except OSError as error:
            why = f"cannot be read ({error.strerror}); mend its permissions"
            self.problems.append(f"{folder}: {why}")
            return []
        shown = []
        taken = set()
        for path in entries:
            name = nfc(path.name)
            if name.startswith(".") or name == "__MACOSX":
                self.skipped["hidden"] += 1
            elif not name.isprintable():  # a line break, or bytes that are not UTF-8
                self.problems.append(f"{ascii(str(path))}: unprintable name; rename it in UTF-8")
            elif name in taken and not path.is_dir():  # two folders: see _name_problems
                self.problems.append(f"{path}: another file spells this name in Unicode; rename it")
            else:
                shown.append(path)
            taken.add(name)
        return shown

    def file(self, path: Path, split: str = "", credit: tuple[str, ...] = ()) -> File:
        """The entry of a picture."""
        return File(nfc(path.relative_to(self.root).as_posix()), path, split, credit)

    def skip(self, path: Path, where: str = "") -> None:
        """Count something that is left out; the folder's own tables are not."""
        if path.parent != self.root or path.name.lower() not in OWN:
            ending = path.suffix.lower() or "file without ending"
            self.skipped[("folder" if path.is_dir() else ending) + where] += 1

    def say(self) -> None:
        """Log what was left out."""
        if self.skipped:
            kinds = ", ".join(f"{count} {what}" for what, count in sorted(self.skipped.items()))
            log.info("%s: skipped %s", self.root, kinds)


def from_folders(walk: Walk, reading: Reading) -> list[ClassFolder]:
    """The classes of a folder of class folders, divided into splits or not."""
    # the folders train, val, test ... that hold class folders; none where the classes are above
    places = {path.relative_to(walk.root).parts[:-1] for path in walk.pictures}
    direct = {parts[0] for parts in places if len(parts) == 1}
    tops = sorted({p[0] for p in places if len(p) > 1 and p[0].lower() in SPLITS} - direct)
    tops = tops if all(name.lower() in SPLITS for name in direct) else []
    named = roles(tops)
    level = 2 if tops else 1  # folders from the root to a class folder, itself among them
    classes: dict[str, ClassFolder] = {}

    def place(path: Path) -> tuple[str, int]:
        """(class folder on the way, steps below it); steps are 0 beside all class folders."""
        parts = path.relative_to(walk.root).parts
        if len(parts) < level or (tops and parts[0] not in tops):
            return "", 0
        name = parts[level - 1]
        return nfc(name) if tops else name, len(parts) - level  # one class in two splits

    for path in walk.folders:
        name, steps = place(path)
        if name and not steps:
            classes.setdefault(name, ClassFolder("", path.name))
        elif path.name not in tops and not (steps and reading.recursive):
            walk.skip(path)
    for path in walk.others:
        name, steps = place(path)
        walk.skip(path, "" if steps else BESIDE)
        if steps:
            classes[name].others[path.suffix.lower() or "without ending"] += 1
    for path in walk.pictures:
        name, steps = place(path)
        if not steps:
            walk.skip(path, BESIDE)
        elif steps == 1 or reading.recursive:
            top = path.relative_to(walk.root).parts[0]
            classes[name].files.append(walk.file(path, named.get(top, "")))
        else:
            classes[name].deeper += 1
            walk.skipped["pictures in folders inside class folders (--recursive takes them)"] += 1
    if tops:
        log.info("%s: split folders: %s", walk.root, named or f"{', '.join(tops)}, undivided")
    found = list(classes.values())
    names = shown(one.folder for one in found)
    for one in found:
        one.name = names[one.folder]
    return found
