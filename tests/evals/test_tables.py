"""Tables, comparisons and pages from records counted by hand."""

import itertools
import json
import random
import time
import unicodedata

import numpy as np
import pytest
from hostile_texts import HOSTILE
from photo_folders import noise
from scored import NAMES, record, rotated

from finer1_lite import evaluate
from finer1_lite.__main__ import main
from finer1_lite.data.benchmark import Benchmark, Condition, questions
from finer1_lite.evals import figures, report, similarity, tables
from finer1_lite.evaluate import Completion
from finer1_lite.metrics import Entry, LabRecord, scores, table
from finer1_lite.runtime.files import DataError


def main_table(rows, task="closed"):
    """The main table's lines: (answerer, prompt) -> column -> text."""
    frame = table(rows)
    shown = tables.main_table(scores(frame), task, frame)
    return shown.set_index(["answerer", "prompt"]).to_dict("index")


def save(folder, rows):
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


# --- tables ----------------------------------------------------------------------------


def test_the_closed_table_holds_controls_and_counts_invalid_apart():
    rows = rotated("1", [1, 1, 1, 1]) + rotated("2", [0, 0, 0, 0], named="sparrow", split="unseen")
    rows += rotated("3", [0, 0, 0, 0], split="unseen", included=True)
    shown = main_table(rows)
    line = shown["m", "think"]
    assert line["seen, %"].startswith("100.0 [") and line["unseen, %"].startswith("0.0 [")
    assert line["harmonic mean, %"] == "0.0"
    assert line["released rule, %"] == "100.0 / 50.0"
    assert line["names no class, %"] == "0.0 / 50.0" and line["not offered, %"] == "0.0 / 50.0"
    assert line["tokens"] == "10 / 10" and "seeds" not in line
    first = shown["control: always the first option", "none"]
    assert first["seen, %"].startswith("25.0") and first["harmonic mean, %"] == "25.0"
    assert shown["control: random option", "none"]["unseen, %"].startswith("25.0")
    assert ("control: the model without the picture", "not run") in shown


def test_controls_answer_each_question_once_however_many_seeds_were_asked():
    rows = [record("1", seed=seed, model="t") for seed in (0, 1, 2)]
    rows += [record("2", seed=seed, model="t", options=NAMES[::-1]) for seed in (0, 1, 2)]
    for name, shares in tables.controls(table(rows), "closed").items():
        assert len(shares) == 2, name
    assert main_table(rows)["t", "think"]["seeds"] == "3"


def test_the_control_that_counts_wrong_options_counts_no_other_order_of_its_own_question():
    """The other rotations would tell it which option is never wrong: the answer key."""
    rng, names = random.Random(0), [f"bird {n}" for n in range(24)]
    once = []
    for name in names:
        options = [name, *rng.sample([n for n in names if n != name], 3)]
        once.append(record(name, options=options, label=name, order="shuffle"))
    turned = [
        row | {"options": row["options"][n:] + row["options"][:n], "order": "rotate", "rotation": n}
        for row in once
        for n in range(4)
    ]
    name = "least used as a wrong option"
    of = [tables.controls(table(rows), "closed")[name]["correct"].mean() for rows in (once, turned)]
    assert of[0] == pytest.approx(of[1]) and of[0] < 0.4


def test_the_image_free_baseline_is_a_line_of_its_own():
    rows = rotated("1", [1, 1, 1, 1]) + rotated("1", [0, 1, 0, 0], picture=False)
    shown = list(main_table(rows))
    assert shown[:2] == [("m", "think"), ("m, no picture", "think")]
    assert not any("without the picture" in name for name, _ in shown)


def test_completions_that_are_not_there_are_counted_and_never_scored():
    frame = table([record("1"), record("2", False, error="is broken")])
    assert scores(frame)[Entry("m", "think")]["seen"]["closed"]["n"] == 1
    assert tables.not_scored_table(frame).to_dict("records") == [
        {
            "answerer": "m",
            "prompt": "think",
            "world": "closed",
            "not scored": "1 of 2",
            "the first reason": "is broken",
        }
    ]


def test_a_run_without_any_completion_has_a_page(tmp_path):
    rows = [record("1", False, error="refused"), record("2", False, error="x", task="open")]
    text = report.write_report(save(tmp_path / "run", rows)).with_suffix(".md").read_text()
    assert "## Not scored" in text and "refused" in text and "## Closed world" not in text


