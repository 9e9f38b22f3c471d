"""Folders of photographs as people have them; each form with a small made one."""

import csv
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from photo_folders import FOUR, four_classes, noise, only_problem, problems_of
from PIL import Image

from finer1_lite import rewards
from finer1_lite.__main__ import main, read_command
from finer1_lite.data import images, layouts
from finer1_lite.data.benchmark import Benchmark
from finer1_lite.data.folders import Reading
from finer1_lite.data.runs import write_attribution
from finer1_lite.data.scoring import judge
from finer1_lite.runtime.files import DataError
from finer1_lite.species import load_folder


def counts(photos) -> Counter:
    return Counter(photo.species for photo in photos)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="finer1_lite")
    return lambda: "\n".join(caplog.messages)


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder, name",
    [
        ("Granny-Smith-Apple", "Granny Smith Apple"),
        ("Audi-A4-2012", "Audi A4 2012"),
        ("M\u00e4use-Bussard", "M\u00e4use Bussard"),
        ("granny_smith  apple", "granny smith apple"),
        ("Hyacinthoides non-scripta", "Hyacinthoides non-scripta"),
        ("Hyacinthoides_non-scripta", "Hyacinthoides non-scripta"),
        ("Snake's-head", "Snake's-head"),
        ("Forget-me-not", "Forget-me-not"),
        ("lily-of-the-valley", "lily-of-the-valley"),
        ("St.-John's-wort", "St.-John's-wort"),
        ("Mercedes-Benz C-Class", "Mercedes-Benz C-Class"),
        ("F-16A-B", "F-16A-B"),
        ("707-320", "707-320"),
        ("\u7fbd-\u9ce5", "\u7fbd-\u9ce5"),
        ("Watermelon", "Watermelon"),
    ],
)
def test_hyphens_of_names_stay_and_those_between_words_go(folder, name):
    assert layouts.display(folder) == name


def test_numbers_of_a_data_set_go_where_every_folder_has_one(tmp_path, said):
    for name in ("001.Black_footed_Albatross", "n02085620-Chihuahua"):
        for i in range(5):
            noise(tmp_path / name / f"{i}.png")
    assert load_folder(tmp_path).names == ["Black footed Albatross", "Chihuahua"]
    assert "numbers before names are left out" in said()
    for i in range(5):
        noise(tmp_path / "Finch" / f"{i}.png")
    assert "001.Black footed Albatross" in load_folder(tmp_path).names


@pytest.mark.parametrize(
    "names, shown",
    [
        (["01_rose", "17_iris"], ["rose", "iris"]),
        (["1 Rose", "2 Iris"], ["Rose", "Iris"]),
        (["n02085620_Chihuahua", "n02085782 Pug"], ["Chihuahua", "Pug"]),
        (["001.707-320", "002.A320"], ["707-320", "A320"]),
        (["707-320", "737-200"], ["707-320", "737-200"]),
        (["7.5cm PaK", "8.8cm FlaK"], ["7.5cm PaK", "8.8cm FlaK"]),
        (["2011 Audi", "2012 BMW"], ["2011 Audi", "2012 BMW"]),
        (["0-owl", "0-kite", "1-owl", "1-kite"], ["0-owl", "0-kite", "1-owl", "1-kite"]),
        (["1_star", "2_star", "3_star"], ["1 star", "2 star", "3 star"]),
    ],
)
def test_numbers_that_count_go_and_those_of_names_stay(names, shown):
    assert list(layouts.shown(names).values()) == shown


def test_numbers_that_stay_and_names_that_are_numbers_are_said(said):
    layouts.shown(["001.Rose", "Iris"])
    assert "1 of 2 names begin with a number, which stays (001.Rose)" in said()
    layouts.shown(["n02085620", "n02085782"])
    assert "the classes are numbers; a column `name` in classes.csv" in said()


def test_numbers_go_from_labels_of_a_table_and_from_classes_of_tables(tmp_path):
    for i in range(12):
        noise(tmp_path / f"{i}.png")
    names = ("001.Black_footed_Albatross", "017.Cardinal")
    rows = "".join(f"{i}.png,{names[i % 2]}\n" for i in range(12))
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)
    described = "".join(f"{name},a bird\n" for name in ("Black-footed Albatross", "09.Cardinal"))
    (tmp_path / "descriptions.csv").write_text("class,description\n" + described)
    birds = load_folder(tmp_path, reading=Reading(table="labels.csv"))
    assert birds.names == ["Black footed Albatross", "Cardinal"]
    assert {one.description for one in birds.species} == {"a bird"}


