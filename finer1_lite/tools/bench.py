"""What a training step costs: TRL's GRPOTrainer, our DAPO and our TAPO, side by side.

Same weights, anchors, rewards, number of completions, micro-batch and threads. What is chosen:

- Every completion has exactly the longest length, so all write, score and learn from the same
  number of tokens. (It forgoes what our sampler saves by dropping completions that have ended.)
  Then all once more as it is in life: completions end where they end, pictures have three shapes.
- No dynamic sampling: every group is kept, so a step is one round of completions.
- Gradient checkpointing is as the preset has it, for all. (TRL's default is on, which saves
  memory and costs it another forward pass.)
- A process a row (`bench_row`), so that each has its own peak of memory. Steps are taken in
  turn, so that a busy machine slows all rows alike; a row's first is a warm-up. Ratios are
  medians over rounds of the ratio within a round. `cpu_s` is what the process computed (all its
  threads): it stands when others keep the cores busy.

At full size (`measure_full`) a card does not hold all rows at once: they come one after another.
Two things are added: torch's peak of memory against the plan, and how near rollouts come to the
card's bandwidth. Each token of the completions reads all weights of the language model and the
cache once: tokens a second <= completions side by side * bandwidth / (weights + cache).
"""

import json
import math
import multiprocessing
import statistics
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pandas as pd
import torch
from torch.utils.benchmark import Timer
from tqdm.auto import tqdm

from finer1_lite import models, prompts
from finer1_lite.presets import Preset
from finer1_lite.runtime.files import write_atomically
from finer1_lite.tools import bench_row
from finer1_lite.tools.bench_row import MIB, PHASES, TRAINERS, TRL, Job
from finer1_lite.tools.memory import Load
from finer1_lite.tools.plan import memory_plan

COLUMNS = {  # of a row -> heading and digits after the point
    "generate_s": ("generate s", 2),
    "score_s": ("score s", 2),
    "update_s": ("update s", 2),
    "step_s": ("step s", 2),
    "completion_tokens": ("length", 0),
    "cpu_s": ("cpu s", 2),
    "of_trl": ("x TRL", 2),
    "of_dapo": ("x dapo", 2),
    "tokens_per_s": ("tokens/s", 0),
    "peak_mb": ("peak MB", 0),
    "steps_mb": ("by steps", 0),
    "vision_calls": ("vision calls", 0),
    "pictures": ("pictures", 0),
}
MEMORY = {}  # measured, planned, measured / planned
for _name in (*PHASES, "peak"):
    MEMORY[f"{_name}_mb"] = (_name, 0)
    MEMORY |= {f"{_name}_planned_mb": ("planned", 0), f"{_name}_of_plan": ("ratio", 2)}
ROLLOUTS = {
    "rollout_tokens_per_s": ("tokens/s", 0),
    "limit_tokens_per_s": ("limit", 0),
    "of_limit": ("of it", 3),
}
CASE = ("rollouts", "completion_tokens", "picture_side")  # keys of a row: what was measured at
FULL_ROWS = (TRL, "dapo", "tapo")  # TRL's and our DAPO first: what ratios refer to
# A forked process cannot use a card that was touched before, and the imports alone touch it.
FRESH = multiprocessing.get_context("spawn")
COPIED = 2**28  # bytes of the copy that measures bandwidth
GB = 1e9
Readings = list[dict[str, float]]  # of one trainer's steps


def measure(preset: Preset, *, steps: int = 3, json_path: Path | None = None) -> list[dict]:
    """Measure, print, and write the rows, a dictionary a trainer; steps: counted ones a row."""
    cases = [jobs_of(preset, steps, TRAINERS, natural) for natural in (False, True)]
    tables = []
    with tqdm(total=sum(map(len, cases)) * (steps + 1), desc="bench") as bar:
        for jobs in cases:
            found = dict(zip(TRAINERS, readings(jobs, bar), strict=True))
            tables.append([row_of(job, found) for job in jobs])
    rows = [row for part in tables for row in part]
    if json_path is not None:
        write_atomically(json_path, json.dumps(rows, indent=1).encode())
    print("\n\n".join(f"{describe(part[0])}\n{table(part, COLUMNS)}" for part in tables))
    return rows


