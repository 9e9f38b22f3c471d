"""Models that cost time or money: the protocol of a teacher, its budget, its memory, HTTP.

An `Endpoint` is any OpenAI-compatible server: vLLM, or a service in a cloud. Refusals (429,
5xx), slow or cut connections, broken JSON, empty and enormous bodies are expected: each is
counted, and the openai library tries again. The key is read from the environment and, if it is
long enough to be a secret, taken out of every text that comes back or is shown. Loads no torch.
"""

import base64
import hashlib
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx2
import openai
from PIL import Image

from finer1_lite.chains.teacher_prompts import TeacherPrompt
from finer1_lite.data.images import small
from finer1_lite.runtime.files import load, require, write_atomically
from finer1_lite.runtime.options import read_key_values
from finer1_lite.species import Photo

Samples = Sequence[int]  # numbers: another one is another reply to the same prompt
PATIENCE = 3  # items without a reply in a row, then an endpoint counts as down
HIDDEN = "[key]"
SECRET = 12  # signs of a key at least; a shorter one is a dummy that a reply may hold as a word
MAX_BYTES = 4_000_000  # of one HTTP body; more is cut off while it arrives
MAX_CHARACTERS = 40_000  # of one completion; more is no chain
MAY_PASS = (408, 409, 424, 425, 429)  # of the refusals 4xx: another try may help
OF_ONE = (413, 415)  # a picture that is too large, or of another kind: the next one may do
FAILURES = {  # what is tried again, and the word that counts it; the first that fits
    httpx2.TimeoutException: "time-out",
    httpx2.DecodingError: "bad JSON",
    httpx2.RequestError: "connection lost",
}
OVERSIZED = b'{"choices": [{"message": {"content": ""}, "finish_reason": "oversized"}]}'


class TeacherError(RuntimeError):
    """This request got no usable reply; the same command tries again."""


class TeacherStopped(TeacherError):
    """No further request makes sense: refused for good, or the budget is spent."""


@dataclass
class Reply:
    """A completion and what it took: tokens read and written, and why it ended."""

    text: str
    tokens_in: int = 0
    tokens_out: int = 0
    finish: str = "stop"


class Teacher(Protocol):
    """identity: everything besides picture, text and sample that a reply depends on."""

    identity: dict
    workers: int  # requests at a time that make sense

    def ask(self, photo: Photo | None, prompt: TeacherPrompt, samples: Samples) -> list[Reply]:
        """Return a reply for each sample; a prompt without a picture has no photo."""


@dataclass
class Ledger:
    """Requests, tokens and their cost, over all threads. Prices are per million tokens."""

    price_in: float = 0.0
    price_out: float = 0.0
    max_requests: int | None = None  # replies to pay for in this start; None: no limit
    max_cost: float | None = None
    counts: Counter = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)  # model -> a refusal that is for good
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        limits = (self.price_in, self.price_out, self.max_requests or 0, self.max_cost or 0)
        free = self.max_cost is not None and not (self.price_in or self.price_out)
        rules = {
            "budgets and prices: give none below 0": min(limits) >= 0,
            "--max-cost limits nothing without --price-in or --price-out (of a million)": not free,
        }
        require(rules)

    def count(self, what: str, by: int = 1) -> None:
        """Count an event, or so many of them."""
        with self.lock:
            self.counts[what] += by

    def count_reply(self, reply: Reply) -> None:
        """Count what a reply took, and whether it is empty or truncated."""
        self.count("tokens_in", reply.tokens_in)
        self.count("tokens_out", reply.tokens_out)
        if not reply.text.strip():
            self.count("empty answer")
        if reply.finish == "length":
            self.count("truncated answer")
        if reply.finish != "oversized" and not reply.tokens_in + reply.tokens_out:
            self.count("answer without usage")

    def reserve(self, replies: int) -> None:
        """Raise TeacherStopped where so many more replies would exceed the budget."""
        with self.lock:
            total = self.counts["asked"] + replies
            if self.max_requests is not None and total > self.max_requests:
                raise TeacherStopped(f"the budget of {self.max_requests} requests is spent")
            if self.max_cost is not None and self.cost >= self.max_cost:
                raise TeacherStopped(f"the budget of {self.max_cost} is spent")
            if self.max_cost is not None and self.counts["answer without usage"] and not self.cost:
                said = "this server tells no number of tokens: --max-cost cannot be kept; "
                raise TeacherStopped(said + "give --max-requests in its place")
            self.counts["asked"] = total

    @property
    def cost(self) -> float:
        """What the counted tokens cost, in the unit of the prices."""
        spent = self.counts["tokens_in"] * self.price_in
        return (spent + self.counts["tokens_out"] * self.price_out) / 1e6

    def to_dict(self) -> dict:
        """Return the counts and the cost as a report shows them."""
        return dict(sorted(self.counts.items())) | {"cost": round(self.cost, 6)}


