"""The commands audit, evaluate, report, analyse, ablate, predict: options and what they start."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finer1_lite.chains.commands import EndpointOptions
from finer1_lite.data.commands import PhotoOptions
from finer1_lite.data.folders import Reading
from finer1_lite.presets import Preset, Size
from finer1_lite.runtime.files import DataError, distinct, require, text_of
from finer1_lite.runtime.options import argument, given, key_values, option, read_key_values

if TYPE_CHECKING:
    from finer1_lite.evals.ablate import Study
    from finer1_lite.evals.job import Job

Task = Literal["open", "closed"]
OF_PRESET = ("test_pictures", "max_new_tokens", "shots")
SETTLED = (*OF_PRESET, "quantize", "eval_batch")  # settings of the preset
ONE_OF = "--photos, --files and --questions: give one of them"
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
    all: bool = option(False, "show everything that is found, not a few examples")

    def start(self) -> None:
        """Print the report."""
        from finer1_lite.evals import audit

        print("\n".join(audit.report_lines(self.paths, self.all)))


@dataclass(frozen=True, kw_only=True)
class JobOptions(PhotoOptions):
    """What `evaluate` and `analyse` share: models, the run's folder, and what is asked about.

    What is left out is as the cards of the models say.
    """

    models: tuple[str, ...] = argument(
        "folders of runs, models or adapters, or hub names", default=(), nargs="*", metavar="MODEL"
    )
    base: str | None = option(None, "model below the adapters (default: as the card says)")
    name: str = option("evaluation", "name of the run")
    out: Path = option(Path("runs"), "folder of all runs")
    fresh: bool = option(
        False, "start over: delete the run of this name first, but for replies that were paid for"
    )
    preset: Size | None = option(
        None, "lab, laptop: a CPU; others: a GPU (default: as the card says)"
    )
    world_seed: int | None = option(None, "paper birds: which world (default: as the card says)")
    test_pictures: int | None = option(None, "birds a split; of a folder, pictures in all, at most")
    max_new_tokens: int | None = option(None, "limit of a completion (default: as the card says)")

    def make_job(self, limit: int | None = None, batch: int | None = None, **more: Any) -> Job:
        """A job with more settings, those of the command.

        limit: of tokens, where neither --max-new-tokens nor a card says it. batch: questions
        answered at a time.
        """
        from finer1_lite.evals.facts import settle, weights_of
        from finer1_lite.evals.job import Job

        models = tuple(weights_of(model) for model in self.models)
        preset = getattr(Preset, self.preset or "lab")()
        sized = {"quantize": preset.quantize} if self.preset else {}
        names = ("photos", "descriptions", "coarse", "unseen_share", "world_seed", *OF_PRESET)
        asked = sized | given(self, *names) | ({"eval_batch": batch} if batch is not None else {})
        if self.reading() != Reading():
            asked["reading"] = self.reading()
        settled = settle(models, asked, own=bool(more.get("files")))
        settled.setdefault("max_new_tokens", limit or preset.max_new_tokens)
        changes = {name: settled.pop(name) for name in SETTLED if name in settled}
        settled.setdefault("coarse", "object" if settled.get("photos") else "bird")
        return Job(
            folder=self.out / self.name,
            models=models,
            preset=preset.with_(**changes),
            **settled,
            **given(self, "base"),
            **more,
        )


def read_prompt(path: Path) -> tuple[str, str]:
    """("FILE@HASH", its words), by which records name it. DataError where there are none."""
    try:
        written = path.read_bytes()
        words = text_of(path).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError([f"{path}: {error}; give a text file in UTF-8"], "no prompt:") from error
    if not words:
        raise DataError([f"{path}: is empty; write the question into it"], "no prompt:")
    return f"{path.name}@{hashlib.sha256(written).hexdigest()[:8]}", words


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(JobOptions):
    """Examine any model, adapter or hub model.

    Every question under every prompt, with and without the picture; writes OUT/NAME/records.jsonl
    and report.html. Killed and started again, it resumes.
    """

    computes = True
    endpoint: str | None = option(
        None, "an OpenAI-compatible one, up to /v1; --model names models there", metavar="URL"
    )
    model: tuple[str, ...] = option((), "endpoint: models there", metavar="NAME")
    service: EndpointOptions
    prompts: tuple[str, ...] | None = option(
        None, "think, answer, exact, coarse, no_think (default: first three; two for --questions)"
    )
    prompt_files: tuple[Path, ...] = option(
        (),
        "ask in the words of these instead; {coarse} and {fine} are filled in, and {options}, "
        "without which the question is open",
        nargs="*",
        metavar="FILE",
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
    files: tuple[Path, ...] = option((), "released question files", nargs="*")
    images: Path | None = option(None, "folder of the pictures that --files name")
    allow_missing: bool = option(False, "leave out and count questions whose picture is missing")
    batch: int | None = option(None, "questions answered at a time")
    questions: tuple[Path, ...] = option(
        (),
        "of your own about pictures: JSON lines with image, question, answer and, where wanted, "
        "options, aliases, split",
        nargs="*",
        metavar="FILE",
    )
    baselines: tuple[str, ...] = option((), "lite0, vision_tower", nargs="*")
    similarity: Literal["none", "minilm", "siglip"] = option(
        "none", "text encoder of the open world's semantic similarity"
    )

    def job(self) -> Job:
        """What is to be evaluated. ValueError lists every option that makes no sense."""
        from finer1_lite import prompts
        from finer1_lite.data.benchmark import Condition
        from finer1_lite.evals.endpoint import Remote

        known = prompts.ABOUT if self.questions else prompts.PROMPTS
        usual = ("think", "answer") if self.questions else ("think", "answer", "exact")
        asked = dict.fromkeys(self.prompts or (() if self.prompt_files else usual))
        own = dict(map(read_prompt, self.prompt_files))  # name -> words
        worlds = {name: "closed" if "{options}" in own[name] else "open" for name in own}
        both = bool(self.endpoint) == bool(self.model)
        own_classes = "--baselines: they name classes; own questions ask something else"
        rules = {f"--prompts {one}: choose of {', '.join(known)}": one in known for one in asked}
        rules |= {
            f"--samples {self.samples}: give 1 or more": self.samples >= 1,
            ONE_OF: sum(map(bool, (self.photos, self.files, self.questions))) <= 1,
            own_classes: not (self.questions and self.baselines),
            "--endpoint and --model: give both, or neither": both,
            "--prompt-files: own questions have words already": not (own and self.questions),
        }
        rules |= {
            f"--tasks {' '.join(self.tasks)}: {name} asks in the {world} world": world in self.tasks
            for name, world in worlds.items()
        }
        require(rules)
        order = "as_is" if self.protocol == "released" else self.order
        pictures = (True,) if self.no_blind else (True, False)
        kinds = [(*kind, "") for kind in product(asked, dict.fromkeys(self.tasks), pictures)]
        kinds += [(name, worlds[name], shown, own[name]) for name in own for shown in pictures]
        how = (order, self.letters, self.samples)
        remote = Remote(self.endpoint, self.model, self.service) if self.endpoint else None
        return self.make_job(
            limit=ENDPOINT_TOKENS if remote else None,
            conditions=tuple(Condition(*kind, *how, words) for *kind, words in kinds),
            endpoint=remote,
            files=self.questions or self.files,
            own=bool(self.questions),
            **given(self, "batch", "images", "allow_missing", "baselines", "similarity"),
        )

    def start(self) -> None:
        """Evaluate, and name the page."""
        from finer1_lite.evals.job import run_evaluation

        print(f"report: {run_evaluation(self.job(), fresh=self.fresh)}")


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Remake every table and figure of a run from its records.

    With RUN2: a page in RUN2 that puts the two side by side, with the pictures that differ.
    """

    run: Path = argument("folder with a records.jsonl or an analysis.jsonl", metavar="RUN")
    other: Path | None = argument("a second such folder", default=None, nargs="?", metavar="RUN2")
    photos: Path | None = option(None, "pictures that a page shows (default: as the card says)")

    def start(self) -> None:
        """Write the page and name it."""
        from finer1_lite.evals.report import photo_source, write_comparison, write_report

        photos = photo_source(self.photos) if self.photos else None
        if self.other is None:
            page = write_report(self.run, photos)
        else:
            page = write_comparison(self.run, self.other, photos)
        print(f"report: {page}")


