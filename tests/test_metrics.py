"""Numbers of a run against records counted by hand."""

import json
import logging

import numpy as np
import pytest
from scored import record, rotated

from finer1_lite.evals.tables import by_length, holm
from finer1_lite.metrics import (
    STAGES,
    Entry,
    Record,
    accuracy,
    difference,
    entries,
    read_records,
    scores,
    summarise,
    table,
    wilson,
)


def test_holm_by_hand():
    """The smallest p times 4, the next times 3, never less than one before it, at most 1."""
    assert holm([0.04, 0.01, 0.9, 0.012]) == pytest.approx([0.08, 0.04, 0.9, 0.04])
    assert holm([0.3, 0.6]) == pytest.approx([0.6, 0.6]) and holm([0.9, 0.9]) == [1, 1]
    assert holm([]) == []


def lengths(tokens, right):
    pairs = enumerate(zip(tokens, right, strict=True))
    return table(record(str(i), bool(ok), tokens=n) for i, (n, ok) in pairs)


def test_length_bins_hold_every_completion_once_and_split_no_length():
    found = by_length(lengths([1, 1, 1, 1, 2, 3, 90, 91], [1, 1, 1, 0, 1, 0, 0, 0]), bins=3)
    assert found["n"].sum() == 8 and (found["n"] * found["accuracy"]).sum() == 4
    assert all(found["longest"].to_numpy()[:-1] < found["shortest"].to_numpy()[1:])
    assert by_length(table([])).empty
    (one,) = by_length(lengths([5] * 9, [1] * 9)).to_dict("records")
    assert one == {"shortest": 5, "longest": 5, "n": 9, "accuracy": 1}


# --- accuracy and difference of records ----------------------------------------------------


def test_rotations_of_a_picture_count_as_one_picture():
    found = accuracy(table(rotated("1", [1, 1, 1, 0]) + rotated("2", [0, 0, 0, 0])))
    assert (found["accuracy"], found["n"], found["seeds"]) == (0.375, 2, [0.375])
    assert (found["low"], found["high"]) == wilson(0.75, 2)
    assert accuracy(table([])) == {}


def test_what_is_not_measured_is_absent():
    rows = [record("1", task="open"), record("2", task="open", similarity=0.25, encoder="toy")]
    found = accuracy(table(rows))
    assert found["similarity"] == 0.25 and "chance" not in found
    assert "similarity" not in accuracy(table(rows[:1]))


def test_answers_out_of_the_options_are_counted_apart():
    rows = [record("1", False, named="sparrow"), record("2", False), record("3")]
    found = accuracy(table(rows))
    assert found["not_offered"] == found["invalid"] == pytest.approx(1 / 3)


def test_entries_stand_in_the_order_of_the_tables():
    rows = [record(model="b", prompt="none"), record(model="m", prompt="think")]
    rows += [record(model="m", picture=False), record(model="m", prompt="answer")]
    rows += [record(model="k", error="broken")]
    assert list(map(str, entries(table(rows)))) == [
        "m (answer)",
        "m (think)",
        "m, no picture (think)",
        "b (none)",
    ]
    assert list(scores(table(rows[:1]))) == [Entry("b", "none")]


def test_a_difference_is_paired_by_question():
    a = rotated("1", [1, 1, 1, 1]) + rotated("2", [1, 1, 0, 0]) + [record("9")]
    b = rotated("2", [1, 0, 0, 0]) + rotated("1", [0, 0, 0, 0])
    found = difference(table(a), table(b))
    assert (found["n"], found["mean"]) == (2, pytest.approx(0.625))
    assert (found["only_a"], found["only_b"]) == (1, 0)  # a picture counts once
    assert difference(table(a), table([record("7")])) == {}
    without = difference(table(a), table(b), draws=0)
    assert without == {key: found[key] for key in ("n", "seeds", "only_a", "only_b", "p")}


def test_training_seeds_are_paired_and_an_untrained_model_stands_beside_all():
    trained = [record("1", seed == 0, seed=seed, model="t") for seed in (0, 1, 2)]
    other = [record("1", True, seed=seed) for seed in (1, 2, 3)]
    cell = difference(table(trained), table(other))
    assert (cell["mean"], cell["seeds"]) == (-1, 2) and "p" not in cell
    for sign in (1, -1):
        sides = [table(trained), table([record("1", False)])][::sign]
        cell = difference(*sides)
        assert (cell["mean"], cell["seeds"]) == (pytest.approx(sign / 3), 3)
    one = difference(table(trained), table([record("1", True, seed=2)]))
    assert (one["only_a"], one["only_b"]) == (0, 1)  # of the one seed that both have


# --- records -------------------------------------------------------------------------------


def of_lab(stage, photo, correct, *, seed=None, task="open", **more):
    model, prompt, _ = STAGES[stage]
    given = {"model": model, "prompt": prompt, "seed": seed, "task": task}
    return record(photo, correct, **given | more)