def test_the_open_table_names_the_encoder():
    rows = [record(str(i), i == 0, task="open") for i in range(2)]
    similarity.add(rows, similarity.TextEncoder("toy", lambda texts: np.eye(len(texts))))
    line = main_table(rows, "open")["m", "think"]
    assert line["similarity (toy), %"] == "50.0" and line["seen, %"].startswith("50.0")
    assert ("control: a guess out of 1 names", "none") in main_table(rows, "open")


def test_every_data_set_stands_by_itself():
    rows = [record("1"), record("2", False, dataset="cars"), record("3", dataset="dogs")]
    each = tables.dataset_table(table(rows), "closed").set_index("data set").to_dict("index")
    assert each["cars"]["seen, %"].startswith("0.0 [")
    assert each["birds"]["seen, %"].startswith("100.0 [")
    assert "unseen, %" not in each["dogs"] and each["dogs"]["released rule, %"] == "100.0"
    assert tables.dataset_table(table(rows[:1]), "closed").empty


def test_details_say_what_is_called_what():
    rows = [
        record("1"),
        record("2", False, named="black kite"),
        record("3", False, named="barn owl"),
        record("4", False),
    ]
    frame = table(rows)
    student = tables.last_student(frame)
    classes = tables.class_table(*student)
    (worst,) = classes.to_dict("records")
    assert (worst["class"], worst["split"], worst["right"]) == ("red kite", "seen", "1 of 4")
    assert worst["% [95 %]"].startswith("25.0 [4.6,")
    assert "mean over classes 25.0 %" in classes.attrs["note"]
    confused = tables.confusion_table(*student)
    assert confused.to_numpy().tolist() == [
        ["red kite", "barn owl", "outside", "1 of 4"],
        ["red kite", "black kite", "inside", "1 of 4"],
    ]
    assert "1 of 2 wrong names are of the right group" in confused.attrs["note"]


def test_the_mean_over_classes_counts_every_class_alike():
    rows = [record(str(i), i < 3) for i in range(4)] + [record("9", False, label="barn owl")]
    classes = tables.class_table(*tables.last_student(table(rows)))
    assert classes["class"].tolist() == ["barn owl", "red kite"]  # the lowest first
    assert "mean over classes 37.5 %" in classes.attrs["note"]  # (3 / 4 + 0 / 1) / 2


def test_a_confusion_matrix_holds_shares_of_each_class_with_no_class_at_the_end():
    named = ["red kite", "black kite", None, "sparrow"]
    rows = [record(str(i), n == "red kite", named=n) for i, n in enumerate(named)]
    rows += [record("8", label="black kite"), record("9", False, label="barn owl")]
    axis = figures.confusion(table(rows)).axes[0]
    assert axis.images[0].get_array().tolist() == [
        [1, 0, 0, 0],
        [0.25, 0.25, 0, 0.5],
        [0, 0, 0, 1],
    ]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["black kite", "red kite", "barn owl"]
    assert figures.confusion(table(rows[:1])) is None  # one class


def test_prompts_that_the_base_was_not_asked_under_are_said():
    rows = [record(), record(model="n", prompt="answer")]
    missing = [name for name, prompt in main_table(rows) if prompt == "not run"]
    assert missing == [
        "control: the model without the picture",
        "control: m, prompt answer",
        "control: m, prompt exact",
    ]
    rows += [record(prompt="answer"), record(prompt="exact"), record(picture=False)]
    assert not any(prompt == "not run" for _, prompt in main_table(rows))


def test_samples_give_pass_at_k_and_a_vote():
    rows = [
        record("1", ok, sample=i, named="barn owl")
        for i, ok in enumerate([True, True, False, False, True])
    ]
    rows += [record("2", i == 4, sample=i, named="barn owl") for i in range(5)]
    (line,) = tables.sample_table(table(rows)).to_dict("records")
    # picture 1: 3 of 5 right; picture 2: 1 of 5. k = 2: 1 - (1 + 6) / 10 / 2
    assert line["samples"] == "5" and line["majority vote, %"] == "50.0"
    assert line["pass@k, %"] == "k = 1: 40.0; k = 2: 65.0; k = 4: 90.0; k = 5: 100.0"
    error = float(line["calibration error"])
    assert error == pytest.approx((abs(1 - 0.6) + abs(0 - 0.8)) / 2)
    assert tables.sample_table(table(rows[:1])).empty


@pytest.mark.parametrize(
    ("n", "right", "k"), [(5, 2, 3), (6, 0, 2), (6, 6, 1), (4, 3, 2), (7, 1, 7)]
)
def test_pass_at_k_counts_the_draws_that_hold_a_right_answer(n, right, k):
    pool = [True] * right + [False] * (n - right)
    drawn = list(itertools.combinations(pool, k))
    assert tables.pass_at_k(n, right, k) == pytest.approx(sum(map(any, drawn)) / len(drawn))