@dataclass(frozen=True, kw_only=True)
class AnalyseCommand(JobOptions):
    """Better use of knowledge, or more? Probes, quiz, faithfulness.

    Before and after training: linear probes, CKA, a quiz in words, whether answers follow chain
    and picture. Writes OUT/NAME/report.html. Killed and started again, it resumes.
    """

    computes = True
    models: tuple[str, str] = argument("before and after: folders or hub names", metavar="MODEL")
    name: str = option("analysis", "name of the run")

    def start(self) -> None:
        """Measure, and name the page."""
        from finer1_lite.evals.job import run_analysis

        print(f"report: {run_analysis(self.make_job(), fresh=self.fresh)}")


@dataclass(frozen=True, kw_only=True)
class AblateCommand:
    """What each part of TAPO contributes: rows x seeds x worlds, a table, a figure.

    SFT, CLS-RL, DAPO, TAPO, both with agreement rewarded, and TAPO with one part or another taken
    away or changed, from the same start and budget.
    Killed and started again, it resumes; rows named later are added to OUT/NAME/report.html.
    """

    computes = True
    name: str = option("ablation", "name of the study")
    out: Path = option(Path("runs"), "folder of all runs")
    rows: tuple[str, ...] | None = option(None, "rows of the table (default: all)")
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "training seeds")
    worlds: tuple[int, ...] = option((0, 1), "worlds of paper birds")
    workers: int = option(0, "trainings side by side; 0: one a core")
    more_leaves: int = option(0, "leaves more in front of every bird: single pictures mislead")
    apart: int | None = option(
        None, "of a genus only species that differ in so many marks, 1 or 2 (default: all)"
    )
    settings: tuple[str, ...] = key_values("other settings of the lab preset, as tapo.steps=20")

    def job(self) -> Study:
        """The study that is asked for. ValueError naming what does not exist."""
        from finer1_lite.evals.ablate import ROWS, SEARCH_SEED, Study

        unknown = [row for row in self.rows or () if row not in ROWS]
        rules = {
            f"--rows {' '.join(unknown)}: choose among {', '.join(ROWS)}": not unknown,
            f"--more-leaves {self.more_leaves}: give 0 or more": self.more_leaves >= 0,
            f"--apart {self.apart}: give 1 or 2": self.apart in (None, 1, 2),
            f"--workers {self.workers}: give 0 or more": self.workers >= 0,
            f"--seeds {self.seeds}: give each once, from 0 on, and not {SEARCH_SEED}, on which "
            "rates are searched": distinct(self.seeds) and SEARCH_SEED not in self.seeds,
            f"--worlds {self.worlds}: give each once, from 0 on": distinct(self.worlds),
        }
        require(rules)
        exact = {"tapo__negative_rollouts": 0}  # the objective itself; its estimate is a row
        preset = Preset.lab().with_(**exact | read_key_values(self.settings))
        rows = self.rows or tuple(ROWS)
        dials = (self.more_leaves, self.apart)
        return Study(self.out / self.name, preset, rows, self.seeds, self.worlds, *dials)

    def start(self) -> None:
        """Train what is missing, and name the table."""
        from finer1_lite.evals.ablate import run_study

        print(f"table: {run_study(self.job(), workers=self.workers)}")


