"""Several processes under `accelerate launch` or `torchrun`; a single one is a world of one.

Every process runs the same code. What is drawn is a function of the step, so all agree on
it without a word; what is found out (answers, gradients, a lack of memory) is exchanged here.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from accelerate import PartialState

ENGINES = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")  # what accelerate goes by
PATIENCE = timedelta(days=1)  # for the others: one may pretrain or answer while all wait


def world() -> tuple[int, int]:
    """(rank, number of processes); joins the others when first asked under a launcher."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
        return 0, 1
    if not dist.is_initialized():
        on_cpu = os.environ.get("FINER1_DEVICE") == "cpu" or not torch.cuda.is_available()
        PartialState(cpu=on_cpu, timeout=PATIENCE)
    return dist.get_rank(), dist.get_world_size()


def is_main() -> bool:
    """Whether this is the one process that writes files and talks."""
    return world()[0] == 0


def device_name(name: str) -> str:
    """`cuda` is a card of its own for each process of a machine."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if name == "cuda" and world()[1] > 1 else name


def wait() -> None:
    """Until every process is here."""
    if world()[1] > 1:
        dist.barrier()


def mine(items: Sequence) -> list:
    """This process's share of the items, dealt in turn."""
    rank, size = world()
    return list(items[rank::size])


def gather(items: list, device: torch.device) -> list[list]:
    """What each process gives, in the order of their ranks.

    The items may be dataclasses with tensors; they arrive on `device`.
    """
    size = world()[1]
    if size == 1:
        return [items]
    found: list[list] = [[] for _ in range(size)]
    dist.all_gather_object(found, moved(items, torch.device("cpu")))
    return moved(found, device)


def tell(value):
    """The main process's value, everywhere."""
    box = [value]
    if world()[1] > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def by_main(call: Callable):
    """call() in the main process, its value everywhere; after its error the others end too."""
    box = (None, None)
    if is_main():
        try:
            box = (call(), None)
        except Exception as error:
            tell((None, 2))
            raise error
    value, failed = tell(box)
    if failed:
        raise SystemExit(failed)
    return value


def total(numbers: Sequence[float]) -> list[float]:
    """Each number's sum over all processes."""
    return [sum(column) for column in zip(*gather(list(numbers), torch.device("cpu")))]


def add_gradients(parameters) -> None:
    """Replace each gradient by its sum over all processes; none is a gradient of zeros."""
    if world()[1] == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    for p in trained:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    flat = torch.cat([p.grad.flatten() for p in trained])
    dist.all_reduce(flat)
    for p, part in zip(trained, flat.split([p.numel() for p in trained])):
        p.grad.copy_(part.view_as(p))


@contextmanager
def no_engine():
    """Without the engine that a launcher asks for: trainers made here hold whole models."""
    asked = {name: os.environ.pop(name) for name in ENGINES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(asked)


def moved(value, device: torch.device):
    """The same value with every tensor in it on `device`: lists, tuples and dataclasses too."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(moved(item, device) for item in value)
    if is_dataclass(value):
        parts = {f.name: moved(getattr(value, f.name), device) for f in fields(value)}
        return replace(value, **parts)
    return value