@pytest.mark.parametrize(("n", "right", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_what_cannot_be_drawn(n, right, k):
    with pytest.raises(ValueError, match=f"k={k}"):
        tables.pass_at_k(n, right, k)


def test_majority_ignores_completions_that_name_nothing():
    assert tables.majority(["a", "b", "b", None]) == ("b", 0.5)
    assert tables.majority(["b", "a"]) == ("b", 0.5)  # a tie: who came first
    assert tables.majority([None, None]) == (None, 0.0) == tables.majority([])


def test_calibration_error_by_hand_and_where_it_is_none():
    assert tables.calibration_error([0.95] * 4, [1, 1, 0, 0]) == pytest.approx(0.45)
    assert tables.calibration_error([1.0, 0.05], [True, False]) == pytest.approx(0.025)
    rng = np.random.default_rng(0)
    sure = rng.random(20_000)
    assert tables.calibration_error(sure, rng.random(20_000) < sure) < 0.02
    assert tables.calibration_error(sure, rng.random(20_000) < sure**3) > 0.1
    with pytest.raises(ValueError):
        tables.calibration_error([1.2], [True])


@pytest.mark.parametrize(("model", "seed"), [("base", None), ("SFT", 2)])
def test_records_of_the_lab_are_rows_like_any_other(birds, model, seed):
    exam = Benchmark.of_collection(birds, as_drawn=True)
    rows = []
    for condition in (Condition("think", "open"), Condition("think", "closed", order="shuffle")):
        question = questions(exam, condition)[0]
        said = Completion(f"<answer>{question.label}</answer>", 3)
        rows.append(evaluate.record(exam, condition, question, said, model=model, seed=seed))
    assert rows[0].keys() == record().keys()
    frame = table(rows, LabRecord)
    assert frame[["included", "correct"]].all(axis=None) and (frame["group"] != "").all()


# --- differences -----------------------------------------------------------------------


def test_differences_say_how_many_they_are_and_allow_for_it(monkeypatch):
    monkeypatch.setattr(tables, "MAX_PAIRS", 1)
    rows = [record(str(i), i < 7) for i in range(8)]
    rows += [record(str(i), False, model=model) for i in range(8) for model in "nk"]
    found = tables.entries(table(rows))
    shown = tables.difference_table(tables.differences(tables.within(found), found, found))
    (line,) = shown.to_dict("records")  # of three pairs
    assert line["difference"] == "n (think) minus m (think)" and line["only one right"] == "0 / 7"
    assert line["points [95 %]"].startswith("-87.5 [") and line["n"] == "8"
    assert (line["McNemar p"], line["Holm p"]) == ("0.0156", "0.0469")  # 2 / 2^7, times 3
    assert "the 3 comparisons of this table. The first 1 are shown." in shown.attrs["note"]


def test_differing_pictures_are_found_in_an_order_nobody_chose():
    a = [record(str(i), i % 2 == 0) for i in range(6)]
    b = [record(str(i), True) for i in range(6)]
    found = tables.differing(table(a), table(b))
    assert sorted(x["photo"] for x, _ in found) == ["1", "3", "5"]
    again = tables.differing(table(a[::-1]), table(b[::-1]))
    assert [x["photo"] for x, _ in again] == [x["photo"] for x, _ in found]


def test_entries_of_one_name_are_paired_between_runs():
    left = [Entry("m", "think"), Entry("n", "think")]
    pairs = tables.between(left, [Entry("m", "think"), Entry("k", "answer")])
    assert pairs == [(left[0], left[0])]
    assert len(tables.between(left, [Entry("z", "think")])) == 2


def test_entries_of_one_run_are_compared_where_they_differ_in_one_thing():
    m, n, other = Entry("m", "think"), Entry("n", "think"), Entry("m", "answer")
    blind, baseline = Entry("m", "think", False), Entry("lite0", "none")
    assert tables.within([m, n, other, blind, baseline]) == [
        (n, m),
        (other, m),
        (baseline, m),
        (baseline, n),
        (baseline, other),
        (blind, m),
    ]


# --- pages -----------------------------------------------------------------------------


def test_the_report_is_remade_from_records_alone(tmp_path, capsys):
    rows = [
        record(str(i), i % 2 == 0, task=t, model=m, split=s)
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
    page = (run / "report.html").read_text()
    assert "<script>" not in page and "always the first option" in page
    assert (run / "figures/accuracy.png").stat().st_size > 1000
    first = (run / "report.md").read_bytes()
    assert main(["report", str(run)]) == 0
    assert (run / "report.md").read_bytes() == first


def test_two_runs_stand_side_by_side_with_the_pictures_that_differ(tmp_path):
    name = "paperbirds/0/test/{}/0"
    first = save(tmp_path / "first", [record(name.format("x"), False, named="barn owl")])
    second = save(tmp_path / "second", [record(name.format("x"), True)])
    assert main(["report", str(first), str(second)]) == 0
    page = (second / "compared-with-first.html").read_text()
    assert "1 pictures that exactly one" in page and "second" in page and "McNemar p" in page
    assert not (second / "report.html").exists()


def test_runs_say_how_many_pictures_they_share_and_what_they_asked_otherwise(tmp_path, caplog):
    mine = [record(str(i), i < 3, dataset="test pictures") for i in range(4)]
    some = [record(str(i), True, dataset="flowers", coarse="flower") for i in range(2, 5)]
    other = [record("x", True)]
    runs = [save(tmp_path / name, rows) for name, rows in (("a", mine), ("b", some), ("c", other))]
    for run, limit in zip(runs, (96, 160, 96), strict=True):
        (run / "config.json").write_text(json.dumps({"preset": {"max_new_tokens": limit}}))
    assert main(["report", str(runs[0]), str(runs[1])]) == 0
    page = (runs[1] / "compared-with-a.md").read_text()
    assert "share 2 pictures of 4 and 3" in page and "share 2 pictures" in caplog.text
    assert "tokens: 96 in a, 160 in b." in page and "'bird' in a, 'flower' in b." in page
    assert "b: m (think) minus a: m (think)" in page  # paired, under two names of one data set
    assert main(["report", str(runs[0]), str(runs[2])]) == 0
    page = (runs[2] / "compared-with-a.md").read_text()
    assert "share no picture" in page and "tokens" not in page.split("## ")[1]
    assert "minus" not in page and "share no picture" in caplog.text
    assert main(["report", str(runs[0]), str(runs[0])]) == 0
    assert "What is compared" not in (runs[0] / "compared-with-a.md").read_text()


def test_pages_of_hostile_answers_are_made_in_bounded_time_and_size(tmp_path):
    """100,000 characters each, patterns that ruin careless expressions; nothing gets out."""
    rows = []
    for i, text in enumerate([*HOSTILE.values(), "<script>alert(1)</script>" * 4_000]):
        for task in ("open", "closed"):
            more = {"completion": text, "answer": text, "tokens": 96, "truncated": True}
            rows.append(record(f"p{i}", False, task=task, **more))
    other = [r | {"correct": True} for r in rows]
    runs = [save(tmp_path / "a", rows), save(tmp_path / "b", other)]
    start = time.process_time()
    assert main(["report", str(runs[0])]) == main(["report", *map(str, runs)]) == 0
    assert time.process_time() - start < 20
    page = runs[1] / "compared-with-a.html"
    assert page.stat().st_size < 2_000_000 and "<script>" not in page.read_text()


def test_a_paper_bird_is_drawn_again_from_its_name(birds):
    photo = birds.test[3]
    assert report.photo_source(None)(photo.id).tobytes() == photo.image().tobytes()
    for name in ("kite/1.jpg", "paperbirds/0/test/dodo/0"):
        with pytest.raises(KeyError):
            report.photo_source(None)(name)


def test_a_photograph_is_found_however_its_name_is_spelt_on_the_disk(tmp_path):
    name = "Gr\u00fcne Paprika/f\u00fcr 1.png"  # an id is in NFC, a Mac may write NFD
    noise(tmp_path / unicodedata.normalize("NFD", name))
    assert report.photo_source(tmp_path)(name).size == (16, 12)
    with pytest.raises(KeyError):
        report.photo_source(tmp_path)("Gr\u00fcne Paprika/2.png")


def test_broken_records_are_all_named(tmp_path):
    lacking = record()
    del lacking["named"], lacking["truncated"]
    run = save(tmp_path / "run", [record(), lacking, {"model": "m"}])
    with pytest.raises(DataError) as caught:
        report.write_report(run)
    told = str(caught.value)
    assert "record 2: lacks named, truncated; evaluate again" in told and "record 3: lacks" in told
    assert "record 1" not in told
    assert main(["report", str(tmp_path / "nothing")]) == 2
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "records.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        report.write_report(tmp_path / "empty")
    with pytest.raises(DataError, match="missing; evaluate first"):
        report.write_comparison(tmp_path / "nothing", tmp_path / "nowhere")
