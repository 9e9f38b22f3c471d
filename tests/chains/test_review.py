"""Review by a person: append-only, undone by appending, the same by panel and by table."""

import csv
import json
import random

import pytest

from finer1_lite import cot
from finer1_lite.__main__ import main
from finer1_lite.chains import formats, review
from finer1_lite.chains.formats import Record
from finer1_lite.chains.panel import COLOURS, KEYS, Panel, chain_html, problems_html
from finer1_lite.chains.review import Review
from finer1_lite.runtime.files import DataError


@pytest.fixture
def records(world) -> list[Record]:
    names = world.names[:4]
    return [
        Record(f"c{i}", f"p{i}", n, "Name it.", cot.oracle_chain(world, n, random.Random(i)))
        for i, n in enumerate(names)
    ]


@pytest.fixture
def state(records, tmp_path) -> Review:
    return Review(records, tmp_path / "decisions.jsonl")


def reloaded(state: Review) -> Review:
    return Review(state.records.values(), state.path)


def test_every_decision_is_on_the_disk_at_once_and_only_ever_appended(state):
    edited = state.records["c2"].chain.replace("fits", "fits well")
    written = b""
    for act in (("c0", "keep"), ("c1", "drop"), ("c2", "edit", edited), ("c1", "keep")):
        state.decide(*act)
        assert state.path.read_bytes().startswith(written)
        written = state.path.read_bytes()
        assert reloaded(state).decisions == state.decisions
    assert state.undo() == "c1" and state.decisions["c1"].action == "drop"
    assert (
        state.path.read_bytes().startswith(written) and reloaded(state).decisions == state.decisions
    )
    assert [r.id for r in state.results()] == ["c0", "c2"]
    assert [r.id for r in state.results(undecided=True)] == ["c0", "c2", "c3"]
    assert state.results()[1].chain == edited
    counts = {"keep": 1, "drop": 1, "edit": 1, "undecided": 1, "turned down": 0}
    assert review.summary(state) == counts


def test_undo_goes_back_to_the_beginning_and_no_further(state):
    state.decide("c0", "keep")
    state.decide("c0", "drop")
    assert (state.undo(), state.undo(), state.undo()) == ("c0", "c0", None)
    assert not state.decisions and not reloaded(state).decisions


def test_undo_takes_back_what_it_names_whoever_has_gone_on_since(state):
    """A panel is open while `cot review` takes over a table."""
    state.decide("c0", "drop")
    reloaded(state).decide("c1", "keep")
    assert state.undo() == "c0"
    assert {*reloaded(state).decisions} == {"c1"}
    with state.path.open("a") as stream:
        stream.write('{"action": "undo", "id": "c0"}\n')  # by a third that had it still
    assert {*reloaded(state).decisions} == {"c1"}
    with state.path.open("a") as stream:
        stream.write('{"action": "undo"}\n')  # as an earlier version wrote it: the last one
    assert not reloaded(state).decisions


def test_a_line_torn_by_a_kill_costs_that_decision_alone(state):
    state.decide("c0", "keep")
    with state.path.open("ab") as stream:
        stream.write(b'{"id": "c1", "act')
    again = reloaded(state)
    assert set(again.decisions) == {"c0"}
    again.decide("c2", "drop")
    assert set(reloaded(state).decisions) == {"c0", "c2"}


def test_a_last_line_that_lacks_its_end_alone_is_kept(state):
    """Some editors leave it out."""
    state.decide("c0", "keep")
    state.path.write_bytes(state.path.read_bytes().rstrip())
    again = reloaded(state)
    again.decide("c1", "drop")
    assert [*reloaded(state).decisions] == ["c0", "c1"]


def test_keeping_an_edited_chain_keeps_the_edit(state):
    state.decide("c0", "edit", "new")
    state.decide("c0", "keep")
    assert state.current("c0").chain == "new"
    state.decide("c0", "drop")
    assert "c0" not in [r.id for r in state.results(undecided=True)]


def test_an_edit_holds_no_mark_of_a_tokenizer(state):
    """It would make the whole file unreadable."""
    with pytest.raises(ValueError, match=r"c0: the new chain holds <\|im_end\|>"):
        state.decide("c0", "edit", "<think>seen<|im_end|></think>")
    assert not state.history


def test_an_edit_is_checked_again_and_a_faulty_one_stays_out(state):
    state.decide("c0", "edit", "<think>gone</think>")
    assert {"tags", "answer"} <= {f.code for f in state.problems("c0")}
    assert state.ids("with findings") == ["c0"] and not state.results()


