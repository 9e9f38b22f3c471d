"""The bench: what it counts, what it holds equal, and a small one from end to end."""

import itertools
import json
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from trl import GRPOTrainer

from finer1_lite import __main__ as cli
from finer1_lite import generation, models, rewards
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.runtime import files
from finer1_lite.students import attention
from finer1_lite.tools import bench, bench_row
from finer1_lite.tools.bench_row import THEIRS, TRAINERS, TRL, Job, Meter

PHASES = ("generate_s", "score_s", "update_s")


@pytest.fixture(scope="module")
def small(student, tmp_path_factory) -> Preset:
    """A preset whose student has random weights; 1 group, 2 rollouts, 4 tokens."""
    folder = tmp_path_factory.mktemp("student")
    student.model.save_pretrained(folder)
    student.processor.save_pretrained(folder)
    return Preset.lab().with_(
        student=str(folder),
        max_new_tokens=4,
        lora_rank=4,
        tapo__groups=1,
        tapo__anchor_rollouts=1,
        tapo__positive_rollouts=1,
    )


def job_of(preset: Preset, name="dapo", steps=1) -> Job:
    (job,) = bench.jobs_of(preset, steps, [name])
    return job


# --- from end to end -----------------------------------------------------------------


@pytest.mark.slow
def test_a_small_bench_yields_a_row_a_trainer(small, tmp_path, capsys):
    path = tmp_path / "rows.json"
    rows = bench.measure(small, steps=1, json_path=path)
    assert json.loads(path.read_text()) == rows
    assert [row["trainer"] for row in rows] == 2 * list(TRAINERS)
    assert [row["natural"] for row in rows] == len(TRAINERS) * [False] + len(TRAINERS) * [True]
    rows, natural = rows[: len(TRAINERS)], rows[len(TRAINERS) :]
    for row in natural:
        assert 1 <= row["completion_tokens"] <= 4 and row["of_trl"] > 0
    for row in rows:
        assert row["step_s"] == pytest.approx(sum(row[phase] for phase in PHASES))
        assert all(row[phase] > 0 for phase in PHASES)
        assert row["peak_mb"] > row["start_mb"] > 100  # torch alone is more
        assert (row["completions"], row["completion_tokens"], row["rollouts"]) == (2, 4, 2)
        assert row["tokens_per_s"] == pytest.approx(8 / row["step_s"])
        assert row["vision_calls"] > 0
    trl, dapo, *tapos = rows
    assert trl["of_trl"] == dapo["of_dapo"] == 1
    assert dapo["of_trl"] == pytest.approx(dapo["step_s"] / trl["step_s"])
    assert trl["pictures"] == 4  # the anchor, once a rollout, to generate and to score
    assert dapo["pictures"] == dapo["vision_calls"] == 1
    for row in tapos:  # anchor, positive, negative
        assert row["pictures"] == row["pictures_generate"] == 3 and row["vision_calls"] == 1
    out = capsys.readouterr().out
    for name in TRAINERS:
        assert len(re.findall(rf"^{name}  +\d+\.\d\d ", out, re.MULTILINE)) == 2, name


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for option in ("--steps", "--groups", "--json FILE", "--preset"):
        assert option in out


def test_bad_counts_are_refused_together(caplog):
    assert cli.main(["bench", "--steps", "0", "--groups", "-1"]) == 2
    assert "- --steps 0: 1 or more\n- --groups -1: 1 or more" in caplog.text


# --- the same work for all -----------------------------------------------------------


class Pipe:
    """The other end of a row's pipe, in the same process: always says go."""

    def __init__(self):
        self.readings = []

    def recv(self):
        return "step"

    def send(self, reading):
        self.readings.append(reading)


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    """Each trainer after two steps of 2 groups with reward variance: what it did."""
    found = {}
    for name in TRAINERS:
        with pytest.MonkeyPatch.context() as patch:
            job = job_of(small.with_(tapo__groups=2, tapo__micro_batch=3), name)
            student, folder = bench_row.load(small), tmp_path_factory.mktemp("row")
            pipe, asked, trainers = Pipe(), [], []
            turns, real = itertools.count(), bench_row.trl_trainer

            def every_other(completion, label, asked=asked, turns=turns, **_):
                asked.append(label)
                return float(next(turns) % 2 == 0)

            def kept(*args, trainers=trainers, real=real):
                trainers.append(real(*args))
                return trainers[0]

            patch.setattr(rewards, "accuracy_reward", every_other)
            patch.setattr(bench_row, "trl_trainer", kept)
            before = weights(student.model)
            bench_row.train(job, student, pipe, folder)
        if name == TRL:
            log = [row for row in trainers[0].state.log_history if "loss" in row]
        else:
            log = [row for _, row in files.read(folder / "log.jsonl")]
        found[name] = (log, before, weights(student.model), asked, pipe.readings)
    return found


