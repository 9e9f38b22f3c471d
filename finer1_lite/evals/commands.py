"""The commands audit, evaluate, report, analyse and ablate: their options and what they start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finer1_lite.chains.commands import EndpointOptions
from finer1_lite.presets import Preset, Size
from finer1_lite.runtime.options import argument, key_values, option, read_key_values

if TYPE_CHECKING:
    from finer1_lite.evals.ablate import Study
    from finer1_lite.evals.examine import Job

Task = Literal["open", "closed"]
ENDPOINT_TOKENS = 1024  # of a completion over HTTP, where no limit is given


@dataclass(frozen=True, kw_only=True)
class AuditCommand:
    """What is wrong with question files or picture folders.

    Finds position leaks, labels inside wrong options, contradictions, classes both seen and
    unseen, near-duplicates between train and test; says what an image-free answerer scores.
    """

    paths: tuple[Path, ...] = argument(
        "<data set>_<seen|unseen>.jsonl, or a folder of class folders", metavar="FILE"
    )

    def start(self) -> None:
        """Print the report."""
        from finer1_lite.evals import audit

        print("\n".join(audit.report_lines(self.paths)))


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What models are asked about: photographs, released question files, or paper birds."""

    photos: Path | None = option(None, "folder of photographs, DIR/<class>/*.jpg")
    files: tuple[Path, ...] = option((), "released question files", nargs="*")
    images: Path | None = option(None, "folder of the pictures that --files name")
    allow_missing: bool = option(False, "leave out and count questions whose picture is missing")
    world_seed: int = option(0, "which world of paper birds, without --photos and --files")
    unseen_share: float = option(0.4, "share of --photos' classes kept unseen")
    coarse: str | None = option(None, 'what the pictures show, in a word ("bird")')

    test_pictures: int | None = option(None, "fresh paper birds a split")
    max_new_tokens: int | None = option(None, "length limit of a completion")
    batch: int | None = option(None, "questions answered at a time")

    def fields(self) -> dict[str, Any]:
        """What a job has under the same name."""
        names = ("photos", "files", "images", "allow_missing", "world_seed", "unseen_share")
        word = self.coarse or ("object" if self.photos else "bird")
        return {name: getattr(self, name) for name in names} | {"coarse": word}

    def preset(self, size: str, limit: int | None = None) -> Preset:
        """The preset of a size with what was given; `limit` where no --max-new-tokens was."""
        limit = self.max_new_tokens if self.max_new_tokens is not None else limit
        changes = {"test_pictures": self.test_pictures, "eval_batch": self.batch}
        changes = {k: v for k, v in (changes | {"max_new_tokens": limit}).items() if v is not None}
        return getattr(Preset, size)().with_(**changes)


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Examine any model, adapter or hub model.

    Asks every model every question under every prompt, with and without the picture, and writes
    OUT/NAME/records.jsonl and report.html. Killed and started again, it resumes.
    """

    models: tuple[str, ...] = argument(
        "folder of a model or an adapter, or a hub name; several adapters stand side by side",
        default=(),
        nargs="*",
        metavar="MODEL",
    )
    endpoint: str | None = option(
        None, "an OpenAI-compatible one, up to /v1; --model names models there", metavar="URL"
    )
    model: tuple[str, ...] = option((), "endpoint: models there", metavar="NAME")
    service: EndpointOptions
    base: str | None = option(None, "model below the adapters (default: as the adapter says)")
    name: str = option("evaluation", "name of the run")
    out: Path = option(Path("runs"), "folder of all runs")
    fresh: bool = option(False, "start over: delete the run of this name first")
    preset: Size = option("lab", "size: lab: a CPU, others: a GPU")
    prompts: tuple[str, ...] | None = option(
        None, "think, answer, exact, coarse, no_think (default: first three; two for --questions)"
    )
    tasks: tuple[Task, ...] = option(("open", "closed"), "with options (closed) or without (open)")
    order: Literal["rotate", "shuffle", "as_is"] = option(
        "rotate", "options: in every rotation, shuffled once by a seed, or as the file has them"
    )
    protocol: Literal["ours", "released"] = option(
        "ours", "released: --order as_is; both scorings stand in every table"
    )
    letters: bool = option(False, "put (A), (B) before options; letters count")
    samples: int = option(1, "completions a question; more than 1 are drawn at temperature 1")
    no_blind: bool = option(False, "leave out the model without the picture")
    source: SourceOptions
    questions: tuple[Path, ...] = option(
        (),
        "of your own about pictures: JSON lines with image, question, answer and, where wanted, "
        "options, aliases, split",
        nargs="*",
        metavar="FILE",
    )
    baselines: tuple[str, ...] = option((), "lite0, vision_tower, clip, clip_probe", nargs="*")
    clip: str | None = option(
        None,
        "CLIP or SigLIP of the baselines clip and clip_probe: hub name or folder "
        "(default: google/siglip-base-patch16-224)",
        metavar="NAME",
    )
    similarity: Literal["none", "minilm", "siglip"] = option(
        "none", "text encoder of the open world's semantic similarity"
    )

    def job(self) -> Job:
        """What is to be evaluated. ValueError lists every setting that makes no sense."""
        from finer1_lite.evals.endpoint import Remote
        from finer1_lite.evals.exam import Block
        from finer1_lite.evals.examine import Job

        self._check()
        order = "as_is" if self.protocol == "released" else self.order
        blocks = [
            Block(prompt, task, picture, order, self.letters, self.samples)
            for prompt in dict.fromkeys(self._prompts())
            for task in dict.fromkeys(self.tasks)
            for picture in ((True,) if self.no_blind else (True, False))
        ]
        remote = None
        if self.endpoint:
            remote = Remote(self.endpoint, self.model, **vars(self.service))
        return Job(
            folder=self.out / self.name,
            models=self.models,
            preset=self.source.preset(self.preset, ENDPOINT_TOKENS if self.endpoint else None),
            blocks=tuple(blocks),
            base=self.base,
            questions=self.questions,
            baselines=self.baselines,
            similarity=self.similarity,
            endpoint=remote,
            **self.source.fields(),
            **({"clip": self.clip} if self.clip else {}),
        )

    def _prompts(self) -> tuple[str, ...]:
        """Those that were given, or else the usual ones."""
        usual = ("think", "answer") if self.questions else ("think", "answer", "exact")
        return self.prompts or usual

    def _check(self) -> None:
        """ValueError listing the options that make no sense, alone or together."""
        from finer1_lite import prompts

        known = prompts.ABOUT if self.questions else prompts.PROMPTS
        problems = [
            f"--prompts {p}: choose of {', '.join(known)}"
            for p in self._prompts()
            if p not in known
        ]
        if self.samples < 1:
            problems.append(f"--samples {self.samples}: give 1 or more")
        if bool(self.source.photos) + bool(self.source.files) + bool(self.questions) > 1:
            problems.append("--photos, --files and --questions: give one of them")
        if self.questions and self.baselines:
            problems.append("--baselines: they name classes; own questions ask something else")
        if bool(self.endpoint) != bool(self.model):
            problems.append("--endpoint and --model: give both, or neither")
        if problems:
            raise ValueError("settings that make no sense:\n- " + "\n- ".join(problems))

    def start(self) -> None:
        """Evaluate, and name the page."""
        from finer1_lite.evals import examine

        print(f"report: {examine.run(self.job(), fresh=self.fresh)}")


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Remake every table and figure of a run from its records.

    Writes report.html and report.md into RUN. With RUN2: a page in RUN2 that puts the two side by
    side, with the pictures on which they differ.
    """

    run: Path = argument("folder with a records.jsonl or an analysis.jsonl", metavar="RUN")
    other: Path | None = argument("a second such folder", default=None, nargs="?", metavar="RUN2")
    photos: Path | None = option(None, "folder of the pictures that a page shows")

    def start(self) -> None:
        """Write the page and name it."""
        from finer1_lite.evals import evalreport

        photos = evalreport.photo_source(self.photos)
        if self.other is None:
            page = _write_page(self.run, photos)
        else:
            page = evalreport.write_comparison(self.run, self.other, photos)
        print(f"report: {page}")


