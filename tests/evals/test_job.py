"""The commands `evaluate`, `report` and `analyse` from one end to the other, tiny."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from finer1_lite import metrics, models
from finer1_lite.__main__ import main, read_command
from finer1_lite.chains.commands import EndpointOptions
from finer1_lite.data.benchmark import Condition
from finer1_lite.evals import analysis, job, report, tables
from finer1_lite.evals.endpoint import Remote
from finer1_lite.presets import Preset
from finer1_lite.runtime.files import DataError, open_folder, write_lines

SHORT = ["--test-pictures", "24", "--max-new-tokens", "3", "--batch", "100", "--prompts", "answer"]


@pytest.fixture(scope="module")
def saved(student, tmp_path_factory):
    """A folder with a student of random weights."""
    folder = tmp_path_factory.mktemp("students") / "novice"
    student.model.save_pretrained(folder)
    student.processor.save_pretrained(folder)
    return folder


def refused(caplog, *arguments) -> str:
    caplog.clear()
    assert main([str(a) for a in arguments]) == 2
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    return record.getMessage()


def test_a_run_is_answered_reported_resumed_and_guarded(saved, tmp_path, caplog, monkeypatch):
    command = ["evaluate", str(saved), "--out", str(tmp_path), *SHORT, "--order", "shuffle"]
    assert main([*command, "--baselines", "vision_tower"]) == 0
    run = tmp_path / "evaluation"
    records = (run / "records.jsonl").read_bytes()
    rows = [json.loads(line) for line in records.splitlines()]
    assert len(rows) == 60 * 2 * 3  # two tasks; with the picture and without, the baseline
    page = (run / "report.md").read_text()
    for said in ("novice, no picture", "always the first option", "baseline vision_tower"):
        assert said in page
    assert json.loads((run / "timing.json").read_text())["device"] in page
    answers = run / "answers" / "novice" / "answer-open.jsonl"
    answers.write_bytes(b"".join(answers.read_bytes().splitlines(keepends=True)[:7]))
    for name in ("records.jsonl", "report.md"):
        (run / name).unlink()
    assert main([*command, "--baselines", "vision_tower"]) == 0
    assert (run / "records.jsonl").read_bytes() == records
    assert (run / "report.md").read_text() == page
    said = refused(caplog, *command, "--baselines", "vision_tower", "--letters")
    assert "conditions" in said and "--fresh" in said
    assert (run / "records.jsonl").read_bytes() == records


def test_other_weights_under_the_same_name_are_another_model(saved, tmp_path, caplog):
    folder = shutil.copytree(saved, tmp_path / "novice")
    command = ["evaluate", str(folder), "--out", str(tmp_path), *SHORT, "--tasks", "open"]
    assert main([*command, "--no-blind"]) == 0
    tensors = load_file(folder / "model.safetensors")
    name = min(tensors)
    save_file(tensors | {name: tensors[name] + 1}, folder / "model.safetensors", {"format": "pt"})
    said = refused(caplog, *command, "--no-blind")
    assert "weights" in said and "--fresh" in said


def test_what_a_request_says_otherwise_is_another_evaluation(tmp_path):
    def config(*request):
        there = Remote("http://127.0.0.1:1/v1", ("m",), EndpointOptions(request=request))
        asked = job.Job(tmp_path, (), Preset.lab().with_(test_pictures=24), endpoint=there)
        return asked.config(asked.benchmark(asked.collection()))

    assert config() == config() != config("temperature=0.3")


def test_chance_counts_the_names_that_could_be_answered(saved, tmp_path):
    preset = Preset.lab().with_(test_pictures=24)
    given = job.Job(tmp_path / "run", (str(saved),), preset, (Condition("answer", "open"),))
    asked = given.benchmark(given.collection())
    few = replace(asked, items=asked.items[:4])
    assert given.config(few)["species"] == 60 and len({i.label for i in few.items}) < 60
    open_folder(tmp_path / "run", given.config(few), fresh=False)
    answerer = job.StudentAnswerer(job.load(str(saved), given), "novice", 3)
    job.evaluate_all(answerer, few, given.conditions, given.folder, 4)
    write_lines(
        tmp_path / "run" / "records.jsonl",
        metrics.read_records(given.folder / "answers" / "novice" / "answer-open.jsonl"),
    )
    frame = report.read_table(tmp_path / "run" / "records.jsonl")
    (name,) = tables.controls(frame, "open")
    assert name == "a guess out of 60 names"


def test_an_adapter_finds_its_base(saved, fresh, tmp_path):
    preset = Preset.lab()
    adapter = tmp_path / "trained"
    fresh.model.name_or_path = str(saved)
    models.save_adapter(models.add_adapter(fresh, preset, 0), adapter)
    given = job.Job(tmp_path, (str(adapter),), preset, base=str(saved))
    assert job.is_adapter(str(adapter)) and not job.is_adapter(str(saved))
    assert models.base_of(adapter, given.base) == str(saved)
    assert hasattr(job.load(str(adapter), given).model, "peft_config")
    config = adapter / "adapter_config.json"
    named = json.loads(config.read_text()) | {"base_model_name_or_path": "lab-student-world0"}
    config.write_text(json.dumps(named))
    bare = job.Job(tmp_path, (str(adapter),), preset)
    assert models.base_of(adapter, bare.base).endswith("assets/lab-student-world0")
    config.write_text(json.dumps(named | {"base_model_name_or_path": None}))
    with pytest.raises(DataError, match="give --base"):
        job.run_evaluation(bare)


@pytest.mark.slow
def test_adapters_of_one_folder_name_stand_side_by_side(saved, fresh, tmp_path):
    """TAPO, DAPO and CLS-RL of the trainer: the same pictures and options, told apart."""
    first = tmp_path / "lab" / "seed0" / "tapo"
    fresh.model.name_or_path = str(saved)
    models.save_adapter(models.add_adapter(fresh, Preset.lab(), 0), first)
    folders = [first, tmp_path / "dapo/seed0/tapo", tmp_path / "study/world0/cls_rl-0.001"]
    for folder in folders[1:]:
        shutil.copytree(first, folder)
    given = [str(saved), *map(str, folders)]
    assert (
        main(
            [
                "evaluate",
                *given,
                "--base",
                str(saved),
                "--out",
                str(tmp_path / "runs"),
                *SHORT,
                "--tasks",
                "open",
                "--no-blind",
            ]
        )
        == 0
    )
    run = tmp_path / "runs" / "evaluation"
    rows = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    names = ["novice", "lab/seed0/tapo", "dapo/seed0/tapo", "cls_rl-0.001"]
    assert {r["model"] for r in rows} == set(names)
    assert len({r["photo"] for r in rows}) * 4 == len(rows)
    assert (
        "dapo/seed0/tapo (answer) minus lab/seed0/tapo (answer)" in (run / "report.md").read_text()
        or "lab/seed0/tapo (answer) minus dapo" in (run / "report.md").read_text()
    )


def test_models_that_cannot_be_evaluated_are_all_named(tmp_path, caplog):
    (tmp_path / "empty").mkdir()
    said = refused(
        caplog,
        "evaluate",
        tmp_path / "empty",
        tmp_path / "nowhere",
        "--out",
        tmp_path / "runs",
        *SHORT,
    )
    again = refused(
        caplog,
        "evaluate",
        tmp_path / "empty",
        tmp_path / "empty",
        "--out",
        tmp_path / "runs",
        *SHORT,
    )
    assert "two have the same name" in again
    assert "empty: holds no run, no adapter (" in said and "nowhere: does not exist" in said
    assert not (tmp_path / "runs").exists()


def test_settings_that_make_no_sense_are_all_named(tmp_path, caplog):
    said = refused(
        caplog,
        "evaluate",
        "m",
        "--prompts",
        "shout",
        "think",
        "--samples",
        0,
        "--photos",
        tmp_path,
        "--files",
        "a_seen.jsonl",
    )
    for problem in ("--prompts shout", "--samples 0", "--photos, --files"):
        assert problem in said


def test_the_released_protocol_keeps_the_order_of_the_file():
    command = read_command(
        ["evaluate", "m", "--protocol", "released", "--prompts", "think", "--tasks", "closed"]
    )
    asked = command.job().conditions
    assert {c.order for c in asked} == {"as_is"} and {c.picture for c in asked} == {True, False}


@pytest.mark.slow
def test_an_analysis_is_kept_resumed_and_remade_from_its_rows(saved, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    copy.symlink_to(saved)
    command = [
        "analyse",
        str(saved),
        str(copy),
        "--out",
        str(tmp_path),
        "--test-pictures",
        "48",
        "--max-new-tokens",
        "2",
    ]
    monkeypatch.setattr(job, "model_names", lambda job: dict(zip(job.models, "ab", strict=True)))
    assert main(command) == 0
    run = tmp_path / "analysis"
    found = json.loads((run / "analysis.json").read_text())
    assert found["CKA, vision"] == pytest.approx(1)
    assert found["linear probe, vision"]["before"]["n"] == 120
    page, rows = (run / "report.md").read_text(), (run / "analysis.jsonl").read_bytes()
    for said in (
        "linear probe, language",
        "quiz in words, unseen",
        "linear CKA",
    ):
        assert f"| {said}" in page or said in page
    (run / "parts" / "quiz.jsonl").unlink()
    (run / "report.md").unlink()
    monkeypatch.setattr(analysis, "vision_features", None)  # to look again would fail
    assert main(command) == 0
    assert (run / "analysis.jsonl").read_bytes() == rows
    (run / "report.md").unlink()
    assert main(["report", str(run)]) == 0
    assert (run / "report.md").read_text() == page
