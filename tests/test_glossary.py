"""Every name of code in the glossary exists; every notebook links to it."""

import importlib
import re

import pytest
from paths import ROOT

TEXT = (ROOT / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8")
ROWS = [line.strip("| ").split(" | ") for line in TEXT.splitlines() if line.startswith("| ")]
ENTRIES = [row for row in ROWS if row[0] != "word"]


def find(name: str) -> object:
    """The module, class, function or field of that dotted name; AttributeError otherwise."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["finer1_lite", *parts[:size]]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            fields = getattr(found, "model_fields", None) or getattr(
                found, "__dataclass_fields__", {}
            )
            found = fields[part] if part in fields else getattr(found, part)
        return found
    raise AttributeError(name)


@pytest.mark.parametrize("row", ENTRIES, ids=lambda row: row[0])
def test_every_name_of_code_exists(row):
    names = re.findall(r"`([^`]+)`", row[-1])
    assert names or row[-1].strip() == "none"
    for name in names:
        find(name)


def test_a_name_that_is_gone_is_found():
    for gone in ("losses.k4", "triplets.Triplet.middle", "nowhere"):
        with pytest.raises(AttributeError):
            find(gone)


def test_no_word_is_explained_twice():
    words = [row[0] for row in ENTRIES]
    assert len(words) == len({*words}) and len(words) > 40
