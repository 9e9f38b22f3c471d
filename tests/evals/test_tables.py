"""Tables, comparisons and pages from records counted by hand."""

import json
import time

import pytest
from hostile_texts import HOSTILE

from finer1_lite import evaluate
from finer1_lite.__main__ import main
from finer1_lite.evals import compare, details, evalreport, similarity, tables
from finer1_lite.evals.pages import Table
from finer1_lite.metrics import wilson
from finer1_lite.runtime.files import DataError

NAMES = ["red kite", "black kite", "barn owl", "tawny owl"]


def record(photo="1", correct=True, *, label="red kite", named=None, split="seen", **more):
    said = label if correct else named
    row = {
        "model": "m",
        "prompt": "think",
        "task": "closed",
        "picture": True,
        "order": "rotate",
        "dataset": "birds",
        "split": split,
        "photo": photo,
        "label": label,
        "coarse": "bird",
        "group": label.split()[-1],
        "named_group": (said or "").split(" ")[-1],
        "options": NAMES,
        "rotation": 0,
        "sample": 0,
        "completion": f"<answer>{said}</answer>",
        "answer": said,
        "named": said,
        "correct": correct,
        "included": correct,
        "tokens": 10,
        "cut": False,
        "problem": None,
    }
    return row | more


def rotated(photo, rights, **more):
    return [
        record(photo, ok, rotation=k, options=NAMES[k:] + NAMES[:k], **more)
        for k, ok in enumerate(rights)
    ]


def table(blocks, column):
    return next(b for b in blocks if isinstance(b, Table) and column in b.head)


def save(folder, rows):
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


# --- tables ----------------------------------------------------------------------------


def test_rotations_of_a_picture_count_as_one_picture():
    rows = rotated("1", [1, 1, 1, 0]) + rotated("2", [0, 0, 0, 0])
    found = tables.cell(rows)
    assert (found["accuracy"], found["n"]) == (0.375, 2)
    assert (found["low"], found["high"]) == wilson(0.75, 2)
    assert tables.cell([]) is None


def test_the_closed_table_holds_controls_and_counts_invalid_apart():
    rows = rotated("1", [1, 1, 1, 1]) + rotated("2", [0, 0, 0, 0], named="sparrow", split="unseen")
    rows += rotated("3", [0, 0, 0, 0], split="unseen", included=True)
    shown = table(tables.main_blocks(rows), "not offered, %")
    line = dict(zip(shown.head, shown.rows[0]))
    assert line["seen, %"].startswith("100.0 [") and line["unseen, %"].startswith("0.0 [")
    assert line["harmonic mean, %"] == "0.0"
    assert line["released rule, %"] == "100.0 / 50.0"
    assert line["names no class, %"] == "0.0 / 50.0" and line["not offered, %"] == "0.0 / 50.0"
    controls = {row[0]: row for row in shown.rows[1:]}
    assert controls["control: always the first option"][2].startswith("25.0")
    assert controls["control: random option"][3].startswith("25.0")
    assert controls["control: the model without the picture"][1] == "not run"


def test_the_blind_model_is_a_line_of_its_own():
    rows = rotated("1", [1, 1, 1, 1]) + rotated("1", [0, 1, 0, 0], picture=False)
    shown = table(tables.main_blocks(rows), "not offered, %").rows
    assert [r[0] for r in shown[:2]] == ["m", "m, no picture"]
    assert not any("without the picture" in r[0] for r in shown)


def test_faulty_pictures_are_counted_and_never_scored():
    rows = [record("1"), record("2", False, problem="is broken")]
    assert tables.groups(rows, "closed")[0].rows == (rows[0],)
    assert table(tables.main_blocks(rows), "not scored").rows == [
        ("m", "think", "closed", "1 of 2", "is broken")
    ]


def test_the_open_table_names_the_encoder():
    rows = [record(str(i), i == 0, task="open", options=None) for i in range(2)]
    evalreport.add_similarity(rows, similarity.TextEncoder("toy", lambda texts: _one_hot(texts)))
    shown = table(tables.main_blocks(rows), "similarity (toy), %")
    line = dict(zip(shown.head, shown.rows[0]))
    assert line["similarity (toy), %"] == "50.0" and line["exact, seen, %"].startswith("50.0")


