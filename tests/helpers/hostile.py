"""An HTTP server that plays an OpenAI-compatible endpoint in any mood. For tests only."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


def completion(text: str) -> bytes:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": USAGE,
        }
    ).encode()


class Moods:
    """What the server does next: `script` first (one entry a request), then `default`.

    good, slow, 429, 500, 401, cut (inside the body), drop (before it), bad (no JSON), odd
    (JSON of another kind), empty, huge (text), endless (body), echo (the request's own key),
    said (the body `said` with the status `status`).
    """

    def __init__(self, script=(), default="good", reply=lambda request: "a text"):
        self.script, self.default, self.reply = list(script), default, reply
        self.seen, self.bodies, self.lock = Counter(), [], threading.Lock()
        self.under_way = self.most_at_a_time = 0
        self.said, self.status = b"", 200

    def next(self, body: str) -> str:
        with self.lock:
            mood = self.script.pop(0) if self.script else self.default
            self.seen[mood] += 1
            self.bodies.append((mood, body))
            return mood


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        moods: Moods = self.server.moods
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with moods.lock:
            moods.under_way += 1
            moods.most_at_a_time = max(moods.most_at_a_time, moods.under_way)
        try:
            self._answer(moods, moods.next(body), body)
        except OSError:
            pass  # the client gave up first
        finally:
            with moods.lock:
                moods.under_way -= 1

    def _answer(self, moods: Moods, mood: str, body: str) -> None:
        key = self.headers.get("Authorization", "")
        if mood == "drop":
            return self._hang_up()
        if mood in ("429", "500", "401"):
            said = {"error": {"message": f"refused {key}", "type": mood}}
            return self._send(int(mood), json.dumps(said).encode())
        if mood == "said":
            return self._send(moods.status, moods.said)
        time.sleep({"slow": 4.0, "good": 0.02}.get(mood, 0))
        text = {"empty": "", "huge": "word " * 20_000, "echo": f"your key is {key}"}.get(mood)
        whole = completion(moods.reply(json.loads(body)) if text is None else text)
        if mood == "cut":
            self._head(200, len(whole))
            self.wfile.write(whole[: len(whole) // 2])
            return self._hang_up()
        whole = {"bad": b"<html>busy</html>", "odd": b'{"choices": []}'}.get(mood, whole)
        if mood == "endless":
            self._head(200, 10**9)
            for _ in range(2000):
                self.wfile.write(b" " * 10_000)
            return self._hang_up()
        self._send(200, whole)

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        if status == 429:
            self.send_header("Retry-After", "0.05")
        self.end_headers()

    def _send(self, status: int, body: bytes) -> None:
        self._head(status, len(body))
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()


@contextmanager
def server(moods: Moods):
    """Serves on a free port of this machine; gives the URL. Clients wait less before a try."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    http.moods, http.daemon_threads = moods, True
    http.handle_error = lambda *_: None  # a client that hangs up is part of the play
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    wait = mock.patch("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    try:
        with wait:
            yield f"http://127.0.0.1:{http.server_address[1]}/v1"
    finally:
        http.shutdown()
        http.server_close()
