"""Answers and their log-probabilities, against plain transformers."""

from contextlib import nullcontext

import pytest
import tiny_tapo
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from PIL import Image
from prompted import SIZES, asked, plain_inputs, sample

from finer1_lite import generation, logprobs, models, prompts
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.runtime.checkpoints import NotFinite
from finer1_lite.students import lab_student


class FixedHead(torch.nn.Module):
    """Gives every token the same chances, whatever came before: {id: probability}."""

    def __init__(self, chances: dict[int, float], size: int):
        super().__init__()
        self.logits = torch.full((size,), -torch.inf)
        for token, share in chances.items():
            self.logits[token] = torch.tensor(share).log()

    def forward(self, hidden):
        return self.logits.repeat(*hidden.shape[:-1], 1)


def with_head(student: Student, chances: dict[int, float]) -> Student:
    student.model.lm_head = FixedHead(chances, len(student.processor.tokenizer))
    return student


def encode(student, birds, count=4):
    return generation.encode_prompts(student.model, student.processor, *asked(birds, count))


# --- sampling ------------------------------------------------------------------------


def test_greedy_answers_are_those_of_transformers(student, birds):
    questions, pictures = asked(birds, 4)
    inputs = plain_inputs(student, questions, pictures)
    length = inputs["input_ids"].shape[1]
    theirs = student.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=20,
        use_cache=True,
        suppress_tokens=generation.suppress_tokens(student.processor),
    )[:, length:]
    batch = generation.encode_prompts(student.model, student.processor, questions, pictures)
    ours = generation.generate(student.model, student.processor, batch, max_new_tokens=20)
    assert torch.equal(ours.completion_ids, theirs)
    assert len({tuple(row) for row in ours.completion_ids.tolist()}) > 1  # the pictures matter


def test_words_that_are_marks_of_the_tokenizer_are_refused(student, birds):
    images = [birds.test[0].image()] * 2
    asked = ["Which bird?", "<|vision_start|><|image_pad|><|vision_end|>Which bird?"]
    with pytest.raises(ValueError, match=r"holds <\|vision_start\|>, <\|image_pad\|>"):
        generation.encode_prompts(student.model, student.processor, asked, images)


def test_text_alone_is_answered_as_transformers_do(student):
    questions = [prompts.LOOKS.format(name="talen finch"), "A bird has wing barred. What is it?"]
    texts = [
        student.processor.apply_chat_template(
            prompts.messages(q, with_image=False), add_generation_prompt=True, tokenize=False
        )
        for q in questions
    ]
    inputs = student.processor(text=texts, padding=True, return_tensors="pt")
    theirs = student.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=12,
        use_cache=True,
        suppress_tokens=generation.suppress_tokens(student.processor),
    )[:, inputs["input_ids"].shape[1] :]
    batch = generation.encode_prompts(student.model, student.processor, questions, None)
    ours = generation.generate(student.model, student.processor, batch, max_new_tokens=12)
    assert torch.equal(ours.completion_ids, theirs)


def test_copies_of_a_prompt_stand_together(student, birds):
    batch = encode(student, birds, 3)
    one = sample(student, batch, num_generations=1, temperature=0.0)
    three = sample(student, batch, num_generations=3, temperature=0.0)
    assert torch.equal(three.completion_ids, one.completion_ids.repeat_interleave(3, 0))
    assert three.completions == [text for text in one.completions for _ in range(3)]
    assert len(set(one.completions)) > 1


def test_prompts_may_be_answered_each_its_own_number_of_times(student, birds):
    batch = encode(student, birds, 3)
    one = sample(student, batch, num_generations=1, temperature=0.0)
    some = sample(student, batch, num_generations=[2, 0, 3], temperature=0.0)
    assert some.completions == [one.completions[p] for p in (0, 0, 2, 2, 2)]
    drawn = sample(student, batch, num_generations=[2, 2, 2])
    assert torch.equal(
        drawn.completion_ids, sample(student, batch, num_generations=2).completion_ids
    )


