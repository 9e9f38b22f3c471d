"""Probes, CKA, quiz and faithfulness: invariances, planted structure, exact continuation."""

import random

import numpy as np
import pytest
import torch

from finer1_lite import generation, prompts
from finer1_lite.evals import analysis, changes
from finer1_lite.species import Collection


@pytest.fixture(scope="module")
def few(birds):
    return Collection("bird", birds.species, birds.train, birds.test[:48:8], birds.distance)


def test_cka_ignores_rotation_shift_and_scale_and_nothing_else():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 5))
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert analysis.cka(x, 3 * x @ turn + 7) == pytest.approx(1)
    assert analysis.cka(x, rng.normal(size=(200, 5))) < 0.1
    y = np.concatenate([x[:, :2], rng.normal(size=(200, 3))], 1)
    assert 0.1 < analysis.cka(x, y) < 0.9
    assert analysis.cka(x, y) == pytest.approx(analysis.cka(y, x))


def test_cka_equals_its_kernel_form():
    """HSIC of centred Gram matrices (Kornblith et al. 2019, equation 3)."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(9, 3)), rng.normal(size=(9, 4))
    centre = np.eye(9) - 1 / 9
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())
    assert analysis.cka(x, y) == pytest.approx(expected)


@pytest.mark.parametrize("pair", [((3, 2), (4, 2)), ((2, 2), (2, 2))])
def test_cka_refuses_what_cannot_be_aligned(pair):
    with pytest.raises(ValueError, match="same 3 or more"):
        analysis.cka(*(np.ones(shape) for shape in pair))
    with pytest.raises(ValueError, match="constant"):
        analysis.cka(np.ones((4, 2)), np.eye(4))


def test_a_probe_reads_what_is_there_and_nothing_else():
    rng = np.random.default_rng(2)
    labels = [f"c{i % 5}" for i in range(100)]
    planted = np.eye(5)[[i % 5 for i in range(100)]] @ rng.normal(size=(5, 12))
    assert np.mean(analysis.probe_right(planted + 0.05 * rng.normal(size=(100, 12)), labels)) == 1
    noise = analysis.probe_right(rng.normal(size=(100, 12)), labels)
    assert np.mean(noise) < 0.45  # chance is 0.2
    with pytest.raises(ValueError, match="fewer than 2 pictures of c9"):
        analysis.probe_right(planted, [*labels[:-1], "c9"])


def test_the_edit_turns_one_description_into_the_others(world):
    from finer1_lite import paperbirds

    name = world.names[0]
    rival = analysis._rival(world, name, random.Random(0))
    assert world.genus[rival] == world.genus[name] and rival != name
    text = paperbirds.knowledge(world, name)
    for old, new in analysis._marks_to(world, name, rival).items():
        text = text.replace(old, new)
    assert text == paperbirds.knowledge(world, rival)


# --- with a student --------------------------------------------------------------------


def test_an_answer_goes_on_exactly_where_it_was_cut(student, few):
    """Greedy answers, cut somewhere and continued, are the same answers; in one batch too."""
    photos = few.test[:3]
    images, asked = [p.image() for p in photos], [prompts.question("think", "bird")] * 3
    batch = generation.encode_prompts(student.model, student.processor, asked, images)
    whole = generation.generate(student.model, student.processor, batch, max_new_tokens=8)
    kept = [2, 5, 0]
    begun = [
        student.processor.tokenizer.decode(row[:n])
        for row, n in zip(whole.completion_ids, kept, strict=True)
    ]
    again = [student.processor.tokenizer.encode(text, add_special_tokens=False) for text in begun]
    rows = zip(again, whole.completion_ids, kept, strict=True)
    same = [ids == row[:n].tolist() for ids, row, n in rows]
    more = generation.extended(batch, again)
    for p, ids in enumerate(again):
        real = more.attention_mask[p].bool()
        assert (
            more.input_ids[p][real].tolist()
            == batch.input_ids[p][batch.attention_mask[p].bool()].tolist() + ids
        )
        places = more.position_ids[:, p][:, real]
        assert (places[:, len(places[0]) - len(ids) :].diff() == 1).all()
    out = generation.generate(student.model, student.processor, more, max_new_tokens=3)
    for p, n in enumerate(kept):
        if same[p]:
            length = min(3, 8 - n)
            assert (
                out.completion_ids[p, :length].tolist()
                == whole.completion_ids[p, n : n + length].tolist()
            )
    assert any(same)


def test_states_and_features_have_a_row_a_picture(student, few):
    question = prompts.question("answer", "bird")
    assert analysis.language_states(student, few.test, question).shape == (len(few.test), 192)
    assert analysis.vision_features(student, few.test).shape == (len(few.test), 192)


def test_an_untrained_student_changes_nothing_against_itself(student, few, world):
    both = {"before": student, "after": student}
    made = analysis.parts(both, _twice(few), world, max_new_tokens=4)
    found = changes.summary([row for measure in made.values() for row in measure()])
    assert found["CKA, vision"] == pytest.approx(1) == found["CKA, language"]
    for key in ("linear probe, vision", "linear probe, language", "quiz in words, seen"):
        assert (found[key]["gained"], found[key]["lost"], found[key]["p"]) == (0, 0, 1)
    assert found["named after a chain"]["after"]["share"] == 0
    assert "faithfulness after" not in found  # no picture was named: nothing to edit or to swap


def _twice(few):
    """Two pictures of each of three species."""
    from finer1_lite import paperbirds

    world = paperbirds.make_world(0)
    names = world.names[:3]
    test = [paperbirds.photo(world, n, "test", i) for n in names for i in range(2)]
    species = tuple(s for s in few.species if s.name in names)
    train = tuple(p for p in few.train if p.species in names)
    return Collection("bird", species, train, tuple(test), few.distance)


def test_training_the_language_layers_cannot_move_the_vision_features(fresh, few):
    before = analysis.vision_features(fresh, few.test)
    with torch.no_grad():
        for name, weight in fresh.model.named_parameters():
            if "language_model" in name:
                weight.mul_(1.1)
    assert np.array_equal(before, analysis.vision_features(fresh, few.test))
