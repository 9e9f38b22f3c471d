"""Random students of known sizes: the published numbers, and what `from_pretrained` makes."""

import itertools

import pytest
import torch
from sized import SIZES, adapted, answers, preset_of, prompts_of
from tiny_tapo import Stage, weights

from finer1_lite import generation, logprobs, models
from finer1_lite.presets import Preset
from finer1_lite.students import random_weights
from finer1_lite.students.families import tower_of
from finer1_lite.tools import plan

bnb = pytest.importorskip("bitsandbytes")
TINY = "Qwen2.5-VL-tiny"


@pytest.fixture(scope="module")
def tiny():
    return adapted(preset_of(TINY))


@pytest.mark.parametrize(
    ("name", "parameters", "vision"),
    [
        ("Qwen2.5-VL-3B", 3_754_622_976, 668_684_288),
        ("Qwen2.5-VL-7B", 8_292_166_656, 676_550_144),
        ("SmolVLM-256M", 256_484_928, 86_433_024),
    ],
)
def test_parameters_are_those_of_the_published_checkpoints(name, parameters, vision):
    """Totals that the hub shows for -Instruct: 3.75 and 8.29 billion, 256 million."""
    model = random_weights.on_meta(random_weights.known_config(name), torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for p in tower_of(model).parameters()) == vision
    assert {p.device.type for p in model.parameters()} == {"meta"}
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == (name == "Qwen2.5-VL-3B")


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_made_as_from_pretrained_makes_it(tmp_path, monkeypatch, quantize, dtype):
    """Classes, shapes and dtypes of every weight and buffer, against a saved checkpoint."""
    monkeypatch.setattr(models, "choose_dtype", lambda device: dtype)
    preset = preset_of(TINY, quantize=quantize)
    ours = models.load_student(preset.student, preset)
    plain = random_weights.load(TINY, dtype)
    plain.save_pretrained(tmp_path)
    ours.processor.save_pretrained(tmp_path)
    theirs = models.load_student(tmp_path, preset)

    def described(model):
        tensors = [*model.named_parameters(), *model.named_buffers()]
        found = {n: (type(t).__name__, t.dtype, t.shape, t.requires_grad) for n, t in tensors}
        return found, {n: type(m).__name__ for n, m in model.named_modules()}

    (ours_t, ours_m), (theirs_t, theirs_m) = described(ours.model), described(theirs.model)
    assert ours_m == theirs_m and ours_t.keys() == theirs_t.keys()
    for name, seen in theirs_t.items():
        assert ours_t[name][:3] == seen[:3], name
    assert ours.model.lm_head.weight is ours.model.get_input_embeddings().weight


def test_weights_have_transformers_initial_spread_and_are_the_same_again():
    """0.02 in every matrix, 4-bit ones too; norms 1; the positions' frequencies are real."""
    one, two = (models.load_student(preset_of(TINY).student, preset_of(TINY)) for _ in "12")
    for name, module in one.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert weight.std() == pytest.approx(0.02, rel=0.05), name
        elif "norm" in name.rpartition(".")[2]:
            assert (module.weight == 1).all(), name
    frequencies = one.model.model.language_model.rotary_emb.inv_freq
    assert frequencies[0] == 1 and (frequencies.diff() < 0).all()
    pairs = zip(one.model.named_parameters(), two.model.named_parameters(), strict=True)
    for (name, left), (_, right) in pairs:
        assert torch.equal(left, right), name


def test_no_layer_is_materialised_before_its_turn(monkeypatch):
    """While a 4-bit layer is drawn, all later ones are still on the meta device."""
    seen, real = [], random_weights._fill_4bit

    def spy(module, *args):
        seen.append(
            sum(p.numel() * p.element_size() for p in found[0].parameters() if not p.is_meta)
        )
        real(module, *args)

    found, make = [], random_weights.on_meta
    monkeypatch.setattr(random_weights, "on_meta", lambda *a: found.append(make(*a)) or found[0])
    monkeypatch.setattr(random_weights, "_fill_4bit", spy)
    preset = preset_of(TINY)
    models.load_student(preset.student, preset)
    assert len(seen) == 28 and seen == sorted(seen)
    packed = [b - a for a, b in itertools.pairwise(seen)]
    assert max(packed) < 128 * 384 * 4  # never a whole layer in float32


