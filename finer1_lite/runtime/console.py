"""The screen: one look of all progress bars, and whose messages are shown."""

import logging

from tqdm.auto import tqdm

from finer1_lite.runtime import distributed

log = logging.getLogger("finer1_lite")


def progress_bar(total: int, what: str, hidden: bool = False):
    """The one look of all progress bars."""
    hidden = hidden or not distributed.is_main()
    return tqdm(total=total, desc=what, mininterval=2.0, dynamic_ncols=True, disable=hidden)


def quiet() -> None:
    """Our own decisions on the screen, the libraries' chatter not."""
    import warnings

    import datasets
    import transformers

    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
