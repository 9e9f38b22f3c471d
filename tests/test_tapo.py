"""Stage 2 on a student of random weights: what a step moves, skips, keeps and scores.

A random student never names a bird, so the tests hand out the accuracies themselves.
"""

import copy
import io
import itertools
import json
import math
import random
from dataclasses import replace

import pytest
import torch
from accelerate.tracking import GeneralTracker
from hypothesis import given
from hypothesis import strategies as st
from killed import Killed, kill_at
from scaler import scaled
from tiny_tapo import (
    OFF,
    TINY,
    Stage,
    adapted,
    all_wrong,
    every_other,
    gradients,
    shorten,
    stir,
    update,
    weights,
)

from finer1_lite import (
    advantages,
    cot,
    generation,
    logprobs,
    models,
    prompts,
    rewards,
    tapo,
)
from finer1_lite.data import scoring
from finer1_lite.data.chain_text import Chain
from finer1_lite.runtime import console, distributed, trackers
from finer1_lite.tapo import train_tapo
from finer1_lite.triplets import draw_triplets

PARTS = ("anchor", "positive")


@pytest.fixture
def scored(monkeypatch):
    """Every call of `log_probs`: the pictures' features of each row, and what came out."""
    calls, real = [], logprobs.log_probs

    def spy(model, batch, tokens, mask, which, temperature=1.0):
        out = real(model, batch, tokens, mask, which, temperature)
        calls.append(([batch.image_features[p] for p in which], out))
        return out

    monkeypatch.setattr(logprobs, "log_probs", spy)
    return calls


# --- what a step moves ---------------------------------------------------------------


def test_training_moves_the_adapters_and_nothing_else(fresh, birds, spread, tmp_path):
    preset = TINY.with_(tapo__steps=3, tapo__learning_rate=1e-2)
    student = models.add_adapter(fresh, preset, seed=0)
    base, adapters = weights(student.model, False), weights(student.model)
    train_tapo(student, birds, preset, 0, tmp_path)
    for name, weight in weights(student.model, False).items():
        assert torch.equal(weight, base[name]), name
    for name, weight in weights(student.model).items():
        assert not torch.equal(weight, adapters[name]), name
    assert (tmp_path / "adapter_model.safetensors").exists()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3]
    expected = {
        "reward",
        "accuracy",
        "format",
        "groups_kept",
        "groups_drawn",
        "flat_share",
        "truncated",
        "length",
        "loss",
        "policy",
        "inter_class_kl",
        "anchor_entropy",
        "negative_entropy",
        "clip_share",
        "grad_norm",
        "generate_s",
        "update_s",
        "step_s",
        "skipped",
        "tokens_per_second",
    }
    for row in log:
        assert expected <= row.keys()
        assert row["skipped"] == 0 and row["groups_kept"] == 2 and row["grad_norm"] > 0


def test_the_step_favours_rewarded_answers(fresh, birds, spread, tmp_path):
    """A little against the gradient, right answers are likelier and wrong ones less so."""
    stage = Stage(fresh, birds, tmp_path, TINY.with_(**OFF))
    gradients(stage)

    def likelihood():
        with torch.no_grad():
            return (stage.logps() * stage.batch.completion_mask).sum(-1)

    before = likelihood()
    with torch.no_grad():
        for p in stage.model.parameters():
            if p.requires_grad:
                p -= 0.5 * p.grad
    change = likelihood() - before
    accuracy = torch.cat([g.accuracy for g in stage.kept])
    assert change[accuracy == 1].mean() > 1e-3 > -1e-3 > change[accuracy == 0].mean()


def test_a_step_without_variance_moves_nothing_and_is_counted(
    fresh, birds, spread, tmp_path, monkeypatch
):
    """Not even by the optimiser's momentum of the steps before; the schedule goes on."""
    preset = TINY.with_(tapo__steps=4, tapo__learning_rate=1e-2)
    student = adapted(fresh, preset)
    history, rows = [weights(student.model)], []

    def watch(step, log):
        history.append(weights(student.model))
        rows.append(log)
        judge = all_wrong if step == 2 else every_other()
        monkeypatch.setattr(rewards, "accuracy_reward", judge)

    train_tapo(student, birds, preset, 0, tmp_path, on_step=watch)
    moved = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(history)]
    assert moved == [False, True, False, True]  # the warm-up begins at a rate of 0
    counted = [(row["skipped"], row["groups_drawn"]) for row in rows]
    assert counted == [(0, 2), (0, 2), (1, 4), (0, 2)]  # both rounds in vain, and no third
    assert rows[2]["loss"] == rows[2]["grad_norm"] == 0 and "policy" not in rows[2]
    rates = [row["learning_rate"] for row in rows]
    assert rates == pytest.approx([0, 1e-2 / 3, 2e-2 / 3, 1e-2])


