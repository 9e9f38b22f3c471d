"""Tables as people have them: CSV of any spreadsheet program, or JSON lines.

UTF-8 and UTF-16 with and without a byte-order mark, Windows-1252; commas, semicolons, tabs.
Names are compared by `name_key`, to which curly quotes, dashes, and the signs that no folder can
hold make no difference.
"""

import csv
import io
import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finer1_lite import rewards
from finer1_lite.runtime import files
from finer1_lite.runtime.files import DataError, write_atomically

log = logging.getLogger("finer1_lite")

DELIMITERS = ",;\t|"
# how a text begins that a spreadsheet would compute
_FORMULA = re.compile(r"'*[=+@\t\r\n\uff1d\uff0b\uff0d\uff20-]")
# no difference between two names: spaces, dashes, and what file systems refuse
_NO_DIFFERENCE = re.compile(r'[\s\-/\\:*?"<>|]+')


@dataclass
class Table:
    """The rows of a table as (line, {column: text}), and the problems of single lines.

    Lines are counted as a spreadsheet does, whatever line ends a text holds. Columns are in
    lower case, with "_" for spaces and dashes.
    """

    path: Path
    columns: list[str]
    rows: list[tuple[int, dict[str, str]]] = field(repr=False)
    problems: list[str] = field(default_factory=list)

    def first_of(self, names: Iterable[str]) -> str:
        """The first of these columns that is there, or ""."""
        return next((name for name in names if name in self.columns), "")

    def say_unused(self, used: Iterable[str]) -> None:
        """Log the columns that nobody reads: one of them may be a slip of the pen."""
        unused = [name for name in self.columns if name not in set(used)]
        if unused:
            log.info("%s: columns that are not used: %s", self.path, ", ".join(unused))


def name_key(name: str) -> str:
    """What spellings of one name have in common."""
    return _NO_DIFFERENCE.sub("", rewards.plain(name)).rstrip(".")


def column_key(name: str) -> str:
    """How a column is called here: "Product Description" -> "product_description"."""
    return re.sub(r"[\s\-]+", "_", unicodedata.normalize("NFC", name).strip().lower())


def read(path: Path, needed: Sequence[Sequence[str]] = (), exact: bool = False) -> Table:
    """Read a CSV file or JSON lines (by the ending .jsonl, .ndjson, .json).

    needed: columns that must be there, each as its accepted spellings; exact: keep the texts as
    they are, else they are stripped and in NFC. DataError where the file cannot be read or lacks
    columns, which are all named.
    """
    if not path.is_file():
        raise DataError([f"{path}: there is no such table; check its name"], "no table:")
    lines = path.suffix.lower() in (".jsonl", ".ndjson", ".json")
    table = _json_lines(path) if lines else _csv(path, needed, exact)
    lacking = [" or ".join(names) for names in needed if not {*names} & {*table.columns}]
    if lacking:
        given = f"its first line gives {table.columns}"
        problem = f"{path}: lacks the column {', the column '.join(lacking)}; {given}"
        raise DataError([problem, *table.problems], "this table cannot be used:")
    if not exact:
        for _, row in table.rows:
            row.update({n: unicodedata.normalize("NFC", t).strip() for n, t in row.items()})
    return table


def write(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file in one step, in UTF-8 with the mark by which Excel knows it.

    A text that a spreadsheet would compute gets the sign ' before it, which `read` takes away.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    for row in rows:
        writer.writerow(f"'{v}" if isinstance(v, str) and _FORMULA.match(v) else v for v in row)
    write_atomically(path, text.getvalue().encode("utf-8-sig", "surrogatepass"))


def _text(path: Path) -> str:
    """The text of a file in the encoding that its bytes show; one that is not UTF-8 is logged."""
    data = path.read_bytes()
    if data.startswith(b"PK\x03\x04"):
        raise DataError([f"{path}: is a workbook; save it as 'CSV UTF-8'"], "no table:")
    encoding = json.detect_encoding(data)
    if encoding == "utf-8" and b"\0" in data:  # UTF-16 without a mark, and no Latin letter first
        later = data[1::2].count(0) > data[::2].count(0)  # of commas and line ends
        encoding = "utf-16-le" if later else "utf-16-be"
    for one in (encoding, "cp1252"):
        try:
            text = data.decode(one)
        except UnicodeDecodeError:
            continue
        if one not in ("utf-8", "utf-8-sig"):
            log.info("%s: read as %s, not as UTF-8", path, one)
        return text.lstrip("\ufeff")  # saved twice, it has two marks
    mend = "save it as 'CSV UTF-8'"
    raise DataError([f"{path}: is neither UTF-8 nor UTF-16 nor Windows-1252; {mend}"], "no table:")


def _csv(path: Path, needed: Sequence[Sequence[str]], exact: bool) -> Table:
    """The rows of a CSV file, whatever separates its values."""
    text = _text(path)
    hint = re.match(r"sep=(.)\r?\n", text)  # a line that Excel writes and reads
    start = hint.end() if hint else 0
    try:
        delimiter = hint[1] if hint else _delimiter(text, needed)
        form = {"delimiter": delimiter, "strict": True, "skipinitialspace": not exact}
        reader = csv.reader(io.StringIO(text[start:], newline=""), **form)
        numbered = enumerate(reader, 2 if hint else 1)
        lines = [(line, row) for line, row in numbered if any(map(str.strip, row))]
    except csv.Error as error:
        problem = f"{path}: cannot be read ({error}); save it as CSV again"
        raise DataError([problem], "no table:") from error
    header = [column_key(name) for name in lines[0][1]] if lines else []
    while header and not header[-1]:
        header.pop()
    table = Table(path, header, [])
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        table.problems.append(f"{path}: two columns are called {', '.join(twice)}; keep one")
    for line, values in lines[1:]:
        while len(values) > len(header) and not values[-1].strip():
            values.pop()
        if len(values) == len(header):
            plain = (v[1:] if v[:1] == "'" and _FORMULA.match(v) else v for v in values)
            table.rows.append((line, dict(zip(header, plain, strict=True))))
            continue
        what = f"the values do not fit the {len(header)} columns"
        mend = f"put a text with {'commas' if delimiter == ',' else delimiter} in double quotes"
        table.problems.append(f"{path}, line {line}: {what}; {mend}")
    return table


def _delimiter(text: str, needed: Sequence[Sequence[str]]) -> str:
    """What separates the values: it finds most of the needed columns, or else most columns."""

    def found(delimiter: str) -> tuple[int, int]:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
        columns = {column_key(name) for name in header}
        return sum(bool({*names} & columns) for names in needed), len(header)

    return max(DELIMITERS, key=found)


def _json_lines(path: Path) -> Table:
    """The rows of JSON lines; what is lacking or null is an empty text."""
    table = Table(path, [], [])
    for line, found, problem in files.scan(path):
        if not isinstance(found, dict):
            problem = problem or "is no JSON object; mend or delete the line"
            table.problems.append(f"{path}, line {line}: {problem}")
            continue
        row = {column_key(name): "" if v is None else str(v) for name, v in found.items()}
        table.columns += [name for name in row if name not in table.columns]
        table.rows.append((line, row))
    for _, row in table.rows:
        row.update({name: "" for name in table.columns if name not in row})
    return table
