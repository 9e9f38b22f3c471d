"""The notebooks' pieces that move: what they draw, what a reader without a kernel sees."""

import base64
import importlib.util
import io
import json
import random
import re
import shutil
import sys
import time
from types import SimpleNamespace

import ipywidgets as w
import numpy as np
import pandas as pd
import pytest
import torch
from browser import SLOW, needs_chromium, new_page, screenshot
from labserver import run_first_cell, served
from matplotlib.figure import Figure
from paths import ROOT
from PIL import Image

from finer1_lite import cot, triplets
from finer1_lite.chains import concepts
from finer1_lite.data.statistics import wilson

NOTEBOOKS = ROOT / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))  # as in a notebook

import explore  # noqa: E402

HOSTILE = "<img src=x onerror=alert(1)>"
STATE = "application/vnd.jupyter.widget-state+json"


def line(height: float) -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, height])
    figure.axes[0].set(title=f"up to {height}", ylim=(0, 10))
    return figure


def bundle_of(board):
    return board._repr_mimebundle_()


# --- a board: two kinds of output, redrawing, errors ------------------------------------


def test_one_output_holds_the_widget_and_a_picture_of_the_start_values_with_its_words():
    board = explore.play(line, height=(1, 9, 1, 4))
    data, metadata = bundle_of(board)
    assert data[explore.VIEW]["model_id"] == board.model_id
    assert base64.b64decode(data["image/png"]) == board.picture.value
    assert metadata["image/png"]["alt"] == data["text/plain"] == "chart up to 4"
    assert "chart up to 4" in board.words.value
    board.controls["height"].value = 9
    assert bundle_of(board)[0]["image/png"] == data["image/png"]
    json.dumps([data, metadata])


def test_the_formatter_of_a_notebook_gets_all_of_it():
    from IPython.core.formatters import DisplayFormatter

    data, metadata = DisplayFormatter().format(explore.play(line, height=(1, 9, 1, 4)))
    assert {explore.VIEW, "image/png", "text/plain"} <= {*data}
    assert metadata["image/png"]["alt"] == "chart up to 4"


def test_a_control_that_is_moved_redraws_and_says_so():
    board = explore.play(line, height=(1.0, 9.0, 0.5, 4.0))
    before = board.picture.value
    board.controls["height"].value = 8.5
    assert board.picture.value != before and "chart up to 8.5" in board.words.value
    assert Image.open(io.BytesIO(board.picture.value)).size == (200, 100)
    board.controls["height"].value = 4.0
    assert board.picture.value == before


def test_an_error_is_shown_as_text_and_goes_when_a_value_mends_it():
    def draw(height):
        if height > 5:
            raise ValueError(f"too high: {HOSTILE}")
        return line(height)

    board = explore.play(draw, height=(1, 9, 1, 4))
    board.controls["height"].value = 9
    assert "ValueError: too high: &lt;img" in board.words.value
    assert "<img" not in board.words.value and board.picture.layout.display == "none"
    board.controls["height"].value = 3
    assert "Error" not in board.words.value and board.picture.layout.display is None
    with pytest.raises(ValueError, match="too high"):
        explore.play(draw, height=(1, 9, 1, 6))


def test_only_what_is_drawn_quickly_is_drawn_while_a_slider_moves():
    def slow(height):
        time.sleep(explore.QUICK)
        return "x"

    assert (
        explore.play(lambda height: "x", height=(1, 9, 1, 4)).controls["height"].continuous_update
    )
    assert not explore.play(slow, height=(1, 9, 1, 4)).controls["height"].continuous_update


def test_tuples_are_sliders_and_widgets_stay_what_they_are():
    given = {"whole_number": (1, 9, 1, 4), "part": (0.0, 1.0, 0.1, 0.5)}
    board = explore.play(lambda **values: str(values), **given, kind=w.Dropdown(options="ab"))
    kinds = {name: type(one).__name__ for name, one in board.controls.items()}
    assert kinds == {"whole_number": "IntSlider", "part": "FloatSlider", "kind": "Dropdown"}
    assert board.controls["whole_number"].description == "whole number"


