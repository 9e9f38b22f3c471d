"""How long a run takes: arithmetic on what a card does in a second, beside the memory plan.

A token's decoding waits for the slowest of three: weights and cache read from memory, the
arithmetic of all rows, the host that starts every layer's kernels. Everything else is counted as
arithmetic. Long rather than short: every completion is decoded to the limit, every round of
dynamic sampling is drawn; what is trained on is half of the limit, as chains are.
"""

import os
import time
from dataclasses import dataclass

import torch

from finer1_lite.tools.memory import FLOAT, Load

USED = 0.25  # of the peak FLOP/s: small batches, adapters and recomputed layers; assumed
READ = 0.5  # of the peak bytes/s; assumed
KERNELS = 120  # that a layer starts a token, with NF4 and LoRA
ANSWERED = 0.5  # of the limit, where a completion is trained on
STAGES = ("loading", "sft", "tapo", "evaluation")


@dataclass(frozen=True)
class Rates:
    """What a machine reaches in a second, and where that is known from."""

    source: str
    half: float  # FLOP/s in 16 bits
    single: float  # FLOP/s in float32
    memory: float  # bytes read
    layer: float = 1e-3  # seconds in which the host starts a layer's kernels for a token
    disk: float = 300e6  # bytes of a checkpoint, quantised while it is read

    def flops(self, number: int) -> float:
        """FLOP/s in numbers of so many bytes."""
        return self.single if number == FLOAT else self.half


def assumed(name: str, half: float, single: float, memory: float, **more: float) -> Rates:
    """Rates from published peaks (TFLOP/s dense, GB/s) and the stated shares of them."""
    shares = f"{USED:.0%} of its peak FLOP/s, {READ:.0%} of its memory's"
    where = f"assumed, not measured: {name}, {shares}"
    return Rates(where, half * USED * 1e12, single * USED * 1e12, memory * READ * 1e9, **more)


TABLE = {  # NVIDIA's data sheets, without sparsity
    "t4": assumed("T4", 65, 8.1, 320),
    "l4": assumed("L4", 121, 30.3, 300),
    "a100": assumed("A100", 312, 19.5, 1555),
    "h100": assumed("H100", 989, 67, 3350),
}


def of_cores(cores: int) -> Rates:
    """CPU cores of 3 GHz with AVX2, which share two channels of memory; assumed as the cards."""
    return assumed(f"{cores} CPU cores", 0.1 * cores, 0.1 * cores, 40, layer=2e-4)


def choose(card: str, gib: float, on_cpu: bool) -> Rates:
    """Of a card by its name, else of the one that is here (measured), else of one as large."""
    name = card.casefold().partition("-")[0]
    if on_cpu:
        return of_cores(os.cpu_count() or 1)
    if name in TABLE:
        return TABLE[name]
    if torch.cuda.is_available():
        return probe(torch.device("cuda"))
    return TABLE["t4" if gib <= 16 else "l4" if gib <= 32 else "a100"]


def probe(device: torch.device, seconds: float = 2.5, side: int = 4096) -> Rates:
    """Measure a card: square products in both types, a copy, and how fast kernels start.

    Four times so many seconds. The shares of the table are taken of products too, for a layer
    does worse than a large square.
    """
    half = torch.float16 if device.type == "cuda" else torch.bfloat16
    pairs = [torch.ones(side, side, device=device, dtype=t) for t in (half, torch.float32)]
    many, few = torch.ones(side, side, device=device), torch.ones(8, device=device)
    work = [lambda a=a: a @ a for a in pairs] + [many.clone, lambda: few + 1]
    halved, single, copies, kernels = (_a_second(one, device, seconds) for one in work)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    flops, moved = 2 * side**3 * USED, 2 * many.nbytes * READ
    reached = (halved * flops, single * flops, copies * moved, KERNELS / kernels)
    return Rates(f"measured just now: {name}", *reached)


