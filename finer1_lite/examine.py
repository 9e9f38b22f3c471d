"""The job behind `python -m finer1_lite evaluate`: pictures, a student, blocks, records."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from finer1_lite import (
    baselines,
    evalreport,
    exam,
    lab,
    models,
    openworld,
    paperbirds,
    report,
)
from finer1_lite.exam import Block, Exam
from finer1_lite.models import Student
from finer1_lite.presets import Preset
from finer1_lite.species import Collection, DataError, load_folder

log = logging.getLogger("finer1_lite")


@dataclass(frozen=True)
class Job:
    """What is examined, on what, and where the answers go."""

    folder: Path
    models: tuple[str, ...]
    preset: Preset
    blocks: tuple[Block, ...]
    base: str | None = None  # under an adapter; None: as the adapter says
    world_seed: int = 0
    photos: Path | None = None
    files: tuple[Path, ...] = ()
    images: Path | None = None
    allow_missing: bool = False
    unseen_share: float = 0.4
    coarse: str = "bird"
    baselines: tuple[str, ...] = ()
    similarity: str = "none"  # none, or one of openworld.ENCODERS

    def collection(self) -> Collection | None:
        """The pictures with their training shots; None for question files."""
        p = self.preset
        if self.files:
            return None
        if self.photos is None:
            world = paperbirds.make_world(self.world_seed)
            return paperbirds.collection(world, shots=p.shots, test=p.test_pictures)
        return load_folder(
            self.photos, shots=p.shots, unseen_share=self.unseen_share, coarse=self.coarse
        )

    def config(self, asked: Exam) -> dict:
        """What must be equal for a folder's answers to be used again."""
        return {
            "job": "an evaluation", "name": self.folder.name, "models": list(self.models),
            "base": self.base,
            "blocks": [block.name for block in self.blocks], "baselines": list(self.baselines),
            "world_seed": None if self.photos or self.files else self.world_seed,
            "pictures": len(asked.items), "missing": asked.missing,
            "data": lab.fingerprint([f"{i.photo}/{i.label}" for i in asked.items]),
            "preset": self.preset.to_dict(),
        }  # fmt: skip


def run(job: Job, fresh: bool = False) -> Path:
    """Answer everything that is not answered yet, and write the report; its path."""
    collection = job.collection()
    asked = the_exam(job, collection)
    faults = [f"{m}: {fault}" for m in job.models if (fault := _unusable(m, job))]
    if len({model_name(m) for m in job.models}) < len(job.models):
        faults.append(f"{', '.join(job.models)}: two have the same name; rename a folder")
    if faults:
        raise DataError(faults, "these models cannot be examined:")
    lab.open_folder(job.folder, job.config(asked), fresh)
    for source in job.models:
        student = load(source, job)
        for block in job.blocks:
            _answer(student, asked, block, source, job)
        del student
    for name in job.baselines:
        baselines.answer(name, collection, asked, job)
    write_records(job)
    return evalreport.write(job.folder)


def analyse(job: Job) -> dict:
    """`analysis.analyse` of the job's two models, by name."""
    from finer1_lite import analysis

    collection = job.collection()
    faults = [f"{m}: {fault}" for m in job.models if (fault := _unusable(m, job))]
    if collection is None:
        faults.append("--files: bring no descriptions and no training pictures; give --photos")
    if faults:
        raise DataError(faults, "nothing to analyse:")
    world = None if job.photos else paperbirds.make_world(job.world_seed)
    before, after = (load(source, job) for source in job.models)
    found = analysis.analyse(before, after, collection, world, job.preset.max_new_tokens)
    return {"before": model_name(job.models[0]), "after": model_name(job.models[1])} | found


def write_records(job: Job) -> None:
    """Join the blocks; add the open world's similarity where an encoder was asked for."""
    text = exam.join(job.folder)
    if job.similarity != "none":
        rows = [json.loads(line) for line in text.split("\n") if line]
        evalreport.add_similarity(rows, openworld.load_encoder(job.similarity))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    report.write_atomically(job.folder / "records.jsonl", text.encode())


def the_exam(job: Job, collection: Collection | None) -> Exam:
    if collection is None:
        return Exam.of_files(job.files, job.images or Path(), job.allow_missing)
    dataset = job.photos.resolve().name if job.photos else f"paperbirds{job.world_seed}"
    fine = "species" if job.photos is None else "kind"
    return Exam.of_collection(collection, dataset, fine)


def _answer(student: Student, asked: Exam, block: Block, source: str, job: Job) -> None:
    name = model_name(source)
    total = len(exam.questions(asked, block))
    with lab.progress_bar(total, f"{name} {block.name}") as bar:
        for done in exam.answer_block(
            student, asked, block, name, job.folder / "answers" / name.replace("/", "--"),
            max_new_tokens=job.preset.max_new_tokens, batch_size=job.preset.eval_batch,
        ):  # fmt: skip
            bar.update(done - bar.n)


# --- students ------------------------------------------------------------------------------


def model_name(source: str) -> str:
    """How a model is called in tables: the last folder's name, or the hub name."""
    path = Path(source)
    return path.resolve().name if path.exists() else source


def is_adapter(source: str) -> bool:
    return (Path(source) / "adapter_config.json").is_file()


def _unusable(source: str, job: Job) -> str:
    """Why a model cannot be loaded, as far as files tell; "" for a hub name."""
    path = Path(source)
    if is_adapter(source):
        base = models.base_of(source, job.base)
        return "" if base else "the adapter names no base model; give --base"
    if path.exists() and not (path / "config.json").is_file():
        return "holds neither a model (config.json) nor an adapter (adapter_config.json)"
    if not path.exists() and (path.is_absolute() or source.startswith(".")):
        return "does not exist; give a folder or a hub name"
    return ""


def load(source: str, job: Job) -> Student:
    """A model's folder, an adapter's folder, or a hub name -> a student."""
    if not is_adapter(source):
        return models.load_student(source, job.preset)
    base = models.load_student(models.base_of(source, job.base), job.preset)
    return models.load_adapter(base, Path(source))
