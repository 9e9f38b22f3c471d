"""The table of settings by their names elsewhere: every name in it exists."""

import dataclasses
import re

import pytest
from paths import ROOT
from trl import GRPOConfig

from finer1_lite.losses import LOSS_TYPES
from finer1_lite.presets import RECIPES, Preset, TAPOSettings

TEXT = (ROOT / "assets" / "results" / "README.md").read_text("utf-8")
SECTION = TEXT.partition("## Settings by their names elsewhere")[2]
SETTINGS, _, LOSSES = SECTION.partition("The five losses")


def rows_of(text: str) -> list[list[str]]:
    """The rows of the one table of a text, without its head."""
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line[:2] == "| "][1:]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("row", rows_of(SETTINGS), ids=lambda row: row[0])
def test_every_setting_here_and_in_trl_exists(row):
    ours = {*Preset.model_fields, *(f"tapo.{name}" for name in TAPOSettings.model_fields)}
    theirs = {field.name for field in dataclasses.fields(GRPOConfig)}
    assert set(named(row[0])) <= ours and set(named(row[1])) <= theirs
    assert named(row[0]) or row[0].startswith("none")
    assert named(row[1]) or row[1].startswith("none")


def test_the_table_is_whole():
    assert {len(row) for row in rows_of(SETTINGS)} <= {3, 4} and len(rows_of(SETTINGS)) == 20
    assert [row[0].split()[0] for row in rows_of(LOSSES)] == list(LOSS_TYPES)
    assert LOSS_TYPES.keys() <= RECIPES.keys()
    assert "(#settings-by-their-names-elsewhere)" in TEXT.partition("##")[0]


def test_the_example_of_a_reward_is_one():
    scope = {}
    exec(re.search(r"```python\n(.*?)```", SECTION, re.DOTALL)[1], scope)
    chats = [[{"role": "assistant", "content": "x" * n}] for n in (399, 400)]
    assert scope["short"](completions=chats, label=["a", "b"], prompts=[]) == [1.0, 0.0]
