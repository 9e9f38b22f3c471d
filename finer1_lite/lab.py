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
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from finer1_lite import cot, metrics, models, paperbirds, prompts
from finer1_lite.data.benchmark import Benchmark, Condition
from finer1_lite.data.folders import Reading
from finer1_lite.evaluate import StudentAnswerer, evaluate_all, join
from finer1_lite.presets import Preset
from finer1_lite.runtime import distributed, files
from finer1_lite.runtime.devices import machine
from finer1_lite.runtime.files import DataError, fingerprint, open_folder, write_atomically
from finer1_lite.runtime.workers import choose_workers, worker_pool
from finer1_lite.sft import chain_rows, train_sft
from finer1_lite.species import Collection, load_folder, write_attribution
from finer1_lite.students import card as cards
from finer1_lite.students.card import Card, CardClass, Measured
from finer1_lite.students.pretrain import prepare_base
from finer1_lite.tapo import train_tapo

log = logging.getLogger("finer1_lite")
STAGES = {"sft": "SFT", "tapo": "TAPO"}  # folder of an adapter -> its model in the records


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
    unseen_share: float = 0.4  # of the photographs' classes
    reading: Reading = Reading()  # how the folder of photographs is read
    chains: cot.Chains | None = None  # of stage 1, written elsewhere; None: the teacher's
    report_to: str = "none"  # tracker that stage 2 is logged to: train_tapo's `report_to`

    def collection(self) -> tuple[Collection, cot.ChainWriter]:
        """The data and the teacher that writes chains about them."""
        shots = self.preset.shots
        if self.photos is None:
            world = paperbirds.make_world(self.world_seed)
            birds = paperbirds.collection(world, shots=shots, test=self.preset.test_pictures)
            return birds, cot.oracle(world)
        own = ("unseen_share", "descriptions", "coarse", "reading")
        words = {name: getattr(self, name) for name in own}
        found = load_folder(self.photos, shots=shots, **words)
        if self.chains is None:
            cot.require_descriptions(found, f"{self.photos}: the teacher")
        else:
            found = cot.described_by(found, self.chains)
        return found, lambda photo, rng: cot.table_chain(found, photo.species, rng)

    def config(self, collection: Collection) -> dict:
        """What must be equal for a folder's content to be used again."""
        own = {}
        if self.photos is not None:
            own["descriptions"] = fingerprint([one.description for one in collection.species])
        if self.chains is not None:
            own["chains"] = fingerprint([str(row) for row in self.chain_rows(collection)])
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
            **own,
        }

    def chain_rows(self, collection: Collection) -> list[dict]:
        """The lines of chains.jsonl for the chains that were written elsewhere."""
        return [
            {"photo": photo.id, "species": photo.species, "chain": chain}
            for photo in collection.train
            for chain in cot.several((self.chains or {}).get(photo.id, ()))
        ]


def run(job: Run, workers: int = 0, fresh: bool = False) -> Path:
    """Do the whole job; returns the run's folder, which holds metrics.json when it is done."""
    collection, teacher = job.collection()
    if job.chains is not None:
        cot.check_chains(collection, job.chains)
    config = job.config(collection)
    distributed.on_main_process(lambda: open_folder(job.folder, config, fresh, keep="chains"))
    attribution = job.folder / "attribution.csv"
    distributed.on_main_process(lambda: write_attribution(collection, attribution))
    if distributed.broadcast((job.folder / "metrics.json").exists()):
        log.info("this run is finished; --fresh starts it over")
        distributed.on_main_process(lambda: write_cards(job, collection))
        return job.folder
    start = time.time()
    resumed = (job.folder / "chains.jsonl").exists()
    start_of = (job.preset, job.folder, job.world_seed, collection if job.photos else None)
    start_of += ([row["chain"] for row in job.chain_rows(collection)],)
    base = distributed.on_main_process(lambda: prepare_base(*start_of))
    preset = job.preset
    student = StudentAnswerer(models.load_student(base, preset), "base", preset.max_new_tokens)
    distributed.on_main_process(lambda: write_chains(job, collection, teacher))
    evaluate_on(collection, student, job.folder / "base", preset, "answer", "think")
    del student
    run_seeds(job, base, workers)
    distributed.wait()
    minutes = round((time.time() - start) / 60, 1)
    facts = {"minutes of the start that finished": minutes, "resumed": resumed}
    distributed.on_main_process(lambda: finish(job, facts))
    distributed.on_main_process(lambda: write_cards(job, collection))
    return job.folder


