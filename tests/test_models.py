"""Loading: which models, where adapters sit, whose pixel budget, what the weights take."""

import json
from dataclasses import replace

import pytest
import torch
from families import FAMILIES, save, tiny
from prompted import asked, plain_inputs
from safetensors.torch import load_file, save_file
from tiny_tapo import TINY, Stage, stir, weights
from transformers import AutoModelForImageTextToText, CLIPConfig, LlamaConfig
from trl import SFTConfig

from finer1_lite import generation, logprobs, models, prompts
from finer1_lite.evals import job as jobs
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.sft import chain_rows, train_sft
from finer1_lite.students import tokens
from finer1_lite.tools.publish import merge

VISION = TINY.with_(lora_vision=True, sft__steps=2, sft__batch=2, sft__micro_batch=2)


# --- which models --------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_each_family_loads_from_a_folder(name, quantize, tmp_path, birds):
    student = tiny(name)
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes")
    loaded = models.load_student(save(student, tmp_path), TINY.with_(quantize=quantize))
    assert type(loaded.model) is type(student.model)
    small = [n for n, p in loaded.model.named_parameters() if p.dtype == torch.uint8]
    layers = student.model.config.text_config.num_hidden_layers
    assert len(small) == (7 * layers if quantize == "nf4" else 0)
    assert all("language_model" in n for n in small)
    adapted = models.add_adapter(loaded, TINY, seed=0)
    found = {n.split(".lora_")[0] for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert len(found) == 7 * layers and all("language_model" in n for n in found)
    batch = generation.encode_prompts(adapted.model, adapted.processor, *asked(birds, 2))
    assert generation.generate(
        adapted.model, adapted.processor, batch, max_new_tokens=3
    ).completions


@pytest.mark.parametrize(
    "config, says",
    [
        (LlamaConfig(), "is a llama: choose a Qwen2-VL, Qwen2.5-VL or"),
        (CLIPConfig(), "is a clip: choose a Qwen2-VL, Qwen2.5-VL or"),
        ({"model_type": "qwen3_vl_moe"}, "is a qwen3_vl_moe: choose .*dense"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}, "no model can be read"),
        ({}, "no model can be read"),
    ],
)
def test_other_models_are_refused_before_any_weight_is_read(config, says, tmp_path):
    config = config if isinstance(config, dict) else config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(ValueError, match=f"{tmp_path}.* {says}"):
        models.load_student(tmp_path, TINY)


def test_a_name_that_is_nothing_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no model can be read there .*safetensors"):
        models.load_student(tmp_path / "nowhere", TINY)


# --- what the weights take -----------------------------------------------------------------


