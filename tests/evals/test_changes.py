"""What changed: counted by hand, paired by thing, nothing measured left out of the page."""

import pytest

from finer1_lite.evals import changes
from finer1_lite.evals.pages import Table


def rows(measure, before, after):
    sides = (("before", before), ("after", after))
    return [
        {"measure": measure, "when": when, "item": str(i), "correct": bool(right)}
        for when, side in sides
        for i, right in enumerate(side)
        if right is not None
    ]


def test_change_counts_both_ways():
    found = changes.change([1, 1, 0, 0], [1, 0, 1, 1])
    assert (found["gained"], found["lost"]) == (2, 1)
    assert found["before"]["share"] == 0.5 and found["after"]["n"] == 4
    assert found["difference"]["mean"] == 0.25
    assert changes.share_of([]) == {"n": 0}
    assert "difference" not in changes.change([], [])


def test_before_and_after_are_paired_by_thing_whatever_the_order():
    some = rows("quiz", [1, 0, 1, None], [0, 1, None, 1])
    for order in (some, some[::-1]):
        cell = changes.summary(order)["quiz"]
        assert (cell["gained"], cell["lost"], cell["before"]["n"]) == (1, 1, 2)


def test_the_page_holds_every_kind_of_row():
    faith = {"measure": "faithfulness, edited marks", "item": "0", "changes": True}
    some = [
        *rows("quiz", [1, 0, 1], [1, 1, 1]),
        {"measure": "CKA, vision", "when": "both", "value": 0.5},
        {**faith, "when": "before", "follows": True},
        {**faith, "when": "after", "follows": False},
        {"measure": "guess", "when": "control", "item": "0", "correct": True},
    ]
    first, second, third = (b for b in changes.blocks(some) if isinstance(b, Table))
    assert first.rows[0][:2] == ("quiz", "66.7 [20.8, 93.9]")
    assert first.rows[0][3].startswith("+33.3 [") and first.rows[0][4] == "1 / 0"
    assert first.rows[1] == ("guess", "100.0 [20.7, 100.0]", "", "", "", "", "1")
    assert second.rows == [("CKA, vision", "0.500")]
    assert [line[:2] for line in third.rows] == [
        ("before", "edited marks"),
        ("after", "edited marks"),
    ]
    assert third.rows[0][3].startswith("100.0") and third.rows[1][3].startswith("0.0")
    axis = changes.figure(some).axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["quiz", "guess"]


def test_a_measure_of_nothing_says_so():
    cell = changes.summary(rows("quiz", [None, 1], [1, None]))["quiz"]
    assert cell["before"] == {"n": 0} and cell["p"] == pytest.approx(1)
    table = changes.blocks(rows("quiz", [None, 1], [1, None]))[-1]
    assert table.rows[0][1] == "nothing to ask"
