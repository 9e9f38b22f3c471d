"""The job behind `python -m finer1_lite evaluate`: pictures, a student, blocks, records."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from finer1_lite import models, paperbirds
from finer1_lite.evals import (
    baselines,
    evalreport,
    exam,
)
from finer1_lite.evals import (
    endpoint as remote,
)
from finer1_lite.evals import (
    similarity as openworld,
)
from finer1_lite.evals.exam import Block, Exam
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.runtime import files as jsonl
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.files import (
    DataError,
    fingerprint,
    open_folder,
    write_atomically,
    write_lines,
)
from finer1_lite.species import Collection, load_folder

log = logging.getLogger("finer1_lite")
CLIP = "google/siglip-base-patch16-224"  # of the baselines clip and clip_probe


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
    questions: tuple[Path, ...] = ()  # of one's own about pictures
    images: Path | None = None
    allow_missing: bool = False
    unseen_share: float = 0.4
    coarse: str = "bird"
    baselines: tuple[str, ...] = ()
    clip: str = CLIP
    similarity: str = "none"  # none, or one of openworld.ENCODERS
    endpoint: remote.Remote | None = None  # models that answer over HTTP

    def collection(self) -> Collection | None:
        """The pictures with their training shots; None for question files."""
        p = self.preset
        if self.files or self.questions:
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
            "job": "an evaluation",
            "name": self.folder.name,
            "models": list(self.models),
            "base": self.base,
            "endpoint": self.endpoint and [self.endpoint.url, *self.endpoint.models],
            "blocks": [block.name for block in self.blocks],
            "baselines": list(self.baselines),
            "clip": self.clip if {"clip", "clip_probe"} & set(self.baselines) else None,
            "world_seed": None
            if asked.released or self.photos or self.questions
            else self.world_seed,
            "pictures": len(asked.items),
            "missing": asked.missing,
            "data": fingerprint([f"{i.photo}/{i.label}" for i in asked.items]),
            "preset": self.preset.to_dict(),
        }


def run(job: Job, fresh: bool = False) -> Path:
    """Answer everything that is not answered yet, and write the report; its path.

    DataError at the end where an endpoint left questions without answer, all else written.
    """
    collection = job.collection()
    asked = the_exam(job, collection)
    names = model_names(job)
    _check(job, names)
    open_folder(job.folder, job.config(asked), fresh)
    for source in job.models:
        student = load(source, job)
        for block in job.blocks:
            _answer(student, asked, block, names[source], job)
        del student
    left = _ask_endpoint(job, asked) if job.endpoint else []
    for name in job.baselines:
        baselines.answer(name, collection, asked, job)
    write_records(job)
    page = evalreport.write(job.folder)
    if left:
        raise DataError(left, f"not all is answered ({page}); the same command asks the rest:")
    return page


def _check(job: Job, names: dict[str, str]) -> None:
    """DataError naming every model that cannot be examined."""
    problems = [f"{m}: {problem}" for m in job.models if (problem := _unusable(m, job))]
    given = [*job.models, *(job.endpoint.models if job.endpoint else ())]
    if len({exam.answers_folder(job.folder, name) for name in names.values()}) < len(given):
        problems.append(f"{', '.join(given)}: two have the same name; rename a folder")
    if not names:
        problems.append("no model is named; give folders, hub names, or --endpoint and --model")
    if not job.models and "vision_tower" in job.baselines:
        problems.append("--baselines vision_tower: needs a model of this machine, give one")
    if problems:
        raise DataError(problems, "these models cannot be examined:")
    if job.endpoint:
        for model in job.endpoint.models:  # refuses an address that cannot work
            job.endpoint.endpoint(model, job.endpoint.ledger(), 1, 0.0)


def _ask_endpoint(job: Job, asked: Exam) -> list[str]:
    """Every block by every model of the endpoint; returns what is left without answer."""
    ledger, left = job.endpoint.ledger(), []
    for model in job.endpoint.models:
        for block in job.blocks:
            n = remote.answer(
                job.endpoint, model, asked, block, job.folder, ledger, job.preset.max_new_tokens
            )
            left += [f"{model} {block.name}: {n} questions without answer"] if n else []
    counts = json.dumps(ledger.to_dict(), indent=1)
    write_atomically(job.folder / "requests.json", counts.encode())
    log.info("requests of this start: %s", counts)
    return left


def analyse(job: Job, fresh: bool = False) -> Path:
    """Every part of `analysis.parts` of the job's two models; the path of the page.

    A part that was measured is kept, so that a killed analysis goes on with the next.
    """
    from finer1_lite.evals import analysis

    collection, names = job.collection(), model_names(job)
    if collection is None:
        raise DataError(
            ["--files: bring no descriptions and no training pictures; give --photos"],
            "nothing to analyse:",
        )
    _check(job, names)
    asked = the_exam(job, collection)
    open_folder(job.folder, job.config(asked) | {"job": "an analysis"}, fresh)
    world = None if job.photos else paperbirds.make_world(job.world_seed)
    both = {when: load(m, job) for when, m in zip(("before", "after"), job.models)}
    made = analysis.parts(both, collection, world, job.preset.max_new_tokens)
    with progress_bar(len(made), "analysis") as bar:
        for name, measure in made.items():
            path = job.folder / "parts" / f"{name}.jsonl"
            if not path.exists():
                write_lines(path, measure())
            bar.update()
    rows = [row for name in made for _, row in jsonl.read(job.folder / "parts" / f"{name}.jsonl")]
    write_lines(job.folder / "analysis.jsonl", rows)
    return evalreport.write_analysis(job.folder)


def write_records(job: Job) -> None:
    """Join the blocks; add the open world's similarity where an encoder was asked for."""
    text = exam.join(job.folder)
    if job.similarity != "none":
        rows = [json.loads(line) for line in text.split("\n") if line]
        evalreport.add_similarity(rows, openworld.load_encoder(job.similarity))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(job.folder / "records.jsonl", text.encode())


