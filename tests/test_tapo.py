"""Stage 2 on a student of random weights: what a step moves, skips, keeps and scores.

A random student never names a bird, so the tests hand out the accuracies themselves.
"""

import json
from dataclasses import replace

import pytest
import torch
from killed import KillAt, Killed
from tiny_tapo import (
    OFF,
    TINY,
    adapters,
    every_other,
    gradients,
    make_trainer,
    shorten,
    stir,
    update,
    weights,
)
from transformers import TrainerCallback

from finer1_lite import advantages, evaluate, generation, logprobs, models, rewards
from finer1_lite.tapo import train_tapo
from finer1_lite.triplets import draw_triplets

PARTS = ("anchor", "positive")


def all_wrong(completions, *_):
    return [0.0] * len(completions)


@pytest.fixture
def scored(monkeypatch):
    """Every call of `score`: the pictures' features of each row, and what came out."""
    calls, real = [], logprobs.score

    def spy(model, batch, tokens, mask, which, temperature=1.0, entropy=False):
        out = real(model, batch, tokens, mask, which, temperature, entropy)
        calls.append(([batch.image_features[p] for p in which], out.logps))
        return out

    monkeypatch.setattr(logprobs, "score", spy)
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
        "cut",
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
    trainer = make_trainer(fresh, birds, tmp_path, TINY.with_(**OFF))
    gradients(trainer)
    batch, own, _ = trainer._pictures()
    tokens = torch.cat([g.completion_ids for g in trainer.kept])
    mask = torch.cat([g.completion_mask for g in trainer.kept])

    def likelihood():
        with torch.no_grad():
            scores = logprobs.log_probs(trainer.model, batch, tokens, mask, own)
        return (scores * mask).sum(-1)

    before = likelihood()
    with torch.no_grad():
        for p in trainer.model.parameters():
            if p.requires_grad:
                p -= 0.5 * p.grad
    change = likelihood() - before
    accuracy = torch.cat([g.accuracy for g in trainer.kept])
    assert change[accuracy == 1].mean() > 1e-3 > -1e-3 > change[accuracy == 0].mean()


def test_a_step_without_spread_moves_nothing_and_is_counted(fresh, birds, tmp_path, monkeypatch):
    """Not even by the optimiser's momentum of the step before."""
    now = {"accuracy": every_other}
    monkeypatch.setattr(rewards, "accuracy", lambda *a: now["accuracy"](*a))
    trainer = make_trainer(fresh, birds, tmp_path, weight_decay=0.1)
    history, counted = [weights(trainer.model)], []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            history.append(weights(trainer.model))
            counted.append((trainer.metrics["skipped"], trainer.metrics["groups_drawn"]))
            now["accuracy"] = all_wrong if state.global_step == 1 else every_other

    trainer.add_callback(Watch())
    trainer.train()
    moved = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in zip(history, history[1:])]
    assert moved == [True, False, True]
    assert counted == [(0, 2), (1, 4), (0, 2)]  # both rounds were drawn in vain, and no third
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert rows[1]["skipped"] == 1 and rows[1]["loss"] == 0 and "policy" not in rows[1]


def test_micro_batches_do_not_change_the_gradient(fresh, birds, spread, tmp_path):
    """Each divides by the tokens of the whole batch, however long its own answers are."""
    preset = TINY.with_(tapo__groups=4)
    student = models.add_adapter(fresh, preset, seed=0)
    found = []
    for size in (16, 4, 5):
        trainer = make_trainer(student, birds, tmp_path, preset.with_(tapo__micro_batch=size))
        stir(trainer.model)
        trainer.collect(0)
        shorten(trainer.kept)
        found.append(update(trainer)[1])
    assert found[0].abs().max() > 1e-3
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-5)


# --- dynamic sampling ----------------------------------------------------------------


def collect_with(trainer, rounds: list[list[list[float]]]):
    """Run `collect` on groups that have these accuracies, round by round; rounds drawn."""
    real, drawn = trainer.answer, []

    def answer(triplets, generator):
        groups = real(triplets, generator)
        for group, accuracy in zip(groups, rounds[len(drawn)]):
            group.accuracy = torch.tensor(accuracy)
        drawn.append(triplets)
        return groups

    trainer.answer = answer
    trainer.collect(0)
    return drawn


def test_sampling_stops_as_soon_as_the_batch_is_full(fresh, birds, tmp_path):
    half = [1.0, 0.0, 0.0, 1.0]
    trainer = make_trainer(fresh, birds, tmp_path, TINY.with_(tapo__draws=5))
    assert len(collect_with(trainer, [[half, half]])) == 1
    assert len(trainer.kept) == 2 and not trainer.dropped


