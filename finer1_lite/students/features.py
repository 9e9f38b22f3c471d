"""Pictures' features that stay in memory: a frozen tower looks at each picture once."""

import hashlib
import logging

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from finer1_lite.students.families import family_of, tower_of

log = logging.getLogger("finer1_lite")
LARGEST = 2**30  # bytes that are kept; beyond them all is forgotten and seen anew


def keep_features(core: nn.Module) -> None:
    """Let a model remember what its tower made of a picture, by the picture's own numbers.

    Both stages and every evaluation show the same pictures many times. Each is looked at by
    itself, so that its features do not depend on its neighbours in a batch. A tower that learns,
    or has adapters, looks each time. SmolVLM and Idefics3 alone, in whose inputs pictures lie one
    behind the other; others are left as they are, which is said.
    """
    if not family_of(core).tiles:
        log.info("features are not kept: of SmolVLM and Idefics3 alone")
        return
    kept: dict[bytes, Tensor] = {}
    look = core.model.get_image_features

    def seen(
        pixel_values: Tensor, pixel_attention_mask: Tensor | None = None, **options: bool
    ) -> BaseModelOutputWithPooling:
        tower = tower_of(core)
        named = tower.named_parameters()
        if any("lora_" in name or weight.requires_grad for name, weight in named):
            return look(pixel_values, pixel_attention_mask, **options)
        found = []
        for at in range(len(pixel_values)):
            own = [x if x is None else x[at : at + 1] for x in (pixel_values, pixel_attention_mask)]
            numbers = b"".join(x.cpu().float().numpy().tobytes() for x in own if x is not None)
            key = hashlib.blake2b(numbers).digest()
            if key not in kept:
                if sum(features.nbytes for features in kept.values()) > LARGEST:
                    kept.clear()
                with torch.no_grad():
                    kept[key] = look(*own, **options).pooler_output
            found.append(kept[key])
        return BaseModelOutputWithPooling(pooler_output=torch.cat(found))

    core.model.get_image_features = seen
