"""The commands lab, pretrain, bench, plan, merge, demo, grade: their options, what they start."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finer1_lite.data.commands import PhotoOptions
from finer1_lite.presets import FOR_CPU, Preset, Quantize, Size
from finer1_lite.runtime.files import distinct, require
from finer1_lite.runtime.options import argument, given, key_values, option, read_key_values

if TYPE_CHECKING:
    from finer1_lite.data.runs import Run

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Tracker = Literal["none", "tensorboard", "wandb", "trackio"]


@dataclass(frozen=True, kw_only=True)
class LabCommand(PhotoOptions):
    """The whole job: chains, SFT, TAPO, evaluation, report.

    Writes OUT/NAME/report.html. Killed and started again, it resumes.
    """

    computes = True
    template: bool = option(
        False, "only write DIR/descriptions.csv with every class of --photos, for you to fill in"
    )
    name: str | None = option(None, "name of the run (default: lab, or the photo folder's)")
    out: Path = option(Path("runs"), "folder of all runs")
    fresh: bool = option(False, "start over: delete the run of this name first")
    preset: Size = option("lab", "size: lab, laptop: a CPU; others: a GPU")
    student: str | None = option(None, "folder or hub name of the model, instead of the preset's")
    world_seed: int = option(0, "which paper birds; without a shipped student, pretrains one first")
    seeds: tuple[int, ...] | None = option(
        None, "training seeds (default: 0 1 2; 0 alone with a preset for a GPU)"
    )
    workers: int = option(0, "seeds trained at a time; 0 chooses")
    quantize: Quantize | None = option(None, "nf4: 4-bit weights (QLoRA)")
    sft_steps: int | None = option(None, "optimiser steps of stage 1")
    tapo_steps: int | None = option(None, "optimiser steps of stage 2")
    test_pictures: int | None = option(None, "birds a split; of a folder, pictures in all, at most")
    chains: Path | None = option(
        None, "stage 1 learns these: reviewed.jsonl of `cot make`, TRL's rows or sharegpt JSON"
    )
    teacher: Literal["table", "local", "endpoint", "student"] | None = option(
        None, "for --photos: writes the chains first, into OUT/NAME/chains (see `cot make`)"
    )
    teacher_model: str | None = option(None, "of --teacher local or endpoint: `cot make --model`")
    url: str = option("http://localhost:8000/v1", "of --teacher endpoint: up to /v1")
    key_env: str = option("OPENAI_API_KEY", "of --teacher endpoint: variable of the key")
    reward: tuple[str, ...] = option(
        (),
        "a function(completions, **columns) as TRL calls it, from the working directory or a "
        "package: paid besides name and form; tapo.keep=all keeps groups that it alone tells apart",
        metavar="MODULE:FUNCTION=WEIGHT",
        action="extend",
    )
    report_to: Tracker = option("none", "tracker that stage 2 is logged to besides its folder")
    settings: tuple[str, ...] = key_values(
        "any other setting, e.g. tapo.groups=4 tapo.negative_grad=true", nargs="*"
    )

    def job(self) -> Run:
        """The run that is asked for. ValueError listing the settings that make no sense."""
        from finer1_lite.data.runs import Run

        birds = self.photos is None
        preset = getattr(Preset, self.preset)()
        if self.preset == "lab" and not birds:
            preset = Preset.lab_photos()
        changes = given(self, "student", "quantize", "test_pictures", "shots")
        changes |= given(self, sft_steps="sft__steps", tapo_steps="tapo__steps")
        changes |= {"tapo__rewards": " ".join(self.reward)} if self.reward else {}
        usual = (0, 1, 2) if self.preset == "lab" else (0,)
        seeds, workers = list(usual if self.seeds is None else self.seeds), self.workers
        if not distinct(seeds) or workers < 0:
            raise ValueError(f"--seeds {seeds} must differ, none (nor --workers {workers}) below 0")
        if self.teacher and (birds or self.chains):
            raise ValueError("--teacher writes chains for --photos, and --chains are written")
        return Run(
            folder=self.out / (self.name or ("lab" if birds else self.photos.resolve().name)),
            preset=preset.with_(**changes).with_(**read_key_values(self.settings)),
            chains=read_chains(self.chains) if self.chains else None,
            seeds=tuple(seeds),
            **given(self, "world_seed", "report_to"),
            **self.origin(),
        )

    def taught(self, job: Run) -> Run:
        """The run with the chains that `--teacher` writes, and a person may have reviewed."""
        from finer1_lite.chains.commands import EndpointOptions, MakeCommand, PictureOptions
        from finer1_lite.runtime.files import require_usable

        folder, own = job.folder / "chains", job.preset.student
        named = own if self.teacher == "student" and own != "assets" else None
        make = MakeCommand(
            pictures=PictureOptions(world_seed=job.world_seed),
            out=folder,
            model=self.teacher_model or named,
            quantize=job.preset.quantize,
            service=EndpointOptions(key_env=self.key_env),
            **given(self, "teacher", "url"),
        )
        chains = make.job(replace(job, chains={}).collection()[0])
        require_usable(job.folder, folder.name)
        replace(chains, whole=False).build()
        return replace(job, chains=read_chains(folder / "reviewed.jsonl"))

    def start(self) -> None:
        """Do the job and write its page, the main process alone."""
        from finer1_lite import lab
        from finer1_lite.data.folders import write_template
        from finer1_lite.evals.report import write_report
        from finer1_lite.runtime import distributed

        if self.template:
            if self.photos is None:
                raise ValueError("--template needs --photos")
            print(f"fill in: {write_template(self.photos.expanduser(), self.reading())}")
            return
        job = self.job()
        if self.teacher:
            job = distributed.on_main_process(lambda: self.taught(job))
        folder = lab.run(job, workers=self.workers, fresh=self.fresh)
        if distributed.is_main():
            found = job.collection()[0]
            photos = {photo.id: photo for photo in (*found.test, *found.train)}
            print(f"report: {write_report(folder, lambda name: photos[name].image())}")


def read_chains(path: Path) -> dict[str, tuple[str, ...]]:
    """Photo id -> its chains, of a file in any format. DataError where there is none."""
    from finer1_lite.chains import formats
    from finer1_lite.runtime.files import DataError

    if not path.is_file():
        raise DataError([f"{path}: there is no such file"], "no chains:")
    found: dict[str, tuple[str, ...]] = {}
    for record in formats.read_any(path)[0]:
        found[record.photo] = (*found.get(record.photo, ()), record.chain)
    return found


@dataclass(frozen=True, kw_only=True)
class PretrainCommand:
    """Make the lab student of a world.

    Pretrains the tiny Qwen2.5-VL on describing birds and on the field guide of all species,
    probes it, and writes weights and record.json.
    """

    computes = True
    world_seed: int = option(0, "which world of paper birds")
    steps: int | None = option(None, "optimiser steps")
    seed: int = option(0, "seed of weights and data")
    out: Path = option(Path("runs"), "folder for the student")

    def start(self) -> None:
        """Pretrain, and print the record."""
        from finer1_lite.students.lab_student import asset_folder
        from finer1_lite.students.pretrain import pretrain

        out = asset_folder(self.world_seed, self.out)
        record = pretrain(self.world_seed, out, **given(self, "seed", "steps"))
        print(json.dumps(record, indent=1))


@dataclass(frozen=True, kw_only=True)
class BenchCommand:
    """What a step of our DAPO and our TAPO costs, beside TRL's GRPOTrainer.

    On the same weights, prompts and number of completions: seconds by phase, tokens a second,
    peak memory, pictures encoded.
    """

    computes = True
    preset: Size = option("lab", "size: lab, laptop: a CPU; others: a GPU")
    full: bool = option(False, "a 3B model on one GPU: memory and rollouts against the plan")
    groups: int | None = option(None, "anchors a step (default: 2; 1 with --full)")
    steps: int = option(3, "counted steps a row, after a warm-up step")
    json: Path | None = option(None, "write the rows to this file", metavar="FILE")

    def start(self) -> None:
        """Measure, print the table, and write it where a file is named."""
        from finer1_lite import models
        from finer1_lite.tools import bench

        groups = self.groups if self.groups is not None else 1 if self.full else 2
        counts = {"--steps": self.steps, "--groups": groups}
        require({f"{name} {value}: 1 or more": value >= 1 for name, value in counts.items()})
        no_gpu = "--full needs a CUDA GPU and there is none here; `bench` without it runs"
        require({no_gpu: not self.full or models.choose_device().type == "cuda"})
        if self.full:
            bench.measure_full(bench.full_preset(groups), steps=self.steps, json_path=self.json)
        else:
            preset = getattr(Preset, self.preset)().with_(tapo__groups=groups)
            bench.measure(preset, steps=self.steps, json_path=self.json)


@dataclass(frozen=True, kw_only=True)
class PlanCommand:
    """What a run takes of a card's memory, and how many minutes, before anything is loaded.

    What each part takes in each phase, the largest settings that fit, what to lower first.
    Minutes: of a card here that --gpu does not name, measured in ten seconds; else assumed rates.
    """

    model: str | None = option(None, "hub name, folder, or random:NAME (default: the preset's)")
    gpu: str = option("15", "memory of the card, or its name: T4, A100-40, RTX 3060", metavar="GIB")
    preset: Size = option("t4", "settings to start from")
    settings: tuple[str, ...] = key_values(
        "other settings, such as tapo.groups=2 max_new_tokens=256"
    )
    text_tokens: int = option(96, "tokens of a prompt beside its picture")
    dtype: Dtype = option("auto", "float32: what a T4 falls back to where float16 overflows")
    json: Path | None = option(None, "also write the plan to FILE", metavar="FILE")

    def start(self) -> None:
        """Print the plan, and write it where a file is named."""
        import torch

        from finer1_lite.runtime.files import write_atomically
        from finer1_lite.tools import minutes, plan

        gib = plan.card_gib(self.gpu)
        if not (0 < gib < 10_000 and self.text_tokens > 0):
            raise ValueError(f"--gpu {gib}, --text-tokens {self.text_tokens}: above 0")
        changes = read_key_values(self.settings) | given(self, model="student")
        preset = getattr(Preset, self.preset)().with_(**changes)
        on_cpu = self.preset in FOR_CPU
        numbers = "float32" if self.dtype == "auto" and on_cpu else self.dtype
        dtype = None if numbers == "auto" else getattr(torch, numbers)
        own = dict(gpu_gib=gib, text_tokens=self.text_tokens, dtype=dtype)
        found = plan.memory_plan(preset, **own)
        rates = minutes.choose(self.gpu, gib, on_cpu)
        long = minutes.Minutes(found.load, rates)
        if self.json is not None:
            time = {"source": rates.source, "seconds": long.seconds}
            written = found.to_dict() | {"time": time}
            write_atomically(self.json, json.dumps(written, indent=1).encode())
        print(found, long, "" if on_cpu else plan.choices(changes), sep="\n\n")


@dataclass(frozen=True, kw_only=True)
class MergeCommand:
    """Adapter + base -> a plain model folder, which transformers loads without this project."""

    adapter: Path = argument("folder of the adapter, or of a run")
    out: Path = argument("folder to write; must not exist or be empty")
    base: str | None = option(None, "base model, where the adapter's card is not enough")
    dtype: Dtype = option("auto", "of the written weights; auto: as the base is saved")

    def start(self) -> None:
        """Merge, and name the folder."""
        from finer1_lite.tools.publish import merge

        print(f"model: {merge(self.adapter, self.out, self.base, self.dtype)}")


@dataclass(frozen=True, kw_only=True)
class DemoCommand:
    """A page on this machine that names a photograph, says why, and shows look-alikes.

    Needs gradio (requirements-demo.txt). Nothing is kept and nothing leaves the machine.
    """

    computes = True
    model: Path = argument("run, adapter or merged model with its card", metavar="MODEL")
    port: int = option(7860, "the page is http://127.0.0.1:PORT")
    photos: Path | None = option(
        None, "pictures of the classes (default: as the card says)", metavar="DIR"
    )
    unknown: float = option(0.5, "a name with a confidence under this is called unknown")

    def start(self) -> None:
        """Show the page until Ctrl-C. ValueError for options that make no sense."""
        with socket.socket() as one:  # does some program of this machine listen there already?
            taken = 0 < self.port < 65536 and one.connect_ex(("127.0.0.1", self.port)) == 0
        rules = {
            f"--port {self.port}: give 1024 to 65535": 1024 <= self.port <= 65535,
            f"--port {self.port}: is in use, give another": not taken,
            f"--unknown {self.unknown}: give 0 to 1": 0 <= self.unknown <= 1,
        }
        require(rules)
        from finer1_lite.tools import demo

        demo.serve(self.model, self.port, self.photos, self.unknown)


@dataclass(frozen=True, kw_only=True)
class GradeCommand:
    """Check the exercises of notebooks: of a learner's own, or of a whole class.

    Each is run alone, as you, on inputs drawn anew. Exit code 1 where one is not passed.
    """

    notebooks: tuple[Path, ...] = argument(
        "notebooks, saved, or folders of such", metavar="NOTEBOOK"
    )
    seed: int | None = option(None, "draw the inputs of an earlier grading, which printed this")
    limit: float = option(30.0, "seconds an exercise may take, without loading torch")
    json: Path | None = option(
        None, "write a row for each notebook and exercise to FILE", metavar="FILE"
    )

    def start(self) -> int:
        """Check, print, and write the rows where a file is named; the exit code."""
        from finer1_lite.tools.grade import grade

        require({f"--limit {self.limit}: give seconds above 0": self.limit > 0})
        return int(not grade(self.notebooks, self.seed, self.limit, self.json))
