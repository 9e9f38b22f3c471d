"""Chains that must not be learnt from, each caught for the right reason; good ones pass."""

import random
from dataclasses import replace

import pytest

from finer1_lite import cot, prompts
from finer1_lite.chains import checks
from finer1_lite.chains.checks import CHECKS, check
from finer1_lite.chains.formats import Record
from finer1_lite.data.chain_text import Chain

NAMES = ("barn owl", "tawny owl", "snowy owl", "little owl")
MARKS = {
    "barn owl": "fits, the face is a pale heart",
    "tawny owl": "would have a round brown face",
    "snowy owl": "would be white with yellow eyes",
    "little owl": "would be smaller headed with white brows",
}
ANALYSIS = "a pale heart shaped face, dark eyes, golden buff back with fine grey spots, long legs"


def write(name="barn owl", order=NAMES, analysis=ANALYSIS, marks=MARKS) -> str:
    return prompts.chain(analysis, order, [marks[c] for c in order], name)


GOOD = write()
FACTS = {
    "label": "barn owl",
    "aliases": ("common barn owl",),
    "wanted": NAMES,
    "kept": ("heart shaped face", "dark eyes"),
    "dropped": ("long tail", "green branch"),
}
SHORT = (
    "<think>\nanalysis: dark eyes\ncandidates: barn owl, tawny owl\n"
    "comparison: barn owl: a; tawny owl: b\nprediction: barn owl\n</think>\n"
    "<answer>barn owl</answer>"
)
CHINESE = "dark eyes, " + "\u8fd9\u53ea\u9e1f\u6709\u5fc3\u5f62\u7684\u8138" * 4
GERMAN = "dark eyes; " + (
    "der Vogel hat ein helles Gesicht in der Form eines Herzens und einen goldenen R\u00fccken "
    "mit feinen grauen Flecken, lange Beine und dunkle Augen, er sitzt auf einem Ast im Wald und "
    "schaut nach links, die Fl\u00fcgel sind geschlossen und der Schwanz ist kurz, auf der Brust "
    "sieht man "
    "kleine dunkle Punkte und keine Streifen. " * 2
)
REMARKS = "; ".join(f"{n}: {MARKS[n]}" for n in NAMES)


def codes(text: str, **changed) -> set[str]:
    return {f.code for f in check(Chain(text, **(FACTS | changed)))}


