"""Folders: their tables, names, copies and numbers; every problem told, all at once."""

import logging
import pickle
import shutil
import unicodedata
from pathlib import Path

import pytest
from photo_folders import DESCRIBED, four_classes, noise, only_problem, problems_of, write_index

from finer1_lite.rewards import match_class
from finer1_lite.runtime.files import DataError
from finer1_lite.species import load_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return four_classes(tmp_path / "birds")


def write_descriptions(root: Path, text: str, encoding: str = "utf-8") -> None:
    (root / "descriptions.csv").write_bytes(text.encode(encoding))


# Tables ------------------------------------------------------------------------------


def test_index_split_is_honoured_with_any_case_and_slash(root):
    write_index(root, trained=5)
    text = (root / "index.csv").read_text().replace("/", "\\").replace("train", "Train")
    (root / "index.csv").unlink()
    (root / "Index.csv").write_text("\ufeff" + text.replace("split", "Upstream_Split"))
    birds = load_folder(root, shots=3)
    assert all(int(Path(p.id).stem) < 5 for p in birds.train)
    assert all(int(Path(p.id).stem) == 5 for p in birds.test)
    assert len(birds.test) == 4
    assert {birds.of(name).group for name in birds.names} == {"owl", "kite"}


@pytest.mark.parametrize("form", [".\\{}", "C:\\me\\Birds\\{}", "/home/me/birds/{}"])
def test_index_may_hold_paths_of_another_machine(root, form):
    lines = ["file,split,upstream_split"]
    for path in sorted(root.glob("*/*.png")):
        name = form.format(path.relative_to(root)).replace("/", "\\" if "\\" in form else "/")
        lines.append(f"{name.replace('png', 'PNG')},{'train' if path.stem < '4' else 'test'},test")
    (root / "index.csv").write_text("\r\n".join(lines))
    birds = load_folder(root, unseen_share=0)
    assert {int(Path(p.id).stem) for p in birds.train} == {0, 1, 2, 3} and len(birds.test) == 8


def test_index_takes_no_picture_of_another_class(root):
    (root / "red-kite" / "9.png").write_bytes((root / "red-kite" / "0.png").read_bytes())
    (root / "red-kite" / "0.png").unlink()
    write_index(root, **{"red-kite/9.png": "owls/red-owl/9.png,kite,train"})
    told = problems_of(root, shots=2)
    assert any("there is no picture 'owls/red-owl/9.png'" in problem for problem in told)


@pytest.mark.parametrize(
    "row, words",
    [
        (
            "red-kite/9.png,kite,train",
            ["no picture 'red-kite/9.png'", "no row for red-kite/0"],
        ),
        ("red-kite/1.png,kite,train", ["has a row already", "no row for red-kite/0.png"]),
        ("red-kite/0.png,kite,val", ["split 'val'"]),
        ("red-kite/0.png,kite,", ["split ''"]),
        ("red-kite/0.png,owl,train", ["red-kite has the coarse groups ['kite', 'owl']"]),
        ("red-kite/0.png,train", ["the values do not fit the 3 columns"]),
    ],
)
def test_bad_index_rows(root, row, words):
    write_index(root, **{"red-kite/0.png": row})
    told = problems_of(root, shots=2)
    for word in words:
        assert any(word in problem and "index.csv" in problem for problem in told), told


def test_index_needs_enough_of_both_splits(root):
    write_index(root, trained=3)
    assert all("3 usable train pictures of the 4 needed" in f for f in problems_of(root))
    write_index(root, trained=6)
    assert all("0 usable test pictures of the 1 needed" in f for f in problems_of(root))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_descriptions_with_or_without_excels_mark(root, encoding):
    write_descriptions(root, DESCRIBED.replace("barn-owl", "Barn Owl"), encoding)
    assert load_folder(root).of("barn-owl").description == "a bird"


@pytest.mark.parametrize(
    "text, encoding, words",
    [
        (DESCRIBED.replace("red-kite,a bird\n", ""), "utf-8", ["class 'red-kite'"]),
        (DESCRIBED + "gull,white\n", "utf-8", ["line 6", "'gull'"]),
        (DESCRIBED + "red-kites,\n", "utf-8", ["perhaps 'red-kite'"]),
        (DESCRIBED + "red kite,red\n", "utf-8", ["line 6", "line 3"]),
        (DESCRIBED.replace("class,", "species,"), "utf-8", ["column class", "'species'"]),
        ("", "utf-8", ["lacks the column class"]),
        (DESCRIBED + '"gull,white\n', "utf-8", ["cannot be read"]),
    ],
)
def test_bad_descriptions(root, text, encoding, words):
    write_descriptions(root, text, encoding)
    problem = only_problem(root)
    for word in ["descriptions.csv", *words]:
        assert word in problem


