"""Teachers: one protocol, seeded answers, and a cache that asks for nothing twice."""

import json
from dataclasses import replace

import pytest
import torch

from finer1_lite import models
from finer1_lite.chains import checks, teacher_prompts
from finer1_lite.chains.client import Cached, Ledger, Reply, TeacherStopped, picture_digest
from finer1_lite.chains.teacher_prompts import TeacherPrompt
from finer1_lite.chains.teachers import Local, Oracle, Table, load_local
from finer1_lite.data.chain_text import Chain
from finer1_lite.runtime.checkpoints import NotFinite

PROMPT = teacher_prompts.description_prompt("bird", 0)


class Scripted:
    """Answers with a number that goes up, and remembers what it was asked."""

    workers, together = 1, False

    def __init__(self, **identity):
        self.identity = {"teacher": "scripted", **identity}
        self.asked = []

    def ask(self, photo, prompt, samples):
        self.asked += [(photo and photo.id, prompt.text, i) for i in samples]
        return [Reply(f"text {len(self.asked)}", 7, 3) for _ in samples]


def test_the_oracle_describes_with_slips_and_writes_without(world, birds):
    oracle, photo = Oracle(world, overlooks=0.3, mistakes=0.2), birds.train[0]
    texts = [r.text for r in oracle.ask(photo, PROMPT, range(40))]
    assert texts == [r.text for r in oracle.ask(photo, PROMPT, range(40))]
    assert len(set(texts)) > 20
    truth = {f"{m} {v}" for m, v in world.marks[photo.species].items()}
    said = [phrase for text in texts for phrase in text.split(", ") if phrase]
    wrong = sum(phrase not in truth for phrase in said) / len(said)
    assert 0.1 < wrong < 0.25  # a sixth of the mistakes hits the truth by chance
    names = (photo.species, *birds.neighbours(photo.species)[:3])
    prompt = teacher_prompts.chain_prompt("bird", photo.species, names, sorted(truth)[:2])
    (reply,) = oracle.ask(photo, prompt, [0])
    chain = Chain(reply.text, photo.species, wanted=names, kept=tuple(sorted(truth)[:2]))
    assert not checks.check(chain)
    assert set(chain.parts["analysis"].split(", ")) == set(sorted(truth)[:2])


def test_a_table_tells_only_what_a_photo_can_show():
    from finer1_lite.species import Collection, Photo, Species

    told = {"Red Apple": "Red Apple is a bright round fruit, sweet in taste, with a short stem."}
    told["Green Pear"] = "Green Pear has a slender neck and dots."
    kinds = tuple(Species(n, "", True, d) for n, d in told.items())
    photo = Photo("a", "Red Apple", lambda: None)
    table = Table(Collection("fruit", kinds, (photo,), (), lambda a, b: 1.0))
    (reply,) = table.ask(photo, PROMPT, [0])
    assert "bright round fruit" in reply.text and "short stem" in reply.text
    for word in ("sweet", "taste", "apple", "red"):
        assert word not in reply.text.casefold()
    prompt = teacher_prompts.chain_prompt(
        "fruit", "Red Apple", ("Red Apple", "Green Pear"), ["short stem"]
    )
    prompt = replace(prompt, dropped=("bright fruit",))
    chains = [Chain(r.text).parts for r in table.ask(photo, prompt, range(9))]
    assert {c["analysis"] for c in chains} == {"to look for: short stem"}
    with pytest.raises(TeacherStopped, match="yake"):
        table.ask(None, teacher_prompts.concepts_prompt(["x"]), [0])


# --- the cache ---------------------------------------------------------------------------


def test_nothing_is_asked_twice_and_every_setting_is_part_of_the_key(birds, tmp_path):
    first, second = birds.train[:2]
    teacher = Scripted(model="a")
    cached = Cached(teacher, tmp_path)
    one = cached.ask(first, PROMPT, [0, 1])
    assert cached.ask(first, PROMPT, [1, 0]) == one[::-1] and len(teacher.asked) == 2
    cached.ask(second, PROMPT, [0])
    cached.ask(None, PROMPT, [0])
    cached.ask(first, teacher_prompts.description_prompt("bird", 1), [0])
    assert len(teacher.asked) == 5
    other = Scripted(model="b")
    Cached(other, tmp_path).ask(first, PROMPT, [0])
    assert len(other.asked) == 1
    again = Scripted(model="a")
    ledger = Ledger()
    assert Cached(again, tmp_path, ledger).ask(first, PROMPT, [0, 1]) == one
    assert not again.asked and ledger.counts == {"from cache": 2}


