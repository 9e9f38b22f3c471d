"""A run's records -> evaluation.html, evaluation.md and figures; two runs side by side.

Works on any folder with a records.jsonl that this package wrote (`evaluate` and `lab`).
Nothing but the records is counted, so a table can always be made again.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from finer1_lite import paperbirds
from finer1_lite.data import images as pictures
from finer1_lite.evals import changes, compare, details, evalplots, pages, similarity, tables
from finer1_lite.evals.pages import Block, Heading, Picture, Sample, Text
from finer1_lite.evals.report import png, small_copy
from finer1_lite.metrics import TASKS, read_records
from finer1_lite.runtime.files import DataError, write_atomically

log = logging.getLogger("finer1_lite")

ACCURACY, LENGTH, CONFUSION, CHANGES = (
    f"figures/{name}.png" for name in ("points", "length", "confusion", "changes")
)
_NEEDED = (  # what the tables read of a row (`evaluate.record`)
    *("model", "prompt", "task", "picture", "dataset", "split", "photo", "label", "group"),
    *("named_group", "options", "rotation", "sample", "completion", "answer", "named", "correct"),
    *("included", "tokens", "truncated", "error"),
)
Photos = Callable


def read_run(folder: Path | str) -> list[dict]:
    """The rows of a run's records.jsonl, ready for the tables. DataError lists all problems."""
    path = Path(folder) / "records.jsonl"
    try:
        records = read_records(path)
    except (OSError, ValueError) as error:
        raise DataError([f"{error}"], f"{folder}: no records to report on") from None
    problems = []
    for number, record in enumerate(records, 1):
        lacking = [name for name in _NEEDED if name not in record]
        if lacking:
            problems.append(f"{path}, row {number}: lacks {', '.join(lacking)}; evaluate again")
    if not records:
        problems.append(f"{path}: is empty; evaluate first")
    if problems:
        raise DataError(problems, "records that cannot be reported:")
    return records


def add_similarity(rows: Sequence[dict], encoder: similarity.TextEncoder) -> None:
    """Put similarity and the encoder's name into the open-world rows, in place."""
    found = [r for r in rows if r["task"] == "open" and not r["error"]]
    for row, value in zip(found, similarity.similarities(found, encoder)):
        row["similarity"], row["encoder"] = value, encoder.name


def photo_source(root: Path | None) -> Photos:
    """Photo id -> picture: a paper bird is drawn from its id, a file lies below `root`.

    KeyError for any other id.
    """

    def picture(name: str):
        parts = name.split("/")
        if len(parts) == 5 and parts[0] == "paperbirds" and parts[1].isdecimal():
            species = parts[3].replace("-", " ")
            marks = paperbirds.make_world(int(parts[1])).marks[species]
            return paperbirds.draw(marks, random.Random(name))
        if root is None or not (root / name).is_file():
            raise KeyError(name)
        return pictures.decode(root / name)

    return picture


def write(folder: Path | str) -> Path:
    """Remake evaluation.md, evaluation.html and their figures; returns the HTML page."""
    folder = Path(folder)
    rows = read_run(folder)
    images = figures(rows)
    blocks: list[Block] = [Picture(ACCURACY, "Accuracy of every answerer and control")]
    blocks += [*tables.main_blocks(rows), *tables.dataset_blocks(rows)]
    for task in TASKS:
        blocks += compare.blocks(compare.within(rows, task), task)
    blocks += details.detail_blocks(rows)
    blocks += [
        Picture(path, alt)
        for path, alt in (
            (LENGTH, "Accuracy against length"),
            (CONFUSION, "Confusion, classes sorted by group"),
        )
        if path in images
    ]
    blocks += _extra(folder)
    return _save(folder, "evaluation", f"{folder.resolve().name}: evaluation", blocks, images)


def figures(rows: Sequence[dict]) -> dict[str, bytes]:
    """Path below the run folder -> PNG."""
    images = {
        ACCURACY: png(evalplots.accuracy_points(rows)),
        LENGTH: png(evalplots.length_curve(rows)),
    }
    group = tables.last_student(rows, "open")
    drawn = evalplots.confusion_figure(group.rows) if group else None
    if drawn:
        images[CONFUSION] = png(drawn)
    return images


