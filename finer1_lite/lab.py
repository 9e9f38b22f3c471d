"""The main job: data -> chains -> SFT -> TAPO -> evaluation -> report, resumable.

Layout of a run's folder: config.json, chains.jsonl, base/ and seed<k>/ (answers and
adapters), then records.jsonl, metrics.json and the report. Every step looks for what is
already there, so the same command started again goes on where it was killed.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from finer1_lite import (
    cot,
    evaluate,
    jsonl,
    labstudent,
    metrics,
    models,
    paperbirds,
    ranks,
    report,
)
from finer1_lite.evaluate import Cell, cells
from finer1_lite.models import Student
from finer1_lite.presets import Preset
from finer1_lite.pretrain import pretrain, warm_up
from finer1_lite.sft import chain_rows, train_sft
from finer1_lite.species import Collection, DataError, load_folder
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
            "name": self.folder.name, "coarse": collection.coarse, "seeds": list(self.seeds),
            "world_seed": self.world_seed if self.photos is None else None,
            "species": len(collection.species), "train_pictures": len(collection.train),
            "test_pictures": len(collection.test),
            "data": fingerprint([p.id for p in (*collection.train, *collection.test)]),
            "preset": self.preset.to_dict(),
        }  # fmt: skip


def run(job: Run, workers: int = 0, fresh: bool = False) -> Path:
    """Do the whole job and return the path of the report."""
    collection, teacher = job.collection()
    ranks.by_main(lambda: open_folder(job.folder, job.config(collection), fresh))
    if ranks.tell((job.folder / "report.html").exists()):
        log.info("this run is finished; --fresh starts it over")
        return job.folder / "report.html"
    start, resumed = time.time(), (job.folder / "chains.jsonl").exists()
    base = ranks.by_main(lambda: prepare_base(job, collection))
    ranks.by_main(lambda: write_chains(job, collection, teacher))
    student = models.load_student(base, job.preset)
    for cell in ranks.mine(cells("base", None, ("answer", "think"))):
        answer_cell(student, job, collection, cell, job.folder / "base")
    del student
    run_seeds(job, base, workers)
    ranks.wait()
    minutes = {"minutes of the start that finished": round((time.time() - start) / 60, 1)}
    if ranks.is_main():
        _write(job.folder / "timing.json", json.dumps(minutes | {"resumed": resumed}))
    ranks.by_main(lambda: finish(job, collection))
    return job.folder / "report.html"


# --- the folder ------------------------------------------------------------------------


def open_folder(folder: Path, config: dict, fresh: bool) -> None:
    """Create the folder, or accept one of the same configuration.

    Raises DataError when it cannot be written or holds another run, naming every setting
    that differs. `fresh` starts over, in a folder that holds a run and nothing else.
    """
    path = folder / "config.json"
    held = _run_config(path)
    if fresh and held:
        if held.get("job") != config.get("job"):  # another command's work, perhaps paid for
            what = f"{folder} holds {held.get('job') or 'a lab run'}: choose another --name"
            raise DataError([what], "--fresh deletes runs of its own command only:")
        shutil.rmtree(folder)
        held = None
    fault = _unusable(folder, held)
    if fault:
        raise DataError([f"{fault}: choose another --out or --name"], "no run folder")
    if held is None:
        _write(path, json.dumps(config, indent=1))
        return
    differing = _differences(held, config)
    if differing:
        mend = "choose another --name, or --fresh to start over"
        raise DataError(differing, f"{folder} holds a run of another configuration: {mend}")


def _unusable(folder: Path, held: dict | None) -> str | None:
    """Why no run can be kept in this folder; creates it where it can."""
    if folder.is_dir() and any(folder.iterdir()) and held is None:
        return f"{folder} is not empty and holds no run"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"
    return None


def _run_config(path: Path) -> dict | None:
    """The configuration of the run that a folder holds; a model's config.json is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "preset" in found else None


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    rows = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            rows += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            rows.append(f"{prefix}{key}: {a} there, {b} now")
    return rows


def _write(path: Path, text: str) -> None:
    report.write_atomically(path, text.encode())


