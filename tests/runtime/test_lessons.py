"""What a log says of steps that taught nothing, and of what went wrong little by little."""

import pytest
from paths import ROOT

from finer1_lite.metrics import read_records
from finer1_lite.runtime.lessons import drifts, lessons

STEP = {"truncated": 0.0, "accuracy": 0.5, "varied": 8, "grad_norm": 0.7}


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"grad_norm": float("inf")}, "float16 overflowed"),
        ({"grad_norm": float("nan")}, "float16 overflowed"),
        ({"varied": 0, "accuracy": 1.0, "grad_norm": 0.0}, "every completion was right"),
        ({"skipped": True, "truncated": 1.0, "grad_norm": 0.0}, "cut at the length limit"),
        ({"skipped": True, "grad_norm": 0.0}, "all right or all wrong"),
    ],
)
def test_the_reason_is_the_one_that_the_row_shows(change, reason):
    (told,) = lessons([STEP | change, STEP])
    assert told.startswith("1 of 2 logged steps had nothing to learn from; in 1 of them ")
    assert reason in told
    assert lessons([STEP, STEP, STEP | change]) == []  # most steps taught something


def test_a_drift_is_said_with_the_means_of_both_ends():
    fine = [STEP | {"step": n, "format": 0.9, "length": 120.0, "reward": 0.5} for n in range(8)]
    assert drifts(fine) == [] and drifts(fine[:5]) == []  # too short to tell
    lost = [row | {"format": 0.9 if n < 3 else 0.1} for n, row in enumerate(fine)]
    (told,) = drifts(lost)
    assert told.startswith("the right form was lost (format from 0.9 to 0.1)")
    gone = [row | {"accuracy": 0.0, "length": None, "format": None} for row in fine[:3]]
    assert drifts(fine + gone) == []  # nothing at one end: nothing to compare


@pytest.mark.parametrize(
    "run, says",
    [
        ("healthy", []),
        ("zero_variance", []),
        ("wrong_mask", []),  # from the first step on: no drift
        ("high_rate", ["the right form was lost"]),
        ("format_hacking", ["something other than the right name is paid"]),
        (
            "section_collapse",
            ["something other than the right name", "completions changed in size"],
        ),
        ("entropy_collapse", ["completions become all alike"]),
    ],
)
def test_stored_runs_with_a_fault_are_told_from_the_healthy_one(run, says):
    log = read_records(ROOT / "assets" / "results" / "reading_runs" / f"{run}.jsonl")
    told = drifts(log)
    assert [t.startswith(s) for t, s in zip(told, says, strict=True)] == [True] * len(says)
    if run == "format_hacking":
        assert "rewards/make:thorough from 0.411 to 0.826" in told[0]
