"""From (picture, question) to completions: the rollouts of GRPO, DAPO and TAPO.

Works on the families of `students.families`, as transformers has them, plain, quantised or
wrapped by PEFT. Each distinct picture is encoded once, each prompt is prefilled once, and all
completions of a prompt share that cache. It grows with the completions and shrinks when some have
ended: a static cache does neither and took 3 times as long (64 completions of 96 tokens by the lab
student on one CPU core: 4.4 against 1.4 s); transformers' continuous batching takes token ids
alone, no pictures.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear, LoraLayer
from PIL import Image
from torch import Tensor, nn

from finer1_lite import prompts
from finer1_lite.data import marks
from finer1_lite.runtime.checkpoints import require_finite
from finer1_lite.students.families import family_of

VISION_TOKENS = (
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<image>", "<fake_token_around_image>", "<global-img>"),  # SmolVLM, Idefics3
    *("<img>", "</img>", "<IMG_CONTEXT>"),  # InternVL
    *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),  # LFM2-VL
    *("<start_of_image>", "<end_of_image>", "<image_soft_token>"),  # Gemma 3
    *("<|image>", "<|image|>", "<image|>", "<|video|>"),  # Gemma 4
    *("<|audio>", "<|audio|>", "<audio|>"),
)
WRITTEN = -1  # kind of a token behind a prompt; 0: a word of the prompt, 1: of its picture
MERGED = 2**30  # bytes of weights that are copied to write with their adapters inside, at most
TEXT = {"input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"}  # not of pictures
Images = Sequence[Image.Image] | None
Generators = torch.Generator | Sequence[torch.Generator] | None  # one for all, or equal shares


@dataclass
class Student:
    """A model and its processor."""

    model: nn.Module
    processor: Any

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return next(self.model.parameters()).device


@dataclass
class PromptBatch:
    """P prompts, left-padded to length L, with the features of their pictures."""

    input_ids: Tensor  # (P, L)
    attention_mask: Tensor  # (P, L) 1 on real tokens
    mm_token_type_ids: Tensor  # (P, L) 1 on picture tokens, `WRITTEN` behind a prompt
    position_ids: Tensor  # (3, P, L) Qwen-VL's: time, height, width; others' three times
    image_features: tuple[Tensor, ...]  # a picture each, see `image_features`; () without

    def rows(self, rows: Sequence[int]) -> "PromptBatch":
        """Some prompts, padded as they were."""
        rows = list(rows)
        return PromptBatch(
            self.input_ids[rows],
            self.attention_mask[rows],
            self.mm_token_type_ids[rows],
            self.position_ids[:, rows],
            tuple(self.image_features[r] for r in rows) if self.image_features else (),
        )

    def followed_by(self, ids: Tensor, mask: Tensor) -> "PromptBatch":
        """Each prompt with text tokens behind it: (P, T), 1 in the mask where they are real."""
        ahead = last_positions(self) + torch.arange(1, ids.shape[1] + 1, device=ids.device)
        return PromptBatch(
            torch.cat([self.input_ids, ids], 1),
            torch.cat([self.attention_mask, mask], 1),
            torch.cat([self.mm_token_type_ids, torch.full_like(ids, WRITTEN)], 1),
            torch.cat([self.position_ids, ahead], 2),
            self.image_features,
        )


def extended(batch: PromptBatch, tails: Sequence[Sequence[int]]) -> PromptBatch:
    """Each prompt with more text tokens behind it, padded anew."""
    longer = []
    for p, tail in enumerate(tails):
        ids = torch.tensor([list(tail)], dtype=torch.long, device=batch.input_ids.device)
        longer.append(batch.rows([p]).followed_by(ids, torch.ones_like(ids)))
    return join(longer)


def join(batches: Sequence[PromptBatch]) -> PromptBatch:
    """One batch of several, all with pictures or all without; padded to the longest."""
    length = max(b.input_ids.shape[1] for b in batches)

    def stack(name: str, dim: int = 0) -> Tensor:
        parts = [getattr(b, name) for b in batches]
        return torch.cat([F.pad(x, (length - x.shape[-1], 0)) for x in parts], dim)

    return PromptBatch(
        stack("input_ids"),
        stack("attention_mask"),
        stack("mm_token_type_ids"),
        stack("position_ids", 1),
        tuple(f for b in batches for f in b.image_features),
    )


@dataclass
class Rollouts:
    """B sampled completions of at most T tokens."""

    completion_ids: Tensor  # (B, T), pad after the end
    completion_mask: Tensor  # (B, T) 1 up to and with the end-of-turn token
    completions: list[str]
    truncated: Tensor  # (B,) True where the length limit came before the end

    def rows(self, first: int, count: int) -> "Rollouts":
        """Some completions that stand together."""
        part = slice(first, first + count)
        return Rollouts(**{name: column[part] for name, column in vars(self).items()})

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion, the end of turn included: (B,)."""
        return self.completion_mask.sum(-1)


