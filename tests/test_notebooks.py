"""Notebooks: whole, executed in order, short cells, tidy outputs; and (slow) they still run."""

import ast
import json
import re
import shutil
import statistics
import time

import pytest
from paths import ROOT

from finer1_lite.tools.exercises import read_exercises

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COURSE = json.loads((ROOT / "notebooks" / "course.json").read_text(encoding="utf-8"))
MINUTES = {notebook["file"]: notebook["minutes"] for notebook in COURSE["notebooks"]}
ABSOLUTE = ("/work", "/home", "/tmp", "/root", "/Users", "/content", "C:\\")
MAX_BYTES, MAX_LINES, MAX_COLUMNS, MEDIAN_LINES = 300_000, 25, 88, 8
MAX_SECONDS = 600


def source(cell) -> str:
    return "".join(cell["source"])  # a string or a list of lines: both join to the text


def cells_of(notebook, kind):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def texts(output):
    """(kind, text) of an output's readable parts: not of its pictures."""
    if output["output_type"] == "stream":
        return [(output["name"], "".join(output["text"]))]
    readable = {k: v for k, v in output.get("data", {}).items() if k.startswith("text/")}
    return [(kind, "".join(value)) for kind, value in readable.items()]


def output_faults(notebook) -> list[str]:
    """What a reader must not meet below a cell."""
    problems = []
    for number, cell in enumerate(cells_of(notebook, "code"), 1):
        if cell["execution_count"] != number:
            problems.append(f"cell [{cell['execution_count']}] should be [{number}]: run all again")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                problems.append(f"[{number}] ends in {output['ename']}: {output['evalue']}")
                continue
            for kind, text in texts(output):
                if kind == "stderr":
                    problems.append(f"[{number}] writes to stderr: {text[:80]!r}")
                problems += [f"[{number}] shows the path {a}" for a in ABSOLUTE if a in text]
                if "\r" in text:
                    problems.append(f"[{number}] leaves a progress bar behind")
    return problems


def cell_faults(notebook) -> list[str]:
    """Cells too long, too wide, or too little explained."""
    codes = [source(cell).splitlines() for cell in cells_of(notebook, "code")]
    problems = []
    for number, lines in enumerate(codes, 1):
        if len(lines) > MAX_LINES:
            problems.append(f"[{number}] has {len(lines)} lines, {MAX_LINES} at most")
        wide = [line for line in lines if len(line) > MAX_COLUMNS]
        problems += [f"[{number}] is wider than {MAX_COLUMNS}: {line[:40]}..." for line in wide]
    if statistics.median(map(len, codes)) > MEDIAN_LINES:
        problems.append(f"the median code cell is longer than {MEDIAN_LINES} lines")
    ratio = len(cells_of(notebook, "markdown")) / len(codes)
    if not 1 <= ratio <= 2:
        problems.append(f"{ratio:.2f} markdown cells a code cell: 1 to 2")
    return problems


def ending_faults(notebook, checked=()) -> list[str]:
    """A summary, then at least three exercises with folded solutions, then nothing.

    checked: numbers of the exercises that `grade` checks. Each of them has its task, a code cell
    that says nothing when it runs, and its folded solution, one behind the other.
    """
    cells = notebook["cells"]
    starts = [i for i, c in enumerate(cells) if re.search("(?m)^## Exercises$", source(c))]
    at = starts[-1] if starts else len(cells)
    before = "\n".join(source(cell) for cell in cells[max(0, at - 3) : at + 1])
    problems = (
        [] if "## Summary" in before.partition("## Exercises")[0] else ["has no '## Summary'"]
    )
    if len(starts) != 1:
        problems.append(f"'## Exercises' stands in {len(starts)} cells: in one, please")
    tasks = [source(cell).rpartition("## Exercises")[2] for cell in cells[at:]]
    problems += [f"goes on with a section: {t[:40]}" for t in tasks if re.search("(?m)^## ", t)]
    tags = ("<details>", "</details>", "<summary>", "</summary>")
    counts = [sum(text.count(tag) for text in tasks) for tag in tags]
    if len(set(counts)) > 1 or counts[0] < max(3, len(checked)):
        problems.append(f"three folded solutions at least are wanted, tags found: {counts}")
    stubs = {i: c for i, c in enumerate(cells[at:]) if c["cell_type"] == "code"}
    found = [tasks[i].partition("\n")[0].removeprefix("# exercise ") for i in stubs]
    if sorted(found) != sorted(checked):
        problems.append(f"checked exercises are {sorted(checked)}, cells for {sorted(found)}")
    for number, (i, cell) in zip(found, stubs.items(), strict=True):
        task, solution = tasks[i - 1], "".join(tasks[i + 1 : i + 2])
        if not task.startswith(f"**{number}**") or "<details>" in task:
            problems.append(f"{number} has no task before its cell")
        if not (solution.startswith("<details>") and f"# exercise {number}\n" in solution):
            problems.append(f"{number} has no folded solution behind its cell")
        if cell["outputs"]:
            problems.append(f"{number} says something when it is run as it is")
    return problems


def checked_of(path) -> set[str]:
    """The checked exercises of a notebook's number."""
    return {n for n in read_exercises() if n[:2] == path.name[:2]}


def definitions(tree) -> set[str]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