def _write_page(run: Path, photos: Callable) -> Path:
    """The page of a run, until `evals.report.write_report` knows every kind of run."""
    from finer1_lite.evals import evalreport, report

    if (run / "analysis.jsonl").exists():
        return evalreport.write_analysis(run)
    if (run / "chains.jsonl").exists():  # of `lab`
        return report.write_report(run, photos)
    return evalreport.write(run)


@dataclass(frozen=True, kw_only=True)
class AnalyseCommand:
    """Better use of knowledge, or more? Probes, quiz, faithfulness.

    Measures a student before and after training (linear probes, CKA, a quiz in words, whether
    answers follow the chain and the picture, a covered mark) and writes OUT/NAME/analysis.jsonl
    and report.html. Killed and started again, it resumes.
    """

    models: tuple[str, str] = argument("before and after: folders or hub names", metavar="MODEL")
    base: str | None = option(None, "model below the adapters (default: as the adapter says)")
    name: str = option("analysis", "name of the run")
    out: Path = option(Path("runs"), "folder of all runs")
    fresh: bool = option(False, "start over: delete the run of this name first")
    preset: Size = option("lab", "size: lab: a CPU, others: a GPU")
    source: SourceOptions

    def job(self) -> Job:
        """What is to be analysed."""
        from finer1_lite.evals.examine import Job

        return Job(
            folder=self.out / self.name,
            models=self.models,
            preset=self.source.preset(self.preset),
            blocks=(),
            base=self.base,
            **self.source.fields(),
        )

    def start(self) -> None:
        """Measure, and name the page."""
        from finer1_lite.evals import examine

        print(f"report: {examine.analyse(self.job(), fresh=self.fresh)}")


@dataclass(frozen=True, kw_only=True)
class AblateCommand:
    """What each part of TAPO contributes: rows x seeds x worlds, a table, a figure.

    Trains SFT, CLS-RL, DAPO, TAPO and TAPO without each of its parts from the same start and
    budget, and writes OUT/NAME/ablation.md. Killed and started again, it resumes; rows asked for
    later are added.
    """

    name: str = option("ablation", "name of the study")
    out: Path = option(Path("runs"), "folder of all runs")
    rows: tuple[str, ...] | None = option(None, "rows of the table (default: all)")
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "training seeds")
    worlds: tuple[int, ...] = option((0, 1), "worlds of paper birds")
    workers: int = option(0, "trainings side by side; 0: one a core")
    settings: tuple[str, ...] = key_values("other settings of the lab preset, as tapo.steps=20")

    def job(self) -> Study:
        """The study that is asked for. ValueError naming the rows that do not exist."""
        from finer1_lite.evals.ablate import ROWS, Study

        unknown = [row for row in self.rows or () if row not in ROWS]
        if unknown:
            raise ValueError(f"--rows {' '.join(unknown)}: choose among {', '.join(ROWS)}")
        exact = {"tapo__negative_rollouts": 0}  # the objective itself; its estimate is a row
        preset = Preset.lab().with_(**exact | read_key_values(self.settings))
        rows = self.rows or tuple(ROWS)
        return Study(self.out / self.name, preset, rows, self.seeds, self.worlds)

    def start(self) -> None:
        """Train what is missing, and name the table."""
        from finer1_lite.evals import ablate

        print(f"table: {ablate.run(self.job(), workers=self.workers)}")
