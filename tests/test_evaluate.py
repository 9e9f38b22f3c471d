"""Asking, scoring and going on after a kill."""

import json
from dataclasses import replace

import pytest

from finer1_lite import evaluate, metrics, prompts
from finer1_lite.data import benchmark
from finer1_lite.data.benchmark import Benchmark, Condition
from finer1_lite.data.images import PictureError
from finer1_lite.evaluate import Completion, StudentAnswerer
from finer1_lite.runtime.checkpoints import NotFinite
from finer1_lite.species import OPTION_POOL, Collection

OPEN = Condition("answer", "open")
CLOSED = Condition("answer", "closed", order="shuffle")


def drawn(collection):
    return Benchmark.of_collection(collection, as_drawn=True)


@pytest.fixture(scope="module")
def seven(birds):
    """Seven test pictures, seen and unseen, in batches of three: the last is not full."""
    return Collection("bird", birds.species, birds.train, birds.test[:40:6], birds.distance)


@pytest.fixture
def batches(monkeypatch):
    """The number of questions of every batch that is asked."""
    sizes, real = [], evaluate.ask

    def spy(student, questions, *args, **settings):
        sizes.append(len(questions))
        return real(student, questions, *args, **settings)

    monkeypatch.setattr(evaluate, "ask", spy)
    return sizes


def answer(student, collection, condition, folder, limit=6, **who) -> bytes:
    answerer = StudentAnswerer(student, **({"name": "base", "max_new_tokens": limit} | who))
    steps = list(evaluate.evaluate(answerer, drawn(collection), condition, folder, 3))
    assert steps == sorted(set(steps)) and steps[-1] == len(collection.test)
    return (folder / f"{condition.name}.jsonl").read_bytes()


@pytest.fixture(scope="module")
def scored(birds):
    """The record of a completion to the first test picture."""
    asked = drawn(birds)
    (first, *_) = benchmark.questions(asked, OPEN)
    return lambda text: evaluate.record(asked, OPEN, first, Completion(text, 5), model="base")


# --- scoring -------------------------------------------------------------------------


def test_the_exact_name_is_right(birds, scored):
    name = birds.test[0].species
    for said in (name, name.upper(), f" The {name}. ", name.replace(" ", "-")):
        row = scored(f"<answer>{said}</answer>")
        assert row["correct"] and row["named"] == name and row["answer"] == said


def test_listing_every_option_scores_nothing(birds, scored):
    """The released script looks for the label inside the answer: it would score 1."""
    listed = ", ".join(birds.names)
    for said in (listed, f"{birds.test[0].species} or {birds.test[1].species}"):
        row = scored(f"<answer>{said}</answer>")
        assert not row["correct"] and row["named"] is None and row["answer"] == said


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "<answer>{}",
        "<answer>{0}</answer><answer>{0}</answer>",
        "<answer>not a {}</answer>",
        "<think><answer>{}</answer></think>",
        "",
    ],
)
def test_a_name_outside_one_whole_answer_scores_nothing(birds, scored, text):
    assert not scored(text.format(birds.test[0].species))["correct"]


def test_another_name_is_wrong_but_it_is_a_name(birds, scored):
    other = birds.neighbours(birds.test[0].species)[0]
    row = scored(f"<think>x</think><answer>{other}</answer>")
    assert not row["correct"] and row["named"] == other


def test_a_record_says_all_that_the_metrics_ask_for(birds):
    asked, rows = drawn(birds), []
    runs = [("base", None, "answer"), ("base", None, "think"), ("SFT", 0, "think")]
    for model, seed, prompt in [*runs, ("TAPO", 0, "think")]:
        for task in ("open", "closed"):
            condition = Condition(prompt, task, order="shuffle")
            first, *_, last = benchmark.questions(asked, condition)
            for one in (first, last):
                told = Completion(prompts.answer(one.label), 4)
                rows.append(evaluate.record(asked, condition, one, told, model=model, seed=seed))
    for row in rows:
        assert row["split"] == ("seen" if row["label"] in birds.seen_names else "unseen")
    summary = metrics.summarise(json.loads(json.dumps(rows)))
    assert {"base", "base_think", "sft", "tapo"} <= summary.keys()


# --- questions -----------------------------------------------------------------------


def test_closed_world_offers_four_near_names_with_the_right_one_in_any_place(birds):
    """In all released questions the right option stands first."""
    places = []
    for photo in birds.test:
        options = birds.options(photo, seed=benchmark.OPTION_SEED)
        assert len(set(options)) == 4
        assert set(options) < {photo.species, *birds.neighbours(photo.species)[:OPTION_POOL]}
        places.append(options.index(photo.species))
    share = len(places) / 4
    assert all(0.5 * share < places.count(i) < 1.6 * share for i in range(4))


def test_every_stage_and_seed_is_asked_the_same(student, seven, tmp_path, monkeypatch):
    asked, real = [], evaluate.ask

    def spy(student, questions, images, **settings):
        shown = [image.tobytes() for image in images]
        asked.extend(zip(questions, shown, strict=True))
        return real(student, questions, images, **settings)

    monkeypatch.setattr(evaluate, "ask", spy)
    for name, seed in (("SFT", 0), ("TAPO", 1)):
        condition = Condition("think", "closed", order="shuffle")
        answer(student, seven, condition, tmp_path / name, name=name, seed=seed)
    assert asked[:7] == asked[7:]
    for photo, (question, picture) in zip(seven.test, asked[:7], strict=True):
        options = seven.options(photo, seed=benchmark.OPTION_SEED)
        assert question == prompts.question("think", "bird", options)
        assert picture == photo.image().tobytes()