@dataclass(frozen=True, kw_only=True)
class PredictCommand:
    """Name photographs that have no labels, with a calibrated confidence.

    Writes OUT/NAME/predictions.csv and predictions.html: name, the next names, chain, whether chain
    and answer agree. Killed and started again, it resumes.
    """

    computes = True
    model: Path = argument("run, adapter or merged model with its card", metavar="MODEL")
    photos: tuple[Path, ...] = argument(
        "photographs, or folders of them at any depth", metavar="PHOTO"
    )
    top: int = option(3, "names shown of each photograph, 1 to 10")
    csv: Path | None = option(None, "the table (default: in OUT/NAME)", metavar="FILE")
    html: Path | None = option(None, "the page (default: in OUT/NAME)", metavar="FILE")
    unknown: float = option(0.5, "a name with a confidence under this is called unknown")
    samples: int = option(0, "further completions of each, whose agreement counts too")
    base: str | None = option(None, "model below the adapter (default: as its card says)")
    name: str = option("predictions", "name of the run")
    out: Path = option(Path("runs"), "folder of all runs")
    fresh: bool = option(False, "start over: delete the run of this name first")
    batch: int | None = option(None, "photographs at a time")

    def start(self) -> None:
        """Name what has no name yet, and write table and page."""
        from finer1_lite.evals import predictions

        rules = {
            f"--top {self.top}: give 1 to 10": 1 <= self.top <= 10,
            f"--unknown {self.unknown}: give 0 to 1": 0 <= self.unknown <= 1,
            f"--samples {self.samples}: give 0 or more": self.samples >= 0,
            f"--batch {self.batch}: give 1 or more": self.batch is None or self.batch > 0,
        }
        require(rules)
        folder = self.out / self.name
        asked = given(self, "samples", "batch", "base", "fresh")
        found = predictions.run(self.model, self.photos, folder, **asked)
        table = self.csv or folder / "predictions.csv"
        page = self.html or folder / "predictions.html"
        predictions.write_csv(found, table, self.top, self.unknown)
        predictions.write_page(found, page, self.top, self.unknown)
        print(f"{predictions.summary(found, self.unknown)}\ntable: {table}\npage: {page}")
