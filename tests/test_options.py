"""What each option of TAPO does to a step: pictures, rewards, advantages, gradients."""

import copy
import itertools
import random
from dataclasses import replace

import pytest
import torch
from tiny_tapo import (
    OFF,
    TINY,
    Stage,
    adapted,
    every_other,
    gathered,
    gradients,
    shorten,
    stir,
    update,
    weights,
)

from finer1_lite import generation, logprobs, losses, models, rewards, tapo
from finer1_lite.generation import Rollouts, Student
from finer1_lite.species import Photo
from finer1_lite.tapo import train_tapo
from finer1_lite.triplets import draw_triplets

WEIGHTS = {  # term -> its weight
    "inter_class_kl": "inter_class_weight",
    "anchor_entropy": "anchor_entropy_weight",
    "negative_entropy": "negative_entropy_weight",
}
DEFAULTS = TINY.to_dict()["tapo"]


@pytest.fixture(scope="module")
def held(student, birds, tmp_path_factory):
    """A stage that holds two groups of answers of different lengths."""
    mine = Student(copy.deepcopy(student.model), student.processor)
    mine = models.add_adapter(mine, TINY, seed=0)
    stir(mine.model)
    stage = Stage(mine, birds, tmp_path_factory.mktemp("held"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards, "accuracy_reward", every_other())
        stage.sample(0)
    shorten(stage.kept)
    return stage


@pytest.fixture
def stage(held):
    """The same, with the default settings again."""
    kept, held.dropped = list(held.kept), []
    held.change(**DEFAULTS)
    yield held
    held.kept = kept


# --- which tensors a term's gradient reaches -----------------------------------------


def weights_of(term: str, size: float = 1.0) -> dict[str, float]:
    """One term alone; `policy` has no weight of its own."""
    return {weight: size * (name == term) for name, weight in WEIGHTS.items()}


def reached(stage, monkeypatch, term: str) -> set[str]:
    """The pictures whose log-probabilities get a gradient from this term alone.

    Asserts on the way that it is all of their answers' tokens or none, and no padding.
    """
    calls, real = [], logprobs.log_probs

    def spy(model, batch, tokens, mask, which, *rest, **more):
        out = real(model, batch, tokens, mask, which, *rest, **more)
        if out.requires_grad:
            out.retain_grad()
        calls.append(([batch.image_features[p] for p in which], mask.bool(), out))
        return out

    monkeypatch.setattr(logprobs, "log_probs", spy)
    stage.change(**weights_of(term))
    stage.model.eval()
    stage.prepare()
    stage.batch.advantages *= term == "policy"
    stage.learn()
    found = set()
    for features, mask, logps in calls:
        for row, seen in enumerate(features):
            grad = None if logps.grad is None else logps.grad[row]
            if grad is not None and grad.any():
                assert grad[mask[row]].all() and not grad[~mask[row]].any()
                found.add(names_of(stage)[seen.numpy().tobytes()])
    return found


def names_of(stage) -> dict[bytes, str]:
    """Features -> whether they are an anchor's, a positive's or a negative's."""
    found = {}
    for group in stage.kept:
        for name in ("anchor", "positive", "negative"):
            image = getattr(group.triplet, name).image()
            batch = generation.encode_prompts(
                stage.model, stage.student.processor, [stage.question], [image]
            )
            found[batch.image_features[0].numpy().tobytes()] = name
    return found


@pytest.mark.parametrize("negative_grad", [False, True])
@pytest.mark.parametrize("scored_on", ["anchor", "own"])
@pytest.mark.parametrize("term", ["policy", *WEIGHTS])
def test_each_terms_gradient_reaches_what_the_option_table_says(
    stage, monkeypatch, term, scored_on, negative_grad
):
    stage.change(scored_on=scored_on, negative_grad=negative_grad)
    own = {"anchor", "positive"} if scored_on == "own" else {"anchor"}
    other = {"negative"} if negative_grad else set()
    table = {
        "policy": own,
        "inter_class_kl": own | other,
        "anchor_entropy": own,
        "negative_entropy": other,
    }
    assert reached(stage, monkeypatch, term) == table[term]


@pytest.mark.parametrize("scored_on", ["anchor", "own"])
def test_the_gradient_of_the_whole_is_the_sum_of_its_terms(stage, scored_on):
    stage.change(scored_on=scored_on, negative_grad=True)
    total = 0
    for term in ("policy", *WEIGHTS):
        stage.change(**weights_of(term, 0.5))
        gradient = update(stage)[1]
        if term == "policy":
            policy = gradient
            total = gradient
        else:
            assert (gradient - policy).abs().max() > 1e-3
            total = total + gradient - policy
    stage.change(**dict.fromkeys(WEIGHTS.values(), 0.5))
    torch.testing.assert_close(update(stage)[1], total, rtol=1e-4, atol=1e-4)


# --- the inter-class term ------------------------------------------------------------


def test_on_right_rollouts_only_wrong_ones_are_not_pushed(stage, monkeypatch):
    """Fact to keep: on all, the term drives wrong answers too."""
    grads = {}
    for on in ("all", "right"):
        stage.change(inter_class_on=on, **weights_of("inter_class_kl"))
        seen, real = [], losses.tapo_loss

        def spy(logps, *rest, real=real, seen=seen, **more):
            logps.retain_grad()
            seen.append(logps)
            return real(logps, *rest, **more)

        with monkeypatch.context() as patch:
            patch.setattr(losses, "tapo_loss", spy)
            stage.prepare()
            stage.batch.advantages *= 0
            stage.learn()
        grads[on] = torch.cat([logps.grad for logps in seen])
    right = stage.batch.correct.bool()
    assert right.tolist() == [True, False] * 4
    assert grads["all"][~right].any(1).all() and not grads["right"][~right].any()
    torch.testing.assert_close(grads["right"][right], grads["all"][right])


# --- rewards, advantages, answers that were cut --------------------------------------


def test_a_baseline_for_each_picture_is_blind_to_which_picture_is_easier(stage):
    """Both answers right on the anchor, both wrong on the positive: only the pictures differ."""
    first = replace(stage.kept[0], reward=torch.tensor([0.9, 0.9, 0, 0]))
    second = replace(stage.kept[1], reward=torch.tensor([0.9, 0, 0, 0]))
    stage.kept = [first, second]
    pooled = stage.prepare().advantages
    stage.change(baseline="picture")
    apart = stage.prepare().advantages
    assert pooled[:4].abs().min() > 0.8 and not apart[:4].any()
    assert apart[4:].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5), 0, 0], abs=1e-5)


