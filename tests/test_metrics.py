"""Numbers of a run against known values, a naive loop, and records counted by hand."""

import json
import logging

import numpy as np
import pytest

from finer1_lite.metrics import (
    harmonic_mean,
    paired_bootstrap,
    read_records,
    summarise,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857, table I, score method
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_intervals(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends_are_exact_and_mirrored():
    low, high = wilson(0, 10)
    assert low == 0 and high == pytest.approx(1.959964**2 / (10 + 1.959964**2))
    assert wilson(10, 10) == pytest.approx((1 - high, 1)) and wilson(10, 10)[1] == 1
    assert wilson(3, 10) == pytest.approx(tuple(1 - x for x in reversed(wilson(7, 10))))


@pytest.mark.parametrize(("right", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(right, n):
    with pytest.raises(ValueError, match=f"right={right} of n={n}"):
        wilson(right, n)


def test_harmonic_mean():
    assert harmonic_mean(0.4, 0.6) == pytest.approx(0.48)
    assert harmonic_mean(0.0, 1.0) == 0 and harmonic_mean(0.0, 0.0) == 0
    with pytest.raises(ValueError):
        harmonic_mean(-0.1, 0.5)


def test_bootstrap_of_a_constant_difference_has_no_width():
    ones, none = np.ones((3, 8)), np.zeros((1, 8))
    assert paired_bootstrap(ones, none, draws=50) == (1, 1, 1)


def test_bootstrap_pairs_seeds_and_pictures():
    """a and b vary much but alike, so a paired interval must be zero wide."""
    a = np.random.default_rng(0).integers(2, size=(3, 30))
    assert paired_bootstrap(a, a, draws=100) == (0, 0, 0)
    _, low, high = paired_bootstrap(a, a[::-1], draws=100)  # seeds paired wrongly
    assert low < 0 < high


@pytest.mark.parametrize("b_seeds", [1, 2, 3])
def test_bootstrap_equals_a_naive_loop_with_the_same_draws(b_seeds):
    make = np.random.default_rng(5)
    a, b = make.integers(2, size=(3, 7)), make.integers(2, size=(b_seeds, 7))
    rng, found = np.random.default_rng(11), []
    for _ in range(40):
        rows = list(rng.integers(3, size=3))
        rows_b = rows if b_seeds == 3 else list(rng.integers(b_seeds, size=b_seeds))
        pictures = list(rng.integers(7, size=7))
        total_a = sum(int(a[s, p]) for s in rows for p in pictures) / (len(rows) * 7)
        total_b = sum(int(b[s, p]) for s in rows_b for p in pictures) / (len(rows_b) * 7)
        found.append(total_a - total_b)
    found.sort()
    at = [0.025 * 39, 0.975 * 39]  # linear between order statistics
    low, high = (found[int(x)] + (x % 1) * (found[int(x) + 1] - found[int(x)]) for x in at)
    mean = sum(map(int, a.flat)) / a.size - sum(map(int, b.flat)) / b.size
    assert paired_bootstrap(a, b, draws=40, seed=11) == pytest.approx((mean, low, high))


def test_bootstrap_covers_the_true_difference():
    """200 runs of 80 pictures: pictures differ in difficulty, the true gain is known."""
    rng, covered = np.random.default_rng(3), 0
    for run in range(200):
        ease = rng.uniform(0, 0.8, size=80)  # mean 0.4; a gains 0.1 on every picture
        b, a = rng.random((1, 80)) < ease, rng.random((1, 80)) < ease + 0.1
        _, low, high = paired_bootstrap(a, b, draws=200, seed=run)
        covered += low <= 0.1 <= high
    assert 0.88 * 200 <= covered <= 0.99 * 200


def test_bootstrap_interval_sees_the_luck_of_training():
    """Seeds that disagree on every picture: pictures alone would give no width at all."""
    lucky, base = np.repeat([[1], [0], [1]], 50, axis=1), np.zeros((1, 50))
    mean, low, high = paired_bootstrap(lucky, base, draws=500)
    assert mean == pytest.approx(2 / 3) and low == 0 and high == 1


def test_bootstrap_names_all_faults():
    with pytest.raises(ValueError, match="3 pictures in a, 4 in b(.|\n)*draws=0"):
        paired_bootstrap(np.ones((1, 3)), np.ones((1, 4)), draws=0)
    with pytest.raises(ValueError, match=r"a has shape \(3,\)(.|\n)*b has shape \(1, 0\)"):
        paired_bootstrap(np.ones(3), np.ones((1, 0)))


def record(stage, photo, correct, *, seed=None, split="seen", task="open", **more):
    row = {
        "stage": stage,
        "seed": seed,
        "split": split,
        "task": task,
        "photo": photo,
        "prompt": "answer" if stage == "base" else "think",
        "label": "wren",
        "options": ["wren", "robin", "finch", "tit"] if task == "closed" else None,
        "completion": "<answer>wren</answer>",
        "answer": "wren",
        "named": "wren",
        "correct": correct,
        "tokens": 10,
        "cut": False,
    }
    return row | more


def test_summary_of_records_counted_by_hand():
    rows = [
        record("base", "p1", False),
        record("base", "p2", True, named=None, cut=True, tokens=30),
        record("base", "p1", False, prompt="think"),
        record("base", "p9", True, split="unseen"),
        record("base", "p1", True, task="closed"),
        *(record("sft", p, p == "p1", seed=0) for p in ("p1", "p2")),
        *(record("sft", p, True, seed=2) for p in ("p1", "p2")),
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
        "cut": 0.5,
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
    rows = [record("sft", "p1", seed == 0, seed=seed) for seed in (0, 1, 2)]
    rows += [record("tapo", "p1", True, seed=seed) for seed in (1, 2, 3)]
    assert summarise(rows)["differences"]["tapo-sft"]["seen"]["open"] == {
        "mean": 1,
        "low": 1,
        "high": 1,
        "n": 1,
        "seeds": 2,
    }


def test_summary_counts_the_pictures_that_every_seed_answered(caplog):
    rows = [record("sft", p, True, seed=0) for p in ("p1", "p2", "p3")]
    rows += [record("sft", "p2", False, seed=1)]
    with caplog.at_level(logging.WARNING, "finer1_lite"):
        cell = summarise(rows)["sft"]["seen"]["open"]
    assert (cell["n"], cell["seeds"]) == (1, [1, 0]) and "left out 2 pictures" in caplog.text


def test_summary_is_the_same_in_any_order_of_records():
    rng = np.random.default_rng(1)
    rows = [
        record(stage, f"p{i}", bool(rng.integers(2)), seed=seed)
        for stage in ("sft", "tapo")
        for seed in (0, 1)
        for i in range(20)
    ]
    assert summarise(rows) == summarise(rows[::-1])


def test_summary_lists_every_faulty_record():
    rows = [
        record("sft", "p1", True, seed=0),
        record("sft", "p1", True, seed=0),
        record("sft", "p2", True),
        record("base", "p2", True, seed=1),
        record("tapo", "p2", True, seed=0, prompt="answer"),
        record("base", "p2", "yes"),
        {"stage": "base"},
        record(["sft"], "p3", True, seed=0),
    ]
    with pytest.raises(ValueError) as caught:
        summarise(rows)
    lines = str(caught.value).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [f"- record {i}" for i in range(2, 9)]
    assert "stands there twice" in lines[0] and "lacks seed" in lines[5]


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
