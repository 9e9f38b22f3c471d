"""Ask, score, record: one resumable loop, whoever answers.

An answerer (a student here; baselines and HTTP endpoints in `evals`) completes the questions
of a benchmark under a condition, batch by batch. Every completion, scored by
`scoring.judge`, is a line of `<condition>.jsonl`.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from finer1_lite import generation
from finer1_lite.data.benchmark import Benchmark, Condition, Question, questions
from finer1_lite.data.images import PictureError
from finer1_lite.data.records import Completion, record
from finer1_lite.generation import Rollouts, Student
from finer1_lite.runtime import files
from finer1_lite.runtime.checkpoints import OVERFLOW, NotFinite
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.oom import Limits

log = logging.getLogger("finer1_lite")

# --- who answers -----------------------------------------------------------------------------


class Answerer(Protocol):
    """A student, a baseline, an endpoint; `seed`: the training seed, None without one."""

    name: str
    seed: int | None

    def answer(
        self, questions: Sequence[Question], condition: Condition, start: int
    ) -> list[Completion]:
        """`condition.samples` completions a question, side by side; start: its place in all."""


@dataclass
class StudentAnswerer:
    """A student on this machine: greedy for one sample, at temperature 1 for several."""

    student: Student
    name: str
    max_new_tokens: int
    seed: int | None = None
    limits: Limits = field(default_factory=Limits)

    def answer(
        self, questions: Sequence[Question], condition: Condition, start: int
    ) -> list[Completion]:
        """One batch; a picture that cannot be read is a completion with an error.

        So is one whose logits are not finite, as float16 may have it, where others are.
        """
        try:
            return self._answer(questions, condition, start)
        except NotFinite as error:
            if len(questions) == 1:
                return [Completion(error=str(error))] * condition.samples
            alone = [self.answer([q], condition, start + i) for i, q in enumerate(questions)]
            found = [completion for completions in alone for completion in completions]
            if all(completion.error for completion in found):
                raise
            return found

    def _answer(
        self, questions: Sequence[Question], condition: Condition, start: int
    ) -> list[Completion]:
        images = [read_image(q.image) if condition.picture else None for q in questions]
        readable = [i for i, image in enumerate(images) if not isinstance(image, str)]

        def at_once(size: int) -> list[Rollouts]:
            batches = ask(
                self.student,
                [questions[i].text for i in readable],
                [images[i] for i in readable] if condition.picture else None,
                max_new_tokens=self.max_new_tokens,
                batch_size=size,
                samples=condition.samples,
                generator=torch.Generator().manual_seed(start),  # on the CPU: alike in any batch
            )
            return list(batches)

        batches = self.limits.fit(
            "questions at a time", len(questions), at_once, "max_new_tokens or pixels"
        )
        columns = ((b.completions, b.lengths.tolist(), b.truncated.tolist()) for b in batches)
        completions = (Completion(*one) for batch in columns for one in zip(*batch, strict=True))
        return [
            Completion(error=image) if isinstance(image, str) else next(completions)
            for image in images
            for _ in range(condition.samples)
        ]


def ask(
    student: Student,
    questions: Sequence[str],
    images: Sequence[Image.Image] | None = None,
    *,
    max_new_tokens: int,
    batch_size: int = 128,
    samples: int = 1,
    generator: torch.Generator | None = None,
    begun: Sequence[str] | None = None,
) -> Iterator[Rollouts]:
    """Completions in order, one batch after the other; greedy unless `samples` are several.

    begun: the words that each completion must go on from, not among those returned.
    """
    for at in range(0, len(questions), batch_size):
        part = slice(at, at + batch_size)
        shown = images[part] if images is not None else None
        batch = generation.encode_prompts(student.model, student.processor, questions[part], shown)
        if begun is not None:
            words = student.processor.tokenizer(list(begun[part]), add_special_tokens=False)
            batch = generation.extended(batch, words["input_ids"])
        yield generation.generate(
            student.model,
            student.processor,
            batch,
            num_generations=samples,
            max_new_tokens=max_new_tokens,
            temperature=1.0 if samples > 1 else 0.0,
            generator=generator,
        )


def complete(
    student: Student,
    questions: Sequence[str],
    images: Sequence[Image.Image] | None = None,
    **settings: Any,
) -> list[str]:
    """The greedy completions that `ask` (which takes the settings) yields in batches."""
    batches = ask(student, questions, images, **settings)
    return [completion for batch in batches for completion in batch.completions]


def read_image(image: Callable[[], Image.Image]) -> Image.Image | str:
    """The picture, or why it cannot be read."""
    try:
        return image()
    except (PictureError, OSError) as error:
        return str(error)


# --- records ---------------------------------------------------------------------------------


def evaluate(
    answerer: Answerer, benchmark: Benchmark, condition: Condition, folder: Path, batch_size: int
) -> Iterator[int]:
    """Append the records of a condition to `folder`/<condition>.jsonl; yields the count done.

    Whole batches are appended: an interrupted file is cut back to its last whole batch and
    goes on with the batches of an undisturbed run. Batches with errors that may pass go first.
    """
    every = questions(benchmark, condition)
    samples = condition.samples
    path = folder / f"{condition.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)

    def ask_batch(start: int) -> list[dict]:
        rows, part = [], every[start : start + batch_size]
        for i, completion in enumerate(answerer.answer(part, condition, start)):
            who = {"model": answerer.name, "seed": answerer.seed, "sample": i % samples}
            rows.append(record(benchmark, condition, part[i // samples], completion, **who))
        return rows

    def is_shown(question: Question) -> bool:
        return not condition.picture or not isinstance(read_image(question.image), str)

    size = batch_size * samples
    held = _whole_batches(path, size, len(every) * samples)
    for at in range(0, len(held), size):
        lost = [at + i for i, row in enumerate(held[at : at + size]) if may_pass(row)]
        if any(is_shown(every[place // samples]) for place in lost):
            held[at : at + size] = ask_batch(at // samples)
            files.write_lines(path, held)
    yield len(held) // samples
    for start in range(len(held) // samples, len(every), batch_size):
        rows = ask_batch(start)
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        yield start + len(rows) // samples


def _whole_batches(path: Path, batch: int, total: int) -> list[dict]:
    """Cut a file back to whole batches of whole lines; the rows that are left."""
    if not path.exists():
        return []
    rows = [row for _, row in files.read(path, torn=True, objects=True)]
    keep = len(rows) if len(rows) == total else len(rows) - len(rows) % batch
    files.write_lines(path, rows[:keep])
    return rows[:keep]


def evaluate_all(
    answerer: Answerer,
    benchmark: Benchmark,
    conditions: Sequence[Condition],
    folder: Path,
    batch_size: int,
) -> None:
    """Every condition into the run's folder, with a progress bar each."""
    for condition in conditions:
        total = len(questions(benchmark, condition))
        where = answers_folder(folder, answerer.name)
        with progress_bar(total, f"{folder.name} {answerer.name} {condition.name}") as bar:
            for done in evaluate(answerer, benchmark, condition, where, batch_size):
                bar.update(done - bar.n)


def may_pass(row: Mapping) -> bool:
    """Whether a record is an error that another start may not have: an overflow comes again."""
    error = row.get("error")
    return bool(error) and OVERFLOW not in error


def say_lost(records: Iterable[Mapping]) -> int:
    """How many records are errors that may pass; says how many are errors, and the first."""
    lost = [row for row in records if row.get("error")]
    if lost:
        said = "%d answers are missing (%s) and not scored; this command asks again what may pass"
        log.warning(said, len(lost), lost[0]["error"])
    return sum(map(may_pass, lost))


def answers_folder(folder: Path, model: str) -> Path:
    """Where a run keeps the records of a model, whatever its name has ("qwen2.5vl:7b")."""
    return folder / "answers" / re.sub(r'[<>:"\\|?*]', "-", model.replace("/", "--"))


def join(*folders: Path) -> str:
    """The text of records.jsonl: what every model said in these folders, by file name."""
    said = [path for folder in folders for path in sorted((folder / "answers").rglob("*.jsonl"))]
    return "".join(path.read_text(encoding="utf-8") for path in said)