def write_chains(job: Run, collection: Collection, teacher: cot.ChainWriter) -> None:
    """The chains of the training pictures, given or the teacher's, into chains.jsonl."""
    path = job.folder / "chains.jsonl"
    train = collection.train
    if job.chains is not None:
        files.write_lines(path, job.chain_rows(collection))
    elif not path.exists():
        chains = cot.make_chains(collection, teacher, seed=0)
        rows = [{"photo": p.id, "species": p.species, "chain": chains[p.id]} for p in train]
        files.write_lines(path, rows)


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
    folder = job.folder / f"seed{seed}"
    for stage, model in STAGES.items():
        out = folder / stage
        if not (out / "done").exists():
            train_stage(job, collection, base, stage, seed)
            if distributed.is_main():
                shutil.rmtree(out / "checkpoints", ignore_errors=True)
                (out / "done").touch()
        if distributed.is_main() and cards.read_card(out) is None:
            cards.write_card(out, card_of(job, collection, base, stage, seed))
        distributed.wait()
        student = models.load_adapter(models.load_student(base, job.preset), out)
        answerer = StudentAnswerer(student, model, job.preset.max_new_tokens, seed)
        evaluate_on(collection, answerer, folder, job.preset, "think")


def train_stage(job: Run, collection: Collection, base: Path | str, stage: str, seed: int) -> None:
    """Train the adapter of one stage: "sft", or "tapo" from where "sft" ended."""
    folder = job.folder / f"seed{seed}"
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
        rows = chain_rows(collection, chains)
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
    summary = metrics.summarise(metrics.read_records(job.folder / "records.jsonl"))
    write_atomically(job.folder / "timing.json", json.dumps({**facts, **machine()}).encode())
    write_atomically(job.folder / "metrics.json", json.dumps(summary, indent=1).encode())


# --- the cards of its adapters -------------------------------------------------------------


def card_of(job: Run, collection: Collection, base: Path | str, stage: str, seed: int) -> Card:
    """What an adapter of this run is made of, its accuracy left out."""
    folder = job.folder / f"seed{seed}" / stage
    preset = job.preset
    prompt = preset.tapo.prompt if stage == "tapo" else "think"
    files = ((p.id, p.source if isinstance(p.source, Path) else None) for p in collection.train)
    return Card(
        base=cards.relative(base, folder),
        stage=STAGES[stage],
        seed=seed,
        coarse=collection.coarse,
        classes=tuple(
            CardClass(**{name: getattr(one, name) for name in CardClass.model_fields})
            for one in collection.species
        ),
        prompt=prompt,
        question=prompts.question(prompt, collection.coarse),
        max_new_tokens=preset.max_new_tokens,
        pixels=preset.pixels,
        shots=preset.shots,
        trained_on=cards.hashes(files),
        **_origin(job, folder),
    )


def _origin(job: Run, folder: Path) -> dict[str, Any]:
    """The fields of a card about where the pictures came from, and the settings."""
    where = {"photos": job.photos, "descriptions": job.descriptions}
    settings = job.preset.to_dict()
    if settings["student"] != "assets":  # a keyword, whatever folder is called so here
        settings["student"] = cards.relative(settings["student"], folder)
    return {
        **{name: cards.relative(path, folder) for name, path in where.items() if path},
        "world_seed": None if job.photos else job.world_seed,
        "unseen_share": job.unseen_share,
        "folder_options": asdict(job.reading),
        "settings": settings,
    }


def write_cards(job: Run, collection: Collection) -> None:
    """Give every adapter of an evaluated run its card, where it has none with its accuracy."""
    records = job.folder / "records.jsonl"
    frame = None  # read when wanted: it takes seconds
    for seed, (stage, model) in product(job.seeds, STAGES.items()):
        folder = job.folder / f"seed{seed}" / stage
        card = cards.read_card(folder)
        if not folder.is_dir() or (card and (card.measured or not records.is_file())):
            continue
        card = card or card_of(job, collection, _base_below(job, folder), stage, seed)
        if records.is_file():
            frame = metrics.table(metrics.read_records(records)) if frame is None else frame
            rows = frame[(frame["model"] == model) & (frame["seed"] == seed)]
            card = card.model_copy(update={"measured": measured(rows)})
        cards.write_card(folder, card)


def measured(rows: pd.DataFrame) -> tuple[Measured, ...]:
    """The accuracy of a model's rows in each world, on seen and unseen classes."""
    numbers = ("accuracy", "low", "high", "n")
    found = []
    for split, task, part in metrics.parts(rows):
        cell = metrics.accuracy(part)
        found.append(Measured(task=task, split=split, **{name: cell[name] for name in numbers}))
    return tuple(found)


def _base_below(job: Run, folder: Path) -> str:
    """The base of an adapter that an older version left without a card."""
    try:
        return models.base_of(folder)
    except DataError:
        return job.preset.student
