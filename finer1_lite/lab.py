"""The main job: data -> chains -> SFT -> TAPO -> evaluation -> report, resumable.

Layout of a run's folder: config.json, chains.jsonl, base/ and seed<k>/ (answers and
adapters), then records.jsonl, metrics.json and the report. Every step looks for what is
already there, so the same command started again goes on where it was killed.
"""

import json
import logging
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from finer1_lite import cot, evaluate, metrics, models, paperbirds
from finer1_lite.evals import report
from finer1_lite.evaluate import Cell, cells
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.runtime import distributed
from finer1_lite.runtime import files as jsonl
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.files import fingerprint, open_folder, write_atomically
from finer1_lite.runtime.workers import choose_workers, worker_pool
from finer1_lite.sft import chain_rows, train_sft
from finer1_lite.species import Collection, load_folder
from finer1_lite.students import lab_student
from finer1_lite.students.pretrain import pretrain, warm_up
from finer1_lite.tapo import train_tapo

log = logging.getLogger("finer1_lite")


@dataclass(frozen=True)
class Run:
    """What a run is: its settings, its data, its seeds, its folder."""

    folder: Path
    preset: Preset
    seeds: tuple[int, ...] = (0, 1, 2)
    world_seed: int = 0
    photos: Path | None = None  # a folder of photographs instead of paper birds
    descriptions: Path | None = None
    coarse: str = "bird"

    def collection(self) -> tuple[Collection, cot.Teacher]:
        """The data and the teacher that writes chains about them."""
        p = self.preset
        if self.photos is None:
            world = paperbirds.make_world(self.world_seed)
            birds = paperbirds.collection(world, shots=p.shots, test=p.test_pictures)
            return birds, cot.oracle(world)
        found = load_folder(
            self.photos, shots=p.shots, descriptions=self.descriptions, coarse=self.coarse
        )
        cot.require_descriptions(found, f"{self.photos}: the teacher")
        return found, lambda photo, rng: cot.table_chain(found, photo.species, rng)

    def config(self, collection: Collection) -> dict:
        """What must be equal for a folder's content to be used again."""
        return {
            "name": self.folder.name,
            "coarse": collection.coarse,
            "seeds": list(self.seeds),
            "world_seed": self.world_seed if self.photos is None else None,
            "species": len(collection.species),
            "train_pictures": len(collection.train),
            "test_pictures": len(collection.test),
            "data": fingerprint([p.id for p in (*collection.train, *collection.test)]),
            "preset": self.preset.to_dict(),
        }


def run(job: Run, workers: int = 0, fresh: bool = False) -> Path:
    """Do the whole job and return the path of the report."""
    collection, teacher = job.collection()
    distributed.on_main_process(lambda: open_folder(job.folder, job.config(collection), fresh))
    if distributed.broadcast((job.folder / "report.html").exists()):
        log.info("this run is finished; --fresh starts it over")
        return job.folder / "report.html"
    start, resumed = time.time(), (job.folder / "chains.jsonl").exists()
    base = distributed.on_main_process(lambda: prepare_base(job, collection))
    distributed.on_main_process(lambda: write_chains(job, collection, teacher))
    student = models.load_student(base, job.preset)
    for cell in distributed.shard(cells("base", None, ("answer", "think"))):
        answer_cell(student, job, collection, cell, job.folder / "base")
    del student
    run_seeds(job, base, workers)
    distributed.wait()
    minutes = {"minutes of the start that finished": round((time.time() - start) / 60, 1)}
    if distributed.is_main():
        _write(job.folder / "timing.json", json.dumps(minutes | {"resumed": resumed}))
    distributed.on_main_process(lambda: finish(job, collection))
    return job.folder / "report.html"


# --- the folder ------------------------------------------------------------------------


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())


# --- the steps -------------------------------------------------------------------------


