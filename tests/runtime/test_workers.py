"""Processes side by side end with an error, and with Ctrl-C; a killed one is said."""

import os
import signal
import time

import pytest

from finer1_lite.runtime.files import DataError
from finer1_lite.runtime.workers import thread_pool, worker_pool


def _mark(path: str, seconds: float = 0.0) -> None:
    open(path + ".begun", "w").close()
    time.sleep(seconds)
    open(path, "w").close()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail() -> None:
    raise ValueError("no such thing")


def _begun(tmp_path, name: str) -> None:
    for _ in range(3000):
        if (tmp_path / f"{name}.begun").exists():
            return
        time.sleep(0.02)
    raise TimeoutError(name)


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_or_ctrl_c_ends_what_runs_and_begins_nothing_more(error, tmp_path):
    start = time.time()
    with pytest.raises(error), worker_pool(1) as pool:
        for name in ("a", "b", "c"):
            pool.submit(_mark, str(tmp_path / name), 600)
        _begun(tmp_path, "a")
        raise error
    assert time.time() - start < 60
    time.sleep(0.5)
    assert [f.name for f in tmp_path.iterdir()] == ["a.begun"]


@pytest.mark.slow
def test_ctrl_c_to_the_whole_group_is_the_parents_to_answer(tmp_path):
    """A terminal sends it to the workers as well: they leave it to the parent, which ends them."""
    with pytest.raises(DataError, match="no such thing"), worker_pool(1) as pool:
        try:
            pool.submit(_interrupt_self).result()
            pool.submit(_fail).result()
        except ValueError as failed:
            raise DataError([str(failed)], "stopped:") from failed


def _interrupt_self() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)


@pytest.mark.slow
def test_a_worker_that_the_system_kills_is_said_with_the_mend():
    with pytest.raises(DataError, match="a worker died, most often for memory \\(--workers 1"):
        with worker_pool(1) as pool:
            pool.submit(_die).result()


def test_threads_begin_nothing_more_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="enough"), thread_pool(1) as pool:
        for n in range(20):
            pool.submit(_mark, str(tmp_path / str(n)), 0.2)
        _begun(tmp_path, "0")
        raise ValueError("enough")
    assert len(list(tmp_path.glob("*.begun"))) <= 2
    assert all((tmp_path / f.stem).exists() for f in tmp_path.glob("*.begun"))