def _one_hot(texts):
    import numpy as np

    return np.eye(len(texts))


def test_data_sets_are_averaged_with_and_without_each():
    rows = [record("1"), record("2", False, dataset="cars"), record("3", dataset="dogs")]
    found = tables.dataset_blocks(rows)
    shown = table(found, "mean of data sets")
    line = dict(zip(shown.head, shown.rows[0]))
    assert line["mean of data sets"] == "66.7"
    assert line["without cars"] == "100.0" and line["without birds"] == "50.0"
    each = {row[2]: row for row in table(found, "data set").rows}
    assert each["cars"][3].startswith("0.0 [") and each["birds"][3].startswith("100.0 [")
    assert each["dogs"][4] == "" and each["dogs"][6] == "100.0"
    assert tables.dataset_blocks(rows[:1]) == []


def test_details_say_where_answers_go():
    rows = [
        record("1"),
        record("2", False, named="black kite"),
        record("3", False, named="barn owl"),
        record("4", False),
    ]
    blocks = details.detail_blocks(rows)
    errors = table(blocks, "other group, %").rows[0]
    assert errors[3:] == ("25.0", "25.0", "25.0", "25.0")
    worst = table(blocks, "most often called").rows[0]
    assert worst[:3] == ("red kite", "seen", "1 of 4") and worst[3].startswith("25.0 [4.6,")
    confused = table(blocks, "its group").rows
    assert confused == [
        ("red kite", "barn owl", "outside", "1 of 4"),
        ("red kite", "black kite", "inside", "1 of 4"),
    ]
    assert any(
        "1 of 2 wrong names are of the right group" in getattr(b, "text", "") for b in blocks
    )


def test_prompts_that_the_base_was_not_asked_under_are_said():
    rows = [record(), record(model="n", prompt="answer")]
    lines = [r for r in table(tables.main_blocks(rows), "not offered, %").rows if r[1] == "not run"]
    assert [r[0] for r in lines] == [
        "control: the model without the picture",
        "control: m, prompt answer",
        "control: m, prompt exact",
    ]
    rows += [record(prompt="answer"), record(prompt="exact"), record(picture=False)]
    assert not any(
        r[1] == "not run" for r in table(tables.main_blocks(rows), "not offered, %").rows
    )


def test_samples_give_pass_at_k_and_a_vote():
    rows = [record("1", ok, sample=i, named="barn owl") for i, ok in enumerate([1, 1, 0, 0, 1])]
    rows += [record("2", ok, sample=i, named="barn owl") for i, ok in enumerate([0, 0, 0, 0, 1])]
    line = table(details.detail_blocks(rows), "pass@k, %").rows[0]
    # picture 1: 3 of 5 right; picture 2: 1 of 5. k = 2: 1 - (1 + 6) / 10 / 2
    assert line[3:6] == ("5", "k = 1: 40.0; k = 2: 65.0; k = 4: 90.0; k = 5: 100.0", "50.0")
    assert float(line[6]) == pytest.approx((abs(1 - 0.6) + abs(0 - 0.8)) / 2)


def test_records_of_the_lab_are_rows_like_any_other(birds, tmp_path):
    photo = birds.test[0]
    rows = [
        evaluate.record(cell, birds, photo, options, f"<answer>{photo.species}</answer>", 3, False)
        for stage, seed in (("base", None), ("sft", 2))
        for cell in evaluate.cells(stage, seed)
        for options in ([birds.options(photo)] if cell.task == "closed" else [None])
    ]
    found = evalreport.read_run(save(tmp_path / "run", rows))
    assert {r["model"] for r in found} == {"base", "SFT, seed 2"}
    assert found[0].keys() - {"stage", "seed"} == record().keys()
    assert all(r["included"] and r["correct"] and r["group"] for r in found)


# --- differences -----------------------------------------------------------------------


def test_a_difference_is_paired_by_question():
    a = rotated("1", [1, 1, 1, 1]) + rotated("2", [1, 1, 0, 0]) + [record("9")]
    b = rotated("2", [1, 0, 0, 0]) + rotated("1", [0, 0, 0, 0])
    found = compare.difference(a, b)
    assert (found["n"], found["mean"]) == (2, pytest.approx(0.625))
    assert (found["only_a"], found["only_b"]) == (1, 0)  # a picture counts once
    assert compare.difference(a, [record("7")]) is None


