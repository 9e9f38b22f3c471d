"""Header, first cell, exercises and diagrams of every notebook: `python notebooks/course.py`.

A fork changes "address" (and "tag") in course.json and runs this once: badges (of an address at
GitHub), links and the line that fetches the project in Colab are written anew. Exercises are those
of finer1_lite/tools/exercises.md, diagrams those of diagrams.json. With --check nothing is written,
and files that would change are named (exit code 1). With --handout FOLDER copies of the notebooks
without the folded solutions are written there, for a class.
"""

import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import diagrams  # noqa: E402

PICTURES = HERE.parent / "assets" / "course"
PAPER = "[Fine-R1](https://arxiv.org/abs/2602.07605)"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
OWN_MARK = "<!-- made by course.py -->"
DRAWN = json.loads((HERE / "diagrams.json").read_text(encoding="utf-8"))
PLACE = re.compile(r"!\[[^\]]*\](?=\(\.\./assets/course/([\w-]+)\.svg\))")
SOLUTION = re.compile(r"<details>.*?</details>", re.DOTALL)


def header(course: dict[str, Any], at: int) -> str:
    """The first cell of notebook `at`: title, diagram, then six lines."""
    this = course["notebooks"][at]
    number = this["file"][:2]
    _, github, place = course["address"].partition("https://github.com/")
    colab = f"https://colab.research.google.com/github/{place}/blob/{course['tag']}/notebooks/"
    badge = f"[![Open this notebook in Colab]({BADGE})]({colab}{this['file']})"
    links = [f"before: {link(n)}" for n in course["notebooks"][:at][-1:]]
    links += [f"next: {link(n)}" for n in course["notebooks"][at + 1 :][:1]]
    lines = [
        f"# {number} {this['title']}",
        f"![{spoken(course, at)}](../assets/course/{number}.svg)",
        *[badge] * bool(github),  # Colab opens no other host's files
        f"**After this you can** {this['aims']}.",
        f"**You need** {this['needs']}.",
        f"**It takes** about {this['minutes']:g} minutes on two CPU cores; "
        f"a GPU (H200) has run it {this['on_a_gpu']}.",
        f"**Paper** {PAPER}: {this['paper']}.",
        f"**Course** {'; '.join(links)}; words: [glossary](GLOSSARY.md).",
    ]
    return "\n\n".join(lines) + f"\n{OWN_MARK}"


def link(notebook: dict[str, Any]) -> str:
    """To that notebook, by number and title."""
    return f"[{notebook['file'][:2]} {notebook['title']}]({notebook['file']})"


def first_cell(course: dict[str, Any]) -> str:
    """Finds the project, or fetches it where there is none (Colab); twice does no harm."""
    clone = f"git clone -q --depth 1 -b {course['tag']} {course['address']} finer1"
    return f'''import os, sys
os.path.exists("set_up.py") or os.path.exists("finer1") or os.system(
    "{clone}")
sys.path.insert(0, "finer1/notebooks")
from set_up import describe, root'''


def spoken(course: dict[str, Any], at: int) -> str:
    """The diagram in words."""
    steps = [step.replace("\n", " ") for step in course["steps"]]
    here = [steps[i] for i in course["notebooks"][at]["steps"]]
    where = "all of them" if here == steps else ", ".join(here)
    return f"The pipeline: {' -> '.join(steps)}. This notebook: {where}"


def diagram(course: dict[str, Any], at: int) -> str:
    """The pipeline in a row of boxes, SVG; this notebook's are filled."""
    lit, boxes = course["notebooks"][at]["steps"], {}
    for i, step in enumerate(course["steps"]):
        boxes[f"{i}"] = {"at": [6 + 124 * i, 34], "wide": 102, "text": step, "lit": i in lit}
    return diagrams.svg(spoken(course, at), boxes, [f"{i} {i + 1}" for i in range(len(boxes) - 1)])


def written(notebook: dict[str, Any]) -> str:
    """The text of its file, as Jupyter lays it out."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def lined(text: str) -> list[str]:
    """As notebooks keep a text: its lines with their ends."""
    return text.splitlines(keepends=True)


@cache
def exercise_cells() -> dict[str, str]:
    """The cells of every checked exercise, id -> text: task, stub and folded solution."""
    from finer1_lite.tools.exercises import read_exercises

    found = {}
    for number, one in read_exercises().items():
        name = f"ex-{number.replace('.', '-')}"
        solution = f"```python\n{one.solution}```\n\n{one.why}"
        found[name] = one.stub.strip()
        found[f"{name}-task"] = f"**{number}** {one.task}"
        found[f"{name}-solution"] = (
            f"<details><summary>Solution</summary>\n\n{solution}\n\n</details>"
        )
    return found


def rewritten(course: dict[str, Any], at: int, text: str) -> str:
    """The notebook with its header, first code cell and exercises as they are kept elsewhere."""
    notebook, kept = json.loads(text), exercise_cells()
    cells = notebook["cells"]
    if OWN_MARK not in "".join(cells[0]["source"]):
        raise ValueError(f"{course['notebooks'][at]['file']}: its first cell is not a header")
    cells[0]["source"] = lined(header(course, at))
    code = next(cell for cell in cells if cell["cell_type"] == "code")
    code["source"] = lined(first_cell(course))
    for cell in cells[1:]:
        said = kept.get(cell["id"], "".join(cell["source"]))
        cell["source"] = lined(PLACE.sub(lambda m: f"![{DRAWN[m[1]]['words']}]", said))
    return written(notebook)


def files(course: dict[str, Any]) -> dict[Path, str]:
    """Every file that is made here, and its text."""
    made = {PICTURES / f"{name}.svg": diagrams.svg(**one) for name, one in DRAWN.items()}
    for at, this in enumerate(course["notebooks"]):
        path = HERE / this["file"]
        made[path] = rewritten(course, at, path.read_text(encoding="utf-8"))
        made[PICTURES / f"{this['file'][:2]}.svg"] = diagram(course, at)
    return made


def main(check: bool) -> int:
    """Write what differs, or with `check` only name it."""
    course = json.loads((HERE / "course.json").read_text(encoding="utf-8"))
    if not re.fullmatch(r"https://\S+/\S+/\S+", course["address"]):
        raise ValueError(
            f"course.json: address {course['address']!r} is no https://HOST/OWNER/NAME"
        )
    made = files(course)
    stale = [p for p, text in made.items() if not p.exists() or p.read_text("utf-8") != text]
    for path in stale:
        print(("differs: " if check else "written: ") + str(path.relative_to(HERE.parent)))
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(made[path], encoding="utf-8", newline="\n")
    return int(check and bool(stale))


def handout(folder: Path) -> None:
    """Copies of all notebooks whose exercises have no solutions."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(HERE.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] == "markdown" and SOLUTION.search(text):
                cell["source"] = lined(SOLUTION.sub("", text).strip() or "*Solution: later.*")
        (folder / path.name).write_text(written(notebook), encoding="utf-8", newline="\n")
    print(f"{folder}: put these in the place of notebooks/*.ipynb in a copy of the project")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--handout"]:
        handout(Path(sys.argv[2]))
    else:
        sys.exit(main("--check" in sys.argv[1:]))