# --- prompts -----------------------------------------------------------------------------


def core_of(model: nn.Module) -> nn.Module:
    """The plain model inside a PEFT wrapper; the model itself without one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def three_axes(core: nn.Module) -> bool:
    """Whether a token's position is time, height and width, as Qwen-VL has it, or one number."""
    return hasattr(core.model, "get_rope_index")


def embed(core: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """Text tokens as the language layers take them: (P, L, width), and in Gemma 4 a row a layer."""
    text = core.config.get_text_config()
    if not getattr(text, "hidden_size_per_layer_input", 0):
        return {"inputs_embeds": core.get_input_embeddings()(ids)}
    ids = ids.masked_fill(ids == core.config.image_token_id, text.pad_token_id)  # as it does itself
    rows = core.get_decoder().get_per_layer_inputs(ids, None)
    return {"inputs_embeds": core.get_input_embeddings()(ids), "per_layer_inputs": rows}


def softcap(core: nn.Module) -> float | None:
    """The bound that Gemma 4 puts on its logits; None for others."""
    return getattr(core.config.get_text_config(), "final_logit_softcapping", None)


def logits_of(head: nn.Module, hidden: Tensor, cap: float | None = None) -> Tensor:
    """Logits in float32 at least, within +-cap: (..., width) -> (..., V)."""
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if cap is None else cap * torch.tanh(logits / cap)


def decode(core: nn.Module, *, position_ids: Tensor, **inputs: Any) -> Any:
    """A pass through the language layers; position_ids: (3, P, L).

    Adapters, which are float32, compute in the 16 bits of the layers beside them, if these have 16,
    as in stage 1, whose trainer lets them: rollouts and scores come from the same network.
    """
    places = position_ids if three_axes(core) else position_ids[0]
    layers = core.model if family_of(core).masks else core.get_decoder()
    with autocast(core):
        return layers(position_ids=places, **inputs)


def autocast(core: nn.Module) -> AbstractContextManager:
    """torch's, for a model whose plain layers have 16 bits."""
    short = core.dtype in (torch.float16, torch.bfloat16)
    return torch.autocast(core.device.type, core.dtype) if short else nullcontext()


def adapted(model: nn.Module) -> list[Linear]:
    """The language layers whose adapters may be added to their weights: float32, no biases."""
    return [
        layer
        for layer in core_of(model).get_decoder().modules()
        if type(layer) is Linear and layer.weight.dtype == torch.float32
        if not layer.lora_variant and not any(layer.lora_bias.values())
    ]


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Adapters are added to the weights beside them while it lasts: a layer's one product.

    Afterwards all is as it was, bit for bit. Beside 16 and 4 bits, whose sum would be rounded, they
    have the 16 bits they compute in. More than `MERGED` bytes, or gradient on: they stay beside.
    """
    core, quiet = core_of(model), not torch.is_grad_enabled()
    short = quiet and core.dtype.itemsize == 2
    layers = [m for m in adapted(model) if quiet and not (short or m.merged or m.disable_adapters)]
    if sum(layer.weight.nbytes for layer in layers) > MERGED:
        layers = []
    changed = [layer.weight for layer in layers]
    for layer in core.get_decoder().modules() if short else ():
        if isinstance(layer, LoraLayer) and not layer.lora_variant:
            changed += [*layer.lora_A.parameters(), *layer.lora_B.parameters()]
    kept = [(weight, weight.data) for weight in changed]
    try:
        for weight, data in kept:
            weight.data = data.to(core.dtype, copy=True)
        for layer in layers:
            layer.merge()
        yield
    finally:
        for weight, data in kept:
            weight.data = data
        for layer in layers:
            layer.merged_adapters.clear()


def tokenise(model: nn.Module, processor: Any, questions: Sequence[str], images: Images) -> Any:
    """The inputs of a forward pass: chat template, token ids, pixels; padded on the left."""
    marks.refuse(*questions)
    core = core_of(model)
    texts = [
        processor.apply_chat_template(
            prompts.messages(q, images is not None), add_generation_prompt=True, tokenize=False
        )
        for q in questions
    ]
    return processor(
        text=texts,
        images=[[picture] for picture in images] if images is not None else None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        add_special_tokens=False,  # the chat template has them
        return_mm_token_type_ids=three_axes(core) or bool(family_of(core).masks),
    ).to(core.device)


def encode_prompts(
    model: nn.Module, processor: Any, questions: Sequence[str], images: Images
) -> PromptBatch:
    """Tokenise the questions, encode the pictures (without gradient).

    Raises ValueError when a picture's tokens and features differ in number: the mistake
    of reusing one picture's tokens for another of a different size.
    """
    batch = tokenise(model, processor, questions, images)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    types = (ids == core_of(model).config.image_token_id).long()
    features: tuple[Tensor, ...] = ()
    if images is not None:
        with torch.no_grad():
            features = tuple(image_features(model, batch))
    wanted = types.sum(-1).tolist()
    made = [len(f) for f in features] or [0] * len(wanted)
    if wanted != made:
        raise ValueError(f"{wanted} image tokens but {made} image features: tokenise per picture")
    grids = batch.get("image_grid_thw")
    positions = _position_ids(core_of(model), ids, mask, types, grids)
    return PromptBatch(ids, mask, types, positions, features)


def image_features(model: nn.Module, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    """Vision tower and merger, once for each picture: (visual tokens, width).

    inputs: what the processor made of the pictures; words among it are left out.
    Qwen3-VL's vision tower hands more to the first language layers (DeepStack, arXiv
    2406.04334); that stands behind the features: (visual tokens, width * (1 + layers)).
    """
    shown = {name: value for name, value in inputs.items() if name not in TEXT}
    out = core_of(model).model.get_image_features(**shown)
    deep = getattr(out, "deepstack_features", None)
    if not deep:
        return out.pooler_output
    sizes = [len(f) for f in out.pooler_output]
    parts = [out.pooler_output, *(layer.split(sizes) for layer in deep)]
    return [torch.cat(picture, -1) for picture in zip(*parts, strict=True)]


def embed_prompts(core: nn.Module, batch: PromptBatch) -> dict[str, Any]:
    """The language model's inputs: embeddings (P, L, width) with the pictures in their places."""
    inputs = embed(core, batch.input_ids)
    inputs |= {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    family, types = family_of(core), batch.mm_token_type_ids
    if family.masks:
        inputs[family.masks] = (types == (WRITTEN if family.prefix else 1)).long()
    if not batch.image_features:
        return inputs
    embeds = inputs["inputs_embeds"]
    flat = torch.cat(batch.image_features)
    width = embeds.shape[-1]
    visual = types == 1
    inputs["inputs_embeds"] = embeds.masked_scatter(visual[..., None], flat[:, :width].to(embeds))
    if flat.shape[1] > width:
        deep = list(flat[:, width:].split(width, -1))
        inputs |= {"visual_pos_masks": visual, "deepstack_visual_embeds": deep}
    return inputs


def _position_ids(
    core: nn.Module, input_ids: Tensor, mask: Tensor, types: Tensor, grids: Tensor | None
) -> Tensor:
    """Three positions a token; a completion counts on from the largest: (3, P, L)."""
    if grids is None:
        return (mask.cumsum(-1) - 1).clamp(min=0)[None].expand(3, -1, -1)
    return core.model.get_rope_index(
        input_ids, mm_token_type_ids=types, image_grid_thw=grids, attention_mask=mask
    )[0]


def last_positions(batch: PromptBatch) -> Tensor:
    """The largest position of each prompt, the same on all three axes: (3, P, 1)."""
    return batch.position_ids.amax((0, 2))[None, :, None].expand(3, -1, -1)


# --- completions -------------------------------------------------------------------------


def suppress_tokens(processor: Any) -> list[int]:
    """Of pictures and videos what a tokenizer has, and padding: no completion can be scored."""
    tok = processor.tokenizer
    ids = [tok.convert_tokens_to_ids(name) for name in VISION_TOKENS]
    return [i for i in ids if i not in (None, tok.unk_token_id)] + [tok.pad_token_id]


def end_tokens(model: nn.Module, processor: Any) -> list[int]:
    """What ends a completion: the tokenizer's end of turn, the model's own ends; never padding."""
    tok = processor.tokenizer
    saved = getattr(core_of(model), "generation_config", None)
    more = saved.eos_token_id if saved else None  # one, several or none
    more = more if isinstance(more, list) else [more]
    return sorted({tok.eos_token_id, *more} - {None, tok.pad_token_id})


@torch.no_grad()
def generate(
    model: nn.Module,
    processor: Any,
    batch: PromptBatch,
    *,
    num_generations: int | Sequence[int] = 1,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: Generators = None,
    on_token: Callable[[], object] | None = None,
) -> Rollouts:
    """Complete each prompt `num_generations` times, or prompt p num_generations[p] times.

    A prompt's completions stand together. temperature 0 is greedy decoding. Vision tokens and
    padding are never sampled. The same generator state gives the same completions on one
    machine, whatever others are written beside them. on_token: called after each token of all.
    """
    core = core_of(model)
    tok = processor.tokenizer
    with merged(model):
        hidden, cache, mask, position = prefill(core, batch, num_generations)
        suppressed = torch.tensor(suppress_tokens(processor), device=mask.device)
        ends = torch.tensor(end_tokens(model, processor), device=mask.device)
        rows = torch.arange(len(mask), device=mask.device)  # which completion each live row writes
        going = torch.ones_like(rows, dtype=torch.bool)
        ids = torch.full((len(mask), max_new_tokens), tok.pad_token_id, device=mask.device)
        draws = _uniform(generator, *ids.shape, mask.device) if temperature else ids
        cap = softcap(core)
        for t in range(max_new_tokens):
            logits = logits_of(core.lm_head, hidden[:, -1], cap)
            where = f"the logits of token {t + 1} ({hidden.dtype})"
            require_finite([(where, logits.amax(-1)[going])])
            logits[:, suppressed] = -torch.inf
            token = pick_tokens(logits, temperature, top_p, draws[rows, t])
            token = token.masked_fill(~going, tok.pad_token_id)  # these rows ended before
            ids[rows, t] = token
            going = going & ~torch.isin(token, ends)
            if on_token:
                on_token()
            if not going.any():
                break
            if going.sum() < 0.7 * len(going):  # drop finished rows once they are many
                keep_rows(cache, going.nonzero()[:, 0])
                rows, mask, token = (x[going] for x in (rows, mask, token))
                position, going = position[:, going], going[going]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            position = position + 1
            hidden = decode(
                core,
                **embed(core, token[:, None]),
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
    return _rollouts(ids, tok, ends)


def prefill(
    core: nn.Module, batch: PromptBatch, num_generations: int | Sequence[int]
) -> tuple[Tensor, Any, Tensor, Tensor]:
    """`prefill_rows` for so many completions of each prompt, which stand together."""
    prompt = torch.arange(len(batch.input_ids), device=batch.input_ids.device)
    counts = torch.as_tensor(num_generations, device=prompt.device)
    return prefill_rows(core, batch, prompt.repeat_interleave(counts))


def prefill_rows(
    core: nn.Module, batch: PromptBatch, row: Tensor
) -> tuple[Tensor, Any, Tensor, Tensor]:
    """Run each prompt once, then share its cache among its completions; row: (B,) their prompts.

    Of the B completions: the last hidden states (B, 1, width), the cache, the attention mask
    (B, L) and the last positions (3, B, 1).
    """
    out = decode(core, **embed_prompts(core, batch), use_cache=True)
    keep_rows(out.past_key_values, row)
    hidden, mask = out.last_hidden_state[row, -1:], batch.attention_mask[row]
    return hidden, out.past_key_values, mask, last_positions(batch)[:, row]


def keep_rows(cache: Any, rows: Tensor) -> None:
    """Of a cache these rows, in this order, as often as they are named."""
    for layer in cache.layers:
        recurrent = hasattr(layer, "recurrent_states")
        (layer.reorder_cache if recurrent else layer.batch_select_indices)(rows)


def _uniform(generator: Generators, rows: int, length: int, device: torch.device) -> Tensor:
    """A number from [0, 1) for each token of each completion: (rows, length)."""
    if isinstance(generator, Sequence):
        share = rows // len(generator)
        return torch.cat([_uniform(g, share, length, device) for g in generator])
    home = device if generator is None else generator.device
    return torch.rand((rows, length), generator=generator, device=home).to(device)


def pick_tokens(logits: Tensor, temperature: float, top_p: float, draws: Tensor) -> Tensor:
    """Greedy, or the token of the tempered nucleus at which each row's number falls.

    logits: (B, V); draws: (B,) from [0, 1), places in the cumulated probabilities. (B,)
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = (logits / temperature).softmax(-1)
    if top_p < 1:
        ranked, order = probs.sort(-1, descending=True)
        ranked[ranked.cumsum(-1) - ranked >= top_p] = 0  # keeps the token that crosses top_p
        probs = torch.zeros_like(probs).scatter_(-1, order, ranked)
    below = probs.cumsum(-1)
    end = below[:, -1:]
    place = torch.minimum(draws[:, None] * end, end.nextafter(torch.zeros_like(end)))
    token = torch.searchsorted(below, place, right=True)
    # A GPU sums in blocks, and rounding may open a gap at a token without probability.
    token = torch.where(probs.gather(-1, token) > 0, token, probs.argmax(-1, keepdim=True))
    return token[:, 0]


def _rollouts(ids: Tensor, tok: Any, ends: Tensor) -> Rollouts:
    """Trim to the longest completion; mask everything after the first end of turn."""
    ended = torch.isin(ids, ends)
    before = ended.cumsum(-1) - ended.long() == 0
    mask = before & (ids != tok.pad_token_id)
    longest = max(int(mask.sum(-1).max()), 1)
    completions = [
        tok.decode(row[keep], skip_special_tokens=False)
        for row, keep in zip(ids, mask & ~ended, strict=True)
    ]
    return Rollouts(ids[:, :longest], mask[:, :longest].long(), completions, ~ended.any(-1))
