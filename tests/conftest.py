"""What most tests need: a small world of birds and a student that knows nothing yet."""

import copy
import logging
import os

import pytest
import torch

from finer1_lite import paperbirds
from finer1_lite.generation import Student
from finer1_lite.students import lab_student

os.environ["FINER1_DEVICE"] = "cpu"  # exact and repeatable, on a machine with a GPU too
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Begin with `slow(minutes=...)`, the longest first: two workers then end together."""

    def minutes(item):
        mark = item.get_closest_marker("slow")
        return mark.kwargs.get("minutes", 0) if mark else 0

    items.sort(key=minutes, reverse=True)


@pytest.fixture(autouse=True)
def log_level():
    """A command that a test runs sets the package's: the next test finds what this one found."""
    log = logging.getLogger("finer1_lite")
    found = log.level
    yield
    log.setLevel(found)


@pytest.fixture(scope="session")
def world():
    return paperbirds.make_world(0)


@pytest.fixture(scope="session")
def birds(world):
    """Four training pictures a seen species and a test picture of each species or two."""
    return paperbirds.collection(world, test=36)


@pytest.fixture(scope="session")
def student():
    """The lab's model with random weights, the same in every run. Do not change it."""
    processor = lab_student.make_processor()
    torch.manual_seed(0)
    return Student(lab_student.make_model(processor.tokenizer).eval(), processor)


@pytest.fixture
def fresh(student):
    """The same student, yours to change."""
    return Student(copy.deepcopy(student.model), student.processor)


@pytest.fixture
def spread(monkeypatch):
    """A random student never names a bird: every other completion is called right."""
    from tiny_tapo import every_other

    from finer1_lite import rewards

    monkeypatch.setattr(rewards, "accuracy_reward", every_other())
