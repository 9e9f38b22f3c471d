"""Every family: our short cuts against each class's own forward pass, and a whole run."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from unittest.mock import Mock

import pytest
import torch
from families import FAMILIES, OTHERS, processor_for, save, tiny
from prompted import asked, plain_inputs, sample
from tiny_tapo import TINY, Stage, weights
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    Gemma4Config,
    InternVLConfig,
    LlavaConfig,
    PaliGemmaProcessor,
)

from finer1_lite import evaluate, generation, logprobs, models, prompts, sft
from finer1_lite.data import marks
from finer1_lite.generation import Student
from finer1_lite.students import attention, families, processors
from finer1_lite.students.processors import budget_of
from finer1_lite.tools import plan, publish

DECODER = re.compile(r".*(language|text)_model\.")
TORCHVISION = os.environ.get("PLAIN_TORCHVISION", "")  # a folder that holds one
STAND_IN = """
import sys, torch
if sys.argv[1]:  # a torchvision for another torch: all but its compiled operators
    sys.path.insert(0, sys.argv[1])
    stand_in = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        stand_in.define(name + "(Tensor a, Tensor b, float c) -> Tensor")
"""
PLAIN = """
from transformers import AutoProcessor
for folder in sys.argv[2:]:
    processor = AutoProcessor.from_pretrained(folder)
    print(type(processor).__name__, type(processor.image_processor).__name__)
"""
AGAIN = """
import pytest
families = "internvl or lfm2_vl or gemma4"
sys.exit(pytest.main(["-q", "-n0", "-p", "no:cacheprovider", "-k", families, sys.argv[2]]))
"""


@pytest.fixture(scope="module", params=[*FAMILIES, *OTHERS])
def family(request):
    """A student of each class. Do not change it."""
    return tiny(request.param)


@pytest.fixture
def own(request, family):
    return tiny(request.node.callspec.params["family"])


def encoded(student, birds, count=4):
    questions, pictures = asked(birds, count)
    return generation.encode_prompts(student.model, student.processor, questions, pictures)


def full_forward(student, birds, tokens, mask, inputs=None):
    """log pi of the answers by the model's own forward: ids and pixels in, logits out."""
    inputs = inputs or plain_inputs(student, *asked(birds, len(tokens)))
    zeros = torch.zeros_like(tokens)
    more = {"input_ids": tokens, "attention_mask": mask, "mm_token_type_ids": zeros}
    prefix = families.family_of(generation.core_of(student.model)).prefix
    more["token_type_ids"] = torch.full_like(tokens, prefix)
    inputs |= {k: torch.cat([inputs[k], value], 1) for k, value in more.items() if k in inputs}
    logits = student.model(**inputs).logits[:, -tokens.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] * mask


def test_greedy_answers_are_those_of_the_model_itself(family, birds):
    inputs = plain_inputs(family, *asked(birds, 4))
    theirs = family.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=12,
        use_cache=True,
        suppress_tokens=generation.suppress_tokens(family.processor),
    )[:, inputs["input_ids"].shape[1] :]
    batch = encoded(family, birds)
    ours = generation.generate(family.model, family.processor, batch, max_new_tokens=12)
    assert torch.equal(ours.completion_ids, theirs)
    assert len({tuple(row) for row in theirs.tolist()}) > 1  # the pictures matter


@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_are_those_of_the_models_own_forward(own, birds, checkpointing):
    batch = encoded(own, birds)
    out = sample(own, batch, num_generations=1)
    out.completion_mask[1, 3:] = 0
    if checkpointing:
        own.model.gradient_checkpointing_enable({"use_reentrant": False})
        own.model.train()
    ours = logprobs.log_probs(own.model, batch, out.completion_ids, out.completion_mask, range(4))
    own.model.eval()
    with torch.no_grad():  # the answers then share their prompt's cache, in every family
        theirs = full_forward(own, birds, out.completion_ids, out.completion_mask)
        shared = logprobs.log_probs(
            own.model, batch, out.completion_ids, out.completion_mask, range(4)
        )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(shared, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OTHERS)
