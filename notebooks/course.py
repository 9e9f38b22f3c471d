"""Header, first cell and checked exercises of every notebook: `python notebooks/course.py`.

A fork changes "address" (and "tag") in course.json and runs this once: badges (of an address at
GitHub), links, the line that fetches the project in Colab and the diagrams are written anew. The
exercises are those of finer1_lite/tools/exercises.md. With --check nothing is
written, and files that would change are named (exit code 1). With --handout FOLDER copies of the
notebooks without the folded solutions are written there, for a class.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
PICTURES = HERE.parent / "assets" / "course"
PAPER = "[Fine-R1](https://arxiv.org/abs/2602.07605)"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
OWN_MARK = "<!-- made by course.py -->"
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
        "on a GPU nobody has run it yet.",
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
    here = [course["steps"][i] for i in course["notebooks"][at]["steps"]]
    where = "all of them" if len(here) == len(course["steps"]) else ", ".join(here)
    return f"The pipeline: {' -> '.join(course['steps'])}. This notebook: {where}"


def diagram(course: dict[str, Any], at: int) -> str:
    """The pipeline in two rows of four boxes, SVG; this notebook's are filled."""
    lit = course["notebooks"][at]["steps"]
    wide, high, gap = 168, 34, 26
    parts = []
    for i, step in enumerate(course["steps"]):
        x, y = 4 + (i % 4) * (wide + gap), 4 + (i // 4) * (high + gap)
        fill, ink = ("#0072B2", "#ffffff") if i in lit else ("#ffffff", "#333333")
        parts.append(
            f'<rect x="{x}" y="{y}" width="{wide}" height="{high}" rx="6" fill="{fill}" '
            'stroke="#555555"/>'
            f'<text x="{x + wide / 2:g}" y="{y + 22}" fill="{ink}">{escape(step)}</text>'
        )
        if i % 4 < 3 and i + 1 < len(course["steps"]):
            parts.append(f'<path d="M{x + wide + 3} {y + 17}h{gap - 8}"/>')
    middle = 4 + high + gap / 2
    end = 4 + 3 * (wide + gap) + wide / 2
    parts.append(f'<path d="M{end:g} {4 + high}V{middle:g}H{4 + wide / 2:g}V{high + gap + 1:g}"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {4 * wide + 3 * gap + 8} '
        f'{2 * high + gap + 8}" role="img" font-family="sans-serif" font-size="14" '
        f'text-anchor="middle"><title>{escape(spoken(course, at))}</title>'
        '<defs><marker id="a" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" '
        'markerHeight="6" orient="auto"><path d="M0 0L6 3L0 6z" fill="#555555" stroke="none"/>'
        '</marker></defs><g fill="none" stroke="#555555" marker-end="none"><style>'
        "path{marker-end:url(#a)} marker path{marker-end:none} text{stroke:none}</style>"
        f"{''.join(parts)}</g></svg>\n"
    )


def written(notebook: dict[str, Any]) -> str:
    """The text of its file, as Jupyter lays it out."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def lined(text: str) -> list[str]:
    """As notebooks keep a text: its lines with their ends."""
    return text.splitlines(keepends=True)


def exercise_cells() -> dict[str, str]:
    """The cells of every checked exercise, id -> text: task, stub and folded solution."""
    sys.path.insert(0, str(HERE.parent))
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
    for cell in cells:
        if cell["id"] in kept:
            cell["source"] = lined(kept[cell["id"]])
    return written(notebook)


def files(course: dict[str, Any]) -> dict[Path, str]:
    """Every file that is made here, and its text."""
    made = {}
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