def test_summary_of_records_counted_by_hand():
    rows = [
        of_lab("base", "p1", False),
        of_lab("base", "p2", True, named=None, truncated=True, tokens=30),
        of_lab("base_think", "p1", False),
        of_lab("base", "p9", True, split="unseen"),
        of_lab("base", "p1", True, task="closed"),
        *(of_lab("sft", p, p == "p1", seed=0) for p in ("p1", "p2")),
        *(of_lab("sft", p, True, seed=2) for p in ("p1", "p2")),
    ]
    found = summarise(rows)
    assert set(found) == {"base", "base_think", "sft", "differences"}
    cell = found["base"]["seen"]["open"]
    assert cell == {
        "accuracy": 0.5,
        "n": 2,
        "low": wilson(1, 2)[0],
        "high": wilson(1, 2)[1],
        "invalid": 0.5,
        "truncated": 0.5,
        "tokens": 20,
        "seeds": [0.5],
    }
    assert found["base"]["seen"]["closed"]["chance"] == 0.25
    assert found["base"]["harmonic"] == {"open": pytest.approx(2 / 3)}
    assert found["base_think"]["seen"]["open"]["n"] == 1 and "unseen" not in found["sft"]
    cell = found["sft"]["seen"]["open"]
    assert (cell["accuracy"], cell["n"], cell["seeds"]) == (0.75, 2, [0.5, 1.0])
    assert (cell["low"], cell["high"]) == wilson(1.5, 2)  # seeds do not multiply pictures
    assert set(found["differences"]) == {"sft-base", "sft-base_think"}
    difference = found["differences"]["sft-base"]["seen"]["open"]
    assert difference["mean"] == pytest.approx(0.25)
    assert (difference["n"], difference["seeds"]) == (2, 2)
    json.dumps(found, allow_nan=False)


def test_summary_pairs_the_seeds_that_both_stages_have():
    rows = [of_lab("sft", "p1", seed == 0, seed=seed) for seed in (0, 1, 2)]
    rows += [of_lab("tapo", "p1", True, seed=seed) for seed in (1, 2, 3)]
    assert summarise(rows)["differences"]["tapo-sft"]["seen"]["open"] == {
        "mean": 1,
        "low": 1,
        "high": 1,
        "n": 1,
        "seeds": 2,
    }


def test_summary_counts_the_pictures_that_every_seed_answered(caplog):
    rows = [of_lab("sft", p, True, seed=0) for p in ("p1", "p2", "p3")]
    rows += [of_lab("sft", "p2", False, seed=1)]
    with caplog.at_level(logging.WARNING, "finer1_lite"):
        cell = summarise(rows)["sft"]["seen"]["open"]
    assert (cell["n"], cell["seeds"]) == (1, [1, 0]) and "left out 2 pictures" in caplog.text


def test_summary_is_the_same_in_any_order_of_records():
    rng = np.random.default_rng(1)
    rows = [
        of_lab(stage, f"p{i}", bool(rng.integers(2)), seed=seed)
        for stage in ("sft", "tapo")
        for seed in (0, 1)
        for i in range(20)
    ]
    assert summarise(rows) == summarise(rows[::-1])


def test_summary_lists_every_faulty_record():
    rows = [
        of_lab("sft", "p1", True, seed=0),
        of_lab("sft", "p1", True, seed=0),
        of_lab("sft", "p2", True),
        of_lab("base", "p2", True, seed=1),
        of_lab("tapo", "p2", True, seed=0, prompt="answer"),
        of_lab("base", "p2", "yes"),
        {"model": "base"},
        of_lab("sft", "p3", True, seed=0, model=["SFT"]),
        "no record",
    ]
    with pytest.raises(ValueError) as caught:
        summarise(rows)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [f"- record {i}" for i in range(2, 10)]
    assert "stands there twice" in lines[0] and "lacks seed, prompt, task" in lines[5]
    assert "seed None of SFT (think)" in lines[1] and "TAPO (answer) is none of" in lines[3]
    assert "correct 'yes'" in lines[4] and "model ['SFT']" in lines[6]


def test_records_of_other_runs_are_read_and_may_repeat_a_picture():
    rows = [record("1"), record("1", False), record("1", split="third")]
    with pytest.raises(ValueError, match="record 3: split 'third'"):
        table(rows)
    frame = table(json.loads(json.dumps(rows[:2])))
    assert accuracy(frame)["accuracy"] == 0.5
    assert set(Record.model_fields) < set(frame.columns)
    with pytest.raises(ValueError, match=r"m \(think\) is none of base"):
        summarise(rows[:1])


def test_summary_of_nothing():
    assert summarise([]) == {"differences": {}}


def test_half_written_last_line_is_dropped(tmp_path, caplog):
    path = tmp_path / "records.jsonl"
    whole = json.dumps({"a": "ü\u2028"}, ensure_ascii=False).encode()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + b"\n" + whole[:cut])
        assert read_records(path) == [{"a": "ü\u2028"}]
    assert "half-written" in caplog.text
    path.write_bytes(whole + b"\n\n" + whole)  # only its line end is missing
    assert len(read_records(path)) == 2
    path.write_bytes(b"")
    assert read_records(path) == []


def test_every_other_malformed_line_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n\xff\n{"a": 2}\n{"cut\n')
    with pytest.raises(ValueError) as caught:
        read_records(path)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [f"- {path}, line {i}" for i in (2, 3, 4, 6)]
