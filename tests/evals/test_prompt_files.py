"""Released models are asked in their own words, which come from a file that every row names."""

import hashlib
import json
import logging
import re

import pytest
from PIL import Image

from finer1_lite.__main__ import main, read_command
from finer1_lite.data import scoring
from finer1_lite.data.benchmark import Benchmark, Question, questions
from finer1_lite.evaluate import Completion, evaluate

OPEN = "What {fine} of {coarse} is it? Put it into \\boxed{} or {braces}."
CLOSED = "Which of these: {options}?"
OWLS = ("barn owl", "tawny owl")


@pytest.fixture()
def files(tmp_path):
    for name, words in (("open.txt", OPEN), ("closed.txt", CLOSED)):
        (tmp_path / name).write_text(words + "\n", encoding="utf-8")
    return [tmp_path / "open.txt", tmp_path / "closed.txt"]


def conditions(*more):
    return read_command(["evaluate", "x", "--no-blind", *map(str, more)]).job().conditions


def owls() -> Benchmark:
    picture = Image.new("RGB", (8, 8))
    item = Question("p", "owls", "seen", OWLS[1], lambda: picture, "owl", "species", OWLS)
    return Benchmark((item,), {"owls": OWLS}, drawn=True)


def test_placeholders_are_filled_and_nothing_else_is_touched(files):
    free, choice = conditions("--prompt-files", *files, "--order", "as_is")
    (asked,) = questions(owls(), free)
    assert asked.text == "What species of owl is it? Put it into \\boxed{} or {braces}."
    (asked,) = questions(owls(), choice)
    assert asked.text == "Which of these: tawny owl, barn owl?"
    lettered = conditions("--prompt-files", files[1], "--letters")[0]
    assert "(A) " in questions(owls(), lettered)[0].text


def test_a_file_stands_beside_our_prompts_in_the_world_that_it_asks_in(files):
    found = conditions("--prompt-files", *files, "--prompts", "think")
    assert [(c.prompt.partition("@")[0], c.task) for c in found] == [
        ("think", "open"),
        ("think", "closed"),
        ("open.txt", "open"),
        ("closed.txt", "closed"),
    ]


def test_every_row_names_the_file_and_its_hash(files, tmp_path):
    class Says:
        name, seed = "other", None

        def answer(self, asked, condition, start):
            return [Completion("Tawny owl.", 3) for _ in asked]

    condition = conditions("--prompt-files", files[0])[0]
    assert list(evaluate(Says(), owls(), condition, tmp_path / "run", 1))[-1] == 1
    row = json.loads((tmp_path / "run" / f"{condition.name}.jsonl").read_text())
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert row["prompt"] == f"open.txt@{digest[:8]}" and row["correct"]
    files[0].write_text(OPEN + " Please.", encoding="utf-8")
    assert conditions("--prompt-files", files[0])[0].name != condition.name  # asked anew


def test_the_file_stands_in_the_tables_of_the_report(files, student, tmp_path):
    student.model.save_pretrained(tmp_path / "novice")
    student.processor.save_pretrained(tmp_path / "novice")
    more = ["--no-blind", "--test-pictures", "24", "--max-new-tokens", "3", "--batch", "100"]
    command = ["evaluate", str(tmp_path / "novice"), "--prompt-files", *map(str, files)]
    assert main([*command, "--order", "shuffle", "--out", str(tmp_path / "runs"), *more]) == 0
    page = (tmp_path / "runs" / "evaluation" / "report.md").read_text(encoding="utf-8")
    for file in files:
        assert f"{file.name}@{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}" in page


def test_without_any_tag_the_whole_text_counts_where_none_was_asked_for():
    for prompt, named in (("own.txt@12345678", OWLS[0]), ("no_think", OWLS[0]), ("think", None)):
        assert scoring.judge("barn owl", OWLS[0], OWLS, prompt=prompt).named == named
    torn = scoring.judge("<think> barn owl", OWLS[0], OWLS, prompt="own.txt@12345678")
    assert torn.named is None


@pytest.mark.parametrize(
    ("written", "more", "said"),
    [
        (None, [], "words.txt.*No such file.*UTF-8"),
        (b" \n", [], "words.txt: is empty; write the question into it"),
        (b"\xff\xfe", [], "words.txt: is empty; write the question into it"),  # UTF-16 of nothing
        (b"na\xefve", [], "words.txt.*UTF-8"),
        (b"\xff\xfea", [], "words.txt.*UTF-8"),
        (b"{options}", ["--tasks", "open"], "--tasks open: words.txt@.* asks in the closed world"),
        (b"{coarse}?", ["--questions", "q.jsonl"], "own questions have words already"),
    ],
)
def test_what_cannot_be_asked_is_said(written, more, said, tmp_path, caplog):
    path = tmp_path / "words.txt"
    if written is not None:
        path.write_bytes(written)
    out = ["--out", str(tmp_path / "runs")]
    assert main(["evaluate", "x", "--prompt-files", str(path), *out, *more]) == 2
    (told,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert re.search(said, told.replace("\n", " "))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_words_are_the_same_from_any_editor(tmp_path, encoding, end):
    path = tmp_path / "open.txt"
    path.write_bytes(f"Name the {{coarse}}.{end}Give its name.{end}".encode(encoding))
    free, *_ = conditions("--prompt-files", path)
    (asked,) = questions(owls(), free)
    assert asked.text == "Name the owl.\nGive its name."
