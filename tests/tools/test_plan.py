"""The memory plan: known totals, what fits, what is lowered, and its command."""

import functools
import json
import re
from dataclasses import replace

import pytest

from finer1_lite.__main__ import main
from finer1_lite.presets import Preset
from finer1_lite.students import random_weights
from finer1_lite.tools import memory, plan
from finer1_lite.tools.plan import GIB

memory_plan = functools.cache(plan.memory_plan)
LONG = dict(max_new_tokens=512, eval_batch=8)
T4 = Preset.t4().with_(tapo__groups=4, sft__micro_batch=1, **LONG)  # long answers
L4, A100 = Preset.l4(), Preset.a100()
SEVEN = T4.with_(student="Qwen/Qwen2.5-VL-7B-Instruct")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    def asked(name, **_):
        raise OSError(f"{name}: we have no connection")

    real = random_weights.AutoConfig.from_pretrained
    monkeypatch.setattr(
        random_weights.AutoConfig,
        "from_pretrained",
        lambda name, **k: asked(name) if str(name).count("/") == 1 else real(name, **k),
    )


# --- known totals --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "parameters", "packed", "constants", "layers"),
    [
        # 36 layers of 77,070,336 weights in 252 matrices; a byte for 64 of them, and so on
        (T4, 3_754_622_976, 2_774_532_096 // 2, 43_352_064 + 677_376 + 252 * 1092, 36),
        # 28 of 233,046,016 in 196
        (SEVEN, 8_292_166_656, 6_525_288_448 // 2, 101_957_632 + 1_593_088 + 196 * 1092, 28),
    ],
    ids=["3B", "7B"],
)
def test_full_size_weights(preset, parameters, packed, constants, layers):
    sizes = memory_plan(preset).load.sizes
    assert (sizes.parameters, sizes.layers) == (parameters, layers)
    assert sizes.weights["language layers, 4 bits"] == packed
    assert sizes.weights["quantisation constants"] == constants


def test_lora_of_rank_16_on_3b_has_30_million_numbers():
    """A and B of seven matrices: 16 * (in + out) each."""
    d, kv, inner = 2048, 256, 11_008
    pairs = [(d, d), (d, kv), (d, kv), (d, d), (d, inner), (d, inner), (inner, d)]
    sizes = memory_plan(T4).load.sizes
    assert sizes.adapter == 36 * 16 * sum(a + b for a, b in pairs) * 4


def test_a_token_in_the_cache_of_3b_has_18_thousand_numbers():
    sizes = memory_plan(T4).load.sizes
    assert sizes.kv_token == 36 * 2 * 2 * 128 * sizes.number and sizes.number in (2, 4)


@pytest.mark.parametrize(
    ("preset", "gpu"), [(Preset.colab(), 15), (Preset.t4(), 15), (L4, 24), (A100, 40)]
)
def test_presets_fit_the_cards_they_are_named_after(preset, gpu):
    found = memory_plan(preset, gpu_gib=gpu)
    assert found.fits and not found.lowered()[0] and "nothing needs to be lowered" in str(found)


def test_the_target_of_12_gib():
    """3B in 4 bits, 8 rollouts a group, 512-token answers, 256 visual tokens."""
    found = memory_plan(T4)
    tapo = T4.tapo
    assert tapo.anchor_rollouts + tapo.positive_rollouts == 8 and T4.max_new_tokens == 512
    assert found.load.visual == 256 and found.peak <= 12 * GIB
    without = found.changed("gradient_checkpointing", False)
    assert without.peak > found.peak + 3 * GIB  # why the preset has it


def test_answering_with_4_bit_weights_keeps_the_adapter_in_16_bits_beside_itself():
    load = memory_plan(Preset.colab()).load
    assert load.sizes.number == 2 and load.merged == {"adapter in 16 bits": load.sizes.adapter // 2}
    for answering in ("generate", "evaluate"):
        assert load.merged.items() <= load.phases[answering].items()


# --- phases, fits, advice ------------------------------------------------------------


def test_the_peak_is_the_largest_phase_and_not_the_sum():
    found = memory_plan(T4)
    assert list(found.load.phases) == ["generate", "score", "update", "sft", "evaluate"]
    assert found.peak == max(sum(parts.values()) for parts in found.load.phases.values())
    assert found.needed > found.peak + plan.CONTEXT


@pytest.mark.parametrize(
    ("setting", "phases"),
    [
        ("tapo.groups", "generate score update"),  # their pictures' features stay
        ("tapo.micro_batch", "score update"),
        ("sft.micro_batch", "sft"),
        ("eval_batch", "evaluate"),
        ("pixels", "generate score update sft evaluate"),
        ("max_new_tokens", "generate score update sft"),
    ],
)
def test_a_larger_setting_costs_where_it_should(setting, phases):
    small = memory_plan(T4)
    double = 2 * small.setting(setting)
    large = small.changed(setting, double)
    grown = {p for p in small.peaks if large.peaks[p] > small.peaks[p]}
    if setting == "max_new_tokens":  # evaluation: only where its worst moment is a decoding one
        grown.discard("evaluate")
    assert grown == set(phases.split())


@pytest.mark.parametrize("name", plan.COUNTS)
def test_the_largest_that_fits_is_the_largest(name):
    found = memory_plan(T4, gpu_gib=9)
    most = found.largest(name)
    step = 28 * 28 if name == "pixels" else 1
    assert found.changed(name, most).fits
    limits = {"tapo.micro_batch": 32, "sft.micro_batch": 16, "pixels": 2**20 // 784 * 784}
    limit = limits.get(name)
    assert most == limit or not found.changed(name, most + step).fits


def test_the_largest_micro_batch_is_found_behind_one_that_cuts_a_group():
    """Eight of a group's ten are two prompts in the next micro-batch, of six and two answers."""
    found = memory_plan(A100.with_(tapo__groups=4, eval_batch=8), gpu_gib=100)
    eight, ten = (found.changed("tapo.micro_batch", value).needed for value in (8, 10))
    assert ten < eight
    tight = replace(found, gpu=(eight + ten) // 2)
    assert tight.largest("tapo.micro_batch") == 10


def test_what_changes_no_result_is_lowered_first():
    found = memory_plan(T4.with_(gradient_checkpointing=False, eval_batch=512), gpu_gib=7)
    changes, after = found.lowered()
    expected = ["eval_batch", "tapo.micro_batch", "gradient_checkpointing"]
    assert list(changes) == expected
    assert changes["gradient_checkpointing"] == (False, True)  # groups and lengths stay
    assert after.fits and not found.fits
    assert after.load.preset.eval_batch == changes["eval_batch"][1] < 512
    shown = str(found)
    assert "does not fit 7" in shown and "gradient_checkpointing=true (now false)" in shown


def test_a_card_that_is_too_small_for_the_weights_says_so():
    found = memory_plan(SEVEN, gpu_gib=4)
    assert "a smaller model or a larger card" in str(found)
    assert {found.largest(name) for name in plan.COUNTS} == {0}


def test_a_lab_plan_is_in_mebibytes_and_reads_the_shipped_folder():
    found = memory_plan(Preset.lab(), gpu_gib=1)
    assert found.load.sizes.number == 4 and found.load.sizes.parameters == 2_896_128
    assert re.search(r"^MiB +generate", str(found), re.MULTILINE)


# --- the command ---------------------------------------------------------------------


def test_the_command_prints_and_writes(tmp_path, capsys):
    path = tmp_path / "plan.json"
    wanted = ["plan", "--model", "Qwen/Qwen2.5-VL-3B-Instruct", "--gpu", "15", "--json", str(path)]
    assert main([*wanted, "--set", "tapo.groups=2", "max_new_tokens=256"]) == 0
    shown, written = capsys.readouterr().out, json.loads(path.read_text())
    assert "Qwen/Qwen2.5-VL-3B-Instruct, preset t4, on 15 GiB" in shown
    assert written["preset"]["tapo"]["groups"] == 2 and written["fits"] is True
    assert written["peak"] == max(written["peaks"].values())
    assert f"{written['peak'] / GIB:.2f} GiB" in shown


@pytest.mark.parametrize("named", ["T4", "a100-40", "RTX 3060", "rtx-4090", "24", "7.5"])
def test_a_card_is_named_or_measured(named):
    word = named.casefold().removeprefix("rtx").strip(" -")
    assert plan.card_gib(named) == (plan.CARDS.get(word) or float(named))


@pytest.mark.slow
def test_presets_for_small_cards(capsys):
    """A 3B model, then a 7B one, which is large for them."""
    lines = [f"presets for {g} GiB: {names}" for g, names in ((6, "none"), (8, "colab, t4"))]
    assert plan.choices({}).splitlines()[:2] == lines
    seven = plan.choices({"student": SEVEN.student, "eval_batch": 8})
    assert "8 GiB: none" in seven and "12 GiB: colab, t4" in seven
    assert main(["plan", "--gpu", "T4"]) == 0
    assert "on 14.6 GiB" in (shown := capsys.readouterr().out) and lines[0] in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "Qwen/Qwen9-VL"], "no configuration of 'Qwen/Qwen9-VL'.*no connection"),
        (["--gpu", "-1"], "--gpu -1.0"),
        (["--gpu", "nan"], "--gpu nan"),
        (["--gpu", "T5"], "--gpu T5: GiB, or one of t4, l4"),
        (["--set", "tapo.groups=0"], "tapo.groups = 0"),
        (["--set", "quantize=int3"], "quantize = 'int3'"),
    ],
)
def test_bad_input_is_one_error_and_no_file(arguments, said, tmp_path, caplog):
    path = tmp_path / "plan.json"
    assert main(["plan", "--json", str(path), *arguments]) == 2
    assert re.search(said, caplog.text) and not path.exists()


def test_trls_sft_loss_makes_as_many_logits_at_a_time_as_the_plan_says():
    from trl.trainer import sft_trainer

    assert sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE == memory.TRL_CHUNK
