"""Rewards: what pays, what must not pay, and that no text can hold the scorer up."""

import json
import sys
import time
import unicodedata

import pytest
from paths import SHARED

from finer1_lite import rewards
from finer1_lite.presets import TAPOSettings
from finer1_lite.rewards import (
    accuracy_reward,
    format_reward,
    match_class,
    normalise,
    overlong_penalty,
    parse_answer,
)

GOLDEN = SHARED / "golden" / "reward_cases.json"
CLASSES = ["Rose", "Lenten Rose", "Royal Gala", "Boeing 727-200", "Black-footed Albatross"]
ALIASES = {"Royal Gala": ["Gala apple"], "Somewhere Else": ["not asked here"]}


def score(completion, label="Rose"):
    right = accuracy_reward(completion, label, classes=CLASSES, aliases=ALIASES)
    return right, format_reward(completion)


def test_golden_cases():
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is not here")
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]
    assert len(cases) >= 30
    for case in cases:
        names = {"classes": case["classes"], "aliases": case["aliases"]}
        got = accuracy_reward(case["completion"], case["label"], **names)
        assert (got, format_reward(case["completion"])) == (
            case["accuracy"],
            case["format"],
        ), case["note"]


# Four literal completions, four different rewards.
@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("<think>pink petals</think><answer>Rose</answer>", 1.0),
        ("<answer>Rose</answer>", 0.9),
        ("<think>pink petals</think><answer>Lenten Rose</answer>", 0.1),
        ("Rose", 0.0),
    ],
)
def test_the_four_rewards(completion, reward):
    right, form = score(completion)
    weights = TAPOSettings()
    paid = weights.accuracy_weight * right + weights.format_weight * form
    assert paid == pytest.approx(reward)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("\n<think>x</think>\u00a0\n<answer>\tROSE\n</answer>\r\n", (1.0, 1.0)),
        ("<think></think><answer>rose.</answer>", (1.0, 1.0)),
        ("<think>a</think>b<answer>Rose</answer>", (1.0, 0.0)),
        ("<think>a</think><think>b</think><answer>Rose</answer>", (1.0, 0.0)),
        ("</think><answer>Rose</answer>", (1.0, 0.0)),  # the prompt opened it
        ("<think><think>x</think><answer>Rose</answer>", (0.0, 0.0)),
        ("</think><think>x<answer>Rose</answer>", (0.0, 0.0)),
        ("<think>x<answer>Rose</answer></think>", (0.0, 0.0)),
        ("<think>x<answer>Rose</think></answer>", (0.0, 0.0)),
        ("<think>x</think><answer>Rose</think></answer>", (0.0, 0.0)),
        ("Sure! <think>x</think><answer>Rose</answer>", (1.0, 0.0)),
        ("<think>in <answer> tags</think><answer>Rose</answer>", (0.0, 0.0)),
        ("<think>x</think></answer>Rose<answer>", (0.0, 0.0)),
        ("<think>x</think><answer>Rose</answer></answer>", (0.0, 0.0)),
        ("<think>x</think><answer>Rose</answer><ANSWER>Royal Gala</ANSWER>", (0.0, 0.0)),
        ("<Think>x</Think><Answer>Rose</Answer>", (0.0, 0.0)),
        ("<think>x</think><answer >Rose</answer>", (0.0, 0.0)),
        ("<think>x</think>&lt;answer&gt;Rose&lt;/answer&gt;", (0.0, 0.0)),
        ("<think>x</think><answer>&#82;ose</answer>", (0.0, 1.0)),
        ("<think>x</think><answer>Rose</answer><|im_end|>", (0.0, 0.0)),
        ("<think>x</think><answer>Rose</answer>\u200b", (0.0, 0.0)),  # not white space
        ("", (0.0, 0.0)),
    ],
)
def test_tags(completion, expected):
    assert score(completion) == expected


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("The  ROYAL\u3000gala.", "Royal Gala"),
        ("an\u00a0gala apple", "Royal Gala"),
        ("Boeing 727\u2212200", "Boeing 727-200"),  # minus sign
        ("Boeing_727\u2011200", "Boeing 727-200"),  # non-breaking hyphen
        ("Black\u2014footed\uff0dAlbatross", "Black-footed Albatross"),
        ("\u200fRo\u00adse\u200e", "Rose"),  # marks of direction, soft hyphen
        ("\u202eRose\u202c\ufeff", "Rose"),
        ("\u2067Rose\u2069\ufe0f", "Rose"),
        ("Rose\u3002", "Rose"),
        ("Rose..", None),
        ("a the Rose", None),
        ("Ros\u00e9", None),
        ("R\u043ese", None),  # a Cyrillic o
        ("Rose, Rose", None),
        ("not Rose", None),
        ("Rose or Lenten Rose", None),
        (", ".join(CLASSES), None),
        ("Rose\nLenten Rose", None),
        ("Boeing 727", None),
        ("<b>Rose</b>", None),
        ("Rose?", None),
        ("", None),
        ("\u200b.", None),
        (None, None),
    ],
)
def test_match_class(answer, named):
    assert match_class(answer, CLASSES, ALIASES) == named


def test_normalise_drops_one_full_stop_and_one_article_and_keeps_a_bare_one():
    assert normalise("The  Black-Footed ALBATROSS.") == "black footed albatross"
    assert normalise("a . ") == "a"
    assert normalise("The-the") == "the"
    assert normalise("STRASSE") == normalise("stra\u00dfe")
    assert normalise("e\u200b\u0301") == normalise("\u00e9")  # composed after removal


