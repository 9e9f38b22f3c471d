"""From (picture, question) to answers and their log-probabilities.

Works on Qwen2-VL, Qwen2.5-VL and Qwen3-VL of transformers, plain, quantised or wrapped by
PEFT. Each distinct picture is encoded once, each prompt is prefilled once, and all rollouts
of a prompt share that cache. It grows with the answers and shrinks when some have ended: a
static cache does neither and took 3 times as long (64 answers of 96 tokens by the lab student
on one CPU core: 4.4 against 1.4 s); transformers' continuous batching takes token ids alone,
no pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from PIL import Image
from torch import Tensor

from finer1_lite import prompts

VISION_TOKENS = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@dataclass
class Student:
    """A model and its processor."""

    model: torch.nn.Module
    processor: object

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


@dataclass
class PromptBatch:
    """P prompts, left-padded to length L, with the features of their pictures."""

    ids: Tensor  # (P, L)
    mask: Tensor  # (P, L) 1 on real tokens
    types: Tensor  # (P, L) 1 on picture tokens
    places: Tensor  # (3, P, L) Qwen-VL's position numbers: time, height, width
    features: tuple[Tensor, ...]  # a picture each, see `picture_features`; () without pictures

    def rows(self, rows: Sequence[int]) -> "PromptBatch":
        """Some prompts, padded as they were."""
        rows = list(rows)
        cut = (self.ids[rows], self.mask[rows], self.types[rows], self.places[:, rows])
        return PromptBatch(*cut, tuple(self.features[r] for r in rows) if self.features else ())


def join(batches: Sequence[PromptBatch]) -> PromptBatch:
    """One batch of several, all with pictures or all without; padded to the longest."""
    length = max(b.ids.shape[1] for b in batches)

    def stack(name: str, dim: int) -> Tensor:
        parts = [getattr(b, name) for b in batches]
        return torch.cat([F.pad(x, (length - x.shape[-1], 0)) for x in parts], dim)

    features = tuple(f for b in batches for f in b.features)
    return PromptBatch(
        stack("ids", 0), stack("mask", 0), stack("types", 0), stack("places", 1), features
    )


@dataclass
class Rollouts:
    """B sampled answers of at most T tokens."""

    tokens: Tensor  # (B, T), pad after the end
    mask: Tensor  # (B, T) 1 up to and with the end-of-turn token
    texts: list[str]
    cut: Tensor  # (B,) True where the length limit came before the end

    @property
    def lengths(self) -> Tensor:
        return self.mask.sum(-1)


def core_of(model):
    """The Qwen-VL inside a PEFT wrapper; the model itself without one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def tokenise(model, processor, questions: Sequence[str], images: Sequence[Image.Image] | None):
    """The inputs of a forward pass: chat template, token ids, pixels; padded on the left."""
    texts = [
        processor.apply_chat_template(
            prompts.messages(q, images is not None), add_generation_prompt=True, tokenize=False
        )
        for q in questions
    ]
    return processor(
        text=texts,
        images=list(images) if images is not None else None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        return_mm_token_type_ids=True,
    ).to(core_of(model).device)


def encode_prompts(
    model, processor, questions: Sequence[str], images: Sequence[Image.Image] | None
) -> PromptBatch:
    """Tokenise the questions, encode the pictures (without gradient).

    Raises ValueError when a picture's tokens and features differ in number: the mistake
    of reusing one picture's tokens for another of a different size.
    """
    batch = tokenise(model, processor, questions, images)
    features = ()
    if images is not None:
        with torch.no_grad():
            features = tuple(
                picture_features(model, batch["pixel_values"], batch["image_grid_thw"])
            )
    ids, mask, types = batch["input_ids"], batch["attention_mask"], batch["mm_token_type_ids"]
    shown, made = types.sum(-1).tolist(), [len(f) for f in features]
    if shown != (made or [0] * len(shown)):
        raise ValueError(f"{shown} image tokens but {made} image features: tokenise per picture")
    places = _positions(core_of(model), ids, mask, types, batch.get("image_grid_thw"))
    return PromptBatch(ids, mask, types, places, features)


