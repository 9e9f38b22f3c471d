"""The one reader of a chain: nothing is lost, and whatever a student writes is borne."""

import time

import pytest
from hostile_texts import HOSTILE

from finer1_lite import prompts
from finer1_lite.data import chain_text
from finer1_lite.data.chain_text import PARTS, Chain

GOOD = prompts.chain("crown red, back blue", ["a owl", "b"], ["has crown red", "fits"], "b")


def test_headings_are_those_of_the_prompts():
    assert tuple(f"{part}:" for part in PARTS) == prompts.SECTIONS


def test_a_good_chain_comes_apart():
    chain = Chain(GOOD, "b")
    assert tuple(chain.parts) == PARTS and chain.answer == "b"
    assert chain.listed == ["a owl", "b"] and chain.parts["prediction"] == "b"
    assert chain.remarks == {chain_text.fold("a owl"): "has crown red", "b": "fits"}
    assert chain_text.section(GOOD, "analysis") == chain.before == "crown red, back blue"
    assert chain_text.opening(GOOD) == "<think>\nanalysis: crown red, back blue\n"
    assert [part for part, _ in chain_text.pieces(GOOD)] == [None, *PARTS, None]
    for part, (start, end) in chain_text.spans(GOOD).items():
        assert GOOD[start:end].startswith(f"{part}: ") and GOOD[start:end].endswith("\n")


def test_headings_count_once_and_in_order():
    swapped = "<think>\nanalysis: x\nprediction: b\ncandidates: a, b\n</think>"
    assert list(Chain(swapped).parts) == ["analysis", "candidates"]
    assert Chain("<think>\nas the analysis: x\n</think>").parts == {}  # not at a line's start
    assert chain_text.section("<think>\nas the Analysis: x\n</think>", "analysis") == "x"


def test_an_edit_touches_the_analysis_alone():
    edited = chain_text.edit_chain(GOOD, {"crown red": "crown green"})
    assert edited == "<think>\nanalysis: crown green, back blue\n"
    assert chain_text.edit_chain(GOOD, {"tail stub": "tail square"}) is None
    assert chain_text.edit_chain("no chain: crown red", {"crown red": "crown green"}) is None
    assert chain_text.opening("no chain: crown red") == ""


def test_a_good_chain_agrees_with_its_answer():
    assert chain_text.agreement(GOOD, "B.", ["A owl", "B"]) == {
        "parts": True,
        "candidates": ["a owl", "b"],
        "listed": True,
        "distinct": True,
        "compared": True,
        "picked": "B",
        "predicted": "B",
        "agrees": True,
    }
    assert not chain_text.agreement(GOOD, "b", [], label="c")["listed"]


@pytest.mark.parametrize(
    ("change", "answer", "wrong"),
    [
        (("", ""), "a owl", {"agrees"}),
        (("", ""), None, {"listed", "agrees"}),
        (("prediction: b", "prediction: a owl"), "b", {"agrees"}),
        (("prediction: b\n", ""), "b", {"parts", "agrees"}),
        (("a owl, b", "b, b, b"), "b", {"distinct", "compared", "agrees"}),
        (("a owl, b", "a owl, c"), "b", {"listed", "compared", "agrees"}),
        (("a owl: has crown red", "a owl: fits"), "b", {"compared", "agrees"}),
        (("b: fits", "b: does not fit"), "b", {"compared", "agrees"}),
        (("b: fits", "c: fits"), "b", {"compared", "agrees"}),  # picks what nobody listed
        (("a owl: has crown red", "a owl: no match, but close"), "b", set()),
        (("a owl: has crown red; ", ""), "b", {"compared", "agrees"}),  # one was not compared
        (("a owl: has crown red; ", "b: fits not; "), "b", {"compared", "agrees"}),
        (("b: fits", "b: fits; B: fits"), "b", {"compared", "agrees"}),  # remarked on twice
        (("analysis: crown red, back blue\n", ""), "b", {"parts", "agrees"}),
    ],
)
def test_each_way_in_which_a_chain_does_not_lead_to_its_answer(change, answer, wrong):
    found = chain_text.agreement(GOOD.replace(*change), answer, ["a owl", "b"])
    assert {key for key, value in found.items() if value is False} == wrong