def test_the_description_that_is_not_used_is_named(root, caplog):
    rows = DESCRIBED.replace("description", "description,product_description,origin")
    write_descriptions(root, rows.replace("a bird", "a bird,b,c"))
    with caplog.at_level(logging.INFO, logger="finer1_lite"):
        load_folder(root)
    assert "columns that are not used: product_description, origin" in caplog.text


def test_unquoted_comma_in_a_description_is_a_problem(root):
    write_descriptions(root, DESCRIBED.replace("red-kite,a bird", "red-kite,a red, bird"))
    told = problems_of(root)
    assert "line 3: the values do not fit the 2 columns" in told[0] and "quotes" in told[0]


def test_descriptions_elsewhere(root, tmp_path):
    (tmp_path / "texts.csv").write_text(DESCRIBED.replace("a bird", "a raptor"))
    birds = load_folder(root, descriptions=tmp_path / "texts.csv")
    assert birds.of("red-kite").description == "a raptor"
    assert "missing.csv" in only_problem(root, descriptions=tmp_path / "missing.csv")


# Folders and names -------------------------------------------------------------------


def test_missing_folder_and_file_instead_of_folder(tmp_path):
    assert "absent does not exist" in only_problem(tmp_path / "absent")
    path = noise(tmp_path / "one.png")
    assert "one.png is a file" in only_problem(path)


def test_empty_folder_and_single_class(tmp_path):
    assert "holds 0 class folders" in only_problem(tmp_path)
    for number in range(5):
        noise(tmp_path / "only" / f"{number}.png")
    assert "holds 1 class folders" in only_problem(tmp_path)


def test_pictures_outside_class_folders_are_told(tmp_path):
    noise(tmp_path / "loose.jpg")
    assert ".jpg beside the class folders" in only_problem(tmp_path)


def test_class_with_too_few_pictures(root):
    for number in (0, 1):
        (root / "red-kite" / f"{number}.png").unlink()
    (root / "empty").mkdir()
    told = problems_of(root)
    assert [problem[:40] for problem in told] == [
        "empty: 0 usable pictures of the 5 needed",
        "red-kite: 4 usable pictures of the 5 nee",
    ]
    (root / "empty").rmdir()
    assert load_folder(root, shots=3)


@pytest.mark.parametrize("name", ["Red-Kite", "red_kite", "red kite", "redkite", "RED  KITE"])
def test_names_that_differ_in_case_dash_or_space_clash(root, name):
    shutil.copytree(root / "red-kite", root / name)
    for path in (root / name).iterdir():
        noise(path)
    problem = only_problem(root)
    assert "red-kite" in problem and name in problem and "differ only" in problem


def test_names_keep_their_letters_in_nfc(root):
    name = "M\u00e4use-bussard \u7fbd"
    folder = root / unicodedata.normalize("NFD", name)
    (root / "red-kite").rename(folder)
    (folder / "0.png").rename(folder / "u\u0308.png")
    birds = load_folder(root, unseen_share=0)
    assert "M\u00e4use-bussard \u7fbd" in birds.names
    photos = [p for p in birds.train + birds.test if p.species == "M\u00e4use-bussard \u7fbd"]
    assert f"{name}/\u00fc.png" in {p.id for p in photos} and len(photos) == 6
    assert all(p.image().size == (16, 12) for p in photos)


def test_two_spellings_of_one_file_name_are_a_fault(root):
    for name in ("u\u0308.png", "\u00fc.png"):
        noise(root / "red-kite" / name)
    if len(list((root / "red-kite").iterdir())) < 8:
        pytest.skip("this file system holds both spellings as one file")
    assert "another file spells this name" in only_problem(root)


def test_names_that_no_answer_can_hold(root):
    (root / "red-kite").rename(root / "red<kite>")
    (root / "barn-owl").rename(root / "barn\nowl")
    (root / "---").mkdir()
    noise(root / "---" / "1.png")
    told = problems_of(root)
    assert [one for one in told if one.startswith("---: an answer cannot hold this name")]
    told = [one for one in told if not one.startswith("---")]
    assert len(told) == 2
    assert "barn\\nowl: unprintable" in told[0].replace("'", "")
    assert told[1].startswith("red<kite>: an answer cannot hold this name")


def test_hidden_and_other_files_are_skipped_and_counted(root, caplog):
    for name in (".DS_Store", "red-kite/._0.png", "red-kite/notes.TXT", "LICENSE"):
        (root / name).write_bytes(b"x")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "red-kite" / "deeper.png").mkdir()
    with caplog.at_level(logging.INFO, logger="finer1_lite"):
        birds = load_folder(root)
    counted = "skipped 1 .txt, 1 file without ending beside the class folders, 1 folder, 4 hid"
    assert any(counted in message for message in caplog.messages)
    assert len(birds.train + birds.test) == 24