# --- folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "splits, trained, tested",
    [
        ({"train": 5, "Test": 2}, {"train"}, {"Test"}),
        ({"train": 3, "val": 2, "test": 2}, {"train", "val"}, {"test"}),
        ({"training": 5, "validation": 1}, {"training"}, {"validation"}),
        ({"train": 6}, {"train"}, {"train"}),
    ],
)
def test_folders_of_splits(tmp_path, said, splits, trained, tested):
    for split, number in splits.items():
        for name in ("Rose", "Snake's-head"):
            for i in range(number):
                noise(tmp_path / split / name / f"{i}.png")
    (tmp_path / "descriptions.csv").write_text(
        "class,description\nRose,red\nSnake\u2019s head,dark\n"
    )
    (tmp_path / "classes.csv").write_text("class,seen\nRose,yes\nSnake's-head,yes\n")
    found = load_folder(tmp_path)
    assert found.names == ["Rose", "Snake's-head"] and found.of("Rose").description == "red"
    assert {photo.id.split("/")[0] for photo in found.train} <= trained
    assert {photo.id.split("/")[0] for photo in found.test} == tested
    assert counts(found.train) == dict.fromkeys(found.names, 4)
    assert "split folders" in said() and "8 photographs train (4 of each of 2 classes)" in said()


def test_groups_of_an_index_leave_the_folders_splits(tmp_path):
    for split, number in (("train", 4), ("test", 2)):
        for name in ("Rose", "Iris"):
            for i in range(number):
                noise(tmp_path / split / name / f"{i}.png")
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    (tmp_path / "index.csv").write_text("file,coarse\n" + "".join(f"{f},bed\n" for f in files))
    found = load_folder(tmp_path, unseen_share=0)
    assert {photo.id.split("/")[0] for photo in found.train} == {"train"}
    assert found.groups == {"Rose": "bed", "Iris": "bed"} and len(found.test) == 4


def test_nested_folders(tmp_path, said):
    root = four_classes(tmp_path)
    for i in range(3):
        noise(root / "red-kite" / "garden" / "2024" / f"{i}.png")
    birds = load_folder(root)
    assert len(birds.train + birds.test) == 24 and "--recursive" in said()
    nested = load_folder(root, reading=Reading(recursive=True))
    assert len(nested.train + nested.test) == 27 and nested.names == birds.names
    for path in (root / "red-kite").glob("*.png"):
        path.unlink()
    assert "3 more lie in folders inside: --recursive" in only_problem(root)


def test_one_folder_too_high_names_the_layer_and_the_way(tmp_path):
    root = four_classes(tmp_path / "CUB" / "images").parent
    (root / "attributes").mkdir()
    (root / "attributes" / "list.txt").write_text("x")
    problem = only_problem(root)
    assert f"{root / 'images'} (4 folders)" in problem and "--recursive" in problem
    assert str(root / "images") in only_problem(tmp_path)
    assert load_folder(root / "images").names == sorted(FOUR)


def test_one_folder_too_low_and_data_in_other_forms_name_the_way(tmp_path):
    root = four_classes(tmp_path / "birds")
    assert "give the folder above, if red-kite and " in only_problem(root / "red-kite")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "data" / "train.parquet").write_bytes(b"x")
    assert f"fetch {tmp_path / 'hub'} --out" in only_problem(tmp_path / "hub")


def test_folders_of_splits_alone_are_no_classes(tmp_path):
    for split in ("train", "test"):
        for i in range(6):
            noise(tmp_path / split / f"{split}{i}.png")
    problem = only_problem(tmp_path)
    assert "test, train, which are splits and no classes" in problem and "--table" in problem
    (tmp_path / "LICENSE.txt").write_text("all, mine\n")
    (tmp_path / "about.csv").write_text("x,y\n1,2\n")
    rows = "".join(f"{s}{i},{'ab'[i % 2]}\n" for s in ("train", "test") for i in range(6))
    (tmp_path / "labels.csv").write_text("id,breed\n" + rows)
    assert "use --table labels.csv" in only_problem(tmp_path)
    assert f"give {tmp_path} with --table labels.csv" in only_problem(tmp_path / "train")
    assert load_folder(tmp_path, reading=Reading(table="labels.csv"), shots=1).names == ["a", "b"]