def test_edits_that_are_turned_down_are_counted_and_named_with_their_row(records, tmp_path, caplog):
    formats.write_records(tmp_path / "chains.jsonl", records)
    state = review.apply_review(tmp_path)
    good = state.records["c2"].chain.replace("fits", "fits well")
    fill(tmp_path / "review.csv", c1=("edit", "<think>gone</think>"), c2=("edit", good))
    state = review.apply_review(tmp_path)
    assert review.summary(state) == {
        "keep": 0,
        "drop": 0,
        "edit": 2,
        "undecided": 2,
        "turned down": 1,
    }
    assert "review.csv, row 3 (c1): tags: " in caplog.text and "row 4" not in caplog.text
    assert [r.id for r in formats.read_records(tmp_path / "reviewed.jsonl")] == ["c0", "c2", "c3"]


def test_a_folder_without_chains_is_refused(tmp_path, caplog):
    assert main(["cot", "review", str(tmp_path / "nowhere")]) == 2
    assert "run `cot make` first" in caplog.text and not (tmp_path / "nowhere").exists()


def test_filters(state):
    state.decide("c0", "keep")
    state.decide("c1", "drop")
    shown = {which: state.ids(which) for which in review.FILTERS}
    assert shown == {
        "all": ["c0", "c1", "c2", "c3"],
        "undecided": ["c2", "c3"],
        "kept": ["c0"],
        "dropped": ["c1"],
        "edited": [],
        "with findings": [],
    }


@pytest.mark.parametrize(
    "act", [("x", "keep"), ("c0", "burn"), ("c0", "edit"), ("c0", "edit", " ")]
)
def test_a_decision_that_makes_no_sense_is_refused_and_not_written(state, act):
    with pytest.raises(ValueError):
        state.decide(*act)
    assert not state.path.exists()


# --- the table ---------------------------------------------------------------------------


def fill(path, **decisions):
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        row["decision"], row["new_chain"] = decisions.get(row["id"], ("", ""))
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_the_table_makes_the_same_decisions_as_the_panel(state, tmp_path):
    table = tmp_path / "review.csv"
    state.write_csv(table)
    edited = state.records["c2"].chain.replace("fits", "fits well")
    fill(table, c0=("keep", ""), c1=("DROP", ""), c2=("edit", edited.replace("\n", "\r\n")))
    assert state.read_csv(table) == 3 and state.read_csv(table) == 0  # once each
    assert state.current("c2").chain == edited and not state.problems("c2")
    state.write_csv(table)
    lines = state.path.read_text()
    state.write_csv(table)
    assert reloaded(state).read_csv(table) == 0 and state.path.read_text() == lines


def test_all_faults_of_a_table_are_named_and_nothing_is_taken_over(state, tmp_path):
    table = tmp_path / "review.csv"
    state.write_csv(table)
    fill(table, c0=("keep", ""), c1=("perhaps", ""), c2=("edit", ""))
    with pytest.raises(DataError) as caught:
        state.read_csv(table)
    assert "'perhaps'" in str(caught.value) and "whole new text" in str(caught.value)
    assert not state.decisions
    table.write_text("id,verdict\nc0,keep\n")
    with pytest.raises(DataError, match="column decision(.|\n)*column new_chain"):
        state.read_csv(table)


def test_what_a_person_wrote_is_never_thrown_away(records, tmp_path, caplog, capsys):
    """A text without its decision, in the wrong column, or beside a second row: named, and kept."""
    formats.write_records(tmp_path / "chains.jsonl", records)
    table = tmp_path / "review.csv"
    review.apply_review(tmp_path)
    fill(table, c0=("", "mine"), c1=("keep", "mine"))
    with table.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    rows = [*rows[:4], dict(rows[3], decision="drop")]
    rows[2]["chain"] = "mine"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    written = table.read_bytes()
    assert main(["cot", "review", str(tmp_path)]) == 2 and table.read_bytes() == written
    for told in (
        "row 2: c0: new_chain is filled",
        "row 3: c1: new_chain is filled",
        "row 4: c2: the chain was changed; write it into new_chain",
        "row 6: c3 has a row already",
    ):
        assert told in caplog.text
    assert not (tmp_path / "decisions.jsonl").exists()


