"""Several processes under `accelerate launch` or `torchrun`; a single one is a world of one.

Every process runs the same code. What is drawn is a function of the step, so all agree on
it without a word; what is found out (completions, gradients, a lack of memory) is exchanged here.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object, send_to_device

ENGINES = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")  # what accelerate goes by
PATIENCE = timedelta(days=1)  # for the others: one may pretrain or answer while all wait
_alone = False  # inside `on_main_process` there is nobody else


def world() -> tuple[int, int]:
    """(rank, number of processes); joins the others when first asked under a launcher."""
    if _alone or (int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized()):
        return 0, 1
    if not dist.is_initialized():
        on_cpu = os.environ.get("FINER1_DEVICE") == "cpu" or not torch.cuda.is_available()
        PartialState(cpu=on_cpu, timeout=PATIENCE)
    return dist.get_rank(), dist.get_world_size()


def is_main() -> bool:
    """Whether this is the one process that writes files and talks."""
    return world()[0] == 0


def wait() -> None:
    """Until every process is here."""
    if world()[1] > 1:
        dist.barrier()


def shard(items: Sequence) -> list:
    """This process's share of the items, dealt in turn."""
    rank, size = world()
    return list(items[rank::size])


def gather(items: list, device: torch.device | str = "cpu") -> list[list]:
    """What each process gives, by rank; tensors in it, also of dataclasses, arrive on `device`."""
    if world()[1] == 1:
        return [items]
    return _moved(gather_object([_moved(items, "cpu")]), device)


def broadcast(value: Any) -> Any:
    """The main process's value, everywhere."""
    return broadcast_object_list([value])[0] if world()[1] > 1 else value


def on_main_process(call: Callable[[], Any]) -> Any:
    """call() in the main process, its value everywhere; after its error the others end too.

    What is called may ask for the others: it is told that there are none.
    """
    global _alone
    box, before = (None, 0), _alone
    if is_main():
        _alone = True
        try:
            box = (call(), 0)
        except Exception:
            _alone = before  # the others hear of it
            broadcast((None, 2))
            raise
        finally:
            _alone = before
    value, failed = broadcast(box)
    if failed:
        raise SystemExit(failed)
    return value


def sum_over_processes(numbers: Mapping[str, float]) -> dict[str, float]:
    """Each number's sum over all processes; what one does not have is 0 there."""
    sums: Counter = Counter()
    for (share,) in gather([dict(numbers)]):
        sums.update(share)
    return dict(sums)


def add_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes; none is a gradient of zeros."""
    if world()[1] == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    for p in trained:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    flat = torch.cat([p.grad.flatten() for p in trained])
    dist.all_reduce(flat)
    for p, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        p.grad.copy_(part.view_as(p))


@contextmanager
def no_engine() -> Iterator[None]:
    """Without the engine that a launcher asks for, or that an earlier stage has set up."""
    held = {name: os.environ.pop(name) for name in ENGINES if name in os.environ}
    AcceleratorState._reset_state(reset_partial_state=True)  # as TrainingArguments does
    try:
        yield
    finally:
        os.environ.update(held)


def _moved(value: Any, device: torch.device | str) -> Any:
    """The same value with every tensor in it on `device`: lists, tuples and dataclasses too."""
    if is_dataclass(value):
        parts = {f.name: _moved(getattr(value, f.name), device) for f in fields(value)}
        return replace(value, **parts)
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    return send_to_device(value, device)


def one_card(args: Any) -> Any:
    """The same TrainingArguments, for one device a process.

    With several cards in sight, Trainer would copy the model to all of them (DataParallel),
    which 4-bit weights do not bear. Several processes on a CPU are told "cpu:0", where
    `torch.load` knows only "cpu".
    """
    args._n_gpu = min(args.n_gpu, 1)
    if args.device.type == "cpu":
        vars(args)["_setup_devices"] = torch.device("cpu")
    return args