def test_differing_pictures_are_found_in_an_order_nobody_chose():
    a = [record(str(i), i % 2 == 0) for i in range(6)]
    b = [record(str(i), True) for i in range(6)]
    found = compare.differing(a, b)
    assert sorted(x["photo"] for x, _ in found) == ["1", "3", "5"]
    assert found == compare.differing(a[::-1], b[::-1])


def test_answerers_of_one_name_are_paired_between_runs():
    left, right = [record(), record(model="n")], [record(), record(model="k", prompt="answer")]
    pairs = compare.between(left, right, "closed")
    assert [(a.label, b.label) for a, b in pairs] == [("m", "m")]
    assert len(compare.between(left, [record(model="z")], "closed")) == 2
    assert len(compare.within(left, "closed")) == 1


# --- pages -----------------------------------------------------------------------------


def test_the_report_is_remade_from_records_alone(tmp_path, capsys):
    rows = [
        record(
            str(i), i % 2 == 0, task=t, model=m, split=s, options=NAMES if t == "closed" else None
        )
        for i in range(4)
        for t in ("open", "closed")
        for m in ("m", "<script>alert(1)</script>")
        for s in ("seen", "unseen")
    ]
    for i, row in enumerate(rows):
        row["photo"] = f"{row['photo']}-{row['split']}"
        row["tokens"] = 5 + i % 7
    run = save(tmp_path / "run", rows)
    assert main(["report", str(run)]) == 0
    page = (run / "evaluation.html").read_text()
    assert "<script>" not in page and "always the first option" in page
    for name in ("points", "length"):
        assert (run / f"figures/{name}.png").stat().st_size > 1000
    first = (run / "evaluation.md").read_bytes()
    assert main(["report", str(run)]) == 0
    assert (run / "evaluation.md").read_bytes() == first


def test_two_runs_stand_side_by_side_with_the_pictures_that_differ(tmp_path):
    name = "paperbirds/0/test/{}/0"
    first = save(tmp_path / "first", [record(name.format("x"), False, named="barn owl")])
    second = save(tmp_path / "second", [record(name.format("x"), True)])
    assert main(["report", str(first), str(second)]) == 0
    page = (second / "compared-with-first.html").read_text()
    assert "1 pictures that exactly one" in page and "second" in page and "McNemar p" in page
    assert not (second / "evaluation.html").exists()


def test_pages_of_hostile_answers_are_made_in_bounded_time_and_size(tmp_path):
    """100,000 characters each, patterns that ruin careless expressions; nothing gets out."""
    rows = []
    for i, text in enumerate([*HOSTILE.values(), "<script>alert(1)</script>" * 4_000]):
        for task in ("open", "closed"):
            more = {
                "completion": text,
                "answer": text,
                "task": task,
                "tokens": 96,
                "cut": True,
                "options": None if task == "open" else NAMES,
            }
            rows.append(record(f"p{i}", False, **more))
    other = [r | {"correct": True} for r in rows]
    runs = [save(tmp_path / "a", rows), save(tmp_path / "b", other)]
    start = time.process_time()
    assert main(["report", str(runs[0])]) == main(["report", *map(str, runs)]) == 0
    assert time.process_time() - start < 20
    page = runs[1] / "compared-with-a.html"
    assert page.stat().st_size < 2_000_000 and "<script>" not in page.read_text()


def test_a_paper_bird_is_drawn_again_from_its_name(birds):
    photo = birds.test[3]
    assert evalreport.photo_source(None)(photo.id).tobytes() == photo.image().tobytes()
    for name in ("kite/1.jpg", "paperbirds/0/test/dodo/0"):
        with pytest.raises(KeyError):
            evalreport.photo_source(None)(name)


def test_broken_records_are_all_named(tmp_path):
    lacking = record()
    del lacking["named"], lacking["cut"]
    run = save(tmp_path / "run", [record(), lacking, {"model": "m"}])
    with pytest.raises(DataError) as caught:
        evalreport.read_run(run)
    assert len(caught.value.problems) == 2 and "row 2: lacks named, cut" in caught.value.problems[0]
    assert main(["report", str(tmp_path / "nothing")]) == 2
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "records.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        evalreport.read_run(tmp_path / "empty")