def prepare_base(job: Run, collection: Collection) -> Path | str:
    """The student before stage 1: shipped, pretrained for a new world, or warmed up."""
    source = job.preset.student
    if source == "assets":
        source = lab_student.asset_folder(job.world_seed)
        if not (source / "record.json").exists():
            source = job.folder.parent / f"lab-student-world{job.world_seed}"
        if not (source / "record.json").exists():
            log.info(
                "no student for world %d yet: pretraining one (about 20 minutes)", job.world_seed
            )
            pretrain(job.world_seed, source)
    if job.photos is None or not job.preset.warm_up_steps:
        return source
    out = job.folder / "warm-up"
    if not (out / "done").exists():
        student = models.load_student(source, replace(job.preset, quantize="none"))
        work = out / "checkpoints"
        student = warm_up(student, collection, job.preset.warm_up_steps, work, seed=0)
        student.model.save_pretrained(out)
        student.processor.save_pretrained(out)
        shutil.rmtree(work, ignore_errors=True)
        (out / "done").touch()
    return out


def write_chains(job: Run, collection: Collection, teacher: cot.Teacher) -> None:
    path = job.folder / "chains.jsonl"
    if path.exists():
        return
    chains = cot.make_chains(collection, teacher, seed=0)
    rows = [{"photo": p.id, "species": p.species, "chain": chains[p.id]} for p in collection.train]
    _write(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))


def read_chains(job: Run) -> dict[str, str]:
    rows = jsonl.read(job.folder / "chains.jsonl", objects=True)
    return {row["photo"]: row["chain"] for _, row in rows}


def answer_cell(
    student: Student, job: Run, collection: Collection, cell: Cell, folder: Path
) -> None:
    """One block of the evaluation, with a progress bar."""
    limit = job.preset.max_new_tokens
    with progress_bar(len(collection.test), f"{folder.name} {cell.name}") as bar:
        for done in evaluate.evaluate(
            student,
            collection,
            cell,
            folder / "answers",
            max_new_tokens=limit,
            batch_size=job.preset.eval_batch,
        ):
            bar.update(done - bar.n)


def run_seed(job: Run, base: Path | str, seed: int) -> None:
    """Both stages and their evaluation for one training seed."""
    collection, _ = job.collection()
    folder = job.folder / f"seed{seed}"
    for stage in ("sft", "tapo"):
        out = folder / stage
        if not (out / "done").exists():
            student = models.load_student(base, job.preset)
            if stage == "sft":
                student = models.add_adapter(student, job.preset, seed)
                rows = chain_rows(collection, read_chains(job))
                train_sft(student, rows, job.preset, seed, out)
            else:
                student = models.load_adapter(student, folder / "sft", trainable=True)
                train_tapo(student, collection, job.preset, seed, out)
            if distributed.is_main():
                shutil.rmtree(out / "checkpoints", ignore_errors=True)
                (out / "done").touch()
        distributed.wait()
        student = models.load_adapter(models.load_student(base, job.preset), out)
        for cell in distributed.shard(cells(stage, seed)):
            answer_cell(student, job, collection, cell, folder)


def run_seeds(job: Run, base: Path | str, workers: int) -> None:
    """The training seeds, side by side where there are cores and no GPU to share."""
    workers = choose_workers(len(job.seeds), workers, "seed", models.choose_device().type == "cuda")
    if workers == 1:
        for seed in job.seeds:
            run_seed(job, base, seed)
        return
    with worker_pool(workers) as pool:
        for done in [pool.submit(run_seed, job, base, seed) for seed in job.seeds]:
            done.result()


def finish(job: Run, collection: Collection) -> None:
    """Answers -> records -> metrics -> report."""
    parts = [job.folder / "base", *(job.folder / f"seed{s}" for s in job.seeds)]
    files = [f for part in parts for f in sorted((part / "answers").glob("*.jsonl"))]
    _write(job.folder / "records.jsonl", "".join(f.read_text(encoding="utf-8") for f in files))
    summary = metrics.summarise(metrics.read_records(job.folder / "records.jsonl"))
    _write(job.folder / "metrics.json", json.dumps(summary, indent=1))
    photos = {p.id: p for p in collection.test}
    report.write_report(job.folder, lambda photo: photos[photo].image())
