"""The jobs behind the commands `evaluate` and `analyse`: models, pictures, conditions, records."""

import json
import logging
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from finer1_lite import models, paperbirds
from finer1_lite.data import benchmark as benchmarks
from finer1_lite.data.benchmark import NO_PROMPT, Benchmark, Condition
from finer1_lite.data.images import MOST
from finer1_lite.data.runs import Pictures
from finer1_lite.evals import analysis, baselines, facts, questions, report, similarity
from finer1_lite.evals.endpoint import EndpointAnswerer, Remote, evaluate_endpoint
from finer1_lite.evaluate import StudentAnswerer, answers_folder, evaluate_all, join, say_lost
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.runtime import files
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.devices import machine
from finer1_lite.runtime.files import DataError, write_atomically
from finer1_lite.species import Collection
from finer1_lite.students.card import adapter_of, is_adapter, read_card, relative, weights

log = logging.getLogger("finer1_lite")


@dataclass(frozen=True)
class Job(Pictures):
    """What is evaluated, on what, and where the records go."""

    folder: Path
    models: tuple[str, ...]
    preset: Preset
    conditions: tuple[Condition, ...] = ()
    base: str | None = None  # under an adapter; None: as the adapter says
    files: tuple[Path, ...] = ()  # of questions
    own: bool = False  # they are one's own about pictures, not released ones
    images: Path | None = None
    allow_missing: bool = False
    baselines: tuple[str, ...] = ()
    similarity: str = "none"  # none, or one of the encoders of `similarity`
    endpoint: Remote | None = None  # models that answer over HTTP

    def collection(self) -> Collection | None:
        """The pictures with their training shots; None for question files."""
        if self.files:
            return None
        found = self.of_preset(self.preset)
        if self.photos is None:
            return found
        found = facts.described(self.models, found)
        own = {photo.id: (photo.species, photo.source) for photo in found.test}
        trained = facts.trained_on(self.models, own)
        return replace(found, test=tuple(p for p in found.test if p.id not in trained))

    def benchmark(self, collection: Collection | None) -> Benchmark:
        """What is asked about: question files, or the test pictures of the collection."""
        if collection is None:
            root = self.images or Path()
            asked = questions.of_files(self.files, root, self.allow_missing, self.own)
            files_ = {item.photo: (item.label, item.image.args[0]) for item in asked.items}
            trained = facts.trained_on(self.models, files_)
            return replace(asked, items=tuple(i for i in asked.items if i.photo not in trained))
        if self.photos is None:
            return Benchmark.of_collection(collection, f"paperbirds{self.world_seed}", "species")
        asked = Benchmark.of_collection(collection, self.photos.resolve().name)
        return facts.as_taught(self.models, asked)

    def config(self, benchmark: Benchmark, job: str = "an evaluation") -> dict:
        """What must be equal for a folder's records to be used again."""
        asked = [q for c in self.conditions for q in benchmarks.questions(benchmark, c)]
        drawn = not (benchmark.released or self.photos or self.own)
        shown = {i.photo: i.image.args[0] for i in benchmark.items} if self.files else {}
        return {
            "job": job,
            "name": self.folder.name,
            "models": list(self.models),
            "weights": [w for m in (*self.models, self.base) if m for w in weights(m)],
            "base": self.base,
            "endpoint": self.endpoint and [self.endpoint.url, *self.endpoint.models],
            "request": self.endpoint and list(self.endpoint.service.request or ()),
            "conditions": [condition.name for condition in self.conditions],
            "baselines": list(self.baselines),
            "world_seed": self.world_seed if drawn else None,
            "pictures": len(benchmark.items),
            "species": len({*chain(*benchmark.classes.values())}) if not self.own else None,
            "missing": benchmark.missing,
            "coarse": None if self.files else self.coarse,
            "photos": relative(self.photos, self.folder) if self.photos else None,
            "unseen_share": self.unseen_share if self.photos else None,
            "reading": asdict(self.reading),
            "data": files.fingerprint([f"{i.photo}/{i.label}" for i in benchmark.items]),
            "questions": files.fingerprint([f"{one.photo}/{one.text}" for one in asked]),
            "photographs": files.fingerprint([files.digest(path) for path in shown.values()]),
            "preset": self.preset.to_dict(),
        }


def run_evaluation(job: Job, fresh: bool = False) -> Path:
    """Ask everything that is not answered yet, and write the page; its path.

    DataError at the end where an endpoint left questions unanswered, all else written.
    """
    collection = job.collection()
    benchmark = job.benchmark(collection)
    names = _checked_names(job)
    files.open_folder(job.folder, job.config(benchmark) | job.contents(collection), fresh, "cache")
    for source in job.models:
        answerer = StudentAnswerer(load(source, job), names[source], job.preset.max_new_tokens)
        evaluate_all(answerer, benchmark, job.conditions, job.folder, job.preset.eval_batch)
        del answerer
    left = _ask_endpoint(job, benchmark) if job.endpoint else []
    plain = {c.task: Condition(NO_PROMPT, c.task, order=c.order) for c in job.conditions}
    for name in job.baselines:
        student = partial(load, job.models[0], job) if job.models else None
        train = collection.train if collection else None
        answerer = baselines.make(name, benchmark, train, student)
        evaluate_all(answerer, benchmark, list(plain.values()), job.folder, job.preset.eval_batch)
    rows = [json.loads(line) for line in join(job.folder).split("\n") if line]
    say_lost(rows)
    if job.similarity != "none":
        similarity.add(rows, similarity.load_encoder(job.similarity))
    files.write_lines(job.folder / "records.jsonl", rows)
    if not (job.folder / "timing.json").exists():
        write_atomically(job.folder / "timing.json", json.dumps(machine()).encode())
    pictures = {item.photo: item.image for item in benchmark.items}
    pictures |= {photo.id: photo.image for photo in collection.train} if collection else {}
    page = report.write_report(job.folder, lambda name: pictures[name]())
    files.require_none(
        left,
        f"not all is answered ({page}); once what is said here is mended, "
        f"the same command{', without --fresh,' if fresh else ''} asks the rest:",
    )
    return page


