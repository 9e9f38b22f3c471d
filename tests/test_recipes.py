"""Named methods are settings of one training; settings that cannot be are all refused at once."""

import math
from typing import Literal, get_args, get_origin

import pytest
import torch
from tiny_tapo import OFF, TINY, Stage, all_wrong, gradients, shorten, stir, update

from finer1_lite import losses, prompts, rewards, tapo
from finer1_lite.presets import RECIPES, Preset, TAPOSettings

CHOICES = {
    f"{stage}{name}": get_args(field.annotation)
    for stage, settings in (("", Preset), ("tapo.", TAPOSettings))
    for name, field in settings.model_fields.items()
    if get_origin(field.annotation) is Literal
}
PRESETS = [Preset.lab, Preset.lab_photos, Preset.colab, Preset.t4, Preset.l4, Preset.a100]
# recipe: rollouts on the anchor and on a second picture, pictures scored in a group, question
ROWS = {
    "tapo": (2, 2, 2, "think"),
    "dapo": (4, 0, 1, "think"),
    "tapo_agreement": (2, 2, 2, "think"),
    "dapo_agreement": (4, 0, 1, "think"),
    "grpo": (4, 0, 1, "think"),
    "dr_grpo": (4, 0, 1, "think"),
    "gspo": (4, 0, 1, "think"),
    "cispo": (4, 0, 1, "think"),
    "cls_rl": (4, 0, 1, "answer"),
    "papo": (4, 0, 2, "think"),
    "noisy_rollout": (2, 2, 1, "think"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_few_settings(name):
    """Same number of answers, nothing changed outside of TAPO, and the preset untouched."""
    assert RECIPES[name].keys() <= TAPOSettings.model_fields.keys()
    for make in PRESETS:
        preset, changed = make(), make().recipe(name)
        before, after = preset.to_dict(), changed.to_dict()
        own, other = before.pop("tapo"), after.pop("tapo")
        assert before == after and preset == make()
        moved = {key for key in own if own[key] != other[key]}
        assert moved <= RECIPES[name].keys()
        rollouts = [t["anchor_rollouts"] + t["positive_rollouts"] for t in (own, other)]
        assert rollouts[0] == rollouts[1]
        assert changed.recipe(name) == changed


def test_every_loss_by_name_is_a_choice_and_the_default_is_the_papers():
    assert CHOICES["tapo.loss_type"] == tuple(losses.LOSS_TYPES)
    assert TINY.tapo.loss_type == "dapo" and TINY.tapo.advantage_scale == "std"


def test_an_unknown_recipe_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'ppo'.*" + ".*".join(RECIPES)):
        Preset.lab().recipe("ppo")


def test_dapo_is_tapo_with_everything_off():
    off = TINY.with_(tapo__anchor_rollouts=4, tapo__positive_rollouts=0, **OFF)
    assert TINY.recipe("dapo") == off
    assert TINY.recipe("tapo") == TINY


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_by_the_same_functions(
    name, fresh, birds, spread, tmp_path, monkeypatch
):
    """One step of each: what it asks, which pictures it answers and scores, what it moves."""
    if name.endswith("agreement"):  # no random completion has any
        monkeypatch.setattr(tapo, "agreement", lambda *_: {"agrees": True})
    stage = Stage(fresh, birds, tmp_path, TINY.recipe(name))
    assert gradients(stage).abs().max() > 0
    anchors, positives, pictures, question = ROWS[name]
    assert stage.question == prompts.question(question, "bird")
    assert len(stage.batch.prompts.image_features) == 2 * (pictures + (positives > 0))
    for group in stage.kept:
        t = group.triplet
        assert len(group.completions) == anchors + positives == 4
        assert t.positive.id.endswith("#distorted") == (name == "noisy_rollout")
        assert t.negative.id.endswith("#masked") == (name == "papo")
    pushed = stage.parts["inter_class_kl"] > 0
    assert pushed == (name in ("tapo", "tapo_agreement", "papo"))
    assert ("flat_share" in stage.log()) == (positives > 0)


def test_grpo_keeps_groups_without_spread_and_learns_nothing_from_them(
    fresh, birds, tmp_path, monkeypatch
):
    monkeypatch.setattr(rewards, "accuracy_reward", all_wrong)
    stage = Stage(fresh, birds, tmp_path, TINY.recipe("grpo"))
    gradient = gradients(stage)
    assert len(stage.kept) == 2 and not stage.dropped
    assert not stage.batch.advantages.any() and not gradient.any()
    stage = Stage(fresh, birds, tmp_path, TINY.recipe("dapo"))
    stage.sample(0)
    assert not stage.kept and len(stage.dropped) == 4  # DAPO drew twice and kept none


LOSS = ("loss_type", "clip_low", "clip_high", "clip_dual", "length_limit")
LOSSES = {
    "dapo": ("dapo", 0.2, 0.28, 3.0, 8),
    "grpo": ("grpo", 0.2, 0.2, math.inf, 8),
    "dr_grpo": ("dr_grpo", 0.2, 0.2, math.inf, 8),
    "gspo": ("gspo", 3e-4, 4e-4, math.inf, 8),
    "cispo": ("cispo", 1.0, 4.0, 3.0, 8),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_and_the_clips_of_a_recipe_reach_the_loss(
    name, fresh, birds, spread, tmp_path, monkeypatch
):
    seen, real = [], losses.tapo_loss
    monkeypatch.setattr(losses, "tapo_loss", lambda *a, **k: seen.append(k) or real(*a, **k))
    gradients(Stage(fresh, birds, tmp_path, TINY.recipe(name)))
    assert tuple(seen[0][key] for key in LOSS) == LOSSES[name]
    assert seen[0]["completion_count"] == 8


def test_on_policy_gspo_is_grpo_and_cispo_is_dapo(fresh, birds, spread, tmp_path):
    """Every ratio is 1 where each batch of rollouts makes one update; more tell them apart."""
    stage = Stage(fresh, birds, tmp_path, TINY.recipe("dapo"))
    stir(stage.model)
    stage.sample(0)
    shorten(stage.kept)
    found = {}
    for name in LOSSES:
        stage.change(loss_type=name)
        found[name] = update(stage)[1]
    torch.testing.assert_close(found["gspo"], found["grpo"])
    torch.testing.assert_close(found["cispo"], found["dapo"])
    for one, other in (("dapo", "grpo"), ("dapo", "dr_grpo"), ("grpo", "dr_grpo")):
        assert (found[one] - found[other]).abs().max() > 1e-3


def test_dr_grpo_divides_by_no_standard_deviation(fresh, birds, spread, tmp_path):
    stage = Stage(fresh, birds, tmp_path, TINY.recipe("dr_grpo"))
    gradients(stage)
    assert stage.batch.advantages.tolist() == pytest.approx([0.45, -0.45] * 4)


@pytest.mark.parametrize("name", LOSSES)
def test_under_every_loss_micro_batches_do_not_change_the_gradient(
    name, fresh, birds, spread, tmp_path
):
    """And two updates share a batch of rollouts, each with the counts of its own half."""
    stage = Stage(fresh, birds, tmp_path, TINY.recipe("dapo").with_(tapo__loss_type=name))
    stir(stage.model)
    stage.sample(0)
    shorten(stage.kept)
    whole = update(stage)[1]
    stage.change(micro_batch=3)
    torch.testing.assert_close(update(stage)[1], whole, rtol=0, atol=1e-5)
    half = stage.batch.share(1, 2)
    assert (half.completion_count, half.token_count) == (4, int(half.completion_mask.sum()))


def test_cls_rl_pays_for_the_name_alone(fresh, birds, spread, tmp_path, monkeypatch):
    monkeypatch.setattr(rewards, "format_reward", lambda completion: 1.0)
    stage = Stage(fresh, birds, tmp_path, TINY.recipe("cls_rl"))
    stage.sample(0)
    assert stage.kept[0].format.tolist() == [1, 1, 1, 1]
    assert stage.kept[0].reward.tolist() == stage.kept[0].accuracy.tolist() == [1, 0, 1, 0]


# --- what is refused -----------------------------------------------------------------


def problems_of(**changes) -> list[str]:
    with pytest.raises(ValueError) as error:
        Preset.lab().with_(**changes)
    return str(error.value).splitlines()[1:]


def test_every_choice_is_checked_and_all_faults_come_at_once():
    wrong = {name.replace(".", "__"): "sideways" for name in CHOICES}
    problems = problems_of(**wrong)
    expected = [f"- {n} = 'sideways': one of {', '.join(known)}" for n, known in CHOICES.items()]
    assert sorted(problems) == sorted(expected)


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_that_is_offered_is_taken(name):
    for value in CHOICES[name]:
        Preset.lab().with_(**{name.replace(".", "__"): value})


WRONG = [
    (dict(tapo__updates=9), "tapo.updates"),  # of 8 groups: a step would have nothing to learn
    (dict(tapo__anchor_rollouts=1, tapo__positive_rollouts=0), "tapo.anchor_rollouts"),
    (dict(tapo__baseline="picture", tapo__anchor_rollouts=1), "tapo.baseline"),
    (dict(tapo__clip_dual=1.0), "tapo.clip_dual"),
    (dict(tapo__clip_low=1.5), "tapo.clip_low"),
    (dict(tapo__clip_high=-0.1), "tapo.clip_high"),
    (dict(tapo__temperature=-1.0), "tapo.temperature"),
    (dict(tapo__top_p=0.0), "tapo.top_p"),
    (dict(tapo__top_p=1.1), "tapo.top_p"),
    (dict(tapo__learning_rate=math.nan), "tapo.learning_rate"),
    (dict(tapo__overlong_tokens=161), "tapo.overlong_tokens"),  # of 160: short ones would pay
]


@pytest.mark.parametrize(("changes", "name"), WRONG)
def test_numbers_that_a_step_would_choke_on_are_refused_before_it(changes, name):
    (problem,) = problems_of(**changes)
    assert problem.startswith(f"- {name} = ")


def test_agreement_is_rewarded_only_where_there_is_a_chain():
    """Else no rollout would ever be paid, and every step be skipped."""
    (problem,) = problems_of(tapo__reward_agreement=0.5, tapo__prompt="answer")
    assert problem.startswith("- tapo.reward_agreement = 0.5: needs a prompt with a chain: think")


def test_faults_of_every_kind_come_together():
    merged = {k: v for changes, _ in WRONG for k, v in changes.items()}
    problems = "\n".join(problems_of(shots=0, tapo__prompt="none", **merged))
    for name in ["shots", "tapo.prompt", *(name for _, name in WRONG)]:
        assert f"- {name} = " in problems