def test_sampling_draws_again_for_what_is_missing(fresh, birds, tmp_path):
    half, none, full = [1.0, 0.0, 0.0, 1.0], [0.0] * 4, [1.0] * 4
    trainer = make_trainer(fresh, birds, tmp_path, TINY.with_(tapo__draws=5))
    drawn = collect_with(trainer, [[none, half], [full, none], [half, half]])
    assert len(drawn) == 3 and len(trainer.kept) == 2 and len(trainer.dropped) == 4
    assert [g.triplet for g in trainer.kept] == [drawn[0][1], drawn[2][0]]
    assert drawn == [draw_triplets(birds, 2, 0, 0, round_) for round_ in range(3)]


def test_sampling_gives_up_after_the_last_round_and_keeps_what_it_has(fresh, birds, tmp_path):
    half, none = [1.0, 0.0, 0.0, 1.0], [0.0] * 4
    trainer = make_trainer(fresh, birds, tmp_path, TINY.with_(tapo__draws=2))
    assert len(collect_with(trainer, [[half, none], [none, none]])) == 2
    assert len(trainer.kept) == 1 and len(trainer.dropped) == 3


# --- groups --------------------------------------------------------------------------


def test_a_group_holds_the_anchors_answers_first(fresh, birds, tmp_path):
    """3 answers to each anchor, 1 to each positive: all are written in one loop."""
    preset = TINY.with_(tapo__anchor_rollouts=3, tapo__positive_rollouts=1)
    trainer = make_trainer(fresh, birds, tmp_path, preset)
    triplets = draw_triplets(birds, 2, seed=0, step=0)
    groups = trainer.answer(triplets, torch.Generator().manual_seed(1))
    pictures = [getattr(t, part).image() for t in triplets for part in PARTS]
    texts = generation.generate(
        trainer.model,
        fresh.processor,
        generation.encode_prompts(trainer.model, fresh.processor, [trainer.asked] * 4, pictures),
        num_generations=[3, 1, 3, 1],
        temperature=1.0,
        max_new_tokens=8,
        generator=torch.Generator().manual_seed(1),
    ).completions
    assert [g.completions for g in groups] == [texts[:4], texts[4:]]
    assert [g.triplet for g in groups] == triplets and len(set(texts)) == 8


def test_answers_are_judged_by_the_anchors_name(fresh, birds, tmp_path, monkeypatch):
    trainer = make_trainer(fresh, birds, tmp_path, TINY.with_(tapo__accuracy_weight=0.7))
    triplets = draw_triplets(birds, 2, seed=0, step=0)
    label = triplets[0].anchor.species
    good = f"<think>\nx\n</think>\n<answer>{label}</answer>"
    said = [good, f"<answer>{label}</answer>", "nothing", good.replace(label, birds.names[-1])]
    real = generation.generate

    def speak(*args, **settings):
        out = real(*args, **settings)
        out.completions = said * 2
        return out

    monkeypatch.setattr(generation, "generate", speak)
    group = trainer.answer(triplets, torch.Generator())[0]
    assert group.accuracy.tolist() == [1, 1, 0, 0] and group.format.tolist() == [1, 0, 0, 1]
    assert group.reward(trainer.settings).tolist() == pytest.approx([0.8, 0.7, 0, 0.1])


def test_a_further_name_of_the_species_is_right_too(fresh, birds, tmp_path, monkeypatch):
    """In the reward, among the confusions and in the evaluation alike."""
    known = replace(birds.species[0], aliases=("Tiny Trill",))
    birds = replace(birds, species=(known, *birds.species[1:]))
    photo = next(p for p in (*birds.train, *birds.test) if p.species == known.name)
    text = "<think>\nx\n</think>\n<answer>tiny trill</answer>"
    row = evaluate.record(
        evaluate.Cell("base", None, "think", "open"), birds, photo, None, text, 9, False
    )
    assert row["named"] == known.name and row["correct"]
    trainer = make_trainer(fresh, birds, tmp_path, TINY.with_(tapo__negative="confused"))
    triplets = draw_triplets(birds, 2, seed=0, step=0)
    triplets[0] = replace(triplets[0], anchor=photo)
    real = generation.generate

    def speak(*args, **settings):
        out = real(*args, **settings)
        out.completions = [text] * 8
        return out

    monkeypatch.setattr(generation, "generate", speak)
    groups = trainer.answer(triplets, torch.Generator())
    assert [g.accuracy.tolist() for g in groups] == [[1.0] * 4, [0.0] * 4]
    trainer.dropped = groups
    trainer._note_confusions()
    assert trainer._confusions().counts == {triplets[1].anchor.species: {known.name: 4}}


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
    trainer, seen = make_trainer(fresh, birds, tmp_path, TINY.with_(**changes)), []
    generation.core_of(trainer.model).model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    gradients(trainer)
    assert seen == [2 * each] and len(trainer.kept) == 2


