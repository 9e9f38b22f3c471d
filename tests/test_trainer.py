"""The loop's steps and checkpoints: the newest whole one counts, one torn by a kill goes."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from killed import Killed
from safetensors.torch import save_file
from scaler import scaled
from transformers import Trainer, TrainingArguments

from finer1_lite.runtime.checkpoints import NotFinite, seal
from finer1_lite.trainer import Loop, last_checkpoint

# What transformers' Trainer writes, alone and on engines, and what our loop writes.
FILES = {
    "trainer": ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"),
    "loop": ("optimizer.bin", "scheduler.bin", "random_states_0.pkl", "trained.safetensors"),
    "deepspeed": (  # it keeps the schedule in its own states, and names them in `latest`
        "global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "latest",
        "rng_state_0.pth",
        "adapter_model.safetensors",
    ),
    "fsdp": (  # in shards
        "optimizer_0/.metadata",
        "scheduler.pt",
        "rng_state_0.pth",
        "pytorch_model_fsdp_0/.metadata",
    ),
}


def checkpoint(work: Path, step: int, kind: str = "trainer", sealed: bool = True) -> Path:
    folder = work / f"checkpoint-{step}"
    for name in (*FILES[kind], "trainer_state.json"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({"weight": torch.full((9,), float(step))}, path)
        elif path.suffix in (".pt", ".pth", ".bin", ".pkl"):
            torch.save({"weight": torch.full((9,), float(step))}, path)
        else:
            path.write_text(json.dumps({"global_step": step}))
    if sealed:
        seal(folder)
    return folder


def test_no_checkpoint_is_none(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_the_newest_is_taken_by_number_and_not_by_name(tmp_path):
    for step in (5, 100, 20):
        checkpoint(tmp_path, step)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("lost", range(5))
def test_one_that_lacks_a_file_is_deleted_and_the_one_before_taken(tmp_path, kind, lost):
    whole, torn = checkpoint(tmp_path, 5, kind), checkpoint(tmp_path, 10, kind)
    lost = (*FILES[kind], "trainer_state.json")[lost]
    (torn / lost).unlink()
    assert last_checkpoint(tmp_path) == str(whole)
    assert whole.exists() and not torn.exists()


def test_one_whose_last_file_is_half_written_is_torn(tmp_path):
    torn = checkpoint(tmp_path, 10, sealed=False)
    (torn / "trainer_state.json").write_text('{"global_step": 1')
    assert last_checkpoint(tmp_path) is None
    assert not torn.exists()


def test_one_that_was_killed_before_its_seal_is_whole(tmp_path):
    """The one before it is gone by then, so that it must count."""
    whole = checkpoint(tmp_path, 5, sealed=False)
    assert last_checkpoint(tmp_path) == str(whole)
    (whole / "trainer_state.json").unlink()  # killed before its last file
    assert last_checkpoint(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{"])
def test_a_torn_seal_is_no_seal(tmp_path, text):
    whole, torn = checkpoint(tmp_path, 5), checkpoint(tmp_path, 10)
    (torn / "checksums.json").write_text(text)
    assert last_checkpoint(tmp_path) == str(whole)


# --- the loop ------------------------------------------------------------------------


class Line(torch.nn.Module):
    """Two weights, a bias and a norm; what is learnt is small enough to be redone by hand."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm = torch.nn.Linear(2, 1), torch.nn.LayerNorm(1)


def loss_of(model, step):
    return (model.layer(torch.tensor([1.0, step])) ** 2).sum() + model.norm.weight.sum()


def run(model, work, steps=8, skip=(), **settings):
    settings = dict(learning_rate=0.1, weight_decay=0.1, save_every=3) | settings
    loop = Loop(model, work, steps=steps, **settings)
    for step in loop:
        if step in skip:
            loop.skip({})
            continue
        loop.accelerator.backward(loss_of(model, step))
        loop.step({})
    return loop


def test_a_step_is_that_of_transformers_trainer(tmp_path):
    """AdamW, no decay of biases and norms, warm-up, clipping: all in `Trainer`, step by step."""
    model, twin = Line(), Line()

    class Theirs(Trainer):
        def compute_loss(self, model, inputs, **_):
            return loss_of(model, int(inputs["step"]))

    args = TrainingArguments(
        str(tmp_path / "theirs"),
        max_steps=8,
        learning_rate=0.1,
        weight_decay=0.1,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
        max_grad_norm=1.0,
        per_device_train_batch_size=1,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    rows = [{"step": float(step)} for step in range(8)]
    theirs = Theirs(twin, args, train_dataset=rows)
    theirs._get_train_sampler = lambda *_: range(8)
    theirs.train()
    loop = run(model, tmp_path / "ours")
    for (name, ours), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, other), name
    logged = [row for row in theirs.state.log_history if "loss" in row]
    for key in ("grad_norm", "learning_rate"):
        assert [row[key] for row in loop.history] == [row[key] for row in logged]


def test_a_skipped_step_counts_and_lets_the_schedule_go_on(tmp_path):
    whole, model = Line(), Line()
    seen = []
    loop = run(
        model,
        tmp_path / "skipped",
        skip=(4, 5),
        on_step=lambda step, log: seen.append(model.layer.weight.detach().clone()),
    )
    assert torch.equal(seen[3], seen[5]) and not torch.equal(seen[5], seen[6])
    assert [row["step"] for row in loop.history] == list(range(1, 9))
    rates = [row["learning_rate"] for row in run(whole, tmp_path / "whole").history]
    assert [row["learning_rate"] for row in loop.history] == rates
    assert loop.history[4]["grad_norm"] == 0