@pytest.mark.parametrize(
    ("comparison", "picked"),
    [
        ("a: crown red, back blue, has crown red; b: crown blue, back blue, fits", "b"),
        ("a: crown red, back tan, has crown red; b: wing tan, bill dot, has bill dot, tail x", "a"),
        ("a: crown red, back tan, has crown red; b: crown blue, back tan, has crown blue", None),
        ("a: crown red, back tan, has crown red; b: crown blue, back tan", None),
        ("a: crown red, fits; b: crown red, fits", None),
        ("a: has a red crown; b: has a blue crown, a short tail", None),  # prose: no recital
        ("a: streaked, has long tail; b: rufous, has grey face, red eyes", None),
        ("a: red, tall, has a long tail; b: blue, tall, has grey face, red eyes", None),
    ],
)
def test_the_comparison_picks_what_fits_or_else_what_differs_least(comparison, picked):
    chain = GOOD.replace("a owl, b", "a, b").replace("a owl: has crown red; b: fits", comparison)
    found = chain_text.agreement(chain, "b", [])
    assert found["picked"] == picked and found["compared"] == (picked is not None)
    assert found["agrees"] == (picked == "b")


def test_another_name_of_a_class_stands_for_it():
    names, aliases = ["A owl", "b"], {"b": ("the bee", "Apis")}
    for text, answer in (
        (GOOD, "apis"),
        (GOOD.replace("b: fits", "bee: fits"), "B"),
        (GOOD.replace("a owl, b", "a owl, apis"), "b"),
    ):
        found = chain_text.agreement(text, answer, names, "b", aliases)
        assert found["agrees"] and found["listed"] and found["picked"] == "b"
        assert not chain_text.agreement(text, answer, names)["agrees"]


@pytest.mark.parametrize("name", ["pepper, red", "Bass: Striped", "gull; herring", "a, b: c; d"])
def test_a_name_that_holds_what_separates_names_is_taken_whole(name):
    chain = GOOD.replace("a owl, b", f"a owl, {name}").replace("b: fits", f"{name}: fits")
    chain = chain.replace("prediction: b", f"prediction: {name}")
    found = chain_text.agreement(chain, name, ["a owl", name])
    assert found["agrees"] and found["listed"] and found["picked"] == found["predicted"] == name
    assert found["candidates"] == ["a owl", name]
    assert not chain_text.agreement(chain, name)["agrees"]  # nobody said that it is one name
    judged = chain_text.Chain(chain, name, wanted=("a owl", name))
    assert judged.listed == ["a owl", name] and judged.place == 1
    assert list(judged.remarks) == [chain_text.fold("a owl"), chain_text.fold(name)]


@pytest.mark.parametrize(
    "text",
    [
        *(GOOD, "", "no tags", "comparison: analysis: prediction: x", "</think>analysis: x"),
        *("<think>analysis: a</think>candidates: b", "<script>" + GOOD, *HOSTILE.values()),
        *("analysis:" * 20_000, "\u0130" * 9 + GOOD, "<think>" + "\n1. a" * 20_000),
    ],
)
def test_the_pieces_of_any_text_join_to_it_again_and_soon(text):
    start = time.process_time()
    parts = chain_text.pieces(text)
    assert "".join(piece for _, piece in parts) == text
    assert chain_text.agreement(text, "x", ["x"]).keys() >= {"listed", "agrees"}
    named = [PARTS.index(part) for part, _ in parts if part]
    assert named == sorted(set(named))
    assert not any(part and "</think>" in piece for part, piece in parts)
    assert isinstance(Chain(text).listed + Chain(text, loose=True).listed, list)
    assert time.process_time() - start < 2
