"""Questions of one's own about pictures: read, asked as they stand, scored by the same parser."""

import json

import pytest

from finer1_lite import evaluate, prompts
from finer1_lite.__main__ import main
from finer1_lite.data import benchmark
from finer1_lite.data.benchmark import Condition
from finer1_lite.evals import questions
from finer1_lite.evaluate import Completion
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
    found = questions.of_questions([path], tmp_path)
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
    found = questions.of_questions([write(tmp_path, [FOOD, PLACE], bird=birds)], tmp_path)
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
        questions.read_questions([path], questions.scan_own)
    lines = [f.split(":")[0] for f in caught.value.problems]
    assert lines == [f"{path}, line {n}" for n in (2, 3, 4, 5, 6, 7, 8, 10)] + ["wiki"]
    assert "read alike; spell them one way" in caught.value.problems[-1]
    with pytest.raises(DataError, match="1 of 1 pictures are missing"):
        questions.of_questions([write(tmp_path, [FOOD | {"image": "b.png"}], bird=birds)], tmp_path)


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
