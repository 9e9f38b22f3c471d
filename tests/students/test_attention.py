"""One token's attention without repeated keys: the same texts, less time."""

import time
from types import SimpleNamespace

import pytest
import torch
from families import save
from tiny_tapo import TINY
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from finer1_lite import generation, models, prompts
from finer1_lite.generation import Student
from finer1_lite.students import attention


def drawn(heads: int, groups: int, length: int, keys: int = 9):
    """query, key, value, and a mask that hides the first keys of the second row."""
    torch.manual_seed(0)
    query = torch.randn(2, heads, length, 8)
    key, value = torch.randn(2, groups, keys, 8), torch.randn(2, groups, keys, 8)
    mask = torch.ones(2, 1, length, keys, dtype=torch.bool)
    mask[1, :, :, :4] = False
    return query, key, value, mask


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, None])
@pytest.mark.parametrize(
    ("heads", "groups", "length"), [(6, 2, 1), (4, 1, 1), (3, 3, 1), (6, 2, 5)]
)
def test_it_is_transformers_own_attention(heads, groups, length, kind):
    """Its values and gradients, whatever the mask is made of."""
    module = SimpleNamespace(num_key_value_groups=heads // groups, is_causal=True)
    *tensors, seen = drawn(heads, groups, length)
    mask = {torch.bool: seen, torch.float32: torch.zeros(seen.shape).masked_fill(~seen, -1e9)}
    for scaling in (None, 0.2):
        found = []
        for attend in (attention.grouped, sdpa_attention_forward):
            given = [x.clone().requires_grad_() for x in tensors]
            out, _ = attend(module, *given, mask.get(kind), scaling=scaling)
            assert out.shape == (2, length, heads, 8)
            found.append([out, *torch.autograd.grad(out.square().sum(), given)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_keys_are_not_repeated_for_one_token(monkeypatch):
    """The kernel sees the cache as it lies there: three heads of a group read one memory."""
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **settings):
        seen.append((query.shape, key.data_ptr(), value.data_ptr()))
        return real(query, key, value, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    query, key, value, mask = drawn(6, 2, 1)
    attention.grouped(SimpleNamespace(num_key_value_groups=3), query, key, value, mask)
    assert seen == [((2, 2, 3, 8), key.data_ptr(), value.data_ptr())]


@pytest.fixture(scope="module")
def loaded(student, tmp_path_factory) -> Student:
    return models.load_student(save(student, tmp_path_factory.mktemp("student")), TINY)


def test_a_loaded_students_words_attend_so_and_what_is_saved_does_not_say_it(loaded):
    core = generation.core_of(loaded.model)
    assert core.config.get_text_config()._attn_implementation == attention.NAME
    assert core.config.vision_config._attn_implementation == "sdpa"
    assert attention.NAME not in core.config.to_json_string()


def decoded(student, birds, options, **settings):
    """Completions about eight pictures, offered so many names each, and processor seconds."""
    asks = [prompts.question("think", "bird", birds.names[:n] or None) for n in options]
    pictures = [p.image() for p in birds.test[: len(asks)]]
    batch = generation.encode_prompts(student.model, student.processor, asks, pictures)
    begun = time.process_time()
    out = generation.generate(
        student.model,
        student.processor,
        batch,
        num_generations=8,
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
        **settings,
    )
    return out.completions, time.process_time() - begun


def test_prompts_of_unequal_length_are_completed_as_by_transformers_attention(loaded, birds):
    ours, _ = decoded(loaded, birds, [0, 4, 2, 0], max_new_tokens=16)
    loaded.model.set_attn_implementation("sdpa")
    theirs, _ = decoded(loaded, birds, [0, 4, 2, 0], max_new_tokens=16)
    attention.group_heads(loaded.model)
    assert ours == theirs and len(set(ours)) > 1


@pytest.mark.slow(minutes=1)
def test_unequal_prompts_take_a_fifth_more_time_than_equal_ones_at_most(loaded, birds):
    """Rounds taken in turn, the best of each: another process may slow any one down."""
    spent = {4: [], 0: []}  # options of every second question
    for _ in range(4):
        for options in spent:
            _, seconds = decoded(loaded, birds, [4, options] * 4, max_new_tokens=64)
            spent[options].append(seconds)
    assert min(spent[0]) <= 1.2 * min(spent[4])
