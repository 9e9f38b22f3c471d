"""A model behind an OpenAI-compatible endpoint is asked the same questions: `--endpoint URL`.

Client, retries, cost cap, memory on disk and care of the key are those of the teachers. A
question that got no answer is a record with an error: it is counted, never scored, and asked
again by the same command, which pays for nothing twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finer1_lite.chains.client import Cached, Endpoint, Ledger, TeacherError, in_parallel
from finer1_lite.chains.commands import SERVICE, EndpointOptions
from finer1_lite.chains.teacher_prompts import TeacherPrompt
from finer1_lite.data.benchmark import Benchmark, Condition, Question, questions
from finer1_lite.data.images import PictureError
from finer1_lite.evaluate import Completion, answers_folder, evaluate
from finer1_lite.runtime import files
from finer1_lite.runtime.options import given
from finer1_lite.species import Photo

NO_ANSWER = "no answer"  # how the error of an unanswered question begins
TRUNCATED = ("length", "oversized")  # how an endpoint says that a completion did not end


@dataclass(frozen=True)
class Remote:
    """Where models answer over HTTP, and what that may cost (`Ledger`)."""

    url: str
    models: tuple[str, ...]
    service: EndpointOptions = EndpointOptions()

    def ledger(self) -> Ledger:
        """The count of one start."""
        s = self.service
        return Ledger(s.price_in, s.price_out, s.max_requests, s.max_cost)

    def endpoint(self, model: str, ledger: Ledger, max_tokens: int, temperature: float) -> Endpoint:
        """ValueError for an address that cannot work or holds a key."""
        settings = given(self.service, *SERVICE)
        limits = {"max_tokens": max_tokens, "temperature": temperature}
        return Endpoint(self.url, model, ledger, **limits, **settings)


@dataclass
class EndpointAnswerer:
    """One sample is asked at temperature 0, several at 1 with a seed each."""

    name: str  # the model's, there
    remote: Remote
    ledger: Ledger
    cache: Path  # what was paid for
    max_tokens: int
    seed: None = None
    why: str = ""  # the last question without an answer has none

    def answer(
        self, questions: Sequence[Question], condition: Condition, start: int
    ) -> list[Completion]:
        """Several requests at a time; questions that differ in nothing are asked once."""
        heat = 1.0 if condition.samples > 1 else 0.0
        endpoint = self.remote.endpoint(self.name, self.ledger, self.max_tokens, heat)
        teacher = Cached(endpoint, self.cache, self.ledger)
        keys = [(q.text, (q.dataset, q.photo) if condition.picture else None) for q in questions]
        different = dict(zip(keys, questions, strict=True))
        unasked = f"{NO_ANSWER}: not asked, as the endpoint was given up"
        found = {key: [Completion(error=unasked)] * condition.samples for key in different}

        def act(key: tuple) -> None:
            try:
                found[key] = _ask(teacher, different[key], condition)
            except TeacherError as error:
                self.why = str(error)
                found[key] = [Completion(error=f"{NO_ANSWER}: {error}")] * condition.samples
                raise

        in_parallel(teacher, list(different), act, f"{self.name} {condition.name}")
        return [completion for key in keys for completion in found[key]]


def _ask(teacher: Cached, question: Question, condition: Condition) -> list[Completion]:
    """A completion a sample; with an error where the picture cannot be read."""
    photo = Photo(question.photo, question.label, question.image) if condition.picture else None
    samples = range(condition.samples)
    try:
        replies = teacher.ask(photo, TeacherPrompt("evaluate", question.text), samples)
    except PictureError as error:
        return [Completion(error=str(error))] * condition.samples
    texts = [reply.text.encode("utf-8", "replace").decode() for reply in replies]  # no surrogates
    pairs = zip(texts, replies, strict=True)
    return [Completion(text, r.tokens_out, r.finish in TRUNCATED) for text, r in pairs]


def evaluate_endpoint(
    answerer: EndpointAnswerer, benchmark: Benchmark, condition: Condition, folder: Path
) -> int:
    """Ask a condition into the run's folder; returns how many questions are left unanswered.

    Of a file with unanswered questions every one is asked anew, from the memory on disk as far as
    it was paid for.
    """
    where = answers_folder(folder, answerer.name)
    path = where / f"{condition.name}.jsonl"
    at_once = max(len(questions(benchmark, condition)), 1)
    for _ in evaluate(answerer, benchmark, condition, where, at_once):
        pass
    return _unanswered(path) if path.exists() else 0


def _unanswered(path: Path) -> int:
    rows = [row for _, row in files.read(path, torn=True)]
    lost = [row for row in rows if (row["error"] or "").startswith(NO_ANSWER)]
    return len({(row["photo"], row["rotation"]) for row in lost})
