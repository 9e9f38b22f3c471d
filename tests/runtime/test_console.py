"""What is printed where a system's own encoding has few letters; bars in a notebook."""

import io
import sys
from types import SimpleNamespace

import IPython

from finer1_lite.runtime import console
from finer1_lite.runtime.console import quiet


def test_letters_that_the_screen_lacks_are_printed_as_codes(monkeypatch):
    """On Windows, output that goes into a file has the code page of the country."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    quiet()
    print("Bl\u00fcte \u65e5", flush=True)
    assert written.getvalue().strip() == "Bl\u00fcte \\u65e5".encode("cp1252")


class Output:
    """The output of a notebook's cell, as Jupyter keeps it: what stands there in the end."""

    def __init__(self):
        self.shown, self.seen = [], []

    def display(self, line, raw, display_id):
        assert raw and display_id
        self.shown.append(line["text/plain"])
        at = len(self.shown) - 1

        def update(line, raw):
            self.shown[at] = line["text/plain"]
            self.seen.append(line["text/plain"])

        return SimpleNamespace(update=update)


def test_bars_of_a_notebook_stay_in_their_lines_and_leave_no_text(monkeypatch):
    output, shell = Output(), SimpleNamespace(kernel=None, execution_count=7)
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr(IPython.display, "display", output.display)
    monkeypatch.setattr(console._Page, "places", {})
    with console.progress_bar(2, "steps") as bar:
        for _ in range(2):
            with console.progress_bar(3, "rollouts", inner=True) as inner:
                inner.update(3)
                inner.refresh()
            bar.update()
            bar.refresh()
    assert output.shown == ["", ""]  # one line for both inner bars, and nothing is left
    assert any("rollouts: 100%" in line for line in output.seen)
    assert any("steps:  50%" in line for line in output.seen)
    assert not any("\r" in line or "\x1b" in line for line in output.seen)
    shell.execution_count = 8
    console.progress_bar(1, "next cell").close()
    assert output.shown == ["", "", ""]
