"""What a log says of steps that taught nothing, and of what went wrong little by little."""

import pytest
from paths import ROOT

from finer1_lite.metrics import read_records
from finer1_lite.runtime.lessons import drifts, lessons

BESIDE = "right names are found beside the chain"
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


def test_a_chain_that_comes_apart_while_names_stay_right_is_said():
    """What 180 steps of a reward for the name alone did in the lab; a fall of both is no such."""
    ends = {"accuracy": (0.8, 0.9), "right_and_agrees": (0.5, 0.2)}
    log = [STEP | {name: of[n // 4] for name, of in ends.items()} for n in range(8)]
    (told,) = drifts(log)
    assert told.startswith(f"{BESIDE} (right_and_agrees from 0.5 to 0.2, accuracy from 0.8 to 0.9)")
    both = {"accuracy": 0.4, "right_and_agrees": 0.25}
    assert drifts([*log[:4], *(row | both for row in log[4:])]) == []
    none_right = {"accuracy": 0.0, "right_and_agrees": 0.0}
    assert drifts([*log[:4], *(row | none_right for row in log[4:])]) == []
    assert drifts([row | none_right for row in log[:4]] + log[4:]) == []


@pytest.mark.parametrize(
    "run, says",
    [
        ("healthy", []),
        ("zero_variance", []),
        ("wrong_mask", []),  # from the first step on: no drift
        ("high_rate", ["the right form was lost"]),
        ("format_hacking", ["something other than the right name is paid", BESIDE]),
        (
            "section_collapse",
            ["something other than the right name", BESIDE, "completions changed in size"],
        ),
        ("entropy_collapse", [BESIDE, "completions become all alike"]),
    ],
)
def test_stored_runs_with_a_fault_are_told_from_the_healthy_one(run, says):
    log = read_records(ROOT / "assets" / "results" / "reading_runs" / f"{run}.jsonl")
    told = drifts(log)
    assert [t.startswith(s) for t, s in zip(told, says, strict=True)] == [True] * len(says)
    if run == "format_hacking":
        assert "rewards/make:thorough from 0.411 to 0.826" in told[0]
