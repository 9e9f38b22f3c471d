"""Memory runs out in the middle of a step: the same adapter as with less at a time."""

import copy
import logging

import pytest
import torch
from killed import Killed, kill_at
from tiny_tapo import TINY, Stage, gradients, stir, weights
from transformers import TrainerCallback

from finer1_lite import cot, generation, logprobs, models, sft
from finer1_lite.__main__ import main
from finer1_lite.data.benchmark import Benchmark, Condition, questions
from finer1_lite.evaluate import StudentAnswerer
from finer1_lite.generation import Student
from finer1_lite.runtime import oom
from finer1_lite.species import Collection
from finer1_lite.tapo import train_tapo

PRESET = TINY.with_(tapo__steps=2, tapo__learning_rate=1e-2, max_new_tokens=4)


def out_of_memory(text="CUDA out of memory. Tried to allocate 2.00 GiB"):
    raise torch.OutOfMemoryError(text)


def adapted(student) -> Student:
    """A copy with adapters, in float64: what differs then is not rounding."""
    mine = Student(copy.deepcopy(student.model), student.processor)
    mine = models.add_adapter(mine, TINY, seed=0)
    mine.model.double()
    return mine


@pytest.fixture
def scarce(monkeypatch):
    """Memory for so many answers in a scoring pass; for so many prompts to be answered."""
    fits = {"score": 99, "generate": 99}
    score, generate = logprobs.log_probs, generation.generate

    def scoring(model, batch, tokens, *rest, **more):
        out = score(model, batch, tokens, *rest, **more)
        if len(tokens) > fits["score"]:
            if out.requires_grad:  # not before a part of the gradient was there
                out.sum().backward()
            out_of_memory()
        return out

    def answering(model, processor, batch, **more):
        if len(batch.input_ids) > fits["generate"]:
            out_of_memory()
        return generate(model, processor, batch, **more)

    monkeypatch.setattr(logprobs, "log_probs", scoring)
    monkeypatch.setattr(generation, "generate", answering)
    return fits


def trained(student, birds, folder, preset=PRESET, on_step=None):
    mine = adapted(student)
    train_tapo(mine, birds, preset, 0, folder, on_step=on_step)
    return weights(mine.model)


def same(one: dict, other: dict) -> None:
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-9, msg=name)


CASES = {
    "update": {},
    "old policy": {"tapo__updates": 2},
    "recomputed": {"gradient_checkpointing": True, "tapo__negative_grad": True},
}


@pytest.mark.parametrize("case", CASES)
def test_the_micro_batch_halves_and_the_step_is_repeated(
    student, birds, spread, scarce, tmp_path, caplog, case
):
    preset = PRESET.with_(**CASES[case])
    small = trained(student, birds, tmp_path / "a", preset.with_(tapo__micro_batch=2))
    scarce["score"] = 3
    with caplog.at_level(logging.WARNING, "finer1_lite"):
        same(small, trained(student, birds, tmp_path / "b", preset))
    said = [r.message for r in caplog.records if r.name == "finer1_lite"]
    halves = ("8 -> 4", "4 -> 2")
    assert said == [f"out of memory: tapo.micro_batch {h}, step repeated" for h in halves]


def test_no_part_of_a_failed_gradient_is_left(fresh, birds, spread, scarce, tmp_path):
    preset = TINY.with_(tapo__micro_batch=4)
    student = models.add_adapter(fresh, preset, seed=0)
    stir(student.model)
    whole = gradients(Stage(student, birds, tmp_path, preset.with_(tapo__micro_batch=2)))
    scarce["score"] = 3
    torch.testing.assert_close(
        gradients(Stage(student, birds, tmp_path, preset)), whole, rtol=1e-5, atol=1e-6
    )
    assert whole.abs().max() > 1e-3


def test_answers_are_written_for_fewer_groups_at_a_time(student, birds, spread, scarce, tmp_path):
    """Each group has random numbers of its own: the answers are the same."""
    whole = trained(student, birds, tmp_path / "a")
    scarce["generate"] = 2  # anchor and positive of one group
    same(whole, trained(student, birds, tmp_path / "b"))


def test_with_one_at_a_time_an_error_says_what_to_lower(student, birds, spread, scarce, tmp_path):
    scarce["score"] = 0
    with pytest.raises(MemoryError, match=r"tapo.micro_batch at 1 \(CUDA out of .*lower max_new"):
        trained(student, birds, tmp_path / "a")
    scarce["generate"] = 0
    with pytest.raises(MemoryError, match="groups completed at a time at 1 .*pixels"):
        trained(student, birds, tmp_path / "b")


