"""Descriptions in clauses: no negation loses its noun, no name gives the answer away."""

import re

import pytest

from finer1_lite.chains import concepts
from finer1_lite.data import wording

DENIED = {  # description -> (its clauses, what nobody may say that it has)
    "yellow head without a disc": (["yellow head", "without a disc"], "disc"),
    "No wing bars, red crown": (["no wing bars", "red crown"], "wing bars"),
    "with no white rump": (["no white rump"], "white rump"),
    "not spotted but striped": (["not spotted", "striped"], "spotted"),
    "Lacks wing bars and has a red crown": (["lacks wing bars", "red crown"], "wing bars"),
    "lacking any spots; long tail": (["lacking any spots", "long tail"], "spots"),
    "a tail that is not forked": (["tail that is not forked"], "forked tail"),
    "The crown isn't red": (["crown isn't red"], "red crown"),
    "The crown isn\u2019t red": (["crown isn\u2019t red"], "red crown"),
    "no wing bars, eye ring or crest": (["no wing bars, eye ring or crest"], "eye ring"),
    "without any spots and rings": (["without any spots and rings"], "rings"),
    "without a disc and a ring": (["without a disc and a ring"], "ring"),
    "neither spotted nor striped": (["neither spotted nor striped"], "striped"),
    "There is no disc. Long stem": (["no disc", "long stem"], "disc"),
    "wing bars are absent": (["wing bars are absent"], "wing bars"),
    "free of spots": (["free of spots"], "spots"),
    "seed-free flesh": (["seed-free flesh"], "seed"),
    "non-glossy leaves": (["non-glossy leaves"], "glossy leaves"),
    "round, almost no neck": (["round", "almost no neck"], "neck"),
    "head with nearly no neck": (["head", "nearly no neck"], "neck"),
    "usually without a ring": (["usually without a ring"], "ring"),
    "rarely has a ring": (["rarely has a ring"], "ring"),
}


@pytest.mark.parametrize("text", DENIED)
def test_what_is_denied_is_never_said_to_be_there(text):
    wanted, foreign = DENIED[text]
    assert wording.clauses(text) == wanted
    said = concepts.clauses(text)
    assert not concepts.mentions(foreign, said)
    for clause in wanted:
        assert concepts.mentions(clause, said)
        for words in range(1, 9):  # no cut leaves the negation or its noun alone
            whole = wording.cut(clause, words)
            assert whole == clause or not wording.negated(clause)


def test_the_same_denial_in_other_words_is_the_same_concept():
    for text in ("no disc", "lacks a disc", "without the disc", "disc absent"):
        assert concepts.mentions("without a disc", concepts.clauses(f"yellow head, {text}"))
    assert not concepts.mentions("without a disc", concepts.clauses("yellow head with a disc"))
    assert not wording.negated("not only red") and wording.negated("not red")


def test_concepts_keep_their_negation_and_both_sides_stay_apart():
    found = concepts.extract(["Yellow head without a disc.", "Large flat disc, no white petals."])
    assert {"without a disc", "no white petals"} <= set(found)
    assert not {"white petals", "petals"} & set(found)
    assert set(concepts.merge(["no wing bars", "wing bars", "bars"])) == {
        "no wing bars",
        "wing bars",
    }


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("A white, firm pulp and a green shell.", ["white, firm pulp", "green shell"]),
        ("a green, orange, or brown mesh; round", ["green, orange, or brown mesh", "round"]),
        ("It occurs with and without kernels, oval", ["oval"]),
        ("Drip-shaped with 2.5 stripes", ["drip-shaped, 2.5 stripes"]),
        ("<b>: ; . the", ["b"]),
        ("", []),
    ],
)
def test_clauses(text, clauses):
    assert wording.clauses(text) == clauses


def test_a_long_phrase_ends_with_a_word_that_can_end_it():
    assert wording.cut("white pulp on the inside of the thin peel", 6) == "white pulp on the inside"
    assert wording.cut("white pulp in a thin peel", 4) == "white pulp"


def test_whole_names_go_and_words_of_names_stay():
    """A carton with milk on it is no secret; its own name is."""
    told = {
        "Oat Milk": "White carton with milk on it and a green leaf.",
        "Soy Milk": "Brown carton, unlike the Oat Milk in blue; milk logo, soy beans.",
        "Orange": "A round fruit, the orange has a pitted peel; Citrus sinensis, no stem",
        "Yellow Pepper": "The yellow pepper with a green stalk, sweet, 12 cm long",
        "Kaiser Pear": "Kaiser is a yellow pear, matte like the Kaiser",
    }
    found = wording.looks(told, {"Orange": ("Citrus sinensis",)})
    assert found == {
        "Oat Milk": ["white carton", "milk on it", "green leaf"],
        "Soy Milk": ["brown carton", "milk logo", "beans"],
        "Orange": ["round fruit", "pitted peel", "no stem"],
        "Yellow Pepper": ["green stalk"],
        "Kaiser Pear": ["yellow"],
    }


def test_no_clause_names_its_class_whatever_the_description_says():
    told = {name: f"The {name}s are big; a {name.upper()}, like {name}" for name in ("fig", "owl")}
    for name, kept in wording.looks(told).items():
        assert not re.search(name, " ".join(kept))


@pytest.mark.parametrize(
    ("name", "text", "kept"),
    [
        (
            "麻雀",
            "麻雀頭部棕色，背有條紋；喙短。",
            ["頭部棕色, 背有條紋", "喙短"],
        ),
        (
            "スズメ",
            "このスズメ, brown crown",
            ["この, brown crown"],
        ),
        (
            "ไก่",
            "ไก่ฟ้า red, long tail",
            ["ฟ้า red", "long tail"],
        ),
        (
            "عصفور",
            "red عصفور، long tail",
            ["red", "long tail"],
        ),
    ],
)
def test_a_name_goes_where_its_script_has_no_spaces(name, text, kept):
    assert wording.looks({name: text, "owl": "grey face"})[name] == kept


@pytest.mark.parametrize("sign", "'\u2019\u02bc\u2032\u00b4`\uff07")
def test_a_denial_and_a_name_hold_with_any_apostrophe(sign):
    assert wording.clauses(f"The crown isn{sign}t red") == [f"crown isn{sign}t red"]
    assert wording.negated(f"crown isn{sign}t red")
    told = wording.looks({"colt's foot": f"a colt{sign}s foot, yellow flower", "rose": "red"})
    assert told["colt's foot"] == ["yellow flower"]
