"""What a student takes of a card's memory: arithmetic on shapes, nothing is run.

`count` reads a student with its adapter, on the meta device or real. `Sizes` says what a moment
of a forward or backward pass holds beside the weights, `Load` what each phase of a run does.
Numbers are bytes where nothing else is said. A token's tensors are listed where they are added
up, so that each term can be checked against the layer in transformers' modeling_qwen2_5_vl.py
and against torch's saved tensors (the tests do).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isqrt, prod

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from finer1_lite import generation, logprobs
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.students.attention import packs
from finer1_lite.students.families import Family, family_of, in_tower, tower_of

FLOAT = 4  # bytes
BLOCK = 64  # bitsandbytes: weights a scale
BLOCK_OF_BLOCKS = 256  # scales a second scale
TABLES = (16 + 256 + 1) * FLOAT  # a layer's: values of NF4, of a scale's 8 bits, scales' mean
TEXT_TOKENS = 96  # of a prompt beside its picture: question, names of turns; an allowance
TRL_CHUNK = 256  # tokens whose logits TRL's SFT loss makes at a time
TRL_COPIES = 5  # of them, in float32
LOGIT_COPIES = 3  # in float32, in a backward pass
PHASES = ("generate", "score", "update", "sft", "evaluate")
Parts = dict[str, int]  # what lies on the card -> bytes


@dataclass(frozen=True)
class Sizes:
    """The shapes of a student, and what one layer or the whole holds at a moment."""

    weights: Parts
    adapter: int
    adapted: int  # of weights that adapters may be added to: `generation.merged`
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
    compute: int  # bytes of a number inside a 4-bit layer
    largest: int  # numbers of the largest 4-bit layer; 0 without
    vision_width: int
    vision_inner: int
    vision_number: int  # bytes of a number in the vision tower
    patch: int  # pixels a side
    merge: int  # patches a side of one visual token
    side: int  # pixels that every picture is reduced to; 0: as the budget allows
    packed: bool  # recomputed layers see completions behind one prompt: `logprobs.packed_hidden`
    family: Family

    @property
    def kv_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head * self.number

    @property
    def casts(self) -> int:
        """The adapter in the numbers of 16-bit layers, kept for backward: autocast's copies."""
        return 0 if self.number == FLOAT else self.adapter * self.number // FLOAT

    @property
    def token_flops(self) -> int:
        """Of a token's forward pass in the language model: two a weight, the head's among them."""
        attended = 2 * self.width * (self.heads + self.kv_heads) * self.head
        weights = self.layers * (attended + 3 * self.width * self.inner)
        return 2 * (weights + self.vocabulary * self.width)

    def saved(self, rows: int, queries: int, keys: int, masked: bool = True) -> int:
        """What a layer keeps for backward; (rows, queries) tokens look at `keys` places.

        A token: the residual before each norm and the norms' results (LoRA's A is trained and
        wants its input), queries and what attention made of them, four rows of the MLP (gate,
        its SiLU, up, their product) and LoRA's rank numbers of seven projections. Where hidden
        states have 16 bits, so have these, but norms work on float32 copies.
        """
        attended = self.heads * self.head
        token = 2 * self.width * FLOAT
        token += (2 * self.width + 2 * attended + 4 * self.inner) * self.number
        if self.number != FLOAT and not self.largest:  # beside plain layers PEFT copies inputs
            token += (3 * self.width + attended) * self.number
        scales = (self.heads + 2) * FLOAT  # log-sum-exp a head, of two norms
        token += 7 * self.rank * self.number + scales
        seen = self.heads if masked else self.kv_heads  # with a mask, keys are repeated
        cached = 2 * keys * seen * self.head * self.number
        bias = queries * (keys + -keys % 8) * self.number if masked else 0
        return rows * (queries * token + cached + bias)

    def forward(self, rows: int, queries: int, keys: int) -> int:
        """The most that a layer holds where nothing is kept: in the MLP or in attention.

        MLP: the gate's SiLU, up, its adapter's part and their sum; the residual and its norm. In
        4 bits also a layer's weights, unpacked. Attention: queries, keys and values, repeated for
        all heads; the mask as numbers.
        """
        width = self.width * self.number
        inner = self.inner * 4 * self.number
        mlp = rows * queries * (inner + 3 * width) + self.largest * self.compute
        repeated = 2 * keys * self.heads * self.head * self.number
        return max(mlp, rows * (queries * (6 * width + keys * self.number) + repeated))

    def backward(self, rows: int, queries: int) -> int:
        """Gradients at the start of a layer's backward pass, when all that it kept is there.

        They are of the MLP's product, through the base and through the adapter.
        """
        return rows * queries * self.inner * 2 * self.number

    def logits_at_once(self, tokens: int) -> int:
        """Logits of one chunk of `logprobs.token_scores`, in float32."""
        chunk = max(1, logprobs.LOGITS_AT_ONCE // self.vocabulary)
        return min(tokens, chunk) * self.vocabulary * FLOAT

    def sampling(self, rows: int, top_p: float = 1.0) -> int:
        """Logits of a token for each completion: in float32, tempered, as a distribution."""
        word = 3 * FLOAT
        if top_p < 1:  # sorted, their order, running sums twice, a mask, put back
            word += FLOAT + 8 + 2 * FLOAT + 1 + FLOAT
        return rows * self.vocabulary * word

    def vision(self, pictures: int, tokens: int) -> int:
        """The vision tower without gradient: pixels, and the MLP's three rows a patch."""
        pixels = 3 * 2 * self.patch**2 * FLOAT  # twice: Qwen-VL's time axis of two frames
        rows = 3 * (self.vision_inner + self.vision_width) * self.vision_number
        return pictures * tokens * self.merge**2 * (pixels + rows)


def count(student: Student, compute: int = 2) -> Sizes:
    """Sizes of a student with adapter; the same numbers on the meta device and off it."""
    core = generation.core_of(student.model)
    text = core.config.get_text_config()
    vision = core.config.vision_config
    plain = [(n, p) for n, p in core.named_parameters() if "lora_" not in n]
    width = getattr(vision, "embed_dim", None) or vision.hidden_size
    layers = [text.per_layer_config[layer] for layer in range(text.num_hidden_layers)]
    own = text.hidden_size // text.num_attention_heads
    return Sizes(
        weights=_weights(plain),
        adapter=sum(p.nbytes for p in core.parameters() if p.requires_grad),
        adapted=sum(layer.weight.nbytes for layer in generation.adapted(core)),
        parameters=sum(_numbers(p) for _, p in plain),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        inner=text.intermediate_size,
        heads=text.num_attention_heads,
        kv_heads=max(layer.num_key_value_heads for layer in layers),
        head=max(getattr(layer, "head_dim", None) or own for layer in layers),
        vocabulary=text.vocab_size,
        rank=student.model.active_peft_config.r,
        number=core.get_input_embeddings().weight.element_size(),
        compute=compute,
        largest=max((_numbers(p) for _, p in plain if _is_4bit(p)), default=0),
        vision_width=width,
        vision_inner=getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio),
        vision_number=next(tower_of(core).parameters()).element_size(),
        patch=_one(vision.patch_size),
        merge=_merge(core.config),
        side=0 if family_of(core).budget else _one(vision.image_size),
        packed=packs(core),
        family=family_of(core),
    )


