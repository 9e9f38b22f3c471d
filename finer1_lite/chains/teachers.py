"""Who answers: an oracle, a table of descriptions, or any image-text-to-text model.

All teachers share one small protocol, picture + request + which samples -> texts. A text
is a function of these alone, so that a killed job asks on where it stopped; what costs time
or money is kept on disk by `Cached`, which asks no teacher for the same sample twice.
"""

import hashlib
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

from PIL import Image

from finer1_lite import cot, paperbirds, prompts
from finer1_lite.chains import checks
from finer1_lite.generation import vision_tokens
from finer1_lite.prompts import Asked
from finer1_lite.runtime.files import write_atomically
from finer1_lite.species import Collection, Photo


class TeacherError(RuntimeError):
    """This request got no usable answer; the same command asks again."""


class TeacherStopped(TeacherError):
    """No further request makes sense: refused for good, or the budget is spent."""


@dataclass
class Reply:
    """A text and what it took: tokens read and written, and why it ended."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    finish: str = "stop"


class Teacher(Protocol):
    """identity: everything besides picture, words and sample that an answer depends on."""

    identity: dict
    workers: int  # requests at a time that make sense

    def ask(self, photo: Photo | None, asked: Asked, samples: Sequence[int]) -> list[Reply]:
        """A reply for each sample number; a picture-less request has no photo."""


# --- without any model --------------------------------------------------------------------


@dataclass
class Oracle:
    """Knows every paper bird's marks; describes with human failings, writes without any.

    overlooks, mistakes: probability that a mark is left out of a description, or told wrong.
    """

    world: paperbirds.World
    overlooks: float = 0.15
    mistakes: float = 0.05
    workers: int = 1

    @property
    def identity(self) -> dict:
        return {
            "teacher": "oracle",
            "world": self.world.seed,
            "overlooks": self.overlooks,
            "mistakes": self.mistakes,
        }

    def ask(self, photo: Photo | None, asked: Asked, samples: Sequence[int]) -> list[Reply]:
        where = photo.id if photo else asked.text
        rngs = [random.Random(f"oracle/{where}/{asked.kind}/{i}") for i in samples]
        answer = {"describe": self._describe, "extract": self._extract}.get(asked.kind, self._write)
        return [Reply(answer(photo, asked, rng)) for rng in rngs]

    def _describe(self, photo: Photo, asked: Asked, rng: random.Random) -> str:
        seen = {}
        for mark, value in self.world.marks[photo.species].items():
            if rng.random() < self.overlooks:
                continue
            wrong = rng.random() < self.mistakes
            seen[mark] = rng.choice(paperbirds.MARKS[mark]) if wrong else value
        return ", ".join(f"{mark} {value}" for mark, value in seen.items())

    def _extract(self, photo: None, asked: Asked, rng: random.Random) -> str:
        every = [f"{m} {v}" for m, values in paperbirds.MARKS.items() for v in values]
        return "\n".join(phrase for phrase in every if re.search(rf"\b{phrase}\b", asked.text))

    def _write(self, photo: Photo, asked: Asked, rng: random.Random) -> str:
        name, marks = photo.species, self.world.marks[photo.species]
        told = [f"{m} {v}" for m, v in marks.items() if f"{m} {v}" in asked.concepts]
        remarks = [cot.marks_against(self.world, name, c) for c in asked.candidates]
        analysis = ", ".join(told) or paperbirds.describe(marks)
        return prompts.chain(analysis, asked.candidates, remarks, name)


@dataclass
class Table:
    """Answers from a table of class descriptions. It has not seen the picture."""

    collection: Collection
    workers: int = 1

    @property
    def identity(self) -> dict:
        told = {s.name: s.description for s in self.collection.species}
        return {"teacher": "table", "table": _digest(json.dumps(told))}

    def ask(self, photo: Photo | None, asked: Asked, samples: Sequence[int]) -> list[Reply]:
        if asked.kind == "extract":
            raise TeacherStopped("a table cannot extract concepts: use --extract yake")
        return [Reply(self._answer(photo, asked)) for _ in samples]

    def _answer(self, photo: Photo, asked: Asked) -> str:
        if asked.kind == "describe":
            return cot.without_names(self.collection, self._visible.of(photo.species).description)
        return cot.table_chain_of(self._visible, photo.species, asked.candidates, asked.concepts)

    @cached_property
    def _visible(self) -> Collection:
        """The collection, its descriptions without the clauses on what no photo shows."""
        species = []
        for one in self.collection.species:
            clauses = re.split(r"(?<=[.,;])\s+|\s(?=\band\b|\bwith\b)", one.description)
            seen = [c for c in clauses if not checks.invisible(c)]
            species.append(replace(one, description=" ".join(seen)))
        return replace(self.collection, species=tuple(species))


# --- a local model -------------------------------------------------------------------------


@dataclass
class Local:
    """Any image-text-to-text model of transformers, on this machine.

    model, processor: as `AutoModelForImageTextToText` and its processor are loaded; the
    student itself may be handed in. Samples of one request are generated together.
    """

    model: object
    processor: object
    name: str
    max_new_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 0.95
    workers: int = 1
    together: ClassVar[bool] = True  # the samples of one request cost one reading of the picture

    @property
    def identity(self) -> dict:
        return {
            "teacher": "local",
            "model": self.name,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
        }

    def ask(self, photo: Photo | None, asked: Asked, samples: Sequence[int]) -> list[Reply]:
        """Seeded by the first sample number, so that another sample is another text."""
        import torch

        image = photo.image() if photo else None
        with torch.random.fork_rng(enabled=True), torch.no_grad():
            torch.manual_seed(int(_digest(f"{asked.text}/{list(samples)}")[:12], 16))
            return self._generate(image, asked.text, len(samples))

    def _generate(self, image: Image.Image | None, text: str, n: int) -> list[Reply]:
        chat = prompts.messages(text, image is not None)
        words = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        pictures = {"images": [image]} if image is not None else {}
        batch = self.processor(text=[words], return_tensors="pt", **pictures)
        batch = batch.to(self.model.device)
        length = batch["input_ids"].shape[1]
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        out = self.model.generate(
            **batch,
            max_new_tokens=self.max_new_tokens,
            num_return_sequences=n,
            use_cache=True,
            suppress_tokens=self._never(),
            do_sample=self.temperature > 0,
            **(sampling if self.temperature > 0 else {}),
        )[:, length:].tolist()
        return [self._reply(row, length) for row in out]

    def _never(self) -> list[int]:
        """A picture's tokens in an answer would stop the next step of generation."""
        return vision_tokens(self.processor)

    def _reply(self, row: list[int], length: int) -> Reply:
        tok = self.processor.tokenizer
        ended = tok.eos_token_id in row
        end = row.index(tok.eos_token_id) if ended else len(row)
        text = tok.decode(row[:end], skip_special_tokens=True).strip()
        return Reply(text, length, end + ended, "stop" if ended else "length")


