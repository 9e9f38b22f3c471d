"""What a whole run holds at a time: one model, and pictures no larger than they are looked at."""

import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from families import save
from paths import ROOT
from PIL import Image
from tiny_tapo import TINY

from finer1_lite import lab, models
from finer1_lite.data.runs import Run
from finer1_lite.generation import core_of

BEFORE_STAGE_ONE = """
import sys, time, torch
from finer1_lite import prompts, sft
from finer1_lite.presets import Preset
from finer1_lite.species import load_folder
from finer1_lite.tools.bench_row import memory_mb

cpu = torch.device("cpu")
start, begun = memory_mb(cpu), time.process_time()
photos = load_folder(sys.argv[1], shots=4, unseen_share=0)
names = photos.names[:2]
chain = prompts.chain("wings", names, ["fits", "does not"], names[0])
preset = Preset.lab()
rows = sft.chain_rows(photos, dict.fromkeys((p.id for p in photos.train), chain), preset.sft, 7056)
assert len(photos.train) == 24 and rows[0]["images"][0].size[0] < 200
print(memory_mb(cpu, peak=True) - start, time.process_time() - begun)
"""


@pytest.fixture
def alive(monkeypatch) -> list[tuple[int, int]]:
    """At every load: how many models, how many optimisers of earlier ones are still there."""
    models_seen, optimisers, found = [], [], []
    real, optimiser = models.read_weights, torch.optim.AdamW.__init__

    def load(*args, **kwargs):
        there = (sum(one() is not None for one in kind) for kind in (models_seen, optimisers))
        found.append(tuple(there))
        model = real(*args, **kwargs)
        models_seen.append(weakref.ref(core_of(model)))
        return model

    def remembered(self, *args, **kwargs):
        optimiser(self, *args, **kwargs)
        optimisers.append(weakref.ref(self))

    monkeypatch.setattr(models, "read_weights", load)
    monkeypatch.setattr(torch.optim.AdamW, "__init__", remembered)
    return found


@pytest.mark.slow
def test_two_models_are_never_there_at_once(student, alive, tmp_path):
    """Nor the optimiser of a stage that is over, while the next model is read."""
    base = save(student, tmp_path / "base")
    preset = TINY.with_(student=str(base), test_pictures=36, sft__steps=1, tapo__steps=1)
    preset = preset.with_(tapo__keep="all")
    lab.run(Run(folder=tmp_path / "lab", preset=preset, seeds=(0, 1)), workers=1)
    assert alive == [(0, 0)] * (1 + 2 * 4)  # the base; a seed's stages, each trained and asked


@pytest.mark.slow(minutes=1)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_photographs_of_a_phone_take_little_memory_and_time(tmp_path):
    """24 of 12 megapixels, checked, read and kept for stage 1: all at full size were 15 GB."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c", "d", "e", "f"):
        for number in range(5):
            path = tmp_path / name / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            grain = Image.fromarray(rng.integers(0, 255, (300, 400, 3), dtype=np.uint8))
            grain.resize((4000, 3000)).save(path, quality=92)
    command = [sys.executable, "-c", BEFORE_STAGE_ONE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    megabytes, seconds = map(float, done.stdout.split())
    assert megabytes <= 600 and seconds <= 30
