"""The six data sets: their released classes, and labels of hubs that spell them otherwise."""

from pathlib import Path

import pytest
from paths import SHARED
from photo_folders import DESCRIBED, four_classes, problems_of

from finer1_lite.data import hubsets
from finer1_lite.evals import questions
from finer1_lite.species import load_folder

RELEASED = SHARED / "official" / "eval"
needs_released = pytest.mark.skipif(not RELEASED.is_dir(), reason="no released question files")
COUNTS = {
    "bird": (120, 80),
    "flower": (61, 41),
    "pet": (22, 15),
    "dog": (72, 48),
    "car": (117, 79),
    "aircraft": (60, 40),
}


@needs_released
@pytest.mark.parametrize("key", hubsets.HUBSETS)
def test_shipped_classes_are_those_of_the_question_files(key):
    name = hubsets.HUBSETS[key].released
    paths = [RELEASED / f"{name}_{split}.jsonl" for split in questions.SPLITS]
    said = {q.label: q.split == "seen" for q in questions.read_questions(paths)}
    assert hubsets.released_classes(name) == said


@needs_released
@pytest.mark.parametrize("key, folder", [("cub", "bird"), ("dogs", "dog")])
def test_original_folder_names_match_the_label_of_each_of_their_questions(key, folder):
    """Paths hold the original labels, such as images/001.Black_footed_Albatross/."""
    paths = [RELEASED / f"{folder}_{split}.jsonl" for split in questions.SPLITS]
    said = {q.photo.split("/")[-2]: q.label for q in questions.read_questions(paths)}
    matched, strange, lacking = hubsets.match(hubsets.HUBSETS[key], said)
    assert matched == said and not strange and not lacking


@pytest.mark.parametrize("key", hubsets.HUBSETS)
def test_counts_and_names_without_a_double(key):
    classes = hubsets.released_classes(hubsets.HUBSETS[key].released)
    counts = sum(classes.values()), len(classes) - sum(classes.values())
    assert counts == COUNTS[hubsets.HUBSETS[key].released]
    assert len({hubsets.key(name) for name in classes}) == len(classes)
    matched, strange, lacking = hubsets.match(hubsets.HUBSETS[key], classes)
    assert matched == {name: name for name in classes} and not strange and not lacking
    fine = {"cars": "make, model and year", "dogs": "breed", "pets": "breed", "aircraft": "variant"}
    released = hubsets.HUBSETS[key].released
    assert hubsets.coarse_word(released) == (released, fine.get(key, "species"))


@pytest.mark.parametrize(
    "key, label, name",
    [
        ("cub", "022.Chuck_will_Widow", "Chuck Will Widow"),
        ("flowers", "globe-flower", "globe flower"),
        ("flowers", "pink-yellow dahlia?", "pink and yellow dahlia"),
        ("flowers", "ball moss", "air plant"),
        ("flowers", "hippeastrum ", "hippeastrum"),
        ("pets", "staffordshire_bull_terrier", "Staffordshire Bull Terrier"),
        ("dogs", "n02085936-Maltese_dog", "Maltese Dog"),
        ("cars", "Ram C-V Cargo Van Minivan 2012", "Ram C/V Cargo Van Minivan 2012"),
        ("cars", "am general hummer suv 2000", "AM General Hummer SUV 2000"),
        ("aircraft", "707-320", "Boeing 707-320"),
        ("aircraft", "A300B4", "Airbus A300B4"),
        ("aircraft", "Boeing 717", "Boeing 717"),
        ("aircraft", "F-16A/B", "F-16A/B"),
    ],
)
def test_spellings_of_hubs(key, label, name):
    assert hubsets.match(hubsets.HUBSETS[key], [label])[0] == {label: name}


@pytest.mark.parametrize("label", ["", "717", "Albatross", "018.", "Cardinals", "Boeing"])
def test_near_misses_are_not_matched(label):
    for key, hubset in hubsets.HUBSETS.items():
        matched, strange, _ = hubsets.match(hubset, [label])
        # the maker may be left out of an aircraft's name, and of that alone
        assert (matched, strange) == (
            ({"717": "Boeing 717"}, []) if (key, label) == ("aircraft", "717") else ({}, [label])
        )


# classes.csv -------------------------------------------------------------------------------

SAID = "class,name,seen\nblack-kite,Kite/Black,yes\nRed Kite,,no\nbarn-owl,,YES\ntawny owl,,no\n"


def with_classes(root: Path, text: str) -> Path:
    (four_classes(root) / "classes.csv").write_text(text, encoding="utf-8")
    return root


def test_a_table_says_names_and_what_is_seen(tmp_path):
    root = with_classes(tmp_path / "birds", SAID)
    for share in (0.0, 0.4):
        birds = load_folder(root, unseen_share=share, seed=share > 0)
        assert birds.seen_names == ["Kite/Black", "barn-owl"]
        assert birds.unseen_names == ["red-kite", "tawny-owl"]
    # descriptions may name a class by its folder or by its name
    (root / "descriptions.csv").write_text(DESCRIBED.replace("black-kite", "Kite/Black"))
    assert load_folder(root).of("Kite/Black").description == "a bird"


def test_an_unseen_class_needs_no_training_pictures(tmp_path):
    root = with_classes(tmp_path / "birds", SAID)
    for name in ("red-kite", "tawny-owl"):
        for path in sorted((root / name).iterdir())[1:]:
            path.unlink()
    assert len(load_folder(root, shots=5).test) == 4
    (root / "classes.csv").unlink()
    assert len(problems_of(root, shots=5)) == 2


@pytest.mark.parametrize(
    "text, words",
    [
        (SAID.replace("YES", "maybe"), "seen is 'maybe'; write yes or no"),
        (SAID.replace("barn-owl,,YES\n", ""), "does not say yes or no in `seen` of barn-owl"),
        (SAID.replace("yes", "no").replace("YES", "no"), "no class is seen"),
        (SAID + "eagle,,no\n", "line 6: the class 'eagle' is not known"),
        (SAID + "Barn_Owl,,no\n", "is on line 4 too"),
        (SAID.replace("class,name,seen", "class,a,b"), "lacks the column name or seen"),
        (SAID.replace("Kite/Black", "<Kite>"), "an answer cannot hold this name"),
        (SAID.replace("Kite/Black", "Barn Owl"), "these names differ only in case"),
    ],
)
def test_what_is_wrong_with_the_table(tmp_path, text, words):
    assert any(words in problem for problem in problems_of(with_classes(tmp_path / "b", text)))


def test_names_alone_leave_the_split_to_the_seed(tmp_path):
    root = with_classes(tmp_path / "birds", "class,name\nbarn-owl,Tyto alba\n")
    found = {tuple(load_folder(root, seed=seed).unseen_names) for seed in range(8)}
    assert len(found) > 1
    assert "Tyto alba" in load_folder(root).names