# Copies ------------------------------------------------------------------------------


def copy(root: Path, source: str, target: str) -> None:
    shutil.copy(root / source, root / target)


def test_a_copy_in_another_class_or_split_is_a_problem(root):
    copy(root, "red-kite/0.png", "barn-owl/9.png")
    problem = only_problem(root)
    assert "red-kite/0.png" in problem and "barn-owl/9.png" in problem
    (root / "barn-owl" / "9.png").unlink()
    write_index(root)
    copy(root, "red-kite/0.png", "red-kite/5.png")  # train and test
    problem = only_problem(root)
    assert "red-kite/0.png, red-kite/5.png: the same picture" in problem


def test_a_copy_in_a_class_without_a_split_is_a_problem_for_every_seed(root):
    copy(root, "red-kite/0.png", "red-kite/5.png")
    assert len({only_problem(root, seed=seed) for seed in range(5)}) == 1


def test_a_copy_inside_one_test_split_is_kept_once(root, caplog):
    copy(root, "red-kite/4.png", "red-kite/5.png")
    write_index(root)
    with caplog.at_level(logging.INFO, logger="finer1_lite"):
        birds = load_folder(root)
    tested = [p.id for p in birds.test if p.species == "red-kite"]
    assert tested == ["red-kite/4.png"]
    assert any("red-kite/5.png" in message for message in caplog.messages)


# Everything at once ------------------------------------------------------------------


def test_all_problems_come_together_each_with_its_place(root):
    (root / "red-kite" / "zero.jpg").write_bytes(b"")
    (root / "red-kite" / "text.jpg").write_text("no picture")
    (root / "few").mkdir()
    copy(root, "red-kite/0.png", "barn-owl/9.png")
    shutil.copytree(root / "tawny-owl", root / "Tawny_Owl")
    for path in (root / "Tawny_Owl").iterdir():
        noise(path)
    write_descriptions(root, DESCRIBED + "gull,white\n")
    told = "\n".join(problems_of(root, shots=0, unseen_share=1.5))
    for word in (
        "shots=0",
        "unseen_share=1.5",
        "zero.jpg",
        "text.jpg",
        "few: 0 usable",
        "barn-owl/9.png",
        "Tawny_Owl, tawny-owl",
        "'gull'",
        "class 'few'",
    ):
        assert word in told


def test_data_error_reads_as_a_list_and_survives_pickling():
    error = pickle.loads(pickle.dumps(DataError(["a: mend it", "b: mend it"], "two things:")))
    assert isinstance(error, ValueError)
    assert str(error) == "two things:\n- a: mend it\n- b: mend it"


def test_loading_writes_nothing(root):
    write_index(root)
    write_descriptions(root, DESCRIBED)

    def listing() -> list[tuple]:
        return sorted((p, p.stat().st_mtime_ns, p.stat().st_size) for p in root.rglob("*"))

    before = listing()
    birds = load_folder(root)
    for photo in birds.train + birds.test:
        photo.image()
    assert listing() == before


@pytest.mark.parametrize(
    "one, other",
    [
        ("colt's foot", "colt\u2019s foot"),
        ("Mentha x piperita", "Mentha \u00d7 piperita"),
        ("Rosa 'Peace'", "Rosa \u2018Peace\u02bc"),
        ("fig tree", "\ufb01g tree"),
        ("\u0152nothera", "Oenothera"),
        ("Rose", "The Rose"),
    ],
)
def test_folders_that_an_answer_cannot_tell_apart_are_named(root, one, other):
    for name in (one, other):
        shutil.copytree(root / "red-kite", root / name)
    told = problems_of(root, shots=2)
    assert any(one in line and other in line and "differ only in" in line for line in told)


def test_designations_are_two_names(root):
    for folder, name in {"barn-owl": "An-12", "tawny-owl": "A-12", "red-kite": "12"}.items():
        (root / folder).rename(root / name)
    names = load_folder(root, shots=2).names
    found = [match_class(said, names) for said in ("An-12", "an An-12", "A-12", "12", "The-12")]
    assert found[0] == found[1] and len(set(found)) == 4 and found[-1] is None


def test_a_table_may_write_another_apostrophe(root):
    (root / "barn-owl").rename(root / "colt's foot")
    write_descriptions(root, DESCRIBED.replace("barn-owl", "Colt\u2019s Foot"))
    assert load_folder(root, shots=2).of("colt's foot").description == "a bird"
