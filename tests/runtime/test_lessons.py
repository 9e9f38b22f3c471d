"""What a log says of steps that taught nothing."""

import pytest

from finer1_lite.runtime.lessons import lessons

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