# --- stored: the picture alone -----------------------------------------------------------


def stored(board, states: bool):
    """A notebook as a client that ran it leaves it: with or without the widgets' states."""
    import nbformat

    data, metadata = bundle_of(board)
    output = nbformat.v4.new_output("execute_result", data, metadata=metadata, execution_count=1)
    cell = nbformat.v4.new_code_cell("board", outputs=[output], execution_count=1)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    if states:
        state = {"state": {board.model_id: {}}, "version_major": 2, "version_minor": 0}
        notebook.metadata["widgets"] = {STATE: state}
    return notebook


@pytest.mark.parametrize("template", ["lab", "classic"])
def test_html_of_a_stored_notebook_shows_the_picture_unless_states_were_stored(template):
    """Why `still` takes both away: with states the page waits for code from the network."""
    nbconvert = pytest.importorskip("nbconvert")

    def page(notebook):
        return nbconvert.HTMLExporter(template_name=template).from_notebook_node(notebook)[0]

    board = explore.play(line, height=(1, 9, 1, 4))
    picture, network = 'src="data:image/png;base64', "@jupyter-widgets/html-manager"
    assert picture in page(stored(board, states=False))
    with_states = page(stored(board, states=True))
    assert picture not in with_states and network in with_states
    kept = page(explore.still(stored(board, states=True)))
    assert picture in kept and network not in kept and explore.VIEW not in kept
    if template == "classic":  # the other one leaves out what the output's metadata say
        assert 'alt="chart up to 4"' in kept


def test_still_keeps_all_else(tmp_path):
    notebook = explore.still(stored(explore.play(lambda a: "<b>x</b>", a=(1, 2, 1, 1)), True))
    assert [*notebook.cells[0].outputs[0].data] == ["text/html", "text/plain"]
    assert "widgets" not in notebook.metadata
    assert explore.still(json.loads(json.dumps(notebook))) == notebook


def test_what_a_full_progress_bar_leaves_is_not_stored():
    told = {"output_type": "stream", "text": ["end\n"]}
    bars = [{"output_type": "display_data", "data": {"text/plain": t}} for t in ("", [], [""])]
    notebook = explore.still({"metadata": {}, "cells": [{"outputs": [*bars, told]}]})
    assert notebook["cells"][0]["outputs"] == [told]


def test_a_stored_picture_is_made_small_once_and_looks_the_same():
    buffer, figure = io.BytesIO(), explore.loss_figure(-1.0, 0.2, 0.28, 3.0)
    figure.savefig(buffer, format="png")
    small = explore.small(buffer.getvalue())
    assert len(small) < len(buffer.getvalue()) / 2 and explore.small(small) == small
    before, after = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float)
                     for png in (buffer.getvalue(), small))  # fmt: skip
    apart = abs(before - after)  # of 256 shades: softened edges of lines move most
    assert apart.mean() < 0.5 and (apart > 8).mean() < 0.01
    output = {"data": {"image/png": [base64.b64encode(buffer.getvalue()).decode() + "\n"]}}
    notebook = explore.still({"metadata": {}, "cells": [{"outputs": [output]}, {"source": ""}]})
    assert base64.b64decode(notebook["cells"][0]["outputs"][0]["data"]["image/png"]) == small


