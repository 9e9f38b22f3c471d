"""Minutes: closed forms at made-up rates, what they grow with, and a card that is measured."""

import json
from dataclasses import replace

import pytest
import torch

from finer1_lite.__main__ import main
from finer1_lite.presets import Preset
from finer1_lite.tools import minutes, plan
from finer1_lite.tools.memory import Load
from finer1_lite.tools.minutes import TABLE, Minutes, Rates

SLOW = Rates("made up", half=1e9, single=1e9, memory=1e30, layer=0.0)  # arithmetic alone
LAB = plan.memory_plan(Preset.lab(), gpu_gib=1).load


def at(rates: Rates, **changes) -> Minutes:
    return Minutes(replace(LAB, preset=LAB.preset.with_(**changes)), rates)


def test_a_token_takes_two_operations_a_weight_of_the_layers_and_the_head():
    s = LAB.sizes
    own = s.width * s.heads * s.head * 2 + s.width * s.kv_heads * s.head * 2
    assert s.token_flops == 2 * (s.layers * (own + 3 * s.width * s.inner) + s.vocabulary * s.width)


def test_stage_1_is_rows_times_tokens_forward_and_backward():
    blind = replace(LAB, sizes=replace(LAB.sizes, weights={}))  # without a vision tower
    tokens = 3 * 5 * (blind.prompt + 50)
    preset = LAB.preset.with_(sft__steps=3, sft__batch=5, max_new_tokens=100)
    found = Minutes(replace(blind, preset=preset), SLOW)
    assert found.sft() == pytest.approx(2 * tokens * LAB.sizes.token_flops / 1e9)
    again = Minutes(replace(blind, preset=preset.with_(gradient_checkpointing=True)), SLOW)
    assert again.sft() == pytest.approx(1.5 * found.sft())  # layers are computed once more


def test_decoding_waits_for_the_slowest_of_memory_arithmetic_and_host():
    """A batch of one picture in each of eight cells, ten tokens long."""
    own = dict(test_pictures=1, eval_batch=2, max_new_tokens=10)
    host = at(Rates("made up", 1e30, 1e30, 1e30, layer=0.5), **own)
    assert host.evaluation() == pytest.approx(8 * 10 * LAB.sizes.layers * 0.5)
    read = at(Rates("made up", 1e30, 1e30, memory=1e6, layer=0.0), **own)
    weights = sum(LAB.sizes.weights.values()) - LAB.sizes.weights["vision tower"]
    cache = 2 * (read.load.prompt + 5) * LAB.sizes.kv_token
    assert read.evaluation() == pytest.approx(8 * 10 * (weights + cache) / 1e6)


def test_pictures_whose_features_are_kept_are_looked_at_once_a_model():
    """Eight times in an evaluation, else: the tower's share of the time falls to three eighths."""
    blind = replace(LAB, sizes=replace(LAB.sizes, weights={}))
    answers = Minutes(blind, SLOW).evaluation()
    looks = [at(SLOW, keep_features=keep).evaluation() - answers for keep in (False, True)]
    assert looks[1] == pytest.approx(looks[0] * 3 / 8)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_a_micro_batch_reads_its_prompts_once_or_a_copy_for_each_completion(packed, checkpointing):
    """Eight completions of a group, four at a time: two prompts or eight."""
    own = dict(tapo__steps=1, tapo__groups=1, tapo__draws=1, tapo__micro_batch=4)
    own |= dict(tapo__inter_class_weight=0.0, tapo__negative_entropy_weight=0.0)
    preset = LAB.preset.with_(gradient_checkpointing=checkpointing, **own)
    sizes = replace(LAB.sizes, packed=packed, weights={})
    found = Minutes(Load(sizes, preset, 100), SLOW).tapo()
    longer = Minutes(Load(sizes, preset, 101), SLOW).tapo()
    read = 8 if checkpointing and not packed else 2
    passes = (3 if checkpointing else 2) * read + 2  # two are completed
    assert longer - found == pytest.approx(passes * sizes.token_flops / 1e9)


@pytest.mark.parametrize(
    ("setting", "stages"),
    [
        ("max_new_tokens", "sft tapo evaluation"),
        ("pixels", "sft tapo evaluation"),
        ("sft__steps", "sft"),
        ("sft__batch", "sft"),
        ("tapo__steps", "tapo"),
        ("tapo__draws", "tapo"),
        ("tapo__groups", "tapo"),
        ("tapo__negative_rollouts", "tapo"),
        ("test_pictures", "evaluation"),
    ],
)
def test_more_takes_longer_where_it_should(setting, stages):
    stage, _, name = setting.rpartition("__")
    settings = LAB.preset.to_dict()
    value = (settings[stage] if stage else settings)[name]
    before, after = at(SLOW).seconds, at(SLOW, **{setting: 2 * value}).seconds
    assert {k for k in before if after[k] > before[k]} == set(stages.split())


def test_a_t4_in_float32_takes_several_times_as_long():
    """Products in float32 have an eighth of the peak, and 4-bit weights are unpacked."""
    half, single = (
        Minutes(plan.memory_plan(Preset.colab(), dtype=dtype).load, TABLE["t4"])
        for dtype in (torch.float16, torch.float32)
    )
    for stage in ("sft", "tapo", "evaluation"):
        assert 2 < single.seconds[stage] / half.seconds[stage] < 10
    assert sum(half.seconds.values()) < 60 * 60 < sum(single.seconds.values())
    assert "in 16 bits" in str(half) and "assumed, not measured: T4" in str(half)


def test_a_card_is_measured_where_it_is_here_and_not_named(monkeypatch):
    measured = Rates("measured just now: a stub", 1.0, 1.0, 1.0)
    monkeypatch.setattr(minutes, "probe", lambda device: measured)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert minutes.choose("15", 15, False) is TABLE["t4"]
    assert minutes.choose("24", 24, False) is TABLE["l4"]
    assert minutes.choose("A100-40", 39.4, False) is TABLE["a100"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert minutes.choose("15", 15, False) is measured
    assert minutes.choose("T4", 14.6, False) is TABLE["t4"]  # which is asked about
    assert "CPU cores" in minutes.choose("15", 15, True).source


def test_the_probe_counts_operations_and_bytes(monkeypatch):
    """Each of four things a thousand times a second, on a card of this size."""
    monkeypatch.setattr(minutes, "_a_second", lambda work, device, seconds: 1000.0)
    found = minutes.probe(torch.device("cpu"), side=8)
    assert found.half == found.single == 1000 * 2 * 8**3 * minutes.USED
    assert found.memory == 1000 * 2 * 8 * 8 * 4 * minutes.READ  # read and written
    assert found.layer == minutes.KERNELS / 1000 and found.source.startswith("measured")


def test_a_rate_is_what_was_done_over_the_time_it_took():
    calls = []
    found = minutes._a_second(lambda: calls.append(0), torch.device("cpu"), seconds=0.01)
    assert found > 0 and (len(calls) - 1) % 10 == 0 and len(calls) > 10


def test_the_command_prints_and_writes_minutes(tmp_path, capsys):
    path = tmp_path / "plan.json"
    assert main(["plan", "--preset", "lab", "--json", str(path)]) == 0
    shown, written = capsys.readouterr().out, json.loads(path.read_text())["time"]
    assert "minutes of a seed: " in shown and written["source"] in shown
    assert list(written["seconds"]) == list(minutes.STAGES)
    assert min(written["seconds"].values()) > 0
