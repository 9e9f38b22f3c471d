"""Rewards: what pays, what must not pay, and that no text can hold the scorer up."""

import json
import sys
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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


SIGNS = {  # what is meant -> what is written for it
    "'": "\u2018\u2019\u201a\u201b\u02bb\u02bc\u02b9\u2032\u00b4`\u2039\u203a\u02bf\uff07\ua78c",
    '"': "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u300c\u300f\uff02",
    "x": "\u00d7\u2715\u2716\u2a09\u2a2f\uff58",
    " ": "-_\u2010\u2011\u2013\u2014\u2212\u2796\uff0d\uff3f\u3000\u00a0",
    "ffi": "\ufb03",
    "fl": "\ufb02",
    "ae": "\u00e6\u00c6",
    "oe": "\u0153\u0152",
    "B": "\uff22\U0001d401",
    "/": "\u2044\uff0f",
}


@pytest.mark.parametrize("meant", SIGNS)
def test_a_sign_counts_as_what_is_meant_by_it(meant):
    names = [f"colt{meant}s", f"colt{meant} rose"]
    for sign in SIGNS[meant]:
        for name in names:
            assert match_class(name.replace(meant, sign), [*names, "Rose"]) == name
        with pytest.raises(ValueError, match="ambiguous"):
            match_class("x", [names[0], f"colt{sign}s"])


def test_the_sign_of_a_hybrid_stands_with_and_without_a_space():
    for said in ("Mentha \u00d7 piperita", "Mentha \u00d7piperita", "mentha X Piperita"):
        assert match_class(said, ["Mentha x piperita", "Mentha"]) == "Mentha x piperita"


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ("12", None),
        ("A-12", None),
        ("a 12", None),
        ("the-12", None),
        ("An-12", "An-12"),
        ("an 12", "An-12"),
        ("AN\u201112.", "An-12"),
        ("an An-12", "An-12"),
        ("The An 12", "An-12"),
        ("10", "10"),
        ("a 10", "A-10"),
        ("an 10", "10"),  # no class is called so: an article
        ("the A-10", "A-10"),
        ("1", None),
        ("the 1", "The-1"),
        ("class", None),
        ("the class", None),
        ("A Class", "A-Class"),
        ("an a-class", "A-Class"),
        ("the 707-320", "707-320"),
        ("A-707-320", None),
        ("the_rose", "Rose"),
        ("the-rose", "Rose"),
        ("A-rose", None),
    ],
)
def test_an_article_is_a_word_and_no_part_of_a_designation(answer, named):
    classes = ["An-12", "Tu-134", "A-10", "10", "The-1", "A-Class", "707-320", "Rose"]
    assert match_class(answer, classes) == named
    assert accuracy_reward(f"<answer>{answer}</answer>", "Tu-134", classes=classes) == 0


def test_a_designation_keeps_its_form():
    designations = ("An-12", "A-10", "The-1", "A-Class")
    assert [normalise(one) for one in designations] == ["an 12", "a 10", "the 1", "a class"]
    assert match_class("A-Class", ["A Class", "Rose"]) == "A Class"  # of the folder A_Class


@pytest.mark.parametrize(
    "form", ["**{}**", "*{}*.", "`{}`", "**{}.**", "```\n{}\n```", " **`{}`** "]
)
def test_marks_around_a_whole_answer_do_not_matter(form):
    assert match_class(form.format("Lenten Rose"), CLASSES) == "Lenten Rose"
    assert match_class(form.format("Rose or Lenten Rose"), CLASSES) is None
    assert match_class(form.format("Rose") + " Lenten Rose", CLASSES) is None
    assert match_class("**Rose** **Lenten Rose**", CLASSES) is None


def test_marks_that_are_part_of_a_name_stay():
    assert match_class("Sgr A*", ["Sgr A", "Sgr A*"]) == "Sgr A*"
    assert match_class("**Sgr A***", ["Sgr A", "Sgr A*"]) == "Sgr A*"


# Letters, signs and words that parsers stumble over, joined at random.
ODD = [
    *(
        "An",
        "a",
        "the",
        "12",
        "rose",
        "Rose",
        "\u9ebb\u96c0",
        "\u0e44\u0e01\u0e48",
        "e\u0301",
        "\u00c9",
    ),
    *(
        "\u00df",
        "\u0130",
        "\u00d7",
        "\u2716\ufe0f",
        "\u2019",
        "`",
        "**",
        "*",
        "_",
        "-",
        "\u2014",
        " ",
        "\u3000",
    ),
    *(
        "\u00b4",
        "\u2033",
        "\u2034",
        "\u00bd",
        "\ufb03",
        "\uff22",
        "(",
        ")",
        ".",
        "\u3002",
        "\u2026",
        "\u200b",
    ),
    *(
        "\u202e",
        "</answer>",
        "<answer>",
        "<think>",
        "</think>",
        "or",
        "not",
        ",",
        ":",
        "\n",
        "\u0345",
    ),
]


pieces = st.sampled_from(ODD) | st.sampled_from(["", " "]) | st.characters(codec="utf-8")
odd_texts = st.lists(pieces, max_size=8).map("".join)
fuzz = settings(max_examples=1_500, deadline=None, derandomize=True, database=None)


def test_one_spelling_of_any_letter_is_its_own_spelling():
    for code in range(0xD800):
        text = f"x{chr(code)}y"
        assert rewards.plain(rewards.plain(text)) == rewards.plain(text)


@fuzz
@given(odd_texts)
def test_one_spelling_of_any_text_is_its_own_spelling(text):
    assert rewards.plain(rewards.plain(text)) == rewards.plain(text)


@fuzz
@given(st.lists(odd_texts, min_size=2, max_size=4), odd_texts)
def test_no_class_earns_the_reward_of_another(classes, also):
    """Of any names that pass as classes each earns its own reward alone, and marked too."""
    classes = [name.replace("<", "").replace(">", "") for name in classes]
    try:
        match_class(None, classes)
    except ValueError:
        return  # alike, or nothing but signs
    for said in classes:
        for answer in (said, said.upper().lower(), normalise(said), f" {said}\n", said + also):
            named = match_class(answer, classes)
            paid = [score_of(answer, label, classes) for label in classes]
            assert paid == [float(named == label) for label in classes]
        assert match_class(said, classes) == said


def score_of(answer: str, label: str, classes: list[str]) -> float:
    return accuracy_reward(f"<think>x</think><answer>{answer}</answer>", label, classes=classes)


@fuzz
@given(
    odd_texts,
    st.sampled_from(["Lenten Rose", "Royal Gala", "Tulip", "Black-footed Albatross", "Boeing 707"]),
    odd_texts,
)
def test_whatever_is_said_with_a_wrong_name_earns_nothing(before, wrong, after):
    """No decoration, negation or list makes a wrong answer right."""
    assert score_of(f"{before}{wrong}{after}", "Boeing 727-200", CLASSES) == 0


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
    "bold": "<answer>" + "*" * MANY + " \n" * MANY + "</answer>",
    "code": "<answer>" + "` " * MANY + "x</answer>",
    "gap": "<answer>**x" + " " * MANY + "y**z</answer>",
    "hybrids": "<answer>" + " \u00d7" * MANY + "</answer>",
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
