"""The options of every command that reads photographs, and the command fetch."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from finer1_lite.data.folders import Reading
from finer1_lite.data.hubsets import Wanted
from finer1_lite.runtime.files import require_none
from finer1_lite.runtime.options import REQUIRED, given, option

READING = {one.name: one.default for one in fields(Reading)}


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
    table: Path | None = option(
        None, "CSV or JSON lines with a file and its label a row, for a flat folder"
    )
    layout: Reading = Reading()

    def reading(self) -> Reading:
        """How the folder is read; the table's path as it is seen from there."""
        table = ""
        if self.table:
            self._require_photos("table")
            place, found = self.photos.expanduser(), self.table.expanduser()
            found = place / found if (place / found).is_file() else found
            table = Path(os.path.relpath(found, place)).as_posix()
        return replace(self.layout, table=table)

    def origin(self) -> dict[str, Any]:
        """The fields of `data.runs.Pictures`."""
        told = given(self, "table", "descriptions", "unseen_share") | given(self.layout, *READING)
        self._require_photos(*(name for name in told if told[name] != READING.get(name)))
        told = given(self, "photos", "descriptions", "unseen_share")
        coarse = self.coarse or ("object" if self.photos else "bird")
        return told | {"coarse": coarse, "reading": self.reading()}

    def _require_photos(self, *names: str) -> None:
        """DataError naming every option given in vain where there is no folder."""
        mend = "says how a folder is read; give --photos, or leave it out"
        vain = [f"--{name.replace('_', '-')}: {mend}" for name in names if not self.photos]
        require_none(vain, "no folder of photographs:")


@dataclass(frozen=True, kw_only=True)
class FetchCommand:
    """A data set of a hub -> a folder for --photos.

    Draws some pictures of each class in one pass over the shards and writes OUT/<class>/*.jpg,
    classes.csv (names; which classes are seen, where that was released) and index.csv (split).
    Killed, the same command reads again and ends with the same bytes.
    """

    wanted: Wanted
    out: Path = option(REQUIRED, "folder to make")
    allow_missing: bool = option(
        False, "leave out classes that do not match the released list or have too few pictures"
    )

    def start(self) -> None:
        """Fetch, and say what came and how to use it."""
        from finer1_lite.data.hub import fetch

        record = fetch(self.wanted, self.out, self.allow_missing)
        for what in ("broken", "copies_of_test_pictures", "two_labels", "left_out"):
            if record[what]:
                print(f"{what.replace('_', ' ')}: {len(record[what])} ({self.out}/fetch.json)")
        parts = ("classes", "pictures")
        classes, pictures = (", ".join(f"{n} {key}" for key, n in record[p].items()) for p in parts)
        print(f"{self.out}: classes: {classes}; pictures: {pictures}")
        hubset = self.wanted.hubset
        coarse = f" --coarse {hubset.released}" if hubset else ""
        print(f"use it with --photos {self.out}{coarse}")
        print(
            "lab and the table teacher want descriptions.csv (class,description) there; "
            "cot make --teacher local or endpoint, lab --chains and evaluate do without"
        )
