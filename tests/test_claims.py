"""Numbers in the notebooks' prose are those that the notebooks' outputs show.

tests/claims/NN.json lists claims: `said`, words of a markdown cell with a number in them;
`shown`, words of an output (or, with `file`, of a committed file) with the same number in them.
The first number of `said` that stands between braces, {61} %, must be the one between braces in
`shown`, {0.6076}, rounded to the digits of the prose; `scale` (100) turns shares into per cent.
"""

import json
import re
from functools import cache

import pytest
from paths import ROOT

CLAIMS = [
    (path.stem, claim)
    for path in sorted((ROOT / "tests" / "claims").glob("*.json"))
    for claim in json.loads(path.read_text(encoding="utf-8"))
]
BRACED = re.compile(r"\{([^{}]+)\}")


def flat(text: str) -> str:
    return " ".join(text.split())


def prose(notebook: dict) -> list[str]:
    cells = (c for c in notebook["cells"] if c["cell_type"] == "markdown")
    return [flat("".join(cell["source"])) for cell in cells]


def outputs(notebook: dict) -> list[str]:
    """What the cells printed or showed as text."""
    found = []
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            texts = output.get("text", []), output.get("data", {}).get("text/plain", [])
            found += [flat("".join(text)) for text in texts if text]
    return found


def number(text: str) -> tuple[float, int]:
    """(value, digits behind the point) of "1,234.50", "-3" or "−0.2"."""
    plain = text.replace(",", "").replace("−", "-")
    return float(plain), len(plain.partition(".")[2])


def faults(claim: dict, notebook: dict) -> list[str]:
    """What does not hold of a claim."""
    said, shown = (BRACED.findall(claim[key]) for key in ("said", "shown"))
    if len(said) != 1 or len(shown) != 1:
        return ["wants one number in braces in `said` and one in `shown`"]
    places = {
        "said": prose(notebook),
        "shown": [flat((ROOT / claim["file"]).read_text(encoding="utf-8"))]
        if "file" in claim
        else outputs(notebook),
    }
    problems = [
        f"{key} is in no {'file or output' if key == 'shown' else 'markdown cell'}: {claim[key]}"
        for key, texts in places.items()
        if not any(flat(BRACED.sub(r"\1", claim[key])) in text for text in texts)
    ]
    (prose_value, digits), (value, _) = number(said[0]), number(shown[0])
    value *= claim.get("scale", 1)
    if abs(value - prose_value) > 0.5 * 10**-digits + 1e-9:
        problems.append(f"{prose_value} is said and {value:g} shown")
    return problems


@cache
def read(stem: str) -> dict:
    (path,) = (ROOT / "notebooks").glob(f"{stem}_*.ipynb")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "stem, claim", CLAIMS, ids=lambda v: v if isinstance(v, str) else v["said"]
)
def test_a_number_in_prose_is_the_one_that_was_shown(stem, claim):
    assert not faults(claim, read(stem))


def test_every_notebook_has_claims_and_all_have_sixty():
    stems = {path.name[:2] for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {stem for stem, _ in CLAIMS} == stems
    assert len(CLAIMS) >= 60


# --- the test itself: a claim fails when either side drifts ---------------------------

NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "source": ["It names 61 %\n", "of seen species."]},
        {
            "cell_type": "code",
            "source": [],
            "outputs": [{"output_type": "stream", "text": ["clipped   0.6076  47\n"]}],
        },
    ]
}
GOOD = {"said": "It names {61} % of", "shown": "clipped {0.6076} 47", "scale": 100}


@pytest.mark.parametrize(
    "change, said",
    [
        ({}, ""),
        ({"said": "It names {62} % of"}, "in no markdown cell"),
        ({"shown": "clipped {0.61} 47"}, "in no file or output"),
        ({"scale": 1}, "61.0 is said and 0.6076 shown"),
        ({"said": "It names 61 % of"}, "wants one number"),
        ({"shown": "clipped 0.6076 {47}"}, "is said and 4700 shown"),
    ],
)
def test_what_does_not_hold_is_found(change, said):
    found = "\n".join(faults(GOOD | change, NOTEBOOK))
    assert (said in found) if said else not found
