"""The review panel in a real browser: JupyterLab, headless Chromium, keys and mouse."""

import json
import time
from pathlib import Path

import pytest
from browser import SLOW, needs_chromium, new_page, screenshot
from labserver import run_first_cell, served
from paths import ROOT

CELL = """import sys; sys.path.insert(0, {root!r})
from finer1_lite import paperbirds
from finer1_lite.chains.panel import open_panel
world = paperbirds.make_world(0)
panel = open_panel({folder!r}, paperbirds.collection(world, test=36))
panel"""


@pytest.fixture
def folder(tmp_path, world, birds):
    """Chains of six pictures, made as the command makes them."""
    from finer1_lite.chains.client import Ledger
    from finer1_lite.chains.make import ChainJob, Settings
    from finer1_lite.chains.teachers import Oracle
    from finer1_lite.species import Collection

    small = Collection("bird", birds.species, birds.train[:6], (), birds.distance)
    out = tmp_path / "set"
    ChainJob(out, small, Oracle(world), Settings(rounds=8), Ledger()).build()
    return out


@pytest.fixture
def lab(tmp_path, folder):
    """The URL of a notebook with the panel's cell, in a JupyterLab of its own."""
    import nbformat

    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(CELL.format(root=str(ROOT), folder=str(folder)))]
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(notebook, tmp_path / "review.ipynb")
    with served(tmp_path) as url:
        yield f"{url}/lab/tree/review.ipynb"


def run_cell(page, url: str) -> None:
    """Open the notebook and run its cell; the panel is there afterwards."""
    page.goto(f"{url}?reset", timeout=SLOW)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=SLOW)
    run_first_cell(page)
    page.locator(".finer1-review .finer1-count").wait_for(timeout=SLOW)
    page.locator(".finer1-review[data-lm-suppress-shortcuts]").wait_for(timeout=SLOW)


def decided(folder: Path, lines: int) -> list[dict]:
    """The decisions on disk, waited for until there are so many."""
    path = folder / "decisions.jsonl"
    for _ in range(600):
        rows = path.read_text().splitlines() if path.exists() else []
        if len(rows) >= lines:
            return [json.loads(row) for row in rows]
        time.sleep(0.1)
    raise AssertionError(f"{rows} after a minute, {lines} decisions wanted")


@pytest.mark.slow
@needs_chromium
def test_keep_edit_undo_reload_and_nothing_is_lost(lab, folder):
    ids = [json.loads(line)["id"] for line in (folder / "chains.jsonl").open()]
    with new_page() as page:
        run_cell(page, lab)
        panel = page.locator(".finer1-review")
        panel.locator("b", has_text="analysis").first.click()  # into the panel: keys are heard
        page.keyboard.press("k")
        decided(folder, 1)
        page.keyboard.press("d")
        decided(folder, 2)
        page.keyboard.press("d")  # twice d would delete the cell in JupyterLab
        decided(folder, 3)
        assert page.locator(".jp-Notebook .jp-CodeCell").count() >= 1
        page.keyboard.press("u")
        decided(folder, 4)
        panel.locator(".finer1-edit").click()
        text = panel.locator("textarea")
        text.wait_for(timeout=SLOW)
        text.fill(text.input_value().replace("fits", "fits well"))
        wanted = text.input_value()
        text.press("k")  # typed, not a shortcut
        assert text.input_value() != wanted and len(decided(folder, 4)) == 4
        text.fill(wanted)
        panel.locator(".finer1-keep").click()
        rows = decided(folder, 5)
        page.reload()
        run_cell(page, lab)
        page.locator(".finer1-count", has_text="1 keep, 1 drop, 1 edit, 3 undecided").wait_for(
            timeout=SLOW
        )
        screenshot(page, "panel", folder)
    assert [(r.get("id"), r["action"]) for r in rows] == [
        (ids[0], "keep"),
        (ids[1], "drop"),
        (ids[2], "drop"),
        (ids[2], "undo"),
        (ids[2], "edit"),
    ]
    assert "fits well" in rows[4]["chain"]