def test_micro_batches_do_not_change_the_gradient(fresh, birds, spread, tmp_path):
    """Each divides by the tokens of the whole batch, however long its own answers are."""
    preset = TINY.with_(tapo__groups=4)
    student = models.add_adapter(fresh, preset, seed=0)
    found = []
    for size in (16, 4, 5):
        stage = Stage(student, birds, tmp_path, preset.with_(tapo__micro_batch=size))
        stir(stage.model)
        stage.sample(0)
        shorten(stage.kept)
        found.append(update(stage)[1])
    assert found[0].abs().max() > 1e-3
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-5)


# --- dynamic sampling ----------------------------------------------------------------


@pytest.fixture
def sample_with(monkeypatch):
    """Sample groups that have these accuracies, round by round; rounds drawn."""

    def sample(stage, rounds: list[list[list[float]]]):
        real, drawn = tapo.rollout, []

        def rollout(student, triplets, *rest):
            groups = real(student, triplets, *rest)
            for group, accuracy in zip(groups, rounds[len(drawn)], strict=True):
                group.accuracy = torch.tensor(accuracy)
            drawn.append(triplets)
            return groups

        monkeypatch.setattr(tapo, "rollout", rollout)
        stage.sample(0)
        return drawn

    return sample


def test_sampling_stops_as_soon_as_the_batch_is_full(fresh, birds, tmp_path, sample_with):
    half = [1.0, 0.0, 0.0, 1.0]
    stage = Stage(fresh, birds, tmp_path, TINY.with_(tapo__draws=5))
    assert len(sample_with(stage, [[half, half]])) == 1
    assert len(stage.kept) == 2 and not stage.dropped


def test_sampling_draws_again_for_what_is_missing(fresh, birds, tmp_path, sample_with):
    half, none, full = [1.0, 0.0, 0.0, 1.0], [0.0] * 4, [1.0] * 4
    stage = Stage(fresh, birds, tmp_path, TINY.with_(tapo__draws=5))
    drawn = sample_with(stage, [[none, half], [full, none], [half, half]])
    assert len(drawn) == 3 and len(stage.kept) == 2 and len(stage.dropped) == 4
    assert [g.triplet for g in stage.kept] == [drawn[0][1], drawn[2][0]]
    assert drawn == [draw_triplets(birds, 2, 0, 0, round_, offer=True) for round_ in range(3)]


@pytest.mark.parametrize(
    "kept, drawn, count", [(0, 0, 8), (0, 8, 8), (4, 8, 8), (5, 8, 5), (6, 8, 3), (7, 8, 2)]
)
def test_later_rounds_draw_what_is_missing_at_the_share_kept_so_far(kept, drawn, count):
    """With 5 of 8 kept 3 are missing, and 5 more hold about as many (6 of 9 each)."""
    assert tapo.groups_to_draw(8, kept, drawn) == count


@given(st.integers(1, 64), st.data())
def test_a_round_draws_at_least_what_is_missing_and_never_more_than_a_batch(wanted, data):
    kept = data.draw(st.integers(0, wanted - 1))
    drawn = data.draw(st.integers(kept, 10 * wanted))
    assert wanted - kept <= tapo.groups_to_draw(wanted, kept, drawn) <= wanted


def test_a_round_that_lacks_little_is_small(fresh, birds, tmp_path, sample_with):
    half, none = [1.0, 0.0, 0.0, 1.0], [0.0] * 4
    stage = Stage(fresh, birds, tmp_path, TINY.with_(tapo__draws=2, tapo__groups=4))
    drawn = sample_with(stage, [[half, half, none, half], [half, none]])
    assert [len(triplets) for triplets in drawn] == [4, 2]
    assert len(stage.kept) == 4 and len(stage.dropped) == 2