def test_a_class_says_what_it_skips(tmp_path):
    root = four_classes(tmp_path)
    for i in range(6):  # a camera's own form begins as TIFF does
        (root / "red-kite" / f"{i}.png").unlink()
        (root / "red-kite" / f"{i}.NEF").write_bytes(b"II*\0" + bytes(200))
    assert "skipped: 6 .nef (save pictures as JPEG or PNG)" in only_problem(root)


def test_photographs_without_labels_are_for_predict(tmp_path):
    noise(tmp_path / "1.png")
    assert "`predict`" in only_problem(tmp_path)


def test_a_folder_is_called_as_it_is_seen_from_here(tmp_path, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    four_classes(tmp_path / "owls")
    load_folder(tmp_path / "owls")  # so are the places that a card tells
    assert "owls: 8 photographs train" in said() and str(tmp_path) not in said()


def test_too_few_pictures_name_both_mends(tmp_path):
    root = four_classes(tmp_path)
    for i in range(3, 6):
        (root / "red-kite" / f"{i}.png").unlink()
    problem = only_problem(root)
    assert "add pictures" in problem and "--shots 2" in problem
    assert load_folder(root, shots=2)


def test_the_log_says_what_is_never_taught_and_why(tmp_path, said):
    root = four_classes(tmp_path)
    birds = load_folder(root, unseen_share=0.5)
    assert "2 of 4 classes are never taught, their 12 photographs only test" in said()
    assert "unseen share 0.5" in said() and ", ".join(birds.unseen_names) in said()
    rows = "".join(f"{name},{'no' if name == 'red-kite' else 'yes'}\n" for name in FOUR)
    (root / "classes.csv").write_text("class,seen\n" + rows)
    load_folder(root)
    assert "only test (classes.csv): red-kite" in said()


# --- tables ----------------------------------------------------------------------------------


def flat(root: Path, number: int = 12) -> Path:
    for i in range(number):
        noise(root / "train" / f"{i:03}.jpg", (32, 24))
    return root


def labels(form: str, number: int = 12) -> str:
    return "".join(form.format(i, ("pug", "beagle")[i % 2]) for i in range(number))


@pytest.mark.parametrize(
    "text, columns",
    [
        ("id,breed\n" + labels("{:03},{}\n"), {}),
        ("Filename;Split;Label\r\n" + labels("train\\{:03}.JPG;;{}\r\n"), {}),
        ("label,x,y\n" + labels("4,C:\\me\\train\\{:03}.jpg,{}\n"), {"file": "x", "label": "Y"}),
    ],
)
def test_a_flat_folder_with_a_table(tmp_path, text, columns):
    root = flat(tmp_path)
    (root / "labels.csv").write_text(text)
    assert "--table labels.csv" in only_problem(root)
    named = {f"{what}_column": name for what, name in columns.items()}
    found = load_folder(root, reading=Reading(table="labels.csv", **named), unseen_share=0)
    assert found.names == ["beagle", "pug"] and len(found.train + found.test) == 12
    assert all(int(p.id[6:9]) % 2 == (p.species == "beagle") for p in found.train + found.test)


def test_options_of_a_command_reach_the_folder(tmp_path, monkeypatch):
    root = flat(tmp_path / "dogs")
    (root / "labels.csv").write_text("id,breed\n" + labels("{:03},{}\n"))
    monkeypatch.chdir(tmp_path)
    given = ["--shots", "2", "--unseen-share", "0", "--skip-broken"]
    command = ["cot", "triplets", "--photos", "dogs", *given, "--out", "x"]
    for table in ("labels.csv", "dogs/labels.csv", str(root / "labels.csv")):
        pictures = read_command([*command, "--table", table]).pictures
        assert pictures.reading() == Reading(table="labels.csv", skip_broken=True)
        dogs = pictures.collection()
        assert counts(dogs.train) == {"beagle": 2, "pug": 2} and dogs.coarse == "object"
    assert read_command(command[:2] + command[-2:]).pictures.origin()["coarse"] == "bird"


def test_a_name_of_two_files_is_told(tmp_path):
    root = flat(tmp_path)
    noise(root / "test" / "000.jpg")
    (root / "labels.csv").write_text("id,breed\n" + labels("{:03},{}\n"))
    problem = only_problem(root, reading=Reading(table="labels.csv"))
    assert "'000' can be test/000.jpg or train/000.jpg" in problem
    (root / "labels.csv").write_text("id,breed\n" + labels("train/{:03}.jpg,{}\n"))
    assert len(load_folder(root, reading=Reading(table="labels.csv")).test) == 8


def test_a_row_never_labels_the_picture_of_another_folder(tmp_path):
    """Paths of another machine count by their end, but a/1.jpg is not b/1.jpg."""
    for place in ("a/0.jpg", "a/1.jpg", "a/2.jpg", "b/0.jpg", "b/2.jpg"):
        noise(tmp_path / place, (32, 24))
    rows = [f"C:/me/{x}/{i}.jpg,{name}" for x, name in (("a", "pug"), ("b", "pom")) for i in "012"]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows]))
    with pytest.raises(DataError, match=r"line 6: there is no picture 'C:/me/b/1.jpg'") as caught:
        load_folder(tmp_path, shots=1, unseen_share=0, reading=Reading(table="labels.csv"))
    assert len(caught.value.problems) == 1


