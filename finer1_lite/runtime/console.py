"""The screen: one look of all progress bars, and whose messages are shown."""

import logging
import multiprocessing
import sys
from typing import Any

from tqdm import tqdm

from finer1_lite.runtime import distributed

log = logging.getLogger("finer1_lite")
_bars = True


def progress_bar(total: int, what: str, hidden: bool = False, inner: bool = False) -> Any:
    """The one look of all progress bars; shown by the main process.

    inner: one within a step of another bar, gone when it is full; only on a terminal or in a
    notebook (a log would keep them all), and not by workers, which share their screen. In a
    notebook every bar goes when it is full, so that none is stored with the outputs.
    """
    alone = multiprocessing.parent_process() is None
    shown = _bars and not hidden and distributed.is_main() and (alone or not inner)
    page = _Page(inner) if shown and _in_notebook() else None
    return tqdm(
        total=total,
        desc=what,
        file=page,
        mininterval=0.5 if inner else 2.0,
        ncols=88 if page else None,
        dynamic_ncols=page is None,
        leave=not inner and page is None,
        disable=(None if inner else False) if shown else True,
    )


class _Page:
    """Where bars are drawn in a notebook: two lines of a cell, renewed in their place."""

    encoding = "utf-8"
    places: dict[tuple[int, bool], Any] = {}  # (cell, inner) -> the display

    def __init__(self, inner: bool) -> None:
        self.inner = inner

    def write(self, text: str) -> None:
        from IPython import display, get_ipython

        at, line = (get_ipython().execution_count, self.inner), {"text/plain": text.strip()}
        if at in self.places and "\r" in text:  # all else moves a cursor
            self.places[at].update(line, raw=True)
        elif "\r" in text:
            self.places[at] = display.display(line, raw=True, display_id=True)

    def flush(self) -> None:
        """It is shown at once."""

    def isatty(self) -> bool:
        return True


def _in_notebook() -> bool:
    """Whether Jupyter's kernel runs this process, which then has no terminal of its own."""
    return hasattr(getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)(), "kernel")


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
