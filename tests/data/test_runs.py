"""Of a folder no more test pictures than the preset says, drawn evenly and always the same."""

from collections import Counter
from pathlib import Path

import pytest
from photo_folders import four_classes

from finer1_lite.data.runs import Run, evenly
from finer1_lite.evals.job import Job
from finer1_lite.presets import Preset
from finer1_lite.species import Photo


def photos(**counts) -> list[Photo]:
    return [
        Photo(f"{name}/{number}", name, None) for name, n in counts.items() for number in range(n)
    ]


@pytest.mark.parametrize("most", [1, 5, 8, 11, 99])
def test_classes_give_alike_until_they_have_no_more(most):
    every = photos(kite=20, owl=2, tit=7)
    drawn = evenly(every, most)
    assert len(drawn) == min(most, len(every)) and drawn == evenly(every, most)
    assert [p for p in every if p in drawn] == list(drawn)  # in the order in which they stood
    counts = Counter(photo.species for photo in drawn)
    for name, has in (("kite", 20), ("owl", 2), ("tit", 7)):
        assert counts[name] == has or counts[name] >= max(counts.values()) - 1


def test_a_photograph_is_not_chosen_for_its_name():
    every = photos(kite=50)
    assert {photo.id for photo in evenly(every, 10)} != {photo.id for photo in every[:10]}


def test_lab_and_evaluate_ask_the_same_of_a_large_folder_and_say_it(tmp_path, caplog):
    root = four_classes(tmp_path / "birds")
    preset = Preset.lab().with_(shots=2, test_pictures=8)
    own = dict(folder=tmp_path / "run", preset=preset, photos=root, unseen_share=0.5)
    with caplog.at_level("INFO", logger="finer1_lite"):
        found, _ = Run(**own, chains={}).collection()
    assert "8 of 20 test pictures are asked about, drawn evenly over classes" in caplog.text
    assert Counter(p.species for p in found.test) == dict.fromkeys(found.names, 2)
    assert found.test == Job(**own, models=()).collection().test
    more = Run(**own | {"preset": preset.with_(test_pictures=20)}, chains={}).collection()[0]
    assert len(more.test) == 20 and more.train == found.train


def test_drawn_birds_are_as_many_a_split_as_ever():
    run = Run(folder=Path("run"), preset=Preset.lab().with_(test_pictures=9))
    found = [photo.id for photo in run.collection()[0].test]
    assert found == [photo.id for photo in run.pictures(4, 9).test] and len(found) > 9