def test_what_is_not_in_four_bits_keeps_its_dtype(tmp_path, monkeypatch):
    """Widening the vision tower and the embeddings would cost a 3B model 1.9 GB."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(models, "choose_dtype", lambda device: torch.bfloat16)
    nf4 = TINY.with_(quantize="nf4")
    student = models.load_student(save(tiny("qwen2_5_vl"), tmp_path), nf4)
    adapted = models.add_adapter(student, nf4, seed=0)
    dtypes = {}
    for name, weight in adapted.model.named_parameters():
        kind = "adapter" if "lora_" in name else "base"
        dtypes.setdefault(kind, set()).add(weight.dtype)
        assert weight.requires_grad == (kind == "adapter"), name
    assert dtypes == {"adapter": {torch.float32}, "base": {torch.bfloat16, torch.uint8}}


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_compute_in_float32_whatever_they_are_kept_in(name):
    """Why they need no widening: a state whose square overflows float16 is normed well."""
    norm = tiny(name).model.model.language_model.norm
    state = torch.randn(1, 64 if name != "qwen2_5_vl" else 192) * 3000
    exact, half = norm(state), norm.half()(state.half())
    torch.testing.assert_close(half.float(), exact, rtol=0.01, atol=0.01)


def test_stage_one_trains_float32_adapters_on_four_bits(tmp_path, birds, chains):
    """TRL turns them to bfloat16, in which a small step is no step and a T4 has no kernels."""
    pytest.importorskip("bitsandbytes")
    nf4 = VISION.with_(quantize="nf4", lora_vision=False)
    student = models.load_student(save(tiny("qwen2_5_vl"), tmp_path / "base"), nf4)
    adapted = train_sft(models.add_adapter(student, nf4, 0), chains, nf4, 0, tmp_path / "sft")
    assert {p.dtype for p in adapted.model.parameters() if p.requires_grad} == {torch.float32}


# --- vision adapters -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def chains(birds):
    few = replace(birds, train=birds.train[:4])
    return chain_rows(few, {p.id: "It is a <answer>wren</answer>." for p in few.train})


def seen(student, birds):
    """The adapted features of a picture, and log-probs by us and by the model itself."""
    questions, pictures = asked(birds, 2)
    batch = generation.encode_prompts(student.model, student.processor, questions, pictures)
    out = generation.generate(student.model, student.processor, batch, max_new_tokens=4)
    inputs = plain_inputs(student, questions, pictures)
    more = {
        "input_ids": out.completion_ids,
        "attention_mask": out.completion_mask,
        "mm_token_type_ids": torch.zeros_like(out.completion_ids),
    }
    inputs |= {k: torch.cat([inputs[k], v], 1) for k, v in more.items()}
    with torch.no_grad():
        ours = logprobs.log_probs(
            student.model, batch, out.completion_ids, out.completion_mask, [0, 1]
        )
        theirs = (
            student.model(**inputs).logits[:, -out.completion_ids.shape[1] - 1 : -1].log_softmax(-1)
        )
    theirs = theirs.gather(-1, out.completion_ids[..., None])[..., 0] * out.completion_mask
    return torch.cat(batch.image_features), ours, theirs


@pytest.mark.parametrize("name", FAMILIES)
def test_vision_adapters_learn_in_stage_one_and_rest_in_stage_two(
    name, birds, chains, tmp_path, spread
):
    base = save(tiny(name), tmp_path / "base")
    adapted = models.add_adapter(models.load_student(base, VISION), VISION, seed=0)
    before = weights(adapted.model)
    vision = [n for n in before if ".visual." in n and "lora_B" in n]
    config = adapted.model.config.vision_config
    assert len(vision) == config.depth * (5 if name == "qwen2_5_vl" else 4)
    plain = seen(adapted, birds)[0]
    train_sft(adapted, chains, VISION, 0, tmp_path / "sft")
    learnt = weights(adapted.model)
    assert all(not torch.equal(learnt[n], before[n]) for n in vision)

    student = models.load_adapter(models.load_student(base, VISION), tmp_path / "sft", True)
    features, ours, theirs = seen(student, birds)
    assert not torch.equal(features, plain)  # the adapters are seen through
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    models.prepare_for_stage_two(student, VISION)
    stage = Stage(student, birds, tmp_path / "tapo", VISION, steps=2)
    stage.train()
    after = weights(stage.model)
    for key, weight in after.items():
        rests = ".visual." in key
        assert torch.equal(weight, learnt[key]) == rests, key
    models.save_adapter(student, tmp_path / "out")
    again = models.load_adapter(models.load_student(base, VISION), tmp_path / "out")
    torch.testing.assert_close(seen(again, birds)[0], features)


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_passes_gradients_to_vision_adapters(name, birds):
    """As TRL sets it up on a GPU: a vision block's input, pixels, requires no gradient."""
    student = models.add_adapter(tiny(name), VISION, seed=0)
    kwargs = SFTConfig("x", use_cpu=True, bf16=False).gradient_checkpointing_kwargs
    student.model.gradient_checkpointing_enable(kwargs)
    student.model.enable_input_require_grads()
    logits = student.model.train()(**plain_inputs(student, *asked(birds, 2))).logits
    logits.square().mean().backward()
    for key, weight in student.model.named_parameters():
        if "lora_B" in key:
            assert weight.grad is not None and weight.grad.any(), key


def test_without_the_option_no_vision_layer_is_adapted(fresh):
    names = weights(models.add_adapter(fresh, TINY, seed=0).model)
    assert names and not any("visual" in n for n in names)


# --- the pixel budget ----------------------------------------------------------------------


def test_an_adapter_is_examined_at_the_pixels_it_was_trained_at(birds, tmp_path, caplog):
    small = TINY.with_(pixels=56 * 56)
    base = save(tiny("qwen2_5_vl"), tmp_path / "base")
    adapted = models.add_adapter(models.load_student(base, small), small, seed=0)
    models.save_adapter(adapted, tmp_path / "trained")
    job = jobs.Job(tmp_path, (), Preset.lab(), base=str(base))
    with caplog.at_level("INFO", "finer1_lite"):
        student = jobs.load(str(tmp_path / "trained"), job)
    picture = [birds.test[0].image().resize((200, 200))]
    counts = [
        len(
            generation.encode_prompts(
                s.model, s.processor, [prompts.DESCRIBE], picture
            ).image_features[0]
        )
        for s in (adapted, student, jobs.load(str(base), job))
    ]
    assert counts == [4, 4, 9]  # of 28 x 28 pixels; the preset's 84 x 84 holds for the base
    assert "pixels 3136: the budget saved with" in caplog.text and "(not 7056)" in caplog.text