def the_exam(job: Job, collection: Collection | None) -> Exam:
    if job.questions:
        return Exam.of_questions(job.questions, job.images or Path(), job.allow_missing)
    if collection is None:
        return Exam.of_files(job.files, job.images or Path(), job.allow_missing)
    dataset = job.photos.resolve().name if job.photos else f"paperbirds{job.world_seed}"
    fine = "species" if job.photos is None else "kind"
    return Exam.of_collection(collection, dataset, fine)


def _answer(student: Student, asked: Exam, block: Block, name: str, job: Job) -> None:
    total = len(exam.questions(asked, block))
    with progress_bar(total, f"{name} {block.name}") as bar:
        for done in exam.answer_block(
            student,
            asked,
            block,
            name,
            exam.answers_folder(job.folder, name),
            max_new_tokens=job.preset.max_new_tokens,
            batch_size=job.preset.eval_batch,
        ):
            bar.update(done - bar.n)


# --- students ------------------------------------------------------------------------------


def model_name(source: str) -> str:
    """How a model is called in tables: the last folder's name, or the hub name."""
    path = Path(source)
    return path.resolve().name if path.exists() else source


def model_names(job: Job) -> dict[str, str]:
    """What each model of a job is called: `model_name`, with more of the path where two
    folders end alike ("dapo/seed0/tapo" beside "lab/seed0/tapo")."""
    parts = {m: Path(m).resolve().parts if Path(m).exists() else (m,) for m in job.models}
    names = {m: model_name(m) for m in job.models}
    for depth in range(2, 1 + max(map(len, parts.values()), default=0)):
        calls = list(names.values())
        twice = [m for m in names if calls.count(names[m]) > 1]
        names |= {m: "/".join(parts[m][-depth:]) for m in twice}
    return names | {m: m for m in (job.endpoint.models if job.endpoint else ())}


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
