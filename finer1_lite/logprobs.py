"""Log-probabilities of given completions: what the policy thinks of them on any picture.

A prompt runs once and its completions share the cache. Layers that recompute their activations
(gradient checkpointing) keep no cache: there a prompt's completions stand behind it in one row,
or, in families whose layers one mask does not rule, each behind a copy of it.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from finer1_lite.generation import (
    PromptBatch,
    core_of,
    decode,
    embed,
    embed_prompts,
    last_positions,
    logits_of,
    prefill_rows,
    softcap,
)
from finer1_lite.students.attention import packs
from finer1_lite.students.families import recurrent

LOGITS_AT_ONCE = 2**24  # numbers: 64 MiB in float32, of which the backward pass makes three
CACHE_AT_ONCE = 2**16  # tokens of prompts, copied for their completions: 2.4 GB of a 3B model


def log_probs(
    model: nn.Module,
    batch: PromptBatch,
    completion_ids: Tensor,
    completion_mask: Tensor,
    which: Sequence[int] | Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Log-probabilities of given completions, (B, T) as their ids and mask; zeros where masked.

    A completion's real tokens come first. which: (B,) the prompt of `batch` on which it is scored.
    This is how one completion is scored on anchor, positive or negative alike. Gradient reaches
    whatever of the language model requires it.
    """
    core = core_of(model)
    which = torch.as_tensor(which, device=batch.input_ids.device)
    recompute = core.is_gradient_checkpointing and core.training
    recompute |= recurrent(core) and torch.is_grad_enabled()
    in_one_pass = packed_hidden if packs(core) else recomputed_hidden
    hidden_states = in_one_pass if recompute else shared_hidden
    longest = int(completion_mask.sum(1).max().clamp(min=1))  # the batch has longer ones
    ids, mask = completion_ids[:, :longest], completion_mask[:, :longest]
    hidden = hidden_states(core, batch, ids, mask, which)  # (B, longest, width)
    tokens = ids[mask.bool()]
    logps = token_scores(core.lm_head, hidden[mask.bool()], tokens, temperature, softcap(core))
    blank = torch.zeros(completion_mask.shape, dtype=logps.dtype, device=logps.device)
    return blank.masked_scatter(completion_mask.bool(), logps)


