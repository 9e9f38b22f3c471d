"""The options of every command that reads photographs, and the command fetch."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finer1_lite.data.folders import Reading
from finer1_lite.data.hubsets import HUBSETS
from finer1_lite.runtime.options import REQUIRED, argument, given, option

if TYPE_CHECKING:
    from finer1_lite.species import Collection

KEYS = "; ".join(f"{name}: {one.repository} ({one.licence})" for name, one in HUBSETS.items())

OWN = ("out", "allow_missing")  # options that are no field of `Wanted`


@dataclass(frozen=True, kw_only=True)
class PhotoOptions:
    """The photographs of a command, and how their folder is read; without --photos, birds."""

    photos: Path | None = option(
        None, "folder of photographs, DIR/<class>/*.jpg; left out: paper birds"
    )
    descriptions: Path | None = option(
        None, "table class,description (default: DIR/descriptions.csv)"
    )
    coarse: str | None = option(
        None, 'what all the pictures show, in a word (default: "bird"; for --photos "object")'
    )
    shots: int | None = option(None, "training photographs of a seen class (default: 4)")
    unseen_share: float | None = option(
        None, "share of the classes that is never taught, only tested (default: 0.4; 0: none)"
    )
    recursive: bool = option(False, "pictures in folders inside a class folder are of that class")
    table: Path | None = option(
        None, "CSV or JSON lines with a file and its label a row, for a flat folder"
    )
    file_column: str = option("", "of --table (default: the usual names, such as file or image)")
    label_column: str = option("", "of --table (default: the usual names, such as label or class)")
    research_grade: bool = option(False, "iNaturalist: research-grade observations alone")
    names: Literal["scientific", "common"] = option(
        "scientific", "iNaturalist: what to call the classes; the other name is an alias"
    )
    skip_broken: bool = option(
        False, "go on without pictures that cannot be used or carry two labels, and list them"
    )

    @property
    def word(self) -> str:
        """The coarse word."""
        return self.coarse or ("object" if self.photos else "bird")

    def reading(self) -> Reading:
        """How the folder is read; the table's path as it is seen from there."""
        table = ""
        if self.table and self.photos:
            place = self.photos.expanduser()
            inside = place / self.table.expanduser()
            found = inside if inside.is_file() else self.table.expanduser()
            table = Path(os.path.relpath(found, place)).as_posix()
        own = {one.name: getattr(self, one.name) for one in fields(Reading)}
        return Reading(**own | {"table": table})

    def origin(self) -> dict[str, Any]:
        """The fields of `data.runs.Pictures`."""
        told = given(self, "photos", "descriptions", "unseen_share")
        return told | {"coarse": self.word, "reading": self.reading()}

    def collection(self) -> Collection:
        """The photographs of the folder."""
        from finer1_lite.data.runs import Pictures

        return Pictures(**self.origin()).pictures(**given(self, "shots"))


@dataclass(frozen=True, kw_only=True)
class FetchCommand:
    """A data set of a hub -> a folder for --photos.

    Draws some pictures of each class in one pass over the shards and writes OUT/<class>/*.jpg,
    classes.csv (names; which classes are seen, where that was released) and index.csv (split).
    Killed, the same command reads again and ends with the same bytes.
    """

    source: str = argument(
        "a key, for which the released classes are known, or any hub name or local folder of "
        f"`datasets` with a column of pictures and one of class labels. Keys: {KEYS}"
    )
    out: Path = option(REQUIRED, "folder to make")
    origin: str = option(
        "", "place of a key's pictures instead: hub name or folder", "--from", metavar="PLACE"
    )
    train: int = option(16, "training pictures a class to keep; 0: all")
    test: int = option(0, "test pictures a class to keep; 0: all")
    classes: int = option(0, "classes to keep, drawn by the seed; 0: all")
    seed: int = option(0, "of the draw")
    allow_missing: bool = option(
        False, "leave out classes that do not match the released list or have too few pictures"
    )
    image_column: str = option("", "of the pictures, where there are several")
    label_column: str = option("", "of the class labels, where there are several")
    train_splits: tuple[str, ...] = option((), "splits to draw training pictures from")
    test_splits: tuple[str, ...] = option((), "splits to draw test pictures from")
    config: str = option("", "of a data set that has several")
    revision: str = option("", "branch or commit; refs/convert/parquet: the hub's own conversion")

    def start(self) -> None:
        """Fetch, and say what came and how to use it."""
        from finer1_lite.data.hub import Wanted, fetch

        wanted = Wanted(**{name: value for name, value in vars(self).items() if name not in OWN})
        record = fetch(wanted, self.out, self.allow_missing)
        for what in ("broken", "copies_of_test_pictures", "two_labels", "left_out"):
            if record[what]:
                print(f"{what.replace('_', ' ')}: {len(record[what])} ({self.out}/fetch.json)")
        parts = ("classes", "pictures")
        classes, pictures = (", ".join(f"{n} {key}" for key, n in record[p].items()) for p in parts)
        print(f"{self.out}: classes: {classes}; pictures: {pictures}")
        hubset = wanted.hubset
        print(f"use it with --photos {self.out}" + (f" --coarse {hubset.coarse}" if hubset else ""))
        print(
            "lab and the table teacher want descriptions.csv (class,description) there; "
            "cot make --teacher local or endpoint, lab --chains and evaluate do without"
        )
