"""A run that is killed in every stage ends with the numbers of an undisturbed one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from paths import ROOT

from finer1_lite.students.lab_student import asset_folder

pytestmark = pytest.mark.slow(minutes=8)
STUDENT = Path(os.environ.get("FINER1_TEST_STUDENT") or asset_folder(0))
STAGES = {  # killed as soon as this appears: a checkpoint is then half-written
    "base evaluation": "base/answers/base/answer-closed-shuffle.jsonl",
    "sft": "seed*/sft/checkpoints/checkpoint-10",
    "tapo": "seed*/tapo/checkpoints/checkpoint-5",
    "evaluation": "seed*/answers/TAPO/think-open.jsonl",
}
LIMIT = 900  # seconds until a stage must have been reached


def start(out: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "finer1_lite",
        "lab",
        "--out",
        str(out),
        "--student",
        str(STUDENT),
        "--sft-steps",
        "12",
        "--tapo-steps",
        "6",
        "--test-pictures",
        "36",
        "--seeds",
        "0",
        "1",
        "--workers",
        "2",
        "--set",
        "eval_batch=36",
        "sft.batch=4",
        "tapo.groups=2",
        "tapo.draws=1",
    ]
    out.mkdir(exist_ok=True)
    env = os.environ | {"OMP_NUM_THREADS": "1", "FINER1_DEVICE": "cpu"}
    with (out / "screen.txt").open("ab") as screen:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=screen, stderr=screen)


def finish(out: Path) -> dict[str, bytes]:
    """Run to the end; what was measured."""
    process = start(out)
    try:
        code = process.wait(LIMIT)
    finally:
        process.kill()
    assert code == 0, (out / "screen.txt").read_text()[-2000:]
    return {name: (out / "lab" / name).read_bytes() for name in ("metrics.json", "records.jsonl")}


def kill_when(out: Path, sign: str) -> list[psutil.Process]:
    """Start, wait for the sign of the stage, kill the main process alone; its workers."""
    process = start(out)
    try:
        end = time.time() + LIMIT
        while not list((out / "lab").glob(sign)):
            said = (out / "screen.txt").read_text()[-2000:]
            assert process.poll() is None, f"{sign}: ended before\n{said}"
            assert time.time() < end, f"no {sign} in {LIMIT} s"
            time.sleep(0.02)
        workers = psutil.Process(process.pid).children(recursive=True)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    return workers


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.skipif(not (STUDENT / "config.json").exists(), reason=f"no student in {STUDENT}")
def test_killed_in_every_stage_it_ends_with_the_same_numbers(tmp_path):
    expected = finish(tmp_path / "undisturbed")
    killed = tmp_path / "killed"
    for stage, sign in STAGES.items():
        workers = kill_when(killed, sign)
        assert len(workers) >= (0 if stage == "base evaluation" else 2)
        time.sleep(2)
        assert not alive(workers), f"killed in {stage}: a worker goes on"
        assert not (killed / "lab" / "metrics.json").exists()
    found = finish(killed)
    for name in expected:
        assert found[name] == expected[name], name
    assert (killed / "lab" / "report.html").exists()
    assert not list((killed / "lab").rglob("checkpoint-*"))  # nothing is left lying about