@pytest.mark.parametrize("scored_on", ["anchor", "own"])
def test_a_positives_answers_are_scored_on_the_chosen_picture(
    fresh, birds, spread, scored, tmp_path, scored_on
):
    """The paper conditions updates on the anchor, the released code on each its own."""
    trainer = make_trainer(fresh, birds, tmp_path, TINY.with_(tapo__scored_on=scored_on))
    gradients(trainer)
    (own, _), (negative, _) = scored
    for g, group in enumerate(trainer.kept):
        t = group.triplet
        images = [t.anchor.image(), t.positive.image(), t.negative.image()]
        seen = generation.encode_prompts(
            trainer.model, fresh.processor, ["x"] * 3, images
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
        trainer = make_trainer(student, birds, tmp_path, preset.with_(tapo__negative_grad=switch))
        found[switch] = gradients(trainer)
        (_, own), (_, negative) = scored
        assert own.requires_grad and negative.requires_grad == switch
        scored.clear()
    assert (found[True] - found[False]).abs().max() > 1e-3


def test_without_its_terms_no_negative_is_read(fresh, birds, spread, scored, tmp_path):
    preset = TINY.with_(**OFF, tapo__positive_rollouts=0, tapo__anchor_rollouts=4)
    trainer = make_trainer(fresh, birds, tmp_path, preset)
    assert gradients(trainer).abs().max() > 0
    assert len(scored) == 1  # one pass over one micro-batch of 2 x 4 answers: plain DAPO
    assert trainer.metrics["negative_entropy"] == trainer.metrics["inter_class_kl"] == 0


def test_the_advantage_is_pooled_over_anchor_and_positive(fresh, birds, tmp_path, monkeypatch):
    """Facts to keep: 2n answers share one baseline, and the format reward counts in it."""
    seen, real = [], advantages.group_advantages

    def spy(scores, size):
        seen.append((scores, size))
        return real(scores, size)

    monkeypatch.setattr(rewards, "accuracy", every_other)
    monkeypatch.setattr(advantages, "group_advantages", spy)
    gradients(make_trainer(fresh, birds, tmp_path))
    ((scores, size),) = seen
    assert size == 4 and scores.tolist() == pytest.approx([0.9, 0, 0.9, 0] * 2)


# --- killed and started again --------------------------------------------------------


def test_a_killed_training_ends_with_the_weights_of_an_undisturbed_one(
    student, birds, spread, tmp_path
):
    from copy import deepcopy

    preset = TINY.with_(tapo__steps=7, tapo__learning_rate=1e-2, tapo__groups=1)

    def train(name, callbacks=()):
        again = generation.Student(deepcopy(student.model), student.processor)
        again = models.add_adapter(again, preset, seed=0)
        train_tapo(again, birds, preset, 0, tmp_path / name, callbacks)
        return weights(again.model)

    expected = train("whole")
    with pytest.raises(Killed):
        train("killed", [KillAt(6)])  # one step after the checkpoint of step 5
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-5").exists()
    resumed = train("killed")
    for name in expected:
        assert torch.equal(resumed[name], expected[name]), name
    for name in ("whole", "killed"):
        assert len((tmp_path / name / "log.jsonl").read_text().splitlines()) == 7


def test_a_loss_scaler_bears_a_skipped_step_and_momentum_moves_nothing(
    fresh, birds, spread, tmp_path, monkeypatch
):
    """float16 scales losses, and its scaler raises on a step in which no gradient is."""
    trainer = make_trainer(fresh, birds, tmp_path)
    scaler = trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer, places = trainer.create_optimizer(), []
    for step in range(3):
        if step == 1:  # no answer is right: no group has spread
            monkeypatch.setattr(rewards, "accuracy", lambda texts, *_: [0.0] * len(texts))
        trainer.model.zero_grad()
        trainer.training_step(trainer.model, {"step": step})
        scaler.step(optimizer)
        scaler.update()
        places.append(torch.cat([p.detach().flatten() for p in adapters(trainer.model)]))
        monkeypatch.setattr(rewards, "accuracy", every_other)
    assert torch.equal(places[0], places[1]) and not torch.equal(places[1], places[2])
