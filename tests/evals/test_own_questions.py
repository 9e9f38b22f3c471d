"""Questions of one's own about pictures: read, asked as they stand, scored by the same parser."""

import json

import pytest

from finer1_lite import evaluate, prompts
from finer1_lite.__main__ import main
from finer1_lite.data import benchmark
from finer1_lite.data.benchmark import Condition
from finer1_lite.evals import questions
from finer1_lite.evals.job import Job
from finer1_lite.evaluate import Completion
from finer1_lite.presets import Preset
from finer1_lite.runtime.files import DataError

FOOD = {
    "image": "a.png",
    "question": "What does this bird eat?",
    "answer": "fish",
    "options": ["seeds", "fish", "flies"],
    "split": "seen",
}
PLACE = {
    "image": "a.png",
    "question": "Where does {it} breed?",
    "answer": "on cliffs",
    "aliases": ["cliffs", "rocky cliffs"],
}


def write(folder, rows, name="wiki.jsonl", pictures=("a.png",), bird=None):
    for picture in pictures:
        bird.test[0].image().save(folder / picture)
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_questions_are_asked_as_they_stand_and_each_in_its_own_world(tmp_path, birds):
    path = write(tmp_path, [FOOD, PLACE], bird=birds)
    found = questions.of_files([path], tmp_path, own=True)
    assert [i.photo for i in found.items] == ["a.png", "a.png#2"]
    assert [(i.dataset, i.split) for i in found.items] == [("wiki", "seen"), ("wiki", "unseen")]
    closed = benchmark.questions(found, Condition("answer", "closed"))
    assert len(closed) == 3 and {a.options.index("fish") for a in closed} == {0, 1, 2}
    assert closed[0].text.startswith("What does this bird eat? Give only the answer inside")
    (open_,) = benchmark.questions(found, Condition("think", "open"))
    assert open_.text.startswith("Where does {it} breed? Think inside") and not open_.options
    assert found.items[1].image().size == (84, 84)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("on cliffs", 1),
        ("Rocky cliffs.", 1),
        ("cliffs", 1),
        ("on cliffs or in trees", 0),
        ("fish", 0),
        ("", 0),
    ],
)
def test_the_answer_or_an_alias_is_right_and_a_list_is_not(said, right, tmp_path, birds):
    found = questions.of_files([write(tmp_path, [FOOD, PLACE], bird=birds)], tmp_path, own=True)
    (asked,) = benchmark.questions(found, Condition("answer", "open"))
    told = Completion(f"<answer>{said}</answer>")
    row = evaluate.record(found, Condition("answer", "open"), asked, told, model="m")
    assert row["correct"] == bool(right)


def test_every_broken_row_is_named_with_what_to_do(tmp_path, birds):
    rows = [
        FOOD,
        FOOD | {"answer": "worms"},
        {"image": "a.png", "question": "?"},
        [1],
        PLACE | {"aliases": "cliffs"},
        PLACE | {"split": "test"},
        PLACE | {"answer": "--"},
        FOOD | {"options": ["fish", "Fish."]},
        PLACE | {"answer": "The Fish"},
    ]
    path = write(tmp_path, rows, bird=birds)
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataError) as caught:
        questions.read_questions([path], own=True)
    lines = [f.split(":")[0] for f in caught.value.problems]
    assert lines == [f"{path}, line {n}" for n in (2, 3, 4, 5, 6, 7, 8, 10)] + ["wiki"]
    assert "read alike; spell them one way" in caught.value.problems[-1]
    with pytest.raises(DataError, match="1 of 1 pictures are missing"):
        questions.of_files(
            [write(tmp_path, [FOOD | {"image": "b.png"}], bird=birds)], tmp_path, own=True
        )


@pytest.mark.parametrize(
    ("changed", "mark"),
    [
        ({"question": "<|vision_start|><|image_pad|><|vision_end|>Which?"}, "<|image_pad|>"),
        ({"options": ["fish", "seeds<|im_end|>"]}, "<|im_end|>"),
        ({"answer": "</s>", "options": None}, "</s>"),
        ({"question": "Is <image> this or <image 2>?"}, "<image>, <image 2>"),
        ({"question": "<image>"}, "<image>"),
    ],
)
def test_words_that_a_tokenizer_takes_for_its_own_are_a_fault(changed, mark, tmp_path, birds):
    path = write(tmp_path, [FOOD, FOOD | changed], bird=birds)
    with pytest.raises(DataError) as caught:
        questions.of_files([path], tmp_path, own=True)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}, line 2: ") and mark in problem


@pytest.mark.parametrize("words", ["<image>\nWhich?", "<image 1> Which?", "Which?\n<image>"])
def test_the_place_of_the_picture_is_dropped_and_said(words, tmp_path, birds, caplog):
    caplog.set_level("INFO", logger="finer1_lite")
    path = write(tmp_path, [FOOD | {"question": words}], bird=birds)
    (asked,) = questions.of_files([path], tmp_path, own=True).items
    assert asked.about == "Which?" and "1 questions: <image> at an end" in caplog.text


def test_aliases_belong_to_the_question_that_brings_them(tmp_path, birds):
    rows = [
        PLACE | {"answer": "red", "aliases": ["crimson"]},
        PLACE | {"answer": "red", "aliases": ["scarlet"]},
        PLACE | {"answer": "New York", "aliases": ["NYC"]},
        PLACE | {"answer": "New York City", "aliases": ["NYC"]},
        PLACE | {"answer": "NYC", "aliases": []},
    ]
    found = questions.of_files([write(tmp_path, rows, bird=birds)], tmp_path, own=True)
    condition = Condition("answer", "open")

    def right(item, said):
        told = Completion(f"<answer>{said}</answer>")
        return evaluate.record(found, condition, item, told, model="m")["correct"]

    said = {"crimson": [1, 0, 0, 0, 0], "scarlet": [0, 1, 0, 0, 0], "NYC": [0, 0, 1, 1, 1]}
    for word, wanted in said.items():
        assert [right(item, word) for item in found.items] == list(map(bool, wanted))


