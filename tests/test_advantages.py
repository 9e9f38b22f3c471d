"""Advantages: closed forms, rounding, and which groups have something to teach."""

import json

import pytest
import torch
from paths import SHARED

from finer1_lite.advantages import (
    group_advantages,
    keep_group,
    picture_advantages,
    share_without_variance,
)

torch.set_num_threads(1)
GOLDEN = SHARED / "golden" / "tapo_golden.json"


def test_golden_cases():
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is not here")
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    for dtype in (torch.float32, torch.float64):
        for case in cases:
            rewards = torch.tensor(case["rewards"], dtype=dtype)
            got = group_advantages(rewards, case["rollouts_per_group"])
            expected = torch.tensor(case["expected"]["advantages"], dtype=dtype)
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_two_rollouts_are_one_over_root_two_apart_from_their_mean():
    got = group_advantages(torch.tensor([1.0, 0.0]), 2, eps=0.0)
    torch.testing.assert_close(got, torch.tensor([0.5**0.5, -(0.5**0.5)]))


def test_the_standard_deviation_is_the_unbiased_one_and_eps_is_added_to_it():
    rewards = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    std = (4 * 0.25 / 3) ** 0.5
    expected = torch.tensor([-0.5, -0.5, 0.5, 0.5], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards, 4), expected / (std + 1e-6))
    torch.testing.assert_close(group_advantages(rewards, 4, eps=1.0), expected / (std + 1.0))


def test_each_group_stands_alone():
    rewards = torch.rand(12, generator=torch.Generator().manual_seed(0))
    whole = group_advantages(rewards, 4)
    parts = torch.cat([group_advantages(part, 4) for part in rewards.split(4)])
    assert torch.equal(whole, parts)
    groups = whole.view(3, 4).double()
    torch.testing.assert_close(groups.mean(1), torch.zeros(3).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(groups.std(1), torch.ones(3).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(group_advantages(5 * rewards + 3, 4), whole, rtol=0, atol=1e-4)


def test_a_group_without_spread_teaches_nothing():
    """Computed in float32, the rounding of a mean is divided by eps and becomes a signal."""
    rewards = torch.full((10,), 0.1)
    naive = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    assert naive.abs().max() > 1e-3
    assert torch.equal(group_advantages(rewards, 10), torch.zeros(10))
    double = group_advantages(rewards.double(), 10)
    assert double.abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_dtype_of_the_rewards_is_kept(dtype):
    got = group_advantages(torch.tensor([1.0, 0.0, 0.5], dtype=dtype), 3)
    assert got.dtype == dtype and got.shape == (3,)
    assert got.tolist() == pytest.approx([1.0, -1.0, 0.0], abs=1e-2)
    assert group_advantages(torch.tensor([1, 0]), 2).dtype == torch.float32


@pytest.mark.parametrize(
    ("rewards", "size", "problems"),
    [
        (torch.zeros(5), 2, ["5 rewards", "groups of 2"]),
        (torch.zeros(4), 1, ["group_size is 1"]),
        (torch.zeros(4), 0, ["group_size is 0"]),
        (torch.zeros(4), -2, ["group_size is -2"]),
        (torch.zeros(2, 2), 2, ["(2, 2)"]),
        (torch.tensor([0.0, float("nan"), float("inf")]), 2, ["3 rewards", "[1, 2]"]),
    ],
)
def test_one_error_lists_all_faults(rewards, size, problems):
    with pytest.raises(ValueError) as caught:
        group_advantages(rewards, size)
    for problem in problems:
        assert problem in str(caught.value)


def test_keep_group_wants_some_right_and_some_wrong():
    table = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]])
    assert keep_group(table).tolist() == [False, False, True, True]
    assert keep_group(table, low=0.25, high=0.75).tolist() == [False] * 4  # strictly between
    assert keep_group(table.bool()).tolist() == [False, False, True, True]
    in_part = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 1]])
    assert keep_group(in_part).tolist() == [False, True]  # all alike teach nothing
    with pytest.raises(ValueError, match=r"\(4,\)"):
        keep_group(torch.zeros(4))


def test_share_without_variance_counts_the_groups_that_only_tell_the_pictures_apart():
    split = [[1.0, 1.0], [0.0, 0.0]]  # anchor all right, positive all wrong
    mixed = [[1.0, 0.0], [0.0, 0.0]]
    solved = [[1.0, 1.0], [1.0, 1.0]]  # not kept, so not counted
    assert share_without_variance(torch.tensor([split, mixed, solved])) == 0.5
    assert share_without_variance(torch.tensor([split])) == 1.0
    assert share_without_variance(torch.tensor([mixed, mixed])) == 0.0
    assert share_without_variance(torch.tensor([solved])) == 0.0
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        share_without_variance(torch.zeros(2, 4))


def test_pooling_two_pictures_makes_a_signal_that_neither_has():
    pooled = group_advantages(torch.tensor([1.0, 1.0, 0.0, 0.0]), 4)
    assert pooled.abs().min() > 0.8
    assert not group_advantages(torch.tensor([1.0, 1.0, 0.0, 0.0]), 2).any()


def test_a_baseline_a_picture_is_a_group_a_picture():
    """Three answers to the anchor and two to the positive, twice; brute force."""
    rewards = torch.rand(10, generator=torch.Generator().manual_seed(0))
    expected = [group_advantages(part, len(part)) for part in rewards.split([3, 2, 3, 2])]
    assert torch.equal(picture_advantages(rewards, (3, 2)), torch.cat(expected))
    assert torch.equal(picture_advantages(rewards, (5, 0)), group_advantages(rewards, 5))
    assert torch.equal(picture_advantages(rewards, (0, 5)), group_advantages(rewards, 5))


def test_a_baseline_a_picture_makes_no_signal_of_an_easier_picture():
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0])
    assert group_advantages(rewards, 5).abs().min() > 0.7
    assert not picture_advantages(rewards, (3, 2)).any()


def test_a_picture_with_one_rollout_has_no_baseline_of_its_own():
    with pytest.raises(ValueError, match="group_size is 1"):
        picture_advantages(torch.zeros(4), (3, 1))


@pytest.mark.parametrize(("shape", "counts"), [((7,), (3, 2)), ((2, 5), (3, 2)), ((4,), (0, 0))])
def test_rewards_that_do_not_fill_the_pictures_are_refused(shape, counts):
    with pytest.raises(ValueError, match="do not fill groups"):
        picture_advantages(torch.zeros(shape), counts)


def test_without_a_scale_the_advantage_is_what_lies_above_the_mean():
    """Dr. GRPO: divided by its std, one right answer of four weighs more than two of four."""
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0])
    plain = group_advantages(rewards, 4, scale="none")
    assert plain.tolist() == [0.75, -0.25, -0.25, -0.25, 0.5, 0.5, -0.5, -0.5]
    scaled = group_advantages(rewards, 4)
    assert scaled[0] / plain[0] == pytest.approx(2.0, abs=1e-4)
    assert scaled[4] / plain[4] == pytest.approx(3**0.5, abs=1e-4)
    assert picture_advantages(rewards, (2, 2), scale="none").tolist() == [0.5, -0.5] + [0.0] * 6
