"""What a training step costs: TRL's GRPOTrainer, our DAPO and our TAPO, side by side.

Same weights, anchors, rewards, number of answers, micro-batch and threads. What is chosen:

- Every answer has exactly the longest length: the end of the turn is never drawn, for any
  trainer. So all write, score and learn from the same number of tokens, and no ratio depends
  on how long somebody's answers happened to be. (It forgoes what our sampler saves by
  dropping answers that have ended.)
- No dynamic sampling: every group is kept, so a step is one round of answers.
- Gradient checkpointing is as the preset has it, for all: off for the lab. (TRL's default is
  on, which saves memory and costs it another forward pass.)
- A process a row, so that each has its own peak of memory. Their steps are taken in turn, one
  process at a time, so that a busy machine slows all rows alike. Ratios are medians over
  rounds of the ratio within a round; the first step of each row is a warm-up. `cpu_s` is what
  the process computed (all its threads): it stands when others keep the cores busy. At full
  size (`fullbench`) a card does not hold all rows at once: they come one after another.
"""

import json
import math
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm.auto import tqdm

from finer1_lite.evals.tables import aligned
from finer1_lite.presets import Preset
from finer1_lite.runtime.files import write_atomically
from finer1_lite.tools import benchrow
from finer1_lite.tools.benchrow import SCORED, TRAINERS, VOCABULARY, Job

COLUMNS = {  # of a row -> heading and digits after the point
    "generate_s": ("generate s", 2),
    "score_s": ("score s", 2),
    "update_s": ("update s", 2),
    "step_s": ("step s", 2),
    "cpu_s": ("cpu s", 2),
    "of_trl": ("x TRL", 2),
    "of_dapo": ("x dapo", 2),
    "tokens_per_s": ("tokens/s", 0),
    "peak_mb": ("peak MB", 0),
    "steps_mb": ("by steps", 0),
    "vision_calls": ("vision calls", 0),
    "pictures": ("pictures", 0),
}
CASE = ("rollouts", "answer_tokens", "picture_side")  # what tells one case from another


def run(
    preset: Preset, *, steps: int = 3, grow: bool = True, json_path: Path | None = None
) -> list[dict]:
    """Measure, print, and write the rows, a dictionary a trainer and case.

    steps: counted steps a row; grow: also vary rollouts, answer length and picture size.
    The file is written after every case, so that a killed bench leaves those it finished.
    """
    settings, rows = cases(preset, grow), []
    with tqdm(total=len(settings) * len(TRAINERS) * (steps + 1), desc="bench") as bar:
        for case in settings:
            rows += side_by_side(with_case(preset, steps, case), case["picture_side"], bar)
            if json_path is not None:
                write_atomically(json_path, json.dumps(rows, indent=1).encode())
    print(f"{describe(rows[0])}\n\n{table(rows, settings[0])}")
    for axis in CASE if grow else ():
        print(f"\n{growth(rows, axis, settings[0])}")
    print(f"\n{scoring_memory()}")
    return rows


# --- what is varied ------------------------------------------------------------------