def test_every_dash_is_a_space_and_every_mark_of_direction_is_nothing():
    everything = map(chr, range(sys.maxunicode + 1))
    dashes = [char for char in everything if unicodedata.category(char) == "Pd"]
    assert len(dashes) > 20
    assert {normalise(f"x{dash}y") for dash in [*dashes, "_", "\u2212"]} == {"x y"}
    marks = "\u200b\u200c\u200d\u200e\u200f\u061c\u2060\u2066\u2069\u202a\u202e\ufeff\ufe0f"
    assert {normalise(f"x{mark}y") for mark in marks} == {"xy"}


def test_parse_answer_gives_the_raw_text():
    assert parse_answer("<think>x</think><answer> A-b\u200b \n</answer> ") == " A-b\u200b \n"
    assert parse_answer("<answer></answer>") == ""
    assert parse_answer("<answer>x") is None


BAD_NAMES = [
    ([], None, ["classes is empty"]),
    (["Rose", "ROSE."], None, ["'Rose', 'ROSE.'"]),
    (["Rose", "Rose"], None, ["'Rose', 'Rose'"]),
    (["F-16", "F 16", "-", "Rose"], None, ["'F-16', 'F 16'", "'-'"]),
    (["Rose", "Tulip"], {"Tulip": ["a rose"]}, ["'Rose', 'a rose' (alias of 'Tulip')"]),
    (["Rose", "Tulip"], {"Rose": ["x", "z"], "Tulip": ["X", "Z."]}, ["'x'", "'z'"]),
    (["Rose", "Tulip"], {"Rose": "rosa"}, ["one string, 'rosa'"]),
    ("Rose", None, ["one string, 'Rose'"]),
]


@pytest.mark.parametrize(("classes", "aliases", "problems"), BAD_NAMES)
def test_names_that_cannot_be_scored_are_all_listed(classes, aliases, problems):
    with pytest.raises(ValueError) as caught:
        match_class("Rose", classes, aliases)
    for problem in problems:
        assert problem in str(caught.value)
    with pytest.raises(ValueError):  # whatever the completion is
        accuracy_reward("no tags", "Rose", classes=classes, aliases=aliases)


def test_a_label_that_is_no_class_is_named():
    with pytest.raises(ValueError, match="label 'Tulip' is not among"):
        accuracy_reward("<answer>Rose</answer>", "Tulip", classes=CLASSES)
    own = {"Rose": ["rose", "ROSE", "rosa"]}  # alike, but all of one class
    assert match_class("Rosa", CLASSES, own) == "Rose"


def test_trl_signature():
    good, bad = "<think>x</think><answer>Rose</answer>", "Rose"
    told = [{"role": "assistant", "content": good}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": good}]}]
    texts = [good, bad, told, parts]
    columns = {"label": ["Rose"] * 4, "prompts": ["?"] * 4}
    expected = [1.0, 0.0, 1.0, 1.0]
    assert rewards.accuracy(completions=texts, classes=CLASSES, **columns) == expected
    each = {"classes": [CLASSES] * 4, "aliases": [{"Rose": None}] * 4}  # as Arrow pads
    assert rewards.accuracy(completions=texts, **each, **columns) == expected
    assert rewards.format(completions=texts, **columns) == expected
    with pytest.raises(ValueError, match="(?s)'x'.*'y'"):  # one error, both rows
        rewards.accuracy([bad, bad], ["x", "y"], CLASSES)
    with pytest.raises(ValueError, match="2 completions"):
        rewards.accuracy([bad, bad], ["Rose"], CLASSES)


MANY = 100_000
HOSTILE = {
    "opened": "<think>" * MANY,
    "answers": "<answer>Rose</answer>" * (MANY // 20),
    "half tags": "<answer" * MANY,
    "spaces": "<answer>" + " \n" * MANY + "x</answer>" + " " * MANY + "y",
    "brackets": "<answer>" + "<" * MANY + "</answer>",
    "stops": "<answer>" + "the a. " * MANY + "</answer>",
    "marks": "<answer>e" + "\u0315\u0316" * MANY + "</answer>",  # sorts in quadratic time
    "ligatures": "<answer>" + "\ufdfa" * MANY + "</answer>",
    "zero width": "<answer>Ro" + "\u200b" * MANY + "x</answer>",
    "headings": "<think>" + "analysis: candidates: " * MANY + "</think>",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_lengths_take_bounded_time(name):
    start = time.perf_counter()
    assert score(HOSTILE[name]) == (0.0, 0.0)
    assert time.perf_counter() - start < 5.0


def test_a_right_answer_stays_right_in_any_amount_of_nothing():
    answer = "-" * MANY + "Ro" + "\u200b" * MANY + "se" + " \u2003" * MANY
    assert score(f"<think>x</think><answer>{answer}</answer>") == (1.0, 1.0)


def test_the_soft_penalty_falls_from_0_to_minus_1_over_the_buffer():
    """DAPO's: a limit of 20 tokens, a buffer of 4."""
    lengths = (0, 15, 16, 17, 18, 20, 25)
    penalties = [overlong_penalty(n, limit=20, buffer=4) for n in lengths]
    assert penalties == [0, 0, 0, -0.25, -0.5, -1, -1]
    assert [overlong_penalty(n, limit=20, buffer=0) for n in lengths] == [0] * 7
    assert overlong_penalty(10, limit=20, buffer=20) == -0.5