def test_a_checkpoint_gets_its_name_when_it_is_whole(tmp_path, monkeypatch):
    """Killed while it is written: the one before is gone on from, and nothing is left over."""
    model, work = Line(), tmp_path / "run" / "checkpoints"
    real = Accelerator.save_state

    def killed(self, folder, **settings):
        real(self, folder, **settings)
        if folder.endswith("6"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", killed)
        with pytest.raises(Killed):
            run(model, work)
    assert sorted(p.name for p in work.iterdir()) == ["checkpoint-3", "draft-6"]
    whole, resumed = Line(), Line()
    expected = run(whole, tmp_path / "whole")
    found = run(resumed, work)
    assert torch.equal(resumed.layer.weight, whole.layer.weight)
    for key in ("step", "grad_norm", "learning_rate"):
        assert [row[key] for row in found.history] == [row[key] for row in expected.history]
    assert [p.name for p in work.iterdir()] == ["checkpoint-8"]


def test_files_of_others_among_the_checkpoints_stay(tmp_path):
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "notes").mkdir()
    run(Line(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".DS_Store", "checkpoint-8", "notes"]


# --- float16's loss scaler: cards that need it, and those that do not --------------------------


def halfway(work, steps=8):
    return Loop(Line(), work, steps=steps, learning_rate=0.1, weight_decay=0.0, save_every=3)


@pytest.mark.parametrize("first", [False, True])
def test_a_training_goes_on_where_a_scaler_is_needed_and_none_was_and_the_reverse(
    tmp_path, monkeypatch, first
):
    whole = run(Line(), tmp_path / "whole", weight_decay=0.0)
    for scaler, until in ((first, 5), (not first, 8)):
        with monkeypatch.context() as patch:
            if scaler:
                scaled(patch, 8.0)
            loop, steps = halfway(tmp_path / "moved"), []
            for step in loop:
                if step == until:
                    break
                loop.accelerator.backward(loss_of(loop.model, step))
                loop.step({})
                steps.append(step)
        assert (loop.accelerator.scaler is not None) == scaler
    assert steps == [3, 4, 5, 6, 7]
    assert torch.equal(loop.model.layer.weight, whole.model.layer.weight)


def test_a_process_without_a_part_of_the_first_step_has_a_scaler_that_is_ready(
    tmp_path, monkeypatch
):
    """Its gradients are the others'; here they are put in by hand, and nothing goes backward."""
    scaled(monkeypatch, 8.0)
    loop = halfway(tmp_path, steps=1)
    for _ in loop:
        for weight in loop.model.parameters():
            weight.grad = torch.full_like(weight, 8.0)
        loop.step({})
    assert loop.history[0]["grad_norm"] > 0


def test_a_finished_loop_has_no_step_left(tmp_path):
    model = Line()
    run(model, tmp_path, steps=4)
    again = Line()
    assert (
        list(Loop(again, tmp_path, steps=4, learning_rate=1.0, weight_decay=0, save_every=3)) == []
    )
    assert torch.equal(again.layer.weight, model.layer.weight)


# --- numbers that are not finite, steps that teach nothing -------------------------------------


@pytest.mark.parametrize("what", ["the loss", "the gradient", "layer.weight"])
def test_the_first_number_that_is_not_finite_stops(tmp_path, what):
    """One sentence says where: no step is made of it, and no checkpoint written."""
    model, work = Line(), tmp_path / "tapo" / "checkpoints"
    loop = Loop(model, work, steps=4, learning_rate=0.1, weight_decay=0.0, save_every=1)
    with pytest.raises(NotFinite, match=rf"tapo, step 2 \(learning rate .*, float32\).*{what}"):
        for step in loop:
            loop.accelerator.backward(loss_of(model, step))
            if step == 1 and what == "the gradient":
                model.layer.weight.grad[0, 0] = math.inf
            if step == 1 and what == "layer.weight":
                loop.optimizer.step = lambda: model.layer.weight.data.fill_(math.inf)
            loop.step({"loss": math.nan} if step == 1 and what == "the loss" else {})
    assert [p.name for p in work.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize(("minutes", "written"), [(0.0, [1, 2, 3]), (1e9, [3])])
def test_a_checkpoint_comes_by_time_too_and_moves_no_weight(tmp_path, minutes, written):
    """What a machine that is taken away may cost is minutes, however long a step is."""
    torch.manual_seed(0)
    model, found = Line(), []
    twin = copy.deepcopy(model)
    real = Loop.save
    settings = dict(steps=3, save_every=9, save_minutes=minutes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "save", lambda self: (found.append(self.done), real(self)))
        run(model, tmp_path / "timed", **settings)
    assert found == written
    run(twin, tmp_path / "other", steps=3)
    assert all(torch.equal(a, b) for a, b in zip(*map(Line.parameters, (model, twin)), strict=True))


def test_a_checkpoint_that_does_not_fit_the_model_is_refused(tmp_path):
    run(Line(), tmp_path, steps=3)
    other = Line()
    other.layer = torch.nn.Linear(2, 3)
    with pytest.raises(ValueError, match="size mismatch|missing"):
        run(other, tmp_path, steps=6)


def test_steps_that_teach_nothing_are_counted_while_it_runs(tmp_path, caplog):
    cut = {"accuracy": 0.0, "truncated": 1.0}
    loop = Loop(Line(), tmp_path / "tapo" / "x", 4, 0.1, 0.0, save_every=9)
    for _ in loop:
        loop.skip(cut | {"skipped": 1.0})
    for told in ("1 of 1", "2 of 2", "4 of 4"):
        assert f"tapo: {told} logged steps had nothing to learn from" in caplog.text
    assert "all completions were cut at the length limit" in caplog.text
    assert loop.history[-1]["moved"] == 0