def _extra(folder: Path) -> list[Block]:
    """What an endpoint was asked, and the settings, where they were kept."""
    blocks: list[Block] = []
    for name, title in (
        ("requests.json", "Requests of the last start"),
        ("config.json", "Settings"),
    ):
        path = folder / name
        if path.exists():
            text = json.dumps(json.loads(path.read_text(encoding="utf-8")), indent=1)
            blocks += [Heading(title), pages.Code(text)]
    return blocks


def write_analysis(folder: Path | str) -> Path:
    """Remake analysis.json, analysis.md, analysis.html and the figure from analysis.jsonl."""
    folder = Path(folder)
    rows = read_records(folder / "analysis.jsonl")
    numbers = json.dumps(changes.summary(rows), indent=1)
    write_atomically(folder / "analysis.json", numbers.encode())
    images = {CHANGES: png(changes.figure(rows))}
    blocks = [Picture(CHANGES, "Each measurement before and after training")]
    blocks += [*changes.blocks(rows), *_extra(folder)]
    return _save(folder, "analysis", f"{folder.resolve().name}: what changed", blocks, images)


def write_comparison(first: Path | str, second: Path | str, photos: Photos | None = None) -> Path:
    """A page in `second` that compares it with `first`: tables and differing pictures.

    photos: the picture of a photo id; without it the differing answers stand as text.
    """
    folders = [Path(first), Path(second)]
    names = tuple(folder.resolve().name for folder in folders)
    if names[0] == names[1]:
        names = tuple(str(folder) for folder in folders)
    left, right = (read_run(folder) for folder in folders)
    blocks: list[Block] = []
    images: dict[str, bytes] = {}
    for name, rows in zip(names, (left, right)):
        blocks += [Heading(f"Run {pages.visible(name, 80)}"), *tables.main_blocks(rows)]
    for task in TASKS:
        pairs = compare.between(right, left, task)
        blocks += compare.blocks(pairs, task, (names[1], names[0]))
        if pairs:
            blocks += _differing(pairs[-1], task, (names[1], names[0]), photos, images)
    return _save(
        folders[1],
        f"compared-with-{folders[0].resolve().name}",
        f"{names[1]} beside {names[0]}",
        blocks,
        images,
    )


def _differing(pair, task: str, names, photos: Photos | None, images: dict) -> list[Block]:
    """The pictures on which two answerers differ, with both answers."""
    found = compare.differing(pair[0].rows, pair[1].rows)
    if not found:
        return []
    called = [f"{run}: {g.label} ({g.prompt})" for run, g in zip(names, pair)]
    blocks: list[Block] = [
        Heading(f"Where they differ, {task} world"),
        Text(
            f"{len(found)} pictures that exactly one of the two names rightly; the first "
            f"{min(len(found), compare.SHOWN)} in the order of a hash of the photo's id."
        ),
    ]
    for number, (x, y) in enumerate(found[: compare.SHOWN], 1):
        facts = [("class", f"{x['label']} ({x['split']})"), ("photo", x["photo"])]
        facts += [
            (name, f"{'right' if r['correct'] else 'wrong'}: {r['answer']}")
            for name, r in zip(called, (x, y))
        ]
        said = "\n\n".join(f"--- {n}\n{r['completion']}" for n, r in zip(called, (x, y)))
        image = small_copy(photos, x["photo"], []) if photos else None
        if image is None:
            listed = "\n".join(f"{key}: {pages.visible(value, 300)}" for key, value in facts)
            blocks.append(pages.Code(f"{listed}\n\n{said}"))
        else:
            path = f"figures/differ/{task}-{number}.png"
            images[path] = png(image)
            blocks.append(Sample(Picture(path, f"Picture {number}"), x["correct"], facts, said))
    return blocks


def _save(folder: Path, name: str, title: str, blocks: list[Block], images: dict) -> Path:
    for path, data in images.items():
        write_atomically(folder / path, data)
    write_atomically(folder / f"{name}.md", pages.markdown(title, blocks).encode())
    page = folder / f"{name}.html"
    write_atomically(page, pages.html_page(title, blocks, images).encode())
    return page
