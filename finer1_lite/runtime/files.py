"""Files: the one error of bad data, JSON and its lines in and out, safe writing, a run's folder.

Any Unicode encoding and line end is read, with or without a mark at the start. A line that
cannot be read is named with its number; a last line that a kill cut off, which has no line end,
may be dropped.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger("finer1_lite")
OTHER_NAME = "choose another --name, or --fresh to start over"
CONFIG = "config.json"  # of a run: the first file in its folder
OURS = re.compile(  # what runs write there, and what systems do
    r"answers|base|cache|chains|figures|parts|seed\d+|warm-up|\..+|desktop\.ini|"
    r"(analysis|attribution|chains|compared-with-.+|config|metrics|predictions|records|report|"
    r"requests|timing)\.(csv|html|jsonl?|md)"
)
_locks: ExitStack | None = None  # of folders of the command that runs; None in a notebook
_begun: dict[Path, tuple[list[Path], str]] = {}  # new run -> what was made for it, what it keeps


class DataError(ValueError):
    """Data that cannot be used; `problems` holds every reason, each with its mend."""

    def __init__(self, problems: Sequence[str], headline: str = "the data cannot be used") -> None:
        super().__init__(list(problems), headline)  # both, so that a copy can be pickled
        self.problems = list(problems)
        self.headline = headline

    def __str__(self) -> str:
        return "\n".join([self.headline, *(f"- {problem}" for problem in self.problems)])


def require_none(problems: Sequence[str], headline: str = "settings that make no sense:") -> None:
    """DataError that lists every problem, where there is one."""
    if problems:
        raise DataError(problems, headline)


def require(rules: Mapping[str, bool]) -> None:
    """DataError that names every rule for settings that is not kept; rules: text -> kept?"""
    require_none([text for text, kept in rules.items() if not kept])


def distinct(numbers: Sequence[int]) -> bool:
    """Whether each is there once, and none is negative."""
    return len({*numbers}) == len(numbers) and min(numbers, default=0) >= 0


def scan(path: Path | str) -> Iterator[tuple[int, object, str]]:
    """Yield (line number, value, problem) of each line that is not blank; problem "" if none."""
    for number, line, _ in _lines(path):
        yield number, *_parse(line)


def read(path: Path | str, torn: bool = False, objects: bool = False) -> list[tuple[int, object]]:
    """(line number, value) of each line. DataError lists every line that cannot be read.

    torn: drop a last line that a kill cut off (it has no line end), with a warning; objects:
    every line must be a JSON object.
    """
    found, problems = [], []
    for number, line, ended in _lines(path):
        value, problem = _parse(line)
        if not problem and objects and not isinstance(value, dict):
            problem = "is no JSON object; mend or delete the line"
        if not problem:
            found.append((number, value))
        elif torn and not ended:
            log.warning("%s: dropped its half-written last line", path)
        else:
            problems.append(f"{path}, line {number}: {problem}")
    require_none(problems, "lines that cannot be read:")
    return found


def load(path: Path | str) -> object:
    """The value of a JSON file. DataError if it is none."""
    value, problem = _parse(Path(path).read_bytes())
    require_none([f"{path}: {problem}"] if problem else [], "cannot be read:")
    return value


def is_array(path: Path | str) -> bool:
    """Whether a file begins as one JSON array does, and not as JSON lines."""
    return text_of(path).lstrip().startswith(b"[")


def _lines(path: Path | str) -> Iterator[tuple[int, bytes, bool]]:
    """(number, bytes, whether its line end is there) of each line that is not blank."""
    text = text_of(path)
    wrong = {b"[": "one JSON array", b"{\n": "JSON over several lines"}
    begins = [what for sign, what in wrong.items() if text.lstrip().startswith(sign)]
    if begins and (text.strip().count(b"\n") or b"]" in text):  # a kill may leave less
        mend = "write one object a line (jq -c '.[]' for an array, jq -c . for objects)"
        raise DataError([f"{path}: begins as {begins[0]}; {mend}"], "no JSON lines:")
    lines = text.split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line, number < len(lines)


def text_of(path: Path | str) -> bytes:
    """The text of a file in UTF-8, whose lines end in a line feed; no mark at its start."""
    data = Path(path).read_bytes()
    encoding = json.detect_encoding(data)
    if encoding != "utf-8":
        try:
            data = data.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            problem = f"{path}: is not {encoding.upper()}; save it as UTF-8"
            raise DataError([problem], "cannot be read:") from None
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _parse(data: bytes) -> tuple[object, str]:
    """(value, ""), or (None, what is wrong with a line or a file)."""
    try:
        return json.loads(data), ""
    except UnicodeDecodeError:
        return None, "is not UTF-8; save it so"
    except (ValueError, RecursionError) as error:  # too deep a nesting is no row of ours either
        return None, f"is no JSON ({error}); mend it".replace(": line 1 column", ", column")


def write_lines(path: Path, rows: Iterable[Mapping]) -> None:
    """Replace `path` by one JSON object a line, in one step."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, text.encode("utf-8", "surrogatepass"))


