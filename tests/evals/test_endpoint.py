"""An evaluation over HTTP: hostile server, nothing paid twice, no missing answer scored."""

import json
import logging

import pytest
from hostile import Moods, server

from finer1_lite import evaluate, prompts
from finer1_lite.__main__ import main, read_command
from finer1_lite.chains.client import data_url
from finer1_lite.chains.commands import EndpointOptions
from finer1_lite.data.benchmark import Benchmark, Condition
from finer1_lite.evals.endpoint import NO_ANSWER, EndpointAnswerer, Remote, evaluate_endpoint
from finer1_lite.runtime import files
from finer1_lite.species import Collection

KEY = "sk-not-for-any-disk-0815"
OPEN = Condition("answer", "open")
CLOSED = Condition("think", "closed")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def three(birds):
    few = Collection("bird", birds.species, birds.train, birds.test[:60:20], birds.distance)
    return Benchmark.of_collection(few, "birds", "species")


def seeing(three):
    """The right name where a picture is sent, nothing without one."""
    labels = {data_url(i.image(), 1024): i.label for i in three.items}

    def reply(request):
        *pictures, _ = request["messages"][0]["content"]
        names = [labels[p["image_url"]["url"]] for p in pictures]
        return prompts.answer(names[0]) if names else "I see no picture."

    return reply


def ask(moods, three, folder, condition=OPEN, **changed):
    """One start of one condition; (rows, questions left, ledger)."""
    with server(moods) as url:
        service = EndpointOptions(**({"timeout": 10, "workers": 2, "tries": 2} | changed))
        there = Remote(url, ("m",), service)
        real = Remote.endpoint

        def same_place(self, *args):  # the port is another each time; the memory must not care
            found = real(self, *args)
            found.url, found.first_wait = "http://one.endpoint/v1", 0.01
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Remote, "endpoint", same_place)
            ledger = there.ledger()
            model = EndpointAnswerer("m", there, ledger, folder / "cache", 16)
            left = evaluate_endpoint(model, three, condition, folder)
    return (
        [r for _, r in files.read(folder / "answers/m" / f"{condition.name}.jsonl")],
        left,
        ledger,
    )


def test_pictures_travel_and_answers_are_scored_by_the_same_parser(three, tmp_path):
    moods = Moods(reply=seeing(three))
    rows, left, _ = ask(moods, three, tmp_path)
    assert left == 0 and len(rows) == 3 and all(r["correct"] and r["tokens"] == 20 for r in rows)
    rows, _, _ = ask(moods, three, tmp_path, CLOSED)
    assert len(rows) == 12 and all(r["correct"] and len(r["options"]) == 4 for r in rows)
    blind, _, _ = ask(moods, three, tmp_path, Condition("answer", "open", picture=False))
    assert not any(r["correct"] or r["named"] or r["picture"] for r in blind)
    assert len(blind) == 3 and moods.seen.total() == 3 + 12 + 1  # the same words: asked once
    sent = [json.loads(body) for _, body in moods.bodies]
    assert all(r["temperature"] == 0 and r["max_tokens"] == 16 for r in sent)
    assert ["image_url" in body for _, body in moods.bodies] == [True] * 15 + [False]


def test_a_finished_condition_asks_nothing_and_a_lost_file_nothing_twice(three, tmp_path):
    moods = Moods(reply=seeing(three))
    first, _, _ = ask(moods, three, tmp_path)
    assert ask(moods, three, tmp_path)[0] == first and moods.seen.total() == 3
    (tmp_path / "answers/m/answer-open.jsonl").unlink()  # killed before it was written
    again, _, ledger = ask(moods, three, tmp_path)
    assert again == first and moods.seen.total() == 3 and ledger.counts["from cache"] == 3


@pytest.mark.parametrize(
    "mood",
    ["500", "drop", "cut", "bad", "odd", "429", pytest.param("slow", marks=pytest.mark.slow)],
)
def test_a_question_without_answer_is_counted_unscored_and_asked_again(mood, three, tmp_path):
    rows, left, _ = ask(
        Moods(["good", mood, mood], reply=seeing(three)),
        three,
        tmp_path,
        workers=1,
        timeout=3 if mood == "slow" else 10,
    )
    lost = [r for r in rows if (r["error"] or "").startswith(NO_ANSWER)]
    assert left == len(lost) == 1 and lost[0]["error"].startswith("no answer:")
    assert sum(r["correct"] for r in rows) == 2
    moods = Moods(reply=seeing(three))
    rows, left, _ = ask(moods, three, tmp_path)
    assert left == 0 and all(r["correct"] for r in rows) and moods.seen.total() == 1