def picture_features(model, pixels: Tensor, grids: Tensor) -> Sequence[Tensor]:
    """Vision tower and merger, once for each picture: (visual tokens, width).

    Qwen3-VL's vision tower hands more to the first language layers (DeepStack, arXiv
    2406.04334); that stands behind the features: (visual tokens, width * (1 + layers)).
    """
    out = core_of(model).model.get_image_features(pixels, grids)
    deep = getattr(out, "deepstack_features", None)
    if not deep:
        return out.pooler_output
    sizes = [len(f) for f in out.pooler_output]
    parts = [out.pooler_output, *(layer.split(sizes) for layer in deep)]
    return [torch.cat(picture, -1) for picture in zip(*parts, strict=True)]


def _shown(core, ids: Tensor, types: Tensor, features: Sequence[Tensor]) -> dict:
    """What the language model is shown: words (B, L, width), the pictures in their places."""
    embeds = core.get_input_embeddings()(ids)
    if not features:
        return {"inputs_embeds": embeds}
    flat, width, seen = torch.cat(list(features)), embeds.shape[-1], types == 1
    shown = {
        "inputs_embeds": embeds.masked_scatter(seen[..., None], flat[:, :width].to(embeds.dtype))
    }
    if flat.shape[1] > width:
        deep = list(flat[:, width:].split(width, -1))
        shown |= {"visual_pos_masks": seen, "deepstack_visual_embeds": deep}
    return shown


def _positions(core, ids: Tensor, mask: Tensor, types: Tensor, grids: Tensor | None) -> Tensor:
    """Three position numbers a token; an answer counts on from the largest. (3, P, L)"""
    if grids is None:
        return (mask.cumsum(-1) - 1).clamp(min=0)[None].expand(3, -1, -1)
    return core.model.get_rope_index(
        ids, mm_token_type_ids=types, image_grid_thw=grids, attention_mask=mask
    )[0]


def banned_tokens(processor) -> list[int]:
    """Tokens of pictures and videos, and padding: no answer with one can be scored."""
    return vision_tokens(processor) + [processor.tokenizer.pad_token_id]


def vision_tokens(processor) -> list[int]:
    """Those of `VISION_TOKENS` that the tokenizer knows; the others are never sampled."""
    tok = processor.tokenizer
    ids = (tok.convert_tokens_to_ids(token) for token in VISION_TOKENS)
    return [i for i in ids if i is not None and i != tok.unk_token_id]