def cases(preset: Preset, grow: bool) -> list[dict[str, int]]:
    """The preset's own case first, then each axis by itself."""
    tapo = preset.tapo
    rollouts = tapo.anchor_rollouts + tapo.positive_rollouts
    side = math.isqrt(preset.pixels) // 28 * 28  # whole visual tokens of Qwen2.5-VL
    base = dict(zip(CASE, (rollouts, preset.max_new_tokens, side)))
    if not grow:
        return [base]
    axes = {
        "rollouts": (4, 8, 16),
        "picture_side": (2 * side, 3 * side),
        "answer_tokens": (preset.max_new_tokens // 2, 2 * preset.max_new_tokens),
    }
    varied = [base | {axis: value} for axis, values in axes.items() for value in values]
    return [base, *(case for case in varied if case != base)]


def with_case(preset: Preset, steps: int, case: dict[str, int]) -> Preset:
    """The preset of a case: every group kept, one round of answers, a warm-up step more."""
    half = case["rollouts"] // 2
    return preset.with_(
        max_new_tokens=case["answer_tokens"],
        pixels=case["picture_side"] ** 2,
        tapo__anchor_rollouts=case["rollouts"] - half,
        tapo__positive_rollouts=half,
        tapo__steps=steps + 1,
        tapo__keep="all",
        tapo__draws=1,
        tapo__updates=1,
    )


# --- measuring -----------------------------------------------------------------------


def side_by_side(preset: Preset, side: int, bar) -> list[dict]:
    """A row a trainer; their steps are taken in turn, the first of each not counted."""
    jobs = jobs_of(preset, side, TRAINERS)
    counted = readings(jobs, bar)
    return [row(job, seen, counted[0], counted[1]) for job, seen in zip(jobs, counted)]


def jobs_of(preset: Preset, side: int, names) -> list[Job]:
    return [Job(name, preset, side, torch.get_num_threads()) for name in names]


def readings(jobs: list[Job], bar) -> list[list[dict]]:
    """What each job's process read at each step, the first left out."""
    found: list[list[dict]] = [[] for _ in jobs]
    with workers(jobs) as pipes:
        for _ in range(jobs[0].preset.tapo.steps):
            for job, pipe, seen in zip(jobs, pipes, found):
                bar.set_postfix_str(job.trainer, refresh=False)
                seen.append(_step(pipe, job))
                bar.update()
    return [seen[1:] for seen in found]


@contextmanager
def workers(jobs: list[Job]):
    """A process and a pipe a job; they end with this block, or with this process."""
    methods, started = context(), []
    try:
        for job in jobs:
            ours, theirs = methods.Pipe()
            process = methods.Process(target=benchrow.work, args=(theirs, job), daemon=True)
            process.start()
            theirs.close()
            started.append((process, ours))
        yield [pipe for _, pipe in started]
    finally:
        for process, pipe in started:
            pipe.close()
            process.join(10)
            process.kill()


def context():
    """Fresh processes; where the system can fork, they share one import of the libraries."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    methods = multiprocessing.get_context("forkserver")
    methods.set_forkserver_preload([benchrow.__name__])
    return methods


def _step(pipe, job: Job) -> dict:
    try:
        pipe.send("step")
        return pipe.recv()
    except (EOFError, BrokenPipeError):
        message = f"the process of {job.trainer!r} stopped; its error stands above"
        raise ChildProcessError(message) from None


def row(job: Job, seen: list[dict], trl: list[dict], dapo: list[dict]) -> dict:
    """Medians over a row's steps; ratios are medians of the ratios within a round.

    trl, dapo: readings of the rows that ratios refer to; without any the ratio is None.
    """
    middle = {key: statistics.median(reading[key] for reading in seen) for key in seen[0]}
    tapo = job.preset.tapo

    def times(others: list[dict]) -> float | None:
        ratios = [mine["step_s"] / its["step_s"] for mine, its in zip(seen, others)]
        return statistics.median(ratios) if ratios else None

    return {
        "trainer": job.trainer,
        **middle,
        "of_trl": times(trl),
        "of_dapo": times(dapo),
        "tokens_per_s": job.tokens / middle["step_s"],
        "steps_mb": middle["peak_mb"] - middle["start_mb"],
        "groups": tapo.groups,
        "rollouts": tapo.anchor_rollouts + tapo.positive_rollouts,
        "answers": job.answers,
        "answer_tokens": job.preset.max_new_tokens,
        "picture_side": job.side,
        "steps": len(seen),
        "threads": job.threads,
        "preset": job.preset.name,
    }


def scoring_memory() -> str:
    """Peak of scoring at a full-size vocabulary, ours and the plain log-softmax."""
    found = []
    for naive in (False, True):
        with ProcessPoolExecutor(1, context()) as alone:  # a fresh process has a fresh peak
            found.append(alone.submit(benchrow.scoring_mb, naive).result())
    ours, naive = found
    return (
        f"scoring {SCORED} tokens with gradient, vocabulary {VOCABULARY}: peak {ours:.0f} MB, "
        f"plain log-softmax {naive:.0f} MB ({ours / naive:.2f} of it)"
    )


# --- printing ------------------------------------------------------------------------


def describe(first: dict) -> str:
    return (
        f"preset {first['preset']}, {first['groups']} groups, {first['threads']} thread(s), "
        f"median of {first['steps']} steps taken in turn; tokens/s: answers' tokens over the step"
    )


def table(rows: list[dict], case: dict[str, int]) -> str:
    """A case's trainers, a line each."""
    chosen = [row for row in rows if all(row[key] == case[key] for key in CASE)]
    lines = [["trainer", *(head for head, _ in COLUMNS.values())]]
    lines += [
        [row["trainer"], *(_cell(row[key], digits) for key, (_, digits) in COLUMNS.items())]
        for row in chosen
    ]
    title = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in case.items())
    return f"{title}\n{aligned(lines)}"


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def growth(rows: list[dict], axis: str, base: dict[str, int]) -> str:
    """Step seconds and peak of memory along one axis, a line a trainer."""
    others = [key for key in CASE if key != axis]
    chosen = [row for row in rows if all(row[key] == base[key] for key in others)]
    values = sorted({row[axis] for row in chosen})
    lines = [[f"{axis.replace('_', ' ')} (step s, x TRL, peak MB)", *map(str, values)]]
    for name in TRAINERS:
        found = {row[axis]: row for row in chosen if row["trainer"] == name}
        cells = [found[value] for value in values]
        lines.append(
            [name, *(f"{c['step_s']:.2f}  {c['of_trl']:.2f}  {c['peak_mb']:.0f}" for c in cells)]
        )
    return aligned(lines)
