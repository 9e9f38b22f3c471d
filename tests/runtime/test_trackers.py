"""Trackers: what each is shown of the rollouts, and an error that says what to install."""

import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from finer1_lite.runtime import trackers

ROWS = [(Image.new("RGB", (4, 3), "red"), "<answer>a wren</answer>", 0.9)]


class Tracker:
    """Keeps what it is told."""

    def __init__(self, name):
        self.name, self.told = name, []
        self.writer = SimpleNamespace(
            add_image=lambda tag, pixels, step, dataformats: self.told.append((tag, pixels.shape)),
            add_text=lambda tag, text, step: self.told.append((tag, text)),
        )

    def log(self, values, step):
        self.told.append((step, values))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_with_tables_gets_one(name, monkeypatch):
    package = SimpleNamespace(
        Image=lambda picture: ("image", picture), Table=lambda dataframe: dataframe
    )
    monkeypatch.setitem(sys.modules, name, package)
    tracker = Tracker(name)
    trackers.log_table(tracker, ROWS, 7)
    ((step, values),) = tracker.told
    table = values["rollouts"]
    assert step == 7 and list(table.columns) == ["picture", "completion", "reward"]
    assert table.values.tolist() == [[("image", ROWS[0][0]), *ROWS[0][1:]]]


def test_tensorboard_gets_pictures_and_texts():
    tracker = Tracker("tensorboard")
    trackers.log_table(tracker, ROWS, 7)
    (tag, shape), (again, text) = tracker.told
    assert tag == again == "rollouts/0" and shape == (3, 4, 3)
    assert "a wren" in text and "reward 0.90" in text


def test_a_tracker_without_tables_is_left_alone():
    trackers.log_table(SimpleNamespace(name="aim"), ROWS, 7)


def test_an_unknown_tracker_and_a_missing_package_are_named(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard"])
    assert trackers.require("none") is None and trackers.require("tensorboard") == "tensorboard"
    with pytest.raises(ValueError, match="'wandb', which is not installed: pip install wandb"):
        trackers.require("wandb")
    with pytest.raises(ValueError, match="'paper': choose none, tensorboard, wandb, trackio"):
        trackers.require("paper")
