"""A hostile endpoint: nothing is lost, nothing paid twice, each case counted, no key on disk."""

import _thread
import json
import re
import signal
import time
from types import SimpleNamespace

import httpx2
import pytest
from hostile import Moods, server

from finer1_lite.chains import teacher_prompts
from finer1_lite.chains.client import (
    MAX_CHARACTERS,
    Cached,
    Endpoint,
    Ledger,
    Reply,
    TeacherError,
    TeacherStopped,
    data_url,
    in_parallel,
    read_reply,
)
from finer1_lite.chains.make import ChainJob, Settings
from finer1_lite.chains.teacher_prompts import TeacherPrompt
from finer1_lite.chains.teachers import Oracle
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Collection

KEY = "sk-not-for-any-disk-4711"
PROMPT = teacher_prompts.description_prompt("bird", 0)
QUICK = {"timeout": 3.0, "workers": 3}  # a busy machine answers in time


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def two(birds) -> Collection:
    """Two neighbouring species with two pictures each."""
    names = [birds.seen_names[0]]
    names += birds.neighbours(names[0], birds.seen_names)[:1]
    train = [p for n in names for p in [q for q in birds.train if q.species == n][:2]]
    return Collection("bird", birds.species, tuple(train), (), birds.distance)


def ask(moods: Moods, tmp_path, samples=(0,), **changed):
    """One request through cache and endpoint; (replies, ledger)."""
    ledger = Ledger(price_in=1.0, price_out=10.0)
    with server(moods) as url:
        endpoint = Endpoint(url, "m", ledger, **(QUICK | changed))
        endpoint.url = "http://one.endpoint/v1"  # the port is another each time
        return Cached(endpoint, tmp_path, ledger).ask(None, PROMPT, list(samples)), ledger


@pytest.mark.parametrize(
    "mood, counted",
    [
        ("429", "http 429"),
        ("500", "http 500"),
        ("drop", "connection lost"),
        pytest.param("slow", "time-out", marks=pytest.mark.slow),
        ("cut", "connection lost"),
        ("bad", "bad JSON"),
        ("odd", "bad JSON"),
    ],
)
def test_what_may_pass_is_tried_again_and_counted(mood, counted, tmp_path):
    moods = Moods([mood, mood])
    (reply,), ledger = ask(moods, tmp_path)
    assert reply.text == "a text"
    assert ledger.counts[counted] == 2 and ledger.counts["http requests"] == 3
    assert ledger.counts["tokens_in"] == 100  # paid once
    assert ledger.cost == pytest.approx((100 * 1 + 20 * 10) / 1e6)


@pytest.mark.parametrize(
    "mood, counted, text",
    [
        ("empty", "empty answer", ""),
        ("huge", "oversized answer", "word"),
        ("endless", "oversized answer", ""),
    ],
)
def test_what_was_paid_is_kept_even_if_it_is_worthless(mood, counted, text, tmp_path):
    (reply,), ledger = ask(Moods([mood]), tmp_path, timeout=20)
    assert reply.text.startswith(text) and len(reply.text) <= MAX_CHARACTERS
    assert ledger.counts[counted] == 1
    again = Moods()
    (same,), _ = ask(again, tmp_path)
    assert same == reply and not again.seen


def test_half_a_character_can_be_sent_and_written_again():
    body = json.dumps({"choices": [{"message": {"content": "an owl \ud800"}}]})
    assert read_reply(body.encode()) == Reply("an owl ?")
    with pytest.raises(httpx2.DecodingError, match="no chat completion"):
        read_reply(b'{"choices": [{"message": {"content": ["an owl"]}}]}')


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (
            {"content": [{"type": "thinking", "thinking": []}, {"type": "text", "text": "owl"}]},
            "owl",
        ),
        ({"content": [{"type": "text", "text": "an "}, {"type": "text", "text": "owl"}]}, "an owl"),
        ({"content": None, "reasoning_content": "hm"}, ""),
        ({"content": None, "refusal": "I cannot."}, "I cannot."),
    ],
)
def test_an_answer_in_parts_or_a_refusal_is_read(message, text):
    assert read_reply(json.dumps({"choices": [{"message": message}]}).encode()) == Reply(text)


@pytest.mark.parametrize(
    ("error", "stops"),
    [
        ({"message": "Insufficient credits", "code": 402}, True),
        ({"message": "no such field", "code": "400"}, True),
        ({"message": "quota", "code": "insufficient_quota"}, True),
        ({"message": "Provider returned error", "code": 429}, False),
        ("model is loading", False),
    ],
)
def test_an_error_that_comes_as_a_success_is_told_in_the_servers_words(error, stops, tmp_path):
    moods = Moods(default="said")
    moods.said = json.dumps({"error": error}).encode()
    with pytest.raises(
        TeacherError, match=error if isinstance(error, str) else error["message"]
    ) as e:
        ask(moods, tmp_path, tries=2)
    assert (type(e.value) is TeacherStopped) == stops
    moods.default, moods.said = "good", b""
    assert ask(moods, tmp_path)[0][0].text == "a text"


