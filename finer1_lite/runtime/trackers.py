"""Trackers of a training through accelerate: tensorboard, wandb or trackio."""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy
import pandas
from accelerate.tracking import GeneralTracker, get_available_trackers

from finer1_lite.runtime import distributed

TRACKERS = ("none", "tensorboard", "wandb", "trackio")
COLUMNS = ["picture", "completion", "reward"]


def require(report_to: str | GeneralTracker) -> str | GeneralTracker | None:
    """What accelerate's `log_with` takes. ValueError for an unknown or a missing package."""
    if isinstance(report_to, GeneralTracker):
        return report_to
    if report_to not in TRACKERS:
        raise ValueError(f"report_to is {report_to!r}: choose {', '.join(TRACKERS)}")
    if report_to == "none":
        return None
    if report_to not in map(str, get_available_trackers()):
        raise ValueError(
            f"report_to is {report_to!r}, which is not installed: pip install {report_to}"
        )
    return report_to


def log_table(tracker: GeneralTracker, rows: Sequence[tuple[Any, str, float]], step: int) -> None:
    """Show rollouts, as far as the tracker can: rows of (picture, completion, reward)."""
    if not distributed.is_main():
        return
    if tracker.name == "tensorboard":  # its texts are Markdown
        for at, (picture, completion, reward) in enumerate(rows):
            image = numpy.asarray(picture.convert("RGB"))
            text = f"```\n{completion}\n```\nreward {reward:.2f}"
            tracker.writer.add_image(f"rollouts/{at}", image, step, dataformats="HWC")
            tracker.writer.add_text(f"rollouts/{at}", text, step)
    elif tracker.name in ("wandb", "trackio"):
        package = importlib.import_module(tracker.name)
        data = [[package.Image(picture), *row] for picture, *row in rows]
        table = package.Table(dataframe=pandas.DataFrame(data, columns=COLUMNS))
        tracker.log({"rollouts": table}, step=step)
    elif hasattr(tracker, "log_table"):
        tracker.log_table("rollouts", columns=COLUMNS, data=[list(row) for row in rows], step=step)
