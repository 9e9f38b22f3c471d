"""The bench at full size: Qwen2.5-VL-3B in 4 bits with random weights, on one card.

The rows are `benchrow`'s, one process after another, so that each has the card for itself.
Beside seconds by phase it says two things that only this size shows: torch's peak of memory
against the plan's prediction, and how near rollouts come to the card's memory bandwidth.
Every token of an answer reads all weights of the language model and the cache once, so

    tokens a second <= answers side by side * bandwidth / (weights + cache).
"""

import json
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from tqdm.auto import tqdm

from finer1_lite import models, prompts
from finer1_lite.evals.pages import aligned
from finer1_lite.presets import Preset
from finer1_lite.runtime.files import write_atomically
from finer1_lite.tools import bench, benchrow
from finer1_lite.tools.memory import Load
from finer1_lite.tools.plan import memory_plan

ROWS = ("trl dapo", "dapo", "tapo")  # TRL's and our DAPO first: what ratios refer to
PHASES = ("generate", "score", "update")
MIB, GB = 2**20, 1e9
COPIED = 2**28  # bytes of the copy that measures bandwidth
COPIES = 8


def full_preset(groups: int = 1) -> Preset:
    """What the full size is measured at: a T4's preset, 8 rollouts a group."""
    return Preset.t4().with_(student="random:Qwen2.5-VL-3B", tapo__groups=groups)


def run(preset: Preset, *, steps: int = 3, json_path: Path | None = None) -> list[dict]:
    """Measure, print, and write a row a trainer; the file is written after every row.

    A trainer whose process stops is left out and named; without TRL's there are no ratios
    to it. Raises ChildProcessError where none was measured.
    """
    with ProcessPoolExecutor(1, bench.context()) as alone:  # no memory of the card is kept here
        machine = alone.submit(machine_facts).result()
    case = bench.cases(preset, grow=False)[0]
    preset = bench.with_case(preset, steps, case)
    jobs, found = bench.jobs_of(preset, case["picture_side"], ROWS), {}
    loads = {job.trainer: _load(job, machine) for job in jobs}
    with tqdm(total=len(jobs) * (steps + 1), desc="bench --full") as bar:
        for job in jobs:
            try:
                found[job.trainer] = bench.readings([job], bar)[0]
            except ChildProcessError as error:
                tqdm.write(str(error))
            rows = _rows(jobs, found, machine, loads)
            if json_path is not None:
                write_atomically(json_path, json.dumps(rows, indent=1).encode())
    if not rows:
        raise ChildProcessError("no trainer could be measured; the errors stand above")
    print(describe(rows[0], preset))
    for part in (bench.table(rows, case), memory_table(rows), bandwidth_table(rows)):
        print(f"\n{part}")
    return rows


def machine_facts() -> dict:
    """The device as a row's process sees it: name, dtype, memory bandwidth in bytes a second."""
    device = models.choose_device()
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else "CPU",
        "dtype": str(models.choose_dtype(device)).removeprefix("torch."),
        "bandwidth": bandwidth(device),
    }


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy on the device reads and writes; the best of some."""
    source = torch.ones(COPIED // 4, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(COPIES):
        start = _now(device)
        target.copy_(source)
        best = min(best, _now(device) - start)
    return 2 * COPIED / best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- rows ----------------------------------------------------------------------------


def _rows(jobs, found: dict[str, list[dict]], machine: dict, loads) -> list[dict]:
    rows = []
    for job in jobs:
        if job.trainer in found:
            seen, load = found[job.trainer], loads[job.trainer]
            row = bench.row(job, seen, found.get("trl dapo", ()), found.get("dapo", ()))
            limit = _rollout_limit(job, row, machine, load)
            rows.append(row | machine | limit | _planned(job, load))
    return rows


def _load(job: benchrow.Job, machine: dict) -> Load:
    """The load of a row, with the prompt as long as it truly is."""
    recipe = benchrow.TRAINERS[job.trainer] or ("dapo", {})
    preset = job.preset.recipe(recipe[0]).with_(**recipe[1])
    preset = preset.with_(tapo__micro_batch=benchrow.micro_batch(job))
    processor = models.load_processor(preset.student, preset.pixels)
    asked = prompts.messages(prompts.question(preset.tapo.prompt, "bird"), True)
    shown = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    text = len(processor.tokenizer(shown)["input_ids"]) - 1  # the picture's own is counted apart
    return memory_plan(preset, dtype=getattr(torch, machine["dtype"]), text_tokens=text).load


def _planned(job: benchrow.Job, load: Load) -> dict:
    """MiB that the plan predicts for each phase; of TRL's trainer it predicts nothing."""
    if benchrow.TRAINERS[job.trainer] is None:
        return {}
    parts = load.phases()
    planned = {f"{name}_planned_mb": sum(parts[name].values()) / MIB for name in PHASES}
    return planned | {"planned_mb": max(planned.values())}


def _rollout_limit(job: benchrow.Job, row: dict, machine: dict, load: Load) -> dict:
    """Tokens a second while answering, and what the bandwidth would allow."""
    s, answer = load.sizes, job.preset.max_new_tokens
    weights = (
        sum(
            size
            for part, size in s.weights.items()
            if part.startswith(("language", "quantisation"))
        )
        + s.adapter
    )
    head = s.vocabulary * s.width * s.number
    cache = job.answers * (load.prompt + answer // 2) * s.kv_token  # of the middle token
    limit = job.answers * machine["bandwidth"] / (weights + head + cache)
    speed = job.tokens / row["generate_s"]
    return {
        "rollout_tokens_per_s": speed,
        "limit_tokens_per_s": limit,
        "of_limit": speed / limit,
        "read_bytes": weights + head + cache,
    }


# --- printing ------------------------------------------------------------------------


def describe(row: dict, preset: Preset) -> str:
    return (
        f"{preset.student}, {preset.quantize}, on {row['device']} in {row['dtype']}; "
        f"gradient checkpointing {'on' if preset.gradient_checkpointing else 'off'}, "
        f"micro-batch {preset.tapo.micro_batch}\n{bench.describe(row)}"
    )


def memory_table(rows: list[dict]) -> str:
    """Peak of each phase, measured and planned, in MiB.

    On a GPU torch's allocator is measured, on a CPU the whole process with its libraries.
    """
    whole = ", whole process" if rows[0]["device"] == "CPU" else ""
    title = f"peak MiB (measured{whole}; planned; measured / planned)"
    lines = [[title, *PHASES, "whole step"]]
    for row in rows:
        cells = [row["trainer"]]
        for measured, planned in [
            *((f"{name}_mb", f"{name}_planned_mb") for name in PHASES),
            ("peak_mb", "planned_mb"),
        ]:
            cell = f"{row[measured]:.0f}"
            if planned in row:
                cell += f"  {row[planned]:.0f}  {row[measured] / row[planned]:.2f}"
            cells.append(cell)
        lines.append(cells)
    return aligned(lines)


def bandwidth_table(rows: list[dict]) -> str:
    """Rollout tokens a second against the card's bandwidth."""
    lines = [["rollouts", "tokens/s", "limit", "of it"]]
    lines += [
        [
            row["trainer"],
            f"{row['rollout_tokens_per_s']:.0f}",
            f"{row['limit_tokens_per_s']:.0f}",
            f"{row['of_limit']:.3f}",
        ]
        for row in rows
    ]
    return (
        f"a copy on this device moves {rows[0]['bandwidth'] / GB:.0f} GB/s; a token of all answers "
        f"reads {rows[0]['read_bytes'] / GB:.2f} GB\n{aligned(lines)}"
    )
