"""`grade`: a machine checks the exercises of notebooks that were handed in.

An exercise's cell runs alone in a process of its own, and its function is called on inputs drawn
for this grading. Its answers are compared with our solution's in another process, so printing
passes nothing. The process has your rights: grade strangers' work in a container. It could also
read our solution, as everybody can who unfolds it: this is a check and no examination.
"""

import ast
import contextlib
import inspect
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finer1_lite.runtime import files

MARK = re.compile(r"^\s*#\s*exercise\s+(\d\d\.\d+)\s*$", re.MULTILINE | re.IGNORECASE)
MAGIC = re.compile(r"^[%!].*$", re.MULTILINE)  # IPython's own lines
SECRET = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
STUBS = {"raise NotImplementedError", "raise NotImplementedError()", "...", "pass", ""}
MOST = 10_000  # numbers or signs of an answer
MOST_BYTES = 4 << 30  # of a cell's process
START = 120  # seconds until a process has loaded torch, at most
TOLERANCE = 1e-4


def pack(value: Any) -> Any:
    """A value in JSON's terms; a tensor or array as {"tensor": numbers, "dtype": their kind}."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        if math.prod(value.shape) > MOST:
            raise ValueError(f"an answer of the shape {tuple(value.shape)} is too large")
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, dict):
        return {str(key): pack(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [pack(one) for one in value[:MOST]]
    if isinstance(value, str):
        return value[:MOST]
    known = value is None or isinstance(value, bool | int | float)
    return value if known else {"of type": type(value).__name__}


def unpack(value: Any) -> Any:
    """What `pack` packed; tuples are lists."""
    if isinstance(value, dict) and "tensor" in value:
        import torch

        return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
    if isinstance(value, dict):
        return {key: unpack(one) for key, one in value.items()}
    return [unpack(one) for one in value] if isinstance(value, list) else value


def answers(source: str, function: str, arguments: list[str], inputs: list) -> Iterator[dict]:
    """Run a cell, then yield {"value"} or {"problem"} of each call; or {"cell"}, what is wrong.

    arguments: the names that its function must take; inputs: packed values for them, a call each.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(MAGIC.sub("", source), "the cell", "exec"), names)
        if not callable(names.get(function)):
            raise ValueError(f"the cell defines no function {function}")
        found = inspect.signature(names[function])
        found.bind(*arguments)
        if list(found.parameters)[: len(arguments)] != arguments:
            raise TypeError(f"{function}{found}: the arguments are to be {', '.join(arguments)}")
    except BaseException as error:
        yield {"cell": f"stops with {_told(error)}"}
        return
    for packed in inputs:
        given = unpack(packed)
        try:
            row = {"value": pack(names[function](*given))}
            if json.dumps(pack(given)) != json.dumps(packed):
                row = {"problem": "changes its arguments: work on a copy (clone, list(...))"}
        except BaseException as error:
            row = {"problem": f"stops with {_told(error)}"}
        yield row


def _told(error: BaseException) -> str:
    alone = " (a cell runs alone: import and define in it what it needs)"
    return f"{type(error).__name__}: {error}"[:300] + alone * isinstance(error, NameError)


def work(folder: Path) -> None:
    """Write the answers to the task in `folder`, a line each as soon as it is there."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    task = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    unpack(task["inputs"])  # loads torch, if it is needed, before the time counts
    with open(folder / "answers.jsonl", "w", encoding="utf-8") as out:
        for row in answers(**task):
            print(json.dumps(row), file=out, flush=True)


def run_alone(task: dict[str, Any], limit: float) -> list[dict]:
    """`answers` out of a process of its own; those that it did not give say how it ended."""
    kept = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
    path = os.pathsep.join([str(Path(__file__).parents[2]), kept.get("PYTHONPATH", "")])
    kept |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    none, rows = subprocess.DEVNULL, []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        (Path(name) / "task.json").write_text(json.dumps(task), encoding="utf-8")
        call = [sys.executable, "-m", "finer1_lite.tools.grade", name]
        quiet = {"stdin": none, "stdout": none, "stderr": none, "start_new_session": True}
        process = subprocess.Popen(call, cwd=name, env=kept, **quiet)
        given, late = Path(name) / "answers.jsonl", time.monotonic() + START
        try:
            while process.poll() is None and not given.exists() and time.monotonic() < late:
                time.sleep(0.02)
            ended = f"ends its process (exit code {process.wait(limit)})"
        except subprocess.TimeoutExpired:
            ended = f"takes longer than {limit:g} s: an endless loop?"
        finally:  # and what it started, too
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
            process.wait()
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            for line in given.read_text(encoding="utf-8").splitlines():
                rows.append(dict(json.loads(line)))
    return [*rows, *[{"problem": ended}] * len(task["inputs"])][: len(task["inputs"])]


def judge(one: Any, inputs: list, rows: list[dict]) -> tuple[str, str]:
    """(passed, untouched or failed; what is said) of the answers to packed inputs."""
    right = list(answers(one.solution, one.function, one.arguments, inputs))
    wrong = [at for at, row in enumerate(rows) if not same(right[at], row)]
    if not wrong:
        return "passed", ""
    at, came = wrong[0], rows[wrong[0]]
    problem = str(came.get("problem", ""))
    if "cell" in came:
        return "failed", f"the cell {came['cell']}"
    if "NotImplementedError" in problem:
        return "untouched", problem
    said = problem or f"gives {shown(came.get('value'))}"
    said += f"\nwanted: {shown(right[at]['value'])}\ncall {at + 1} of {len(rows)}: "
    said += f"{one.function}({', '.join(map(shown, inputs[at]))})"
    hint = misconception(one, inputs, rows, wrong)
    if all(row == {"value": None} for row in rows):
        hint = "it returns nothing: print shows a result, return gives it"
    elif not hint and all(row == rows[0] for row in rows) and "value" in came:
        hint = "it gives the same whatever it is given"
    return "failed", said + f"\nhint: {hint}" * bool(hint)


def misconception(one: Any, inputs: list, rows: list[dict], wrong: list[int]) -> str:
    """What is told of the mistake that answers most as these rows do, and explains most wrong."""
    likely, most = "", 0
    for told, source in one.mistakes.items():
        mistaken = answers(source, one.function, one.arguments, inputs)
        alike = [same(other, row) for other, row in zip(mistaken, rows, strict=True)]
        if sum(alike) > most and sum(alike[at] for at in wrong) > len(wrong) / 2:
            likely, most = told, sum(alike)
    return likely


def same(wanted: Any, came: Any) -> bool:
    """Equal values of equal shapes, to `TOLERANCE`; tensors, arrays and lists are alike here."""
    wanted, came = (v.get("tensor", v) if isinstance(v, dict) else v for v in (wanted, came))
    if isinstance(wanted, dict) and isinstance(came, dict):
        return wanted.keys() == came.keys() and all(same(wanted[key], came[key]) for key in wanted)
    if isinstance(wanted, list) and isinstance(came, list):
        return len(wanted) == len(came) and all(map(same, wanted, came))
    if isinstance(wanted, float) and isinstance(came, int | float):
        both = math.isnan(wanted) and math.isnan(came)
        return both or math.isclose(wanted, came, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return wanted == came


def shown(value: Any, most: int = 300) -> str:
    """A packed value as a learner reads it, cut where it is long."""
    text = re.sub(r"\{'tensor': (.*?), 'dtype': '\w+'\}", r"tensor(\1)", repr(value))
    text = re.sub(r"\d+\.\d{4,}(e-?\d+)?", lambda number: f"{float(number[0]):.4g}", text)
    return text if len(text) <= most else text[:most] + " ..."


def untouched(source: str, function: str) -> bool:
    """Whether a cell's function still has the body of its stub."""
    try:
        tree = ast.parse(MAGIC.sub("", source))
    except (SyntaxError, ValueError):
        return False
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function]
    body = found[-1].body[ast.get_docstring(found[-1]) is not None :] if found else tree.body
    return bool(found) and "\n".join(map(ast.unparse, body)) in STUBS


