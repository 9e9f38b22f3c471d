"""A JupyterLab of a test's own: no token, no news, settings in the test's folder."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from browser import SLOW


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server whose root is the folder; it ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
    options = (
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ip=127.0.0.1",
        "--IdentityProvider.token=",
        f"--ServerApp.root_dir={folder}",
        "--ServerApp.disable_check_xsrf=True",
        "--LabApp.news_url=None",
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        env=os.environ | {name: str(folder / name.lower()) for name in own},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/api").read()
                break
            except OSError:
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(30)


def run_first_cell(page) -> None:
    """Run the first cell of the notebook that the page shows, once its kernel is there."""
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
    page.wait_for_function(
        "() => !/(Connecting|Initializing|No Kernel)/.test(document.body.innerText)", timeout=SLOW
    )
    page.keyboard.press("Shift+Enter")
