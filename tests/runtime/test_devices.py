"""Devices: what is said, what is refused, and that it is settled before anything starts."""

import argparse
import os
from types import SimpleNamespace

import pytest
import torch

from finer1_lite import models
from finer1_lite.__main__ import build_parser, main
from finer1_lite.runtime import devices, files
from finer1_lite.tools.commands import LabCommand


@pytest.fixture
def machine(monkeypatch):
    """A machine that has these GPUs and where no device is named: machine("mps")."""

    def have(*there: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in there)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T4")
        size = SimpleNamespace(total_memory=14.6 * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: size)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in there)
        devices.choose_device.cache_clear()

    monkeypatch.setenv(devices.VARIABLE, "auto")
    yield have
    devices.choose_device.cache_clear()


def started(monkeypatch) -> list[str]:
    """The device that a `lab` found when it started, once for each start."""
    found = []
    monkeypatch.setattr(LabCommand, "start", lambda _: found.append(os.environ[devices.VARIABLE]))
    return found


@pytest.mark.parametrize(
    ("there", "named", "kind", "said"),
    [
        ((), "auto", "cpu", "device cpu: no CUDA GPU was found, so the CPU is used"),
        (("mps",), "auto", "cpu", "the CPU is used; --device mps uses this Mac's GPU"),
        (("mps",), "mps", "mps", "device mps: this Mac's GPU; nobody has tried"),
        (("cuda",), "auto", "cuda", "device cuda: NVIDIA T4, 15 GiB"),
        (("cuda",), "cpu", "cpu", "device cpu: as --device or FINER1_DEVICE says"),
    ],
)
def test_the_choice_is_said_in_plain_words(machine, monkeypatch, caplog, there, named, kind, said):
    machine(*there)
    monkeypatch.setenv(devices.VARIABLE, named)
    with caplog.at_level("INFO"):
        assert devices.choose_device().type == kind
    assert said in caplog.text


@pytest.mark.parametrize("wrong", ["cuda", "mps", "tpu", "cuda:0"])
def test_a_device_that_is_not_here_is_named_with_those_that_are(machine, wrong, caplog, tmp_path):
    machine()
    assert main(["lab", "--device", wrong, "--out", str(tmp_path / "runs")]) == 2
    assert wrong in caplog.text and "auto, cuda, mps, cpu; this machine has cpu" in caplog.text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("wrong", ["cuda:7", "cuda:x"])
def test_one_of_several_cards_is_chosen_by_cudas_own_variable(machine, monkeypatch, wrong):
    machine("cuda")
    monkeypatch.setenv(devices.VARIABLE, wrong)
    with pytest.raises(files.DataError, match=f"{wrong}.*has cuda, cpu; CUDA_VISIBLE_DEVICES"):
        devices.choose_device()


@pytest.mark.parametrize("preset", ["colab", "t4", "l4", "a100"])
@pytest.mark.parametrize("command", ["lab", "evaluate x", "analyse x y", "bench"])
def test_a_preset_for_a_gpu_stops_without_one(machine, command, preset, caplog, monkeypatch):
    machine()
    assert main([*command.split(), "--preset", preset]) == 2
    (said,) = [r.getMessage() for r in caplog.records]
    assert f"--preset {preset}" in said and "--device cpu" in said and "\n" not in said


def test_it_goes_on_where_there_is_one_or_the_cpu_is_named(machine, monkeypatch):
    found = started(monkeypatch)
    machine()
    assert main(["lab", "--preset", "laptop"]) == 0  # made for a CPU, as lab is
    found.clear()
    assert main(["lab"]) == main(["lab", "--preset", "t4", "--device", "cpu"]) == 0
    machine("cuda")
    assert main(["lab", "--preset", "t4", "--device", "auto"]) == 0
    assert found == ["auto", "cpu", "auto"]


def test_a_plan_asks_for_no_gpu(machine, monkeypatch):
    from finer1_lite.tools.commands import PlanCommand

    machine()
    monkeypatch.setattr(PlanCommand, "start", lambda _: None)
    assert main(["plan", "--preset", "a100"]) == 0


def test_every_command_that_computes_has_the_option():
    def names(parser: argparse.ArgumentParser, above: str = "") -> set[str]:
        found = {above} if "--device" in parser._option_string_actions else set()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, one in action.choices.items():
                    found |= names(one, f"{above} {name}".strip())
        return found

    computing = "lab, pretrain, ablate, bench, cot make, evaluate, analyse, predict, demo"
    assert names(build_parser()) == set(computing.split(", "))


def test_on_mps_numbers_have_32_bits_and_4_bits_are_refused():
    mps = torch.device("mps")
    assert devices.choose_dtype(mps) == torch.float32
    with pytest.raises(ValueError, match="nf4.*not mps: set quantize=none"):
        models.read_weights("nowhere", mps, torch.float32, "nf4")


def test_an_attention_whose_gradients_are_nan_is_switched_off():
    """Of cuDNN's backward pass under a mask; that others are sound is seen by `-m gpu`."""
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()