def test_prompts_encoded_apart_are_answered_as_if_together(student, birds):
    """Batches of different lengths join with padding; rows come out as they went in."""
    questions, pictures = asked(birds, 4)
    together = generation.encode_prompts(student.model, student.processor, questions, pictures)
    parts = [
        generation.encode_prompts(student.model, student.processor, questions[a:b], pictures[a:b])
        for a, b in ((0, 1), (1, 3), (3, 4))
    ]
    assert len({part.input_ids.shape[1] for part in parts}) > 1
    joined = generation.join(parts)
    assert torch.equal(joined.attention_mask, together.attention_mask) and torch.equal(
        joined.mm_token_type_ids, together.mm_token_type_ids
    )
    expected = sample(student, together, num_generations=1, temperature=0.0)
    assert (
        sample(student, joined, num_generations=1, temperature=0.0).completions
        == expected.completions
    )
    turned = sample(student, joined.rows([3, 1]), num_generations=1, temperature=0.0)
    assert turned.completions == [expected.completions[3], expected.completions[1]]
    with torch.no_grad():
        scores = [
            logprobs.log_probs(
                student.model, b, expected.completion_ids, expected.completion_mask, range(4)
            )
            for b in (joined, together)
        ]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-5)


def test_the_same_generator_seed_gives_the_same_answers(student, birds):
    batch = encode(student, birds)
    first = sample(student, batch, seed=5)
    torch.manual_seed(123)  # the global generator plays no part
    assert torch.equal(sample(student, batch, seed=5).completion_ids, first.completion_ids)
    assert not torch.equal(sample(student, batch, seed=6).completion_ids, first.completion_ids)
    assert len(set(first.completions)) == 8  # copies are drawn apart


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", [*lab_student.VISION, "<|endoftext|>"])
def test_a_token_that_cannot_be_scored_is_never_sampled(fresh, birds, name, temperature):
    """A picture token without a picture stops the next forward pass; a pad token would be
    masked in the middle of an answer."""
    ids = fresh.processor.tokenizer.convert_tokens_to_ids
    student = with_head(fresh, {ids(name): 0.99, ids("a"): 0.01})
    out = sample(student, encode(student, birds, 2), max_new_tokens=4, temperature=temperature)
    assert (out.completion_ids == ids("a")).all()


def test_top_p_keeps_the_token_that_crosses_it(fresh, birds):
    tokens = fresh.processor.tokenizer.convert_tokens_to_ids(["a", "b", "c", "d"])
    student = with_head(fresh, dict(zip(tokens, (0.4, 0.3, 0.2, 0.1), strict=True)))
    batch = encode(student, birds, 1)
    for top_p, kept in ((0.3, 1), (0.5, 2), (0.75, 3), (0.95, 4), (1.0, 4)):
        out = sample(student, batch, num_generations=300, max_new_tokens=1, top_p=top_p)
        assert set(out.completion_ids.flatten().tolist()) == set(tokens[:kept]), top_p


def test_temperature_sharpens_the_draw(fresh, birds):
    tokens = fresh.processor.tokenizer.convert_tokens_to_ids(["a", "b"])
    student = with_head(fresh, dict(zip(tokens, (0.6, 0.4), strict=True)))
    batch = encode(student, birds, 1)
    shares = []
    for temperature in (0.25, 1.0, 4.0):
        out = sample(
            student, batch, num_generations=1000, max_new_tokens=1, temperature=temperature
        )
        shares.append((out.completion_ids == tokens[0]).float().mean().item())
    powers = [0.6 ** (1 / t) / (0.6 ** (1 / t) + 0.4 ** (1 / t)) for t in (0.25, 1.0, 4.0)]
    assert shares == pytest.approx(powers, abs=0.05)


def test_answers_end_with_the_end_of_turn_or_are_cut(fresh, birds):
    tok = fresh.processor.tokenizer
    word = tok.convert_tokens_to_ids("a")
    student = with_head(fresh, {tok.eos_token_id: 0.25, word: 0.75})
    out = sample(student, encode(student, birds, 2), num_generations=16, max_new_tokens=5)
    assert 0 < out.truncated.sum() < 32
    for tokens, mask, text, cut in zip(
        out.completion_ids, out.completion_mask.bool(), out.completions, out.truncated, strict=True
    ):
        said = tokens[mask].tolist()
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)  # no hole
        assert said == ([word] * 5 if cut else [word] * (len(said) - 1) + [tok.eos_token_id])
        assert text == "a" * (len(said) - (not cut))
        assert (tokens[~mask] == tok.pad_token_id).all()
    assert out.lengths.tolist() == out.completion_mask.sum(-1).tolist()