@torch.no_grad()
def generate(
    model,
    processor,
    batch: PromptBatch,
    *,
    copies: int | Sequence[int] = 1,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Rollouts:
    """Answer each prompt `copies` times, or prompt p copies[p] times; p's answers stand together.

    temperature 0 is greedy decoding. Vision tokens and padding are never sampled. The same
    generator state gives the same answers on one machine. Of several generators each decides
    an equal share of the answers, whatever others are written beside them.
    """
    core = core_of(model)
    tok = processor.tokenizer
    hidden, cache, mask, place = prefill(core, batch, copies)
    banned = torch.tensor(banned_tokens(processor), device=mask.device)
    rows = torch.arange(len(mask), device=mask.device)  # which answer each live row writes
    going = torch.ones_like(rows, dtype=torch.bool)
    tokens = torch.full((len(mask), max_new_tokens), tok.pad_token_id, device=mask.device)
    chances = _uniform(generator, *tokens.shape, mask.device) if temperature else tokens
    for t in range(max_new_tokens):
        logits = core.lm_head(hidden[:, -1]).float()
        logits[:, banned] = -torch.inf
        token = _pick(logits, temperature, top_p, chances[rows, t])
        token = token.masked_fill(~going, tok.pad_token_id)  # these rows ended before
        tokens[rows, t] = token
        going = going & (token != tok.eos_token_id)
        if not going.any():
            break
        if going.sum() < 0.7 * len(going):  # drop finished rows once they are many
            cache.batch_select_indices(going)
            rows, mask, place, token = rows[going], mask[going], place[:, going], token[going]
            going = going[going]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        place = place + 1
        hidden = core.model.language_model(
            inputs_embeds=core.get_input_embeddings()(token[:, None]),
            attention_mask=mask,
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    return _finish(tokens, tok)


def prefill(core, batch: PromptBatch, copies: int | Sequence[int]):
    """Run each prompt once, then share its cache among its copies."""
    out = core.model.language_model(
        **_shown(core, batch.ids, batch.types, batch.features),
        attention_mask=batch.mask,
        position_ids=batch.places,
        use_cache=True,
    )
    prompts, device = torch.arange(len(batch.ids), device=batch.ids.device), batch.ids.device
    row = prompts.repeat_interleave(torch.as_tensor(copies, device=device))
    cache = out.past_key_values
    cache.batch_select_indices(row)
    return out.last_hidden_state[row, -1:], cache, batch.mask[row], _last_places(batch)[:, row]


def _last_places(batch: PromptBatch) -> Tensor:
    """The largest position of each prompt, the same on all three axes. (3, P, 1)"""
    return batch.places.amax((0, 2))[None, :, None].expand(3, -1, -1)


def _uniform(generator, rows: int, length: int, device: torch.device) -> Tensor:
    """A number from [0, 1) for each token of each answer. (rows, length)"""
    if isinstance(generator, Sequence):
        share = rows // len(generator)
        return torch.cat([_uniform(g, share, length, device) for g in generator])
    home = device if generator is None else generator.device
    return torch.rand((rows, length), generator=generator, device=home).to(device)


def _pick(logits: Tensor, temperature: float, top_p: float, chances: Tensor) -> Tensor:
    """Greedy, or from the tempered nucleus the token at which each row's number falls, (B,),
    in the cumulated probabilities: (B, V) -> (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    probs = (logits / temperature).softmax(-1)
    if top_p < 1:
        ranked, order = probs.sort(-1, descending=True)
        ranked[ranked.cumsum(-1) - ranked >= top_p] = 0  # keeps the token that crosses top_p
        probs = torch.zeros_like(probs).scatter_(-1, order, ranked)
    below = probs.cumsum(-1)
    end = below[:, -1:]
    place = torch.minimum(chances[:, None] * end, end.nextafter(torch.zeros_like(end)))
    token = torch.searchsorted(below, place, right=True)
    # A GPU sums in blocks, and rounding may open a gap at a token without probability.
    token = torch.where(probs.gather(-1, token) > 0, token, probs.argmax(-1, keepdim=True))
    return token[:, 0]


def _finish(tokens: Tensor, tok) -> Rollouts:
    """Trim to the longest answer; mask everything after the first end of turn."""
    ended = tokens == tok.eos_token_id
    before = ended.cumsum(-1) - ended.long() == 0
    mask = before & (tokens != tok.pad_token_id)
    longest = max(int(mask.sum(-1).max()), 1)
    texts = [
        tok.decode(row[keep & (row != tok.eos_token_id)], skip_special_tokens=False)
        for row, keep in zip(tokens, mask)
    ]
    return Rollouts(tokens[:, :longest], mask[:, :longest].long(), texts, ~ended.any(-1))


@dataclass
class Scores:
    """What a model thinks of given answers, token by token; zeros where masked."""

    logps: Tensor  # (B, T) log pi(o_t | picture, question, o_<t)
    entropies: Tensor | None  # (B, T) of the whole vocabulary, in nats, where asked for


def log_probs(model, batch, tokens, mask, which, temperature: float = 1.0) -> Tensor:
    """The log-probabilities of `score` alone. (B, T)"""
    return score(model, batch, tokens, mask, which, temperature).logps


def score(
    model,
    batch: PromptBatch,
    tokens: Tensor,
    mask: Tensor,
    which: Sequence[int],
    temperature: float = 1.0,
    entropy: bool = False,
) -> Scores:
    """Log-probabilities of given answers: tokens and mask (B, T).

    which: (B,) the prompt of `batch` on which each answer is scored. This is how one
    answer is scored on anchor, positive or negative alike. Gradient reaches whatever
    of the language model requires it.
    """
    core = core_of(model)
    which_t = torch.as_tensor(which, device=batch.ids.device)
    through = _recomputed if core.is_gradient_checkpointing and core.training else _shared
    hidden = through(core, batch, tokens, mask, which_t)  # (B, T, width)
    keep = mask.bool()
    logps, entropies = token_scores(core.lm_head, hidden[keep], tokens[keep], temperature, entropy)
    spread = torch.zeros(keep.shape, dtype=logps.dtype, device=logps.device)
    return Scores(
        spread.masked_scatter(keep, logps),
        spread.masked_scatter(keep, entropies) if entropy else None,
    )


def _shared(core, batch: PromptBatch, tokens: Tensor, mask: Tensor, which: Tensor) -> Tensor:
    """Hidden states before each token; each prompt runs once, its answers share the cache."""
    used, row = which.unique(return_inverse=True)
    features = [batch.features[int(p)] for p in used] if batch.features else []
    last = _last_places(batch)[:, which]
    prompt = core.model.language_model(
        **_shown(core, batch.ids[used], batch.types[used], features),
        attention_mask=batch.mask[used],
        position_ids=batch.places[:, used],
        use_cache=True,
    )
    first = prompt.last_hidden_state[row, -1:]
    if tokens.shape[1] == 1:
        return first
    cache = prompt.past_key_values
    cache.batch_select_indices(row)
    ahead = torch.arange(1, tokens.shape[1], device=tokens.device)
    rest = core.model.language_model(
        inputs_embeds=core.get_input_embeddings()(tokens[:, :-1]),
        attention_mask=torch.cat([batch.mask[which], mask[:, :-1]], 1),
        position_ids=last + ahead,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return torch.cat([first, rest], 1)


def _recomputed(core, batch: PromptBatch, tokens: Tensor, mask: Tensor, which: Tensor) -> Tensor:
    """The same in one pass a row: layers that recompute their activations keep no cache."""
    length = tokens.shape[1]
    ids = torch.cat([batch.ids[which], tokens], 1)
    types = torch.cat([batch.types[which], torch.zeros_like(tokens)], 1)
    features = [batch.features[int(p)] for p in which] if batch.features else []
    ahead = torch.arange(1, length + 1, device=ids.device)
    places = torch.cat([batch.places, _last_places(batch) + ahead], 2)[:, which]
    hidden = core.model.language_model(
        **_shown(core, ids, types, features),
        position_ids=places,
        attention_mask=torch.cat([batch.mask[which], mask], 1),
        use_cache=False,
    ).last_hidden_state
    return hidden[:, -length - 1 : -1]


LOGITS_AT_ONCE = 2**24  # numbers: 64 MiB in float32, of which the backward pass makes three


def token_scores(
    head, hidden: Tensor, tokens: Tensor, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each token, and the entropy where it was drawn: (N,), (N,) or None.

    hidden: (N, width), tokens: (N,). A few tokens at a time, and the backward pass computes
    their logits anew: at most `LOGITS_AT_ONCE` logits live, never (N, vocabulary).
    """
    size = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    parts = []
    for states, ids in zip(hidden.split(size), tokens.split(size)):
        call = (_chunk_scores, head, states, ids, temperature, entropy)
        if torch.is_grad_enabled() and len(tokens) > size:
            parts.append(torch.utils.checkpoint.checkpoint(*call, use_reentrant=False))
        else:
            parts.append(call[0](*call[1:]))
    logps, entropies = zip(*parts)
    return torch.cat(logps), torch.cat(entropies) if entropy else None


def _chunk_scores(head, states: Tensor, ids: Tensor, temperature: float, entropy: bool):
    logits = head(states)  # (n, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1:  # no copy of so many numbers for nothing
        logits = logits / temperature
    logps = -F.cross_entropy(logits, ids, reduction="none")  # keeps one (n, V), not three
    if not entropy:
        return logps, None
    log_all = logits.log_softmax(-1)
    return logps, -(log_all.exp() * log_all).sum(-1)
