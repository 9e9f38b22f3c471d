"""A start that bad input ends before anything is computed leaves nothing; what was there stays."""

from pathlib import Path

import pytest

from finer1_lite import lab
from finer1_lite.__main__ import main
from finer1_lite.runtime import files


def tree(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


@pytest.mark.parametrize(
    "command",
    [
        "lab --test-pictures 36 --student DIR/no-such-model",
        "lab --test-pictures 36 --student nobody/has-this-model --name deep/er",
        "lab --test-pictures 36 --teacher table",
        "evaluate nobody/has-this-model --test-pictures 36",
        "evaluate DIR/no-such-model",
        "analyse nobody/has-this-model nobody/nor-that --test-pictures 36",
        "ablate --set student=nobody/has-this-model --rows tapo",
        "cot make --teacher local --model nobody/has-this-model --out DIR/runs/chains",
    ],
)
def test_no_folder_is_left(command, tmp_path):
    words = command.replace("DIR", str(tmp_path)).split()
    if "--out" not in words:
        words += ["--out", str(tmp_path / "runs")]
    assert main(words) == 2
    assert tree(tmp_path) == set()


def failing(monkeypatch, error: Exception, wrote: str = "") -> list[str]:
    """`lab` fails after its folder is opened, and has perhaps written a file by then."""

    def fail(preset, folder, *_):
        assert (folder / files.CONFIG).exists()
        if wrote:
            files.write_atomically(folder / wrote, b"work")
        raise error

    monkeypatch.setattr(lab, "prepare_base", fail)
    return ["lab", "--test-pictures", "36", "--out"]


@pytest.mark.parametrize("error", [files.DataError(["x"]), ValueError("x"), OSError("no such")])
def test_folders_that_were_there_stay(tmp_path, monkeypatch, error):
    words = failing(monkeypatch, error)
    (tmp_path / "other").mkdir()
    assert main([*words, str(tmp_path)]) == 2
    assert tree(tmp_path) == {"other"}
    (tmp_path / "lab").mkdir()  # an empty one of the run's own name
    assert main([*words, str(tmp_path)]) == 2
    assert tree(tmp_path) == {"other", "lab"}


@pytest.mark.parametrize("wrote", ["base/think_open.jsonl", "warm-up/checkpoints/state"])
def test_what_was_computed_stays(tmp_path, monkeypatch, wrote):
    words = failing(monkeypatch, ValueError("late"), wrote)
    assert main([*words, str(tmp_path)]) == 2
    assert {"lab/config.json", f"lab/{wrote}"} <= tree(tmp_path)


def test_a_run_that_goes_on_and_fails_stays(tmp_path, monkeypatch):
    """Its folder was there before: of this start it is not."""
    words = failing(monkeypatch, KeyboardInterrupt())
    assert main([*words, str(tmp_path)]) == 130
    before = tree(tmp_path)
    words = failing(monkeypatch, ValueError("x"))
    assert main([*words, str(tmp_path)]) == 2
    assert tree(tmp_path) == before == {"lab", "lab/config.json"}


def test_empty_folders_within_go_too(tmp_path, monkeypatch):
    """Else the name would be lost: a folder that is not empty and holds no run."""

    def fail(preset, folder, *_):
        (folder / "answers" / "tapo").mkdir(parents=True)
        raise ValueError("x")

    monkeypatch.setattr(lab, "prepare_base", fail)
    words = ["lab", "--test-pictures", "36", "--out", str(tmp_path / "runs")]
    assert [main(words), main(words)] == [2, 2]
    assert tree(tmp_path) == set()


def test_chains_that_were_made_for_it_stay(tmp_path, monkeypatch):
    words = failing(monkeypatch, ValueError("x"), "chains/reviewed.jsonl")
    assert main([*words, str(tmp_path)]) == 2
    assert tree(tmp_path) == {"lab", "lab/chains", "lab/chains/reviewed.jsonl"}