def test_the_open_world_is_shown_no_options(student, seven, tmp_path):
    rows = [json.loads(line) for line in answer(student, seven, OPEN, tmp_path).splitlines()]
    assert [row["photo"] for row in rows] == [p.id for p in seven.test]
    assert all(row["options"] is None for row in rows)
    assert all(0 < row["tokens"] <= 6 for row in rows)
    assert {row["split"] for row in rows} == {"seen", "unseen"}


@pytest.mark.parametrize("overflows", [[], [1], [6], [0, 1, 2]])
def test_a_picture_that_overflows_costs_its_own_answer(
    student, seven, tmp_path, monkeypatch, overflows
):
    """In float16, say. Where a whole batch does, the model is to blame: that stops."""
    bad, real = [seven.test[i].image().tobytes() for i in overflows], evaluate.ask

    def ask(student, questions, images, **settings):
        if any(image.tobytes() in bad for image in images):
            raise NotFinite("nan or inf in the logits")
        return real(student, questions, images, **settings)

    whole = [json.loads(line) for line in answer(student, seven, OPEN, tmp_path / "a").splitlines()]
    monkeypatch.setattr(evaluate, "ask", ask)
    if len(overflows) == 3:
        with pytest.raises(NotFinite):
            answer(student, seven, OPEN, tmp_path / "b")
        return
    rows = [json.loads(line) for line in answer(student, seven, OPEN, tmp_path / "b").splitlines()]
    for i, (row, before) in enumerate(zip(rows, whole, strict=True)):
        assert row["error"] == ("nan or inf in the logits" if i in overflows else None)
        assert i in overflows or row == before


def test_a_picture_that_was_not_there_is_asked_about_again_and_nothing_else(
    student, seven, tmp_path, batches, caplog
):
    """A drive that dropped for a while: two of the middle batch's three pictures."""
    whole = answer(student, seven, OPEN, tmp_path / "whole")
    lost = dict(zip("ab", seven.test[3:5], strict=True))

    def gone():
        raise PictureError("a.jpg: cannot be read (Transport endpoint is not connected)")

    without = [replace(p, source=gone) if p in lost.values() else p for p in seven.test]
    batches.clear()
    dropped = answer(student, replace(seven, test=tuple(without)), OPEN, tmp_path / "b")
    assert evaluate.say_lost(map(json.loads, dropped.splitlines())) == 2
    assert "2 answers are missing (a.jpg: cannot be read" in caplog.text
    assert batches == [3, 1, 1]  # of the middle batch one picture is there
    batches.clear()
    again = answer(student, replace(seven, test=tuple(without)), OPEN, tmp_path / "b")
    assert again == dropped and not batches  # it is not there yet
    assert answer(student, seven, OPEN, tmp_path / "b") == whole and batches == [3]


def test_a_question_without_its_picture_is_asked_again_whatever_became_of_the_picture(
    seven, tmp_path
):
    """By an endpoint that was down, say."""

    def gone():
        raise PictureError("a.jpg: is not there")

    class Down:
        name, seed = "m", None
        said = Completion(error="no answer: down")

        def answer(self, questions, condition, start):
            return [self.said] * len(questions)

    asked = drawn(replace(seven, test=tuple(replace(p, source=gone) for p in seven.test)))
    blind, who = replace(OPEN, picture=False), Down()
    list(evaluate.evaluate(who, asked, blind, tmp_path, 7))
    who.said = Completion("<answer>an owl</answer>", 3)
    list(evaluate.evaluate(who, asked, blind, tmp_path, 7))
    rows = map(json.loads, (tmp_path / f"{blind.name}.jsonl").open(encoding="utf-8"))
    assert [row["error"] for row in rows] == [None] * 7


# --- killed and started again --------------------------------------------------------


def test_a_whole_file_is_left_alone(student, seven, tmp_path, batches):
    first = answer(student, seven, CLOSED, tmp_path)
    assert batches == [3, 3, 1]
    assert answer(student, seven, CLOSED, tmp_path) == first
    assert batches == [3, 3, 1]


@pytest.mark.parametrize(
    "lines, asked_again", [(0, [3, 3, 1]), (2, [3, 3, 1]), (3, [3, 1]), (5, [3, 1]), (6, [1])]
)
def test_a_file_cut_in_a_line_is_continued_with_the_same_rows(
    student, seven, tmp_path, batches, lines, asked_again
):
    whole = answer(student, seven, CLOSED, tmp_path)
    batches.clear()
    kept = b"".join(whole.splitlines(keepends=True)[:lines])
    torn = whole[len(kept) : len(kept) + 40]
    (tmp_path / f"{CLOSED.name}.jsonl").write_bytes(kept + torn)
    assert answer(student, seven, CLOSED, tmp_path) == whole
    assert batches == asked_again


def test_a_file_cut_inside_a_letter_is_continued(student, seven, tmp_path):
    """Letters beyond ASCII are several bytes, and a kill does not ask where they end."""
    whole = answer(student, seven, OPEN, tmp_path)
    path = tmp_path / f"{OPEN.name}.jsonl"
    path.write_bytes(whole[: whole.index(b"\n") + 1] + '{"completion": "ö'.encode()[:-1])
    assert answer(student, seven, OPEN, tmp_path) == whole


def test_a_model_of_any_name_has_a_folder_that_every_system_knows(tmp_path):
    names = {"owner/name": "owner--name", "qwen2.5vl:7b": "qwen2.5vl-7b", r"C:\m": "C--m"}
    for name, folder in names.items():
        assert evaluate.answers_folder(tmp_path, name) == tmp_path / "answers" / folder