def test_long_answers_earn_less_the_nearer_they_come_to_the_limit(stage):
    """Limit 8, buffer 4: free up to 4 tokens, -1 at the limit."""
    stage.change(overlong_tokens=4, accuracy_weight=1.0, format_weight=0.0)
    mask = (torch.arange(8) < torch.tensor([3, 4, 6, 8])[:, None]).long()
    part = Rollouts(torch.zeros(4, 8, dtype=torch.long), mask, [""] * 4, mask.all(-1))
    triplet, pictures = stage.kept[0].triplet, stage.kept[0].prompts
    group = tapo.reward_group(triplet, pictures, part, stage.birds, stage.preset)
    assert group.reward.tolist() == [0, 0, -0.5, -1]
    stage.kept = [group]  # all wrong, yet some shorter: that alone makes advantages
    advantage = stage.prepare().advantages
    assert advantage[0] == advantage[1] > advantage[2] > advantage[3]
    stage.change(overlong_tokens=0)
    again = tapo.reward_group(triplet, pictures, part, stage.birds, stage.preset)
    assert not again.reward.any()


def test_the_reward_that_training_pays_has_the_penalty_in_it(stage):
    stage.change(overlong_tokens=4, accuracy_weight=0.7, format_weight=0.2)
    triplet, pictures = stage.kept[0].triplet, stage.kept[0].prompts
    good = f"<think>pink petals</think><answer>{triplet.anchor.species}</answer>"
    mask = (torch.arange(8) < 6).long()[None]
    part = Rollouts(torch.zeros(1, 8, dtype=torch.long), mask, [good], torch.zeros(1))
    group = tapo.reward_group(triplet, pictures, part, stage.birds, stage.preset)
    assert group.reward.item() == pytest.approx(0.7 + 0.2 - 0.5)


def test_masked_answers_weigh_in_the_baseline_and_not_in_the_loss(stage):
    cut = torch.tensor([False, True, False, False])
    stage.kept = [replace(g, truncated=cut) for g in stage.kept]
    stage.change(**weights_of("policy"))
    whole = stage.prepare()
    stage.change(mask_cut=True)
    sums, gradient = update(stage)
    assert torch.equal(stage.batch.advantages, whole.advantages)
    kept = ~torch.cat([cut, cut])
    assert torch.equal(stage.batch.completion_mask, whole.completion_mask * kept[:, None])
    rows = replace(  # the same, with the cut answers taken out by hand
        whole,
        completion_ids=whole.completion_ids[kept],
        completion_mask=whole.completion_mask[kept],
        correct=whole.correct[kept],
        advantages=whole.advantages[kept],
        scored_on=whole.scored_on[kept],
        negative=whole.negative[kept],
        negative_weights=whole.negative_weights[kept],
        token_count=int(whole.completion_mask[kept].sum()),
    )
    stage.model.zero_grad()
    loss = stage.loss(rows)
    loss.total.backward()
    assert sums["total"] == pytest.approx(loss.total.item(), abs=1e-6)
    torch.testing.assert_close(gradient, gathered(stage.model), rtol=1e-4, atol=1e-5)