def test_an_adapter_without_a_processor_takes_the_bases(fresh, tmp_path):
    models.add_adapter(fresh, TINY, seed=0).model.save_pretrained(tmp_path)
    base = Student(tiny("qwen2_5_vl").model, fresh.processor)
    base.model.resize_token_embeddings(fresh.model.config.text_config.vocab_size)
    assert models.load_adapter(base, tmp_path).processor is fresh.processor


# --- plain PEFT ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_adapter_loads_in_plain_peft(name, birds, tmp_path):
    """From the two folders alone, whatever base name the adapter's configuration holds."""
    from peft import PeftModel

    base = save(tiny(name), tmp_path / "base")
    adapted = models.add_adapter(models.load_student(base, TINY), TINY, seed=0)
    stir(adapted.model)
    models.save_adapter(adapted, tmp_path / "trained")
    named = json.loads((tmp_path / "trained/adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == "./base"  # a folder to PEFT, no hub name
    plain = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(base), tmp_path / "trained"
    )
    inputs = plain_inputs(adapted, *asked(birds, 2))
    with torch.no_grad():
        ours, theirs = (m.eval()(**inputs).logits for m in (adapted.model, plain))
    assert torch.equal(ours, theirs)
    with plain.disable_adapter(), torch.no_grad():
        assert not torch.equal(plain(**inputs).logits, ours)


# --- weights that do not fit -----------------------------------------------------------------


@pytest.fixture
def lab(student, tmp_path):
    """The folder of a base."""
    return save(student, tmp_path / "lab")


def rewrite(folder, change, name="model.safetensors"):
    """The folder, its weights changed."""
    weights = load_file(folder / name)
    save_file(
        {k: v.contiguous() for k, v in change(weights).items()}, folder / name, {"format": "pt"}
    )
    return folder


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path.parent


def old_names(weights):
    return {k.replace("language_model.layers", "layers"): v for k, v in weights.items()}


def first_layer(weights):
    return {k: v for k, v in weights.items() if ".layers.0." in k}


def narrower(weights):
    return {k: v[:, :-1] if "lora_A" in k else v for k, v in weights.items()}


def one_more(weights):
    return weights | {"base_model.model.head.lora_A.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize(
    "change, says",
    [
        (old_names, "56 missing, 56 unexpected"),
        (first_layer, "42 missing"),
        (narrower, "28 size mismatch"),
        (one_more, "1 unexpected"),
    ],
)
def test_an_adapter_that_fits_in_part_is_refused(lab, fresh, tmp_path, change, says):
    models.save_adapter(models.add_adapter(fresh, TINY, 0), tmp_path / "sft")
    rewrite(tmp_path / "sft", change, "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"sft does not fit this base; name its own: {says}"):
        models.load_trained(tmp_path / "sft", TINY, str(lab))
    with pytest.raises(ValueError, match=says):
        merge(tmp_path / "sft", tmp_path / "merged", str(lab))
    assert not (tmp_path / "merged").exists()


def test_a_pickled_adapter_is_not_read(lab, fresh, tmp_path):
    models.save_adapter(models.add_adapter(fresh, TINY, 0), tmp_path / "sft")
    weights = tmp_path / "sft" / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="adapter_model.bin; save it as adapter_model.safetensors"):
        models.load_trained(tmp_path / "sft", TINY, str(lab))


def test_an_adapter_whose_config_names_fewer_layers_is_refused(lab, fresh, tmp_path):
    models.save_adapter(models.add_adapter(fresh, TINY, 0), tmp_path / "sft")
    edit(tmp_path / "sft" / "adapter_config.json", target_modules=".*language_model.*q_proj")
    with pytest.raises(ValueError, match="48 unexpected"):
        models.load_trained(tmp_path / "sft", TINY, str(lab))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda w: {k: v for k, v in w.items() if "layers.0.mlp.up" not in k}, "1 missing"),
        (lambda w: {k.replace("mlp.up", "mlp.u"): v for k, v in w.items()}, "4 missing, 4 unexp"),
        (lambda w: w | {"model.more": torch.zeros(1)}, "1 unexpected"),
        (lambda w: {k: v[1:] if "layers.0.mlp.up" in k else v for k, v in w.items()}, "1 size"),
        (
            lambda w: {k: v * torch.nan if "layers.0.mlp.up" in k else v for k, v in w.items()},
            "nan",
        ),
    ],
)
def test_a_base_that_fits_in_part_or_is_not_finite_is_refused(lab, change, says):
    def language(weights):  # the vision tower has layers of these names, too
        tower = {k: v for k, v in weights.items() if "visual" in k}
        return tower | change({k: v for k, v in weights.items() if k not in tower})

    with pytest.raises(ValueError, match=f"lab: .*{says}"):
        models.load_student(rewrite(lab, language), TINY)


