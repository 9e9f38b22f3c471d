"""Reward functions of one's own: found by name, called as TRL calls them, and never trusted."""

import math
import sys

import pytest
import torch
from tiny_tapo import TINY, Stage, adapted

from finer1_lite import tapo
from finer1_lite.__main__ import read_command
from finer1_lite.runtime import own_rewards
from finer1_lite.runtime.files import DataError, open_folder

SOURCE = """
def short(completions, **columns):
    return [1.0 / len(chat[0]["content"] or "x") for chat in completions]

def named(completions, label, prompts, completion_ids, **columns):
    assert len(label) == len(prompts) == len(completion_ids) == len(completions)
    return [name in prompt[0]["content"][1]["text"] for name, prompt in zip(label, prompts)]

def some(completions, **columns):
    return [None, *range(1, len(completions))]

def none(completions, **columns):
    return [None] * len(completions)

def few(completions, **columns):
    return [1.0]

def infinite(completions, **columns):
    return [float("inf"), *[0.0] * (len(completions) - 2), float("nan")]

def broken(completions, **columns):
    raise KeyError("colour")

async def later(completions, **columns):
    return [0.0] * len(completions)

number = 3
"""


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """A module of the working directory, which no other test sees."""
    (tmp_path / "own_lengths.py").write_text(SOURCE)
    (tmp_path / "own_torn.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield
    sys.modules.pop("own_lengths", None)


def paid(asked, completions=("ab", "abcd"), **columns):
    return own_rewards.pay(own_rewards.load(asked), completions, columns)


def test_functions_come_from_the_working_directory_or_a_package_with_their_weights():
    good = "<think>x</think><answer>y</answer>"
    asked = "own_lengths:short=0.5 finer1_lite.rewards:format=-2 trl.rewards:think_format_reward=1"
    found = own_rewards.load(asked)
    assert [weight for _, weight in found.values()] == [0.5, -2.0, 1.0]
    judged = own_rewards.pay(found, [good, "no"], {})
    assert judged["own_lengths:short"] == [1 / len(good), 0.5]
    assert judged["finer1_lite.rewards:format"] == [1.0, 0.0]
    assert own_rewards.load("") == {}


def test_none_is_no_judgement():
    assert math.isnan(paid("own_lengths:some=1")["own_lengths:some"][0])
    assert paid("own_lengths:some=1")["own_lengths:some"][1] == 1.0


def test_one_error_lists_all_that_cannot_be_had(tmp_path):
    asked = "lengths own_lengths:short=much :f=1 own_lengths:short=nan absent:f=1 own_torn:f=1"
    asked += " own_lengths:long=1 own_lengths:number=1 own_lengths:later=1"
    with pytest.raises(DataError) as error:
        own_rewards.load(asked + " own_lengths:short=1 own_lengths:short=2")
    head, *problems = str(error.value).splitlines()
    assert "MODULE:FUNCTION=WEIGHT" in head and str(tmp_path) in head
    for problem, said in zip(
        problems,
        (
            "lengths: ModuleNotFoundError: No module named 'lengths'",
            "own_lengths:short=much: ValueError: could not convert",
            ":f=1: ValueError: Empty module name",
            "own_lengths:short=nan: ValueError: nan is no finite number",
            "absent:f=1: ModuleNotFoundError: No module named 'absent'",
            "own_torn:f=1: SyntaxError",
            "own_lengths:long=1: AttributeError",
            "own_lengths:number=1: TypeError: no plain function but 3",
            "own_lengths:later=1: TypeError: no plain function",
            "own_lengths:short=2: ValueError: is asked for twice",
        ),
        strict=True,
    ):
        assert problem.startswith(f"- {said}")


def test_one_error_lists_all_that_is_wrongly_paid():
    names = ("short", "few", "infinite", "broken")
    with pytest.raises(DataError) as error:
        paid(" ".join(f"own_lengths:{name}=1" for name in names))
    assert str(error.value).splitlines()[1:] == [
        "- own_lengths:few: ValueError: 1 rewards for 2 completions",
        "- own_lengths:infinite: ValueError: inf is no finite number",
        "- own_lengths:broken: KeyError: 'colour'",
    ]


# --- in a training -------------------------------------------------------------------


def test_training_pays_them_besides_and_logs_each(fresh, birds, spread, tmp_path):
    rewards = "own_lengths:short=2 own_lengths:some=-0.5 own_lengths:named=1 own_lengths:none=1"
    stage = Stage(fresh, birds, tmp_path / "run", TINY.with_(tapo__rewards=rewards))
    stage.sample(0)
    for group in stage.kept:
        short = torch.tensor([1 / len(text or "x") for text in group.completions])
        offered = float(group.triplet.anchor.species in group.triplet.options)
        plain = 0.9 * group.accuracy + 0.1 * group.format
        expected = plain + 2 * short - 0.5 * torch.tensor([0.0, 1, 2, 3]) + offered
        torch.testing.assert_close(group.reward, expected)
    assert [bool(g.triplet.options) for g in stage.kept] == [False, True]
    log = stage.log()
    assert log["rewards/own_lengths:some"] == 2.0  # the mean of those that it judged
    assert log["rewards/own_lengths:named"] == 0.5
    assert log["rewards/own_lengths:short"] == pytest.approx(
        torch.cat([g.own["own_lengths:short"] for g in stage.kept]).mean().item(), abs=1e-5
    )
    assert "rewards/own_lengths:none" not in log


def test_a_reward_that_is_not_there_stops_a_training_before_its_first_step(fresh, birds, tmp_path):
    preset = TINY.with_(tapo__rewards="absent:f=1")
    with pytest.raises(ValueError, match="absent:f=1: ModuleNotFoundError"):
        tapo.train_tapo(adapted(fresh, preset), birds, preset, 0, tmp_path / "run")


# --- on the command line -------------------------------------------------------------


def lab(*arguments):
    return read_command(["lab", *arguments])


def test_several_rewards_reach_the_preset_and_a_run_with_others_is_refused(tmp_path):
    two = ("--reward", "own_lengths:short=0.1", "--reward", "own_lengths:some=1")
    job = lab("--out", str(tmp_path), *two).job()
    assert job.preset.tapo.rewards == "own_lengths:short=0.1 own_lengths:some=1"
    assert lab().job().preset.tapo.rewards == ""
    open_folder(job.folder, job.config(job.collection()[0]), fresh=False)
    other = lab("--out", str(tmp_path), "--reward", "own_lengths:short=0.2").job()
    with pytest.raises(DataError, match="rewards: own_lengths:short=0.1 own.*=0.2 now"):
        open_folder(other.folder, other.config(other.collection()[0]), fresh=False)


def test_a_lab_run_with_rewards_that_are_not_there_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="absent:f") as error:
        lab("--out", str(tmp_path / "runs"), "--reward", "absent:f=1", "own_lengths:long=1").start()
    assert "own_lengths:long" in str(error.value) and not (tmp_path / "runs").exists()