def test_a_step_whose_answers_were_all_cut_is_skipped(fresh, birds, spread, tmp_path):
    """A gradient of zeros would still let the optimiser's momentum move the weights."""
    preset = TINY.with_(
        max_new_tokens=2, tapo__mask_cut=True, tapo__steps=3, tapo__learning_rate=1e-2
    )
    student = adapted(fresh, preset)
    before, logs = weights(student.model), []
    train_tapo(student, birds, preset, 0, tmp_path, on_step=lambda step, log: logs.append(log))
    for log in logs:
        assert log["skipped"] == log["truncated"] == 1 and log["groups_kept"] == 2
    assert len(logs) == 3
    for name, weight in weights(student.model).items():
        assert torch.equal(weight, before[name]), name


# --- pictures ------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(3, 1), (1, 3), (4, 0), (2, 2)])
def test_any_ratio_of_anchor_and_positive_rollouts(fresh, birds, spread, tmp_path, n, m):
    preset = TINY.with_(
        tapo__anchor_rollouts=n, tapo__positive_rollouts=m, tapo__scored_on="own", tapo__groups=1
    )
    stage = Stage(fresh, birds, tmp_path, preset)
    assert gradients(stage).abs().max() > 0
    (group,) = stage.kept
    assert len(group.completions) == n + m == len(stage.batch.completion_ids)
    assert stage.batch.scored_on.tolist() == [0] * n + [1] * m
    assert stage.batch.negative.tolist() == [1 + (m > 0)] * (n + m)


def test_kept_groups_without_variance_inside_a_picture_are_counted_for_any_ratio(stage):
    """All 32 ways in which 3 + 2 answers can be right: 30 are kept, and 2 of these are flat."""
    stage.change(anchor_rollouts=3, positive_rollouts=2)
    group, shape = stage.kept[0], torch.zeros(5)
    patterns = list(itertools.product((0.0, 1.0), repeat=5))
    stage.kept = [
        replace(group, accuracy=torch.tensor(p), format=shape, reward=shape) for p in patterns
    ]
    kept = [p for p in patterns if 0 < sum(p) < 5]
    flat = [p for p in kept if len(set(p[:3])) == len(set(p[3:])) == 1]
    assert (len(kept), len(flat)) == (30, 2)
    assert stage.log()["flat_share"] == pytest.approx(2 / 30, abs=1e-5)
    stage.kept, stage.dropped = stage.kept[:8], stage.kept[8:]
    assert stage.log()["flat_share"] == pytest.approx(2 / 30, abs=1e-5)  # of all with variance


def test_three_pictures_of_any_size_have_as_many_tokens_as_features(
    fresh, birds, spread, tmp_path, monkeypatch
):
    rng = random.Random(0)

    def resized(photo: Photo) -> Photo:
        size = rng.choice([(28, 28), (84, 84), (300, 40), (33, 190), (61, 77), (640, 480)])
        return Photo(f"{photo.id}{size}", photo.species, lambda: photo.image().resize(size))

    birds = replace(birds, train=tuple(resized(p) for p in birds.train))
    stage = Stage(fresh, birds, tmp_path, TINY.with_(tapo__scored_on="own"))
    sizes = set()
    for step in range(4):
        assert gradients(stage, step).isfinite().all()
        pictures = stage.batch.prompts
        counts = [len(features) for features in pictures.image_features]
        assert pictures.mm_token_type_ids.sum(-1).tolist() == counts
        image_pad = fresh.processor.image_token_id
        assert (pictures.input_ids == image_pad).sum(-1).tolist() == counts
        sizes |= {tuple(counts[:3]), tuple(counts[3:])}
    assert any(len(set(three)) == 3 for three in sizes)  # three sizes in one group


