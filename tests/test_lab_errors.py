"""A run in which pictures could not be read for a while, or were replaced while it trained."""

import json
from pathlib import Path

import pytest
from photo_folders import DESCRIBED, four_classes, noise

from finer1_lite import evaluate, lab, metrics
from finer1_lite.__main__ import read_command
from finer1_lite.data.benchmark import Benchmark, Condition, questions
from finer1_lite.evaluate import Completion
from finer1_lite.prompts import answer
from finer1_lite.runtime.files import DataError, open_folder, write_lines
from finer1_lite.students import run_cards
from finer1_lite.students.card import read_card


@pytest.fixture
def job(tmp_path):
    """Of photographs; its folder holds a run that is trained and evaluated."""
    owls = four_classes(tmp_path / "owls")
    (owls / "descriptions.csv").write_text(DESCRIBED)
    asked = ["lab", "--photos", owls, "--out", tmp_path / "runs", "--seeds", 0]
    job = read_command([*map(str, asked)]).job()
    open_folder(job.folder, job.config(job.collection()[0]), fresh=False)
    for stage in ("sft", "tapo"):
        (job.folder / "seed0" / stage).mkdir(parents=True)
    return job


def finish(job, lost: int = 0, why: str = "gone") -> dict:
    """As `lab.finish` leaves it: all right, but for the first `lost` test pictures, unread."""
    collection = job.collection()[0]
    asked, rows = Benchmark.of_collection(collection, as_drawn=True), []
    condition = Condition("think", "open", order="shuffle")
    for place, one in enumerate(questions(asked, condition)):
        said = Completion(error=why) if place < lost else Completion(answer(one.label), 4)
        for model in ("SFT", "TAPO"):
            rows.append(evaluate.record(asked, condition, one, said, model=model, seed=0))
    write_lines(job.folder / "records.jsonl", rows)
    (job.folder / "metrics.json").write_text(json.dumps(metrics.summarise(rows)))
    run_cards.write_cards(job, collection)
    return metrics.summarise(rows)


def test_a_run_with_pictures_that_could_not_be_read_is_not_finished(job, caplog):
    finish(job, lost=3)
    assert not lab.finished(job.folder) and "6 answers are missing (gone)" in caplog.text
    finish(job)
    assert lab.finished(job.folder)
    finish(job, lost=1, why="nan or inf in the logits")  # comes again, whenever it is asked
    assert lab.finished(job.folder) and "2 answers are missing (nan" in caplog.text


def test_a_card_counts_as_the_pages_do_and_follows_them(job):
    for lost in (3, 0):  # the same command asked the rest
        found = finish(job, lost)["tapo"]["seen"]["open"]
        (told,) = [m for m in read_card(job.folder / "seed0/tapo").measured if m.split == "seen"]
        assert (told.accuracy, told.n) == (found["accuracy"], found["n"]) == (1.0, found["n"])


def test_photographs_that_change_while_it_trains_stop_it(job):
    """Else it would go on with other training and test pictures than it began with."""
    noise(Path(job.photos) / "barn-owl" / "7.png")
    with pytest.raises(DataError, match="photographs: .* there, .* now"):
        lab.run_seed(job, "nowhere", 0)
