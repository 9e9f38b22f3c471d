"""Benchmarks: questions, records, going on after a kill, and completions that go wrong."""

import json
import time
from dataclasses import replace

import pytest
from hostile_texts import HOSTILE

from finer1_lite import evaluate, generation, prompts
from finer1_lite.data import benchmark, images, scoring
from finer1_lite.data.benchmark import Benchmark, Condition
from finer1_lite.evals import questions
from finer1_lite.evaluate import Completion, StudentAnswerer
from finer1_lite.generation import Rollouts
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Collection

CLOSED = Condition("answer", "closed")
OPEN = Condition("think", "open")


@pytest.fixture(scope="module")
def five(birds):
    few = Collection("bird", birds.species, birds.train, birds.test[:50:10], birds.distance)
    return Benchmark.of_collection(few, "birds", "species")


def answer(student, five, condition, folder, limit=4, batch=3):
    answerer = StudentAnswerer(student, "m", limit)
    steps = list(evaluate.evaluate(answerer, five, condition, folder, batch))
    assert steps == sorted(set(steps))
    return (folder / f"{condition.name}.jsonl").read_bytes()


def rows_of(data: bytes) -> list[dict]:
    return [json.loads(line) for line in data.decode().splitlines()]


# --- questions -------------------------------------------------------------------------


def test_every_answer_stands_at_every_position_once(five):
    asked = benchmark.questions(five, CLOSED)
    assert len(asked) == 4 * len(five.items)
    for item in five.items:
        places = [a.options.index(item.label) for a in asked if a.photo == item.photo]
        assert sorted(places) == [0, 1, 2, 3]


def test_questions_are_ordered_by_length_and_say_what_was_asked(five):
    asked = benchmark.questions(five, Condition("exact", "closed", letters=True))
    lengths = [len(a.text) for a in asked]
    assert lengths == sorted(lengths, reverse=True)
    assert "exact species of this bird" in asked[0].text and "(A) " in asked[0].text
    assert all(a.options is None for a in benchmark.questions(five, OPEN))
    plain = benchmark.questions(five, Condition("answer", "closed", order="shuffle"))
    assert len(plain) == len(five.items)
    assert plain[0].text == prompts.question("answer", "bird", plain[0].options)


def test_condition_names_differ_for_whatever_differs():
    conditions = [
        CLOSED,
        OPEN,
        Condition("answer", "closed", picture=False),
        Condition("answer", "open"),
        Condition("answer", "closed", order="shuffle"),
        Condition("answer", "closed", letters=True),
        Condition("answer", "open", samples=4),
    ]
    assert len({c.name for c in conditions}) == len(conditions)


def test_as_drawn_keeps_the_order_of_pictures_and_of_options(birds):
    few = Collection("bird", birds.species, birds.train, birds.test[:50:10], birds.distance)
    drawn = Benchmark.of_collection(few, as_drawn=True)
    asked = benchmark.questions(drawn, Condition("answer", "closed", order="shuffle"))
    assert [one.photo for one in asked] == [photo.id for photo in few.test]
    assert [list(one.options) for one in asked] == [few.options(photo) for photo in few.test]
    plain = benchmark.questions(Benchmark.of_collection(few), Condition("answer", "closed"))
    first = {one.photo: list(one.options) for one in plain if one.rotation == 0}
    assert first == {photo.id: few.options(photo) for photo in few.test}  # what lab asks
    turned = benchmark.questions(drawn, Condition("answer", "closed"))
    assert len(turned) == 4 * len(asked) and turned[0].options == asked[0].options


# --- running ---------------------------------------------------------------------------


def test_a_killed_condition_goes_on_with_the_same_bytes(student, five, tmp_path):
    whole = answer(student, five, CLOSED, tmp_path / "a")
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 20
    path = tmp_path / "a" / f"{CLOSED.name}.jsonl"
    for kept, torn in ((0, 10), (4, 30), (19, 0)):
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:torn])
        assert answer(student, five, CLOSED, tmp_path / "a") == whole


