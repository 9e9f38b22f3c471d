"""The command fetch: a hub's data set, or a local one, as a folder of photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finer1_lite.data.hubsets import HUBSETS
from finer1_lite.runtime.options import REQUIRED, argument, option

KEYS = "; ".join(f"{name}: {one.repository} ({one.licence})" for name, one in HUBSETS.items())

OWN = ("out", "allow_missing")  # options that are no field of `Wanted`


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
            "cot make --teacher local or endpoint and evaluate do without"
        )
