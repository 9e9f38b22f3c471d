"""A model behind an OpenAI-compatible endpoint sits the same examination: `--endpoint URL`.

Client, retries, cost cap, memory on disk and care of the key are those of the teachers. A
question that got no answer is a record with a problem: it is counted, never scored, and asked
again by the same command, which pays for nothing twice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finer1_lite import prompts
from finer1_lite.chains.client import (
    Cached,
    Endpoint,
    Ledger,
    Reply,
    TeacherError,
    in_parallel,
)
from finer1_lite.data.images import PictureError
from finer1_lite.evals import exam
from finer1_lite.evals.exam import Asked, Block, Exam
from finer1_lite.runtime import files
from finer1_lite.runtime.files import write_lines
from finer1_lite.species import Photo

log = logging.getLogger("finer1_lite")

NO_ANSWER = "no answer"  # how the problem of an unanswered question begins
CUT = ("length", "oversized")  # how an endpoint says that an answer did not end


@dataclass(frozen=True)
class Remote:
    """Where models answer over HTTP, and what that may cost (`teacher.Ledger`)."""

    url: str
    models: tuple[str, ...]
    key_env: str = "OPENAI_API_KEY"
    workers: int = 4
    timeout: float = 120.0
    tries: int = 5
    max_requests: int | None = None
    max_cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    def ledger(self) -> Ledger:
        return Ledger(self.price_in, self.price_out, self.max_requests, self.max_cost)

    def endpoint(self, model: str, ledger: Ledger, max_tokens: int, temperature: float) -> Endpoint:
        """ValueError for an address that cannot work or holds a key."""
        return Endpoint(
            self.url,
            model,
            ledger,
            key_env=self.key_env,
            max_tokens=max_tokens,
            temperature=temperature,
            workers=self.workers,
            tries=self.tries,
            timeout=self.timeout,
        )


def answer(
    remote: Remote,
    model: str,
    asked: Exam,
    block: Block,
    folder: Path,
    ledger: Ledger,
    max_tokens: int,
    bars: bool = True,
) -> int:
    """Answer a block into `folder`/answers; returns how many questions are left without answer.

    One sample is asked at temperature 0, several at 1 with a seed each. A block without
    unanswered questions is not asked again; one with some is, from the memory on disk.
    """
    path = exam.answers_folder(folder, model) / f"{block.name}.jsonl"
    if path.exists() and not unanswered([row for _, row in files.read(path)]):
        return 0
    heat = 1.0 if block.samples > 1 else 0.0
    endpoint = remote.endpoint(model, ledger, max_tokens, heat)
    teacher = Cached(endpoint, folder / "cache", ledger)
    questions = exam.questions(asked, block)
    replies: dict[tuple, list[Reply] | str] = {}

    def key(one: Asked) -> tuple:  # without pictures many questions are one and the same
        return (one.text, (one.item.dataset, one.item.photo) if block.picture else None)

    def act(one: Asked) -> None:
        try:
            replies[key(one)] = _ask(teacher, one, block)
        except TeacherError as error:
            replies[key(one)] = f"{NO_ANSWER}: {error}"
            raise

    different = list({key(one): one for one in questions}.values())
    in_parallel(teacher, different, act, f"{model} {block.name}", bars)
    rows = []
    for one in questions:
        got = replies.get(key(one), f"{NO_ANSWER}: not asked, as the endpoint was given up")
        rows += _rows(asked, block, model, one, got)
    write_lines(path, rows)
    return len({(r["photo"], r["rotation"]) for r in unanswered(rows)})


def unanswered(rows: Sequence[dict]) -> list[dict]:
    return [row for row in rows if (row["problem"] or "").startswith(NO_ANSWER)]


def _ask(teacher: Cached, one: Asked, block: Block) -> list[Reply] | str:
    """A reply a sample; the problem of a picture that cannot be read."""
    photo = Photo(one.item.photo, one.item.label, one.item.image) if block.picture else None
    try:
        return teacher.ask(photo, prompts.TeacherPrompt("evaluate", one.text), range(block.samples))
    except PictureError as error:
        return str(error)


def _rows(asked: Exam, block: Block, model: str, one: Asked, got: list[Reply] | str) -> list[dict]:
    if isinstance(got, str):
        texts, more = [""] * block.samples, [{"problem": got}] * block.samples
    else:
        texts = [r.text.encode("utf-8", "replace").decode() for r in got]  # no lone surrogates
        more = [{"tokens": r.tokens_out, "cut": r.finish in CUT} for r in got]
    return [
        exam.record_of(asked, block, model, one, text, sample) | facts
        for sample, (text, facts) in enumerate(zip(texts, more))
    ]
