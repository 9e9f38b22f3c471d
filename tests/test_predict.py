"""Naming photographs: the likelihood of every name, the confidence, its calibration."""

import shutil

import numpy as np
import pytest
import torch
from carded import NAMES, ColourNamer, card, digest
from paths import ROOT
from photo_folders import four_classes
from PIL import Image
from scipy.special import log_softmax

from finer1_lite import generation, logprobs, paperbirds, predict, prompts
from finer1_lite.predict import Evidence, Namer
from finer1_lite.runtime.checkpoints import NotFinite
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Photo, load_folder
from finer1_lite.students import card as cards
from finer1_lite.students import run_cards


@pytest.fixture
def namer(student, tmp_path):
    return Namer(student, card(), tmp_path, batch=2)


@pytest.fixture
def pictures(birds):
    return [photo.image() for photo in birds.test[:3]]


# --- likelihood ----------------------------------------------------------------------


def naive(student, question, picture, text):
    """Log-probability of a text in one pass over the whole sequence, no cache, no padding."""
    batch = generation.tokenise(student.model, student.processor, [question], [picture])
    more = student.processor.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    more = more["input_ids"]
    for name, new in (("input_ids", more), ("attention_mask", torch.ones_like(more))):
        batch[name] = torch.cat([batch[name], new], 1)
    types = batch["mm_token_type_ids"]
    batch["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(more)], 1)
    with torch.no_grad():
        logits = student.model(**batch).logits[0, -more.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(1, more[0][:, None])[:, 0]


@pytest.mark.parametrize("at_once", [1, 300, 2**16])
def test_likelihoods_are_those_of_each_name_by_itself(student, pictures, monkeypatch, at_once):
    """Chains of different lengths, names of different lengths, in chunks of any size."""
    monkeypatch.setattr(logprobs, "CACHE_AT_ONCE", at_once)
    names = ["lark", "tavok tern of the far north", "owl"]
    chains = ["", "<think>\nanalysis: crown red, back blue\n</think>\n", "<think>\n</think>\n"]
    question = prompts.question("think", "bird")
    asked = [question] * len(pictures)
    batch = generation.encode_prompts(student.model, student.processor, asked, pictures)
    found = predict.name_logps(student, batch, chains, names)
    for picture, chain, row in zip(pictures, chains, found, strict=True):
        head = len(student.processor.tokenizer(chain, add_special_tokens=False)["input_ids"])
        wanted = [
            naive(student, question, picture, chain + prompts.answer(n))[head:].sum() for n in names
        ]
        assert log_softmax(row) == pytest.approx(log_softmax(np.array(wanted)), abs=1e-3)


def test_one_class_has_all_the_confidence(student, pictures, tmp_path):
    (found,) = Namer(student, card(["lark"]), tmp_path)(pictures[:1])
    assert found.ranked == [("lark", 1.0)]


@pytest.mark.parametrize(
    ("completion", "chain"),
    [
        ("<think>\na\n</think>\n<answer>owl</answer>", "<think>\na\n</think>\n"),
        ("<think>\na", "<think>\na\n</think>\n"),
        ("<answer>owl</answer>", ""),
        ("<think>a</think><answer>owl<answer>x", "<think>a</think>"),
    ],
)
def test_names_stand_where_the_answer_stood(completion, chain):
    assert predict.chain_of(completion) == chain


# --- predictions ---------------------------------------------------------------------


def test_confidence_is_the_softmax_of_likelihood_and_agreement(tmp_path):
    namer = Namer(None, card(calibration={"2": {"temperature": 2.0, "agreement": 1.0}}), tmp_path)
    texts = [prompts.answer("barn owl"), prompts.answer("red kite"), prompts.answer("red kite")]
    logps, shares = np.log([[0.64, 0.16, 0.2]]), np.array([[2 / 3, 1 / 3, 0]])
    (found,) = namer._predict(Evidence(logps, shares, [texts]), samples=2)
    scores = np.array([0.8 * np.exp(2 / 3), 0.4 * np.exp(1 / 3), np.sqrt(0.2)])
    assert found.ranked[0] == ("red kite", pytest.approx(scores[0] / scores.sum()))
    assert found.name == "red kite" and found.confidence == found.ranked[0][1]
    assert sum(confidence for _, confidence in found.ranked) == pytest.approx(1)
    assert (found.answer, found.share, found.agrees) == ("barn owl", 1.0, None)


@pytest.mark.parametrize("samples", [0, 2])
def test_the_order_of_photographs_does_not_matter(namer, pictures, samples):
    forth = namer(pictures, samples)
    back = namer(pictures[::-1], samples)[::-1]
    for one, other in zip(forth, back, strict=True):
        assert one.completion == other.completion and one.share == other.share
        assert dict(one.ranked) == pytest.approx(dict(other.ranked), abs=1e-4)


def test_the_chain_is_compared_with_the_answer(tmp_path):
    good = prompts.chain("wings", ["red kite", "barn owl"], ["red kite: fits", "x"], "red kite")
    for completion, agrees in ((good, True), (good.replace("<answer>red", "<answer>x"), False)):
        (found,) = ColourNamer(tmp_path, completion=completion)([Image.new("RGB", (9, 9), "red")])
        assert found.agrees is agrees


def test_three_lines_from_a_run(tmp_path, birds):
    """The shipped adapter, with a card, as a run: a path and a picture give two names."""
    folder = tmp_path / "run" / "seed0" / "tapo"
    shutil.copytree(ROOT / "assets/adapters-world0/tapo", folder)
    base = cards.relative(ROOT / "assets/lab-student-world0", folder)
    cards.write_card(folder, card(birds.names, base=base, max_new_tokens=160))
    path = tmp_path / "a.png"
    birds.test[0].image().save(path)

    namer = predict.load(tmp_path / "run")
    found = namer([path, birds.test[0].image()])
    print([(one.name, one.confidence) for one in found])

    assert found[0].ranked == found[1].ranked and found[0].name in birds.names
    assert found[0].answer in birds.names and not namer.student.model.training


def test_a_model_without_card_says_what_to_do(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="start the `lab` of this run again"):
        predict.load(tmp_path)


# --- calibration ---------------------------------------------------------------------


def colours(n, wrong=0):
    """Photographs of the colours of `NAMES`, the first `wrong` of them under another's name."""
    shades = [tuple(200 if i % 3 == c else 90 + i for c in range(3)) for i in range(n)]
    labels = [NAMES[(i + (i < wrong)) % 3] for i in range(n)]
    return [
        Photo(str(i), label, lambda s=shade: Image.new("RGB", (9, 9), s))
        for i, (label, shade) in enumerate(zip(labels, shades, strict=True))
    ]


def test_calibration_lowers_a_boastful_confidence_and_stays_on_the_card(tmp_path):
    namer = ColourNamer(tmp_path)
    picture = [Image.new("RGB", (9, 9), (200, 90, 90))]
    (before,) = namer(picture)
    assert "not calibrated" in namer.reliability() and before.confidence > 0.99
    fit = predict.calibrate(namer, colours(60, wrong=18), source="colours")
    (after,) = namer(picture)
    assert after.name == before.name and after.confidence == pytest.approx(0.7, abs=0.08)
    assert set(fit["measured"]) == {"likelihood", "agreement", "combined"} and fit["n"] == 60
    assert cards.read_card(tmp_path).calibration == {"0": fit}
    assert "60 held-out photographs (colours)" in namer.reliability()
    assert "right names 70 %" in namer.reliability()
    assert namer.fitted(samples=4) is None  # another kind of evidence: fitted by itself
    predict.calibrate(namer, colours(8), samples=4)
    assert set(cards.read_card(tmp_path).calibration) == {"0", "4"}
    assert "rough" in namer.reliability(4)


def test_a_photograph_that_overflows_or_scarce_memory_costs_no_calibration(
    tmp_path, monkeypatch, caplog
):
    real, photos = ColourNamer.look, colours(9)
    bad = np.asarray(photos[0].image())

    def look(self, pictures, samples=0):
        if len(pictures) > 1:
            raise torch.OutOfMemoryError("out of memory")
        if np.array_equal(np.asarray(pictures[0]), bad):
            raise NotFinite("nan or inf in the logits")
        return real(self, pictures, samples)

    monkeypatch.setattr(ColourNamer, "look", look)
    found = predict.calibrate(ColourNamer(tmp_path), photos)
    monkeypatch.setattr(ColourNamer, "look", real)
    rest = [p for p in photos if not np.array_equal(np.asarray(p.image()), bad)]
    assert found == predict.calibrate(ColourNamer(tmp_path), rest)
    assert f"calibration: {9 - len(rest)} overflow and are left out" in caplog.text


def test_too_few_photographs_calibrate_nothing(tmp_path):
    with pytest.raises(DataError, match="3 photographs: 4 are needed"):
        predict.calibrate(ColourNamer(tmp_path), colours(3))


def test_what_was_trained_on_is_never_held_out(tmp_path):
    """By content, whatever the files are called now and wherever the split falls."""
    root = four_classes(tmp_path / "photos")
    names = load_folder(root).names
    trained = {f"old/{i}": digest(p) for i, p in enumerate(sorted(root.glob("*/[0-3].png")))}
    made = card(names[:3], photos="photos", trained_on=trained, world_seed=None, split_seed=5)
    found, where = run_cards.held_out(made, tmp_path)
    assert {p.source.stem for p in found} == {"4", "5"} and len(found) == 6
    assert {p.species for p in found} == set(names[:3]) and "photos" in where
    assert len(run_cards.held_out(made, tmp_path, limit=4)[0]) == 4
    with pytest.raises(DataError, match="gone"):
        run_cards.held_out(made.model_copy(update={"photos": "gone"}), tmp_path)


def test_birds_are_held_out_in_a_split_of_their_own(tmp_path, birds):
    found, where = run_cards.held_out(card(birds.names), tmp_path, limit=20)
    assert len(found) == 20 and "world 0" in where
    assert {photo.id.split("/")[2] for photo in found} == {"val"}
    assert paperbirds.make_world(0).names == birds.names