def _one(side: int | Sequence[int]) -> int:
    """The side of a square, of which some families keep both."""
    return side if isinstance(side, int) else side[0]


def _merge(config: PreTrainedConfig) -> int:
    """Patches a side of one visual token, under the names of the families."""
    if tokens := getattr(config, "mm_tokens_per_image", None):  # Gemma 3
        return config.vision_config.image_size // config.vision_config.patch_size // isqrt(tokens)
    merge = getattr(config.vision_config, "spatial_merge_size", None)
    merge = merge or getattr(config.vision_config, "pooling_kernel_size", None)
    merge = merge or getattr(config, "scale_factor", None)
    merge = merge or getattr(config, "downsample_factor", None)
    return merge or round(1 / getattr(config, "downsample_ratio", 1))


def _is_4bit(parameter: Tensor) -> bool:
    return type(parameter).__name__ == "Params4bit"


def _numbers(parameter: Tensor) -> int:
    """Numbers that a parameter stands for; a packed 4-bit one remembers its shape."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else torch.Size(state.shape).numel()


def _weights(named: Iterable[tuple[str, Tensor]]) -> Parts:
    """Bytes of the plain student's weights by part.

    Of 4-bit layers too: two weights a byte, a scale of 8 bits for each 64 weights, and of those
    a float32 for each 256 (double quantisation).
    """
    found = Counter()
    for name, parameter in named:
        if _is_4bit(parameter):
            scales = -(-_numbers(parameter) // BLOCK)
            constants = scales + -(-scales // BLOCK_OF_BLOCKS) * FLOAT + TABLES
            found["language layers, 4 bits"] += -(-_numbers(parameter) // 2)
            found["quantisation constants"] += constants
        elif in_tower(name):
            found["vision tower"] += parameter.nbytes
        elif "embed_tokens" in name or "lm_head" in name:
            found["embeddings and head"] += parameter.nbytes
        else:
            found["language layers, the rest"] += parameter.nbytes
    return dict(found)


@dataclass(frozen=True)
class Load:
    """A student and how it is worked: everything that the phases depend on.

    A phase's parts are those of its worst moment: they lie there at the same time, so they
    are added. Phases follow one another: the card must hold the largest, not their sum.
    """

    sizes: Sizes
    preset: Preset
    text_tokens: int = TEXT_TOKENS

    @property
    def visual(self) -> int:
        """Visual tokens of a picture at the pixel budget, or the model's own number of them."""
        pixels = self.sizes.side**2 or self.preset.pixels
        return self.sizes.family.tokens(pixels, self.sizes.patch * self.sizes.merge)

    @property
    def prompt(self) -> int:
        """Tokens of a prompt with its picture."""
        return self.visual + self.text_tokens

    @property
    def whole(self) -> int:
        """Tokens of a prompt and its longest completion."""
        return self.prompt + self.preset.max_new_tokens

    @cached_property
    def phases(self) -> dict[str, Parts]:
        """Phase -> part -> bytes, each at its worst moment."""
        return {name: getattr(self, name)() for name in PHASES}

    def resident(self, trains: bool = True) -> Parts:
        """What stays from step to step."""
        parts = self.sizes.weights | {"adapter": self.sizes.adapter}
        return parts | ({"optimiser (AdamW)": 2 * self.sizes.adapter} if trains else {})

    def generate(self) -> Parts:
        """Rollouts of a step: anchors and positives are answered, negatives only encoded."""
        t = self.preset.tapo
        prompts = t.groups * (1 + bool(t.positive_rollouts))
        pictures = prompts + t.groups * t.reads_negative
        rollouts = t.groups * (t.anchor_rollouts + t.positive_rollouts)
        return self._answering(self.resident(), pictures, prompts, rollouts, t.top_p)

    def evaluate(self) -> Parts:
        """Every picture of a batch is answered once, without an optimiser."""
        n = self.preset.eval_batch
        return self._answering(self.resident(trains=False), n, n, n, 1.0)

    def _answering(
        self, parts: Parts, pictures: int, prompts: int, completions: int, top_p: float
    ) -> Parts:
        """Vision tower of all pictures, each prompt once, then a token of all completions."""
        s, added = self.sizes, self.merged
        prompt = prompts * self.prompt * s.kv_token
        # A layer's keys or values are copied to grow by one token.
        cache = completions * self.whole * s.kv_token * (2 * s.layers + 1) // (2 * s.layers)
        return _worst(
            parts | {"visual features": self._features(pictures)},
            {"vision tower at work": s.vision(pictures, self.visual)},
            {"KV cache": prompt, "activations": s.forward(prompts, self.prompt, self.prompt)}
            | added,
            {"KV cache": cache, "logits": s.sampling(completions, top_p)} | added,
            {"KV cache": cache, "activations": s.forward(completions, 1, self.whole)} | added,
        )

    @property
    def merged(self) -> Parts:
        """What is copied where no gradient is wanted: weights for adapters, or these in 16 bits."""
        size = self.sizes.adapted
        if self.sizes.casts:
            return {"adapter in 16 bits": self.sizes.casts}
        return {"weights with adapters added": size} if 0 < size <= generation.MERGED else {}

    def _features(self, pictures: int) -> int:
        return pictures * self.visual * self.sizes.width * self.sizes.vision_number

    @cached_property
    def micro_batches(self) -> list[Counter]:
        """Of each micro-batch of a step: prompt -> how many of its completions are in it."""
        t = self.preset.tapo
        pictures = [0] * t.anchor_rollouts + [int(t.scored_on == "own")] * t.positive_rollouts
        prompts = [(group, picture) for group in range(t.groups) for picture in pictures]
        starts = range(0, len(prompts), t.micro_batch)
        return [Counter(prompts[at : at + t.micro_batch]) for at in starts]

    def micro_batch(self) -> tuple[int, int]:
        """(completions, distinct prompts) of a micro-batch, at most."""
        return max(part.total() for part in self.micro_batches), max(map(len, self.micro_batches))

    def recomputed(self) -> tuple[int, int]:
        """(rows, their tokens) of the largest micro-batch where layers recompute activations."""
        if not self.sizes.packed:
            return self.micro_batch()[0], self.whole
        length = self.preset.max_new_tokens
        shapes = ((len(part), max(part.values())) for part in self.micro_batches)
        return max(((rows, self.prompt + most * length) for rows, most in shapes), key=prod)

    def kept(self, checkpointing: bool) -> int:
        """What a micro-batch keeps for backward, with and without recomputed layers."""
        s = self.sizes
        length = self.preset.max_new_tokens
        rows, prompts = self.micro_batch()
        chosen = rows * length * s.width * s.number  # hidden states that go to the head
        if checkpointing:  # a layer's input; the last norm computes in float32
            rows, length = self.recomputed()
            return chosen + rows * length * s.width * (s.layers * s.number + FLOAT)
        if s.number == FLOAT:  # of the last norm; in 16 bits the first layer's keeps no copy
            chosen += (prompts * self.prompt + rows * length) * s.width * FLOAT
        first = s.saved(prompts, self.prompt, self.prompt, masked=prompts > 1)
        rest = s.saved(rows, length - 1, self.whole - 1) if length > 1 else 0
        return chosen + s.layers * (first + rest) + s.casts

    def _training(self) -> Parts:
        """What lies there all through the forward and backward passes of stage 2."""
        t = self.preset.tapo
        pictures = t.groups * (1 + bool(t.positive_rollouts) + t.reads_negative)
        passes = 1 + (t.negative_grad and t.reads_negative)
        return self.resident() | {
            "gradients": self.sizes.adapter,
            "visual features": self._features(pictures),
            "activations kept": passes * self.kept(self.preset.gradient_checkpointing),
        }

    def score(self) -> Parts:
        """Forward: what is kept, and meanwhile the negative's pass, which keeps nothing."""
        s = self.sizes
        length = self.preset.max_new_tokens
        rows, prompts = self.micro_batch()
        layer = {"activations": s.forward(rows, length, self.whole)}
        if self.preset.tapo.reads_negative or not self.preset.gradient_checkpointing:
            cached = rows * self.whole + prompts * self.prompt
            layer = {"KV cache": cached * s.kv_token} | layer
        alone = self.preset.tapo.reads_negative and not self.preset.tapo.negative_grad
        added = self.merged if alone else {}
        logits = {"logits": 2 * s.logits_at_once(rows * length)}
        return _worst(self._training(), logits | added, layer | added)

    def update(self) -> Parts:
        """Backward: a chunk of logits, or a layer that is recomputed; then the optimiser."""
        s = self.sizes
        length = self.preset.max_new_tokens
        rows, _ = self.micro_batch()
        logits = LOGIT_COPIES * s.logits_at_once(rows * length)
        layer = s.backward(rows, length)
        if self.preset.gradient_checkpointing:
            rows, length = self.recomputed()
            layer = s.saved(rows, length, length, masked=s.packed or rows > 1)
            layer += s.backward(rows, length)
        return _worst(self._training(), {"logits": logits}, {"activations": layer})

    def sft(self) -> Parts:
        """Stage 1, a chain as long as the longest completion: TRL's loss and the vision tower."""
        s = self.sizes
        rows = self.preset.sft.micro_batch
        layer = s.saved(rows, self.whole, self.whole, masked=rows > 1)
        kept = s.layers * layer + s.casts
        active = s.backward(rows, self.whole)
        if self.preset.gradient_checkpointing:
            kept = (s.layers + 1) * rows * self.whole * s.width * s.number
            active += layer
        logits = TRL_COPIES * min(TRL_CHUNK, rows * self.whole) * s.vocabulary * FLOAT
        if s.number != s.compute:  # the head is copied
            logits += s.vocabulary * s.width * s.compute
        return _worst(
            self.resident() | {"gradients": s.adapter},
            {"vision tower at work": s.vision(rows, self.visual)},
            {"activations kept": kept, "logits": logits},
            {"activations kept": kept, "activations": active},
        )


def _worst(parts: Parts, *moments: Parts) -> Parts:
    """What lies there always, and the largest of the moments."""
    return parts | max(moments, key=lambda moment: sum(moment.values()))