def measure_full(preset: Preset, *, steps: int = 3, json_path: Path | None = None) -> list[dict]:
    """Measure, print, and write a row a trainer; the file is written after every row.

    A trainer whose process stops is left out and named; without TRL's there are no ratios
    to it. Raises ChildProcessError where none was measured.
    """
    with ProcessPoolExecutor(1, FRESH) as alone:  # no memory of the card is kept here
        machine = alone.submit(machine_facts).result()
    jobs = jobs_of(preset, steps, FULL_ROWS)
    loads = {job.trainer: load_of(job, machine) for job in jobs}
    found = {}
    with tqdm(total=len(jobs) * (steps + 1), desc="bench --full") as bar:
        for job in jobs:
            try:
                found[job.trainer] = readings([job], bar)[0]
            except ChildProcessError as error:
                tqdm.write(str(error))
            done = [job for job in jobs if job.trainer in found]
            rows = [full_row(job, found, machine, loads[job.trainer]) for job in done]
            if json_path is not None:
                write_atomically(json_path, json.dumps(rows, indent=1).encode())
    if not rows:
        raise ChildProcessError("no trainer could be measured; the errors stand above")
    print(describe_full(rows, preset))
    return rows


# --- what is measured ----------------------------------------------------------------


def full_preset(groups: int = 1) -> Preset:
    """What the full size is measured at: a T4's preset, 8 rollouts a group, long answers."""
    student = "random:Qwen2.5-VL-3B"
    same = dict(keep_features=False)  # TRL's row sees each picture as its users' does
    return Preset.t4().with_(student=student, max_new_tokens=512, tapo__groups=groups, **same)


def jobs_of(preset: Preset, steps: int, names: Iterable[str], natural: bool = False) -> list[Job]:
    """A job a trainer: every group kept, one round of completions, a warm-up step more."""
    rollouts = preset.tapo.anchor_rollouts + preset.tapo.positive_rollouts
    side = math.isqrt(preset.pixels) // 28 * 28  # whole visual tokens of Qwen2.5-VL
    preset = preset.with_(
        pixels=side**2,
        tapo__anchor_rollouts=rollouts - rollouts // 2,
        tapo__positive_rollouts=rollouts // 2,
        tapo__steps=steps + 1,
        tapo__keep="all",
        tapo__draws=1,
        tapo__updates=1,
    )
    return [Job(name, preset, side, torch.get_num_threads(), natural) for name in names]


# --- measuring -----------------------------------------------------------------------


def readings(jobs: list[Job], bar: tqdm) -> list[Readings]:
    """What each job's process read at each step, taken in turn; the first step is left out."""
    found = [[] for _ in jobs]
    with ExitStack() as stack:
        pipes = [stack.enter_context(worker(job)) for job in jobs]
        for _ in range(jobs[0].preset.tapo.steps):
            for job, pipe, seen in zip(jobs, pipes, found, strict=True):
                bar.set_postfix_str(job.trainer, refresh=False)
                seen.append(next_step(pipe, job))
                bar.update()
    return [seen[1:] for seen in found]


