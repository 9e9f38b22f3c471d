"""Checkpoints: the newest whole one counts, one torn by a kill goes."""

import json
from pathlib import Path

import pytest

from finer1_lite.trainer import CHECKPOINT_FILES, Steps, last_checkpoint


def checkpoint(work: Path, step: int) -> Path:
    folder = work / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in (*CHECKPOINT_FILES, "adapter_model.safetensors"):
        (folder / name).write_text(json.dumps({"global_step": step}))
    return folder


def test_no_checkpoint_is_none(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None


def test_the_newest_is_taken_by_number_and_not_by_name(tmp_path):
    for step in (5, 100, 20):
        checkpoint(tmp_path, step)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


@pytest.mark.parametrize("lost", [*CHECKPOINT_FILES, "adapter_model.safetensors"])
def test_one_that_lacks_a_file_is_deleted_and_the_one_before_taken(tmp_path, lost):
    whole, torn = checkpoint(tmp_path, 5), checkpoint(tmp_path, 10)
    (torn / lost).unlink()
    assert last_checkpoint(tmp_path) == str(whole)
    assert whole.exists() and not torn.exists()


def test_one_whose_last_file_is_half_written_is_torn(tmp_path):
    torn = checkpoint(tmp_path, 10)
    (torn / "trainer_state.json").write_text('{"global_step": 1')
    assert last_checkpoint(tmp_path) is None
    assert not torn.exists()


def test_several_processes_each_write_random_states_of_their_own(tmp_path):
    whole = checkpoint(tmp_path, 5)
    (whole / "rng_state.pth").rename(whole / "rng_state_0.pth")
    assert last_checkpoint(tmp_path) == str(whole)


def test_steps_are_numbers_in_order():
    assert list(map(Steps(3).__getitem__, range(len(Steps(3))))) == [0, 1, 2]