def test_a_student_that_wants_to_say_vision_tokens_cannot(fresh, birds, tmp_path):
    """Nor padding: with one of them in an answer, no picture could be scored with it."""
    banned = generation.suppress_tokens(fresh.processor)

    def pushed(module, args, logits):
        logits[..., banned] += 1e4
        return logits

    stage = Stage(fresh, birds, tmp_path)
    hook = generation.core_of(stage.model).lm_head.register_forward_hook(pushed)
    groups = stage.rollout(draw_triplets(birds, 2, 0, 0), torch.Generator().manual_seed(0))
    hook.remove()
    for group in groups:
        assert not torch.isin(
            group.completion_ids[group.completion_mask.bool()], torch.tensor(banned)
        ).any()


def test_the_settings_that_turn_the_negative_off_leave_its_picture_unread(stage):
    def pictures_of_a_group(**settings):
        stage.change(**settings)
        stage.sample(0)
        return len((stage.kept + stage.dropped)[0].prompts.image_features)

    off = {k.removeprefix("tapo__"): v for k, v in OFF.items()}
    assert pictures_of_a_group(**off) == 2  # anchor and positive
    for term in ("inter_class_kl", "negative_entropy"):
        assert pictures_of_a_group(**weights_of(term)) == 3


# --- rollouts scored on the negative -------------------------------------------------


def test_chosen_rollouts_alone_are_scored_on_the_negative(fresh, birds, spread, tmp_path):
    """One of the anchor's two answers and one of the positive's, each counted twice."""
    preset = TINY.with_(tapo__negative_rollouts=2)
    stage = Stage(fresh, birds, tmp_path, preset)
    stage.model.eval()
    stage.sample(0)
    batch = stage.prepare()
    assert batch.negative_weights.tolist() == [2, 0, 2, 0] * len(stage.kept)
    logps = tapo.score_on_negative(stage.student, batch, stage.preset)
    everyone = replace(batch, negative_weights=torch.ones_like(batch.negative_weights))
    whole = tapo.score_on_negative(stage.student, everyone, stage.preset)
    chosen = batch.negative_weights > 0
    torch.testing.assert_close(logps[chosen], whole[chosen])
    assert whole[~chosen].any() and not logps[~chosen].any()


@pytest.mark.parametrize("negative_grad", [False, True])
def test_the_negative_is_scored_with_adapters_inside_the_weights_unless_they_learn_there(
    negative_grad, fresh, birds, spread, tmp_path, monkeypatch
):
    """The same gradient as with adapters beside, and of passes through them one or two."""
    preset = TINY.with_(tapo__negative_grad=negative_grad, tapo__inter_class_weight=1.0)
    stage = Stage(fresh, birds, tmp_path, preset)
    stir(stage.model)
    stage.sample(0)
    batch, beside, found = stage.prepare(), [], []
    first = next(module for name, module in stage.model.named_modules() if name.endswith("lora_A"))
    first["default"].register_forward_hook(lambda *_: beside.append(torch.is_grad_enabled()))
    for most in (generation.MERGED, 0):
        monkeypatch.setattr(generation, "MERGED", most)
        stage.model.zero_grad()
        beside.clear()
        tapo.batch_loss(stage.student, batch, stage.preset).total.backward()
        found.append((gathered(stage.model), set(beside)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-6)
    assert found[0][1] == {True} and found[1][1] == {True, negative_grad}


@pytest.mark.parametrize("negative_grad", [False, True])
def test_over_all_choices_the_gradient_is_that_of_all_rollouts(
    negative_grad, fresh, birds, spread, tmp_path
):
    """Each answer scored in turn, with the weight of four: their mean is the exact gradient."""
    preset = TINY.with_(
        tapo__inter_class_weight=1.0,
        tapo__negative_entropy_weight=1.0,
        tapo__negative_grad=negative_grad,
    )
    stage = Stage(fresh, birds, tmp_path, preset)
    stir(stage.model)
    stage.model.eval()
    stage.sample(0)
    _, exact = update(stage)
    mean = torch.zeros_like(exact)
    for row in range(4):
        chosen = 4.0 * torch.nn.functional.one_hot(torch.tensor(row), 4)
        stage.batch.negative_weights = chosen.repeat(len(stage.kept))
        stage.learn()
        mean += gathered(stage.model) / 4
    torch.testing.assert_close(mean, exact, rtol=1e-3, atol=1e-6)


def test_a_micro_batch_without_a_chosen_rollout_is_scored_on_its_own_picture_alone(
    fresh, birds, spread, tmp_path
):
    """Any micro-batch gives the same gradient, also where none of its answers is pushed."""
    found = []
    for size in (8, 1):
        preset = TINY.with_(tapo__negative_rollouts=1, tapo__micro_batch=size)
        stage = Stage(fresh, birds, tmp_path / str(size), preset)
        fresh = stage.student
        stir(stage.model)
        found.append(gradients(stage))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-6)