def swap(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


BAD = [  # (what is wrong, the chain, the code that must name it)
    ("think never closed", swap("</think>\n", ""), "tags"),
    ("no tags at all", GOOD.replace("<think>", "").replace("</think>", ""), "tags"),
    ("ends the turn", swap("buff back", "buff <|im_end|> back"), "marks"),
    ("two answers", GOOD + "<answer>barn owl</answer>", "tags"),
    ("goes on talking", GOOD + "\nHope this helps!", "tags"),
    ("talks before it thinks", "Sure, here it is: " + GOOD, "tags"),
    ("answer inside the thought", swap("\n</think>\n", "\n") + "</think>", "tags"),
    ("no comparison heading", swap("comparison:", "and so"), "parts"),
    (
        "prediction before candidates",
        swap("candidates:", "X").replace("prediction:", "candidates:").replace("X", "prediction:"),
        "parts",
    ),
    ("a part twice", swap("comparison:", "analysis: more\ncomparison:"), "parts"),
    ("headings in bold", swap("analysis:", "**Analysis:**"), "parts"),
    ("an empty analysis", swap(ANALYSIS, ""), "empty"),
    ("the neighbour's name", swap("<answer>barn owl", "<answer>tawny owl"), "answer"),
    ("a coarser name", swap("<answer>barn owl", "<answer>owl"), "answer"),
    ("two names", swap("<answer>barn owl", "<answer>barn owl or tawny owl"), "answer"),
    ("another spelling", swap("<answer>barn owl", "<answer>Barn-Owl"), "answer"),
    ("label not a candidate", swap("candidates: barn owl,", "candidates: eagle owl,"), "listed"),
    ("five candidates", swap("candidates: ", "candidates: eagle owl, "), "number"),
    ("one candidate", swap("candidates: " + ", ".join(NAMES), "candidates: barn owl"), "number"),
    ("a candidate twice", swap("tawny owl, snowy", "snowy owl, snowy"), "number"),
    ("label moved to the front", GOOD, "unasked"),
    ("no comparison", swap(f"comparison: {REMARKS}", "comparison:"), "uncompared"),
    ("one candidate not compared", swap("snowy owl: would", "it would"), "compared"),
    ("a remark without words", swap(f"snowy owl: {MARKS['snowy owl']}", "snowy owl:"), "compared"),
    ("label in the analysis", swap(ANALYSIS, "the barn owl has a heart shaped face"), "leak"),
    ("alias in the analysis", swap(ANALYSIS, "a Common Barn-Owl, heart shaped face"), "leak"),
    ("label in disguise", swap(ANALYSIS, "BA\u200bRN\u2010OWLS have a heart shaped face"), "leak"),
    (
        "provided description",
        swap(ANALYSIS, f"{ANALYSIS}, as in the provided description"),
        "hidden",
    ),
    ("description given", swap("fits, the", "fits the description given, the"), "hidden"),
    ("told the answer", swap(ANALYSIS, f"I was told the name; {ANALYSIS}"), "hidden"),
    ("from the label", swap(ANALYSIS, f"{ANALYSIS}; the correct answer agrees"), "hidden"),
    ("a size in metres", swap(ANALYSIS, f"{ANALYSIS}, a wing span of 0.9 metres"), "measure"),
    ("a size in inches", swap(ANALYSIS, f"{ANALYSIS}, 13-15 inches long"), "measure"),
    ("a weight", swap(ANALYSIS, f"{ANALYSIS}, about 0.4 kg"), "measure"),
    ("a year", swap(ANALYSIS, f"{ANALYSIS}, photographed in 2012"), "year"),
    ("a voice", swap(ANALYSIS, f"{ANALYSIS}, known for its song"), "sense"),
    ("predicts another", swap("prediction: barn", "prediction: tawny"), "conclusion"),
    (
        "predicts in a sentence",
        swap("prediction: barn owl", "prediction: maybe a barn owl?"),
        "conclusion",
    ),
    ("contradicts its answer", swap("prediction: barn", "prediction: snowy"), "contradiction"),
    ("a mark that was dropped", swap(ANALYSIS, f"{ANALYSIS}, a long tail"), "uncited"),
    ("no selected mark", swap(ANALYSIS, "a bird on a post, turned to the left side"), "uncited"),
    ("far too short", SHORT, "length"),
    ("far too long", swap(ANALYSIS, ANALYSIS + " and" * 900), "length"),
    ("a loop", swap(ANALYSIS, ANALYSIS + ", the eyes are dark and round" * 4), "repeats"),
    ("Chinese", swap(ANALYSIS, CHINESE), "language"),
    ("German", swap(ANALYSIS, GERMAN), "language"),
]


def test_the_good_chain_passes_and_the_table_is_long_enough():
    assert not check(Chain(GOOD, **FACTS))
    assert len(BAD) >= 25 and {code for _, _, code in BAD} >= CHECKS.keys() - {"unnamed", "coarser"}


@pytest.mark.parametrize("what, text, code", BAD, ids=[what for what, _, _ in BAD])
def test_a_bad_chain_is_caught_for_the_right_reason(what, text, code):
    asked = NAMES[::-1] if code == "unasked" else () if code in ("number", "listed") else NAMES
    if what == "far too short":
        asked = NAMES[:2]
    found = codes(text, wanted=asked)
    assert code in found, found
    allowed = {  # problems that this one cannot be without
        "tags": {
            "tags",
            "answer",
            "parts",
            "empty",
            "conclusion",
            "length",
            "uncompared",
            "listed",
            "number",
            "unasked",
            "uncited",
            "unnamed",
        },
        "parts": {
            "parts",
            "uncompared",
            "compared",
            "unasked",
            "conclusion",
            "number",
            "listed",
            "empty",
            "uncited",
            "leak",
            "contradiction",
        },
        "empty": {"empty", "uncited"},
        "answer": {"answer"},
        "listed": {"listed", "compared"},
        "number": {"number", "compared"},
        "uncompared": {"uncompared", "empty"},
        "contradiction": {"contradiction", "conclusion"},
        "conclusion": {"conclusion", "contradiction"},
        "leak": {"leak", "uncited"},
        "hidden": {"hidden", "uncited"},
    }
    assert found <= allowed.get(code, {code}), found


@pytest.mark.parametrize("order", [NAMES, NAMES[::-1], NAMES[1:] + NAMES[:1], NAMES[:2]])
def test_good_chains_of_any_order_pass(order):
    assert not codes(write(order=order), wanted=order)


def test_the_oracles_and_the_tables_chains_pass(world):
    for name in world.names[::7]:
        text = cot.oracle_chain(world, name, random.Random(name))
        assert not check(Chain(text, name)), name


def test_names_may_hold_years_and_scents():
    marks = {"Audi S4 2012": "fits", "scented geranium": "is a flower with leaves"}
    text = write("Audi S4 2012", tuple(marks), marks=marks)
    assert not codes(text, label="Audi S4 2012", aliases=(), wanted=())


OTHER_SCRIPTS = {  # script -> four names, and the first one inside a sentence of its language
    "Chinese": ("麻雀 喜鹊 乌鸦 家燕", "{}頭部"),
    "Japanese": (
        "スズメ カラス きじ 羽根",
        "この{}は",
    ),
    "Thai": (
        "ไก่ นกยูง นกฮูก กา",
        "ตัว{}ฟ้า",
    ),
    "Arabic": (
        "عصفور غراب حمام بوم",
        "ال{}",
    ),
    "Korean": ("참새 까치 제비 올빼미", "{}는"),
    "Hindi": (
        "गौरैया कौआ मोर उल्लू",
        "{}",
    ),
    "Russian": (
        "воробей грач галка сова",
        "{}",
    ),
}


@pytest.mark.parametrize("script", OTHER_SCRIPTS)
def test_names_in_other_scripts_are_no_other_language_and_still_a_leak(script):
    listed, inside = OTHER_SCRIPTS[script]
    names = tuple(listed.split())
    marks = dict(zip(names, MARKS.values(), strict=True))
    facts = {"label": names[0], "aliases": (), "wanted": names}
    assert not codes(write(names[0], names, marks=marks), **facts)
    of_another = tuple([*names[1:], "Fox Sparrow"])  # Latin letters among the others
    marks = dict(zip(of_another, MARKS.values(), strict=True)) | {"Fox Sparrow": "fits"}
    others = {"label": "Fox Sparrow", "aliases": (), "wanted": of_another}
    assert not codes(write("Fox Sparrow", of_another, marks=marks), **others)
    marks = dict(zip(names, MARKS.values(), strict=True))
    leak = f"{ANALYSIS}, {inside.format(names[0])}"
    assert "leak" in codes(write(names[0], names, leak, marks), **facts)


def test_a_chain_in_another_language_is_caught_whatever_its_names():
    names = tuple(OTHER_SCRIPTS["Chinese"][0].split())
    marks = dict(zip(names, MARKS.values(), strict=True))
    facts = {"label": names[0], "aliases": (), "wanted": names}
    assert "language" in codes(write(names[0], names, CHINESE, marks), **facts)
    assert "language" in codes(write(names[0], names, GERMAN, marks), **facts)


def test_a_name_leaks_with_any_sign():
    for analysis in ("a colt\u2019s foot leaf", "a COLT\u00b4S FOOT", "the colt\u02bcs\u2011foot"):
        text = swap(ANALYSIS, f"{ANALYSIS}, {analysis}").replace("barn owl", "colt's foot")
        assert "leak" in codes(text, label="colt's foot", aliases=(), wanted=())


def test_a_coarser_answer_is_found_in_scripts_without_spaces():
    text = (
        "<think>Analysis of the visual features:\nA brown head.\n\nCandidate subcategories:\n"
        "1. 家麻雀: brown\n2. 喜鹊: black\n\nComparison process:\n"
        "- 家麻雀: fits\n- 喜鹊: does not\n\nFinal prediction:\n"
        "这是家麻雀。\n</think>\n<answer>麻雀</answer>"
    )
    found = {f.code for f in check(Chain(text, "麻雀", loose=True))}
    assert "coarser" in found and "conclusion" not in found


def test_free_prose_is_read_by_its_headings():
    text = (
        "<think>Analysis of the visual features:\nA red flower with thorns.\n\n"
        "Candidate subcategories:\n1. Hybrid Tea Rose: large\n2. **Dog Rose** - small\n\n"
        "Comparison process:\n- Hybrid Tea Rose: many petals, as the provided description says\n"
        "- Dog Rose: five petals\n\n"
        "Final prediction:\nHybrid Tea Rose\n</think>\n<answer>rose</answer>"
    )
    chain = Chain(text, "rose", loose=True)
    assert chain.listed == ["Hybrid Tea Rose", "Dog Rose"]
    assert {f.code for f in check(chain)} == {"hidden", "coarser"}


def test_duplicates_and_habits_are_faults_of_the_file():
    chains = {str(i): Chain(GOOD, "barn owl") for i in range(12)}
    found = checks.duplicates(chains)
    assert sorted(found) == sorted(map(str, range(1, 12)))
    assert "candidate 1 of 4 in 12 of 12" in checks.habit(list(chains.values()))
    rng = random.Random(0)
    mixed = [Chain(write(order=rng.sample(NAMES, 4)), "barn owl") for _ in range(60)]
    assert checks.habit(mixed) is None
    assert {c.place for c in mixed} == {0, 1, 2, 3}


def test_analyses_that_photographs_share_are_counted_and_printed():
    rng = random.Random(0)
    shared = [
        Record(f"{i}", f"{i}", "barn owl", "q", write(order=rng.sample(NAMES, 4))) for i in range(3)
    ]
    own = Record("x", "x", "barn owl", "q", GOOD.replace("analysis: ", "analysis: dark back, "))
    again = replace(own, id="y", sample=1)  # of the same photograph: nothing is shared
    result = checks.audit_chains([*shared, own, again])
    assert result["same analysis"] == {"photographs": 3, "texts": 1, "most": 3}
    said = "same analysis: 3 photographs have one of 1 shared texts, the commonest has 3"
    assert said in checks.audit_text(result)
    assert not any(f.code == "same analysis" for row in result["found"].values() for f in row)


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "<think>",
        "</think><think>",
        "<answer></answer>",
        "analysis:" * 20000,
        "<think>" + "candidates: a, " * 5000 + "</think><answer>a</answer>",
        "<think>" + "\u0301" * 50_000 + "</think>",
        "<think>1. " + "9" * 50_000 + " m</think>",
    ],
    ids=range(8),
)
@pytest.mark.parametrize("loose", [False, True])
def test_hostile_texts_are_judged_quickly_and_never_crash(hostile, loose):
    import time

    start = time.process_time()
    assert check(Chain(hostile, "barn owl", loose=loose))
    assert time.process_time() - start < 2
