"""What a model must prove before it is trained: numbers, true log-probabilities, gradients.

Pure functions of a student; nothing of it is changed. A rewritten model (unsloth compiles the
layers and replaces the forward pass) can return hidden states where logits belong, or
log-probabilities without a gradient, and no training would fail: it would learn nothing, or
something else.
"""

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from finer1_lite import generation, logprobs, losses, prompts
from finer1_lite.data.images import MOST
from finer1_lite.generation import Student
from finer1_lite.runtime.checkpoints import NotFinite
from finer1_lite.students.families import SUPPORTED, family_of
from finer1_lite.students.processors import budget_of

# Mean |difference| in nats a token between our scores and the model's own forward pass. In
# 16 bits the two differ by the order of their sums; a wrong temperature or a lost picture
# differs by more than 0.1.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.05}
ANSWER = "The crown is red, the back is plain and the wing is barred; it could be a finch."
TERMS = ("policy", "inter_class_kl", "anchor_entropy", "negative_entropy")
SIDE = 112  # pixels: 16 visual tokens of Qwen2.5-VL


def overflow(student: Student, tokens: int = 64) -> str:
    """What is not finite in a greedy answer about a picture as large as may be; "" where all is.

    float16 ends at 65504; activations beyond that turn to inf, then every logit to nan. Whether
    they do depends on the picture's and the prompt's length, so both are those of a training.
    """
    model, processor = student.model, student.processor
    picture = _pictures(math.isqrt(min(budget_of(processor), MOST)))[0]
    asked = prompts.question("think", "bird")
    batch = generation.encode_prompts(model, processor, [asked], [picture])
    if not all(torch.isfinite(f).all() for f in batch.image_features):
        return "the features of a picture are not finite"
    problem = f"the logits of an answer of {tokens} tokens are not finite"
    try:
        out = generation.generate(model, processor, batch, max_new_tokens=tokens)
    except NotFinite:
        return problem
    with torch.no_grad():  # each reads every logit, in the sum that it is divided by
        logps = logprobs.log_probs(model, batch, out.completion_ids, out.completion_mask, [0])
    return "" if torch.isfinite(logps).all() else problem


def require_trainable(student: Student) -> None:
    """ValueError, listing every problem, unless stage 2 may run on this model."""
    mend = f"--set backend=transformers, with {SUPPORTED}"
    _require_none(problems(student), "stage 2 cannot run on this model", mend)


def require_alike(student: Student, source: str | Path) -> None:
    """ValueError unless our short cuts give the log-probabilities of its own forward pass."""
    try:
        found = _problems(student, learns=False)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        found = [f"it is built otherwise: {type(error).__name__}: {error}"]
    _require_none(found, f"{source} cannot be a student", f"choose {SUPPORTED}")


def _require_none(found: list[str], what: str, mend: str) -> None:
    if found:
        rows = "".join(f"\n- {problem}" for problem in found)
        raise ValueError(f"{what}, its self-test says:{rows}\nthe way out: {mend}")


def problems(student: Student) -> list[str]:
    """Where log-probabilities or gradients are not those that stage 2 builds on.

    (a) Our log-probabilities of an answer equal those of the model's own forward pass within
    `TOLERANCE`; (b) every term of the loss sends a gradient to every adapted layer. With
    gradient checkpointing on, both modes of the model are tried.
    """
    was = student.model.training
    checkpointing = generation.core_of(student.model).is_gradient_checkpointing
    try:
        for mode in [False, True] if checkpointing else [False]:
            student.model.train(mode)
            found = _problems(student)
            if found:
                return found
    finally:
        student.model.train(was)
    return []