def test_a_choice_among_names_is_asked_of_all_pictures_of_its_group(fresh, birds, tmp_path):
    """Of the negative too: its names are part of the question that it is compared under."""
    stage = Stage(fresh, birds, tmp_path, TINY.with_(tapo__keep="all", tapo__draws=1))
    stage.sample(0)
    for group in stage.kept:
        asked = stage.student.processor.tokenizer.batch_decode(group.prompts.input_ids)
        options = prompts.offered(group.triplet.options or None)
        assert len(asked) == 3 and all(options in one for one in asked)
        assert bool(options) == all("Options" in one for one in asked)
    assert [len(group.triplet.options) for group in stage.kept] == [0, 4]


def test_sampling_gives_up_after_the_last_round_and_keeps_what_it_has(
    fresh, birds, tmp_path, sample_with
):
    half, none = [1.0, 0.0, 0.0, 1.0], [0.0] * 4
    stage = Stage(fresh, birds, tmp_path, TINY.with_(tapo__draws=2))
    assert len(sample_with(stage, [[half, none], [none, none]])) == 2
    assert len(stage.kept) == 1 and len(stage.dropped) == 3


# --- groups --------------------------------------------------------------------------


def test_a_group_holds_the_anchors_answers_first(fresh, birds, tmp_path):
    """3 answers to each anchor, 1 to each positive: all are written in one loop."""
    preset = TINY.with_(tapo__anchor_rollouts=3, tapo__positive_rollouts=1)
    stage = Stage(fresh, birds, tmp_path, preset)
    triplets = draw_triplets(birds, 2, seed=0, step=0)
    groups = stage.rollout(triplets, torch.Generator().manual_seed(1))
    pictures = [getattr(t, part).image() for t in triplets for part in PARTS]
    texts = generation.generate(
        stage.model,
        fresh.processor,
        generation.encode_prompts(stage.model, fresh.processor, [stage.question] * 4, pictures),
        num_generations=[3, 1, 3, 1],
        temperature=1.0,
        max_new_tokens=8,
        generator=torch.Generator().manual_seed(1),
    ).completions
    assert [g.completions for g in groups] == [texts[:4], texts[4:]]
    assert [g.triplet for g in groups] == triplets and len(set(texts)) == 8


@pytest.fixture
def speak(monkeypatch):
    """Has every call of `generate` say these completions."""
    real = generation.generate

    def with_words(said):
        def generate(*args, **settings):
            out = real(*args, **settings)
            out.completions = said
            return out

        monkeypatch.setattr(generation, "generate", generate)

    return with_words


def test_answers_are_judged_by_the_anchors_name(fresh, birds, tmp_path, speak):
    stage = Stage(fresh, birds, tmp_path, TINY.with_(tapo__accuracy_weight=0.7))
    triplets = draw_triplets(birds, 2, seed=0, step=0)
    label = triplets[0].anchor.species
    good = f"<think>\nx\n</think>\n<answer>{label}</answer>"
    said = [good, f"<answer>{label}</answer>", "nothing", good.replace(label, birds.names[-1])]
    speak(said * 2)
    group = stage.rollout(triplets, torch.Generator())[0]
    assert group.accuracy.tolist() == [1, 1, 0, 0] and group.format.tolist() == [1, 0, 0, 1]
    assert group.reward.tolist() == pytest.approx([0.8, 0.7, 0, 0.1])


def test_agreement_is_watched_always_and_paid_where_it_is_asked_for(
    fresh, birds, world, tmp_path, speak
):
    """A right name beside a chain that leads to another one is right by chance."""
    triplets = draw_triplets(birds, 2, seed=0, step=0)
    label = triplets[0].anchor.species
    good = cot.oracle_chain(world, label, random.Random(0))
    other = next(c for c in Chain(good).listed if c != label)
    beside = good.replace(f"prediction: {label}", f"prediction: {other}")
    said = [good, beside, "nothing", good.replace(f"<answer>{label}", f"<answer>{other}")]
    speak(said * 2)
    for paid, beside in ((0, 1), (0.25, 0.75), (1, 0)):
        stage = Stage(fresh, birds, tmp_path, TINY.with_(tapo__reward_agreement=paid))
        group = stage.rollout(triplets, torch.Generator())[0]
        assert group.right.tolist() == [1, 1, 0, 0] and group.agrees.tolist() == [1, 0, 0, 0]
        assert group.accuracy.tolist() == [1, beside, 0, 0]
        assert group.reward.tolist() == pytest.approx([1, 0.9 * beside + 0.1, 0, 0.1])
        stage.kept = [group]
        log = stage.log()
        assert (log["accuracy"], log["agrees"], log["right_and_agrees"]) == (0.5, 0.25, 0.25)