@dataclass
class Cached:
    """A teacher with a memory on disk: a JSON file a sample, keyed by everything it depends on."""

    teacher: Teacher
    folder: Path
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        self.identity = self.teacher.identity
        self.workers = self.teacher.workers

    def ask(self, photo: Photo | None, prompt: TeacherPrompt, samples: Samples) -> list[Reply]:
        """Return the replies, from disk where they are there; raises as the teacher does."""
        picture = picture_digest(photo.image(whole=True)) if photo else ""
        given = self.identity | {"picture": picture, "text": prompt.text}
        keys = {s: digest(json.dumps(given | {"sample": s}, sort_keys=True)) for s in samples}
        paths = {s: self.folder / key[:2] / f"{key}.json" for s, key in keys.items()}
        missing = [sample for sample in samples if not paths[sample].exists()]
        self.ledger.count("from cache", len(samples) - len(missing))
        together = getattr(self.teacher, "together", False) and missing
        for part in [missing] if together else [[sample] for sample in missing]:
            self.ledger.reserve(len(part))
            for sample, reply in zip(part, self.teacher.ask(photo, prompt, part), strict=True):
                write_atomically(paths[sample], json.dumps(asdict(reply)).encode())
                self.ledger.count_reply(reply)
        return [Reply(**load(paths[s])) for s in samples]


def picture_digest(image: Image.Image) -> str:
    """Return a key of the decoded pixels: the same for a copy, another after any edit."""
    return digest(f"{image.mode}{image.size}".encode() + image.tobytes())