def test_a_refusal_or_a_spent_budget_ends_the_start_and_is_not_an_answer(three, tmp_path):
    moods = Moods(default="401")
    rows, left, _ = ask(moods, three, tmp_path / "a", workers=1)
    assert left == 3 and moods.seen.total() <= 2 and all(r["error"] for r in rows)
    moods = Moods(reply=seeing(three))
    rows, left, ledger = ask(moods, three, tmp_path / "b", workers=1, max_requests=2)
    assert left == 1 and moods.seen.total() == 2
    cost = {"price_in": 1e4, "price_out": 1e4, "max_cost": 1.0}  # a reply costs 1.2
    rows, left, ledger = ask(moods, three, tmp_path / "c", workers=1, **cost)
    assert left == 2 and ledger.cost == pytest.approx(1.2)


def test_worthless_answers_are_paid_scored_wrong_and_bounded(three, tmp_path):
    odd = Moods(["empty", "huge", "endless"], reply=lambda _: "x")
    rows, left, _ = ask(odd, three, tmp_path, workers=1, timeout=20)
    assert left == 0 and not any(r["correct"] or r["error"] for r in rows)
    assert (
        sum(r["truncated"] for r in rows) == 2 and max(len(r["completion"]) for r in rows) <= 40_000
    )
    rows, _, _ = ask(Moods(reply=lambda _: "\ud800"), three, tmp_path / "b")
    assert rows[0]["completion"] == "?"  # no lone surrogate reaches a file


# --- the command -----------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_reports_what_is_left_and_the_same_command_asks_it(
    tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(evaluate, "generation", None)  # no model of this machine is asked
    moods = Moods(["good"] * 30, "500", reply=lambda _: "<answer>x</answer>")
    with server(moods) as url:
        command = [
            "evaluate",
            "--endpoint",
            url,
            "--model",
            "org/m",
            "--out",
            str(tmp_path),
            "--test-pictures",
            "24",
            "--prompts",
            "answer",
            "--tasks",
            "open",
            "--no-blind",
            "--tries",
            "1",
            "--workers",
            "1",
        ]
        assert main(command) == 2
        (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
        assert "org/m answer-open: 30 questions without answer" in said
        run = tmp_path / "evaluation"
        page = (run / "report.md").read_text()
        assert "| org/m | answer | open | 30 of 60 | no answer:" in page
        moods.default = "good"
        assert main(command) == 0
    assert "Not scored" not in (run / "report.md").read_text()
    assert json.loads((run / "requests.json").read_text())["from cache"] == 30
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and KEY.encode() in f.read_bytes()]


def test_a_refusal_is_shown_on_the_screen_and_asked_once(tmp_path, caplog):
    moods = Moods(default="said")
    moods.status, moods.said = 400, b'{"error": {"message": "temperature is not supported"}}'
    command = "evaluate --model m --test-pictures 24 --workers 1 --no-blind --endpoint".split()
    with server(moods) as url:
        assert main([*command, url, "--out", str(tmp_path)]) == 2
    assert moods.seen.total() == 1  # of six conditions
    for said in ("m think-open: 60 questions", "is not supported", "--request temperature=null"):
        assert said in caplog.text


@pytest.mark.parametrize("mood", ["echo", "401"])
def test_the_key_is_never_written(mood, three, tmp_path, caplog):
    ask(Moods(default=mood), three, tmp_path)
    written = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    assert written and KEY.encode() not in written and KEY not in caplog.text


def test_settings_of_an_endpoint_are_checked_before_anything_is_written(tmp_path, caplog):
    for args, said in (
        (["--endpoint", "http://h/v1"], "give both"),
        (["--endpoint", "ftp://h", "--model", "m"], "write http"),
        (["--endpoint", f"http://u:{KEY}@h/v1", "--model", "m"], "environment variable"),
        ([], "no model is named"),
        (["--endpoint", "http://h/v1", "--model", "m", "--baselines", "vision_tower"], "give one"),
    ):
        caplog.clear()
        assert main(["evaluate", *args, "--out", str(tmp_path / "runs")]) == 2
        assert said in caplog.text and KEY not in caplog.text
    assert not (tmp_path / "runs").exists()


def test_an_endpoint_gets_room_to_think():
    job = read_command(["evaluate", "--endpoint", "http://h/v1", "--model", "m"]).job()
    assert job.preset.max_new_tokens == 1024 and job.endpoint.models == ("m",)
    job = read_command(["evaluate", "m", "--max-new-tokens", "7"]).job()
    assert job.preset.max_new_tokens == 7 and job.endpoint is None
