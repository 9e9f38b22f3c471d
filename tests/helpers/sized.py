"""Random students of several sizes, and what torch really holds for them."""

import itertools
from contextlib import contextmanager

import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from finer1_lite import generation, models
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.students import random_weights

VISION = (2, 64, 4, 128, (1,))
SIZES = {  # beside those of `random_weights`
    "middle": ((151_936, 128, 8, 4, 2, 1024), True, VISION),
    "one layer of 3B": ((151_936, 2048, 1, 16, 2, 11_008), True, VISION),
}


def preset_of(name: str, **changes) -> Preset:
    """64 visual tokens a picture; any size of `SIZES`, here or there."""
    changes = dict(quantize="nf4", pixels=64 * 28 * 28, lora_rank=8) | changes
    return Preset.lab().with_(student=random_weights.PREFIX + name, **changes)


def adapted(preset: Preset) -> Student:
    return models.add_adapter(models.load_student(preset.student, preset), preset, seed=0)


def prompts_of(student: Student, count: int = 1) -> generation.PromptBatch:
    """Prompts with a picture of 64 visual tokens each."""
    pictures = [Image.new("RGB", (224, 224), (50 * i, 100, 150)) for i in range(count)]
    questions = ["Describe the bird."] * count
    return generation.encode_prompts(student.model, student.processor, questions, pictures)


def answers(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Completions of which the first is a token shorter, so that attention is masked."""
    tokens = torch.randint(10, 600, (rows, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, -1] = 0
    return tokens, mask


@contextmanager
def recomputed(model, checkpointing: bool):
    """Gradient checkpointing as stage 2 has it, where wanted; off again at the end."""
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    yield
    model.gradient_checkpointing_disable()
    model.eval()


def saved_bytes(model, call) -> int:
    """Bytes of distinct memory that a forward pass keeps for its backward pass."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    held = {}  # the tensor too: a freed one's address would be used again

    def pack(tensor):
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in own:
            held[memory.data_ptr()] = (memory.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    total = sum(size for size, _ in held.values())
    del out
    return total


def tensors_of(module) -> dict[int, int]:
    """Address -> bytes of a 4-bit layer's weight and of all that is needed to unpack it."""
    state = module.weight.quant_state
    found = [module.weight.data, state.absmax, state.code, state.offset]
    found += [state.state2.absmax, state.state2.code]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}


def widened(student: Student) -> Student:
    """The student itself, from now on computing in float32 on the same 4-bit weights."""
    for module in student.model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
    for weight in student.model.parameters():
        if weight.is_floating_point():  # packed 4-bit weights are bytes
            weight.data = weight.data.float()
    return student


def peak_of(call) -> int:
    """The most bytes that torch's allocator holds at a time, temporaries inside kernels too."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        call()
    events = prof.profiler.kineto_results.events()
    memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in memory))
