"""Jobs side by side on one machine: how many, in processes that end with their parent."""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import torch

from finer1_lite.runtime import distributed
from finer1_lite.runtime.console import hide_bars, quiet
from finer1_lite.runtime.files import DataError

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


@contextmanager
def worker_pool(workers: int, bars: bool = True) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes that share the cores and end with this one; with bars of their own or not.

    An error or Ctrl-C ends them at once: what they work on goes on from the disk. DataError
    where one died.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, _cores() // workers)
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(workers, context, _start_worker, (threads, bars)) as pool:
        try:
            yield pool
        except BaseException as error:
            for process in set(multiprocessing.active_children()).difference(others):
                process.terminate()
            if not isinstance(error, BrokenProcessPool):
                raise
            mend = (
                "most often for memory (--workers 1 takes less); an error of its own stands above"
            )
            raise DataError([f"a worker died, {mend}"], "stopped; what is done stays:") from error


@contextmanager
def thread_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads; after an error or Ctrl-C they begin nothing more, and end what is under way."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker(threads: int, bars: bool) -> None:
    """A worker ends with its parent: a killed run must not go on writing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it, and says so once
    torch.set_num_threads(threads)
    quiet()
    if not bars:
        hide_bars()

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
