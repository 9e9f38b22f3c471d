"""A checkpoint counts by its content, whatever files stand there; weights fit and are finite."""

import json

import pytest
import torch
from safetensors.torch import save_file

from finer1_lite.runtime import checkpoints
from finer1_lite.runtime.checkpoints import NotFinite, last_checkpoint, seal
from finer1_lite.runtime.files import DataError

FILES = ("optimizer.bin", "scheduler.bin", "random_states_0.pkl")


def checkpoint(work, step):
    """As the loop writes it."""
    folder = work / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in FILES:
        torch.save({"moment": torch.full((2000,), float(step))}, folder / name)
    save_file({"weight": torch.full((2000,), float(step))}, folder / "trained.safetensors")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    seal(folder)
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:500])


def empty(path):
    path.write_bytes(b"")


def zeros(path):
    """What a file system leaves after the power failed."""
    path.write_bytes(bytes(path.stat().st_size))


def another_number(path):
    """Every reader takes it; only the checksum tells."""
    data = bytearray(path.read_bytes())
    data[-9] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("name", [*FILES, "trained.safetensors"])
@pytest.mark.parametrize("harm", [cut, empty, zeros, another_number])
def test_a_checkpoint_with_a_harmed_file_is_skipped_and_said(tmp_path, name, harm, caplog):
    whole, torn = checkpoint(tmp_path, 5), checkpoint(tmp_path, 10)
    harm(torn / name)
    assert last_checkpoint(tmp_path) == str(whole)
    assert not torn.exists()
    assert "checkpoint-10 was torn" in caplog.text and name in caplog.text


def test_where_none_is_whole_a_training_begins_anew(tmp_path, caplog):
    cut(checkpoint(tmp_path, 5) / "optimizer.bin")
    assert last_checkpoint(tmp_path) is None
    assert "beginning anew" in caplog.text


def test_a_copy_under_another_name_is_no_checkpoint(tmp_path):
    whole = checkpoint(tmp_path, 5)
    (tmp_path / "checkpoint-5-copy").mkdir()
    assert last_checkpoint(tmp_path) == str(whole)


def test_weights_are_compared_by_name_and_shape():
    given = {"a": torch.zeros(2), "b": torch.zeros(3), "x": torch.zeros(1)}
    wanted = {"a": torch.zeros(2), "b": torch.zeros(4), "c": torch.zeros(1)}
    with pytest.raises(DataError, match="1 missing, 1 unexpected, 1 size mismatch") as told:
        checkpoints.require_fit(given, wanted, "a file")
    assert told.value.problems == ["missing: c", "unexpected: x", "size mismatch: b [3] for [4]"]


def test_bytes_of_quantised_weights_are_no_numbers(tmp_path):
    packed = torch.full((4,), 255, dtype=torch.uint8).view(torch.bfloat16)  # nan, if it were any
    with pytest.raises(NotFinite):
        checkpoints.require_finite([("plain", packed)])
    packed.quant_state = object()
    eighths = torch.ones(2).to(torch.float8_e4m3fn)
    checkpoints.require_finite([("packed", packed), ("float8", eighths)])


def test_weights_that_are_not_finite_are_named_and_counted(tmp_path):
    bad = {"a": torch.tensor([1.0, torch.nan]), "b": torch.tensor(-torch.inf), "c": torch.ones(1)}
    save_file(bad, tmp_path / "x.safetensors")
    with pytest.raises(NotFinite, match=r"x.safetensors: nan or inf in a, b \(2 in all\)"):
        checkpoints.read_tensors(tmp_path / "x.safetensors")
