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
from finer1_lite.__main__ import COMMANDS, build_parser, main, read_command
from finer1_lite.evals import report
from finer1_lite.runtime import distributed, files
from finer1_lite.runtime.files import DataError, open_folder, run_config

OPTIONS = {
    "lab": """
        --device {auto,cuda,mps,cpu}
        --name
        --out Path = runs
        --fresh = False
        --preset {lab,laptop,colab,t4,l4,a100} = lab
        --student
        --photos Path
        --descriptions Path
        --coarse
        --world-seed int = 0
        --seeds int x+
        --workers int = 0
        --quantize {none,nf4}
        --sft-steps int
        --tapo-steps int
        --test-pictures int
        --chains Path
        --teacher {table,local,endpoint,student}
        --teacher-model
        --url = http://localhost:8000/v1
        --key-env = OPENAI_API_KEY
        --reward MODULE:FUNCTION=WEIGHT x+
        --report-to {none,tensorboard,wandb,trackio} = none
        --set KEY=VALUE x*
    """,
    "pretrain": """
        --device {auto,cuda,mps,cpu}
        --world-seed int = 0
        --steps int
        --seed int = 0
        --out Path = runs
    """,
    "ablate": """
        --device {auto,cuda,mps,cpu}
        --name = ablation
        --out Path = runs
        --rows x+
        --seeds int x+ = 0 1 2 3 4
        --worlds int x+ = 0 1
        --workers int = 0
        --more-leaves int = 0
        --apart int
        --set KEY=VALUE x+
    """,
    "bench": """
        --device {auto,cuda,mps,cpu}
        --preset {lab,laptop,colab,t4,l4,a100} = lab
        --full = False
        --groups int
        --steps int = 3
        --json FILE Path
    """,
    "plan": """
        --model
        --gpu GIB = 15
        --preset {lab,laptop,colab,t4,l4,a100} = t4
        --set KEY=VALUE x+
        --text-tokens int = 96
        --dtype {auto,float32,bfloat16,float16} = auto
        --json FILE Path
    """,
    "cot make": """
        --device {auto,cuda,mps,cpu}
        --photos Path
        --descriptions Path
        --coarse
        --world-seed int = 0
        --out Path required
        --teacher {oracle,table,local,endpoint,student}
        --model
        --quantize {none,nf4} = none
        --url = http://localhost:8000/v1
        --key-env = OPENAI_API_KEY
        --workers int = 4
        --timeout float = 120.0
        --tries int = 5
        --request KEY=VALUE x+
        --max-requests int
        --max-cost float
        --price-in float = 0.0
        --price-out float = 0.0
        --temperature float = 0.7
        --max-tokens int = 1024
        --descriptions-a-picture int = 6
        --extract {teacher,yake}
        --beta float = 0.7
        --per-picture int = 1
        --rounds int = 4
        --guess = False
        --seed int = 0
    """,
    "cot check": """
        file Path
        --json Path
    """,
    "cot review": """
        folder Path
        --decided-only = False
        --undo = False
    """,
    "cot convert": """
        file Path
        out Path
        --to {ours,trl,sharegpt,triplets,parquet} required
        --bare = False
        --pictures Path = .
    """,
    "cot triplets": """
        --photos Path
        --descriptions Path
        --coarse
        --world-seed int = 0
        --seed int = 0
        --out Path required
    """,
    "audit": """
        paths FILE Path x+
    """,
    "evaluate": """
        models MODEL x*
        --device {auto,cuda,mps,cpu}
        --endpoint URL
        --model NAME x+
        --key-env = OPENAI_API_KEY
        --workers int = 4
        --timeout float = 120.0
        --tries int = 5
        --request KEY=VALUE x+
        --max-requests int
        --max-cost float
        --price-in float = 0.0
        --price-out float = 0.0
        --base
        --name = evaluation
        --out Path = runs
        --fresh = False
        --preset {lab,laptop,colab,t4,l4,a100}
        --prompts x+
        --prompt-files FILE Path x*
        --tasks {open,closed} x+ = open closed
        --order {rotate,shuffle,as_is} = rotate
        --protocol {ours,released} = ours
        --letters = False
        --samples int = 1
        --no-blind = False
        --photos Path
        --files Path x*
        --images Path
        --allow-missing = False
        --world-seed int
        --unseen-share float
        --coarse
        --test-pictures int
        --max-new-tokens int
        --batch int
        --questions FILE Path x*
        --baselines x*
        --similarity {none,minilm,siglip} = none
    """,
    "report": """
        run RUN Path
        other RUN2 Path x?
        --photos Path
    """,
    "analyse": """
        models MODEL x2
        --device {auto,cuda,mps,cpu}
        --base
        --name = analysis
        --out Path = runs
        --fresh = False
        --preset {lab,laptop,colab,t4,l4,a100}
        --photos Path
        --world-seed int
        --unseen-share float
        --coarse
        --test-pictures int
        --max-new-tokens int
    """,
    "fetch": """
        source
        --out Path required
        --from PLACE
        --train int = 16
        --test int = 0
        --classes int = 0
        --seed int = 0
        --allow-missing = False
        --image-column
        --label-column
        --train-splits x+
        --test-splits x+
        --config
        --revision
    """,
    "predict": """
        model MODEL Path
        photos PHOTO Path x+
        --device {auto,cuda,mps,cpu}
        --top int = 3
        --csv FILE Path
        --html FILE Path
        --unknown float = 0.5
        --samples int = 0
        --base
        --name = predictions
        --out Path = runs
        --fresh = False
        --batch int
    """,
    "merge": """
        adapter Path
        out Path
        --base
        --dtype {auto,float32,bfloat16,float16} = auto
    """,
    "demo": """
        model MODEL Path
        --device {auto,cuda,mps,cpu}
        --port int = 7860
        --photos DIR Path
        --unknown float = 0.5
    """,
    "grade": """
        notebooks NOTEBOOK Path x+
        --seed int
        --limit float = 30.0
        --json FILE Path
    """,
}