def test_rows_that_contradict_each_other_about_a_split_are_named(tmp_path):
    root = flat(tmp_path / "dogs")
    (root / "labels.csv").write_text(
        "id,breed,split\n" + labels("{:03},{},train\n") + "000,pug,test"
    )
    with pytest.raises(DataError, match="line 14: 'test', but train/000.jpg is 'train' on line 2"):
        load_folder(root, shots=2, unseen_share=0, reading=Reading(table="labels.csv"))


def test_options_of_a_folder_without_a_folder_are_all_named(caplog):
    vain = ["--table", "t.csv", "--skip-broken", "--unseen-share", "0.5"]
    assert main(["cot", "triplets", *vain, "--out", "x"]) == 2
    for flag in ("--table", "--skip-broken", "--unseen-share"):
        assert f"{flag}: says how a folder is read; give --photos" in caplog.text
    caplog.clear()
    assert main(["evaluate", "x", "--table", "t.csv"]) == 2 and "give --photos" in caplog.text


def test_what_is_wrong_with_a_table_of_labels(tmp_path, said):
    root = flat(tmp_path)
    bad = "012,pug\n000,beagle\n001,\n"
    (root / "labels.csv").write_text("id,breed\n" + labels("{:03},{}\n") + bad)
    told = "\n".join(problems_of(root, reading=Reading(table="labels.csv")))
    assert "line 14: there is no picture '012'" in told and "line 16: '001' has no label" in told
    assert "line 15: 'beagle', but train/000.jpg is 'pug' on line 2; keep one" in told
    (root / "labels.csv").write_text("id,breed\n" + labels("{:03},{}\n") + "012,pug\n")
    found = load_folder(root, reading=Reading(table="labels.csv", skip_broken=True))
    assert len(found.train + found.test) == 12 and "rows left out: 1" in said()
    lacking = only_problem(root, reading=Reading(table="labels.csv", label_column="kind"))
    assert "'kind'" in lacking and "--label-column among: id, breed" in lacking
    assert "no.csv" in only_problem(root, reading=Reading(table="no.csv"))
    (root / "labels.csv").write_text("id,breed\n000,pug\n001,pug\n")
    told = problems_of(root, reading=Reading(table="labels.csv"))
    assert len(told) == 2 and "1 classes have pictures" in told[0]