def _a_second(work: object, device: torch.device, seconds: float) -> float:
    """How often a second something is done."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda _: None
    work(), wait(device)  # the first time is slow
    start, done = time.perf_counter(), 0
    while done < 2 or time.perf_counter() - start < seconds:
        for _ in range(10):  # the host may run ahead
            work()
        wait(device)
        done += 10
    return done / (time.perf_counter() - start)


@dataclass(frozen=True)
class Minutes:
    """A load at some rates: seconds of each stage of a run with one training seed."""

    load: Load
    rates: Rates

    @property
    def seconds(self) -> dict[str, float]:
        """Stage -> seconds."""
        return {stage: getattr(self, stage)() for stage in STAGES}

    def loading(self) -> float:
        """The model is read five times: for the base, to train each stage and to examine it."""
        s = self.load.sizes
        return 5 * s.parameters * min(s.number, 2) / self.rates.disk

    def sft(self) -> float:
        """Every row is a picture, its prompt and a chain."""
        sft, row = self.load.preset.sft, self.load.prompt + self._answer
        return sft.steps * sft.batch * (self._trained(row) + self._seen(1))

    def tapo(self) -> float:
        """Rollouts of every round, then one update, whose micro-batches read their prompts."""
        preset, t = self.load.preset, self.load.preset.tapo
        together = t.anchor_rollouts + t.positive_rollouts
        prompts, rows = t.groups * (1 + bool(t.positive_rollouts)), t.groups * together
        pictures = prompts + t.groups * t.reads_negative
        drawn = t.draws * (self._seen(pictures) + self._answered(prompts, rows)) / t.updates
        copies = preset.gradient_checkpointing and not self.load.sizes.packed
        read = rows if copies else sum(map(len, self.load.micro_batches))
        update = self._trained(read * self.load.prompt + rows * self._answer)
        negatives = t.groups * (t.negative_rollouts or together) * t.reads_negative
        update += self._read(negatives * (self.load.prompt + self._answer))
        return t.steps * (drawn + update / t.updates)

    def evaluation(self) -> float:
        """Both worlds: the base under two prompts, the model of each stage under one.

        Features are kept as long as a model is loaded: of three, one after the other.
        """
        preset = self.load.preset
        pictures = preset.test_pictures * (2 if preset.student == "assets" else 1)  # birds: a split
        sizes = [preset.eval_batch] * (pictures // preset.eval_batch)
        sizes += [rest] if (rest := pictures % preset.eval_batch) else []
        looks = 3 if preset.keep_features else 8
        return sum(looks * self._seen(n) + 8 * self._answered(n, n) for n in sizes)

    @property
    def _answer(self) -> float:
        return self.load.preset.max_new_tokens * ANSWERED

    def _read(self, tokens: float) -> float:
        """Seconds of a forward pass of the language model."""
        return tokens * self.load.sizes.token_flops / self.rates.flops(self.load.sizes.number)

    def _trained(self, tokens: float) -> float:
        """Forward, backward to the adapters, and forward once more where layers are recomputed."""
        return (2 + self.load.preset.gradient_checkpointing) * self._read(tokens)

    def _seen(self, pictures: int) -> float:
        """Seconds of the vision tower, every weight for every patch."""
        s = self.load.sizes
        weights = s.weights.get("vision tower", 0) / s.vision_number
        patches = pictures * self.load.visual * s.merge**2
        return 2 * weights * patches / self.rates.flops(s.vision_number)

    def _answered(self, prompts: int, rows: int) -> float:
        """Prompts are read, then `rows` completions are written side by side to the limit."""
        s, length = self.load.sizes, self.load.preset.max_new_tokens
        cache = rows * (self.load.prompt + length / 2) * s.kv_token
        weights = sum(v for k, v in s.weights.items() if k != "vision tower")
        if s.largest and s.number == FLOAT:  # for few rows only is a product done in 4 bits
            weights += 2 * FLOAT * 2 * s.weights["language layers, 4 bits"]  # written, read
        moved = (weights + cache) / self.rates.memory
        token = max(moved, self._read(rows), s.layers * self.rates.layer)
        return self._read(prompts * self.load.prompt) + length * token

    def __str__(self) -> str:
        found = self.seconds
        parts = ", ".join(f"{stage} {value / 60:.0f}" for stage, value in found.items())
        number = 8 * self.load.sizes.number
        return (
            f"minutes of a seed: {sum(found.values()) / 60:.0f} ({parts}), in {number} bits, "
            f"without downloads\nrates {self.rates.source}"
        )