def test_a_positives_ratio_is_its_importance_weight_where_that_is_asked_for(
    fresh, birds, spread, tmp_path
):
    """pi(y | anchor) / pi(y | positive); by default it is left at 1, as in the released code."""
    stage = Stage(fresh, birds, tmp_path, TINY.with_(tapo__positive_ratio="clipped"))
    stage.sample()
    batch = stage.prepare()
    old = tapo.old_log_probs(stage.student, batch, stage.preset, stage.loop.limits)
    stage.change(positive_ratio="one")
    assert tapo.old_log_probs(stage.student, batch, stage.preset, stage.loop.limits) is None
    stage.change(updates=2)
    anchor = tapo.old_log_probs(stage.student, batch, stage.preset, stage.loop.limits)
    own = replace(batch, scored_on=batch.sampled_on)
    positive = tapo.old_log_probs(stage.student, own, stage.preset, stage.loop.limits)
    from_positive = torch.tensor([0, 0, 1, 1] * 2, dtype=torch.bool)
    assert (batch.sampled_on - batch.scored_on).tolist() == from_positive.int().tolist()
    assert torch.equal(old, positive) and torch.equal(old[~from_positive], anchor[~from_positive])
    assert (old[from_positive] != anchor[from_positive]).any()


def test_a_further_name_of_the_species_is_right_too(fresh, birds, tmp_path, monkeypatch):
    """In the reward and in the evaluation alike."""
    known = replace(birds.species[0], aliases=("Tiny Trill",))
    birds = replace(birds, species=(known, *birds.species[1:]))
    photo = next(p for p in (*birds.train, *birds.test) if p.species == known.name)
    text = "<think>\nx\n</think>\n<answer>tiny trill</answer>"
    verdict = scoring.judge(text, known.name, birds.names, aliases=birds.aliases)
    assert verdict.named == known.name and verdict.correct
    stage = Stage(fresh, birds, tmp_path, TINY)
    triplets = draw_triplets(birds, 2, seed=0, step=0)
    triplets[0] = replace(triplets[0], anchor=photo)
    real = generation.generate

    def speak(*args, **settings):
        out = real(*args, **settings)
        out.completions = [text] * 8
        return out

    monkeypatch.setattr(generation, "generate", speak)
    monkeypatch.setattr(tapo.triplets, "draw_triplets", lambda *_, **__: triplets)
    stage.change(draws=1)
    stage.sample()
    assert [g.accuracy.tolist() for g in stage.dropped] == [[1.0] * 4, [0.0] * 4]


@pytest.mark.parametrize(
    "changes, each",
    [
        ({}, 3),
        ({"tapo__scored_on": "own"}, 3),
        (OFF, 2),
        (OFF | {"tapo__anchor_rollouts": 4, "tapo__positive_rollouts": 0}, 1),
    ],
)
def test_a_step_encodes_each_picture_once(fresh, birds, spread, tmp_path, changes, each):
    """To generate and to score alike; and none that no term of the loss reads."""
    stage, seen = Stage(fresh, birds, tmp_path, TINY.with_(**changes)), []
    generation.core_of(stage.model).model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    gradients(stage)
    assert seen == [2 * each] and len(stage.kept) == 2


@pytest.mark.parametrize("scored_on", ["anchor", "own"])
def test_a_positives_answers_are_scored_on_the_chosen_picture(
    fresh, birds, spread, scored, tmp_path, scored_on
):
    """The paper conditions updates on the anchor, the released code on each its own."""
    stage = Stage(fresh, birds, tmp_path, TINY.with_(tapo__scored_on=scored_on))
    gradients(stage)
    (own, _), (negative, _) = scored
    for g, group in enumerate(stage.kept):
        t = group.triplet
        images = [t.anchor.image(), t.positive.image(), t.negative.image()]
        seen = generation.encode_prompts(
            stage.model, fresh.processor, ["x"] * 3, images
        ).image_features
        expected = [0, 0, 1, 1] if scored_on == "own" else [0, 0, 0, 0]
        for row in range(4):
            torch.testing.assert_close(own[4 * g + row], seen[expected[row]])
            torch.testing.assert_close(negative[4 * g + row], seen[2])