def test_a_torn_file_of_weights_is_named(lab):
    whole = (lab / "model.safetensors").read_bytes()
    (lab / "model.safetensors").write_bytes(whole[:5000])
    with pytest.raises(ValueError, match="lab: its weights cannot be read"):
        models.load_student(lab, TINY)


# --- what is saved with a model ----------------------------------------------------------------


@pytest.mark.parametrize(
    "saved",
    [
        {"pad_token": "<|im_end|>"},
        {"pad_token": None},
        {"pad_token": "<|image_pad|>"},
        {"pad_token": "<answer>"},
        {"eos_token": "<|endoftext|>"},
    ],
)
def test_a_turn_ends_with_one_token_and_another_pads(lab, saved, caplog):
    edit(lab / "tokenizer_config.json", **saved)
    tok = models.load_student(lab, TINY).processor.tokenizer
    assert (tok.eos_token, tok.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert ("another role" if "pad_token" in saved else "a turn ends with") in caplog.text


def test_without_a_token_to_spare_the_pad_token_is_refused(lab, monkeypatch):
    edit(lab / "tokenizer_config.json", pad_token="<|im_end|>")
    monkeypatch.setattr(tokens, "PADS", ())
    with pytest.raises(ValueError, match="pad_token .*set pad_token in tokenizer_config.json"):
        models.load_student(lab, TINY)


def test_the_saved_budget_of_pixels_is_kept_unless_another_is_asked_for(lab, caplog):
    path = lab / "processor_config.json"
    images = json.loads(path.read_text())["image_processor"]
    images["size"]["longest_edge"] = 200704
    edit(path, image_processor=images)
    with caplog.at_level("INFO", "finer1_lite"):
        for preset, pixels in ((Preset.lab(), 200704), (Preset.lab().with_(pixels=3136), 3136)):
            found = models.load_student(lab, preset).processor.image_processor
            assert found.size["longest_edge"] == pixels
    assert "pixels 200704: the budget saved with" in caplog.text
    assert "pixels 3136: as asked, at most 3136 (not 200704" in caplog.text


def test_a_merged_model_sees_as_much_of_a_picture_as_its_adapter(lab, tmp_path):
    small = TINY.with_(pixels=3136)
    models.save_adapter(
        models.add_adapter(models.load_student(lab, small), small, 0), tmp_path / "a"
    )
    merged = merge(tmp_path / "a", tmp_path / "merged", str(lab))
    job = jobs.Job(tmp_path, (), Preset.lab(), base=str(lab))
    for folder in (tmp_path / "a", merged):
        found = jobs.load(str(folder), job).processor.image_processor
        assert found.size["longest_edge"] == 3136


def test_generation_settings_that_are_not_used_are_said(lab, caplog):
    edit(lab / "generation_config.json", repetition_penalty=1.05)
    with caplog.at_level("INFO", "finer1_lite"):
        models.load_student(lab, TINY)
    assert "generation settings are not used (repetition_penalty 1.05)" in caplog.text


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_model_saved_in_four_bits_loads_as_it_is_saved(lab, tmp_path, quantize):
    pytest.importorskip("bitsandbytes")
    nf4 = models.load_student(lab, TINY.with_(quantize="nf4"))
    small = save(nf4, tmp_path / "nf4")
    again = models.load_student(small, TINY.with_(quantize=quantize))
    (found, *_), (expected, *_) = (
        [p for p in s.model.parameters() if p.dtype == torch.uint8] for s in (again, nf4)
    )
    assert torch.equal(found, expected)
    models.save_adapter(models.add_adapter(again, TINY, 0), tmp_path / "sft")
    with pytest.raises(ValueError, match="is saved quantised"):
        merge(tmp_path / "sft", tmp_path / "merged", str(small))


def test_a_model_quantised_by_what_is_not_installed_is_one_sentence(lab):
    edit(lab / "config.json", quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(ValueError, match="lab: its weights cannot be read: .*pip install"):
        models.load_student(lab, TINY)