def test_generation_stops_when_the_last_answer_has_ended(fresh, birds, monkeypatch):
    """Answers end one by one; those that have must not be led on to the length limit."""
    tok = fresh.processor.tokenizer
    student = with_head(fresh, {tok.eos_token_id: 0.1, tok.convert_tokens_to_ids("a"): 0.9})
    batch, sizes = encode(student, birds, 2), []
    language = student.model.model.language_model
    forward = language.forward
    monkeypatch.setattr(
        language,
        "forward",
        lambda *a, **k: sizes.append(len(k["inputs_embeds"])) or forward(*a, **k),
    )
    out = sample(student, batch, num_generations=16, max_new_tokens=200)
    assert not out.truncated.any()
    assert len(sizes) == int(out.lengths.max())  # the prompt, then each token but the last
    for t, size in enumerate(sizes[1:], 1):  # rows that ended are dropped on the way
        assert 0.7 * size <= (out.lengths > t).sum() <= size


# --- log-probabilities ---------------------------------------------------------------


def test_log_probs_of_a_padded_batch_are_those_of_single_rows(student, birds):
    questions, pictures = asked(birds, 4)
    batch = generation.encode_prompts(student.model, student.processor, questions, pictures)
    out = sample(student, batch)
    out.completion_mask[3, 5:] = 0  # an answer that ends early
    which = [p for p in range(4) for _ in range(2)]
    with torch.no_grad():
        together = logprobs.log_probs(
            student.model, batch, out.completion_ids, out.completion_mask, which
        )
        for row, p in enumerate(which):
            one = generation.encode_prompts(
                student.model, student.processor, questions[p : p + 1], pictures[p : p + 1]
            )
            length = int(out.completion_mask[row].sum())
            tokens, mask = (
                x[row : row + 1, :length] for x in (out.completion_ids, out.completion_mask)
            )
            alone = logprobs.log_probs(student.model, one, tokens, mask, [0])
            torch.testing.assert_close(together[row, :length], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_a_plain_forward_pass(student, birds, temperature):
    questions, pictures = asked(birds, 4)
    batch = generation.encode_prompts(student.model, student.processor, questions, pictures)
    out = sample(student, batch, num_generations=1)
    inputs = plain_inputs(student, questions, pictures)
    length = out.completion_ids.shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], out.completion_ids], 1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], out.completion_mask], 1)
    types = inputs["mm_token_type_ids"]
    inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(out.completion_ids)], 1)
    with torch.no_grad():
        logits = student.model(**inputs).logits[:, -length - 1 : -1] / temperature
        ours = logprobs.log_probs(
            student.model, batch, out.completion_ids, out.completion_mask, range(4), temperature
        )
    theirs = logits.log_softmax(-1).gather(-1, out.completion_ids[..., None])[..., 0]
    torch.testing.assert_close(
        ours * out.completion_mask, theirs * out.completion_mask, rtol=0, atol=1e-5
    )


def test_answers_are_scored_with_the_chances_that_they_were_sampled_with(student, birds):
    """Sampling goes token by token through a cache, scoring in one pass: on-policy training
    stands on their being the same."""
    batch, steps = encode(student, birds), []
    hook = student.model.lm_head.register_forward_hook(
        lambda module, args, logits: steps.append(logits.log_softmax(-1))
    )
    try:
        out = sample(student, batch)
    finally:
        hook.remove()
    drawn = torch.stack(
        steps[: out.completion_ids.shape[1]], 1
    )  # (B, T, V): no row has ended early
    drawn = drawn.gather(-1, out.completion_ids[..., None])[..., 0]
    with torch.no_grad():
        which = [p for p in range(4) for _ in range(2)]
        scores = logprobs.log_probs(
            student.model, batch, out.completion_ids, out.completion_mask, which
        )
    assert out.truncated.all()
    torch.testing.assert_close(scores, drawn, rtol=0, atol=1e-5)


def test_an_answer_can_be_scored_on_another_picture(student, birds):
    """One answer, three pictures: what TAPO does with anchor, positive and negative."""
    question = prompts.question("think", "bird")
    pictures = [p.image() for p in birds.test[:3]]
    batch = generation.encode_prompts(student.model, student.processor, [question] * 3, pictures)
    out = sample(student, batch, num_generations=1)
    same = [out.completion_ids[0].expand(3, -1), out.completion_mask[0].expand(3, -1)]
    with torch.no_grad():
        scores = logprobs.log_probs(student.model, batch, *same, [0, 1, 2])
        turned = logprobs.log_probs(student.model, batch, *same, [2, 1, 0])
    torch.testing.assert_close(turned, scores.flip(0), rtol=0, atol=1e-5)
    assert (scores[0] - scores[1]).abs().max() > 1e-4


