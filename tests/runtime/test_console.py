"""What is printed where a system's own encoding has few letters."""

import io
import sys

from finer1_lite.runtime.console import quiet


def test_letters_that_the_screen_lacks_are_printed_as_codes(monkeypatch):
    """On Windows, output that goes into a file has the code page of the country."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    quiet()
    print("Bl\u00fcte \u65e5", flush=True)
    assert written.getvalue().strip() == "Bl\u00fcte \\u65e5".encode("cp1252")
