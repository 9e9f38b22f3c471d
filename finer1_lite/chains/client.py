"""A teacher behind any OpenAI-compatible HTTP endpoint: vLLM, or a service in a cloud.

What can go wrong is expected, counted and survived: refusals (429, 5xx), slow or cut
connections, broken JSON, empty and enormous answers. The key is read from the environment
when a request is sent, and taken out of every text that comes back or is shown.
"""

import base64
import io
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx2
import openai
from PIL import Image

from finer1_lite.chains.teachers import Ledger, Reply, TeacherError, TeacherStopped
from finer1_lite.prompts import Asked
from finer1_lite.species import Photo

HIDDEN = "[key]"
NO_KEY = "none"  # what a server without keys is sent
MAX_BYTES = 4_000_000  # of one HTTP answer; more is cut off while it arrives
MAX_CHARACTERS = 40_000  # of one text; more is no chain
MAX_WAIT = 60.0  # seconds between two tries
FOR_GOOD = (400, 401, 403, 404, 422)  # asking again would not help


class Oversized(Exception):
    """The answer was longer than `MAX_BYTES`: paid for, and worth nothing."""


@dataclass
class Endpoint:
    """Chat completions with one picture. `workers` requests are under way at most.

    url: the part before /chat/completions; key_env: the environment variable of the key;
    tries: of one request; timeout: seconds for a whole answer; first_wait: seconds before
    the second try, doubled each time (a server's Retry-After goes first).
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
    first_wait: float = 1.0
    client: openai.OpenAI = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--url {self.url!r}: write http://HOST:PORT/v1 or https://HOST/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"--url for {parts.hostname} holds a name, password or query: they would end in "
                f"files; put the key into the environment variable {self.key_env}"
            )
        self.client = openai.OpenAI(
            base_url=self.url, api_key=self._key() or NO_KEY, max_retries=0, timeout=self.timeout
        )

    @property
    def identity(self) -> dict:
        return {
            "teacher": "endpoint",
            "url": self.url,
            "model": self.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "max_side": self.max_side,
        }

    def ask(self, photo: Photo | None, asked: Asked, samples: Sequence[int]) -> list[Reply]:
        """Raises TeacherError when `tries` have failed, TeacherStopped when refused for good."""
        image = photo.image() if photo else None
        return [self._persist(self._request(image, asked.text, sample)) for sample in samples]

    # --- one request ---------------------------------------------------------------------

    def _request(self, image: Image.Image | None, text: str, sample: int) -> dict:
        content: list[dict] = [{"type": "text", "text": text}]
        if image is not None:
            content.insert(
                0, {"type": "image_url", "image_url": {"url": data_url(image, self.max_side)}}
            )
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": sample,
        }

    def _persist(self, request: dict) -> Reply:
        """Ask until there is an answer, waiting longer each time."""
        for attempt in range(self.tries):
            try:
                self.ledger.count("http requests")
                return self._answer(self._send(request))
            except Oversized:
                self.ledger.count("oversized answer")
                return Reply("", finish="oversized")
            except openai.APIStatusError as error:
                self.ledger.count(f"http {error.status_code}")
                if error.status_code in FOR_GOOD:
                    raise TeacherStopped(self._said(error)) from None
                said, wait = self._said(error), _retry_after(error)
            except (openai.APIError, httpx2.HTTPError, ValueError, OSError) as error:
                self.ledger.count(_kind(error))  # httpx2: cut or slow inside a body
                said, wait = self._said(error), None
            if attempt + 1 < self.tries:
                time.sleep(self._wait(attempt) if wait is None else min(wait, MAX_WAIT))
        self.ledger.count("gave up")
        raise TeacherError(f"no answer after {self.tries} tries; the last: {said}")

    def _send(self, request: dict) -> bytes:
        """The body of the answer, read piece by piece so that neither size nor time run away."""
        deadline, parts, size = time.monotonic() + self.timeout, [], 0
        create = self.client.chat.completions.with_streaming_response.create
        with create(**request) as response:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > MAX_BYTES:
                    raise Oversized
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the answer took longer than {self.timeout:g} s")
        return b"".join(parts)

    def _answer(self, body: bytes) -> Reply:
        """ValueError for anything that is no chat completion."""
        try:
            found = json.loads(body)
            choice = found["choices"][0]
            text = choice["message"]["content"] or ""
            usage = found.get("usage") or {}
            tokens = [int(usage.get(k) or 0) for k in ("prompt_tokens", "completion_tokens")]
            text = self._without_key(text)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"no chat completion ({type(error).__name__})") from None
        if len(text) > MAX_CHARACTERS:
            self.ledger.count("oversized answer")
            return Reply(text[:MAX_CHARACTERS], *tokens, "oversized")
        return Reply(text, *tokens, str(choice.get("finish_reason") or "stop")[:20])

    def _wait(self, attempt: int) -> float:
        """Doubling, with up to a quarter by chance: workers must not knock all at once."""
        return min(self.first_wait * 2**attempt, MAX_WAIT) * random.uniform(1.0, 1.25)

    # --- the key ---------------------------------------------------------------------------

    def _key(self) -> str:
        return os.environ.get(self.key_env, "").strip()

    def _without_key(self, text: str) -> str:
        return text.replace(self._key(), HIDDEN) if self._key() else text

    def _said(self, error: Exception) -> str:
        return self._without_key(f"{type(error).__name__}: {error}")[:300]


def data_url(image: Image.Image, max_side: int) -> str:
    """The picture as a PNG inside a URL, its longer side at most `max_side` pixels."""
    image = image.copy()
    image.thumbnail((max_side, max_side))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds that the server asks to wait; None where it does not say."""
    try:
        return max(0.0, float(error.response.headers.get("retry-after", "")))
    except ValueError:
        return None


def _kind(error: Exception) -> str:
    """The word under which the report counts a failure."""
    if isinstance(error, (openai.APITimeoutError, httpx2.TimeoutException, TimeoutError)):
        return "time-out"
    return "bad JSON" if isinstance(error, ValueError) else "connection lost"
