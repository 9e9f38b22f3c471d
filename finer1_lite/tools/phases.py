"""What each phase of a run holds on the card: parts in bytes, from `memory`'s arithmetic.

A phase's parts are those of its worst moment: they lie there at the same time, so they are
added. Phases follow one another: the card must hold the largest, not their sum.
"""

from dataclasses import dataclass

from finer1_lite.presets import Preset
from finer1_lite.tools import memory
from finer1_lite.tools.memory import FLOAT, Sizes

TEXT_TOKENS = 96  # of a prompt beside its picture: question, names of turns; an allowance
TRL_CHUNK, TRL_COPIES = 256, 5  # tokens whose logits TRL's SFT loss makes at a time
LOGIT_COPIES = 3  # in float32, in a backward pass
Parts = dict[str, int]


@dataclass(frozen=True)
class Load:
    """A student and how it is worked: everything that the phases depend on."""

    sizes: Sizes
    preset: Preset
    text_tokens: int = TEXT_TOKENS

    @property
    def visual(self) -> int:
        """Visual tokens of a picture at the pixel budget."""
        side = self.sizes.patch * self.sizes.merge
        return max(1, self.preset.pixels // side**2)

    @property
    def prompt(self) -> int:
        return self.visual + self.text_tokens

    @property
    def whole(self) -> int:
        """Tokens of a prompt and its longest answer."""
        return self.prompt + self.preset.max_new_tokens

    def resident(self, trains: bool = True) -> Parts:
        """What stays from step to step."""
        parts = dict(self.sizes.weights) | {"adapter": self.sizes.adapter}
        if trains:
            parts["optimiser (AdamW)"] = 2 * self.sizes.adapter
        return parts


def phases(load: Load) -> dict[str, Parts]:
    """Phase -> part -> bytes, each at its worst moment."""
    return {
        "generate": generate(load),
        "score": score(load),
        "update": update(load),
        "sft": sft(load),
        "evaluate": evaluate(load),
    }


def _worst(parts: Parts, *moments: Parts) -> Parts:
    return parts | max(moments, key=lambda m: sum(m.values()))


def generate(load: Load) -> Parts:
    """Vision tower of all pictures, then each prompt once, then a token of all answers."""
    t = load.preset.tapo
    answered = t.groups * (1 + bool(t.positive_rollouts))
    negatives = t.groups * t.reads_negative
    answers = t.groups * (t.anchor_rollouts + t.positive_rollouts)
    return _answering(load, load.resident(), answered + negatives, answered, answers, t.top_p)


def evaluate(load: Load) -> Parts:
    """Every picture of a batch is answered once, without an optimiser."""
    n = load.preset.eval_batch
    return _answering(load, load.resident(trains=False), n, n, n, 1.0)


def _answering(load: Load, parts: Parts, pictures, prompts, answers, top_p) -> Parts:
    s, length, whole = load.sizes, load.prompt, load.whole
    features = {"visual features": _features(load, pictures)}
    decode = max(memory.sampling(s, answers, top_p), memory.forward(s, answers, 1, whole))
    name = "logits" if decode == memory.sampling(s, answers, top_p) else "activations"
    return _worst(
        parts,
        features | {"vision tower at work": memory.vision(s, pictures, load.visual)},
        features
        | {
            "KV cache": prompts * length * s.kv_token,
            "activations": memory.forward(s, prompts, length, length),
        },
        # A layer's keys or values are copied to grow by one token.
        features
        | {
            "KV cache": answers * whole * s.kv_token * (2 * s.layers + 1) // (2 * s.layers),
            name: decode,
        },
    )


def _features(load: Load, pictures: int) -> int:
    return pictures * load.visual * load.sizes.width * load.sizes.vision_number


def _micro_batch(load: Load) -> tuple[int, int]:
    """(answers, distinct prompts) of a micro-batch."""
    t = load.preset.tapo
    together = t.anchor_rollouts + t.positive_rollouts
    rows = min(t.micro_batch, t.groups * together)
    if t.scored_on == "own" and t.positive_rollouts:
        together = min(t.anchor_rollouts, t.positive_rollouts)
    return rows, -(-rows // together)


def kept(load: Load, checkpointing: bool) -> int:
    """What a micro-batch keeps for the backward pass, with and without recomputed layers."""
    s, answer = load.sizes, load.preset.max_new_tokens
    rows, prompts = _micro_batch(load)
    chosen = rows * answer * s.width * s.number  # hidden states that go to the head
    if checkpointing:  # a layer's input; the last norm computes in float32
        return chosen + rows * load.whole * s.width * (s.layers * s.number + FLOAT)
    chosen += (prompts * load.prompt + rows * answer) * s.width * FLOAT
    first = memory.saved(s, prompts, load.prompt, load.prompt, masked=prompts > 1)
    rest = memory.saved(s, rows, answer - 1, load.whole - 1) if answer > 1 else 0
    return chosen + s.layers * (first + rest)


def _training(load: Load) -> Parts:
    t = load.preset.tapo
    pictures = t.groups * (1 + bool(t.positive_rollouts) + t.reads_negative)
    passes = 1 + (t.negative_grad and t.reads_negative)
    return load.resident() | {
        "gradients": load.sizes.adapter,
        "visual features": _features(load, pictures),
        "activations kept": passes * kept(load, load.preset.gradient_checkpointing),
    }


def score(load: Load) -> Parts:
    """Forward: what is kept, and meanwhile the negative's pass, which keeps nothing."""
    s, answer = load.sizes, load.preset.max_new_tokens
    rows, prompts = _micro_batch(load)
    chunk = {"logits": 2 * memory.logits_at_once(s, rows * answer)}
    cache = {"KV cache": (rows * load.whole + prompts * load.prompt) * s.kv_token}
    layer = {"activations": memory.forward(s, rows, answer, load.whole)}
    if not load.preset.tapo.reads_negative and load.preset.gradient_checkpointing:
        return _worst(_training(load), chunk, layer)
    return _worst(_training(load), chunk, cache | layer)


def update(load: Load) -> Parts:
    """Backward: a chunk of logits, or a layer that is recomputed; then the optimiser."""
    s, whole, answer = load.sizes, load.whole, load.preset.max_new_tokens
    rows, _ = _micro_batch(load)
    chunk = {"logits": LOGIT_COPIES * memory.logits_at_once(s, rows * answer)}
    layer = {"activations": memory.backward(s, rows, answer)}
    if load.preset.gradient_checkpointing:
        again = memory.saved(s, rows, whole, whole, masked=rows > 1)
        layer = {"activations": again + memory.backward(s, rows, whole)}
    return _worst(_training(load), chunk, layer)


def sft(load: Load) -> Parts:
    """Stage 1, a chain as long as the longest answer: TRL's loss and the vision tower."""
    s, rows, whole = load.sizes, load.preset.sft.micro_batch, load.whole
    parts = load.resident() | {"gradients": s.adapter}
    layer = memory.saved(s, rows, whole, whole, masked=rows > 1)
    held, again = s.layers * layer, 0
    if load.preset.gradient_checkpointing:
        held, again = (s.layers + 1) * rows * whole * s.width * s.number, layer
    chunk = TRL_COPIES * min(TRL_CHUNK, rows * whole) * s.vocabulary * FLOAT
    copied = s.vocabulary * s.width * s.compute if s.number != s.compute else 0  # of the head
    return _worst(
        parts,
        {"vision tower at work": memory.vision(s, rows, load.visual)},
        {"activations kept": held, "logits": chunk + copied},
        {"activations kept": held, "activations": again + memory.backward(s, rows, whole)},
    )