def test_what_is_no_completion_is_shown_as_it_came(tmp_path):
    moods = Moods(default="said")
    moods.said = b'{"object": "error", "message": "out of cards"}'
    with pytest.raises(TeacherError, match="no chat completion.*out of cards"):
        ask(moods, tmp_path, tries=1)


def test_a_parameter_that_is_refused_is_named_and_can_be_left_out(tmp_path):
    moods = Moods(default="said")
    moods.status, moods.said = 400, b'{"error": {"message": "Unknown name \\"seed\\""}}'
    with pytest.raises(TeacherStopped, match="--request seed=null leaves that out"):
        ask(moods, tmp_path, samples=(0, 1))
    assert moods.seen.total() == 1
    moods = Moods()
    ask(moods, tmp_path, request=("seed=null", "max_tokens=null", "max_completion_tokens=9"))
    sent = json.loads(moods.bodies[0][1])
    assert sent.keys() == {"model", "messages", "temperature", "max_completion_tokens"}
    with pytest.raises(ValueError, match="--request seed: write KEY=VALUE"):
        ask(moods, tmp_path, request=("seed",))


@pytest.mark.parametrize("status, asked", [(413, 2), (415, 2), (400, 1)])
def test_a_picture_that_is_too_large_stops_its_own_request_alone(tmp_path, status, asked):
    moods = Moods(default="said")
    moods.status, moods.said = status, b'{"error": {"message": "reduce max_tokens"}}'
    ledger = Ledger()
    with server(moods) as url:
        for _ in range(2):  # the second is sent unless the model refused for good
            teacher = Endpoint(url, "m", ledger, **QUICK)
            with pytest.raises(TeacherError, match="reduce max_tokens") as caught:
                teacher.ask(None, PROMPT, [0])
            assert "leaves that out" not in str(caught.value)
    assert moods.seen.total() == asked


def test_a_request_may_hold_a_dot(tmp_path):
    moods = Moods()
    ask(moods, tmp_path, request=("a.b=1",))
    assert json.loads(moods.bodies[0][1])["a.b"] == 1


def test_refused_for_good_stops_at_once(tmp_path):
    moods = Moods(default="401")
    with pytest.raises(TeacherStopped) as caught:
        ask(moods, tmp_path)
    assert moods.seen.total() == 1 and KEY not in str(caught.value)


def test_tries_are_bounded_and_the_next_start_asks_only_for_the_rest(tmp_path):
    with pytest.raises(TeacherError, match="after 5 tries"):
        ask(Moods(["good"], default="500"), tmp_path, samples=(0, 1))
    moods = Moods()
    replies, ledger = ask(moods, tmp_path, samples=(0, 1))
    assert len(replies) == 2 and moods.seen.total() == 1  # the first was paid already
    assert ledger.counts["from cache"] == 1


def test_picture_words_and_sample_each_make_another_request(tmp_path, two):
    first, second = two.train[:2]
    moods = Moods()
    ledger = Ledger()
    with server(moods) as url:
        teacher = Cached(Endpoint(url, "m", ledger, **QUICK), tmp_path, ledger)
        for photo, prompt in (
            (first, PROMPT),
            (second, PROMPT),
            (first, teacher_prompts.description_prompt("bird", 1)),
        ):
            for _ in range(2):
                teacher.ask(photo, prompt, [0])
        teacher.ask(first, PROMPT, [1])
    assert moods.seen.total() == 4
    assert '"image_url"' in moods.bodies[0][1] and "data:image/png;base64," in moods.bodies[0][1]


@pytest.mark.parametrize(
    "url", ["ftp://x/v1", "localhost:8000", f"http://me:{KEY}@host/v1", f"http://host/v1?key={KEY}"]
)
def test_addresses_that_cannot_work_or_hold_a_secret_are_refused(url):
    with pytest.raises(ValueError) as caught:
        Endpoint(url, "m", Ledger())
    assert KEY not in str(caught.value) or "localhost" in url


# --- the whole job ---------------------------------------------------------------------


def oracle_replies(world, two):
    """The endpoint answers as the oracle would, by the picture and the words of the request."""
    oracle = Oracle(world, overlooks=0.1)
    by_picture = {data_url(p.image(), 1024): p for p in two.train}

    def reply(request: dict) -> str:
        *pictures, words = request["messages"][0]["content"]
        text = words["text"]
        if not pictures:
            return oracle.ask(None, TeacherPrompt("extract", text), [0])[0].text
        photo = by_picture[pictures[0]["image_url"]["url"]]
        if not re.search(r"Right is: (.+?)\. Do not", text):
            return oracle.ask(photo, TeacherPrompt("describe", ""), [request["seed"]])[0].text
        listed = re.search(r"^candidates: (.+)", text, re.MULTILINE)[1].split(", ")
        kept = re.search(r"be seen: (.+)", text)[1].split("; ")
        prompt = TeacherPrompt("write", text, tuple(listed), tuple(kept))
        chain = oracle.ask(photo, prompt, [0])[0].text
        said = f"analysis: view {request['seed']}, {', '.join(kept)}\n"  # and nothing else
        return re.sub("analysis: .*\n", said, chain)

    return reply