def digest(data: str | bytes) -> str:
    """Return the SHA-256 of a text or of bytes, in hexadecimal."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def in_parallel(
    teacher: Teacher, items: Sequence, act: Callable, what: str, bars: bool = True
) -> list[str]:
    """Do act(item) for all, the teacher's `workers` at a time; returns the problems by item.

    Stops handing out items when the teacher is done for good, or after `PATIENCE` failures
    in a row; what is under way is waited for, since it is being paid for.
    """
    from finer1_lite.runtime.console import progress_bar  # it loads torch
    from finer1_lite.runtime.workers import thread_pool

    problems: list[str] = []
    in_a_row = 0
    bar = progress_bar(len(items), what, hidden=not bars)
    with thread_pool(teacher.workers) as pool, bar:
        tasks = {pool.submit(act, item): item for item in items}
        for task in as_completed(tasks):
            bar.update()
            error = None if task.cancelled() else task.exception()
            in_a_row = in_a_row + 1 if error else 0
            if error and (type(error) is not TeacherError or in_a_row >= PATIENCE):
                for other in tasks:
                    other.cancel()  # those that have not begun
            if isinstance(error, TeacherError):
                problems.append(f"{getattr(tasks[task], 'id', tasks[task])}: {error}")
            elif error:
                raise error
    return problems


# --- over HTTP -------------------------------------------------------------------------------


@dataclass
class Endpoint:
    """Chat completions with one picture. `workers` requests are under way at most.

    url: the part before /chat/completions; key_env: the environment variable of the key;
    tries: of one request, with growing pauses (a server's Retry-After goes first); timeout:
    seconds for a whole body. ValueError for an address that cannot work or holds a secret.
    """

    url: str
    model: str
    ledger: Ledger
    key_env: str = "OPENAI_API_KEY"
    max_tokens: int = 2048
    temperature: float = 0.7
    max_side: int = 1024  # pixels; a larger picture is reduced before it is sent
    workers: int = 4
    tries: int = 5
    timeout: float = 120.0
    request: Sequence[str] = ()  # KEY=VALUE of what is sent otherwise; null: not at all

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--url {self.url!r}: write http://HOST:PORT/v1 or https://HOST/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"--url for {parts.hostname} holds a name, password or query: they would end in "
                f"files; put the key into the environment variable {self.key_env}"
            )
        self._own = read_key_values(self.request, "--request")
        self._key = os.environ.get(self.key_env, "").strip()
        plain = self._key.isascii() and self._key.isprintable()  # else HTTP refuses, and quotes it
        few = min(self.tries, self.workers) < 1
        rules = {
            f"the key in {self.key_env} holds a line break or a sign that no key has": plain,
            f"--tries {self.tries}, --workers {self.workers}: give 1 or more": not few,
            f"--timeout {self.timeout:g}: give more than 0 seconds": self.timeout > 0,
        }
        require(rules)
        self._client = openai.OpenAI(
            base_url=self.url,
            api_key=self._key or "none",  # a server without keys takes anything
            max_retries=self.tries - 1,
            timeout=self.timeout,
            http_client=_BoundedClient(self.ledger, self.timeout),
        )

    @property
    def identity(self) -> dict:
        """What replies depend on; the key is no part of it."""
        names = ("url", "model", "max_tokens", "temperature", "max_side")
        own = {"request": self._own} if self._own else {}
        return {"teacher": "endpoint"} | {name: getattr(self, name) for name in names} | own

    def ask(self, photo: Photo | None, prompt: TeacherPrompt, samples: Samples) -> list[Reply]:
        """Raise TeacherError when `tries` have failed, TeacherStopped when refused for good."""
        content: list[dict] = [{"type": "text", "text": prompt.text}]
        if photo is not None:
            picture = {"url": data_url(photo.image(whole=True), self.max_side)}
            content.insert(0, {"type": "image_url", "image_url": picture})
        return [self._complete(content, sample) for sample in samples]

    def _complete(self, content: list[dict], sample: int) -> Reply:
        """Send one request until there is a completion; none to a model that refused for good."""
        if self.model in self.ledger.refused:
            raise TeacherStopped(self.ledger.refused[self.model])
        usual = {"max_tokens": self.max_tokens, "temperature": self.temperature, "seed": sample}
        sent = {name: value for name, value in (usual | self._own).items() if value is not None}
        message = {"role": "user", "content": content}
        create = self._client.chat.completions.with_raw_response.create
        try:
            response = create(model=self.model, messages=[message], extra_body=sent)
        except openai.APIError as error:
            cause = error.__cause__ or error  # what happened, under the library's general word
            said, status = f"{type(cause).__name__}: {cause}", 0
            if isinstance(error, openai.APIStatusError):
                status, words = error.status_code, " ".join(error.response.text.split())
                said = f"HTTP {status}: {words}"  # the server's own
            said = self._without_key(said)[:400]
            if status in OF_ONE:
                self.ledger.count("gave up")
                raise TeacherError(said) from None
            if (400 <= status < 500 and status not in MAY_PASS) or "insufficient_quota" in said:
                named = " ".join(f"{name}=null" for name in sent if name in said)
                about = re.search(
                    "support|unknown|unrecogni|not permitted|extra|invalid", said.casefold()
                )
                said += f" (--request {named} leaves that out)" if named and about else ""
                self.ledger.refused[self.model] = said
                raise TeacherStopped(said) from None
            self.ledger.count("gave up")
            raise TeacherError(f"no answer after {self.tries} tries; the last: {said}") from None
        reply = read_reply(response.content)
        if len(reply.text) > MAX_CHARACTERS:
            reply.finish = "oversized"
        reply.text = self._without_key(reply.text)[:MAX_CHARACTERS]
        if reply.finish == "oversized":
            self.ledger.count("oversized answer")
        return reply

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, HIDDEN) if len(self._key) >= SECRET else text


class _BoundedClient(openai.DefaultHttpxClient):
    """The library's HTTP client, each exchange counted, bounded in size and time, and whole."""

    def __init__(self, ledger: Ledger, timeout: float) -> None:
        super().__init__()
        self.ledger = ledger
        self.seconds = timeout

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request and read its body; raises one of `FAILURES`."""
        self.ledger.count("http requests")
        try:
            response = super().send(request, **(options | {"stream": True}))
            with closing(response):
                body = self._read(response)
            status = response.status_code
            if response.is_success:
                status = error_status(body) or status
                if status < 400:
                    read_reply(body)
        except httpx2.RequestError as error:
            self.ledger.count(next(FAILURES[kind] for kind in FAILURES if isinstance(error, kind)))
            raise
        if status >= 400:
            self.ledger.count(f"http {status}")
        kept = {k: v for k, v in response.headers.items() if not k.startswith("content-")}
        return httpx2.Response(status, headers=kept, content=body, request=request)

    def _read(self, response: httpx2.Response) -> bytes:
        """Read the body piece by piece, so that neither size nor time run away."""
        deadline = time.monotonic() + self.seconds
        body = bytearray()
        for piece in response.iter_bytes():
            body += piece
            if len(body) > MAX_BYTES:
                return OVERSIZED
            if time.monotonic() > deadline:
                raise httpx2.ReadTimeout(f"the answer took longer than {self.seconds:g} s")
        return bytes(body)


def error_status(body: bytes) -> int:
    """The status of an error that came as a success (500 where it says none); 0 for none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):  # `read_reply` tells it
        return 0
    choices = found.get("choices") if isinstance(found, dict) else None
    places = [found, *(choices if isinstance(choices, list) else ())]
    errors = [one["error"] for one in places if isinstance(one, dict) and one.get("error")]
    if not errors:
        return 0
    code = str(errors[0].get("code")) if isinstance(errors[0], dict) else ""
    return int(code) if re.fullmatch("[45][0-9]{2}", code) else 500


def read_reply(body: bytes) -> Reply:
    """Read a chat completion; httpx2.DecodingError, with its beginning, for anything that is none.

    The content is a text, or a list of parts: those of the type text count, a thought does not.
    Where it is none, a refusal is.
    """
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        usage = found.get("usage") or {}
        tokens = [int(usage.get(k) or 0) for k in ("prompt_tokens", "completion_tokens")]
        message = choice["message"]
        text = message.get("content") or message.get("refusal") or ""
        if isinstance(text, list):
            text = "".join(part["text"] for part in text if part["type"] == "text")
        text = text.encode("utf-8", "replace").decode()
        return Reply(text, *tokens, str(choice.get("finish_reason") or "stop")[:20])
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        said = body[:200].decode("utf-8", "replace")
        raise httpx2.DecodingError(f"no chat completion: {said}") from None


def data_url(image: Image.Image, max_side: int) -> str:
    """Write the picture as a PNG inside a URL, its longer side at most `max_side` pixels."""
    return "data:image/png;base64," + base64.b64encode(small(image, max_side)).decode()
