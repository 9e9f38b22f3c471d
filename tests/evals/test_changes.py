"""What changed: counted by hand, paired by thing, nothing measured left out of the page."""

import pytest

from finer1_lite.evals import changes, figures


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
    ]
    found = changes.summary(some)
    first, second, third = (table.to_dict("records") for table in changes.tables(found).values())
    assert (first[0]["measured"], first[0]["before, %"]) == ("quiz", "66.7 [20.8, 93.9]")
    assert first[0]["difference, points"].startswith("+33.3 [")
    assert first[0]["gained / lost"] == "1 / 0"
    assert len(first) == 1
    assert second == [{"features": "CKA, vision", "linear CKA": "0.500"}]
    assert [(line["training"], line["what was done"]) for line in third] == [
        ("before", "edited marks"),
        ("after", "edited marks"),
    ]
    assert [line["answer follows, %"].partition(" ")[0] for line in third] == ["100.0", "0.0"]
    axis = figures.changes(found).axes[0]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["quiz"]


def test_a_measure_of_nothing_says_so():
    found = changes.summary(rows("quiz", [None, 1], [1, None]))
    assert found["quiz"]["before"] == {"n": 0} and found["quiz"]["p"] == pytest.approx(1)
    first, *others = changes.tables(found).values()
    assert first["before, %"].tolist() == ["nothing to ask"]
    assert all(table.empty for table in others)