def test_adapters_answer_and_score(fresh, birds):
    """Through the wrapper as in the merged weights: no half bypasses the adapters."""
    batch = encode(fresh, birds, 2)
    before = sample(fresh, batch, num_generations=1)
    adapted = models.add_adapter(fresh, Preset.lab(), seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    after, which = sample(adapted, batch, num_generations=1), [0, 1]
    assert after.completions != before.completions
    with torch.no_grad():
        scores = logprobs.log_probs(
            adapted.model, batch, after.completion_ids, after.completion_mask, which
        )
    merged = Student(adapted.model.merge_and_unload(), fresh.processor)
    assert sample(merged, batch, num_generations=1).completions == after.completions
    with torch.no_grad():
        again = logprobs.log_probs(
            merged.model, batch, after.completion_ids, after.completion_mask, which
        )
    torch.testing.assert_close(scores, again, rtol=0, atol=1e-4)


def scored(student, batch, out) -> torch.Tensor:
    """Of two completions a prompt, on that prompt."""
    which = torch.arange(len(out.completion_ids)) // 2
    ids, mask = out.completion_ids, out.completion_mask
    with torch.no_grad():
        return logprobs.log_probs(student.model, batch, ids, mask, which)


@pytest.fixture
def stirred(fresh) -> Student:
    """A student whose adapters say something."""
    adapted = models.add_adapter(fresh, Preset.lab(), seed=0)
    tiny_tapo.stir(adapted.model)
    return adapted


def test_completions_are_written_with_adapters_inside_the_weights(stirred, birds):
    """No adapter computes of its own; afterwards each is beside the very weights that it was."""
    layers = [m for m in stirred.model.modules() if isinstance(m, Linear)]
    before = [(m.weight, m.weight.data_ptr(), m.weight.clone()) for m in layers]
    batch, alone = encode(stirred, birds), []
    for layer in layers:
        layer.lora_A["default"].register_forward_hook(lambda *_: alone.append(_))
    out = sample(stirred, batch)
    assert layers and not alone and not any(m.merged for m in layers)
    for layer, (weight, place, numbers) in zip(layers, before, strict=True):
        assert layer.weight is weight and weight.data_ptr() == place
        assert torch.equal(weight, numbers)
    scored(stirred, batch, out)
    assert alone


def test_completions_are_scored_with_the_chances_of_merged_adapters(stirred, birds):
    """Sampling adds adapters to weights, scoring keeps them beside: the same policy."""
    batch = encode(stirred, birds)
    out = sample(stirred, batch)
    apart = scored(stirred, batch, out)
    with torch.no_grad(), generation.merged(stirred.model):
        inside = scored(stirred, batch, out)
    torch.testing.assert_close(inside, apart, rtol=0, atol=1e-5)
    with stirred.model.disable_adapter():
        assert (scored(stirred, batch, out) - apart).abs().max() > 0.1


def test_adapters_that_are_off_or_beside_16_bits_are_not_added(stirred, birds):
    batch = encode(stirred, birds, 2)
    with torch.no_grad(), stirred.model.disable_adapter(), generation.merged(stirred.model):
        assert not any(getattr(m, "merged", False) for m in stirred.model.modules())
        off = sample(stirred, batch)
    assert sample(stirred, batch).completions != off.completions
    plain = Student(stirred.model.unload(), stirred.processor)
    assert sample(plain, batch).completions == off.completions
    short = models.add_adapter(plain, Preset.lab(), seed=0).model.to(torch.bfloat16)
    with torch.no_grad(), generation.merged(short):
        assert not any(getattr(m, "merged", False) for m in short.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_beside_16_bits_have_16_bits_meanwhile(stirred, birds, dtype, monkeypatch):
    """They compute in these anyway: the same bits, without a cast of each at every token."""
    models.widen_adapter(stirred.model.to(dtype))
    adapters = [p for name, p in stirred.model.named_parameters() if ".lora_" in name]
    before = [(p.data_ptr(), p.detach().clone()) for p in adapters]
    batch = encode(stirred, birds)
    out = sample(stirred, batch)
    with torch.no_grad(), generation.merged(stirred.model):
        assert {p.dtype for p in adapters} == {dtype}
        inside = scored(stirred, batch, out)
    monkeypatch.setattr(generation, "merged", lambda model: nullcontext())
    assert torch.equal(sample(stirred, batch).completion_ids, out.completion_ids)
    for weight, (place, numbers) in zip(adapters, before, strict=True):
        assert weight.data_ptr() == place and torch.equal(weight, numbers)
    assert numbers.dtype == torch.float32 and torch.equal(inside, scored(stirred, batch, out))


def test_a_variant_of_lora_beside_16_bits_is_left_alone(fresh):
    """DoRA computes a norm of its adapters outside the products that autocast sees."""
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    wrapped = get_peft_model(fresh.model, config).to(torch.bfloat16)
    models.widen_adapter(wrapped)
    with torch.no_grad(), generation.merged(wrapped):
        kinds = {p.dtype for name, p in wrapped.named_parameters() if "lora_" in name}
    assert kinds == {torch.float32}


@pytest.mark.parametrize("most", [0, 2**30])
@pytest.mark.parametrize("learns", [False, True])
def test_no_copy_is_made_of_a_large_model_or_where_adapters_learn(
    stirred, monkeypatch, most, learns
):
    monkeypatch.setattr(generation, "MERGED", most)
    with torch.set_grad_enabled(learns), generation.merged(stirred.model):
        found = any(getattr(m, "merged", False) for m in stirred.model.modules())
    assert found == (most > 0 and not learns)


def test_an_adapter_with_a_bias_computes_beside(fresh, birds):
    """Added to a base without one it would fail, and to another's it would stay there."""
    config = LoraConfig(r=2, target_modules=["q_proj", "o_proj"], lora_bias=True)
    wrapped = get_peft_model(fresh.model, config)
    tiny_tapo.stir(wrapped)
    student, batch = Student(wrapped, fresh.processor), encode(fresh, birds)
    before = {name: p.clone() for name, p in wrapped.named_parameters()}
    out = sample(student, batch)
    assert all(torch.equal(p, before[name]) for name, p in wrapped.named_parameters())
    with wrapped.disable_adapter():
        assert sample(student, batch).completions != out.completions


def test_adapters_are_beside_their_weights_again_where_writing_failed(stirred, birds):
    batch = encode(stirred, birds, 2)
    before = sample(stirred, batch)

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(stirred, batch, on_token=killed)
    assert not any(getattr(m, "merged", False) for m in stirred.model.modules())
    assert torch.equal(sample(stirred, batch).completion_ids, before.completion_ids)


@pytest.mark.parametrize("longest", [5, 1, 0])
def test_no_token_is_read_that_all_completions_only_pad(student, birds, longest, monkeypatch):
    """A part of a batch stops at its own longest completion; what comes back is as wide."""
    batch = encode(student, birds, 2)
    out = sample(student, batch)
    out.completion_mask[:, longest:] = 0
    read, real = [], logprobs.decode

    def spy(core, **inputs):
        read.append(inputs["inputs_embeds"].shape[1])
        return real(core, **inputs)

    monkeypatch.setattr(logprobs, "decode", spy)
    found = scored(student, batch, out)
    assert found.shape == out.completion_ids.shape and not found[:, longest:].any()
    assert bool(found[:, :longest].all()) and sum(read) == max(longest - 1, 0)


# --- pictures ------------------------------------------------------------------------


def test_a_picture_has_as_many_tokens_as_features(student, birds):
    questions, pictures = asked(birds, len(SIZES))
    batch = generation.encode_prompts(student.model, student.processor, questions, pictures)
    counts = batch.mm_token_type_ids.sum(-1).tolist()
    assert counts == [len(f) for f in batch.image_features]
    assert counts == [9, 8, 7, 1]  # 28 x 28 pixels each, in a budget of 84 x 84


def test_tokens_of_another_picture_are_refused(student, birds):
    """The released trainer reuses the anchor's token ids for a picture of another size."""

    def stale(text, images, **settings):
        first = student.processor(text=text, images=images, **settings)
        small = [[image.resize((28, 56))] for [image] in images]
        other = student.processor(text=text, images=small, **settings)
        first.update({key: other[key] for key in ("pixel_values", "image_grid_thw")})
        return first

    stale.apply_chat_template = student.processor.apply_chat_template
    picture = [birds.test[0].image()]
    with pytest.raises(ValueError, match="9.* image tokens but .*2.* image features"):
        generation.encode_prompts(student.model, stale, ["Caption."], picture)


def test_two_mismatches_that_add_up_are_refused_too(student, birds):
    """Pictures in another order than their questions: the totals agree."""

    def swapped(text, images, **settings):
        right = student.processor(text=text, images=images, **settings)
        wrong = student.processor(text=text, images=images[::-1], **settings)
        right.update({key: wrong[key] for key in ("pixel_values", "image_grid_thw")})
        return right

    swapped.apply_chat_template = student.processor.apply_chat_template
    pictures = [birds.test[0].image().resize(size) for size in SIZES[2:]]
    with pytest.raises(ValueError, match="image tokens but"):
        generation.encode_prompts(student.model, swapped, ["a", "b"], pictures)


def test_the_vision_tower_sees_each_picture_once(student, birds):
    """However many answers are sampled and scored."""
    seen = []
    tower = student.model.model.visual
    hook = tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    try:
        batch = encode(student, birds, 3)
        out = sample(student, batch, num_generations=4)
        which = [p for p in range(3) for _ in range(4)]
        with torch.no_grad():
            logprobs.log_probs(student.model, batch, out.completion_ids, out.completion_mask, which)
            logprobs.log_probs(
                student.model, batch, out.completion_ids, out.completion_mask, which[::-1]
            )
    finally:
        hook.remove()
    assert seen == [3]


def test_pictures_of_any_mode_and_shape_are_encoded(student):
    for mode, size in (("L", (90, 30)), ("RGB", (1000, 40))):
        picture = [Image.new(mode, size, 128).convert("RGB")]
        batch = generation.encode_prompts(student.model, student.processor, ["x"], picture)
        assert torch.isfinite(batch.image_features[0]).all()


# --- random numbers of one's own -----------------------------------------------------


def test_with_a_generator_each_answers_do_not_depend_on_what_is_answered_beside_them(
    student, birds
):
    def dice(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    batch = encode(student, birds)
    settings = dict(num_generations=2, max_new_tokens=8, temperature=1.0)

    def said(rows, *seeds):
        return generation.generate(
            student.model, student.processor, batch.rows(rows), generator=dice(*seeds), **settings
        ).completions

    together = said(range(4), 0, 1, 2, 3)
    assert together == [t for g in range(4) for t in said([g], g)]
    assert said([0, 1], 3, 1)[2:] == together[2:4] and said([0, 1], 3, 1)[:2] != together[:2]


@pytest.mark.parametrize("chance, token", [(0.0, 1), (0.49, 1), (0.51, 3), (0.9999999, 3)])
def test_a_number_falls_on_a_token_and_never_on_one_without_chances(chance, token):
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    assert generation.pick_tokens(logits, 1.0, 1.0, torch.tensor([chance])).tolist() == [token]
    assert generation.pick_tokens(logits, 1.0, 0.4, torch.tensor([chance])).tolist() in ([1], [3])


# --- ends, and numbers that are none ---------------------------------------------------------


@pytest.mark.parametrize("saved", ["b", ["a", "b"], ["b", "<|endoftext|>"]])
def test_every_end_of_the_generation_config_ends_a_completion(fresh, birds, saved):
    ids = fresh.processor.tokenizer.convert_tokens_to_ids
    student = with_head(fresh, {ids("b"): 0.9, ids("c"): 0.1})
    student.model.generation_config.eos_token_id = ids(saved)
    out = sample(student, encode(student, birds, 2), max_new_tokens=4, temperature=0.0)
    assert not out.truncated.any()
    assert set(out.lengths.tolist()) == {1} and set(out.completions) == {""}
    assert ids("<|endoftext|>") not in generation.end_tokens(student.model, student.processor)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_first_logit_that_is_not_finite_stops(fresh, birds, value, temperature):
    student = with_head(fresh, {7: 1.0})
    student.model.lm_head.logits[9] = value
    with pytest.raises(NotFinite, match="nan or inf in the logits of token 1"):
        sample(student, encode(student, birds, 2), max_new_tokens=4, temperature=temperature)
