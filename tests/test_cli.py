"""The command line: it explains itself, and bad input gives one message and no harm."""

import argparse
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from photo_folders import four_classes

from finer1_lite import lab
from finer1_lite.__main__ import build_parser, main, make_job
from finer1_lite.runtime.files import open_folder


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return found.choices


@pytest.fixture
def refused(caplog, capsys, monkeypatch):
    """Run the command line on bad input; the one message that it gives."""

    def started(*_):
        raise AssertionError("accepted: the job would have started")

    monkeypatch.setattr(lab, "prepare_base", started)

    def run(*arguments: object) -> str:
        caplog.clear()
        assert main([str(a) for a in arguments]) == 2
        (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
        assert "Traceback" not in capsys.readouterr().err
        return record.getMessage()

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# --- help ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", commands())
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for action in commands()[command]._actions:
        assert action.help and len(action.help) > 8
        for name in action.option_strings:
            assert re.search(rf"(^|\s){name}\b", shown), name
    assert "==SUPPRESS==" not in shown


def test_the_program_lists_its_commands_without_loading_a_model():
    """`--help` must answer at once: torch alone takes seconds."""
    code = "import sys; from finer1_lite.__main__ import build_parser\n"
    code += "print(build_parser().format_help()); assert 'torch' not in sys.modules"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in commands():
        assert re.search(rf"^ +{name} ", shown, re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["fly"], ["lab", "--preset", "h9000"]])
def test_unknown_commands_and_choices_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


# --- settings ------------------------------------------------------------------------


def job_of(*arguments: object):
    return make_job(build_parser().parse_args(["lab", *map(str, arguments)]))


def test_options_reach_the_job(tmp_path):
    job = job_of(
        "--out",
        tmp_path,
        "--name",
        "mine",
        "--student",
        "a/b",
        "--seeds",
        4,
        5,
        "--sft-steps",
        7,
        "--tapo-steps",
        8,
        "--test-pictures",
        9,
        "--quantize",
        "nf4",
        "--world-seed",
        3,
        "--set",
        "tapo.groups=6",
        "tapo.negative_grad=true",
        "tapo.scored_on=own",
        "sft.learning_rate=2e-4",
    )
    p = job.preset
    assert job.folder == tmp_path / "mine" and job.seeds == (4, 5) and job.world_seed == 3
    assert (p.student, p.quantize, p.test_pictures) == ("a/b", "nf4", 9)
    assert (p.sft.steps, p.tapo.steps) == (7, 8)
    assert p.tapo.groups == 6 and p.tapo.negative_grad is True and p.tapo.scored_on == "own"
    assert p.sft.learning_rate == 2e-4 and job.coarse == "bird"


def test_presets_differ_in_size_alone(tmp_path):
    names = [job_of("--preset", size).preset.name for size in ("lab", "t4", "l4", "a100")]
    assert names == ["lab", "t4", "l4", "a100"]
    photos = job_of("--photos", tmp_path / "kites", "--coarse", "kite")
    assert photos.preset.name == "lab-photos"
    assert photos.folder.name == "kites" and photos.coarse == "kite"


def test_unknown_settings_are_all_named(refused, tmp_path):
    said = refused("lab", "--out", tmp_path / "runs", "--set", "tapo.grups=4", "eval_bach=3")
    assert "tapo__grups" in said.replace(".", "__") and "eval_bach" in said
    assert not (tmp_path / "runs").exists()


def test_a_setting_without_a_value_is_refused(refused, tmp_path):
    said = refused("lab", "--out", tmp_path, "--set", "shots")
    assert "--set shots" in said and "KEY=VALUE" in said


# --- data and folders ----------------------------------------------------------------


def test_a_missing_photo_folder_is_named(refused, tmp_path):
    missing = tmp_path / "nowhere"
    assert str(missing) in refused("lab", "--photos", missing, "--out", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_photos_without_descriptions_are_all_named(refused, tmp_path):
    root = four_classes(tmp_path / "birds")
    said = refused("lab", "--photos", root, "--out", tmp_path / "runs")
    for name in ("black kite", "red kite", "barn owl", "tawny owl"):
        assert f"{name}: no description" in said
    assert "descriptions.csv" in said and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_named(refused, tmp_path, out):
    (tmp_path / "file").write_text("mine")
    said = refused("lab", "--out", tmp_path / out)
    assert str(tmp_path / out / "lab") in said and "--out" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_file_in_the_runs_place_is_left_alone(refused, tmp_path, fresh):
    (tmp_path / "lab").write_text("mine")
    assert str(tmp_path / "lab") in refused("lab", "--out", tmp_path, *fresh)
    assert (tmp_path / "lab").read_text() == "mine"


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
@pytest.mark.parametrize("foreign", ["thesis.txt", "config.json", "broken config.json"])
def test_a_folder_that_holds_no_run_is_never_touched(refused, tmp_path, fresh, foreign):
    """A model's folder has a config.json too: `--fresh` must not delete it."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"years of work")
    text = '{"model_type": "qwen2_5_vl"}' if foreign == "config.json" else '{"name": "la'
    (folder / foreign.split()[-1]).write_text(text)
    before = contents(folder)
    said = refused("lab", "--out", tmp_path, *fresh)
    assert str(folder) in said and "--name" in said
    assert contents(folder) == before


def test_a_run_of_another_configuration_is_refused_with_every_difference(refused, tmp_path):
    first = job_of("--out", tmp_path, "--test-pictures", 36)
    open_folder(first.folder, first.config(first.collection()[0]), fresh=False)
    (first.folder / "records.jsonl").write_text("answers\n")
    before = contents(first.folder)
    said = refused(
        "lab",
        "--out",
        tmp_path,
        "--test-pictures",
        72,
        "--seeds",
        1,
        "--sft-steps",
        5,
        "--set",
        "tapo.groups=3",
    )
    old = first.preset
    for row in (
        "preset.test_pictures: 36 there, 72 now",
        "seeds: [0, 1, 2] there, [1] now",
        f"preset.sft.steps: {old.sft.steps} there, 5 now",
        f"preset.tapo.groups: {old.tapo.groups} there, 3 now",
    ):
        assert row in said
    assert "world_seed" not in said and "learning_rate" not in said
    assert "--name" in said and "--fresh" in said
    assert contents(first.folder) == before


def test_the_same_configuration_is_accepted_and_fresh_starts_over(tmp_path):
    job = job_of("--out", tmp_path, "--test-pictures", 36)
    config = job.config(job.collection()[0])
    for _ in range(2):
        open_folder(job.folder, config, fresh=False)
        assert json.loads((job.folder / "config.json").read_text()) == config
    (job.folder / "answers").mkdir()
    open_folder(job.folder, config, fresh=False)
    assert (job.folder / "answers").exists()
    open_folder(job.folder, config, fresh=True)
    assert [f.name for f in job.folder.iterdir()] == ["config.json"]


def test_fresh_never_deletes_what_another_command_made(refused, tmp_path):
    """A folder of chains may hold answers that were paid for."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "config.json").write_text('{"job": "chains of thought", "preset": {}}')
    (folder / "chains.jsonl").write_text("paid\n")
    before = contents(folder)
    assert "chains of thought" in refused("lab", "--out", tmp_path, "--fresh")
    assert contents(folder) == before
