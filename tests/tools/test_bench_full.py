"""The full-size bench at a small size: the same path from end to end, on a CPU."""

import json
import re
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from finer1_lite.__main__ import main
from finer1_lite.tools import bench, bench_row
from finer1_lite.tools.bench import FULL_ROWS
from finer1_lite.tools.bench_row import PHASES

pytest.importorskip("bitsandbytes")
CI = Path(__file__).parents[2] / ".ci"
SMALL = bench.full_preset().with_(
    student="random:Qwen2.5-VL-tiny",
    pixels=16 * 28 * 28,
    max_new_tokens=4,
    lora_rank=4,
    tapo__anchor_rollouts=1,
    tapo__positive_rollouts=1,
)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(rows, what was written, what was printed) of one small bench."""
    path = tmp_path_factory.mktemp("full") / "rows.json"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *a, **_: printed.append(" ".join(map(str, a))))
        patch.setattr(bench, "COPIED", 2**22)
        rows = bench.measure_full(SMALL, steps=1, json_path=path)
    return rows, json.loads(path.read_text()), "\n".join(printed)


def report_of(name: str, outcome: str, said: str = "", when: str = "call") -> SimpleNamespace:
    """What pytest tells of a test."""
    crash = SimpleNamespace(reprcrash=SimpleNamespace(message=said)) if said else None
    own = dict(nodeid=name, outcome=outcome, when=when, longrepr=crash, capstdout="4.4 GiB\n")
    return SimpleNamespace(passed=outcome == "passed", duration=1.26, **own)


@pytest.mark.slow
def test_what_a_card_told_is_one_file_and_a_table_of_it(measured, tmp_path):
    script = SimpleNamespace(**runpy.run_path(str(CI / "gpu.py")))
    record, path = script.Record(tmp_path / "gpu.json"), tmp_path / "gpu.json"
    record.pytest_runtest_logreport(report_of("a", "passed"))
    assert json.loads(path.read_text()) == {
        "tests": [
            dict(test="a", outcome="passed", seconds=1.3, said="", printed="4.4 GiB\n"),
        ],
        "rows": [],
    }
    record.rows.write_text(json.dumps(measured[1]))
    record.pytest_runtest_logreport(report_of("b", "passed", when="setup"))
    record.pytest_runtest_logreport(report_of("b", "failed", "5 is not 6"))
    lines = script.table(path).splitlines()
    assert lines[:3] == ["1 passed, 1 failed, 0 skipped tests", "", "- b: 5 is not 6"]
    cells = [line.split(" | ") for line in lines if line.startswith("| ")]
    assert [row[0] for row in cells] == ["| trainer", *(f"| {name}" for name in FULL_ROWS)]
    assert cells[1][-1] == "- |" and cells[2][4] == f"{measured[0][1]['step_s']:.1f}"


@pytest.mark.slow
def test_every_trainer_has_a_row_with_its_phases(measured):
    rows, written, printed = measured
    assert rows == written and [row["trainer"] for row in rows] == list(FULL_ROWS)
    for row in rows:
        assert all(row[f"{phase}_s"] > 0 and row[f"{phase}_mb"] > 100 for phase in PHASES)
        assert row["peak_mb"] == max(row[f"{phase}_mb"] for phase in PHASES)
        assert row["completion_tokens"] == 4 and row["completions"] == 2
    assert rows[0]["of_trl"] == 1 and rows[1]["of_dapo"] == 1
    assert "random:Qwen2.5-VL-tiny, nf4, on CPU in float32" in printed


@pytest.mark.slow
def test_own_rows_stand_beside_the_plan_and_trls_does_not(measured):
    rows, _, printed = measured
    trl, *own = rows
    assert "peak_planned_mb" not in trl
    for row in own:
        planned = [row[f"{phase}_planned_mb"] for phase in PHASES]
        assert 70 < min(planned) and max(planned) == row["peak_planned_mb"]  # embeddings alone: 74
        ratio = row["peak_mb"] / row["peak_planned_mb"]
        assert re.search(rf"^{row['trainer']} .*  {ratio:.2f}$", printed, re.MULTILINE)


@pytest.mark.slow
def test_rollouts_stand_beside_the_bandwidth(measured):
    rows, _, printed = measured
    for row in rows:
        assert row["bandwidth"] > 1e8  # 0.1 GB/s: any memory
        embeddings = 151_936 * 128 * 4
        assert embeddings < row["read_bytes"] < 1.1 * embeddings
        assert row["limit_tokens_per_s"] == pytest.approx(2 * row["bandwidth"] / row["read_bytes"])
        assert row["rollout_tokens_per_s"] == pytest.approx(8 / row["generate_s"])
        assert 0 < row["of_limit"] < 1
    assert "GB/s" in printed


@pytest.fixture
def here(monkeypatch):
    """The facts of the machine are asked in this process, which is quicker."""
    monkeypatch.setattr(bench, "ProcessPoolExecutor", lambda count, _: ThreadPoolExecutor(count))
    monkeypatch.setattr(bench, "COPIED", 2**22)


def test_a_trainer_that_stops_leaves_the_others(here, monkeypatch, tmp_path, capsys):
    reading = {f"{p}_{unit}": 1.0 for p in PHASES for unit in ("s", "mb")} | {
        "step_s": 3.0,
        "peak_mb": 1.0,
        "start_mb": 0.0,
        "cpu_s": 3.0,
        "vision_calls": 1,
        "pictures": 1,
    }

    def readings(jobs, bar):
        if jobs[0].trainer == "trl dapo":
            raise ChildProcessError("the process of 'trl dapo' stopped")
        return [[reading]]

    monkeypatch.setattr(bench, "readings", readings)
    rows = bench.measure_full(SMALL, steps=1, json_path=tmp_path / "rows.json")
    assert [row["trainer"] for row in rows] == ["dapo", "tapo"]
    assert rows[0]["of_trl"] is None and rows[1]["of_dapo"] == 1
    assert "'trl dapo' stopped" in "".join(capsys.readouterr())


def test_nothing_measured_is_an_error(here, monkeypatch):
    def readings(jobs, bar):
        raise ChildProcessError("stopped")

    monkeypatch.setattr(bench, "readings", readings)
    with pytest.raises(ChildProcessError, match="no trainer could be measured"):
        bench.measure_full(SMALL, steps=1)


def test_the_full_preset_is_the_assignment_of_a_t4():
    preset = bench.full_preset()
    (job,) = bench.jobs_of(preset, 1, ["tapo"])
    assert (job.completions, job.preset.max_new_tokens, job.side) == (8, 512, 448)
    assert (preset.quantize, preset.tapo.groups) == ("nf4", 1)
    assert preset.student == "random:Qwen2.5-VL-3B" and preset.gradient_checkpointing


def test_a_prompt_is_counted_as_long_as_it_is(birds):
    from sized import adapted

    from finer1_lite import generation, prompts

    (job,) = bench.jobs_of(SMALL, 1, ["tapo"])
    load = bench.load_of(job, {"dtype": "float32"})
    student = adapted(job.preset)
    asked = prompts.question("think", "bird")
    picture = bench_row.pictures(job.preset, 112).train[0].image()
    batch = generation.encode_prompts(student.model, student.processor, [asked], [picture])
    assert load.prompt == batch.input_ids.shape[1] and load.visual == 16


def test_without_a_gpu_full_says_so_and_what_runs(caplog):
    assert main(["bench", "--full"]) == 2
    assert "--full needs a CUDA GPU" in caplog.text and "`bench` without it" in caplog.text


def test_bandwidth_is_the_bytes_of_a_copy_over_its_time(monkeypatch):
    class Timed:
        times = [3.0, 1.0, 10.0]

        def __init__(self, statement, **_):
            assert statement == "target.copy_(source)"

        def blocked_autorange(self):
            return self

    monkeypatch.setattr(bench, "Timer", Timed)
    monkeypatch.setattr(bench, "COPIED", 400)
    assert bench.bandwidth(torch.device("cpu")) == 800 / 1.0
