"""Attention of one new token behind padded prompts, without a copy of the cache for each head.

Where several query heads share their keys and values (grouped-query attention), transformers'
"sdpa" repeats these for every head as soon as a mask is given, which prompts of unequal length
want. Here the heads of a group are the queries of one head of keys.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from finer1_lite.students.families import family_of

NAME = "sdpa_grouped"


def grouped(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' own: query (B, H, Q, D), key and value (B, G, K, D) -> (B, Q, H, D)."""
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    own = kwargs.get("dropout") or kwargs.get("position_bias") is not None or groups == heads
    if attention_mask is None or length > 1 or own:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    out = F.scaled_dot_product_attention(
        query.reshape(rows, groups, heads // groups, width),  # a group's heads: its queries
        key,
        value,
        attn_mask=attention_mask,
        scale=kwargs.get("scaling"),
    )
    return out.reshape(rows, 1, heads, -1), None


def group_heads(model: PreTrainedModel) -> None:
    """Let a model's language layers attend so, where they would by transformers' "sdpa"."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        model.set_attn_implementation({"text_config": NAME})


def packs(model: PreTrainedModel) -> bool:
    """Whether a mask of ours alone says which tokens see one another.

    Not where layers keep a state, look at a window, or make masks of their own, and not under
    another attention than ours.
    """
    text = model.config.get_text_config()
    plain = all(kind == "full_attention" for kind in getattr(text, "layer_types", None) or ())
    plain &= not getattr(text, "sliding_window", None)
    return family_of(model).packs and plain and text._attn_implementation == NAME


AttentionInterface.register(NAME, grouped)
AttentionMaskInterface.register(NAME, sdpa_mask)