def _problems(student: Student, learns: bool = True) -> list[str]:
    """`problems` in the mode that the model is in; learns: gradients are looked at too."""
    core = generation.core_of(student.model)
    case = _Case(student)
    vocabulary = core.config.get_text_config().vocab_size
    with torch.no_grad():
        head = core.lm_head(core.get_input_embeddings()(case.ids[:1, :1]))
        logits = case.forward(student.model)
    found = [
        f"its {name} gives {tuple(getattr(x, 'shape', ()))} where logits over a vocabulary of "
        f"{vocabulary} belong: hidden states?"
        for name, x in (("lm_head", head), ("forward pass", logits))
        if getattr(x, "shape", (0,))[-1] != vocabulary
    ]
    if found:
        return found
    with torch.set_grad_enabled(learns):
        ours = case.score(student.model, [0, 1])
        negative = case.score(student.model, [1, 0])
    theirs = logits[:, -case.ids.shape[1] - 1 : -1].float().log_softmax(-1)
    theirs = theirs.gather(-1, case.ids[..., None])[..., 0]
    gap = (ours - theirs).abs().mean().item()
    allowed = TOLERANCE[core.dtype]
    if not gap <= allowed:  # nan too
        found.append(
            f"its log-probabilities differ from its own forward pass by {gap:.2g} nats a token "
            f"on average (allowed in {str(core.dtype).removeprefix('torch.')}: {allowed})"
        )
    if not learns:
        return found
    if not (ours.requires_grad and negative.requires_grad):
        return [*found, "its log-probabilities carry no gradient"]
    return found + _lost_gradients(student.model, ours, negative)


def _lost_gradients(model: nn.Module, ours: Tensor, negative: Tensor) -> list[str]:
    """Terms of the loss whose gradient misses an adapted layer, or is not finite."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not named:
        return ["no parameter is trainable: there is no adapter, or it was loaded as frozen"]
    layers = [n.split(".lora_")[0] for n, _ in named]
    signs = ours.new_tensor([1.0, -0.5])
    mask = torch.ones_like(ours)
    loss = losses.tapo_loss(ours, ours.detach(), negative, signs, mask, negative_grad=True)
    found = []
    for term in TERMS:
        value = getattr(loss, term)
        gradients = (None,) * len(named)
        if value.requires_grad:
            weights = [p for _, p in named]
            gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        well = (g is not None and g.any() and torch.isfinite(g).all() for g in gradients)
        reached = {layer for layer, it in zip(layers, well, strict=True) if it}
        lost = [layer for layer in dict.fromkeys(layers) if layer not in reached]
        if lost:  # of one adapter's two matrices one will do: a fresh B = 0 hides A's
            found.append(
                f"the gradient of {term} does not reach {len(lost)} of {len({*layers})} "
                f"adapted layers, {lost[0]} the first"
            )
    return found


class _Case:
    """One answer about two pictures, for our scores and for the model's own forward pass."""

    def __init__(self, student: Student) -> None:
        tok = student.processor.tokenizer
        pictures = _pictures()
        given = (student.model, student.processor, [prompts.DESCRIBE] * len(pictures), pictures)
        self.batch = generation.encode_prompts(*given)
        self.inputs = generation.tokenise(*given)
        ids = tok(ANSWER, add_special_tokens=False).input_ids + [tok.eos_token_id]
        self.ids = torch.tensor([ids] * len(pictures), device=self.batch.input_ids.device)

    def score(self, model: nn.Module, on: list[int]) -> Tensor:
        """Our log-probabilities of the answer on these pictures: (2, T)."""
        return logprobs.log_probs(model, self.batch, self.ids, torch.ones_like(self.ids), on)

    def forward(self, model: nn.Module) -> Any:
        """The logits, as the model itself makes them from token ids and pixels."""
        core = generation.core_of(model)
        more = {
            "input_ids": self.ids,
            "attention_mask": torch.ones_like(self.ids),
            "mm_token_type_ids": torch.zeros_like(self.ids),
            "token_type_ids": torch.full_like(self.ids, family_of(core).prefix),  # Gemma 3's name
        }
        inputs = {k: torch.cat([v, more[k]], 1) if k in more else v for k, v in self.inputs.items()}
        with generation.autocast(core):
            return model(**inputs, use_cache=False).logits


def _pictures(side: int = SIDE) -> list[Image.Image]:
    """Two pictures that need no file and look different."""
    shades = (Image.linear_gradient("L"), Image.radial_gradient("L"))
    return [shade.resize((side, side)).convert("RGB") for shade in shades]