def test_a_copy_of_a_picture_is_the_same_and_an_edit_is_not(birds):
    image = birds.train[0].image()
    changed = image.copy()
    changed.putpixel((3, 3), (1, 2, 3))
    assert picture_digest(image) == picture_digest(image.copy()) != picture_digest(changed)


def test_the_budget_stops_before_the_answer_that_would_exceed_it(birds, tmp_path):
    teacher, ledger = Scripted(), Ledger(max_requests=2)
    with pytest.raises(TeacherStopped, match="budget of 2"):
        Cached(teacher, tmp_path, ledger).ask(birds.train[0], PROMPT, range(5))
    assert len(teacher.asked) == 2 and len(list(tmp_path.rglob("*.json"))) == 2
    money = Ledger(price_in=1e6, price_out=0, max_cost=10)
    with pytest.raises(TeacherStopped, match="budget of 10"):
        Cached(teacher, tmp_path / "b", money).ask(birds.train[0], PROMPT, range(5))
    assert money.cost == pytest.approx(14)  # 7 tokens an answer: the second crosses the line


def test_a_budget_that_limits_nothing_is_refused(birds, tmp_path):
    with pytest.raises(ValueError, match="--max-cost limits nothing without --price-in"):
        Ledger(max_cost=5.0)
    with pytest.raises(ValueError, match="none below 0"):
        Ledger(max_requests=-1)
    told, silent = (Ledger(price_out=2.0, max_cost=5.0) for _ in range(2))
    for reply in (Reply("an owl", 3, 4), Reply("refused"), Reply("", finish="oversized")):
        told.count_reply(reply)
    told.reserve(1)
    silent.reserve(1)
    silent.count_reply(Reply("an owl"))
    with pytest.raises(TeacherStopped, match="tells no number of tokens.*--max-requests"):
        silent.reserve(1)


# --- a real model class, tiny and random ---------------------------------------------------


@pytest.fixture
def local(student):
    return Local(student.model, student.processor, "tiny", max_new_tokens=12, temperature=1.0)


def test_a_local_model_answers_pictures_and_plain_text(local, birds):
    replies = local.ask(birds.train[0], PROMPT, [0, 1, 2])
    assert len({r.text for r in replies}) > 1
    for r in replies:
        assert 0 < r.tokens_out <= 12 and r.tokens_in > 9
        assert r.finish in ("stop", "length") and "<|" not in r.text
    state = torch.random.get_rng_state()
    assert local.ask(birds.train[0], PROMPT, [0, 1, 2]) == replies  # a function of the request
    assert torch.equal(state, torch.random.get_rng_state())
    assert local.ask(birds.train[0], PROMPT, [3, 4, 5]) != replies
    assert local.ask(birds.train[1], PROMPT, [0, 1, 2]) != replies
    assert (
        local.ask(None, TeacherPrompt("extract", "List the marks of the bird."), [0])[0].tokens_in
        < 40
    )


def test_greedy_answers_are_all_alike(local, birds):
    local.temperature = 0.0
    (one,) = local.ask(birds.train[0], PROMPT, [0])
    assert local.ask(birds.train[0], PROMPT, [7])[0].text == one.text


def test_logits_that_overflow_are_an_empty_answer(local, birds, monkeypatch):
    def overflow(*_, **__):
        raise NotFinite("nan or inf in the logits")

    monkeypatch.setattr("finer1_lite.generation.generate", overflow)
    assert local.ask(birds.train[0], PROMPT, [0, 1]) == [Reply(""), Reply("")]


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_model_loads_from_a_folder_plain_or_in_four_bits(
    student, birds, tmp_path, quantize, monkeypatch
):
    folder = tmp_path / "tiny"
    student.model.save_pretrained(folder)
    student.processor.save_pretrained(folder)
    teacher = load_local(folder, quantize, pixels=84 * 84, max_new_tokens=4)
    assert teacher.identity["model"] == "tiny"  # no path of this machine
    (reply,) = Cached(teacher, tmp_path / "cache").ask(birds.train[0], PROMPT, [0])
    assert reply.tokens_out > 0
    saved = json.loads(next((tmp_path / "cache").rglob("*.json")).read_text())
    assert saved["text"] == reply.text
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0" * 8)  # trained on: another teacher
    monkeypatch.setattr(models, "load_student", lambda *_: student)
    assert load_local(folder, quantize).identity != teacher.identity
