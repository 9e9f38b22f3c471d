"""The commands `cot ...`: make, check, review and convert chains of thought, draw triplets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finer1_lite.data.commands import PhotoOptions
from finer1_lite.presets import Quantize
from finer1_lite.runtime.files import require
from finer1_lite.runtime.options import REQUIRED, argument, given, option

if TYPE_CHECKING:
    from finer1_lite.chains.client import Ledger, Teacher
    from finer1_lite.chains.make import ChainJob
    from finer1_lite.species import Collection


@dataclass(frozen=True, kw_only=True)
class PictureOptions(PhotoOptions):
    """The pictures that chains are about: photographs, or the birds of a world."""

    world_seed: int = option(0, "which world of paper birds")

    def collection(self) -> Collection:
        """The pictures, divided."""
        from finer1_lite.data.runs import Pictures

        own = Pictures(**self.origin(), world_seed=self.world_seed)
        return own.pictures(test=60, **given(self, "shots"))


SERVICE = ("key_env", "workers", "timeout", "tries", "request")  # what an `Endpoint` is told


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """What every command asks of an endpoint beside its address and models."""

    key_env: str = option(
        "OPENAI_API_KEY", "endpoint: environment variable of the key (never written)"
    )
    workers: int = option(4, "endpoint: requests at a time")
    timeout: float = option(120.0, "endpoint: seconds for one answer")
    tries: int = option(5, "endpoint: of one request, with growing pauses")
    request: tuple[str, ...] = option(
        (),
        "endpoint: what a request says otherwise; null leaves a parameter out, as in seed=null "
        "max_tokens=null max_completion_tokens=1024",
        metavar="KEY=VALUE",
    )
    max_requests: int | None = option(None, "budget: answers paid for in this start")
    max_cost: float | None = option(None, "budget: in the unit of the prices")
    price_in: float = option(0.0, "of a million tokens read")
    price_out: float = option(0.0, "of a million tokens written")


@dataclass(frozen=True, kw_only=True)
class MakeCommand:
    """Photos -> descriptions -> concepts -> chains -> checks.

    Killed, refused or out of budget, the same command goes on and pays for nothing twice. Fill the
    column `decision` of OUT/review.csv and start it again: reviewed.jsonl holds what you decided.
    """

    computes = True
    pictures: PictureOptions
    out: Path = option(REQUIRED, "folder of this set of chains")
    teacher: Literal["oracle", "table", "local", "endpoint", "student"] | None = option(
        None, "who writes; left out: oracle for paper birds, table for photographs"
    )
    model: str | None = option(
        None, "local: folder or hub name, e.g. Qwen/Qwen2.5-VL-7B-Instruct; endpoint: name there"
    )
    quantize: Quantize = option("none", "local: nf4 is 4-bit weights")
    url: str = option("http://localhost:8000/v1", "endpoint: up to /v1")
    service: EndpointOptions
    temperature: float = option(0.7, "local, endpoint, student: of sampling")
    max_tokens: int = option(1024, "local, endpoint, student: of one answer")
    descriptions_a_picture: int = option(6, "times that it is described")
    extract: Literal["teacher", "yake"] | None = option(
        None, "who names concepts; left out: the teacher, for a table yake"
    )
    beta: float = option(0.7, "price of a bit about the single picture")
    per_picture: int = option(1, "chains wanted of a picture")
    rounds: int = option(4, "tries for each of them")
    guess: bool = option(False, "hide the label, keep right chains alone (as --teacher student)")
    seed: int = option(0, "order of candidates")

    def job(self, collection: Collection | None = None) -> ChainJob:
        """What is made, of `collection` if given. ValueError lists what does not fit together."""
        from finer1_lite.chains.client import Cached, Ledger
        from finer1_lite.chains.make import ChainJob, Settings

        photos = self.pictures.photos
        kind = self.teacher or ("oracle" if photos is None else "table")
        birds = "--teacher oracle knows paper birds only: choose another for --photos"
        named = bool(self.model) or kind not in ("local", "endpoint")
        require({birds: kind != "oracle" or not photos, f"--teacher {kind} needs --model": named})
        if collection is None:
            collection = self.pictures.collection()
        paid = self.service
        ledger = Ledger(paid.price_in, paid.price_out, paid.max_requests, paid.max_cost)
        teacher = self._teacher(kind, collection, ledger)
        if kind not in ("oracle", "table"):  # these cost nothing
            teacher = Cached(teacher, self.out / "cache", ledger)
        settings = Settings(
            extract=self.extract or ("yake" if kind == "table" else "teacher"),
            guess=self.guess or kind == "student",
            **given(self, "beta", "per_picture", "rounds", "seed"),
            **given(self, descriptions_a_picture="descriptions"),
        )
        return ChainJob(self.out, collection, teacher, settings, ledger)

    def _teacher(self, kind: str, collection: Collection, ledger: Ledger) -> Teacher:
        """The teacher of a kind that `--teacher` names."""
        from finer1_lite import paperbirds
        from finer1_lite.chains import teachers
        from finer1_lite.chains.client import Endpoint
        from finer1_lite.cot import require_descriptions
        from finer1_lite.students.lab_student import asset_folder

        if kind == "oracle":
            return teachers.Oracle(paperbirds.make_world(self.pictures.world_seed))
        if kind == "table":
            require_descriptions(collection, "--teacher table")
            return teachers.Table(collection)
        if kind == "endpoint":
            own = given(self, "max_tokens", "temperature") | given(self.service, *SERVICE)
            return Endpoint(self.url, self.model, ledger, **own)
        source = self.model or asset_folder(self.pictures.world_seed)  # the student's
        sampling = given(self, "temperature", max_tokens="max_new_tokens")
        return teachers.load_local(source, self.quantize, **sampling)

    def start(self) -> None:
        """Make chains, and print the report."""
        print(json.dumps(self.job().build(), indent=1, ensure_ascii=False))


@dataclass(frozen=True, kw_only=True)
class CheckCommand:
    """What is wrong with a file of chains.

    Reads our JSON lines, TRL's rows, and what LLaVA and LLaMA-Factory call sharegpt.
    """

    file: Path = argument("file of chains")
    json: Path | None = option(None, "write every finding here")

    def start(self) -> None:
        """Print what is wrong, and write it where a file is named."""
        from finer1_lite.chains import checks, formats
        from finer1_lite.chains.make import write_json

        records, kind = formats.read_any(self.file)
        result = checks.audit_chains(records)
        print(f"{self.file} ({kind})\n{checks.audit_text(result)}")
        if self.json:
            found = {k: [str(f) for f in v] for k, v in result.pop("found").items() if v}
            write_json(self.json, result | {"found": found})


@dataclass(frozen=True, kw_only=True)
class ReviewCommand:
    """Apply decisions made in review.csv or in the panel.

    The panel runs in JupyterLab: `from finer1_lite.chains import panel; panel.open_panel(FOLDER,
    collection)`. Without it fill the column decision (keep, drop, edit) of FOLDER/review.csv,
    for edit also new_chain, and run this.
    """

    folder: Path = argument("folder that `cot make` wrote")
    decided_only: bool = option(False, "leave out chains that nobody has decided about")
    undo: bool = option(False, "take the last decision back first")

    def start(self) -> None:
        """Apply the decisions, and print how many chains are left."""
        from finer1_lite.chains import review

        folder, undecided = self.folder, not self.decided_only
        if self.undo:
            undone = review.apply_review(folder)  # what the table has new comes first
            print(f"taken back: {undone.undo()}")
            undone.write_csv(folder / "review.csv")
            undecided = undecided and undone.undecided
        state = review.apply_review(folder, undecided=undecided)
        kept = f"-> {len(state.results(undecided))} chains in {folder / 'reviewed.jsonl'}"
        print(json.dumps(review.summary(state)), kept)


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """Between our JSON lines, TRL's rows and the released formats.

    The format of FILE is told by its content.
    """

    file: Path = argument("chains, or triplets (.jsonl, .parquet)")
    out: Path = argument("file to write")
    to: Literal["ours", "trl", "sharegpt", "triplets", "parquet"] = option(REQUIRED, "its format")
    bare: bool = option(False, "sharegpt: released fields only")
    pictures: Path = option(Path("."), "parquet: folder that picture paths start from")

    def start(self) -> None:
        """Write a file of chains or triplets in another format."""
        from finer1_lite.chains import formats

        source, out, root = self.file, self.out, self.pictures
        if self.to in ("triplets", "parquet"):
            packed = source.suffix == ".parquet"
            rows = formats.read_parquet(source, root) if packed else formats.read_triplets(source)
            if self.to == "parquet":
                formats.write_parquet(out, rows, root)
            else:
                formats.write_triplets(out, rows)
            print(f"{len(rows)} triplets -> {out}")
            return
        records, kind = formats.read_any(source)
        formats.write_records(out, records, self.to, carry=not self.bare)
        print(f"{len(records)} chains: {kind} -> {self.to}, {out}")


@dataclass(frozen=True, kw_only=True)
class TripletCommand:
    """Anchor, positive, hard negative of every training picture.

    Writes our JSON lines; convert --to parquet follows.
    """

    pictures: PictureOptions
    seed: int = option(0, "of the draw")
    out: Path = option(REQUIRED, "file to write (.jsonl)")

    def start(self) -> None:
        """Draw triplets and write them."""
        from finer1_lite.chains import formats
        from finer1_lite.chains.make import triplet_rows

        rows = list(triplet_rows(self.pictures.collection(), self.seed))
        formats.write_triplets(self.out, rows)
        print(f"{len(rows)} triplets -> {self.out}")


class CotCommands:
    """Chains of thought for your own pictures: make, check, review, convert.

    Photos in, reviewed four-part chains out, with any teacher.
    """

    commands = {
        "make": MakeCommand,
        "check": CheckCommand,
        "review": ReviewCommand,
        "convert": ConvertCommand,
        "triplets": TripletCommand,
    }