def near(path: Path) -> Path:
    """The path as seen from the working folder, where it lies below that; else as it is."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        draft.write_bytes(data)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def open_folder(
    folder: Path, config: dict, fresh: bool, keep: str = "", mend: str = OTHER_NAME
) -> None:
    """Create the folder, or accept one of the same configuration.

    Raises DataError when it cannot be written or holds another run, naming every setting
    that differs. `fresh` starts over, where a run is: what it wrote is deleted, all else stays.
    keep: an entry that belongs to the run and outlasts a fresh start (it may have been paid for);
    mend: what to do about another run.
    """
    _keep_for_this_command(folder)
    path = folder / CONFIG
    held = run_config(path)
    if fresh and held:
        if held.get("job") != config.get("job"):  # another command's work, perhaps paid for
            what = f"{folder} holds {held.get('job') or 'a lab run'}: choose another --name"
            raise DataError([what], "--fresh deletes runs of its own command only:")
        _begun.setdefault(folder, ([], keep))
        _delete_run(folder, {"preset": {}, "job": config.get("job")}, keep)
    require_usable(folder, keep, held)
    if fresh or held is None:
        write_atomically(path, json.dumps(config, indent=1).encode())
        return
    differing = _differences(held, config)
    require_none(differing, f"{folder} holds a run of another configuration: {mend}")


def _delete_run(folder: Path, unfinished: dict, keep: str) -> None:
    """Delete what a run wrote but its configuration; unfinished: that of a deletion half-way."""
    write_atomically(folder / CONFIG, json.dumps(unfinished).encode())
    stays = []
    for entry in sorted(folder.iterdir()):
        if entry.name in (keep, CONFIG):
            continue
        if not OURS.fullmatch(entry.name):
            stays.append(entry.name)
        elif entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if stays:
        log.info("%s: what no run writes stays: %s", folder, ", ".join(stays))


def require_usable(folder: Path, keep: str = "", held: dict | None = None) -> None:
    """Raise a DataError where no run can be kept in this folder; creates it where it can."""
    _keep_for_this_command(folder)
    held, mend = held or run_config(folder / CONFIG), "choose another --out or --name"
    if folder.is_dir() and {p.name for p in folder.iterdir()} - {keep} and held is None:
        raise DataError([f"{folder} is not empty and holds no run: {mend}"], "no run folder")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    if held is None:
        _begun.setdefault(folder, (made, keep))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink(missing_ok=True)  # another process tries, too
    except OSError as error:
        problem = f"{folder} cannot be written ({error.strerror}): {mend}"
        raise DataError([problem], "no run folder") from error


@contextmanager
def nothing_left_of_a_failed_start() -> Iterator[None]:
    """Where bad input ends a run before it computed anything, the folders made for it go again.

    Until the end no other command works in the same folders.
    """
    global _locks
    _begun.clear()
    with ExitStack() as _locks:
        try:
            yield
        except (ValueError, OSError):
            for folder, (made, keep) in reversed(_begun.items()):
                _leave(folder, made, keep)
            raise
        finally:
            _locks = None


def _leave(folder: Path, made: list[Path], keep: str) -> None:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    if {path.parts[0] for path in files} <= {CONFIG, keep}:
        with suppress(OSError):  # no folder at all: a file is in its place
            (folder / CONFIG).unlink()
        within = (path for path in folder.rglob("*") if path.is_dir())
        for path in (*sorted(within, reverse=True), *made):
            with suppress(OSError):  # one that is not empty stays
                path.rmdir()


def _keep_for_this_command(folder: Path) -> None:
    """DataError where another command of this machine works in a folder: both would write there."""
    if _locks is None:
        return
    user = getattr(os, "getuid", int)()
    name = f"finer1_lite-{user}-{fingerprint([str(folder.resolve())])}.lock"
    try:
        lock = FileLock(Path(tempfile.gettempdir()) / name, is_singleton=True)
        _locks.enter_context(lock.acquire(timeout=0))
    except Timeout:
        what = f"{folder}: another command works in it; wait until it is done, or stop it"
        raise DataError([what], "no run folder:") from None


def run_config(path: Path) -> dict | None:
    """The configuration of the run that a folder holds; a model's config.json is none."""
    try:
        found = load(path)
    except (OSError, DataError):
        return None
    return found if isinstance(found, dict) and "preset" in found else None


def _differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Each setting that differs, in words; settings inside settings as `tapo.steps`."""
    rows = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            rows += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            rows.append(f"{prefix}{key}: {a} there, {b} now")
    return rows


def digest(path: Path | str) -> str:
    """SHA-256 of a file's bytes, of which a few are in memory at a time."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(ids: list[str]) -> str:
    """A short key of a list of texts: equal for the same data in the same order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
