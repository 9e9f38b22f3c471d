"""Concepts: extraction by clause, and the bottleneck against brute force on small tables."""

import itertools
import math

import numpy as np
import pytest

from finer1_lite import plots
from finer1_lite.chains import concepts
from finer1_lite.chains.teacher_prompts import TeacherPrompt
from finer1_lite.chains.teachers import Oracle
from finer1_lite.evals import figures


def information_by_hand(joint: dict) -> float:
    """I(X; Y) in bits from p(x, y), term by term."""
    px, py = {}, {}
    for (x, y), p in joint.items():
        px[x], py[y] = px.get(x, 0) + p, py.get(y, 0) + p
    return sum(p * math.log2(p / (px[x] * py[y])) for (x, y), p in joint.items() if p > 0)


def joint_of(rates, groups) -> dict:
    """p(mentioned, group): a group, a picture of it, a description of that, each at random."""
    joint: dict = {}
    kinds = sorted(set(groups))
    for picture, group in enumerate(groups):
        weight = 1 / len(kinds) / groups.count(group)
        for said, p in ((True, rates[picture]), (False, 1 - rates[picture])):
            joint[said, group] = joint.get((said, group), 0) + weight * p
    return joint


def described(phrases, rates, classes) -> dict[str, list[list[str]]]:
    """Ten descriptions a picture, in which each phrase stands as often as its rate says."""
    found: dict = {}
    for picture, kind in enumerate(classes):
        often = 10 * rates[:, picture]
        texts = [
            ", ".join(p for p, n in zip(phrases, often, strict=True) if i < n) for i in range(10)
        ]
        found.setdefault(kind, []).append(texts)
    return found


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_count_estimator_is_the_two_mutual_informations(beta):
    rng = np.random.default_rng(0)
    rates = rng.integers(0, 5, (20, 6)) / 4
    classes = [0, 0, 1, 1, 2, 2]
    scores = concepts.count_scores(rates, classes, beta)
    for row, score in zip(rates, scores, strict=True):
        relevance = information_by_hand(joint_of(row, classes))
        compression = information_by_hand(joint_of(row, list(range(6))))
        assert score == pytest.approx(relevance - beta * compression, abs=1e-12)
        assert relevance <= compression + 1e-12  # the class is a function of the picture


def test_what_the_two_halves_are_for():
    """Columns: two pictures each of the class, a neighbour and another neighbour."""
    classes = [0, 0, 1, 1, 2, 2]
    rates = np.array(
        [
            [1, 1, 1, 1, 1, 1],  # shared by all: says nothing
            [1, 1, 0, 0, 0, 0],  # the class's own mark
            [0.1, 0, 0, 0, 0, 0],  # one slip of one description
            [1, 0, 1, 0, 1, 0],  # how the picture was taken
        ],
        dtype=float,
    )
    shared, own, slip, pose = concepts.count_scores(rates, classes, beta=0.7)
    assert shared == pytest.approx(0) and own > 0.2 and slip < 0 and pose < -0.6
    by_relevance = concepts.count_scores(rates, classes, beta=0.0)
    assert by_relevance[2] > 0  # without the second half the slip would be kept
    colours = ["red", "blue", "green", "white"]
    said = described(colours, rates, ["a", "a", "b", "b", "c", "c"])
    assert concepts.select("a", said, colours, beta=0.7, least=0).kept == ("blue",)


def test_a_neighbours_mark_is_not_kept():
    assert concepts.count_scores(np.array([[0.0, 1.0]]), [0, 1], 0.0)[0] == pytest.approx(1.0)
    for own in (0.0, 0.1):
        said = described(["red"], np.array([[own, 1.0]]), ["a", "b"])
        assert not concepts.select("a", said, ["red"], beta=0.0).kept


def test_unequal_classes_are_refused():
    with pytest.raises(ValueError, match="equally many"):
        concepts.count_scores(np.zeros((1, 3)), [0, 0, 1], 0.1)


# --- phrases ---------------------------------------------------------------------------


def test_a_mention_stands_inside_one_clause_in_any_order_and_ending():
    said = concepts.clauses("Crown red, back blue. Two white wing bars and a short bill")
    for phrase in ("red crown", "blue back", "white wing bar", "short bill"):
        assert concepts.mentions(phrase, said), phrase
    for phrase in ("red back", "white bill", "blue crown", ""):
        assert not concepts.mentions(phrase, said), phrase


def test_merging_keeps_one_phrase_of_each_meaning():
    found = concepts.merge(
        ["yellow", "yellow shell", "shells yellow", "wing bar", "wing-bars", "red"]
    )
    assert sorted(found) == ["red", "wing bar", "yellow shell"]


def test_yake_finds_the_phrases_of_a_description():
    texts = [
        "Greenish yellow shell with a white juicy pulp.",
        "A greenish yellow shell, long stem.",
    ]
    found = concepts.extract(texts)
    assert "greenish yellow shell" in found and "white juicy pulp" in found
    assert len(found) == len(set(found)) <= 40


def test_a_teachers_list_is_read_whatever_bullets_it_uses():
    answer = (
        "1. Red crown\n- short bill.\n\n* White wing bar\nThis line is no concept but a sentence\n"
    )
    assert concepts.read_list(answer) == ["red crown", "short bill", "white wing bar"]


def test_of_a_paper_bird_the_marks_are_kept_that_neighbours_lack(world, birds):
    """Whatever slips the descriptions hold, the marks that decide come out on top."""
    name = birds.seen_names[0]
    teacher = Oracle(world, overlooks=0.2, mistakes=0.05)
    kinds = [name, *birds.neighbours(name, birds.seen_names)[:3]]
    described = {
        k: [
            [r.text for r in teacher.ask(p, TeacherPrompt("describe", ""), range(8))]
            for p in birds.train
            if p.species == k
        ]
        for k in kinds
    }
    texts = "\n".join(t for v in described.values() for p in v for t in p)
    (answer,) = teacher.ask(None, TeacherPrompt("extract", texts), [0])
    found = concepts.read_list(answer.text)
    chosen = concepts.select(name, described, found, least=1)
    deciding = {
        f"{m} {world.marks[name][m]}"
        for m, k in itertools.product(world.marks[name], kinds[1:])
        if world.marks[k][m] != world.marks[name][m]
    }
    assert set(chosen.kept) & deciding
    assert not set(chosen.kept) & set(chosen.dropped)
    assert chosen.kept[0] in deciding and set(chosen.kept) <= deciding
    shape = {f"bill {world.marks[name]['bill']}", f"tail {world.marks[name]['tail']}"}
    assert shape & set(chosen.dropped)  # the genus shares them


def test_the_figure_shows_every_concept_and_a_line_for_each():
    described = {
        "a": [["red crown, short bill", "red crown"], ["red crown", "red crown, green leaf"]],
        "b": [["blue crown, short bill", "blue crown"], ["blue crown", "blue crown"]],
    }
    phrases = ["red crown", "blue crown", "short bill", "green leaf"]
    shares, scores, kept = concepts.over_beta("a", described, phrases)
    figure = figures.bottleneck(shares, scores, kept, concepts.BETA)
    left, right = figure.axes
    shown = {t.get_text(): t.get_color() for t in left.get_yticklabels()}
    assert set(shown) == {"red crown", "short bill", "green leaf"}  # of b's own mark a says nothing
    assert [name for name, colour in shown.items() if colour == plots.COLOURS["tapo"]] == [
        "red crown"
    ]
    crossing = [line.get_ydata() for line in right.lines[:3]]
    assert all(y[0] >= -1e-9 for y in crossing) and sum(y[-2] > 0 for y in crossing) == 1
