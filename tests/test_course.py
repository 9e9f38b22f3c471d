"""The course as a whole: headers and first cells made from one file, and what Colab would do."""

import importlib.util
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch
from paths import ROOT

from finer1_lite.presets import Preset
from finer1_lite.runtime import devices

NOTEBOOKS = ROOT / "notebooks"
COURSE = json.loads((NOTEBOOKS / "course.json").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def load(name: str):
    """A script of the notebooks' folder, as a module."""
    spec = importlib.util.spec_from_file_location(name, NOTEBOOKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


course, set_up = load("course"), load("set_up")


def test_headers_first_cells_and_diagrams_are_as_written_down():
    assert course.main(check=True) == 0, "run: python notebooks/course.py"


def test_the_course_lists_the_notebooks_that_are_there():
    assert [n["file"] for n in COURSE["notebooks"]] == sorted(
        p.name for p in NOTEBOOKS.glob("*.ipynb")
    )


@pytest.mark.parametrize("notebook", COURSE["notebooks"], ids=lambda n: n["file"][:2])
def test_the_readme_says_of_a_gpu_what_the_header_says(notebook):
    words = {"once, from beginning to end": "H200, once", "in part": "H200, in part"}
    line = next(s for s in README.splitlines() if f"](notebooks/{notebook['file']})" in s)
    assert line.split("|")[-2].strip() == words[notebook["on_a_gpu"]]


def test_a_fork_changes_one_line():
    """Badge, fetching cell and links follow the address; nothing else names a place."""
    fork = COURSE | {"address": "https://github.com/them/birds", "tag": "v2"}
    files = course.files(fork)
    for path, text in files.items():
        if path.suffix == ".ipynb":
            assert COURSE["address"] not in text
            assert "github/them/birds/blob/v2/notebooks/" + path.name in text
            assert "git clone -q --depth 1 -b v2 https://github.com/them/birds finer1" in text


def test_a_header_has_badge_aims_needs_minutes_paper_and_neighbours():
    for at, notebook in enumerate(COURSE["notebooks"]):
        text = course.header(COURSE, at)
        for wanted in ("# " + notebook["file"][:2], "colab-badge.svg", "**After this you can**",
                       "**You need**", "**It takes**", "**Paper**", "GLOSSARY.md"):  # fmt: skip
            assert wanted in text, (notebook["file"], wanted)
        assert ("before: " in text) == (at > 0)
        assert ("next: " in text) == (at + 1 < len(COURSE["notebooks"]))


def test_a_diagram_says_in_words_what_it_shows():
    for at, notebook in enumerate(COURSE["notebooks"]):
        tree = ElementTree.fromstring(course.diagram(COURSE, at))
        _, *boxes = [e for e in tree.iter() if e.tag.endswith("rect")]  # the first is the page
        assert [i for i, box in enumerate(boxes) if box.get("fill") != "#ffffff"] == notebook[
            "steps"
        ]
        assert next(e for e in tree.iter() if e.tag.endswith("title")).text == course.spoken(
            COURSE, at
        )


@pytest.mark.parametrize("name", course.DRAWN)
def test_a_drawing_has_room_for_its_words_and_stands_in_one_notebook(name):
    spec = course.DRAWN[name]
    tree = ElementTree.fromstring(course.diagrams.svg(**spec))
    page, *boxes = [e for e in tree.iter() if e.tag.endswith("rect")]
    wide, high = float(page.get("width")), float(page.get("height"))
    for box, one in zip(boxes, spec["boxes"].values(), strict=True):
        x, y, w, h = (float(box.get(side)) for side in ("x", "y", "width", "height"))
        assert 0 < x < x + w < wide and 0 < y < y + h < high <= 260 and wide <= 940
        assert 7.2 * max(map(len, one["text"].split("\n"))) <= w, one["text"]  # of 13 pixels
    image = f"![{spec['words']}](../assets/course/{name}.svg)"
    texts = {path.name[:2]: path.read_text(encoding="utf-8") for path in NOTEBOOKS.glob("*.ipynb")}
    assert [number for number, text in texts.items() if image in text] == [name[:2]]


def test_an_arrow_leaves_at_the_side_of_its_goal_and_names_a_box():
    a, b, c = ({"at": at, "wide": 100, "text": "x"} for at in ((10, 30), (200, 30), (10, 130)))
    boxes = {"a": a, "b": b, "c": c}
    assert 'd="M110 30H155V30H200"' in course.diagrams.svg("", boxes, ["a b"])
    assert 'd="M200 30H155V30H110"' in course.diagrams.svg("", boxes, ["b a"])
    assert 'd="M60 47.5V112.5"' in course.diagrams.svg("", boxes, ["a c"])
    assert 'class="back"' in course.diagrams.svg("", boxes, ["~c a: gradient"])
    with pytest.raises(KeyError, match="nowhere"):
        course.diagrams.svg("", boxes, ["a nowhere"])


def test_elsewhere_than_at_github_there_is_no_badge_for_colab_opens_no_file_there():
    text = course.header(COURSE | {"address": "https://codeberg.org/them/birds"}, 0)
    assert "colab" not in text and "**After this you can**" in text


def test_a_notebook_without_a_header_is_refused():
    text = json.dumps({"cells": [{"cell_type": "markdown", "source": ["# mine"]}]})
    with pytest.raises(ValueError, match="first cell is not a header"):
        course.rewritten(COURSE, 0, text)


def test_a_hand_out_has_tasks_and_no_solutions(tmp_path):
    course.handout(tmp_path / "class")
    for path in NOTEBOOKS.glob("*.ipynb"):
        text = (tmp_path / "class" / path.name).read_text(encoding="utf-8")
        assert "## Exercises" in text and "<details>" not in text and "Solution</" not in text
        cells = [json.loads(t)["cells"] for t in (text, path.read_text(encoding="utf-8"))]
        assert len(cells[0]) == len(cells[1])


# --- Colab: a new session, the cell run twice, a restarted session -------------------

COLAB = """
import subprocess, sys, types
sys.modules["google.colab"] = types.ModuleType("google.colab")
run, subprocess.run = subprocess.run, lambda command, **_: print("RUN", *command[1:])
cell = open("cell.py").read()
exec(cell)
exec(cell)
print("ROOT", root)
"""
GIT = """#!{python}
import os, shutil, sys
print("GIT", *sys.argv[1:], flush=True)
os.makedirs(sys.argv[-1] + "/notebooks")
for name in ("set_up.py", "course.json"):
    shutil.copy({notebooks!r} + "/" + name, sys.argv[-1] + "/notebooks")
with open(sys.argv[-1] + "/requirements.txt", "w") as file:
    file.write({requirements!r})
"""


@pytest.fixture
def colab(tmp_path):
    """Starts a stand-in for a Colab session in an empty folder; returns what it printed."""
    (tmp_path / "content").mkdir()
    (tmp_path / "bin").mkdir()

    def session(requirements: str = "") -> str:
        git = GIT.format(python=sys.executable, notebooks=str(NOTEBOOKS), requirements=requirements)
        (tmp_path / "bin" / "git").write_text(git)
        (tmp_path / "bin" / "git").chmod(0o755)
        (tmp_path / "content" / "cell.py").write_text(course.first_cell(COURSE))
        (tmp_path / "content" / "session.py").write_text(COLAB)
        done = subprocess.run(
            [sys.executable, "session.py"],
            cwd=tmp_path / "content",
            env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
            text=True,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr[-1000:]
        return done.stdout

    return session


@pytest.mark.skipif(sys.platform == "win32", reason="Colab is a Linux machine")
def test_a_new_session_fetches_once_installs_what_is_lacking_and_leaves_torch(colab):
    said = colab("torch==0.1\nnumpy==0.1  # old\nnot-there-yet==3.1\npackaging>=1\n# a remark\n")
    assert said.count("GIT clone") == 1 and COURSE["address"] in said
    installed = [line for line in said.splitlines() if line.startswith("RUN")]
    assert installed and {*installed} == {"RUN -m pip install -q numpy==0.1 not-there-yet==3.1"}
    assert said.rstrip().endswith("/content/finer1")


@pytest.mark.skipif(sys.platform == "win32", reason="Colab is a Linux machine")
def test_a_restarted_session_neither_fetches_nor_installs_again(colab):
    first = colab("packaging>=1\n")
    again = colab()
    assert "GIT" in first and "GIT" not in again
    assert "RUN" not in first + again


def test_an_older_version_in_use_asks_for_a_restart(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(set_up, "lacking", lambda text: ["numpy==9.9", "not-there-yet==3.1"])
    monkeypatch.setattr(set_up.subprocess, "run", lambda command, check: calls.append(command))
    set_up.install()
    said = capsys.readouterr().out
    assert len(calls) == 1 and "Restart session" in said and "numpy:" in said
    assert "not-there-yet" not in said


def test_our_own_requirements_can_all_be_read():
    assert set_up.lacking((ROOT / "requirements.txt").read_text()) == []


@pytest.mark.parametrize("card", [None, "Tesla T4"])
def test_what_it_runs_on_is_said_in_words(monkeypatch, capsys, card):
    if card:
        monkeypatch.setattr(devices, "choose_device", lambda: torch.device("cuda"))
        monkeypatch.setattr(devices, "choose_dtype", lambda device: torch.float16)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
        memory = type("Properties", (), {"total_memory": 15 * 2**30})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    set_up.describe("00", Preset.lab())
    set_up.describe("08", Preset.lab_photos())
    set_up.describe("05", Preset.colab())
    said = capsys.readouterr().out
    assert ("Tesla T4: 15 GiB of GPU memory" in said) == bool(card)
    assert ("CPU cores" in said.partition("preset")[0]) == (not card)
    assert f"preset lab: about {set_up.minutes('00'):g} minutes" in said
    assert f"preset lab-photos: about {set_up.minutes('08'):g} minutes" in said
    assert "preset colab: `python -m finer1_lite plan --preset colab` says" in said
    assert ("a GPU rounds otherwise" in said) == bool(card)


# --- alt texts ------------------------------------------------------------------------


def test_alt_text_is_made_of_titles_labels_and_legends():
    from matplotlib.figure import Figure

    figure = Figure()
    left, right = figure.subplots(1, 2)
    left.plot([1, 2], label="SFT")
    left.set(xlabel="step", ylabel="accuracy, %", title="seen")
    left.legend()
    right.imshow([[0, 1]])
    right.set_title("anchor:\ntomul wren")
    assert set_up.alt_text(figure) == (
        "chart seen, accuracy, % against step, with SFT; picture anchor: tomul wren"
    )


def test_every_picture_in_the_notebooks_has_an_alt_text():
    lacking = []
    for path in NOTEBOOKS.glob("*.ipynb"):
        for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"]):
            for output in cell.get("outputs", []):
                kinds = {"image/png", "image/jpeg"} & output.get("data", {}).keys()
                lacking += [
                    f"{path.name} [{number}]"
                    for kind in kinds
                    if not output["metadata"].get(kind, {}).get("alt")
                ]
            text = "".join(cell["source"]) if cell["cell_type"] == "markdown" else ""
            lacking += [f"{path.name} [{number}]"] * text.count("![](")
    assert not lacking, "\n".join(lacking)
