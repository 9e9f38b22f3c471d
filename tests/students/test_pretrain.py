"""Pretraining: what its rows show, and that a killed one goes on with its weights."""

import random

import pytest
import torch
from killed import Killed, kill_at
from safetensors.torch import load_file

from finer1_lite import paperbirds, prompts
from finer1_lite.data.chain_text import Chain, agreement
from finer1_lite.presets import Preset
from finer1_lite.species import Collection, Species, by_words
from finer1_lite.students import pretrain
from finer1_lite.students.probe import remarks_true
from finer1_lite.trainer import Loop


def small_rows(world):
    def rows(step):
        rng = random.Random(step)
        return [[pretrain.describe_row(world, rng)], [pretrain.guide_row(world, rng)]]

    return rows


def test_a_killed_pretraining_ends_with_the_weights_of_an_undisturbed_one(
    fresh, world, tmp_path, monkeypatch
):
    """All of its weights are in the checkpoint, those that layers share too; so is its time."""
    monkeypatch.setattr(Loop, "seconds", lambda _: 3.0)
    start = {name: weight.clone() for name, weight in fresh.model.state_dict().items()}
    settings = dict(steps=4, lr=1e-3)

    def train(folder, on_step=None):
        rows = small_rows(world)
        minutes = pretrain.train_text(
            fresh.model, fresh.processor, rows, folder, on_step=on_step, **settings
        )
        assert minutes == 0.2  # of four steps of three seconds
        return {name: weight.clone() for name, weight in fresh.model.state_dict().items()}

    whole = train(tmp_path / "whole")
    fresh.model.load_state_dict(start)
    with pytest.raises(Killed):
        train(tmp_path / "killed", kill_at(3))  # the checkpoint is of step 2
    torch.manual_seed(5)
    for weight in fresh.model.parameters():  # a new process begins with other weights
        torch.nn.init.normal_(weight.data, std=0.02)
    resumed = train(tmp_path / "killed")
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


def test_another_seed_or_length_does_not_go_on_with_a_killed_one(tmp_path, monkeypatch):
    works = []

    def killed(model, processor, rows, work, **_):
        works.append(work)
        raise Killed

    monkeypatch.setattr(pretrain, "train_text", killed)
    for settings in ({}, {"seed": 1}, {"steps": 9}, {"lr": 1e-4}, {}):
        with pytest.raises(Killed):
            pretrain.pretrain(0, tmp_path / "student", **settings)
    assert len(set(works)) == 4 and works[0] == works[-1]
    with pytest.raises(ValueError, match="--steps 0: 1 or more"):
        pretrain.pretrain(0, tmp_path / "student", steps=0)


def test_the_student_is_trained_on_the_chosen_device(tmp_path, monkeypatch):
    """On "meta" here, which every machine has."""
    devices = []

    def train_text(model, *_, **__):
        devices.append(model.device.type)
        raise Killed

    monkeypatch.setattr(pretrain.models, "choose_device", lambda: torch.device("meta"))
    monkeypatch.setattr(pretrain, "train_text", train_text)
    with pytest.raises(Killed):
        pretrain.pretrain(0, tmp_path / "student", steps=1)
    assert devices == ["meta"]


def test_a_warm_up_learns_in_32_bits_whatever_the_card_answers_in(tmp_path, birds, monkeypatch):
    """All weights learn: in float16 the loss scaler refuses, in bfloat16 small steps are lost."""
    dtypes = []

    def warm_up(student, *_, **__):
        dtypes.append(student.model.dtype)
        return student

    monkeypatch.setattr(pretrain.models, "choose_dtype", lambda *_, **__: torch.float16)
    monkeypatch.setattr(pretrain, "warm_up", warm_up)
    preset = Preset.lab_photos().with_(warm_up_steps=1)
    out = pretrain.prepare_base(preset, tmp_path, photos=birds)
    assert dtypes == [torch.float32] and saved_dtype(out) == torch.float16


def saved_dtype(folder) -> torch.dtype:
    return next(iter(load_file(folder / "model.safetensors").values())).dtype


def test_rows_of_describing_never_name_a_species(world):
    """Some offer names, four of one genus; what is seen has nothing to do with them."""
    rng = random.Random(0)
    offered = 0
    for _ in range(100):
        row = pretrain.describe_row(world, rng)
        assert row.picture is not None and not row.begun
        assert not any(name in row.reply for name in world.names)
        offered += "Options: " in row.question
    assert 5 < offered < 30