def test_words_without_a_picture_are_scored_as_by_the_model_itself(name, birds):
    student = tiny(name)
    given = student.model, student.processor, ["Which bird?", "Is it a wren or is it a finch?"]
    out = sample(student, generation.encode_prompts(*given, None), num_generations=1)
    said = out.completion_ids, out.completion_mask
    with torch.no_grad():
        ours = logprobs.log_probs(
            student.model, generation.encode_prompts(*given, None), *said, range(2)
        )
        theirs = full_forward(student, birds, *said, dict(generation.tokenise(*given, None)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_completions_behind_one_prompt_are_scored_as_alone(own, birds, monkeypatch):
    """In one row where one mask says all, else a row each; prompts of unequal length."""
    attention.group_heads(own.model)
    batch = encoded(own, birds)
    out = sample(own, batch, num_generations=2)
    which, lengths = [2, 0, 2, 1, 0, 2, 2, 0], torch.tensor([4, 1, 9, 2, 0, 3, 5, 7])
    mask = out.completion_mask * (torch.arange(out.completion_ids.shape[1]) < lengths[:, None])
    with torch.no_grad():  # all share their prompt's cache
        alone = logprobs.log_probs(own.model, batch, out.completion_ids, mask, which)
    monkeypatch.setattr(logprobs, "packed_hidden", packed := Mock(wraps=logprobs.packed_hidden))
    own.model.gradient_checkpointing_enable({"use_reentrant": False})
    own.model.train()
    ours = logprobs.log_probs(own.model, batch, out.completion_ids, mask, which)
    torch.testing.assert_close(ours, alone, rtol=0, atol=1e-5)
    others = ("qwen3_5", "lfm2_vl", "gemma3", "gemma4", "paligemma")
    assert packed.called == (own.model.config.model_type not in others)


def test_pictures_travel_with_their_rows(family, birds):
    """Qwen3-VL's features for deeper layers must be cut and joined with the others."""
    batch = encoded(family, birds)
    out = sample(family, batch, num_generations=1)
    turned = generation.join([batch.rows([3, 1]), batch.rows([0, 2])])
    with torch.no_grad():
        first = logprobs.log_probs(
            family.model, batch, out.completion_ids, out.completion_mask, range(4)
        )
        again = logprobs.log_probs(
            family.model, turned, out.completion_ids, out.completion_mask, [2, 1, 3, 0]
        )
        other = logprobs.log_probs(
            family.model, batch, out.completion_ids, out.completion_mask, [3, 2, 1, 0]
        )
    torch.testing.assert_close(again, first, rtol=0, atol=1e-5)
    assert (other - first).abs().max() > 1e-3


def test_deepstack_reaches_the_language_layers(birds):
    """Without it Qwen3-VL's log-probs would differ: the test above could not pass by luck."""
    student = tiny("qwen3_vl")
    batch = encoded(student, birds)
    width = student.model.config.text_config.hidden_size
    assert {f.shape[1] for f in batch.image_features} == {3 * width}  # itself and two layers
    out = sample(student, batch, num_generations=1)
    flat = generation.PromptBatch(
        batch.input_ids,
        batch.attention_mask,
        batch.mm_token_type_ids,
        batch.position_ids,
        tuple(f[:, :width] for f in batch.image_features),
    )
    with torch.no_grad():
        a, b = (
            logprobs.log_probs(student.model, x, out.completion_ids, out.completion_mask, range(4))
            for x in (batch, flat)
        )
    assert (a - b).abs().max() > 1e-3


def test_gradients_are_those_of_the_models_own_loss(own, birds):
    """Every adapter gets the gradient that backpropagation through the plain forward gives."""
    adapted = models.add_adapter(own, TINY, seed=0)
    noise = torch.Generator().manual_seed(0)
    for name, p in adapted.model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.05, generator=noise)
    adapted.model.double()  # what float32 rounds away here differs from CPU to CPU
    batch = encoded(adapted, birds)
    out, found = sample(adapted, batch, num_generations=1), []
    for scored in (
        lambda: logprobs.log_probs(
            adapted.model, batch, out.completion_ids, out.completion_mask, range(4)
        ),
        lambda: full_forward(adapted, birds, out.completion_ids, out.completion_mask),
    ):
        adapted.model.zero_grad()
        scored().sum().backward()
        found.append(
            {n: p.grad.clone() for n, p in adapted.model.named_parameters() if p.requires_grad}
        )
    text = adapted.model.config.text_config
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    matrices = {"full_attention": 7, "sliding_attention": 7, "linear_attention": 8, "conv": 5}
    layers = sum(matrices[kind] for kind in kinds)
    layers -= 2 * getattr(text, "num_kv_shared_layers", 0)  # they have no keys and values
    assert len(found[0]) == layers * 2 and all(DECODER.match(n) for n in found[0])
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        scale = found[1][name].abs().max().item()
        torch.testing.assert_close(gradient, found[1][name], rtol=0, atol=1e-4 * scale + 1e-6)


def test_a_tapo_step_runs(own, birds, tmp_path, spread):
    stage = Stage(own, birds, tmp_path, TINY, steps=1)
    before = weights(stage.model)
    stage.train()
    assert stage.log()["skipped"] == 0
    moved = [n for n, w in weights(stage.model).items() if not torch.equal(w, before[n])]
    assert all("lora_B" in n for n in moved) and moved


def test_no_token_of_pictures_or_videos_is_ever_sampled(family):
    tok = family.processor.tokenizer
    special = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {getattr(family.model.config, name, None) for name in special} - {None}
    banned = generation.suppress_tokens(family.processor)
    assert ids <= set(banned)
    assert tok.convert_tokens_to_ids("<|vision_pad|>") in banned
    assert tok.convert_tokens_to_ids("<|video_pad|>") in banned
    around = {tok.convert_tokens_to_ids(t) for t in ("<fake_token_around_image>", "<global-img>")}
    assert around - {None} <= set(banned)
    assert tok.eos_token_id not in banned and None not in banned


@pytest.mark.parametrize("token", [*generation.VISION_TOKENS, "<loc0123>", "<seg012>"])
def test_no_word_of_a_question_may_be_a_mark_of_pictures(token):
    assert token in marks.problem(f"a {token} bird")


# --- families that are no Qwen-VL --------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_a_whole_run_ends_in_a_model_that_plain_transformers_loads(
    name, birds, tmp_path, spread, monkeypatch
):
    """Load, two steps of stage 1, one of stage 2, four answers, merge, plain reload."""
    monkeypatch.setattr(models, "PASSED", set())
    base = save(tiny(name), tmp_path / "base")
    preset = TINY.with_(sft__steps=2, sft__batch=4, sft__micro_batch=2, tapo__steps=1)
    student = models.add_adapter(models.load_student(base, preset), preset, 0)
    assert models.PASSED == {str(base)}  # the self-test was run
    before = weights(student.model)
    few = replace(birds, train=birds.train[:8])
    rows = sft.chain_rows(few, {p.id: prompts.answer(birds.names[0]) for p in few.train})
    sft.train_sft(student, rows, preset, 0, tmp_path / "sft")
    after = weights(student.model)
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved and all("lora_" in n and DECODER.match(n) for n in moved)
    stage = Stage(student, birds, tmp_path / "tapo", preset, steps=1)
    stage.train()
    assert stage.log()["skipped"] == 0 and weights(student.model).keys() == after.keys()
    models.save_adapter(student, tmp_path / "adapter")
    asks = [prompts.question("think", "bird")] * 4, [p.image() for p in birds.test[:4]]
    said = evaluate.ask(student, *asks, max_new_tokens=6)
    out = publish.merge(tmp_path / "adapter", tmp_path / "merged", str(base))
    plain = AutoModelForImageTextToText.from_pretrained(out)
    assert type(plain) is type(tiny(name).model)
    again = evaluate.ask(models.load_student(out, preset), *asks, max_new_tokens=6)
    assert [r.completions for r in again] == [r.completions for r in said]