def test_the_negatives_gradient_is_a_switch(fresh, birds, spread, scored, tmp_path):
    """Off (the released code), the negative's pass is made without gradient; on, it pulls."""
    preset = TINY.with_(tapo__inter_class_weight=1.0, tapo__negative_entropy_weight=1.0)
    student, found = models.add_adapter(fresh, preset, seed=0), {}
    for switch in (False, True):
        stage = Stage(student, birds, tmp_path, preset.with_(tapo__negative_grad=switch))
        found[switch] = gradients(stage)
        (_, own), (_, negative) = scored
        assert own.requires_grad and negative.requires_grad == switch
        scored.clear()
    assert (found[True] - found[False]).abs().max() > 1e-3


def test_without_its_terms_no_negative_is_read(fresh, birds, spread, scored, tmp_path):
    preset = TINY.with_(**OFF, tapo__positive_rollouts=0, tapo__anchor_rollouts=4)
    stage = Stage(fresh, birds, tmp_path, preset)
    assert gradients(stage).abs().max() > 0
    assert len(scored) == 1  # one pass over one micro-batch of 2 x 4 answers: plain DAPO
    assert stage.parts["negative_entropy"] == stage.parts["inter_class_kl"] == 0


def test_the_advantage_is_pooled_over_anchor_and_positive(fresh, birds, tmp_path, monkeypatch):
    """Facts to keep: 2n answers share one baseline, and the format reward counts in it."""
    seen, real = [], advantages.group_advantages

    def spy(scores, size, **more):
        seen.append((scores, size))
        return real(scores, size, **more)

    monkeypatch.setattr(rewards, "accuracy_reward", every_other())
    monkeypatch.setattr(advantages, "group_advantages", spy)
    gradients(Stage(fresh, birds, tmp_path))
    ((scores, size),) = seen
    assert size == 4 and scores.tolist() == pytest.approx([0.9, 0, 0.9, 0] * 2)


# --- killed and started again --------------------------------------------------------


def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    student, birds, spread, tmp_path
):
    preset = TINY.with_(tapo__steps=7, tapo__learning_rate=1e-2, tapo__groups=1)

    def train(name, on_step=None):
        again = generation.Student(copy.deepcopy(student.model), student.processor)
        again = models.add_adapter(again, preset, seed=0)
        train_tapo(again, birds, preset, 0, tmp_path / name, on_step=on_step)
        return weights(again.model)

    expected = train("whole")
    with pytest.raises(Killed):
        train("killed", kill_at(6))  # one step after the checkpoint of step 5
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-5").exists()
    resumed = train("killed")
    for name in expected:
        assert torch.equal(resumed[name], expected[name]), name
    for name in ("whole", "killed"):
        assert len((tmp_path / name / "log.jsonl").read_text().splitlines()) == 7


def test_a_loss_scaler_bears_skipped_steps_and_a_kill(
    student, birds, spread, tmp_path, monkeypatch
):
    """It scales by powers of two: the weights are those of a training without it, to the bit."""
    preset = TINY.with_(tapo__steps=7, tapo__learning_rate=1e-2)

    def train(name, kill=0):
        again = adapted(generation.Student(copy.deepcopy(student.model), student.processor))

        def watch(step, log):  # no completion is right in the third step
            judge = all_wrong if step == 2 else every_other()
            monkeypatch.setattr(rewards, "accuracy_reward", judge)
            skipped.append(log["skipped"])
            kill_at(kill)(step, log)

        skipped = []
        train_tapo(again, birds, preset, 0, tmp_path / name, on_step=watch)
        return skipped, weights(again.model)

    expected = train("plain")
    assert expected[0] == [0, 0, 1, 0, 0, 0, 0]
    scaled(monkeypatch, 8.0)
    same(train("scaled")[1], expected[1])
    with pytest.raises(Killed):
        train("killed", kill=6)
    same(train("killed")[1], expected[1])


