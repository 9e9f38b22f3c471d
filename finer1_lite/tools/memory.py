"""What a student takes of a card's memory: arithmetic on shapes, nothing is run.

`count` reads a student with its adapter, on the meta device or real. The rest answers, in
bytes, what each moment of a step holds beside the weights. Names follow `Sizes`; a token's
tensors are listed where they are added up, so that each term can be checked against the
layer in transformers' modeling_qwen2_5_vl.py and against torch's saved tensors (the tests
do).
"""

from collections import Counter
from dataclasses import dataclass

import torch

from finer1_lite import generation, logprobs
from finer1_lite.generation import Student

FLOAT = 4  # bytes
BLOCK, BLOCK_OF_BLOCKS = 64, 256  # bitsandbytes: weights a scale, scales a second scale
TABLES = (16 + 256 + 1) * FLOAT  # a layer's: values of NF4, of a scale's 8 bits, scales' mean


@dataclass(frozen=True)
class Sizes:
    """What the arithmetic needs to know. Bytes, where not said otherwise."""

    weights: dict[str, int]  # part -> bytes
    adapter: int
    parameters: int  # numbers, of the plain student
    layers: int
    width: int
    inner: int  # of the gated MLP
    heads: int
    kv_heads: int
    head: int  # numbers a head
    vocabulary: int
    rank: int
    number: int  # bytes of a hidden state's number
    compute: int  # of a number inside a 4-bit layer
    largest: int  # numbers of the largest 4-bit layer; 0 without
    vision_width: int
    vision_inner: int
    vision_number: int  # bytes of a number in the vision tower
    patch: int  # pixels a side
    merge: int  # patches a side of one visual token

    @property
    def kv_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head * self.number


def count(student: Student, compute: int = 2) -> Sizes:
    """Sizes of a student with adapter; the same numbers on the meta device and off it."""
    core = generation.core_of(student.model)
    config, vision = core.config.get_text_config(), core.config.vision_config
    plain = [(n, p) for n, p in core.named_parameters() if "lora_" not in n]
    four = [p for _, p in plain if _is_4bit(p)]
    trained = [p for p in core.parameters() if p.requires_grad]
    tower = next(core.model.visual.parameters())
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    inner = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
    return Sizes(
        weights=_weights(plain),
        adapter=sum(map(_bytes, trained)),
        parameters=sum(_numbers(p) for _, p in plain),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        inner=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocabulary=config.vocab_size,
        rank=student.model.active_peft_config.r,
        number=core.get_input_embeddings().weight.element_size(),
        compute=compute,
        largest=max(map(_numbers, four), default=0),
        vision_width=width,
        vision_inner=inner,
        vision_number=tower.element_size(),
        patch=vision.patch_size,
        merge=vision.spatial_merge_size,
    )


def _is_4bit(parameter) -> bool:
    return type(parameter).__name__ == "Params4bit"


def _numbers(parameter) -> int:
    """Numbers that a parameter stands for; a packed 4-bit one remembers its shape."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else torch.Size(state.shape).numel()


def _bytes(parameter) -> int:
    return parameter.numel() * parameter.element_size()


def _weights(named) -> dict[str, int]:
    found = Counter()
    for name, parameter in named:
        if _is_4bit(parameter):
            packed, constants = four_bit_bytes(_numbers(parameter))
            found["language layers, 4 bits"] += packed
            found["quantisation constants"] += constants
        elif ".visual." in name:
            found["vision tower"] += _bytes(parameter)
        elif "embed_tokens" in name or "lm_head" in name:
            found["embeddings and head"] += _bytes(parameter)
        else:
            found["language layers, the rest"] += _bytes(parameter)
    return dict(found)


def four_bit_bytes(numbers: int) -> tuple[int, int]:
    """(packed weights, constants of double quantisation) of a 4-bit layer.

    A scale of 8 bits for each 64 weights; of those, a float32 for each 256.
    """
    scales = -(-numbers // BLOCK)
    return -(-numbers // 2), scales + -(-scales // BLOCK_OF_BLOCKS) * FLOAT + TABLES


# --- one layer of the language model ---------------------------------------------------


def saved(s: Sizes, rows: int, queries: int, keys: int, masked: bool = True) -> int:
    """What a layer keeps for its backward pass; (rows, queries) tokens look at `keys` places.

    A token: the residual before each norm and the norms' results (LoRA's A is trained and
    wants its input), queries and what attention made of them, four rows of the MLP (gate,
    its SiLU, up, their product) and LoRA's rank numbers of seven projections. Where hidden
    states have 16 bits, norms work on float32 copies and so does every adapter.
    """
    w, i, n = s.width, s.inner, s.number
    attended = s.heads * s.head
    if n == FLOAT:
        token = (4 * w + 2 * attended + 4 * i) * FLOAT
    else:
        token = (2 * w + 5 * w + attended + i) * FLOAT + (2 * attended + 3 * i) * n
    token += (7 * s.rank + s.heads + 2) * FLOAT  # log-sum-exp a head, two norms' scales
    seen = s.heads if masked else s.kv_heads  # with a mask, keys are repeated for all heads
    bias = rows * queries * (keys + -keys % 8) * n if masked else 0
    return rows * (queries * token + 2 * keys * seen * s.head * n) + bias


def forward(s: Sizes, rows: int, queries: int, keys: int) -> int:
    """The most that a layer holds at a time where nothing is kept: in the MLP or in attention.

    MLP: the gate's SiLU, up, its adapter's part (float32) and their sum; the residual and its
    norm. In 4 bits also a layer's weights, unpacked. Attention: queries, keys and values,
    repeated for all heads; the mask as numbers.
    """
    tokens, w = rows * queries, s.width * s.number
    mlp = tokens * (_mlp_row(s) + 3 * w) + s.largest * s.compute
    repeated = 2 * rows * keys * s.heads * s.head * s.number
    attention = tokens * 6 * w + repeated + tokens * keys * s.number
    return max(mlp, attention)


def backward(s: Sizes, rows: int, queries: int) -> int:
    """Gradients at the start of a layer's backward pass, when all that it kept is still there:
    of the MLP's product, through the base and through the adapter (float32)."""
    return rows * queries * s.inner * (s.number + FLOAT)


def _mlp_row(s: Sizes) -> int:
    """Four rows of the MLP, two of them an adapter's, in float32. Bytes a token"""
    return s.inner * (2 * s.number + 2 * FLOAT)


# --- the whole student -----------------------------------------------------------------


def logits_at_once(s: Sizes, tokens: int) -> int:
    """Logits of one chunk of `rollouts.token_scores`, in float32."""
    return min(tokens, max(1, logprobs.LOGITS_AT_ONCE // s.vocabulary)) * s.vocabulary * FLOAT


def sampling(s: Sizes, rows: int, top_p: float = 1.0) -> int:
    """Logits of a token for each answer: as they come, tempered, as a distribution."""
    a_word = 3 * FLOAT + (s.number if s.number != FLOAT else 0)
    if top_p < 1:  # sorted, their order, running sums twice, a mask, put back
        a_word += FLOAT + 8 + 2 * FLOAT + 1 + FLOAT
    return rows * s.vocabulary * a_word


def vision(s: Sizes, pictures: int, tokens: int) -> int:
    """The vision tower without gradient: pixels, and the MLP's three rows a patch."""
    patches = pictures * tokens * s.merge**2
    pixels = 3 * 2 * s.patch**2 * FLOAT  # a patch twice: Qwen-VL's time axis of two frames
    return patches * (pixels + (3 * s.vision_inner + 3 * s.vision_width) * s.vision_number)