PHOTOGRAPHS = """
        --photos Path
        --descriptions Path
        --coarse
        --shots int
        --unseen-share float
        --recursive = False
        --table Path
        --file-column
        --label-column
        --research-grade = False
        --names {scientific,common} = scientific
        --skip-broken = False
"""
OPTIONS |= {  # the same in every command that reads photographs
    name: OPTIONS[name].rstrip() + PHOTOGRAPHS
    for name in ("lab", "cot make", "cot triplets", "evaluate", "analyse")
}
OPTIONS["lab"] += "--template = False\n"
OPTIONS["audit"] += "--all = False"


def commands(parser=None, above: str = "") -> dict[str, argparse.ArgumentParser]:
    """Every command and every step of one: "lab", "cot", "cot make", ..."""
    found = {}
    for action in (parser or build_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, one in action.choices.items():
                found |= {above + name: one} | commands(one, f"{above}{name} ")
    return found


def described(action: argparse.Action) -> str:
    """Names (or the place's name), metavar, type, choices, how many, default."""
    parts = ["/".join(action.option_strings) or action.dest, action.metavar]
    parts.append(action.type.__name__ if action.type not in (None, str) else None)
    parts.append("{" + ",".join(action.choices) + "}" if action.choices else None)
    parts.append(None if action.nargs in (None, 0) else f"x{action.nargs}")
    parts.append("required" if action.required and action.option_strings else None)
    default = action.default
    if default not in (None, "", []):
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        parts.append(f"= {shown}")
    return " ".join(part for part in parts if part)


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
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for action in commands()[command]._actions:
        assert action.help and len(action.help) > 8
        for name in action.option_strings:
            assert re.search(rf"(^|\s){name}\b", shown), name
    assert "==SUPPRESS==" not in shown and "None" not in shown


@pytest.mark.parametrize("command", OPTIONS)
def test_names_and_defaults_of_options_stay(command):
    """What is written in notebooks, scripts and notes goes on working."""
    rows = list(dict.fromkeys(row.strip() for row in OPTIONS[command].strip().splitlines()))
    found = [described(a) for a in commands()[command]._actions if a.dest != "help"]
    assert sorted(found) == sorted(rows)
    places = [[row for row in one if not row.startswith("-")] for one in (found, rows)]
    assert places[0] == places[1]  # of arguments without a name


def test_every_command_is_in_the_table():
    assert set(OPTIONS) == set(commands()) - {"cot"}
    assert list(COMMANDS) == list(dict.fromkeys(name.split()[0] for name in commands()))


def test_the_program_lists_its_commands_without_loading_a_model():
    """`--help` must answer at once: torch alone takes seconds."""
    code = "import sys; from finer1_lite.__main__ import build_parser\n"
    code += "print(build_parser().format_help())\n"
    code += "assert not {'torch', 'transformers', 'matplotlib', 'pandas'} & set(sys.modules)"
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in COMMANDS:
        assert re.search(rf"^ +{name} ", shown, re.MULTILINE)


@pytest.mark.parametrize("arguments", [[], ["fly"], ["lab", "--preset", "h9000"]])
def test_unknown_commands_and_choices_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


# --- settings ------------------------------------------------------------------------


def job_of(*arguments: object):
    return read_command(["lab", *map(str, arguments)]).job()


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
    sizes = ("lab", "laptop", "colab", "t4", "l4", "a100")
    jobs = [job_of("--preset", size) for size in sizes]
    assert [job.preset.name for job in jobs] == list(sizes)
    assert [job.seeds for job in jobs] == [(0, 1, 2)] + [(0,)] * 5  # one run a sitting
    assert job_of("--preset", "colab", "--seeds", 4, 5).seeds == (4, 5)
    photos = job_of("--photos", tmp_path / "kites", "--coarse", "kite")
    assert photos.preset.name == "lab-photos"
    assert photos.folder.name == "kites" and photos.coarse == "kite"


def test_unknown_settings_are_all_named(refused, tmp_path):
    said = refused("lab", "--out", tmp_path / "runs", "--set", "tapo.grups=4", "eval_bach=3")
    assert "tapo.grups" in said and "eval_bach" in said
    assert not (tmp_path / "runs").exists()


def test_a_second_set_adds_to_the_first(tmp_path):
    preset = job_of("--set", "shots=2", "tapo.groups=3", "--set", "tapo.updates=3").preset
    assert (preset.shots, preset.tapo.groups, preset.tapo.updates) == (2, 3, 3)
    assert job_of().preset.shots == 4  # a default is never filled by an earlier command


def test_the_tracker_reaches_the_job():
    assert job_of("--report-to", "trackio").report_to == "trackio"
    assert job_of().report_to == "none"


@pytest.mark.parametrize("is_main", [True, False])
def test_the_main_process_alone_writes_the_page(is_main, tmp_path, monkeypatch, capsys):
    """From the pictures of the job, after all processes have done it."""
    calls = []

    def write_report(folder, photos):
        calls.append((folder, photos(first.id).tobytes()))
        return folder / "report.html"

    job = job_of("--out", tmp_path, "--test-pictures", 36)
    first = job.collection()[0].test[0]
    monkeypatch.setattr(lab, "run", lambda job, workers, fresh: job.folder)
    monkeypatch.setattr(report, "write_report", write_report)
    monkeypatch.setattr(distributed, "is_main", lambda: is_main)
    assert main(["lab", "--out", str(tmp_path), "--test-pictures", "36"]) == 0
    assert calls == [(tmp_path / "lab", first.image().tobytes())] * is_main
    assert ("report.html" in capsys.readouterr().out) == is_main


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
    for name in ("black-kite", "red-kite", "barn-owl", "tawny-owl"):
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


def test_fresh_deletes_nothing_that_no_run_writes(tmp_path, caplog):
    job = job_of("--out", tmp_path, "--test-pictures", 36)
    config = job.config(job.collection()[0])
    open_folder(job.folder, config, fresh=False)
    (job.folder / "my notes.txt").write_text("mine")
    (job.folder / "merged").mkdir()
    (job.folder / "merged" / "model.safetensors").write_bytes(b"hours")
    before = contents(job.folder)
    (job.folder / "seed0").mkdir()
    caplog.set_level("INFO")
    open_folder(job.folder, config, fresh=True)
    assert contents(job.folder) == before and not (job.folder / "seed0").exists()
    assert "what no run writes stays: merged, my notes.txt" in caplog.text


def test_a_deletion_that_was_killed_is_taken_for_no_run_and_fresh_goes_on(tmp_path, monkeypatch):
    job = job_of("--out", tmp_path, "--test-pictures", 36)
    config = job.config(job.collection()[0])
    open_folder(job.folder, config, fresh=False)
    for name in ("base", "seed0"):
        (job.folder / name).mkdir()

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.shutil, "rmtree", killed)
        open_folder(job.folder, config, fresh=True)
    with pytest.raises(DataError, match="another configuration"):
        open_folder(job.folder, config, fresh=False)
    open_folder(job.folder, config, fresh=True)
    assert [f.name for f in job.folder.iterdir()] == ["config.json"]


