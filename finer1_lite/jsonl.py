"""Files of JSON lines: the one reader of all of them.

A line that cannot be read is named with its number; a last line that a kill cut off, which
has no line end, may be dropped.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from finer1_lite.species import DataError

log = logging.getLogger("finer1_lite")


def scan(path: Path | str) -> Iterator[tuple[int, object, str]]:
    """(line number, value, fault) of each line that is not blank; the fault is "" if it is read."""
    for number, line, _ in _lines(path):
        yield number, *_parse(line)


def read(path: Path | str, torn: bool = False, objects: bool = False) -> list[tuple[int, object]]:
    """(line number, value) of each line. DataError lists every line that cannot be read.

    torn: a last line without its line end that cannot be read is dropped, with a warning;
    objects: every line must be a JSON object.
    """
    found, faults = [], []
    for number, line, ended in _lines(path):
        value, fault = _parse(line)
        if not fault and objects and not isinstance(value, dict):
            fault = "is no JSON object; mend or delete the line"
        if not fault:
            found.append((number, value))
        elif torn and not ended:
            log.warning("%s: dropped its half-written last line", path)
        else:
            faults.append(f"{path}, line {number}: {fault}")
    if faults:
        raise DataError(faults, "lines that cannot be read:")
    return found


def _lines(path: Path | str) -> Iterator[tuple[int, bytes, bool]]:
    """(number, bytes, whether its line end is there); no other character ends a line."""
    lines = Path(path).read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line, number < len(lines)


def _parse(line: bytes) -> tuple[object, str]:
    try:
        return json.loads(line.decode("utf-8", "surrogatepass")), ""
    except UnicodeDecodeError:
        return None, "is not UTF-8; save it so"
    except (ValueError, RecursionError):  # too deep a nesting is no row of ours either
        return None, "is no JSON; mend or delete the line"
