"""The screen: one look of all progress bars, and whose messages are shown."""

import logging
import multiprocessing
import sys
from typing import Any

from tqdm.auto import tqdm

from finer1_lite.runtime import distributed

log = logging.getLogger("finer1_lite")
_bars = True


def progress_bar(total: int, what: str, hidden: bool = False, inner: bool = False) -> Any:
    """The one look of all progress bars; shown by the main process.

    inner: one within a step of another bar, gone when it is full; only on a terminal or in a
    notebook (a log would keep them all), and not by workers, which share their screen.
    """
    alone = multiprocessing.parent_process() is None
    shown = _bars and not hidden and distributed.is_main() and (alone or not inner)
    return tqdm(
        total=total,
        desc=what,
        mininterval=0.5 if inner else 2.0,
        dynamic_ncols=True,
        leave=not inner,
        disable=(None if inner else False) if shown else True,
    )


def hide_bars() -> None:
    """No progress bar in this process from now on."""
    global _bars
    _bars = False


def quiet() -> None:
    """Our own decisions on the screen, the libraries' chatter not; letters it lacks as codes."""
    import warnings

    import datasets
    import transformers

    if hasattr(sys.stdout, "reconfigure"):  # Windows: into a file, a code page of few letters
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