def test_undo_takes_over_what_the_table_has_new(records, tmp_path, capsys):
    formats.write_records(tmp_path / "chains.jsonl", records)
    review.apply_review(tmp_path)
    fill(tmp_path / "review.csv", c0=("keep", ""), c1=("drop", ""), c2=("drop", ""))
    assert main(["cot", "review", str(tmp_path), "--undo"]) == 0
    assert "taken back: c2" in capsys.readouterr().out
    assert {*review.open_review(tmp_path).decisions} == {"c0", "c1"}


def test_decisions_that_the_table_does_not_hold_are_counted(records, tmp_path, caplog):
    formats.write_records(tmp_path / "chains.jsonl", records)
    review.apply_review(tmp_path)
    fill(tmp_path / "review.csv", c0=("keep", ""), c1=("drop", ""))
    review.apply_review(tmp_path)
    fill(tmp_path / "review.csv", c0=("keep", ""))
    caplog.set_level("INFO")
    assert review.summary(review.apply_review(tmp_path))["drop"] == 1
    assert "1 decisions stand that are not in it (--undo takes the last back): c1" in caplog.text


def test_a_row_that_was_deleted_decides_nothing_and_that_is_said(records, tmp_path, caplog):
    formats.write_records(tmp_path / "chains.jsonl", records)
    review.apply_review(tmp_path)
    table = tmp_path / "review.csv"
    with table.open(encoding="utf-8-sig", newline="") as stream:
        kept = [row for row in csv.reader(stream) if row[0] != "c2"]
    with table.open("w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream).writerows(kept)
    caplog.set_level("INFO")
    assert len(review.apply_review(tmp_path).results(undecided=True)) == len(records)
    assert "1 chains without a row in it stay undecided (drop leaves one out): c2" in caplog.text


def test_decisions_made_in_the_panel_since_the_table_was_saved_are_no_surprise(
    records, tmp_path, caplog
):
    formats.write_records(tmp_path / "chains.jsonl", records)
    panel_side = review.apply_review(tmp_path)
    table = tmp_path / "review.csv"
    panel_side.decide("c1", "drop")
    caplog.set_level("INFO")
    assert review.summary(review.apply_review(tmp_path))["drop"] == 1
    assert "stand that are not in it" not in caplog.text
    with table.open(encoding="utf-8-sig", newline="") as stream:  # and it has them now
        assert [r["decision"] for r in csv.DictReader(stream)] == ["", "drop", "", ""]


def test_what_the_table_was_written_with_is_no_news_and_what_a_person_changes_is(records, tmp_path):
    formats.write_records(tmp_path / "chains.jsonl", records)

    def in_panel(act):  # then the table is taken over, and written anew
        act(review.open_review(tmp_path))
        counts = review.summary(review.apply_review(tmp_path))
        return counts["keep"], counts["drop"]

    assert in_panel(lambda r: r.decide("c1", "keep")) == (1, 0)
    assert in_panel(lambda r: r.decide("c1", "drop")) == (0, 1)  # the table said keep
    assert in_panel(Review.undo) == (1, 0)  # and now drop
    assert in_panel(Review.undo) == (0, 0)
    fill(tmp_path / "review.csv", c1=("keep", ""))
    assert in_panel(lambda r: r.decide("c1", "drop")) == (1, 0)  # two people: the table is later


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_saved_by_any_spreadsheet_program_is_read(state, tmp_path, delimiter, encoding):
    table = tmp_path / "review.csv"
    state.write_csv(table)
    edited = state.records["c1"].chain.replace("fits", "fits; \u201cwell\u201d, as said")
    fill(table, c0=("keep", ""), c1=("edit", edited))
    with table.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.reader(stream))
    with table.open("w", encoding=encoding, newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    assert state.read_csv(table) == 2 and state.decisions["c0"].action == "keep"
    assert state.current("c1").chain == edited and not state.problems("c1")


# --- the panel's Python side -----------------------------------------------------------------


@pytest.fixture
def panel(state, birds) -> Panel:
    photo = birds.train[0].image()
    return Panel(state, lambda name: photo, lambda species: [("a neighbour", "q")])


def press(panel: Panel, *keys: str) -> None:
    for key in keys:
        panel.shortcuts.pressed = [key, panel.shortcuts.pressed[1] + 1]


def test_keys_and_buttons_do_the_same(panel):
    press(panel, "k", "d")
    panel.buttons["keep"].click()
    assert {i: d.action for i, d in panel.state.decisions.items()} == {
        "c0": "keep",
        "c1": "drop",
        "c2": "keep",
    }
    assert panel.current == "c3" and panel.progress.value == 3
    press(panel, "u")
    assert panel.current == "c2" and "c2" not in panel.state.decisions
    press(panel, "p", "p", "n")
    assert panel.current == "c1" and set(KEYS.values()) == set(panel.buttons)


def test_an_edit_is_saved_by_keep_and_forgotten_otherwise(panel):
    press(panel, "e")
    assert (
        panel.editor.layout.display == "" and panel.editor.value == panel.state.records["c0"].chain
    )
    press(panel, "n")
    assert not panel.state.decisions and panel.editor.layout.display == "none"
    press(panel, "p", "e")
    panel.editor.value = panel.editor.value.replace("fits", "fits well")
    press(panel, "k")
    assert "fits well" in panel.state.current("c0").chain and "fits well" in panel.chain.value
    again = Panel(reloaded(panel.state), panel.picture, panel.nearby)
    assert again.current == "c1"  # goes on at the first undecided chain
    press(again, "p")
    assert "fits well" in again.chain.value


def test_filters_narrow_what_is_stepped_through(panel):
    press(panel, "k", "d")
    panel.filter.value = "dropped"
    assert panel.current == "c1"
    press(panel, "n")
    assert panel.current == "c1"
    panel.filter.value = "edited"
    assert panel.current is None and "no chain" in panel.count.value
    press(panel, "k", "e")  # nothing is shown: nothing happens
    assert len(panel.state.decisions) == 2


def test_whatever_a_model_writes_is_shown_as_text(state, birds):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    parts = f"analysis: {evil}\ncandidates: a\ncomparison: b\nprediction: {evil}"
    chain = f"<think>\n{parts}\n</think>\n<answer>{evil}</answer>"
    for text in (chain, evil, f"<think>{evil}"):
        shown = chain_html(text)
        assert "<script" not in shown and "<img" not in shown and "&lt;script" in shown
    for colour in COLOURS.values():
        assert colour in chain_html(chain)
    state.decide("c0", "edit", chain)
    assert "<img" not in problems_html(state.problems("c0"))
    json.dumps(chain_html(chain))


def test_keep_with_an_emptied_text_in_the_table_takes_an_edit_back(records, tmp_path):
    """In the panel keep leaves the edit, which is what is seen there; a table says what it says."""
    formats.write_records(tmp_path / "chains.jsonl", records)
    edited = records[0].chain.replace("fits", "fits well")
    review.apply_review(tmp_path)
    fill(tmp_path / "review.csv", c0=("edit", edited))
    assert review.apply_review(tmp_path).current("c0").chain == edited
    fill(tmp_path / "review.csv", c0=("keep", ""))
    state = review.apply_review(tmp_path)
    assert state.current("c0").chain == records[0].chain
    assert review.summary(state)["keep"] == 1 and review.summary(state)["edit"] == 0
    assert review.apply_review(tmp_path).history == state.history  # no news any more
    assert state.undo() == "c0" and state.current("c0").chain == edited


def test_keep_in_the_table_takes_back_no_edit_that_it_never_held(records, tmp_path):
    formats.write_records(tmp_path / "chains.jsonl", records)
    review.apply_review(tmp_path)
    fill(tmp_path / "review.csv", c0=("keep", ""))
    edited = records[0].chain.replace("fits", "fits well")
    review.open_review(tmp_path).decide("c0", "edit", edited)  # in the panel, meanwhile
    assert review.apply_review(tmp_path).current("c0").chain == edited


def test_leaving_out_what_nobody_decided_about_outlasts_the_next_start(records, tmp_path, caplog):
    formats.write_records(tmp_path / "chains.jsonl", records)
    review.apply_review(tmp_path)
    fill(tmp_path / "review.csv", c0=("keep", ""))

    def stay() -> int:
        return len((tmp_path / "reviewed.jsonl").read_text("utf-8").splitlines())

    assert main(["cot", "review", str(tmp_path), "--decided-only"]) == 0 and stay() == 1
    caplog.set_level("INFO")
    review.apply_review(tmp_path)  # as `cot make` and `lab --teacher` do
    assert stay() == 1 and "nobody has decided about are left out: 3" in caplog.text
    assert main(["cot", "review", str(tmp_path), "--undo"]) == 0 and stay() == 0
    assert main(["cot", "review", str(tmp_path)]) == 0 and stay() == len(records)
    review.apply_review(tmp_path)
    assert stay() == len(records)