def fingerprint(ids: list[str]) -> str:
    """A short key of a list of texts: equal for the same data in the same order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


# --- the steps -------------------------------------------------------------------------


def prepare_base(job: Run, collection: Collection) -> Path | str:
    """The student before stage 1: shipped, pretrained for a new world, or warmed up."""
    source = job.preset.student
    if source == "assets":
        source = labstudent.asset_folder(job.world_seed)
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
            student, collection, cell, folder / "answers",
            max_new_tokens=limit, batch_size=job.preset.eval_batch,
        ):  # fmt: skip
            bar.update(done - bar.n)


def run_seed(job: Run, base: Path | str, seed: int) -> None:
    """Both stages and their evaluation for one training seed."""
    collection, _ = job.collection()
    folder = job.folder / f"seed{seed}"
    steps = {"sft": job.preset.sft.steps, "tapo": job.preset.tapo.steps}
    for stage in ("sft", "tapo"):
        out = folder / stage
        if not (out / "done").exists():
            student = models.load_student(base, job.preset)
            with progress_bar(steps[stage], f"{folder.name} {stage}") as bar:
                report_to = [ProgressBar(bar)]
                if stage == "sft":
                    student = models.add_adapter(student, job.preset, seed)
                    rows = chain_rows(collection, read_chains(job))
                    train_sft(student, rows, job.preset, seed, out, report_to)
                else:
                    student = models.load_adapter(student, folder / "sft", trainable=True)
                    train_tapo(student, collection, job.preset, seed, out, report_to)
            if ranks.is_main():
                shutil.rmtree(out / "checkpoints", ignore_errors=True)
                (out / "done").touch()
        ranks.wait()
        student = models.load_adapter(models.load_student(base, job.preset), out)
        for cell in ranks.mine(cells(stage, seed)):
            answer_cell(student, job, collection, cell, folder)


def run_seeds(job: Run, base: Path | str, workers: int) -> None:
    """The training seeds, side by side where there are cores and no GPU to share."""
    workers = choose_workers(len(job.seeds), workers, "seed")
    if workers == 1:
        for seed in job.seeds:
            run_seed(job, base, seed)
        return
    with worker_pool(workers) as pool:
        for done in [pool.submit(run_seed, job, base, seed) for seed in job.seeds]:
            done.result()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def choose_workers(jobs: int, asked: int, what: str) -> int:
    """How many of `jobs` run side by side: as asked, else one on a GPU, else one a core.

    One, too, where several processes share each of them.
    """
    if ranks.world()[1] > 1:
        log.info("1 %s at a time (%d processes share it)", what, ranks.world()[1])
        return 1
    on_gpu = models.choose_device().type == "cuda"
    workers = asked or (1 if on_gpu else min(jobs, _cores()))
    why = "one GPU" if on_gpu else f"{_cores()} cores, {jobs} {what}s"
    log.info("%d %s(s) at a time (%s)", workers, what, why)
    return workers


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """Fresh processes that share the cores and end with this one."""
    context, threads = multiprocessing.get_context("spawn"), max(1, _cores() // workers)
    return ProcessPoolExecutor(workers, context, _start_worker, (os.getpid(), threads))


def _start_worker(parent: int, threads: int) -> None:
    """A worker ends with its parent: a killed run must not go on writing."""
    torch.set_num_threads(threads)
    quiet()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def finish(job: Run, collection: Collection) -> None:
    """Answers -> records -> metrics -> report."""
    parts = [job.folder / "base", *(job.folder / f"seed{s}" for s in job.seeds)]
    files = [f for part in parts for f in sorted((part / "answers").glob("*.jsonl"))]
    _write(job.folder / "records.jsonl", "".join(f.read_text(encoding="utf-8") for f in files))
    summary = metrics.summarise(metrics.read_records(job.folder / "records.jsonl"))
    _write(job.folder / "metrics.json", json.dumps(summary, indent=1))
    photos = {p.id: p for p in collection.test}
    report.write_report(job.folder, lambda photo: photos[photo].image())


# --- progress ----------------------------------------------------------------------------


class ProgressBar(TrainerCallback):
    """A line that says where a training is and how it goes."""

    def __init__(self, bar):
        self.bar = bar

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = {
            k: f"{logs[k]:.2f}" for k in ("loss", "reward", "groups_kept") if k in (logs or {})
        }
        self.bar.set_postfix(shown, refresh=False)


def progress_bar(total: int, what: str, hidden: bool = False):
    """The one look of all progress bars."""
    hidden = hidden or not ranks.is_main()
    return tqdm(total=total, desc=what, mininterval=2.0, dynamic_ncols=True, disable=hidden)


def quiet() -> None:
    """Our own decisions on the screen, the libraries' chatter not."""
    import warnings

    import datasets
    import transformers

    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO if ranks.is_main() else logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