def weights(model) -> dict[str, torch.Tensor]:
    """By name; PEFT's names for all."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", TRAINERS)
def test_every_row_really_trains_its_adapters(trained, name):
    log, before, after, _, readings = trained[name]
    assert len(readings) == 2
    gradients = [row["grad_norm"] for row in log]
    assert len(gradients) == 2 and min(gradients) > 0
    for key, weight in after.items():
        if "lora_B" in key:
            assert (weight - before[key]).abs().max() > 1e-5, key
        elif "lora_" not in key:
            assert torch.equal(weight, before[key]), key


def test_every_trainer_is_asked_about_the_same_anchors(trained):
    asked = {name: asked for name, (_, _, _, asked, _) in trained.items()}
    assert len(asked[TRL]) == 8 and len(set(asked[TRL])) > 1  # 2 steps, 2 groups, 2 rollouts
    for name in TRAINERS:  # ours asks twice a completion: for the reward and for the log
        assert asked[name][:: len(asked[name]) // 8] == asked[TRL], name
        assert not Job(name, Preset.lab(), 84, 1).settings.tapo.with_options  # nor is TRL offered


def test_every_completion_has_the_longest_length(trained):
    """The end of the turn is never drawn: the same number of tokens for all."""
    for name in set(TRAINERS) - {TRL}:
        assert [(row["length"], row["truncated"]) for row in trained[name][0]] == [(4, 1), (4, 1)]
    for row in trained[TRL][0]:
        assert row["completions/min_length"] == row["completions/max_length"] == 4


def test_natural_lengths_are_counted_and_pictures_have_three_shapes(small, tmp_path, monkeypatch):
    """The end of the turn may be drawn: here it is, at the second token of all."""
    preset = small.with_(tapo__groups=2)
    job = replace(job_of(preset), natural=True)
    student, pipe = bench_row.load(preset), Pipe()
    end, turns = student.processor.tokenizer.eos_token_id, itertools.count()

    def drawn(logits, *args):
        return torch.full((len(logits),), end if next(turns) % 2 else 100)

    monkeypatch.setattr(bench_row.generation, "pick_tokens", drawn)
    bench_row.train(job, student, pipe, tmp_path)
    assert [reading["tokens"] for reading in pipe.readings] == [8, 8]  # 2 x 2 of two tokens
    assert [row["length"] for _, row in files.read(tmp_path / "log.jsonl")] == [2, 2]
    shapes = {p.image().size for p in bench_row.pictures(preset, 84, natural=True).train}
    assert shapes == {(84, 84), (84, 56), (56, 84)}
    row = bench.row_of(job, {"dapo": pipe.readings})
    assert row["completion_tokens"] == 2
    assert row["tokens_per_s"] == pytest.approx(8 / row["step_s"])


def test_trls_trainer_has_the_attention_that_others_load_it_with(small, tmp_path):
    student = bench_row.load(small)
    text = generation.core_of(student.model).config.get_text_config()
    seen = [text._attn_implementation]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_row, "trl_trainer", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            bench_row.train(job_of(small, TRL), student, Pipe(), tmp_path)
    assert [*seen, text._attn_implementation] == [attention.NAME, "sdpa"]


def test_the_micro_batch_divides_the_completions(small):
    preset = small.with_(tapo__groups=3, tapo__anchor_rollouts=3)  # 12 completions
    limits = (1, 5, 8, 12, 32)
    sizes = [job_of(preset.with_(tapo__micro_batch=limit)).micro_batch for limit in limits]
    assert sizes == [1, 4, 6, 12, 12]


def test_trl_still_calls_what_the_meter_wraps():
    """A renamed method would leave its phase at zero without any error."""
    import inspect

    source = inspect.getsource(GRPOTrainer)
    for method in THEIRS:
        assert re.search(rf"self\.{method}\(", source), method


def test_pictures_have_the_size_asked_for(small):
    preset = job_of(small).preset
    for side in (84, 56):
        birds = bench_row.pictures(preset, side)
        assert {p.image().size for p in birds.train} == {(side, side)}
        first = birds.train[0]
        assert first.image() is not first.image()  # a copy each: nobody draws on the original


def test_another_student_starts_from_a_fresh_adapter(small):
    student = bench_row.load(small)
    assert isinstance(student, Student) and models.trainable_parameters(student.model) > 0


# --- counting and dividing -----------------------------------------------------------


def test_time_belongs_to_the_innermost_phase(fresh, monkeypatch):
    now = iter([1.0, 4.0, 9.0, 15.0, 22.0])
    monkeypatch.setattr(bench_row.time, "perf_counter", lambda: next(now))
    meter = Meter(fresh, Pipe())  # hooks stay on its student
    meter.call("generate", meter.call, "score", lambda: None)  # 1 to 4, 9, 15
    meter._switch("update")  # ... and 22
    assert meter.spent == Counter(update=1.0 + 7.0, generate=3.0 + 6.0, score=5.0)


def test_ratios_are_medians_of_ratios_within_a_round():
    """A round in which the machine was busy for all leaves them alone."""

    def reading(step):
        return {"step_s": step, "peak_mb": 300.0, "start_mb": 200.0}

    seconds = {"trl dapo": (2, 20, 2), "dapo": (1, 10, 1), "tapo": (1.5, 15, 2)}
    found = {name: [reading(s) for s in seconds.get(name, (4, 40, 4))] for name in TRAINERS}
    preset = Preset.lab().with_(tapo__groups=2)
    rows = [bench.row_of(job_of(preset, name), found) for name in TRAINERS]
    assert [row["of_trl"] for row in rows] == [1, 0.5, 0.75, 2, 2]
    assert [row["of_dapo"] for row in rows] == [2, 1, 1.5, 4, 4]
    assert rows[1]["tokens_per_s"] == 2 * 8 * 160 / 1 and rows[0]["steps_mb"] == 100


def test_a_row_that_dies_is_named():
    class Dead:
        def send(self, _):
            raise BrokenPipeError

    with pytest.raises(ChildProcessError, match="'tapo' stopped"):
        bench.next_step(Dead(), Job("tapo", Preset.lab(), 84, 1))
