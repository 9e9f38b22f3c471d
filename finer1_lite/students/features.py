"""Pictures' features that stay in memory: a frozen tower looks at each picture once."""

import hashlib
import inspect
import logging
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling as Output

from finer1_lite.students.families import FAMILIES, SUPPORTED, tower_of

log = logging.getLogger("finer1_lite")
LARGEST = 2**30  # bytes that are kept; beyond them all is forgotten and seen anew


def keep_features(core: nn.Module) -> None:
    """Let a model remember what its tower made of a picture, by the picture's own numbers.

    Both stages and every evaluation show the same pictures many times. Each is looked at by
    itself, so that its features do not depend on its neighbours in a batch, and kept in the
    memory of the CPU. The tower's weights do not learn from now on; with adapters it looks each
    time. A family that nobody tried here is left as it is, which is said.
    """
    if core.config.model_type not in FAMILIES:
        log.info("features are not kept: it is none of %s", SUPPORTED)
        return
    kept: dict[bytes, list[Tensor]] = {}
    tower = tower_of(core).requires_grad_(False)
    model = weakref.ref(core.model)  # which would else hold itself, and its memory when deleted
    look = type(core.model).get_image_features
    known = inspect.signature(look).parameters.values()
    inputs = [p.name for p in known if p.kind != p.VAR_KEYWORD][1:]  # without self

    def seen(*given: Any, **named: Any) -> Output:
        named |= dict(zip(inputs, given, strict=False))
        if any("lora_" in name for name, _ in tower.named_parameters()):
            return look(model(), **named)
        shown = {name: named.pop(name) for name in inputs if name in named}
        found = []
        for own in pictures(shown):
            numbers = [x.cpu().float().numpy() for x in own.values() if isinstance(x, Tensor)]
            key = hashlib.blake2b(b"".join(x.tobytes() for x in numbers)).digest()
            if key not in kept:
                if sum(x.nbytes for parts in kept.values() for x in parts) > LARGEST:
                    kept.clear()
                with torch.no_grad():
                    kept[key] = [x.cpu() for x in parts_of(look(model(), **own, **named))]
            found.append([x.to(shown["pixel_values"].device) for x in kept[key]])
        return joined(found)

    core.model.get_image_features = seen


def pictures(inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a tower is given, picture by picture; Qwen-VL's patches lie one behind the other."""
    grids = inputs.get("image_grid_thw")
    rows = {name: x.split(1) for name, x in inputs.items() if isinstance(x, Tensor)}
    if grids is not None:
        rows["pixel_values"] = inputs["pixel_values"].split(grids.prod(-1).tolist())
    for own in zip(*rows.values(), strict=True):
        yield inputs | dict(zip(rows, own, strict=True))


def parts_of(out: Output) -> list[Tensor]:
    """Features of one picture, (tokens, width) or (1, tokens, width), and DeepStack's."""
    pooled = out.pooler_output
    own = [pooled] if isinstance(pooled, Tensor) else list(pooled)
    return own + list(getattr(out, "deepstack_features", None) or [])


def joined(found: Sequence[Sequence[Tensor]]) -> Output:
    """Of several pictures what the tower would have given for all of them."""
    first, *deep = zip(*found, strict=True)
    out = Output(pooler_output=torch.cat(first) if first[0].ndim == 3 else first)
    out.deepstack_features = [torch.cat(layer) for layer in deep]
    return out
