"""The released question files: read, audited, scored by the released rule and by ours."""

import json

import numpy as np
import pytest
from paths import SHARED
from PIL import Image

from finer1_lite import prompts
from finer1_lite.__main__ import main
from finer1_lite.data import benchmark, duplicates, hubsets, scoring
from finer1_lite.evals import audit, controls
from finer1_lite.evals import questions as question_files
from finer1_lite.runtime.files import DataError

EVAL = sorted((SHARED / "official" / "eval").glob("*.jsonl"))
needs_files = pytest.mark.skipif(not EVAL, reason="../shared/official/eval is not here")


def row(label="wren", options=("wren", "robin", "finch", "tit"), path="a/1.jpg", **more):
    base = {"image_path": path, "question": "?", "options": list(options), "ground_truth": label}
    return base | more


def write(folder, rows, name="bird_seen.jsonl"):
    path = folder / name
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


# --- the released rule -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> wren </answer>", "wren"),
        ("<answer>a</answer> x <answer>b</answer>", "a</answer> x <answer>b"),  # greedy
        ("</answer><answer>wren", None),
        ("wren", None),
        ("<answer></answer>", ""),
    ],
)
def test_released_parse_is_the_greedy_expression_in_linear_time(text, answer):
    assert scoring.released_answer(text) == answer


def test_released_rule_pays_a_list_and_a_part_of_another_name():
    assert scoring.released_inclusion("robin, wren, tit", "wren")
    assert scoring.released_inclusion("Border Collie", "Collie")
    assert not scoring.released_inclusion("", "wren")
    assert scoring.released_open_inclusion("an Audi S4", "Audi S4 Sedan 2012", "cars/1.jpg")
    assert not scoring.released_open_inclusion("an Audi S4", "Audi S4 Sedan 2012", "auto/1.jpg")


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("B", "robin"),
        ("(b)", "robin"),
        ("b. Robin", "robin"),
        ("B) the robin.", "robin"),
        ("B wren", None),
        ("E", None),
        ("boat", None),
        ("", None),
        ("A", "wren"),
        ("é", None),
    ],
)
def test_letters_name_the_option_that_stands_there(answer, named):
    assert scoring.option_of_letter(answer, ["wren", "robin"]) == named


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "\uff08B\uff09",
            "B\uff1aSong Sparrow",
            "B, Song Sparrow",
            "\uff22",
            "\uff22\u3001song sparrow",
        ),
        *(
            "**B**",
            "`B`",
            "**B. Song Sparrow**",
            "**B**: Song\u2010Sparrow",
            "[B]",
            "\u300cB\u300d",
            "B \u2014 \u201cSong Sparrow\u201d",
            "B; the Song Sparrow.",
        ),
        "B \u2013 Song_Sparrow",
    ],
)
def test_letters_are_folded_as_names_are(answer):
    options = ["Fox Sparrow", "Song Sparrow"]
    assert scoring.option_of_letter(answer, options) == "Song Sparrow"
    for wrong in (answer.replace("B", "C").replace("\uff22", "C"), f"{answer} or Fox Sparrow"):
        assert scoring.option_of_letter(wrong, options) is None


def test_letters_go_on_after_z():
    options = [f"kind {n}" for n in range(60)]
    shown = prompts.offered(options, letters=True)
    assert "(Z) kind 25, (AA) kind 26, (AB) kind 27" in shown and "(BH) kind 59." in shown
    for place, option in enumerate(options):
        letter = prompts.letter(place)
        assert scoring.option_of_letter(letter, options) == option
        assert scoring.option_of_letter(f"({letter}) {option}", options) == option
    assert len({prompts.letter(n) for n in range(1_000)}) == 1_000
    assert scoring.option_of_letter("[", options) is None
    assert scoring.option_of_letter("AA", options[:26]) is None


def test_a_letter_and_a_name_are_read_by_one_parser():
    options = ["Fox Sparrow", "Song Sparrow (wild)", "colt\u2019s foot"]
    for said in ("**Song Sparrow (wild)**", "`B`", "B. Song Sparrow (wild)", "**B**."):
        judged = scoring.judge(
            f"<answer>{said}</answer>", options[1], options, options=options, letters=True
        )
        assert judged.correct, said
    assert scoring.judge("<answer>Colt's Foot</answer>", options[2], options).correct


def test_a_letter_counts_only_where_letters_were_shown():
    said = "<answer>B</answer>"
    options = ["wren", "robin"]
    assert scoring.judge(said, "robin", options, options=options, letters=True).correct
    assert not scoring.judge(said, "robin", options, options=options).correct


def test_text_without_tags_counts_only_where_none_were_asked_for():
    assert scoring.judge("Wren.", "wren", ["wren"], prompt="no_think").correct
    assert not scoring.judge("Wren.", "wren", ["wren"], prompt="think").correct
    assert not scoring.judge("<think>wren", "wren", ["wren"], prompt="no_think").correct


def test_every_answer_stands_at_every_position_once():
    for options in (["a", "b"], list("abcd"), list("abcdefg")):
        orders = benchmark.rotations(benchmark.shuffled(options, "photo"))
        for place in range(len(options)):
            assert sorted(order[place] for order in orders) == sorted(options)
    assert benchmark.shuffled("abcd", "x") != benchmark.shuffled("abcd", "y")


# --- reading ---------------------------------------------------------------------------


def test_every_malformed_row_is_named(tmp_path):
    bad = [
        b"{",
        b"[1]",
        b"\xff",
        b'"text"',
        row(label="owl"),
        row(options=["wren"]),
        row(options=["wren", "Wren."]),
        row(options=["wren", "--"]),
        row(options="wren"),
        row(question=" "),
        row(path=3),
        b"[" * 100_000,
    ]
    path = write(tmp_path, [row(), *bad])
    with pytest.raises(DataError) as caught:
        question_files.read_questions([path])
    problems = caught.value.problems
    assert [f.split(":")[0] for f in problems] == [f"{path}, line {n}" for n in range(2, 14)]
    assert "'owl' is not among" in problems[4] and "read alike" in problems[6]
    found = audit.audit_questions([path])[0]
    assert (found.count, found.total) == (12, 13)