def job(url: str, folder, two, tries=5, **budget) -> ChainJob:
    ledger = Ledger(price_in=1.0, price_out=1.0, **budget)
    endpoint = Endpoint(url, "m", ledger, tries=tries, **QUICK)
    endpoint.url = "http://one.endpoint/v1"
    teacher = Cached(endpoint, folder / "cache", ledger)
    settings = Settings(descriptions=3, neighbours=1, rounds=6)
    return ChainJob(folder, two, teacher, settings, ledger)


def test_the_job_survives_every_mood_and_keeps_the_key_off_the_disk(world, two, tmp_path):
    """Starts are stopped by the budget or by failures until all is there."""
    moods = Moods(
        ["429", "good", "500", "drop", "slow", "bad", "echo", "cut", "odd", "empty"],
        reply=oracle_replies(world, two),
    )
    starts, counted, said = 0, {}, ""
    with server(moods) as url:
        while starts < 11:
            starts += 1
            work = job(url, tmp_path / "set", two, max_requests=6)
            try:
                report = work.build()
                break
            except DataError as error:
                said += str(error)
            finally:
                for name, n in work.ledger.counts.items():
                    counted[name] = counted.get(name, 0) + n
    assert 1 < starts < 11 and "same command goes on" in said and "budget of 6" in said
    assert report["chains"] == 4 and report["stopped"] == []
    for mood, name in (("429", "http 429"), ("500", "http 500"), ("slow", "time-out")):
        assert counted[name] == moods.seen[mood] == 1
    assert counted["connection lost"] == 2 and counted["bad JSON"] == 2
    assert counted["empty answer"] == 1
    paid = [body for mood, body in moods.bodies if mood in ("good", "echo", "empty")]
    assert len(paid) == len(set(paid)) == report["all paid"]["answers"]  # nothing twice
    assert moods.most_at_a_time <= QUICK["workers"] + 1  # one that timed out may still sleep
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert len(files) > 15
    assert not [f for f in files if KEY.encode() in f.read_bytes()]
    assert KEY not in said and KEY not in json.dumps(report)


def test_a_finished_job_asks_for_nothing(world, two, tmp_path):
    moods = Moods(reply=oracle_replies(world, two))
    with server(moods) as url:
        job(url, tmp_path, two).build()
        before, first = moods.seen.total(), (tmp_path / "chains.jsonl").read_bytes()
        job(url, tmp_path, two).build()
    assert moods.seen.total() == before
    assert (tmp_path / "chains.jsonl").read_bytes() == first


def test_an_endpoint_that_is_down_ends_the_start_early(two, tmp_path):
    moods = Moods(default="500")
    with server(moods) as url, pytest.raises(DataError, match="same command goes on"):
        job(url, tmp_path, two, tries=2).build()
    assert moods.seen["500"] <= 2 * len(two.train)


@pytest.mark.parametrize("key", ["sk-secret\n# mine", "sk-secret\u201d", "sk-secret\x01"])
def test_a_key_that_no_request_can_carry_is_refused_unquoted(key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(DataError, match="the key in OPENAI_API_KEY holds") as error:
        Endpoint("http://127.0.0.1:1/v1", "m", Ledger())
    assert "secret" not in str(error.value)


def test_limits_of_an_endpoint_that_make_no_sense_are_named_together():
    limits = {"tries": 0, "workers": 0, "timeout": float("nan")}
    with pytest.raises(DataError) as error:
        Endpoint("http://127.0.0.1:1/v1", "m", Ledger(), **limits)
    assert "--tries 0, --workers 0: give 1 or more" in str(error.value)
    assert "--timeout nan: give more than 0" in str(error.value)


@pytest.mark.parametrize("key, text", [("a", "a text"), ("ollama", "a text"), (KEY, "[key] text")])
def test_a_dummy_key_masks_no_word_of_a_reply(key, text, tmp_path, monkeypatch):
    """A server that checks no key is often given "none" or "x"; the word may stand in any text."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    replied = "a text" if key != KEY else f"{KEY} text"
    (reply,), _ = ask(Moods(["good"], reply=lambda request: replied), tmp_path)
    assert reply.text == text


def test_ctrl_c_hands_nothing_more_out_and_waits_for_what_is_under_way():
    """Each item may be paid for."""
    begun, ended = [], []

    def act(item: int) -> None:
        begun.append(item)
        if item == 4:  # all threads have begun
            _thread.interrupt_main()
        time.sleep(0.2)
        ended.append(item)

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background has none
    try:
        with pytest.raises(KeyboardInterrupt):
            in_parallel(SimpleNamespace(workers=2), range(30), act, "items", bars=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(begun) == sorted(ended)
    assert len(begun) < 10