@pytest.mark.parametrize("place", ["", "train/"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_metadata_of_hugging_face(tmp_path, place, ending):
    root = flat(tmp_path)
    way = "train/" * (not place)
    rows = [(f"{way}{i:03}.jpg", ("pug", "beagle")[i % 2]) for i in range(12)]
    lines = [f"{name},{label}" for name, label in rows]
    if ending == "jsonl":
        lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
    head = ["file_name,label"] * (ending == "csv")
    (root / f"{place}metadata.{ending}").write_text("\n".join(head + lines))
    assert counts(load_folder(root, unseen_share=0).train) == {"beagle": 4, "pug": 4}


def test_captions_are_no_labels(tmp_path, said):
    root = four_classes(tmp_path)
    (root / "metadata.csv").write_text("file_name,text\nred-kite/0.png,a bird\n")
    assert load_folder(root).names == sorted(FOUR) and "no column of labels" in said()


WILD = {
    "Apis mellifera": "Western Honey Bee",
    "Bombus terrestris": "Buff-tailed Bumble Bee",
    "Bombus lucorum": "Buff-tailed Bumble Bee",
}


def observations(root: Path, number: int = 21) -> Path:
    """An export as iNaturalist makes it; files hold the id of the observation or of the photo."""
    columns = "id,quality_grade,license,user_login,image_url,scientific_name,common_name"
    rows = [columns]
    for i in range(number):
        scientific, common = list(WILD.items())[i % 3]
        grade = "needs_id" if i >= 18 else "research"
        url = f"https://static/photos/{90000 + i}/medium.jpg"
        rows.append(f"{1000 + i},{grade},CC-BY,ana{i},{url},{scientific},{common}")
        noise(root / "pics" / (f"bee_{1000 + i}.jpg" if i % 2 else f"{90000 + i}.jpg"), (32, 24))
    (root / "observations.csv").write_text("\n".join(rows), encoding="utf-8")
    return root


def test_observations_of_inaturalist(tmp_path, said):
    root = observations(tmp_path / "bees")
    found = load_folder(root, reading=Reading(table="observations.csv"), unseen_share=0)
    assert found.names == sorted(WILD) and len(found.train + found.test) == 21
    # a name of two classes is no alias
    assert found.aliases == {"Apis mellifera": ("Western Honey Bee",)} and "no alias" in said()
    common = Reading(table="observations.csv", names="common", research_grade=True)
    bees = load_folder(root, reading=common, unseen_share=0)
    assert bees.names == ["Buff-tailed Bumble Bee", "Western Honey Bee"]
    assert bees.aliases["Buff-tailed Bumble Bee"] == ("Bombus lucorum", "Bombus terrestris")
    assert len(bees.train + bees.test) == 18 and "3 observations are not of research" in said()
    write_attribution(bees, tmp_path / "attribution.csv")
    rows = list(csv.DictReader((tmp_path / "attribution.csv").open(encoding="utf-8-sig")))
    assert len(rows) == 18 and {row["licence"] for row in rows} == {"CC-BY"}
    row = next(row for row in rows if row["file"] == "pics/bee_1001.jpg")
    assert (row["observer"], row["class"]) == ("ana1", "Buff-tailed Bumble Bee")
    assert row["source"].endswith("/90001/medium.jpg")


def test_no_attribution_where_nothing_is_known(tmp_path):
    write_attribution(load_folder(four_classes(tmp_path / "birds")), tmp_path / "a.csv")
    assert not (tmp_path / "a.csv").exists()


# --- endings ---------------------------------------------------------------------------------


def test_endings_and_content(tmp_path, said):
    root = four_classes(tmp_path)
    picture = Image.open(noise(tmp_path / "x.png", (32, 24)))
    (tmp_path / "x.png").unlink()
    forms = {"a.jfif": "JPEG", "b.JPE": "JPEG", "c": "PNG", "d.dat": "WEBP", "e.jpg": "PNG"}
    forms |= {"g": "TIFF", "h": "BMP"}
    forms |= {"f.avif": "AVIF"} if "AVIF" in images.FORMATS else {}
    for turn, (name, form) in enumerate(forms.items()):
        turned = picture.rotate(90 * turn, expand=True).crop((0, 0, 24 - turn, 24))
        turned.save(root / "red-kite" / name, form)
    (root / "red-kite" / "notes").write_text("no picture")
    birds = load_folder(root, unseen_share=0)
    assert len(birds.train + birds.test) == 24 + len(forms)
    assert "4 pictures told by content (first: c)" in said() and "1 file without ending" in said()


@pytest.mark.parametrize(
    "start, name",
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"%PDF-1.7", "PDF"),
        (b"\xff\x0a", "JPEG XL; save it as JPEG"),
        (b"\n<!DOCTYPE html>", "a web page; fetch the picture itself"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\0\0\0\x20ftypisom", "a film"),
        (b"PK\x03\x04", "an archive; unpack it"),
        (b"\0\0\0\x20ftypavif" + bytes(40), "broken, or of a form"),
    ],
)
def test_what_is_not_read_is_named_as_what_it_is(tmp_path, start, name):
    (tmp_path / "x.jpg").write_bytes(start + bytes(100))
    problem = images.check(tmp_path / "x.jpg").problem
    assert name in problem or "AVIF" in images.FORMATS and "broken" in problem


def test_heic_without_its_library_is_one_line_with_the_mend(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "pillow_heif", None)
    monkeypatch.setattr(images, "FORMATS", ("JPEG", "PNG"))
    root = four_classes(tmp_path)
    for i in range(2):
        (root / "red-kite" / f"{i}.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes([i] * 90))
    problem = only_problem(root)
    assert problem.startswith("red-kite: 2 pictures") and "pip install pillow-heif" in problem
    assert load_folder(root, reading=Reading(skip_broken=True))


def test_heic_with_its_library(tmp_path):
    pytest.importorskip("pillow_heif")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "x.heic")
    assert images.decode(tmp_path / "x.heic").size == (64, 48)


def test_an_odd_tag_beside_the_orientation(tmp_path):
    """XResolution as text, which Pillow reads and cannot write again."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "seventy-two"
    path = tmp_path / "x.jpg"
    Image.new("RGB", (64, 40)).save(path, exif=exif)
    found, text = (
        path.read_bytes(),
        b"\x01\x0e\0\x02" if b"MM\0*" in path.read_bytes() else b"\x0e\x01\x02\0",
    )
    assert found.count(text) == 1
    path.write_bytes(found.replace(text, text.replace(b"\x0e", b"\x1a")))
    assert images.decode(path).size == (40, 64)


# --- copies ----------------------------------------------------------------------------------


def saved_again(source: Path, target: Path) -> None:
    picture = Image.open(source)
    picture.resize((picture.width * 4 // 5, picture.height * 4 // 5)).save(target, quality=60)


@pytest.fixture
def smooth(tmp_path) -> Path:
    """Four classes of six pictures with structure, as photographs have it."""
    rng = np.random.default_rng(0)
    for name in FOUR:
        for i in range(6):
            (tmp_path / name).mkdir(exist_ok=True)
            coarse = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8))
            coarse.resize((96, 96)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_a_picture_saved_again_under_another_class_carries_two_labels(smooth, said):
    saved_again(smooth / "red-kite" / "0.png", smooth / "barn-owl" / "copy.jpg")
    problem = only_problem(smooth)
    assert "barn-owl/copy.jpg, red-kite/0.png" in problem and "two labels" in problem
    birds = load_folder(smooth, reading=Reading(skip_broken=True), unseen_share=0)
    ids = {photo.id for photo in birds.train + birds.test}
    assert len(ids) == 23 and not ids & {"barn-owl/copy.jpg", "red-kite/0.png"}
    assert "two labels" in said()


def test_a_test_picture_like_a_training_one_is_left_out_and_counted(smooth, said):
    for i in range(6):
        saved_again(smooth / "red-kite" / f"{i}.png", smooth / "red-kite" / f"again{i}.jpg")
    birds = load_folder(smooth, unseen_share=0)
    tested = [p.id for p in birds.test if p.species == "red-kite"]
    trained = {p.id for p in birds.train if p.species == "red-kite"}
    numbers = {name[-5] for name in trained}
    assert tested and not numbers & {name[-5] for name in tested}
    assert f"red-kite: {12 - 4 - len(tested)} pictures left out of the test" in said()


def test_a_class_whose_test_is_all_copies_is_a_problem(smooth):
    for i in range(1, 6):
        (smooth / "red-kite" / f"{i}.png").unlink()
    for i in range(4):
        picture = Image.open(smooth / "red-kite" / "0.png")
        picture.save(smooth / "red-kite" / f"q{i}.jpg", quality=60 + 8 * i)
    assert "nearly the same as a training one" in only_problem(smooth, unseen_share=0)


def test_broken_ones_and_exact_copies_are_left_out_on_request(tmp_path, said):
    root = four_classes(tmp_path)
    (root / "red-kite" / "bad.jpg").write_bytes(b"x")
    (root / "red-kite" / "0b.png").write_bytes((root / "red-kite" / "0.png").read_bytes())
    assert len(problems_of(root)) == 2
    birds = load_folder(root, reading=Reading(skip_broken=True))
    assert len(birds.train + birds.test) == 24
    assert "2 findings left out" in said() and "red-kite/bad.jpg: is no picture" in said()


# --- classes, template -----------------------------------------------------------------------


def test_aliases(tmp_path, said):
    root = four_classes(tmp_path)
    table = "class,name,aliases,colour\nred-kite,,Milvus milvus; red glede | ,red\nbarn-owl,,,\n"
    (root / "classes.csv").write_text(table)
    assert load_folder(root).aliases == {"red-kite": ("Milvus milvus", "red glede")}
    assert "columns that are not used: colour" in said()
    (root / "classes.csv").write_text(
        table.replace("barn-owl,,,", "barn-owl,,Red Glede;tawny owl,")
    )
    told = problems_of(root)
    assert len(told) == 3
    assert any("the alias 'red glede' of red-kite stands for barn-owl" in one for one in told)
    (root / "classes.csv").write_text("class,aliases\nred-kite,The Barn Owl\n")  # as it is scored
    (told,) = problems_of(root)
    assert "the alias 'The Barn Owl' of red-kite stands for barn-owl too" in told


@pytest.mark.parametrize("column", ["alias", "Synonyms"])
def test_other_words_for_aliases_and_what_they_cannot_hold(tmp_path, said, column):
    root = four_classes(tmp_path)
    (root / "classes.csv").write_text(f'class, {column}\nred-kite, "glede, puttock"\n')
    assert load_folder(root).aliases == {"red-kite": ("glede, puttock",)}
    assert "'glede, puttock' is one alias; between several write ;" in said()
    (root / "classes.csv").write_text(f"class,{column}\nred-kite,<glede>\n")
    assert "red-kite, alias '<glede>': an answer cannot hold" in only_problem(root)


def test_aliases_of_own_classes_count_in_rewards_and_evaluation(tmp_path):
    root = four_classes(tmp_path)
    (root / "classes.csv").write_text("class,aliases\nred-kite,Milvus milvus\n")
    birds = load_folder(root)
    said = ["<think>a kite</think>\n<answer>Milvus milvus</answer>"]
    assert rewards.accuracy(said, ["red-kite"], birds.names, birds.aliases) == [1.0]
    own = Benchmark.of_collection(birds)
    assert judge(said[0], "red-kite", birds.names, aliases=own.aliases).correct


def test_a_template_to_fill_in(tmp_path, capsys, caplog):
    root = four_classes(tmp_path / "birds")
    command = ["lab", "--photos", str(root), "--out", str(tmp_path / "runs")]
    assert main(command) == 2 and "--template" in caplog.text
    assert main([*command, "--template"]) == 0
    path = root / "descriptions.csv"
    assert str(path) in capsys.readouterr().out
    assert path.read_text("utf-8-sig").split() == [
        "class,description",
        *(f"{n}," for n in sorted(FOUR)),
    ]
    assert main([*command, "--template"]) == 2 and "there already" in caplog.text
    caplog.clear()
    assert main(command) == 2 and "no description yet" in caplog.text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "written", ["IMG_{:03}.JPG", "IMG_{:03}", "img_{:03}.jpg", "Data/images/IMG_{:03}.jpg"]
)
@pytest.mark.parametrize("place", ["IMG_{:03}.JPG", "images/IMG_{:03}.JPG"])
def test_a_table_of_bare_names_finds_pictures_with_capitals(tmp_path, written, place):
    for i in range(12):
        noise(tmp_path / place.format(i).replace("JPG", "png")).rename(tmp_path / place.format(i))
    (tmp_path / "labels.csv").write_text("file,label\n" + labels(written + ",{}\n"))
    found = load_folder(tmp_path, reading=Reading(table="labels.csv"), unseen_share=0, shots=2)
    assert len(found.train) + len(found.test) == 12