@contextmanager
def worker(job: Job) -> Iterator[Connection]:
    """The pipe to a process for a job; it ends with this block, or with this process."""
    ours, theirs = FRESH.Pipe()
    process = FRESH.Process(target=bench_row.work, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(10)
        process.kill()


def next_step(pipe: Connection, job: Job) -> dict[str, float]:
    """Let a process take a step: its reading. ChildProcessError where the process stopped."""
    try:
        pipe.send("step")
        return pipe.recv()
    except (EOFError, BrokenPipeError):
        message = f"the process of {job.trainer!r} stopped; its error stands above"
        raise ChildProcessError(message) from None


def row_of(job: Job, found: dict[str, Readings]) -> dict:
    """Medians over a trainer's steps; ratios are medians of the ratios within a round.

    found: the readings of every trainer; without TRL's or our DAPO's that ratio is None.
    """
    seen = found[job.trainer]
    middle = {key: statistics.median(step[key] for step in seen) for key in seen[0]}
    counted = middle.pop("tokens", job.tokens)
    tokens = counted if job.natural else job.tokens
    return {
        "trainer": job.trainer,
        **middle,
        "of_trl": _ratio(seen, found.get(TRL)),
        "of_dapo": _ratio(seen, found.get("dapo")),
        "tokens_per_s": tokens / middle["step_s"],
        "steps_mb": middle["peak_mb"] - middle["start_mb"],
        "groups": job.preset.tapo.groups,
        "rollouts": job.completions // job.preset.tapo.groups,
        "completions": job.completions,
        "natural": job.natural,
        "completion_tokens": round(tokens / job.completions),
        "picture_side": job.side,
        "steps": len(seen),
        "threads": job.threads,
        "preset": job.preset.name,
    }


def _ratio(seen: Readings, others: Readings | None) -> float | None:
    if others is None:
        return None
    pairs = zip(seen, others, strict=True)
    return statistics.median(step["step_s"] / other["step_s"] for step, other in pairs)


# --- at full size --------------------------------------------------------------------


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
    tensors = {"source": source, "target": torch.empty_like(source)}
    timed = Timer("target.copy_(source)", globals=tensors).blocked_autorange()
    return 2 * COPIED / min(timed.times)


def load_of(job: Job, machine: dict) -> Load:
    """The load of a row, with the prompt as long as it truly is."""
    preset = job.settings
    processor = models.load_processor(preset.student, preset.pixels)
    messages = prompts.messages(prompts.question(preset.tapo.prompt, "bird"), True)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    tokens = len(processor.tokenizer(text)["input_ids"]) - 1  # the picture's are counted apart
    return memory_plan(preset, dtype=getattr(torch, machine["dtype"]), text_tokens=tokens).load


def full_row(job: Job, found: dict[str, Readings], machine: dict, load: Load) -> dict:
    """A row with the machine, what its bandwidth allows, and MiB that the plan predicts.

    Of TRL's trainer it predicts nothing.
    """
    row = row_of(job, found) | machine
    row["read_bytes"] = read_bytes(job, load)
    row["limit_tokens_per_s"] = job.completions * machine["bandwidth"] / row["read_bytes"]
    row["rollout_tokens_per_s"] = job.tokens / row["generate_s"]
    row["of_limit"] = row["rollout_tokens_per_s"] / row["limit_tokens_per_s"]
    if job.trainer == TRL:
        return row
    planned = {name: sum(load.phases[name].values()) / MIB for name in PHASES}
    for name, size in (planned | {"peak": max(planned.values())}).items():
        row[f"{name}_planned_mb"] = size
        row[f"{name}_of_plan"] = row[f"{name}_mb"] / size
    return row


def read_bytes(job: Job, load: Load) -> int:
    """What a token of all completions reads: language model, head, cache of the middle token."""
    s = load.sizes
    language = ("language", "quantisation")
    weights = sum(size for part, size in s.weights.items() if part.startswith(language))
    head = s.vocabulary * s.width * s.number
    middle = load.prompt + job.preset.max_new_tokens // 2
    return weights + s.adapter + head + job.completions * middle * s.kv_token


# --- printing ------------------------------------------------------------------------


def describe(first: dict) -> str:
    """What holds for all rows."""
    case = ", ".join(f"{key.replace('_', ' ')} {first[key]}" for key in CASE)
    ends = "; completions end where they end, pictures of three shapes" if first["natural"] else ""
    return (
        f"preset {first['preset']}, {first['groups']} groups, {first['threads']} thread(s), "
        f"median of {first['steps']} steps taken in turn; tokens/s: completions' tokens over "
        f"the step\n{case}{ends}"
    )


def describe_full(rows: list[dict], preset: Preset) -> str:
    """The page of the full size: what holds for all rows, seconds, memory, bandwidth."""
    first = rows[0]
    whole = ", whole process" if first["device"] == "CPU" else ""  # on a GPU torch's allocator
    parts = [
        f"{preset.student}, {preset.quantize}, on {first['device']} in {first['dtype']}; "
        f"gradient checkpointing {'on' if preset.gradient_checkpointing else 'off'}, "
        f"micro-batch {preset.tapo.micro_batch}\n{describe(first)}\n{table(rows, COLUMNS)}",
        f"peak MiB (measured{whole}; planned; measured / planned)\n{table(rows, MEMORY)}",
        f"a copy on this device moves {first['bandwidth'] / GB:.0f} GB/s; a token of all "
        f"completions reads {first['read_bytes'] / GB:.2f} GB\n{table(rows, ROLLOUTS)}",
    ]
    return "\n\n".join(parts)


def table(rows: list[dict], columns: dict[str, tuple[str, int]]) -> str:
    """A line a trainer; columns: key -> heading and digits. "-" where a row has no value."""
    lines = []
    for row in rows:
        values = [(row.get(key), digits) for key, (_, digits) in columns.items()]
        lines.append(["-" if value is None else f"{value:.{digits}f}" for value, digits in values])
    names = [row["trainer"] for row in rows]
    return pd.DataFrame(lines, names, [head for head, _ in columns.values()]).to_string()
