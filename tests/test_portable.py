"""Windows and macOS: no module of Unix alone, and no text in a machine's own encoding."""

import ast
import subprocess
import sys

import pytest
from paths import ROOT

PACKAGE = ROOT / "finer1_lite"
UNIX = ("resource", "fcntl", "pwd", "grp", "termios")
BLOCKED = f"""
import builtins, importlib, pkgutil
real = builtins.__import__
def blocking(name, globals=None, *rest, **more):
    if name in {UNIX} and (globals or {{}}).get("__name__", "").startswith("finer1_lite"):
        raise ModuleNotFoundError(name)
    return real(name, globals, *rest, **more)
builtins.__import__ = blocking
import finer1_lite
for found in pkgutil.walk_packages(finer1_lite.__path__, "finer1_lite."):
    importlib.import_module(found.name)
from finer1_lite.tools import bench_row
assert bench_row.resource is None
"""


@pytest.mark.slow
def test_every_module_is_imported_where_unix_modules_are_missing():
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def without_encoding(source: str) -> list[int]:
    """Lines that read or write text and do not say in which encoding."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        of = getattr(getattr(call.func, "value", None), "id", "")
        words = [a.value for a in call.args if isinstance(a, ast.Constant)]
        if any(k.arg == "encoding" for k in call.keywords) or "utf-8" in words:
            continue
        binary = any(isinstance(w, str) and "b" in w and len(w) < 4 for w in words)
        text = name == "open" and of not in ("Image", "os") and not binary
        if name in ("read_text", "write_text") or text:
            found.append(call.lineno)
    return found


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("p.read_text()", [1]),
        ("\np.write_text(x)", [2]),
        ("open(p, 'w')", [1]),
        ("p.open()", [1]),
        ("p.open('rb'); open(p, 'ab'); Image.open(p); p.read_bytes()", []),
        ("p.read_text('utf-8'); open(p, encoding='utf-8-sig'); p.write_text(x, 'utf-8')", []),
    ],
)
def test_a_text_without_encoding_is_found(source, lines):
    assert without_encoding(source) == lines


def test_every_text_is_read_and_written_in_a_named_encoding():
    """Windows would take the code page of its country."""
    rows = {f: without_encoding(f.read_text("utf-8")) for f in PACKAGE.rglob("*.py")}
    assert not {str(f.relative_to(ROOT)): lines for f, lines in rows.items() if lines}