def same(one, other) -> None:
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


def test_where_scaled_gradients_overflow_nothing_moves_until_the_scale_is_lower(
    fresh, birds, spread, tmp_path, monkeypatch
):
    history, fits = [], []

    def watch(step, log):
        history.append(weights(stage.model))
        fits.append(math.isfinite(log["grad_norm"]))

    scaled(monkeypatch, 2.0**127)
    stage = Stage(fresh, birds, tmp_path, steps=4, on_step=watch)
    history.append(weights(stage.model))
    stage.train()
    moved = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(history)]
    assert moved == fits and not fits[0] and fits[-1]
    assert all(w.isfinite().all() for w in history[-1].values())


# --- who watches ---------------------------------------------------------------------


class Notes(GeneralTracker):
    """A tracker that keeps what it is told."""

    name, requires_logging_directory = "notes", False

    def __init__(self):
        super().__init__()
        self.rows, self.tables, self.finished = [], [], False

    @property
    def tracker(self):
        return self.rows

    def log(self, values, step=None, **_):
        self.rows.append((step, values))

    def log_table(self, name, columns, data, step):
        self.tables.append((step, columns, data))

    def finish(self):
        self.finished = True


def test_a_tracker_is_told_every_step_and_shown_some_rollouts(fresh, birds, spread, tmp_path):
    preset, notes, logs = TINY.with_(tapo__steps=2), Notes(), []
    student = adapted(fresh, preset)
    train_tapo(
        student,
        birds,
        preset,
        0,
        tmp_path,
        report_to=notes,
        on_step=lambda step, log: logs.append((step, log)),
    )
    assert [step for step, _ in notes.rows] == [step for step, _ in logs] == [1, 2]
    for (_, told), (_, log) in zip(notes.rows, logs, strict=True):
        assert told["reward"] == log["reward"] == pytest.approx(0.45)
    assert [step for step, *_ in notes.tables] == [1, 2] and notes.finished
    for step, columns, rows in notes.tables:
        assert columns == ["picture", "completion", "reward"]
        assert [reward for *_, reward in rows] == pytest.approx([0.9, 0, 0.9, 0])
        (t, *_), pictures = draw_triplets(birds, 2, 0, step - 1), [row[0] for row in rows]
        shown = [p.tobytes() for p in (t.anchor.image(), t.positive.image())]
        assert [p.tobytes() for p in pictures] == [shown[0], shown[0], shown[1], shown[1]]


def test_a_tracker_that_is_not_there_is_named_with_its_package(fresh, birds, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    assert trackers.require("none") is None and trackers.require("tensorboard") == "tensorboard"
    with pytest.raises(ValueError, match="'wandb', which is not installed: pip install wandb"):
        train_tapo(adapted(fresh), birds, TINY, 0, tmp_path, report_to="wandb")
    with pytest.raises(ValueError, match="'paper': choose none, tensorboard, wandb, trackio"):
        trackers.require("paper")


def test_bars_show_the_steps_and_what_a_long_step_does(fresh, birds, spread, tmp_path, monkeypatch):
    bars, real = [], console.tqdm

    def spy(**settings):
        bars.append(real(**settings | {"disable": False, "file": io.StringIO()}))
        bars[-1].hidden = settings["disable"]
        return bars[-1]

    monkeypatch.setattr(console, "tqdm", spy)
    preset = TINY.with_(tapo__steps=2, tapo__micro_batch=4)
    train_tapo(adapted(fresh, preset), birds, preset, 0, tmp_path / "seed0" / "tapo")
    outer, *inner = bars
    assert (outer.desc, outer.n, outer.leave) == ("seed0 tapo", 2, True)
    assert "loss" in outer.postfix and "reward=0.45, groups_kept=2.00" in outer.postfix
    names = [(bar.desc, bar.n, bar.leave) for bar in inner]
    assert names == [("8 rollouts", 8, False), ("micro-batches", 2, False)] * 2
    assert outer.hidden is False  # a log of a run without a terminal tells how far it is
    assert {bar.hidden for bar in inner} == {None}  # hidden where no terminal is
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    console.progress_bar(1, "elsewhere")
    assert bars[-1].hidden is True
