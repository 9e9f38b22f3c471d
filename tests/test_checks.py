"""Every check passes on sound input and fails, saying why, on broken input."""

from types import SimpleNamespace

import pytest
import torch

from finer1_lite import checks
from finer1_lite.generation import PromptBatch, Rollouts


def batch(features):
    """One prompt of two text and three picture tokens."""
    ids = torch.zeros(1, 5, dtype=torch.long)
    types = torch.tensor([[0, 1, 1, 1, 0]])
    return PromptBatch(ids, torch.ones_like(ids), types, ids.expand(3, 1, 5), features)


def test_image_tokens_match_fails_on_a_picture_of_another_size():
    checks.assert_image_tokens_match(batch((torch.zeros(3, 8),)))
    with pytest.raises(AssertionError, match=r"\[3\] picture tokens .* \[4\] picture features"):
        checks.assert_image_tokens_match(batch((torch.zeros(4, 8),)))
    with pytest.raises(AssertionError, match="tokenise every picture"):
        checks.assert_image_tokens_match(batch(()))


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    layer.bias.requires_grad = False
    return layer


def test_snapshot_copies_trainable_parameters_only(layer):
    before = checks.snapshot(layer)
    assert list(before) == ["weight"]
    layer.weight.data.add_(1.0)
    assert not torch.equal(before["weight"], layer.weight)


def test_adapter_moved_by_a_gradient(layer):
    before = checks.snapshot(layer)
    layer.weight.data[0, 0] += 0.01
    assert checks.assert_adapter_moved(before, checks.snapshot(layer)) == 1.0


def test_a_fresh_adapter_matrix_of_zeros_may_move():
    before, after = {"b": torch.zeros(2, 2)}, {"b": torch.tensor([[0.0, 1e-6], [0, 0]])}
    assert checks.assert_adapter_moved(before, after) == 1.0
    with pytest.raises(AssertionError, match="none of 1"):
        checks.assert_adapter_moved(before, before)


def test_adapter_moved_fails_when_nothing_changed(layer):
    with pytest.raises(AssertionError, match="none of 1 adapter matrices has moved"):
        checks.assert_adapter_moved(checks.snapshot(layer), checks.snapshot(layer))


def test_adapter_moved_fails_on_weight_decay_alone(layer):
    """AdamW shrinks weights whose gradient is zero: that must not pass as learning."""
    before = checks.snapshot(layer)
    optimiser = torch.optim.AdamW([layer.weight], lr=1e-3, weight_decay=0.1)
    for _ in range(60):
        layer.weight.grad = torch.zeros_like(layer.weight)
        optimiser.step()
    assert not torch.equal(before["weight"], layer.weight)
    with pytest.raises(AssertionError, match="no gradient reached"):
        checks.assert_adapter_moved(before, checks.snapshot(layer))


def test_adapter_moved_fails_on_frozen_broken_and_foreign_parameters(layer):
    before = checks.snapshot(layer)
    with pytest.raises(AssertionError, match="no parameter is trainable"):
        checks.assert_adapter_moved({}, {})
    with pytest.raises(AssertionError, match="different parameters"):
        checks.assert_adapter_moved(before, {"other": before["weight"]})
    with pytest.raises(AssertionError, match="nan or inf"):
        checks.assert_adapter_moved(before, {"weight": before["weight"] * torch.nan})


def paid(rows):
    return [SimpleNamespace(accuracy=row) for row in rows]


def test_some_variance_is_the_share_of_groups_that_have_it():
    assert checks.assert_some_variance(paid(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))) == 0.5


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_some_variance_fails_when_every_group_agrees(value):
    with pytest.raises(AssertionError, match="none of 3 groups has both right and wrong"):
        checks.assert_some_variance(paid(torch.full((3, 4), value)))


def rolled(*truncated):
    tokens = torch.zeros(len(truncated), 2, dtype=torch.long)
    return Rollouts(
        tokens, torch.ones_like(tokens), ["a"] * len(truncated), torch.tensor(truncated)
    )


def test_not_all_truncated():
    assert checks.assert_not_all_truncated([rolled(True, False)]) == 0.5
    assert checks.assert_not_all_truncated([rolled(True, True), rolled(False, False)]) == 0.5
    for broken in ([rolled(True, True)], [rolled(True), rolled(True)]):
        with pytest.raises(AssertionError, match="all 2 completions were truncated"):
            checks.assert_not_all_truncated(broken)