def load_local(
    source: str | Path, quantize: str = "none", pixels: int = 1024 * 28 * 28, **settings
) -> Local:
    """A model of the hub or a folder, e.g. Qwen/Qwen2.5-VL-7B-Instruct or -32B-Instruct.

    quantize: none | nf4 (4 bits by bitsandbytes: the 32B then wants about 24 GB).
    """
    from finer1_lite import models
    from finer1_lite.presets import Preset

    student = models.load_student(source, Preset(quantize=quantize, pixels=pixels))
    name = Path(source).name if Path(source).exists() else str(source)
    return Local(student.model, student.processor, name, **settings)


# --- nothing is asked twice ------------------------------------------------------------------


@dataclass
class Ledger:
    """What was asked and what it cost, over all threads. Prices are per million tokens."""

    price_in: float = 0.0
    price_out: float = 0.0
    max_requests: int | None = None  # answers to pay for in this start; None: no limit
    max_cost: float | None = None
    counts: Counter = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, what: str, by: int = 1) -> None:
        with self.lock:
            self.counts[what] += by

    def reserve(self, answers: int) -> None:
        """Raises TeacherStopped where these answers would exceed the budget."""
        with self.lock:
            asked = self.counts["asked"] + answers
            if self.max_requests is not None and asked > self.max_requests:
                raise TeacherStopped(f"the budget of {self.max_requests} requests is spent")
            if self.max_cost is not None and self.cost >= self.max_cost:
                raise TeacherStopped(f"the budget of {self.max_cost} is spent")
            self.counts["asked"] = asked

    @property
    def cost(self) -> float:
        c = self.counts
        return (c["tokens_in"] * self.price_in + c["tokens_out"] * self.price_out) / 1e6

    def to_dict(self) -> dict:
        return dict(sorted(self.counts.items())) | {"cost": round(self.cost, 6)}


@dataclass
class Cached:
    """A teacher with a memory on disk: a JSON file a sample, keyed by everything it depends on.

    Files are written in one step, so that a kill leaves whole files only.
    """

    teacher: Teacher
    folder: Path
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def identity(self) -> dict:
        return self.teacher.identity

    @property
    def workers(self) -> int:
        return self.teacher.workers

    def ask(self, photo: Photo | None, asked: Asked, samples: Sequence[int]) -> list[Reply]:
        shown = picture_digest(photo.image()) if photo else ""
        paths = [self._path(shown, asked, i) for i in samples]
        replies = [self._read(path) for path in paths]
        missing = [i for i, reply in enumerate(replies) if reply is None]
        together = getattr(self.teacher, "together", False) and missing
        for part in [missing] if together else [[i] for i in missing]:
            self.ledger.reserve(len(part))
            for i, reply in zip(part, self.teacher.ask(photo, asked, [samples[i] for i in part])):
                write_atomically(paths[i], json.dumps(asdict(reply)).encode())
                self._account(reply)
                replies[i] = reply
        return replies

    def _path(self, shown: str, asked: Asked, sample: int) -> Path:
        given = {"picture": shown, "text": asked.text, "sample": sample}
        key = _digest(json.dumps(self.identity | given, sort_keys=True))
        return self.folder / key[:2] / f"{key}.json"

    def _read(self, path: Path) -> Reply | None:
        if not path.exists():
            return None
        self.ledger.count("from cache")
        return Reply(**json.loads(path.read_text(encoding="utf-8")))

    def _account(self, reply: Reply) -> None:
        self.ledger.count("tokens_in", reply.tokens_in)
        self.ledger.count("tokens_out", reply.tokens_out)
        if not reply.text.strip():
            self.ledger.count("empty answer")
        if reply.finish == "length":
            self.ledger.count("cut off answer")


def picture_digest(image: Image.Image) -> str:
    """A key of the decoded pixels: the same for a copy, another after any edit."""
    return _digest(f"{image.mode}{image.size}".encode() + image.tobytes())


def _digest(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()