def test_samples_are_numbered_and_repeatable(student, five, tmp_path):
    condition = Condition("answer", "open", samples=2)
    first = answer(student, five, condition, tmp_path / "a")
    assert [r["sample"] for r in rows_of(first)] == [0, 1] * 5
    path = tmp_path / "a" / f"{condition.name}.jsonl"
    path.write_bytes(b"".join(first.splitlines(keepends=True)[:7]))
    assert answer(student, five, condition, tmp_path / "a") == first


def test_the_image_free_control_never_opens_a_picture(student, five, tmp_path):
    def burnt():
        raise AssertionError("looked")

    hidden = replace(five, items=tuple(replace(i, image=burnt) for i in five.items))
    found = rows_of(answer(student, hidden, Condition("answer", "open", picture=False), tmp_path))
    assert len(found) == 5 and not any(r["picture"] for r in found)


def test_a_picture_that_broke_is_counted_and_stops_nothing(student, five, tmp_path):
    def broken():
        raise images.PictureError("is broken")

    first, *rest = five.items
    bad = replace(first, image=broken)
    for items in ((bad, *rest), (bad,)):
        asked = replace(five, items=items)
        found = rows_of(answer(student, asked, OPEN, tmp_path / str(len(items))))
        assert len(found) == len(items)
        assert [r["error"] for r in found if r["photo"] == bad.photo] == ["is broken"]
        assert sum(bool(r["error"]) for r in found) == 1


def test_missing_pictures_are_counted_before_anything_is_asked(tmp_path, birds):
    lines = [
        {"image_path": f"{i}.png", "question": "?", "options": ["a", "b"], "ground_truth": "a"}
        for i in range(3)
    ]
    path = tmp_path / "bird_seen.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    birds.test[0].image().save(tmp_path / "1.png")
    with pytest.raises(DataError, match="2 of 3 pictures are missing"):
        questions.of_files([path], tmp_path)
    found = questions.of_files([path], tmp_path, allow_missing=True)
    assert (len(found.items), found.missing) == (1, 2)
    assert found.items[0].coarse == "bird" and found.items[0].image().size == (84, 84)
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match="3 of 3"):
        questions.of_files([path], tmp_path, allow_missing=True)


# --- answers that go wrong -------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_answers_are_scored_in_bounded_time(five, text):
    for condition in (OPEN, Condition("answer", "closed", letters=True)):
        one = benchmark.questions(five, condition)[0]
        start = time.process_time()
        row = evaluate.record(five, condition, one, Completion(text), model="m")
        assert time.process_time() - start < 1
        assert row["named"] is None and row["correct"] is False
        json.dumps(row)


def test_an_endless_model_is_cut_and_counted(student, five, tmp_path, monkeypatch):
    """A student that never ends its turn: the limit ends it, the record says so."""
    tokenizer = student.processor.tokenizer
    word = tokenizer.encode("wren")[0]
    monkeypatch.setattr(generation, "pick_tokens", lambda logits, *_: logits.argmax(-1) * 0 + word)
    found = rows_of(answer(student, five, OPEN, tmp_path, limit=7))
    assert all(r["truncated"] and r["tokens"] == 7 and r["named"] is None for r in found)


def test_a_batch_of_hostile_answers_becomes_records(student, five, tmp_path, monkeypatch):
    def generate(model, processor, batch, *, num_generations, **_):
        import torch

        texts = (list(HOSTILE.values()) * 9)[: len(batch.input_ids) * num_generations]
        ones = torch.ones(len(texts), 1, dtype=torch.long)
        return Rollouts(ones, ones, texts, torch.ones(len(texts), dtype=torch.bool))

    monkeypatch.setattr(generation, "generate", generate)
    found = rows_of(answer(student, five, CLOSED, tmp_path))
    assert len(found) == 20 and not any(r["correct"] for r in found)


def test_the_released_protocol_is_the_order_of_the_file(five):
    asked = benchmark.questions(five, Condition("answer", "closed", order="as_is"))
    offered = {item.photo: set(item.options) for item in five.items}
    assert all(a.options[0] == a.label and set(a.options) == offered[a.photo] for a in asked)
    listed = f"<answer>{', '.join(asked[0].options)}</answer>"
    row = evaluate.record(five, CLOSED, asked[0], Completion(listed), model="m")
    assert row["included"] and not row["correct"]
    assert scoring.PROTOCOLS == ("ours", "released")
