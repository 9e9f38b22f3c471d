"""The six data sets of the paper: where a hub keeps them, and their released classes.

The seen and unseen classes are those of the question files that the paper's authors released
(`released_classes.json`, facts from PKU-ICST-MIPL/FineR1_ICLR2026, eval/data, MIT licence).
Hub repositories spell the same classes in their own ways ("001.Black_footed_Albatross",
"n02085936-Maltese_dog", "707-320"), so labels are matched by letters and digits alone.

What is known of the repositories comes from their public cards; none was downloaded here.
"""

import functools
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from finer1_lite.data.layouts import unnumbered
from finer1_lite.rewards import plain
from finer1_lite.runtime.options import argument, option

_RELEASED = Path(__file__).with_name("released_classes.json")


@dataclass(frozen=True)
class HubSet:
    """A data set: its name in the question files, its repository and how that is laid out.

    `released` is the word for all of its classes ("bird"), `fine` what an exact name is called;
    `label` lists the spellings of the column of class labels; `aliases` maps labels to released
    names where the words differ; `makers` are words that the released names put before a label.
    """

    released: str
    fine: str
    repository: str
    licence: str
    label: tuple[str, ...] = ("label",)
    aliases: dict[str, str] = field(default_factory=dict)
    makers: tuple[str, ...] = ()


_RESEARCH = "non-commercial research; read the terms on the data set's own page"
HUBSETS = {
    "cub": HubSet("bird", "species", "bentrevett/caltech-ucsd-birds-200-2011", _RESEARCH),
    "flowers": HubSet(
        "flower",
        "species",
        "dpdl-benchmark/oxford_flowers102",
        "none stated on the card",
        # what is left on both sides when the other 100 have been matched
        aliases={"ball moss": "air plant", "pink-yellow dahlia": "pink and yellow dahlia"},
    ),
    "pets": HubSet("pet", "breed", "timm/oxford-iiit-pet", "CC BY-SA 4.0"),
    "dogs": HubSet("dog", "breed", "maurice-fp/stanford-dogs", f"ImageNet's: {_RESEARCH}"),
    "cars": HubSet("car", "make, model and year", "tanganke/stanford_cars", _RESEARCH),
    # HuggingFaceM4/FGVC-Aircraft is a loading script, which datasets 4 does not run. The
    # name of this one's label column could not be looked up: any of the three is taken.
    "aircraft": HubSet(
        "aircraft",
        "variant",
        "Donghyun99/FGVC-Aircraft",
        _RESEARCH,
        label=("variant", "variation", "label"),
        makers=("Boeing", "Airbus"),
    ),
}


KEYS = "; ".join(f"{name}: {one.repository} ({one.licence})" for name, one in HUBSETS.items())


@dataclass(frozen=True)
class Wanted:
    """What `hub.fetch` is to fetch; the fields are the options of the command.

    Empty columns and splits mean: find out. Unseen classes of a released list need no training
    pictures.
    """

    source: str = argument(
        "a key, for which the released classes are known, or any hub name or local folder of "
        f"`datasets` with a column of pictures and one of class labels. Keys: {KEYS}"
    )
    origin: str = option(
        "", "place of a key's pictures instead: hub name or folder", "--from", metavar="PLACE"
    )
    train: int = option(16, "training pictures a class to keep; 0: all")
    test: int = option(0, "test pictures a class to keep; 0: all")
    classes: int = option(0, "classes to keep, drawn by the seed; 0: all")
    seed: int = option(0, "of the draw")
    image_column: str = option("", "of the pictures, where there are several")
    label_column: str = option("", "of the class labels, where there are several")
    train_splits: tuple[str, ...] = option((), "splits to draw training pictures from")
    test_splits: tuple[str, ...] = option((), "splits to draw test pictures from")
    config: str = option("", "of a data set that has several")
    revision: str = option("", "branch or commit; refs/convert/parquet: the hub's own conversion")

    @property
    def hubset(self) -> HubSet | None:
        """What is known of a key; None for any other source."""
        return HUBSETS.get(self.source)

    @property
    def place(self) -> str:
        """The hub name or folder that is read."""
        return self.origin or (self.hubset.repository if self.hubset else self.source)

    @property
    def limits(self) -> dict[str, int]:
        """Pictures a class to keep in each role; 0 is all."""
        undivided = self.train + self.test if self.train and self.test else 0
        return {"train": self.train, "test": self.test, "all": undivided}


@functools.cache
def released_classes(dataset: str) -> dict[str, bool]:
    """{class: whether it is seen} of a data set as the question files call it ("bird")."""
    lists = json.loads(_RELEASED.read_text(encoding="utf-8"))[dataset]
    return {name: split == "seen" for split, names in lists.items() for name in names}


def key(name: str) -> str:
    """What spellings of one class have in common: "017.Cardinal" and "cardinal" -> "cardinal"."""
    text = unicodedata.normalize("NFKD", plain(unnumbered(name.strip())))
    return "".join(letter for letter in text if letter.isalnum())


def match(hubset: HubSet, labels: Iterable[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """(label -> released class, labels without a class, classes without exactly one label)."""
    classes = released_classes(hubset.released)
    known = {key(name): name for name in classes}
    for name in classes:
        maker, _, rest = name.partition(" ")
        if maker in hubset.makers:
            known.setdefault(key(rest), name)
    known |= {key(label): name for label, name in hubset.aliases.items()}
    matched = {label: known[key(label)] for label in labels if key(label) in known}
    strange = sorted(set(labels) - matched.keys())
    spelled = {name: [one for one in matched if matched[one] == name] for name in classes}
    lacking = [name for name, found in spelled.items() if not found]
    lacking += [f"{n} ({' and '.join(found)})" for n, found in spelled.items() if len(found) > 1]
    return matched, strange, lacking


def coarse_word(dataset: str) -> tuple[str, str]:
    """(coarse word, word for the fine name) of a data set; its own name if it is not known."""
    fine = {one.released: one.fine for one in HUBSETS.values()}
    return dataset, fine.get(dataset, "kind")