@torch.no_grad()
def of_each(model: nn.Module, batch: PromptBatch, texts: Sequence[Tensor]) -> Tensor:
    """Log-probability of each of C completions, ids (T,), behind each of P prompts: (P, C).

    Without gradient; as many pairs at a time as `CACHE_AT_ONCE` allows, prompt by prompt, so that
    memory does not grow with C, and a prompt runs again only where its pairs were parted.
    """
    device, many = batch.input_ids.device, len(texts)
    ids = pad_sequence(list(texts), batch_first=True).to(device)
    lengths = torch.tensor([len(text) for text in texts], device=device)
    mask = (torch.arange(ids.shape[1], device=device) < lengths[:, None]).long()
    pairs = torch.arange(len(batch.input_ids) * many, device=device)
    found = [
        log_probs(model, batch, ids[some % many], mask[some % many], some // many).sum(1)
        for some in pairs.split(max(1, CACHE_AT_ONCE // batch.input_ids.shape[1]))
    ]
    return torch.cat(found).view(-1, many)


def shared_hidden(
    core: nn.Module, batch: PromptBatch, ids: Tensor, mask: Tensor, which: Tensor
) -> Tensor:
    """Hidden states before each token; each prompt runs once, its completions share the cache.

    ids, mask: (B, T); which: (B,). Returns (B, T, width).
    """
    used, row = which.unique(return_inverse=True)
    first, cache, prompt_mask, last = prefill_rows(core, batch.rows(used.tolist()), row)
    if ids.shape[1] == 1:
        return first
    ahead = torch.arange(1, ids.shape[1], device=ids.device)
    rest = decode(
        core,
        **embed(core, ids[:, :-1]),
        attention_mask=torch.cat([prompt_mask, mask[:, :-1]], 1),
        position_ids=last + ahead,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return torch.cat([first, rest], 1)


def recomputed_hidden(
    core: nn.Module, batch: PromptBatch, ids: Tensor, mask: Tensor, which: Tensor
) -> Tensor:
    """The same in one pass, each completion behind a copy of its prompt: for every family."""
    whole = batch.rows(which.tolist()).followed_by(ids, mask)
    out = decode(core, **embed_prompts(core, whole), use_cache=False)
    return out.last_hidden_state[:, -ids.shape[1] - 1 : -1]


def packed_hidden(
    core: nn.Module, batch: PromptBatch, ids: Tensor, mask: Tensor, which: Tensor
) -> Tensor:
    """The same in one pass, each prompt once and its completions one behind the other after it.

    A token sees its prompt and what came before it in its own completion, whose positions go on
    from the prompt's last one as if it stood there alone.
    """
    used, row = which.unique(return_inverse=True)
    prompts = batch.rows(used.tolist())
    together = row[:, None] == row  # (B, B) completions of one prompt
    lengths = mask.sum(1)
    time = torch.arange(ids.shape[1], device=ids.device)
    column = (together.tril(-1) * lengths).sum(1, keepdim=True) + time  # (B, T) behind the prompt
    real = mask.bool()
    at = row[:, None].expand_as(ids)[real], column[real]
    size = len(used), int((together * lengths).sum(1).max())
    packed, present, owner = ids.new_zeros(size), mask.new_zeros(size), row.new_zeros(size)
    packed[at], present[at] = ids[real], 1
    owner[at] = torch.arange(1, len(ids) + 1, device=ids.device)[:, None].expand_as(ids)[real]
    whole = prompts.followed_by(packed, present)
    length = prompts.input_ids.shape[1]
    ahead = last_positions(prompts)[:, row] + 1 + time  # (3, B, T)
    whole.position_ids[:, at[0], length + at[1]] = ahead[:, real]
    whole.attention_mask = which_see(whole.attention_mask, F.pad(owner, (length, 0)))
    out = decode(core, **embed_prompts(core, whole), use_cache=False).last_hidden_state
    before = torch.where(time > 0, column, 0).clamp(max=size[1]) + length - 1
    return out[row[:, None], before]


def which_see(present: Tensor, owner: Tensor) -> Tensor:
    """Which token sees which, (U, 1, Q, Q); present, owner: (U, Q), 0 on padding, of the prompt.

    Padding sees itself: where nothing is seen, attention is nan.
    """
    place = torch.arange(owner.shape[1], device=owner.device)
    seen = (owner[:, None] == 0) | (owner[:, None] == owner[..., None])
    seen &= present[:, None].bool() & (place <= place[:, None])
    return (seen | (place == place[:, None]))[:, None]


def token_scores(
    head: nn.Module,
    hidden: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    cap: float | None = None,
) -> Tensor:
    """Log-probability of each token, (N,).

    hidden: (N, width), tokens: (N,); cap: see `generation.softcap`. A few tokens at a time, and
    the backward pass computes their logits anew: at most `LOGITS_AT_ONCE` logits live, never
    (N, vocabulary).
    """
    size = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    score = _chunk_scores
    if torch.is_grad_enabled() and len(tokens) > size:
        score = partial(checkpoint, _chunk_scores, use_reentrant=False)
    chunks = zip(hidden.split(size), tokens.split(size), strict=True)
    return torch.cat([score(head, states, ids, temperature, cap) for states, ids in chunks])


def _chunk_scores(
    head: nn.Module, states: Tensor, ids: Tensor, temperature: float, cap: float | None = None
) -> Tensor:
    """`token_scores` of a few tokens: (n,)."""
    logits = logits_of(head, states, cap)  # (n, V)
    if temperature != 1:  # no copy of so many numbers for nothing
        logits = logits / temperature
    return -F.cross_entropy(logits, ids, reduction="none")  # keeps one (n, V), not three