@pytest.mark.parametrize("name", OTHERS)
def test_vision_adapters_learn_in_stage_one(name, birds, tmp_path):
    preset = TINY.with_(lora_vision=True, sft__steps=2, sft__batch=2, sft__micro_batch=2)
    student = models.add_adapter(tiny(name), preset, 0)
    before = weights(student.model)
    few = replace(birds, train=birds.train[:2])
    rows = sft.chain_rows(few, {p.id: prompts.answer(birds.names[0]) for p in few.train})
    sft.train_sft(student, rows, preset, 0, tmp_path)
    after = weights(student.model)
    seeing = [n for n in before if families.in_tower(n) and "lora_B" in n]
    blocks = {found[1] for n in seeing if (found := re.search(r"\.(\d+)\.", n))}
    assert len(blocks) == 3  # every block of the tower
    assert [n for n in seeing if torch.equal(before[n], after[n])] == []


def collated(student, birds, count, folder, monkeypatch) -> dict:
    """The first batch of so many rows that stage 1 gives to the model."""
    few, batches = replace(birds, train=birds.train[:count]), []
    rows = sft.chain_rows(few, {p.id: prompts.answer("wren") for p in few.train})
    preset = TINY.with_(sft__steps=1, sft__batch=count, sft__micro_batch=count)
    real = sft.SFTTrainer.compute_loss

    def spy(self, model, inputs, *args, **kwargs):
        batches.append(dict(inputs))
        return real(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(sft.SFTTrainer, "compute_loss", spy)
    sft.train_sft(student, rows, preset, 0, folder)
    return batches[0]


@pytest.mark.parametrize("name", OTHERS)
def test_a_micro_batch_that_does_not_fit_comes_apart(name, birds, tmp_path, monkeypatch):
    """Each row with its own picture, whatever a family's processor calls its parts."""
    student = models.add_adapter(tiny(name), TINY, 0)
    given = collated(student, birds, 2, tmp_path, monkeypatch)
    shown = student.model(**{k: v for k, v in given.items() if k != "labels"}).logits
    alone = sft.parts(given, 1)
    assert len(alone) == 2 and all(part.keys() == given.keys() for part in alone)
    for row, part in zip(shown, alone, strict=True):
        logits = student.model(**{k: v for k, v in part.items() if k != "labels"}).logits
        torch.testing.assert_close(logits[0], row, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_stage_one_asks_what_stage_two_asks(name, birds, tmp_path, monkeypatch):
    student = models.add_adapter(tiny(name), TINY, 0)
    given = collated(student, birds, 1, tmp_path, monkeypatch)
    asked_for = [prompts.question("think", "bird")], [birds.train[0].image()]
    prompt = generation.encode_prompts(student.model, student.processor, *asked_for)
    ids, labels = given["input_ids"][0], given["labels"][0]
    start = int((labels != -100).nonzero()[0])
    assert ids[:start].tolist() == prompt.input_ids[0].tolist()
    said = student.processor.tokenizer.decode(ids[start:])
    assert said.strip().startswith("<answer>wren</answer>")
    assert student.processor.tokenizer.eos_token in said  # it learns to end


@pytest.mark.slow
@pytest.mark.skipif(
    not (TORCHVISION or importlib.util.find_spec("torchvision")),
    reason="transformers' own processors want torchvision; PLAIN_TORCHVISION=FOLDER",
)
def test_the_processors_that_are_saved_are_stock_ones(tmp_path):
    folders = [save(tiny(name), tmp_path / name) for name in OTHERS]
    for folder in folders:
        models.load_student(folder, TINY).processor.save_pretrained(folder)
    command = [sys.executable, "-c", STAND_IN + PLAIN, TORCHVISION, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    stock = {"qwen3_5": "Qwen3VLProcessor Qwen2VLImageProcessor"}
    stock["internvl"] = "InternVLProcessor GotOcr2ImageProcessor"
    stock["lfm2_vl"] = "Lfm2VlProcessor Lfm2VlImageProcessor"
    stock["gemma4"] = "Gemma4Processor Gemma4ImageProcessor"
    stock["paligemma"] = stock["paligemma2"] = "PaliGemmaProcessor SiglipImageProcessor"
    stock["gemma3"] = "Gemma3Processor Gemma3ImageProcessor"
    smolvlm = "Idefics3Processor Idefics3ImageProcessor"
    assert done.stdout.splitlines() == [stock.get(name, smolvlm) for name in OTHERS], done.stderr


@pytest.mark.slow(minutes=1)
@pytest.mark.skipif(
    not TORCHVISION or "internvl" in OTHERS, reason="PLAIN_TORCHVISION=FOLDER, or run already"
)
def test_what_wants_torchvision_passes_these_tests_beside_it():
    command = [sys.executable, "-c", STAND_IN + AGAIN, TORCHVISION, __file__]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.skipif(bool(importlib.util.find_spec("torchvision")), reason="torchvision is there")
def test_a_processor_that_wants_torchvision_says_so(tmp_path):
    InternVLConfig().save_pretrained(tmp_path)
    processor_for("qwen2_vl").tokenizer.save_pretrained(tmp_path)
    for name, kind in (("preprocessor", "image_processor_type"), ("processor", "processor_class")):
        value = {"processor": "InternVLProcessor"}.get(name, "GotOcr2ImageProcessor")
        (tmp_path / f"{name}_config.json").write_text(json.dumps({kind: value}))
    with pytest.raises(ValueError, match=f"{tmp_path}: .*; pip install torchvision"):
        processors.load_processor(tmp_path, family="internvl")


def test_a_picture_is_one_square_of_tokens_and_not_many_tiles(birds, tmp_path, caplog):
    """As released ones are saved it would be up to seventeen times as many."""
    folder = save(tiny("idefics3"), tmp_path)
    path = folder / "processor_config.json"
    saved = json.loads(path.read_text())
    saved["image_processor"] |= {"do_image_splitting": True, "size": {"longest_edge": 256}}
    path.write_text(json.dumps(saved))
    with caplog.at_level("INFO", "finer1_lite"):
        student = models.load_student(folder, TINY.with_(pixels=9999))
    assert "pixels 9999: not used: every picture has 4096" in caplog.text
    assert budget_of(student.processor) == 64 * 64
    for size in ((640, 200), (20, 30)):
        picture = birds.test[0].image().resize(size)
        batch = generation.encode_prompts(student.model, student.processor, ["?"], [picture])
        assert [len(f) for f in batch.image_features] == [4]


# --- PaliGemma -----------------------------------------------------------------------------------


def test_a_prompt_is_read_both_ways_and_what_is_said_one_way(birds):
    """Another word at a prompt's end changes its first token; one that is said, none before it."""
    student = tiny("paligemma")
    core, batch = student.model, encoded(student, birds, 1)
    said = torch.full((1, 3), 300)
    whole = batch.followed_by(said, torch.ones_like(said))
    length = batch.input_ids.shape[1]

    def moved(place: int) -> torch.Tensor:
        """How far each token's state moves with the word at a place: (L + 3,)."""
        other = replace(whole, input_ids=whole.input_ids.clone())
        other.input_ids[:, place] = 301
        states = [
            generation.decode(core, **generation.embed_prompts(core, b), use_cache=False)
            for b in (whole, other)
        ]
        return (states[0].last_hidden_state - states[1].last_hidden_state).abs().amax(-1)[0]

    with torch.no_grad():
        assert (moved(length - 2) > 0).all()
        assert torch.equal(moved(length + 1) > 0, torch.arange(length + 3) > length)


def test_stage_one_marks_what_is_said(birds, tmp_path, monkeypatch):
    student = models.add_adapter(tiny("paligemma"), TINY, 0)
    given = collated(student, birds, 2, tmp_path, monkeypatch)
    assert torch.equal(given["token_type_ids"] == 1, given["labels"] != -100)


def test_stage_ones_loss_is_that_of_its_own_forward_pass(birds, tmp_path, monkeypatch):
    """PaliGemma 2's own leaves out a bound on logits that its configuration names; TRL's does not
    unless it is struck out there."""
    sharp = tiny("paligemma2")
    with torch.no_grad():
        sharp.model.get_input_embeddings().weight.mul_(20)  # the head's too
    sharp.model.config.text_config.final_logit_softcapping = 1.0
    base = save(sharp, tmp_path / "base")
    student = models.add_adapter(models.load_student(base, TINY), TINY, 0)
    given = collated(student, birds, 2, tmp_path, monkeypatch)
    labels = given["labels"][:, 1:]
    logits = student.model(**{k: v for k, v in given.items() if k != "labels"}).logits[:, :-1]
    plain, bounded = (
        torch.nn.functional.cross_entropy(x.transpose(1, 2), labels, ignore_index=-100).item()
        for x in (logits, torch.tanh(logits))
    )
    log = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert log["loss"] == pytest.approx(plain, rel=1e-3) and abs(bounded / plain - 1) > 0.1
    models.save_adapter(student, tmp_path / "adapter")
    out = publish.merge(tmp_path / "adapter", tmp_path / "merged", str(base))
    text = json.loads((out / "config.json").read_text())["text_config"]
    assert text["final_logit_softcapping"] is None


def test_its_own_processor_asks_the_same_of_a_picture(birds, tmp_path):
    """What is merged is read by transformers alone; words without a picture it refuses."""
    folder = save(tiny("paligemma"), tmp_path)
    ours = models.load_student(folder, TINY)
    ours.processor.save_pretrained(folder)
    plain = AutoProcessor.from_pretrained(folder)
    assert type(plain) is PaliGemmaProcessor
    questions, pictures = asked(birds, 4)
    theirs = plain_inputs(Student(None, plain), questions, pictures)
    batch = generation.tokenise(ours.model, ours.processor, questions, pictures)
    for name in batch:
        assert torch.equal(batch[name], theirs[name]), name
    with pytest.raises(ValueError, match="images"):
        plain(text=["Which bird?"])
    alone = generation.tokenise(ours.model, ours.processor, ["Which bird?"], None)
    assert ours.processor.decode(alone["input_ids"][0]) == "<bos>Which bird?\n"
    assert not alone["token_type_ids"].any()
    chat = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}]
    shown = plain.apply_chat_template(chat, tokenize=False)
    assert shown == f"<bos>Hello?Hello.{ours.processor.tokenizer.eos_token}"


# --- families that nobody tried ------------------------------------------------------------------


def test_a_model_that_answers_otherwise_than_its_own_forward_pass_is_refused(tmp_path, monkeypatch):
    folder = save(tiny("idefics3"), tmp_path)
    monkeypatch.setattr(models, "PASSED", set())
    real = generation.image_features
    monkeypatch.setattr(generation, "image_features", lambda *a: [2 * f for f in real(*a)])
    with pytest.raises(ValueError, match="cannot be a student.*\n- its log-probabilities differ"):
        models.load_student(folder, TINY)
    monkeypatch.setattr(generation, "image_features", lambda *a: a[0].nothing)
    with pytest.raises(ValueError, match="built otherwise: AttributeError.*\n.*choose a Qwen2-VL"):
        models.load_student(folder, TINY)


def test_experts_are_refused_whatever_their_model_is_called(tmp_path):
    """Gemma 4 has both kinds under one name."""
    config = Gemma4Config(text_config={"enable_moe_block": True, "num_experts": 2})
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a gemma4 of experts: choose a Qwen2-VL"):
        families.check_family(tmp_path)


def test_any_other_model_of_pictures_is_let_through_with_a_note(tmp_path, caplog):
    LlavaConfig().save_pretrained(tmp_path)
    with caplog.at_level("INFO", "finer1_lite"):
        assert families.check_family(tmp_path) == "llava"
    assert "is a llava, none of the families tried here: its self-test decides" in caplog.text


def test_the_plan_refuses_what_the_lab_refuses_in_the_same_words(tmp_path):
    CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError) as lab:
        models.load_student(tmp_path, TINY)
    with pytest.raises(ValueError) as planned:
        plan.memory_plan(TINY.with_(student=str(tmp_path)))
    assert str(lab.value) == str(planned.value)
    assert f"{tmp_path} is a clip: choose a Qwen2-VL" in str(lab.value)


