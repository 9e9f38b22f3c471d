"""Students at their true size on a CPU, with random weights: run with `pytest -m big`.

One step of each stage, in a process of its own, its peak of memory beside the plan's. At most 14 GB
and a quarter of an hour on two cores.
"""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

from finer1_lite.presets import Preset

TWO_STAGES = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
from finer1_lite import models, rewards, sft, tapo
from finer1_lite.presets import Preset
from finer1_lite.tools import bench_row, memory

def held():
    return bench_row.memory_mb(models.choose_device())

def peak_of(stage):
    bench_row.forget_peak()
    stage()
    return bench_row.memory_mb(models.choose_device(), peak=True) - start

preset = Preset(**eval(sys.argv[1]))
birds = bench_row.pictures(preset, 224)
start, turns = held(), iter(range(10**6))
rewards.accuracy_reward = lambda *_, **__: float(next(turns) % 2)
student = models.add_adapter(models.load_student(preset.student, preset), preset, seed=0)
load = memory.Load(memory.count(student, 4), preset)
chain = student.processor.tokenizer.decode([300] * (preset.max_new_tokens - 2))
few = replace(birds, train=birds.train[:1])
rows = sft.chain_rows(few, {few.train[0].id: chain})
out = Path(sys.argv[2])
found = {"weights": held() - start}
begun = time.time()
found["sft"] = peak_of(lambda: sft.train_sft(student, rows, preset, 0, out / "sft"))
found["sft seconds"], begun = time.time() - begun, time.time()
sample = tapo.sample_groups

def first(*given):  # the self-test of a model that is no Qwen-VL is over: it is no part of a step
    bench_row.forget_peak()
    return sample(*given)

tapo.sample_groups = first
found["tapo"] = peak_of(lambda: tapo.train_tapo(student, birds, preset, 0, out / "tapo"))
found["tapo seconds"] = time.time() - begun
mib = {name: sum(parts.values()) / 2**20 for name, parts in load.phases.items()}
planned = {"weights": sum(load.sizes.weights.values()) / 2**20 + load.sizes.adapter / 2**20}
planned |= {"sft": mib["sft"], "tapo": max(mib[name] for name in bench_row.PHASES)}
print(json.dumps({"measured": found, "planned": planned}))
"""
SHORT = dict(
    max_new_tokens=16,
    sft=dict(steps=1, batch=1, micro_batch=1),
    tapo=dict(steps=1, groups=1, anchor_rollouts=2, positive_rollouts=2, micro_batch=4, draws=1),
)
TRUE_SIZES = {
    "Qwen2.5-VL-3B": dict(quantize="nf4", gradient_checkpointing=True, pixels=64 * 28 * 28),
    "SmolVLM-256M": dict(keep_features=True, pixels=512 * 512),
}
# glibc keeps what is freed for the next; given back at once, what is held is what is counted.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072", "OMP_NUM_THREADS": "2"}


@pytest.mark.big
@pytest.mark.parametrize("name", TRUE_SIZES)
def test_a_step_of_each_stage_at_the_true_size_peaks_where_the_plan_says(name, tmp_path):
    settings = SHORT | TRUE_SIZES[name] | {"student": f"random:{name}"}
    Preset(**settings)
    command = [sys.executable, "-c", TWO_STAGES, repr(settings), str(tmp_path)]
    environment = os.environ | GIVE_BACK | {"FINER1_DEVICE": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1))
    for stage, planned in found["planned"].items():
        assert found["measured"][stage] == pytest.approx(planned, rel=0.1), stage
    assert all(
        (tmp_path / stage / "adapter_model.safetensors").is_file() for stage in ("sft", "tapo")
    )