def test_an_alias_that_is_another_option_is_a_fault_of_its_row(tmp_path, birds):
    path = write(tmp_path, [FOOD | {"aliases": ["Seeds."]}], bird=birds)
    with pytest.raises(DataError, match="line 1: names cannot be scored: ambiguous.*'Seeds.'"):
        questions.of_files([path], tmp_path, own=True)


def test_a_photograph_that_was_trained_on_is_left_out_of_all_its_questions(
    tmp_path, birds, monkeypatch
):
    path = write(tmp_path, [FOOD, FOOD, PLACE | {"image": "b.png"}], bird=birds)
    write(tmp_path, [], "none.jsonl", ["b.png"], bird=birds)
    monkeypatch.setattr(
        "finer1_lite.evals.facts.trained_on",
        lambda models, files: {name for name, (_, file) in files.items() if file.name == "a.png"},
    )
    job = Job(tmp_path, (), Preset.lab(), files=(path,), own=True, images=tmp_path)
    assert [item.photo for item in job.benchmark(None).items] == ["b.png"]


THREE = ("rose", "tulip", "iris")


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["A. rose", "B. tulip", "C. iris"], "B"),
        (["(a) rose", "(b) tulip", "(c) iris"], "(b)"),
        (["A) rose ", "B) tulip ", "C) iris"], "B. tulip"),
        (["A\u3001rose", "B\u3001tulip", "C\u3001iris"], "b"),
        (["1. rose", "2. tulip", "3. iris"], 2),
        (["0: rose", "1: tulip", "2: iris"], "1"),
        (["i) rose", "ii) tulip", "iii) iris"], "ii"),
        (["Option A: rose", "Option B: tulip", "Option C: iris"], "tulip"),
        ({"A": "rose", "B": "tulip", "C": "iris"}, "B"),
        (list(THREE), "B"),
        (list(THREE), "(b) tulip"),
    ],
)
def test_letters_of_the_options_own_are_taken_off(options, answer, tmp_path, birds, caplog):
    caplog.set_level("INFO", logger="finer1_lite")
    row = FOOD | {"options": options, "answer": answer}
    (asked,) = questions.of_files([write(tmp_path, [row], bird=birds)], tmp_path, own=True).items
    assert (asked.options, asked.label) == (THREE, "tulip")
    assert "1 questions: " in caplog.text


@pytest.mark.parametrize(
    ("options", "answer", "said"),
    [
        (list(THREE), 1, "from 0 or from 1"),
        (list(THREE), "D", "not among"),
        (["A. rose", "B. tulip"], "C", "not among"),
        (["A. rose", "B. tulip"], "A. tulip", "not among"),
        (["A. rose", "B. rose"], "A", "read alike"),
        ({"A": "rose", "B": 2}, "A", "no name"),
    ],
)
def test_a_place_that_is_none_is_told(options, answer, said, tmp_path, birds):
    path = write(tmp_path, [FOOD | {"options": options, "answer": answer}], bird=birds)
    with pytest.raises(DataError, match=f"line 1: .*{said}"):
        questions.of_files([path], tmp_path, own=True)


def test_names_that_only_look_numbered_stay(tmp_path, birds):
    names = ["A. thaliana", "A. lyrata", "1.5 cm"]
    row = FOOD | {"options": names, "answer": "A. lyrata"}
    (asked,) = questions.of_files([write(tmp_path, [row], bird=birds)], tmp_path, own=True).items
    assert (list(asked.options), asked.label) == (names, "A. lyrata")


@pytest.mark.parametrize(
    "options", [["1 - 2 m", "2 - 3 m"], ["1: 2", "2: 3"], ["0 - 10", "1 - 20"]]
)
def test_ranges_and_ratios_keep_their_first_number(tmp_path, birds, options):
    row = FOOD | {"options": options, "answer": options[1]}
    (asked,) = questions.of_files([write(tmp_path, [row], bird=birds)], tmp_path, own=True).items
    assert (list(asked.options), asked.label) == (options, options[1])


def test_a_prompt_that_asks_for_a_name_is_refused(tmp_path, caplog):
    with pytest.raises(ValueError, match="asks for a name"):
        prompts.about("exact", "Why?")
    command = ["evaluate", "m", "--questions", "w.jsonl", "--out", str(tmp_path / "runs")]
    assert main([*command, "--prompts", "exact", "--baselines", "lite0"]) == 2
    assert "--prompts exact: choose of think, answer, no_think" in caplog.text
    assert "--baselines: they name classes" in caplog.text


def test_two_files_become_two_data_sets_of_one_report(student, tmp_path, birds):
    folder = tmp_path / "novice"
    student.model.save_pretrained(folder)
    student.processor.save_pretrained(folder)
    files = [write(tmp_path, [FOOD, PLACE], name, bird=birds) for name in ("a.jsonl", "b.jsonl")]
    assert (
        main(
            [
                "evaluate",
                str(folder),
                "--questions",
                *map(str, files),
                "--images",
                str(tmp_path),
                "--out",
                str(tmp_path / "runs"),
                "--max-new-tokens",
                "2",
            ]
        )
        == 0
    )
    page = (tmp_path / "runs/evaluation/report.md").read_text()
    for said in (
        "## Data sets, open world",
        "## Data sets, closed world",
        "| novice | think | b |",
        "always the first option",
    ):
        assert said in page