@pytest.mark.parametrize("name", OTHERS)
def test_the_plan_counts_the_student_itself(name, tmp_path, birds):
    folder = save(tiny(name), tmp_path)
    preset = TINY.with_(student=str(folder), pixels=96 * 96)
    student = models.add_adapter(models.load_student(folder, preset), preset, 0)
    load = plan.memory_plan(preset, dtype=torch.float32).load
    here = list(student.model.parameters())
    assert sum(load.sizes.weights.values()) + load.sizes.adapter == sum(p.nbytes for p in here)
    tower = families.tower_of(generation.core_of(student.model))
    assert load.sizes.weights["vision tower"] == sum(p.nbytes for p in tower.parameters())
    batch = generation.encode_prompts(
        student.model, student.processor, ["?"], [birds.test[0].image()]
    )
    counts = {"gemma4": (70, 64)}  # the fewest at most; what makes a square is less
    shown = len(batch.image_features[0])
    assert (load.visual, shown) == counts.get(name, (shown, shown))


@pytest.mark.parametrize("kind", ["think", "nothink"])
def test_a_template_that_writes_a_thought_ahead_is_replaced(kind, tmp_path, caplog):
    """Behind a closed thought the chain that is trained on could not stand.

    Up to there ours writes what Qwen3.5's own does, as TRL ships it.
    """
    folder = save(tiny("qwen3_5"), tmp_path)
    own = resources.files("trl") / "chat_templates" / f"qwen3_5_{kind}.jinja"
    (folder / "chat_template.jinja").write_text(own.read_text("utf-8"), "utf-8")
    with caplog.at_level("INFO", "finer1_lite"):
        processor = models.load_student(folder, TINY).processor
    assert "a plain chat template" in caplog.text
    chat = dict(tokenize=False, add_generation_prompt=True)
    ours = processor.apply_chat_template(prompts.messages("?"), **chat)
    theirs = processor.apply_chat_template(
        prompts.messages("?"), chat_template=own.read_text("utf-8"), **chat
    )
    assert theirs.startswith(f"{ours}<think>")