def defined_twice(notebook) -> list[str]:
    """Names of the package that a notebook defines again; private ones do not count."""
    package = set()
    for path in (ROOT / "finer1_lite").glob("*.py"):
        package |= definitions(ast.parse(path.read_text(encoding="utf-8")))
    own = set()
    for cell in cells_of(notebook, "code"):
        plain = re.sub(r"^\s*[%!].*$", "", source(cell), flags=re.MULTILINE)  # IPython's own
        own |= definitions(ast.parse(plain))
    return sorted(own & package)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_notebooks_are_numbered_without_a_gap():
    """00, 01, ... as the course is read, each number once; it has nine notebooks at least."""
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert numbers == [f"{i:02d}" for i in range(len(numbers))]
    assert len(numbers) >= 9


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_tidy(path):
    notebook = read(path)
    assert path.stat().st_size < MAX_BYTES
    assert notebook["nbformat"] == 4
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    problems = output_faults(notebook) + cell_faults(notebook)
    problems += ending_faults(notebook, checked_of(path))
    problems += [f"defines {name} again: import it" for name in defined_twice(notebook)]
    assert not problems, "\n".join([path.name, *problems])


# --- the checks themselves fail where they should ------------------------------------


def code(text="x = 1", number=1, outputs=()):
    done = {"execution_count": number, "outputs": list(outputs)}
    return {"cell_type": "code", "source": text, **done}


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": [text]}


@pytest.mark.parametrize(
    "cell, said",
    [
        (code(number=2), "should be [1]"),
        (code(number=None), "run all again"),
        (code(outputs=[{"output_type": "error", "ename": "E", "evalue": "no"}]), "ends in E: no"),
        (code(outputs=[stream("careful", "stderr")]), "stderr"),
        (code(outputs=[stream("saved to /tmp/x")]), "shows the path /tmp"),
        (code(outputs=[{"output_type": "display_data", "data": {"text/html": "C:\\x"}}]), "C:"),
        (code(outputs=[stream("10%\r20%")]), "progress bar"),
    ],
)
def test_untidy_outputs_are_found(cell, said):
    assert said in "\n".join(output_faults({"cells": [cell]}))


def test_pictures_may_hold_any_letters():
    picture = {"output_type": "display_data", "data": {"image/png": "abc/tmp/home"}}
    assert not output_faults({"cells": [code(outputs=[picture])]})


@pytest.mark.parametrize(
    "cells, said",
    [
        ([code("x\n" * 26)], "has 26 lines"),
        ([code("x" * 89)], "is wider than 88"),
        ([code("x\n" * 9)], "median"),
        ([code()], "0.00 markdown cells"),
        ([code()] + [{"cell_type": "markdown", "source": "a"}] * 3, "3.00 markdown cells"),
    ],
)
def test_untidy_cells_are_found(cells, said):
    assert said in "\n".join(cell_faults({"cells": cells}))


def text(words):
    return {"cell_type": "markdown", "source": words}


FOLD = "<details><summary>Solution</summary>x</details>"


def ending(n=1):
    """A summary, an open exercise and two checked ones."""
    cells = [text("## Summary\n## Exercises\n")]
    for number in ("07.1", "07.2"):
        solution = f"<details><summary>Solution</summary>\n# exercise {number}\n</details>"
        cells += [text(f"**{number}** Do."), code(f"# exercise {number}\nx"), text(solution)]
    return [*cells, text("**07.3** Think.\n" + n * FOLD)]


def test_a_missing_exercise_is_found():
    whole = "## Summary\n## Exercises\n" + 3 * FOLD
    assert not ending_faults({"cells": [text(whole)]})
    for broken in (whole.replace(FOLD, "", 1), whole.replace("## Summary", ""), 3 * FOLD):
        assert ending_faults({"cells": [text(broken)]})
    assert ending_faults({"cells": [text(whole), text("## More")]})
    assert ending_faults({"cells": [text(whole), *[text("more")] * 4, text("## Exercises")]})
    assert ending_faults({"cells": [text(whole.replace("</details>", "", 1))]})
    assert ending_faults({"cells": [text("## Summary"), *[text("")] * 4, text(whole[11:])]})


def test_a_checked_exercise_without_its_parts_is_found():
    checked = ("07.1", "07.2")
    assert not ending_faults({"cells": ending()}, checked)
    assert "cells for" in "".join(ending_faults({"cells": ending()}))  # checked by nothing
    assert "three folded" in "".join(ending_faults({"cells": ending(0)}, checked))
    for gone, said in ((1, "no task"), (2, "cells for"), (3, "no folded solution")):
        cells = ending(3)
        del cells[gone]
        assert said in "".join(ending_faults({"cells": cells}, checked))
    cells = ending()
    cells[2]["outputs"] = [stream("hello")]
    assert "07.1 says something" in "".join(ending_faults({"cells": cells}, checked))


def test_a_second_definition_is_found():
    again = code("%matplotlib inline\ndef k3(logps):\n    return logps\ndef own():\n    pass")
    assert defined_twice({"cells": [again]}) == ["k3"]


# --- they run ------------------------------------------------------------------------


def slow(path):
    """The notebook, to be begun the earlier the longer it takes."""
    return pytest.param(path, id=path.stem, marks=pytest.mark.slow(minutes=MINUTES[path.name]))


@pytest.mark.parametrize("path", map(slow, NOTEBOOKS))
def test_notebook_runs_from_a_clean_kernel(path, tmp_path, monkeypatch):
    """In a copy of the project, without network; what a run writes stays in the copy."""
    import nbformat
    from nbclient import NotebookClient

    for folder in ("finer1_lite", "assets", "notebooks"):
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=leave)
    there = {p.name for p in (tmp_path / "notebooks").iterdir()}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(tmp_path / "notebooks")}}
    start = time.monotonic()
    NotebookClient(notebook, timeout=MAX_SECONDS, kernel_name="python3", resources=where).execute()
    assert time.monotonic() - start < MAX_SECONDS  # nbclient's own limit is for one cell
    assert not output_faults(notebook)
    files = {p.name for p in (tmp_path / "notebooks").iterdir()} - {"__pycache__"}
    assert files == there, "a notebook leaves files beside itself"