def test_other_errors_are_not_taken_for_it(student, birds, spread, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise RuntimeError("device-side assert triggered")

    monkeypatch.setattr(logprobs, "log_probs", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        trained(student, birds, tmp_path)


@pytest.mark.slow
def test_a_resumed_run_remembers_what_fits(student, birds, spread, scarce, tmp_path, caplog):
    preset = PRESET.with_(tapo__steps=6, tapo__groups=1, tapo__micro_batch=4)
    scarce["score"] = 3
    whole = trained(student, birds, tmp_path / "whole", preset)
    with pytest.raises(Killed):
        trained(student, birds, tmp_path / "killed", preset, kill_at(6))
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-5").exists()
    caplog.clear()
    same(whole, trained(student, birds, tmp_path / "killed", preset))
    assert not [r for r in caplog.records if "out of memory" in r.message]


# --- stage 1 -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(birds, world):
    few = Collection("bird", birds.species, birds.train[:8], birds.test[:2], birds.distance)
    chains = cot.make_chains(few, cot.oracle(world), seed=0)
    chains = {k: v[: 60 + 40 * i] for i, (k, v) in enumerate(chains.items())}  # lengths differ
    return sft.chain_rows(few, chains)


def gradient_of_a_step(student, rows, folder, **settings):
    """Of eight rows, in float64, just before the optimiser's step."""
    mine, found = adapted(student), []
    preset = TINY.with_(sft__steps=1, sft__batch=8, **settings)

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            found.extend(p.grad.clone() for p in model.parameters() if p.requires_grad)

    sft.train_sft(mine, rows, preset, 0, folder, [Watch()])
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("fail", [1, 2])  # in the first micro-batch of the step; in the second
def test_stage_1_goes_on_in_parts(student, rows, tmp_path, monkeypatch, caplog, fail):
    """Rows of different lengths: the mean is over the tokens of the whole step."""
    caplog.set_level(logging.WARNING, "finer1_lite")  # whatever level an earlier test has left
    whole = gradient_of_a_step(student, rows, tmp_path / "a", sft__micro_batch=2)
    real, calls = sft.SFTTrainer.training_step, []

    def step(self, model, inputs, num_items_in_batch=None):
        loss = real(self, model, inputs, num_items_in_batch=num_items_in_batch)
        calls.append(len(inputs["labels"]))
        if len(inputs["labels"]) > 2 and len(calls) >= fail:
            out_of_memory()
        return loss

    monkeypatch.setattr(sft.SFTTrainer, "training_step", step)
    parts = gradient_of_a_step(student, rows, tmp_path / "b", sft__micro_batch=4)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    assert calls == [4] * fail + [2] * 4 and whole.abs().max() > 1e-3
    assert [r.message for r in caplog.records if r.name == "finer1_lite"] == [
        "out of memory: sft.micro_batch 4 -> 2, step repeated"
    ]


def test_stage_1_with_one_row_says_what_to_lower(student, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(sft.SFTTrainer, "training_step", lambda *_, **__: out_of_memory())
    with pytest.raises(MemoryError, match="sft.micro_batch at 1 .*lower pixels"):
        gradient_of_a_step(student, rows, tmp_path)


@pytest.mark.parametrize(
    "batch, micro, processes, expected",
    [
        (16, 16, 1, (16, 1)),
        (16, 16, 2, (8, 1)),
        (16, 1, 4, (1, 4)),
        (16, 5, 1, (4, 4)),
        (6, 4, 2, (3, 1)),
    ],
)
def test_the_whole_batch_is_what_the_preset_says(batch, micro, processes, expected):
    assert sft.micro_batches(batch, micro, processes) == expected
    assert expected[0] * expected[1] * processes == batch and expected[0] <= micro


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="sft.batch = 16: .* 3 processes"):
        sft.micro_batches(16, 16, 3)


def test_limits_travel_as_state():
    one = sft.SavedLimits()
    one.halve("rows", 8, "no memory", "pixels")
    again, callback = oom.Limits(), sft.SavedLimits.from_state(one.state())
    again.load_state_dict(one.state_dict())
    assert callback.limits == again.limits
    assert again.at_once("rows", 8) == 4 and again.at_once("rows", 2) == 2
    assert again.at_once("others", 8) == 8


# --- evaluation, loading -------------------------------------------------------------------------


def test_an_evaluation_goes_on_with_fewer_questions_at_a_time(student, birds, scarce, caplog):
    """The same completions, in order; the next batch begins with what fitted."""
    benchmark = Benchmark.of_collection(birds)
    condition = Condition("answer", "open")
    asked = questions(benchmark, condition)[:6]
    whole = StudentAnswerer(student, "x", 4).answer(asked, condition, 0)
    scarce["generate"] = 2
    answerer = StudentAnswerer(student, "x", 4)
    with caplog.at_level(logging.WARNING, "finer1_lite"):
        assert answerer.answer(asked, condition, 0) == whole
        assert answerer.answer(asked, condition, 0) == whole
    halves = [r.message for r in caplog.records if "questions at a time" in r.message]
    assert [text.split(",")[0].partition("time ")[2] for text in halves] == ["6 -> 3", "3 -> 1"]
    scarce["generate"] = 0
    with pytest.raises(MemoryError, match="lower max_new_tokens"):
        answerer.answer(asked, condition, 0)


def test_a_model_that_does_not_fit_is_one_clear_error(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(models, "load_student", lambda *_: out_of_memory())
    assert main(["lab", "--out", str(tmp_path), "--test-pictures", "36"]) == 2
    said = caplog.records[-1].message
    assert "error: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB): `plan`" in said


def test_any_other_error_of_the_runtime_is_not_called_a_lack_of_memory(monkeypatch, tmp_path):
    def other(*_):
        raise RuntimeError("a kernel is missing")

    monkeypatch.setattr(models, "load_student", other)
    with pytest.raises(RuntimeError, match="a kernel is missing"):
        main(["lab", "--out", str(tmp_path), "--test-pictures", "36"])
