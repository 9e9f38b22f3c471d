"""Two processes (gloo, CPU) do what one does: the same losses, the same adapters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_ranks
from paths import ROOT
from safetensors.torch import load_file

pytestmark = pytest.mark.slow
TIMES = ("_s", "tokens_per_second", "runtime")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(what one process wrote, what two wrote, what the two said)."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "tests/helpers/two_ranks.py",
        str(two),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            two_ranks.run(one)
            said, _ = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 0, said[-3000:]
    return one, two, said


def log(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(TIMES)} for row in rows]


@pytest.mark.parametrize("case", [*two_ranks.CASES, "sft"])
def test_two_processes_train_the_adapter_of_one(folders, case):
    one, two = (load_file(f / case / "adapter_model.safetensors") for f in folders[:2])
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert weight.dtype == torch.float64
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("case", [*two_ranks.CASES, "sft"])
def test_two_processes_report_the_numbers_of_one(folders, case):
    one, two = (log(f / case) for f in folders[:2])
    assert len(one) == len(two)
    for left, right in zip(one, two):
        assert left.keys() == right.keys()
        for key in left:
            assert right[key] == pytest.approx(left[key], abs=2e-5), (case, left["step"], key)


def test_the_cases_are_what_they_should_be(folders):
    """Kept groups in odd numbers and fewer than asked for; a step without any."""
    rows = log(folders[0] / "plain")
    assert [row["skipped"] for row in rows] == [0, 1, 0]
    assert {row["groups_kept"] for row in rows} & {1, 3}
    kept = {row["groups_kept"] for case in two_ranks.CASES for row in log(folders[0] / case)}
    assert {0, 1, 2, 3} <= kept


def test_both_halve_when_memory_runs_out_in_one(folders):
    said = [line for line in folders[2].splitlines() if "out of memory" in line]
    assert len(said) >= 2 and all("tapo.micro_batch" in line for line in said), folders[2][-2000:]


def test_the_killed_run_went_on_from_a_checkpoint_of_both(folders):
    work = folders[1] / "killed" / "checkpoints"
    (last,) = work.glob("checkpoint-*")
    found = sorted(p.name for p in last.glob("random_states*"))
    assert found == ["random_states_0.pkl", "random_states_1.pkl"]


def test_what_the_main_process_is_told_to_do_it_does_alone(folders):
    assert [p.name for p in (folders[1] / "alone").iterdir()] == ["checkpoint-2"]
    assert [p.name for p in (folders[1] / "alone" / "checkpoint-2").glob("random_states*")]


def lab(out: Path, *changes: str) -> subprocess.CompletedProcess:
    """The whole job under `accelerate launch`, at its smallest."""
    command = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "assets/accelerate/ddp.yaml",
        "-m",
        "finer1_lite",
        "lab",
        "--out",
        str(out),
        "--sft-steps",
        "2",
        "--tapo-steps",
        "2",
        "--test-pictures",
        "12",
        "--set",
        "tapo.groups=3",
        "max_new_tokens=16",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "FINER1_DEVICE": "cpu"}
    return subprocess.run(
        [sys.executable, *command, *changes],
        cwd=ROOT,
        env=env,
        text=True,
        capture_output=True,
        timeout=600,
    )


def test_the_lab_runs_under_accelerate_launch(tmp_path):
    done = lab(tmp_path, "eval_batch=12", "--seeds", "0")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("report: ") == 1
    rows = (tmp_path / "lab" / "records.jsonl").read_text().splitlines()
    assert len(rows) == len(set(rows)) and len(rows) % 8 == 0  # 4 cells of the base, 2 a stage
    assert (tmp_path / "lab" / "report.html").exists()
    again = lab(tmp_path, "eval_batch=12", "--seeds", "1")
    assert again.returncode != 0
    assert again.stderr.count("holds a run of another configuration") == 1
    assert again.stderr.index("- seeds: [0] there, [1] now") < again.stderr.index("Traceback")