def _checked_names(job: Job) -> dict[str, str]:
    """What each model is called; DataError naming every one that cannot be evaluated."""
    names = model_names(job)
    problems = [problem for model in job.models if (problem := _unusable(model, job))]
    given = [*job.models, *(job.endpoint.models if job.endpoint else ())]
    if len({answers_folder(job.folder, name) for name in names.values()}) < len(given):
        problems.append(f"{', '.join(given)}: two have the same name; rename a folder")
    if not names:
        problems.append("no model is named; give folders, hub names, or --endpoint and --model")
    if not job.models and "vision_tower" in job.baselines:
        problems.append("--baselines vision_tower: needs a model of this machine, give one")
    files.require_none(problems, "these models cannot be evaluated:")
    for model in job.endpoint.models if job.endpoint else ():  # refuses a useless address
        job.endpoint.endpoint(model, job.endpoint.ledger(), 1, 0.0)
    return names


def _ask_endpoint(job: Job, benchmark: Benchmark) -> list[str]:
    """Every condition by every model of the endpoint; returns what is left unanswered."""
    ledger, left = job.endpoint.ledger(), []
    for model in job.endpoint.models:
        cache, limit = job.folder / "cache", job.preset.max_new_tokens
        answerer = EndpointAnswerer(model, job.endpoint, ledger, cache, limit)
        for condition in job.conditions:
            n = evaluate_endpoint(answerer, benchmark, condition, job.folder)
            what = f"{model} {condition.name}: {n} questions without answer ({answerer.why})"
            left += [what] if n else []
    counts = json.dumps(ledger.to_dict(), indent=1)
    write_atomically(job.folder / "requests.json", counts.encode())
    log.info("requests of this start: %s", counts)
    return left


def run_analysis(job: Job, fresh: bool = False) -> Path:
    """Every part of `analysis.parts` of the job's two models; the path of the page.

    A part that was measured is kept, so that a killed analysis goes on with the next.
    """
    collection = job.collection()
    _checked_names(job)
    config = job.config(job.benchmark(collection), "an analysis") | job.contents(collection)
    files.open_folder(job.folder, config, fresh)
    world = None if job.photos else paperbirds.make_world(job.world_seed)
    both = {w: load(m, job) for w, m in zip(("before", "after"), job.models, strict=True)}
    made = analysis.parts(both, collection, world, job.preset.max_new_tokens)
    paths = {name: job.folder / "parts" / f"{name}.jsonl" for name in made}
    with progress_bar(len(made), "analysis") as bar:
        for name, measure in made.items():
            if not paths[name].exists():
                files.write_lines(paths[name], measure())
            bar.update()
    rows = [row for path in paths.values() for _, row in files.read(path)]
    files.write_lines(job.folder / "analysis.jsonl", rows)
    return report.write_report(job.folder)


def model_name(source: str) -> str:
    """How a model is called in tables: the last folder's name, or the hub name."""
    path = Path(source)
    return path.resolve().name if path.exists() else source


def model_names(job: Job) -> dict[str, str]:
    """What each model of a job is called: `model_name`, with more of its path if need be.

    Need is where two folders end alike ("dapo/seed0/tapo" beside "lab/seed0/tapo").
    """
    parts = {m: Path(m).resolve().parts if Path(m).exists() else (m,) for m in job.models}
    names = {m: model_name(m) for m in job.models}
    for depth in range(2, 1 + max(map(len, parts.values()), default=0)):
        calls = list(names.values())
        twice = [m for m in names if calls.count(names[m]) > 1]
        names |= {m: "/".join(parts[m][-depth:]) for m in twice}
    return names | {m: m for m in (job.endpoint.models if job.endpoint else ())}


def _unusable(source: str, job: Job) -> str:
    """Why a model cannot be loaded, as far as files tell; "" for a hub name."""
    path = Path(source)
    if not path.exists() and (path.is_absolute() or source.startswith(".")):
        return f"{source}: does not exist; give a folder or a hub name"
    try:
        if path.exists():
            adapter_of(path)
        if is_adapter(source):
            models.base_of(source, job.base)
    except DataError as error:
        return error.problems[0]
    return ""


def load(source: str, job: Job) -> Student:
    """A model's folder, an adapter's folder, or a hub name -> a student, at its card's pixels."""
    preset = job.preset
    if card := read_card(source):
        preset = preset.with_(pixels=min(card.pixels, MOST))
    return models.load_trained(source, preset, job.base)