def read_cells(path: Path) -> dict[str, str]:
    """The code of every exercise that a notebook should hold, "" for one that it does not.

    Of several cells for one exercise the last touched counts. DataError for what is no notebook.
    """
    from finer1_lite.tools.exercises import read_exercises

    table, found, notebook = read_exercises(), {}, files.load(path)
    try:
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in cells]
    except (TypeError, KeyError):
        raise files.DataError([f"{path}: it has no cells"], "is no notebook:") from None
    for source in sources:
        for number in table.keys() & MARK.findall(source):
            if number not in found or not untouched(source, table[number].function):
                found[number] = source
    chapters = {number[:2] for number in found} or re.findall(r"(?<!\d)\d\d(?=_)", path.stem)
    return {number: found.get(number, "") for number in table if number[:2] in chapters}


def check(number: str, source: str, seed: int, limit: float) -> dict[str, str]:
    """One exercise's row: its number, function, result and message."""
    from finer1_lite.tools import exercises

    one = exercises.read_exercises()[number]
    if not source:
        result, message = "missing", f"no code cell has a line '# exercise {number}'"
    elif untouched(source, one.function):
        result, message = "untouched", "the stub is as it was"
    else:
        inputs = pack(exercises.draw_inputs(number, seed))
        task = {"source": source, "function": one.function, "arguments": one.arguments}
        result, message = judge(one, inputs, run_alone(task | {"inputs": inputs}, limit))
    return {"exercise": number, "function": one.function, "result": result, "message": message}


def grade(
    paths: Sequence[Path], seed: int | None = None, limit: float = 30, out: Path | None = None
) -> bool:
    """Check notebooks, and folders of them; say and write a row an exercise. Did all pass?

    seed: draws the same inputs again (None: others each time); limit: seconds a cell;
    out: JSON of all rows. DataError, after the others are graded, lists what is no notebook.
    """
    from finer1_lite.runtime.workers import thread_pool

    seed = secrets.randbelow(10**6) if seed is None else seed
    print(f"inputs drawn with --seed {seed}")
    books = [f for p in paths for f in (sorted(p.rglob("*.ipynb")) if p.is_dir() else [p])]
    books = [book for book in books if book.parent.name != ".ipynb_checkpoints"]
    rows, problems = [], [] if books else ["there is no notebook in these folders"]
    with thread_pool(min(4, os.cpu_count() or 1)) as pool:
        for path in books:
            try:
                cells = read_cells(path)
            except (files.DataError, OSError) as error:
                problems += getattr(error, "problems", [f"{path}: {error}"])
                continue
            if not cells:
                problems.append(f"{path}: neither cells nor name tell which exercises it is about")
            asked = [(number, source, seed, limit) for number, source in cells.items()]
            print(f"\n{path}")
            for row in pool.map(lambda one: check(*one), asked):
                said = textwrap.indent("\n" + row["message"], "    ").rstrip()
                print(f"{row['exercise']} {row['function']}: {row['result']}{said}")
                rows.append({"notebook": str(path), **row, "seed": seed})
    passed = sum(row["result"] == "passed" for row in rows)
    print(f"\n{passed} of {len(rows)} passed")
    if out is not None:
        files.write_atomically(out, json.dumps(rows, indent=1).encode())
    files.require_none(problems, "not graded:")
    return passed == len(rows)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