def test_no_row_shows_a_picture_and_a_chain_about_it(world, monkeypatch):
    """Reasoning about pictures is what SFT teaches; pretraining may not.

    Of a chain behind a picture the analysis is given and not learnt, and its marks are those of
    the bird in the picture as often as chance has it: a third of the bills, say.
    """
    drawn = []
    draw = paperbirds.draw
    monkeypatch.setattr(paperbirds, "draw", lambda m, *how: drawn.append(m) or draw(m, *how))
    rng = random.Random(0)
    alike = []
    for make in (*pretrain.ROWS.values(), pretrain.caption_row):
        for _ in range(50 if make is not pretrain.argue_row else 400):
            row = make(world, rng)
            if row.picture is not None and "candidates:" in row.begun + row.reply:
                assert row.reply.startswith("candidates:")
                said = Chain(row.begun).parts["analysis"].split(", ")
                shown = [f"{mark} {value}" for mark, value in drawn[-1].items()]
                alike.append([one == other for one, other in zip(said, shown, strict=True)])
    assert 60 < len(alike) < 140
    for shares, values in zip(zip(*alike, strict=True), paperbirds.MARKS.values(), strict=True):
        assert abs(sum(shares) / len(alike) - 1 / len(values)) < 0.13  # three standard errors


def test_a_chain_goes_on_from_what_is_seen_and_names_the_nearest(world):
    """Also where a mark is mistaken; half of the rows give the marks in the analysis alone."""
    rng = random.Random(0)
    begun = mistaken = 0
    for _ in range(300):
        row = pretrain.argue_row(world, rng)
        text = row.begun + row.reply
        name = Chain(text).answer
        seen = dict(mark.split() for mark in Chain(text).parts["analysis"].split(", "))
        asked = paperbirds.describe(seen) in row.question
        assert asked == (not row.begun) and text.startswith("<think>\nanalysis: ")
        assert row.begun in ("", f"<think>\nanalysis: {paperbirds.describe(seen)}\n")
        far = {n: len(paperbirds.differing(seen, world.marks[n])) for n in Chain(text).listed}
        assert far[name] == min(far.values()) and remarks_true(text, world)
        if "Options: " in row.question:
            assert row.question.endswith(f"Options: {', '.join(Chain(text).listed)}.")
        alone = list(far.values()).count(far[name]) == 1
        assert agreement(text, name, world.names, name)["agrees"] == alone
        begun += bool(row.begun)
        mistaken += far[name] > 0
    assert 120 < begun < 180 and 60 < mistaken < 120


def test_how_a_reply_begins_is_read_and_not_learnt(fresh, world):
    row = pretrain.Row("Name it.", None, "candidates: b\n", "<think>\nanalysis: crown red\n")
    plain = pretrain.Row("Name it.", None, row.begun + row.reply)
    batches = [pretrain.encode(fresh.processor, [one]) for one in (row, plain)]
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    learnt = [fresh.processor.decode(b["labels"][b["labels"] != -100]) for b in batches]
    assert learnt == [f"{one.reply}<|im_end|>" for one in (row, plain)]


def test_captions_name_every_kind_of_species_and_only_the_right_one(world, monkeypatch):
    shown = []
    real = paperbirds.photo
    monkeypatch.setattr(
        paperbirds, "photo", lambda w, name, *rest: shown.append(name) or real(w, name, *rest)
    )
    rng = random.Random(0)
    questions = set()
    for _ in range(200):
        row = pretrain.caption_row(world, rng)
        questions.add(row.question)
        assert [n for n in world.names if n in row.reply] == [shown[-1]]
    assert questions == {prompts.CAPTION, prompts.question("answer", "bird")}
    assert {n in world.seen for n in shown} == {True, False}


def test_words_of_descriptions_and_of_chains_become_tokens_of_their_own(fresh, tmp_path):
    """A word in pieces of bytes would fill the answer's tokens, and its pieces are untrained."""
    told = {"Fig": "purple skin; no stripes", "Quince": ""}
    species = tuple(Species(name, "", True, text) for name, text in told.items())
    few = Collection("fruit", species, (), (), by_words(species))
    warm = pretrain.warm_up(fresh, few, 1, tmp_path, seed=0, chains=["<think>woolly peel"])
    for word in ("Quince", "purple", "stripes", "woolly", "look", "known", "would"):
        assert len(warm.processor.tokenizer.tokenize(f" {word}")) == 1, word
