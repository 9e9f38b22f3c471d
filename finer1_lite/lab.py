"""The main job: data -> chains -> SFT -> TAPO -> evaluation -> numbers, resumable.

Layout of a run's folder: config.json, chains.jsonl, base/ and seed<k>/ (adapters and
records), then records.jsonl and metrics.json. Every step looks for what is already there, so
the same command started again goes on where it was killed.
"""

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils.memory import clear_device_cache

from finer1_lite import cot, metrics, models
from finer1_lite.data.benchmark import Benchmark, Condition
from finer1_lite.data.given_chains import check_chains
from finer1_lite.data.runs import Run, chain_lines, write_attribution
from finer1_lite.evaluate import StudentAnswerer, evaluate_all, join, say_lost
from finer1_lite.presets import Preset
from finer1_lite.runtime import distributed, files, own_rewards, trackers
from finer1_lite.runtime.devices import machine
from finer1_lite.runtime.files import open_folder, write_atomically
from finer1_lite.runtime.workers import choose_workers, worker_pool
from finer1_lite.sft import chain_rows, train_sft
from finer1_lite.species import Collection
from finer1_lite.students.card import STAGES, read_card, write_card
from finer1_lite.students.families import check_family
from finer1_lite.students.pretrain import prepare_base
from finer1_lite.students.processors import budget_of
from finer1_lite.students.run_cards import card_of, write_cards
from finer1_lite.tapo import train_tapo
from finer1_lite.triplets import require_enough

log = logging.getLogger("finer1_lite")


def run(job: Run, workers: int = 0, fresh: bool = False) -> Path:
    """Do the whole job; returns the run's folder, which holds metrics.json when it is done."""
    preset = job.preset.with_(pixels=job.preset.pixels)  # asked of every student, as the card says
    job = replace(job, preset=preset)
    collection, teacher = job.collection()
    if job.chains is not None:
        check_chains(collection, job.chains)
    require_enough(collection)
    trackers.require(job.report_to)  # all three now, and not when stage 2 begins
    own_rewards.load(preset.tapo.rewards)
    if fresh and preset.student != "assets":
        check_family(preset.student)  # before anything is deleted
    log.info("the student sees a picture in %d pixels at most (--set pixels=N)", preset.pixels)
    config = job.config(collection)
    main = distributed.on_main_process
    main(lambda: open_folder(job.folder, config, fresh, keep="chains"))
    main(lambda: write_attribution(collection, job.folder / "attribution.csv"))
    if main(lambda: finished(job.folder)):
        log.info("this run is finished; --fresh starts it over")
        main(lambda: write_cards(job, collection))
        return job.folder
    start = time.time()
    resumed = (job.folder / "chains.jsonl").exists()
    photos = collection if job.photos else None
    given = [row["chain"] for row in chain_lines(collection, job.chains or {})]
    base = main(lambda: prepare_base(preset, job.folder, job.world_seed, photos, given))
    student = StudentAnswerer(models.load_student(base, preset), "base", preset.max_new_tokens)
    main(lambda: write_chains(job, collection, teacher))
    evaluate_on(collection, student, job.folder / "base", preset, "answer", "think")
    del student
    run_seeds(job, base, workers)
    distributed.wait()
    minutes = round((time.time() - start) / 60, 1)
    facts = {"minutes of the start that finished": minutes, "resumed": resumed}
    main(lambda: finish(job, facts))
    main(lambda: write_cards(job, collection))
    return job.folder


def finished(folder: Path) -> bool:
    """Whether a run is done, and no answer is missing that another start may have."""
    done = (folder / "metrics.json").exists() and (folder / "records.jsonl").exists()
    return done and not say_lost(metrics.read_records(folder / "records.jsonl"))


def write_chains(job: Run, collection: Collection, teacher: cot.ChainWriter) -> None:
    """The chains of the training pictures, given or the teacher's, into chains.jsonl."""
    path = job.folder / "chains.jsonl"
    if job.chains is None and path.exists():
        return
    made = cot.make_chains(collection, teacher, seed=0) if job.chains is None else job.chains
    files.write_lines(path, chain_lines(collection, made))