def test_a_student_that_cannot_be_read_costs_no_finished_run(refused, tmp_path):
    job = job_of("--out", tmp_path, "--test-pictures", 36)
    open_folder(job.folder, job.config(job.collection()[0]), fresh=False)
    (job.folder / "metrics.json").write_text("{}")
    before = contents(job.folder)
    said = refused("lab", "--out", tmp_path, "--fresh", "--student", tmp_path / "typo")
    assert "typo" in said and contents(job.folder) == before


def test_two_commands_do_not_work_in_one_folder(tmp_path):
    """The second one of a forgotten terminal would write every answer twice."""
    config = {"preset": {}, "job": "a test"}
    code = (
        "import sys; from pathlib import Path; from finer1_lite.runtime import files\n"
        "try:\n"
        "    with files.nothing_left_of_a_failed_start():\n"
        f"        files.open_folder(Path(sys.argv[1]), {config}, fresh=False)\n"
        "except ValueError as error:\n"
        "    print(error)"
    )

    def other() -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "run")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with files.nothing_left_of_a_failed_start():
        for _ in range(2):  # the same command may open it again
            files.open_folder(tmp_path / "run", config, fresh=False)
        assert "run: another command works in it; wait until it is done" in other()
        assert run_config(tmp_path / "run" / "config.json") == config
    assert other() == ""