def test_file_names_and_missing_files_are_named_together(tmp_path):
    with pytest.raises(DataError) as caught:
        question_files.read_questions([tmp_path / "birds.jsonl", tmp_path / "bird_seen.jsonl"])
    assert len(caught.value.problems) == 2
    with pytest.raises(DataError, match="no questions"):
        question_files.read_questions([])


@needs_files
def test_the_released_files_are_whole():
    questions = question_files.read_questions(EVAL)
    assert len(questions) == 35_566
    assert {(q.dataset, q.split) for q in questions} == {
        (h.released, s) for h in hubsets.HUBSETS.values() for s in question_files.SPLITS
    }
    assert len(question_files.classes_of(questions)["bird"]) == 200


# --- the audit -------------------------------------------------------------------------


def by_name(findings):
    return {f.what: f.count for f in findings}


@needs_files
def test_the_audit_of_the_released_files():
    found = by_name(audit.audit_questions(EVAL))
    assert found["the right option stands first"] == 35_566
    assert found["the label is part of a wrong option"] == 381
    assert found["released open world: the coarse word falls back to 'object'"] == 18_043
    assert found["released open world: another class's name would be counted as right"] == 2_034
    assert found["rows that cannot be asked"] == found["pictures with two different answers"] == 0


@needs_files
def test_image_free_answerers_on_the_released_files():
    files = [f for f in EVAL if f.stem.startswith(("pet", "flower"))]
    questions = question_files.read_questions(files)
    found = controls.score_completions(questions)
    assert found["always first"]["released"] == found["list all"]["released"] == 1
    assert found["always first"]["ours"] == pytest.approx(0.25, abs=1e-12)
    assert found["list all"]["ours"] == 0
    share = np.mean(
        controls.least_used([(q.dataset + q.split, q.options, q.label) for q in questions])
    )
    assert 0.39 < share < 0.62


def test_the_audit_finds_what_was_planted(tmp_path, capsys):
    seen = [
        row(),
        row("robin", path="a/2.jpg"),
        row("tit", path="a/1.jpg"),
        row("tit", ("blue-tit", "tit"), "a/3.jpg"),
    ]
    paths = [write(tmp_path, seen), write(tmp_path, [row("tit", path="b")], "bird_unseen.jsonl")]
    found = by_name(audit.audit_questions(paths))
    assert found["the right option stands first"] == 1
    assert found["the right option stands second"] == 2
    assert found["the label is part of a wrong option"] == 1
    assert found["pictures with two different answers"] == 1
    assert found["bird: classes both seen and unseen"] == 1
    assert main(["audit", *map(str, paths)]) == 0
    said = capsys.readouterr().out
    assert "the right option stands first: 1 of 5" in said
    # one first option is right, and "blue-tit" is paid for the "tit" in it
    assert "always first: 40.0 % released, 30.0 % ours" in said
    assert main(["audit", str(tmp_path / "nothing_seen.jsonl")]) == 2


def test_near_duplicates_are_found_and_others_are_not(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("kite", "owl"):
        (tmp_path / name).mkdir()
        for i in range(3):
            noise = rng.integers(256, size=(12, 12, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((96, 96)).save(tmp_path / name / f"{i}.png")
    copy = Image.open(tmp_path / "kite" / "0.png").resize((80, 80))
    copy.save(tmp_path / "owl" / "copy.jpg", quality=60)
    finding = audit.audit_folder(tmp_path)[-1]
    assert finding.count == 1 and "kite/0.png" in finding.examples[0]
    rows = "file,split\n" + "".join(
        f"{p.parent.name}/{p.name},{'test' if p.stem == 'copy' else 'train'}\n"
        for p in sorted(tmp_path.glob("*/*"))
    )
    (tmp_path / "index.csv").write_text(rows)
    finding = audit.audit_folder(tmp_path)[-1]
    assert (finding.count, finding.total) == (1, 1)


def test_audit_shows_a_few_examples_or_all(tmp_path, capsys):
    for name in ("kite", "owl"):
        (tmp_path / name).mkdir()
        for i in range(5):
            (tmp_path / name / f"{i}.jpg").write_bytes(b"broken")
    assert main(["audit", str(tmp_path)]) == 0
    assert "and 9 more (--all)" in capsys.readouterr().out
    assert main(["audit", "--all", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("is no picture") == 10 and "more (" not in shown


def test_hashes_differ_in_the_bits_that_differ():
    grey = np.zeros((8, 8, 3), np.uint8)
    one, *others = (duplicates.Look(code, grey) for code in (0b1011, 0b0011, 2**64 - 1))
    assert duplicates.pairs([one], others) == [(0, 0, 1)]
    assert not duplicates.pairs([one], [duplicates.Look(0b1011, grey + 90)])


# --- controls --------------------------------------------------------------------------


def test_controls_by_hand():
    rows = [("f", ["a", "b"], "a"), ("f", ["b", "a"], "a"), ("f", ["c", "b"], "b")]
    assert controls.CONTROLS["always the first option"](rows) == [1, 0, 0]
    assert controls.CONTROLS["random option"](rows) == [0.5] * 3
    # others' wrong options: row 1 {b, c}: a unused; row 3 {b, b}: c unused, b twice
    assert controls.least_used(rows) == [1, 1, 0]
    assert controls.least_used([("f", ["a", "b"], "a")]) == [0.5]  # nothing known: a tie
