"""Jobs side by side on one machine: how many, in processes that end with their parent."""

import logging
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor

import torch

from finer1_lite.runtime import distributed
from finer1_lite.runtime.console import hide_bars, quiet

log = logging.getLogger("finer1_lite")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def choose_workers(jobs: int, asked: int, what: str, on_gpu: bool) -> int:
    """How many of `jobs` run at a time: as asked, else one a GPU or core; one among processes."""
    if distributed.world()[1] > 1:
        log.info("1 %s at a time (%d processes share it)", what, distributed.world()[1])
        return 1
    workers = asked or (1 if on_gpu else min(jobs, _cores()))
    why = "one GPU" if on_gpu else f"{_cores()} cores, {jobs} {what}s"
    log.info("%d %s(s) at a time (%s)", workers, what, why)
    return workers


def worker_pool(workers: int, bars: bool = True) -> ProcessPoolExecutor:
    """Fresh processes that share the cores and end with this one; with bars of their own or not."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, _cores() // workers)
    return ProcessPoolExecutor(workers, context, _start_worker, (threads, bars))


def _start_worker(threads: int, bars: bool) -> None:
    """A worker ends with its parent: a killed run must not go on writing."""
    torch.set_num_threads(threads)
    quiet()
    if not bars:
        hide_bars()

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