def evaluate_on(
    collection: Collection, answerer: StudentAnswerer, folder: Path, preset: Preset, *prompts: str
) -> None:
    """Ask about the test pictures under these prompts, in the open and the closed world.

    Of several processes each takes some of the conditions.
    """
    benchmark = Benchmark.of_collection(collection, as_drawn=True)
    worlds = [(prompt, task) for prompt in prompts for task in ("open", "closed")]
    conditions = [Condition(*world, order="shuffle") for world in distributed.shard(worlds)]
    evaluate_all(answerer, benchmark, conditions, folder, preset.eval_batch)


def run_seed(job: Run, base: Path | str, seed: int) -> None:
    """Both stages and their evaluation for one training seed."""
    collection, _ = job.collection()
    now = job.config(collection)  # photographs may have changed since the start
    distributed.on_main_process(lambda: open_folder(job.folder, now, fresh=False))
    folder = job.folder / f"seed{seed}"
    for stage, model in STAGES.items():
        out = folder / stage
        if not (out / "done").exists():
            train_stage(job, collection, base, stage, seed)
            if distributed.is_main():
                shutil.rmtree(out / "checkpoints", ignore_errors=True)
                (out / "done").touch()
        if distributed.is_main() and read_card(out) is None:
            write_card(out, card_of(job, collection, base, stage, seed))
        distributed.wait()
        clear_device_cache(garbage_collection=True)  # trainers hold their models in circles
        student = models.load_trained(out, job.preset, str(base))
        answerer = StudentAnswerer(student, model, job.preset.max_new_tokens, seed)
        evaluate_on(collection, answerer, folder, job.preset, "think")
        del student, answerer


def train_stage(job: Run, collection: Collection, base: Path | str, stage: str, seed: int) -> None:
    """Train the adapter of one stage: "sft", or "tapo" from where "sft" ended."""
    folder = job.folder / f"seed{seed}"
    clear_device_cache(garbage_collection=True)
    student = models.load_student(base, job.preset)
    if stage == "sft":
        student = models.add_adapter(student, job.preset, seed)
        chains: dict[str, list[str]] = {}
        for _, row in files.read(job.folder / "chains.jsonl", objects=True):
            chains.setdefault(row["photo"], []).append(row["chain"])
        if job.chains is not None:  # the others are in stage 2 only
            collection = replace(
                collection, train=tuple(p for p in collection.train if p.id in chains)
            )
        rows = chain_rows(collection, chains, job.preset.sft, budget_of(student.processor))
        train_sft(student, rows, job.preset, seed, folder / stage)
    else:
        student = models.load_adapter(student, folder / "sft", trainable=True)
        out = folder / stage
        train_tapo(student, collection, job.preset, seed, out, report_to=job.report_to)


def run_seeds(job: Run, base: Path | str, workers: int) -> None:
    """The training seeds, side by side where there are cores and no GPU to share."""
    workers = choose_workers(len(job.seeds), workers, "seed", models.choose_device().type != "cpu")
    if workers == 1:
        for seed in job.seeds:
            run_seed(job, base, seed)
        return
    with worker_pool(workers) as pool:
        for done in [pool.submit(run_seed, job, base, seed) for seed in job.seeds]:
            done.result()


def finish(job: Run, facts: Mapping[str, Any]) -> None:
    """Completions -> records.jsonl -> metrics.json; facts: for timing.json."""
    records = join(job.folder / "base", *(job.folder / f"seed{s}" for s in job.seeds))
    write_atomically(job.folder / "records.jsonl", records.encode())
    rows = list(metrics.read_records(job.folder / "records.jsonl"))
    say_lost(rows)
    summary = metrics.summarise(rows)
    if not (job.folder / "timing.json").exists():  # answers may be missing since
        write_atomically(job.folder / "timing.json", json.dumps({**facts, **machine()}).encode())
    write_atomically(job.folder / "metrics.json", json.dumps(summary, indent=1).encode())