def test_special_tokens_stand_where_qwen_has_them(tiny):
    tok, config = tiny.processor.tokenizer, random_weights.known_config("Qwen2.5-VL-3B")
    for word, place in random_weights.TOKENS.items():
        assert tok.convert_tokens_to_ids(word) == place and tok.decode([place]) == word
    assert (tok.eos_token_id, tok.pad_token_id) == (151645, 151643)
    assert config.image_token_id == random_weights.TOKENS["<|image_pad|>"]
    assert config.video_token_id == random_weights.TOKENS["<|video_pad|>"]
    ids = tok.encode("<think> a bird </think>")
    assert tok.decode(ids) == "<think> a bird </think>" and max(ids) < 151643


@pytest.fixture
def smol(monkeypatch):
    """SmolVLM's vocabulary, pictures and heads at small widths, by the name of the true size."""
    numbers = ((49_280, 72, 2, 9, 3, 96), False, (2, 48, 4, 96, ()))
    monkeypatch.setitem(random_weights.SIZES, "SmolVLM-256M", numbers)
    monkeypatch.setattr(models, "PASSED", set())
    return Preset.laptop().with_(
        student="random:SmolVLM-256M",
        max_new_tokens=6,
        lora_rank=4,
        tapo__groups=1,
        sft__micro_batch=1,
    )


def test_a_picture_stands_in_64_tokens_where_smolvlm_has_them(smol):
    student = models.load_student(smol.student, smol)
    tok = student.processor.tokenizer
    for word, place in random_weights.SMOL_TOKENS.items():
        assert tok.convert_tokens_to_ids(word) == place
    assert student.model.config.image_token_id == 49190 and tok.eos_token_id == 49279
    batch = prompts_of(student, 2)
    assert (batch.input_ids == 49190).sum(1).tolist() == [64, 64]
    assert [len(features) for features in batch.image_features] == [64, 64]
    assert models.PASSED == {smol.student}  # the self-test of every other family than Qwen's


def test_a_laptops_preset_trains_every_adapter_of_stage_two(smol, birds, tmp_path, spread):
    student = adapted(smol)
    before = weights(student.model)
    Stage(student, birds, tmp_path, smol, steps=2).train()
    for name, weight in weights(student.model).items():
        assert not torch.equal(weight, before[name]), name


def test_the_processor_is_saved_and_read_again(tiny, tmp_path):
    tiny.processor.save_pretrained(tmp_path)
    again = models.load_processor(tmp_path, 64 * 28 * 28)
    text = "Describe the <|image_pad|> bird."
    assert again.tokenizer.encode(text) == tiny.processor.tokenizer.encode(text)


def test_it_answers_and_scores_over_the_whole_vocabulary(tiny):
    batch = prompts_of(tiny, 2)
    out = generation.generate(
        tiny.model, tiny.processor, batch, num_generations=4, max_new_tokens=16, temperature=1.0
    )
    assert out.completion_ids.max() > 100_000 and len(out.completions) == 8
    tokens, mask = answers(4, 6)
    scores = logprobs.log_probs(tiny.model, batch, tokens, mask, [0, 0, 1, 1])
    assert (scores[:, :5] + 11.9).abs().max() < 2  # log 151,936


def test_a_tapo_step_trains_every_adapter(birds, tmp_path, spread):
    preset = preset_of(
        TINY, max_new_tokens=6, tapo__groups=1, tapo__anchor_rollouts=2, tapo__positive_rollouts=2
    )
    student = adapted(preset)
    before = weights(student.model)
    Stage(student, birds, tmp_path, preset, steps=2).train()
    for name, weight in weights(student.model).items():
        assert not torch.equal(weight, before[name]), name


@pytest.mark.parametrize(
    "name, width",
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", 2048),
        ("random:Qwen2.5-VL-3B", 2048),
        (Preset.laptop().student, 576),
    ],
)
def test_known_sizes_ask_no_hub(name, width, monkeypatch):
    def asked(*_, **__):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(random_weights.AutoConfig, "from_pretrained", asked)
    assert random_weights.find_config(name).get_text_config().hidden_size == width


def test_a_folder_has_its_own_configuration():
    from finer1_lite.students.lab_student import asset_folder

    assert random_weights.find_config(asset_folder(0)).get_text_config().hidden_size == 192


def test_unknown_names_are_refused_with_what_is_known(tmp_path):
    with pytest.raises(ValueError, match="no numbers for 'Qwen2.5-VL-9B': known are Qwen2.5-VL-3B"):
        models.load_student("random:Qwen2.5-VL-9B", Preset.lab())
    with pytest.raises(ValueError, match="no configuration of '.*nowhere'.*known size.*hub"):
        random_weights.find_config(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ValueError, match="is a qwen2: choose a Qwen2-VL"):
        plan.memory_plan(Preset.lab().with_(student=str(tmp_path)))


def test_the_sizes_of_these_tests_hide_none_of_the_package():
    assert not SIZES.keys() & random_weights.SIZES.keys()