def test_the_notebooks_own_checks_accept_both_kinds_of_output():
    place = ROOT / "tests" / "test_notebooks.py"
    spec = importlib.util.spec_from_file_location("notebook_checks", place)
    checks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(checks)
    for face in (line, lambda height: f"<b>{height}</b>"):
        notebook = stored(explore.play(face, height=(1, 9, 1, 4)), states=True)
        for form in (notebook, explore.still(notebook)):
            assert not checks.output_faults(form)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_notebooks_hold_no_view_whose_model_is_gone(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    mend = f"run: python notebooks/explore.py notebooks/{path.name}"
    assert not notebook["metadata"].get("widgets"), mend
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            kinds = {*output.get("data", {})}
            assert not (explore.VIEW in kinds and kinds & {"image/png", "text/html"}), mend


# --- loss --------------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", [1.5, -1.0])
def test_the_gradient_is_the_advantage_times_the_ratio_and_0_beyond_the_clips(advantage):
    ratio = torch.tensor([0.3, 0.79, 0.81, 1.0, 1.27, 1.29, 2.9, 3.1], dtype=torch.float64)
    surrogate, slope = explore.loss_curve(ratio, advantage, 0.2, 0.28, 3.0)
    r = ratio.numpy()
    flat = r > 1.28 if advantage > 0 else (r < 0.8) | (r > 3)
    assert np.allclose(slope, np.where(flat, 0, advantage * r))
    ends = r.clip(None, 1.28) if advantage > 0 else r.clip(0.8, 3)
    assert np.allclose(surrogate, advantage * ends)


@pytest.mark.parametrize(
    "advantage, low, said",
    [
        (1.0, 0.2, "A = +1.00. No gradient at ratio: 1.28 to 4.00"),
        (-1.0, 0.2, "A = -1.00. No gradient at ratio: 0.00 to 0.80 and 3.00 to 4.00"),
        (-1.0, 1.0, "A = -1.00. No gradient at ratio: 3.00 to 4.00"),
        (0.0, 0.2, "A = +0.00. No gradient at ratio: 0.00 to 4.00"),
    ],
)
def test_flat_parts_are_named_and_marked(advantage, low, said):
    figure = explore.loss_figure(advantage, low, 0.28, 3.0)
    assert figure.get_suptitle() == said
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["unclipped", "clipped", "flat"]
    assert len(figure.axes[0].patches) == said.count(" to ")


# --- advantages ----------------------------------------------------------------------------


def test_advantages_of_four_rewards():
    found = explore.group_of([1, 0.9, 0.1, 0], 0, "group", "std")
    assert np.allclose(found, [0.956, 0.765, -0.765, -0.956], atol=1e-3)
    assert np.allclose(explore.group_of([1, 0], 0, "group", "none"), [0.5, -0.5])


def test_a_baseline_for_each_picture_silences_a_group_that_differs_by_picture_only():
    paid = [1.0] * 4 + [0.0] * 4
    assert not explore.group_of(paid, 4, "picture", "std").any()
    pooled = explore.group_of(paid, 4, "group", "std")
    assert np.allclose(abs(pooled), (7 / 8) ** 0.5, atol=1e-4)
    titles = [
        explore.advantage_figure(paid, 4, baseline, "std").axes[1].get_title()
        for baseline in ("group", "picture")
    ]
    assert titles == ["", "all 0: nothing is learnt"]


def test_each_reward_has_a_slider():
    board = explore.advantage_playground((1, 0.1, 0.9, 0), positives=0)
    before = board.picture.value
    assert [*board.controls] == ["reward_1", "reward_2", "reward_3", "reward_4", "scale",
                                 "baseline"]  # fmt: skip
    board.controls["reward_4"].value = 1.0
    assert board.picture.value != before and "+0.5" in board.words.value


# --- intervals -----------------------------------------------------------------------------


def test_coverage_of_one_picture_by_hand():
    """One picture: the textbook interval is a point; Wilson's are [0, .79] and [.21, 1]."""
    truths = np.array([0.1, 0.5, 0.9])
    assert np.allclose(explore.coverage(explore.textbook, truths, 1), 0)
    assert np.allclose(explore.coverage(wilson, truths, 1), [0.9, 1, 0.9])
    assert np.allclose(explore.coverage(lambda k, n: (0, 1), truths, 30), 1)


@pytest.mark.parametrize("n", [5, 20, 200])
def test_wilsons_interval_stays_inside_and_the_textbooks_does_not(n):
    ends = np.array([wilson(k, n) for k in range(n + 1)])
    assert (ends >= 0).all() and (ends <= 1).all() and (ends[:, 0] < ends[:, 1]).all()
    assert explore.textbook(n - 1, n)[1] > 1
    assert explore.textbook(n, n) == (1, 1)


def test_the_figure_says_both_intervals_and_what_they_hold_here():
    figure = explore.interval_figure(20, 0.95)
    assert figure.get_suptitle() == (
        "19 of 20 right: textbook: 85.4 to 104.6 %; Wilson: 76.4 to 99.1 %"
    )
    names = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert names == ["textbook", "here 64 %", "Wilson", "here 92 %"]
    explore.interval_figure(5, 0.0), explore.interval_figure(200, 1.0)


# --- scoring -------------------------------------------------------------------------------

BIRDS = ["tomul wren", "somar wren"]


@pytest.mark.parametrize(
    "answer, paid",
    [
        ("The Tomul-Wren.", ["✗ not paid", "✓ paid"]),  # the first rule wants the very letters
        ("tomul wren", ["✓ paid", "✓ paid"]),
        ("somar wren, not tomul wren", ["✓ paid", "✗ not paid"]),
        ("somar wren", ["✗ not paid", "✗ not paid"]),
        ("", ["✗ not paid", "✗ not paid"]),
    ],
)
def test_two_rules_side_by_side(answer, paid):
    table = explore.scorer_html(answer, BIRDS[0], BIRDS)
    assert re.findall(r"<td>([✓✗][^<]*)</td>", table) == paid


def test_hostile_answers_and_names_stay_text():
    board = explore.scorer_breaker(HOSTILE, [HOSTILE, "wren"])
    for answer in (HOSTILE, "</code><script>alert(1)</script>", "&lt;"):
        board.controls["answer"].value = answer
        assert "<img" not in board.words.value and "<script" not in board.words.value
    assert "&amp;lt;" in board.words.value
    data, _ = bundle_of(board)
    assert "<img" not in data["text/html"] and data[explore.VIEW]
    assert f"wren, not {HOSTILE}" in data["text/plain"]


# --- concepts ------------------------------------------------------------------------------


def test_a_price_drops_the_slip_and_keeps_the_mark():
    """Six descriptions a picture: all say the mark, one of one picture makes a slip."""
    ours, theirs = ["red crown"] * 6, ["blue crown"] * 6
    described = {"a": [[*ours[:5], "red crown, long bill"], ours], "b": [theirs, theirs]}
    board = explore.bottleneck_slider("a", described, ["red crown", "long bill"])
    assert f"beta {concepts.BETA:.2f} keeps 1 of 2: red crown" in board.words.value
    board.controls["beta"].value = 0.0
    assert "beta 0.00 keeps 2 of 2" in board.words.value
    board.controls["beta"].value = 1.0
    assert "beta 1.00 keeps 0 of 2: none" in board.words.value


# --- training ------------------------------------------------------------------------------


def test_a_step_shows_its_numbers_a_skipped_one_a_gap_and_a_resumed_one_counts_once(tmp_path):
    rows = [{"step": s, "reward": s / 10, "inter_class_kl": 0.1 * s} for s in (1, 2, 3, 3)]
    rows[1].pop("inter_class_kl")
    rows[3]["reward"] = 0.7
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for log in (rows, path):
        board = explore.step_slider(log)
        assert board.controls["step"].options == (1, 2, 3)
        assert "step 1: chart reward: 0.1" in board.words.value
        board.controls["step"].value = 2
        assert "inter class kl: nothing logged" in board.words.value
        board.controls["step"].value = 3
        assert "reward: 0.7" in board.words.value
    assert "inter" not in explore.step_slider(path, ["reward"]).words.value
    table = pd.DataFrame({name: [1.0, 2.0] for name in "abcd"}, index=[1, 2])
    drawn = explore.step_figure(table, 1, "abcd").axes
    assert [axis.axison for axis in drawn] == [True] * 4 + [False] * 2


# --- triplets ------------------------------------------------------------------------------


def test_the_browser_shows_what_training_draws_and_the_marks_that_differ(world, birds):
    board = explore.triplet_browser(birds)
    board.controls["step"].value, board.controls["index"].value = 2, 3
    drawn = triplets.draw_triplets(birds, 4, seed=0, step=2)[3]
    names = [photo.species for photo in (drawn.anchor, drawn.negative)]
    for mark in world.differing(*names):
        for name in names:
            assert f"{mark} {world.marks[name][mark]}" in board.words.value
    shared = {*world.marks[names[0]]} - {*world.differing(*names)}
    assert not any(f"{mark} " in board.words.value for mark in shared)
    assert f"positive: {names[0]}; picture hard negative: {names[1]}" in board.words.value


# --- rollouts ------------------------------------------------------------------------------


@pytest.fixture
def group(world, birds):
    """A whole chain, one that is right against its comparison, and two that are no chains."""
    triplet = triplets.draw_triplets(birds, 4, seed=0, step=0)[0]
    name, other = triplet.anchor.species, triplet.negative.species
    chain, against = (cot.oracle_chain(world, n, random.Random(0)) for n in (name, other))
    for words in ("prediction: ", "<answer>"):
        against = against.replace(words + other, words + name)
    right = torch.tensor([1.0, 1, 0, 0])
    return SimpleNamespace(
        triplet=triplet,
        completions=[chain, against, chain.partition("<answer>")[0], HOSTILE],
        right=right,
        accuracy=right,
        format=right,
        reward=0.9 * right + 0.1 * right,
    )


def test_a_chain_is_taken_apart_and_its_verdict_said(group, birds):
    name, other = group.triplet.anchor.species, group.triplet.negative.species
    whole, against, cut, hostile = (explore.rollout_html(group, i, birds.names) for i in range(4))
    assert f"comparison leads to the answer: it picks {name}" in whole
    assert "accuracy 1, format 1, reward 1, advantage 0.866" in whole
    assert f"comparison contradicts the answer: it picks {other}" in against
    assert "about the anchor" in against and "about the positive" in cut
    assert "there is no valid answer" in cut
    assert "comparison picks no single candidate" in hostile
    assert all(f"{sign}</b> {part}:" in whole for part, sign in explore.SYMBOLS.items())
    assert len({*explore.SYMBOLS.values()}) == 4
    assert "&lt;img" in hostile and "<img" not in hostile


def test_the_inspector_counts_and_begins_at_a_right_answer_against_its_comparison(group, birds):
    board = explore.rollout_inspector([group, group], birds.names)
    assert board.controls["group"].max == 1 and board.controls["completion"].max == 3
    assert (board.controls["group"].value, board.controls["completion"].value) == (0, 1)
    assert "comparison contradicts" in board.words.value.rpartition("about the")[2]
    assert bundle_of(board)[0]["text/plain"].startswith(
        "right: 2 where comparison leads to the answer, 2 where comparison contradicts the answer; "
        "wrong: 2 where there is no valid answer, 2 where comparison picks no single candidate"
    )
    board.controls["completion"].value = 0
    assert "comparison leads" in board.words.value.rpartition("about the")[2]


# --- in a browser --------------------------------------------------------------------------


LIVE = """
import sys; sys.path[:0] = [{notebooks!r}, {root!r}]
import explore
from finer1_lite import paperbirds
birds = paperbirds.collection(paperbirds.make_world(0))
names = [one.name for one in birds.species][:4]
explore.loss_explorer()
---
explore.advantage_playground()
---
explore.interval_slider()
---
explore.scorer_breaker(names[0], names)
---
explore.step_slider({log!r})
---
explore.triplet_browser(birds)
---
described = {{n: [[birds.of(n).description]] * 2 for n in names}}
explore.bottleneck_slider(names[0], described, birds.of(names[0]).description.split(", "))
"""
KEYS = {"scorer": "x", "playground": "ArrowLeft"}  # a text, a slider at its end
WHOLE = {"windowingMode": "none"}  # else JupyterLab draws only the cells on the screen


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    """(folder, address) of a JupyterLab with the project's notebooks and their pictures."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(NOTEBOOKS, folder / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "assets" / "course", folder / "assets" / "course")
    settings = folder / "jupyter_config_dir/lab/user-settings/@jupyterlab/notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps(WHOLE))
    with served(folder) as url:
        yield folder, url


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("name", [path.name for path in sorted(NOTEBOOKS.glob("*.ipynb"))])
def test_jupyterlab_shows_each_notebook_without_a_red_line(jupyter, name):
    """As it is stored, before anything runs: every output and picture, no error, no dead view."""
    with new_page(viewport={"width": 1200, "height": 1000}) as page:
        page.goto(f"{jupyter[1]}/lab/tree/notebooks/{name}?reset", timeout=SLOW)
        cells = len(json.loads((NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"])
        page.wait_for_function(
            "n => document.querySelectorAll('.jp-Notebook .jp-Cell').length == n", arg=cells
        )
        page.wait_for_function(
            "() => [...document.querySelectorAll('.jp-Notebook img')].every(i => i.complete)"
        )
        images = "[...document.querySelectorAll('.jp-Notebook img')]"
        broken = page.evaluate(f"() => {images}.filter(i => !i.naturalWidth).map(i => i.alt)")
        assert broken in ([], ["Open this notebook in Colab"])  # the badge is on the network
        shown = page.inner_text(".jp-Notebook")
        for word in ("Error displaying", "Model not found", "Traceback"):
            assert word not in shown
        red = page.locator('[data-mime-type="application/vnd.jupyter.stderr"], .jp-mod-error')
        assert red.count() == 0 and page.locator(".jp-OutputArea-output").count() > 0
        screenshot(page, name.removesuffix(".ipynb"), jupyter[0])


@pytest.mark.slow
@needs_chromium
def test_in_jupyterlab_every_piece_follows_its_control_and_a_stored_output_is_a_picture(jupyter):
    """Live: the widgets. Stored and never trusted here: the picture, though the view is there."""
    import nbformat

    log = ROOT / "assets" / "results" / "reading_runs" / "healthy.jsonl"
    notebook = stored(explore.play(line, height=(1, 9, 1, 4)), states=False)
    source = LIVE.format(notebooks=str(NOTEBOOKS), root=str(ROOT), log=str(log))
    live = [nbformat.v4.new_code_cell(text.strip()) for text in source.split("---\n")]
    notebook.cells = [*live, *notebook.cells]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = spec
    nbformat.write(notebook, jupyter[0] / "live.ipynb")
    with new_page(viewport={"width": 1200, "height": 1000}) as page:
        page.goto(f"{jupyter[1]}/lab/tree/live.ipynb?reset", timeout=SLOW)
        old = page.locator(".jp-Notebook .jp-OutputArea-output img")
        old.wait_for(timeout=SLOW)
        assert old.count() == 1 and "Error displaying" not in page.inner_text(".jp-Notebook")
        run_first_cell(page)
        for _ in live[1:]:
            page.keyboard.press("Shift+Enter")
        image = page.locator("img.widget-image").first
        image.wait_for(timeout=SLOW)
        first = image.get_attribute("src")
        assert "A = +1.00" in page.inner_text(".jp-Notebook")
        for at, cell in enumerate(live):
            here = page.locator(".jp-Notebook .jp-CodeCell").nth(at)
            board = here.locator(".jp-OutputArea-output .widget-vbox").first
            board.wait_for(timeout=SLOW)
            before = board.inner_html()
            handle = board.locator(".noUi-handle, input[type=text], select").first
            handle.scroll_into_view_if_needed()
            handle.focus()
            key = next((key for word, key in KEYS.items() if word in cell.source), "ArrowRight")
            page.keyboard.press(key)
            page.wait_for_function(
                "([at, was]) => document.querySelectorAll('.jp-Notebook .jp-CodeCell')[at]"
                ".querySelector('.jp-OutputArea-output .widget-vbox').innerHTML != was",
                arg=[at, before],
            )
        assert "Traceback" not in page.inner_text(".jp-Notebook")
        page.locator(".noUi-handle").first.focus()  # the advantage, one step up already
        for _ in range(9):
            page.keyboard.press("ArrowLeft")
        page.get_by_text("A = -1.00").wait_for(timeout=SLOW)
        assert image.get_attribute("src") != first
        screenshot(page, "explore", jupyter[0])
