"""The report of a run folder: figures, report.md and report.html, all from its files.

Every number is computed from records.jsonl, so that a report never disagrees with the
answers beside it; metrics.json alone serves where the records were not kept.
"""

from __future__ import annotations

import io
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from finer1_lite import plots
from finer1_lite.evals import findings, pages, tables
from finer1_lite.metrics import STAGES, read_records, summarise
from finer1_lite.runtime.files import DataError, write_atomically

TITLE = "Base, SFT and TAPO on the same pictures"
_THUMB = 360  # longest side of a sample picture, pixels

Photos = Mapping[str, Image.Image] | Callable[[str], Image.Image]


def write_report(folder: Path | str, photos: Photos) -> Path:
    """Write figures/, report.md and report.html into the run folder; returns report.html.

    photos: the picture of a test photo by its id (six are asked for at most). What has
    not run yet is left out. DataError lists everything that is missing or unreadable.
    """
    folder = Path(folder)
    problems: list[str] = []
    config = _read(folder / "config.json", _json, problems, "write the run's settings there")
    stored = _read(folder / "metrics.json", _json, problems) or {}
    timing = _read(folder / "timing.json", _json, problems) or {}
    records = _read(folder / "records.jsonl", read_records, problems)
    logs = {stage: _read_logs(folder, stage, problems) for stage in ("sft", "tapo")}
    if records is None and not stored and not problems:
        problems.append(f"{folder}: neither records.jsonl nor metrics.json; evaluate first")
    metrics = stored
    if records is not None:
        metrics = _try(lambda: summarise(records), problems, folder / "records.jsonl") or {}
    chosen = findings.pick_samples(records or []) if not problems else []
    shown = [small_copy(photos, record["photo"], problems) for record in chosen]
    if problems:
        raise DataError(problems, f"no report of {folder}:")
    images = _draw(metrics, logs, chosen, shown)
    facts = _facts(timing, logs["tapo"])
    blocks = findings.results(metrics, any(logs.values()))
    blocks += tables.control_blocks(records or [])
    blocks += [*findings.samples(chosen), *findings.what_ran(config, facts)]
    for path, data in images.items():
        write_atomically(folder / path, data)
    write_atomically(folder / "report.md", pages.markdown(TITLE, blocks).encode())
    title = f"{config.get('name', folder.name)}: {TITLE}"
    page = folder / "report.html"
    write_atomically(page, pages.html_page(title, blocks, images).encode())
    return page


def _facts(timing: Mapping, tapo_logs: Mapping) -> dict:
    """Minutes and machine, as far as they are known."""
    facts = dict(timing)
    seconds = [row.get("step_s") or 0 for rows in tapo_logs.values() for row in rows]
    if any(seconds):
        facts["minutes of TAPO steps, all seeds"] = round(sum(seconds) / 60, 1)
    facts["platform"] = platform.platform()
    facts["processors"] = os.cpu_count()
    facts["python"] = platform.python_version()
    return facts


def _draw(
    metrics: Mapping, logs: Mapping, chosen: Sequence[Mapping], shown: Sequence[Image.Image]
) -> dict[str, bytes]:
    """Path below the run folder -> PNG."""
    images = {}
    if any(stage in metrics for stage in STAGES):
        images[findings.ACCURACY] = png(plots.accuracy_bars(metrics))
    if any(logs.values()):
        images[findings.LEARNING] = png(plots.learning_curves(logs["tapo"], logs["sft"]))
    for number, picture in enumerate(shown, 1):
        images[findings.sample_path(number)] = png(picture)
    if shown:
        titles = [_caption(record) for record in chosen]
        images["figures/samples.png"] = png(plots.photo_grid(shown, titles))
    return images


def _caption(record: Mapping) -> str:
    said = " ".join(pages.visible(record["answer"] or "no answer", 60).split())
    label = pages.visible(record["label"], 60)
    kind = "right" if record["correct"] else "wrong"
    return f"{label} ({record['split']})\n{kind}: {said}"


def png(picture: Figure | Image.Image) -> bytes:
    """A figure or picture as the bytes of a PNG file."""
    data = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(data, format="png", dpi=200)
    else:
        picture.save(data, format="PNG")
    return data.getvalue()


def small_copy(photos: Photos, name: str, problems: list[str]) -> Image.Image | None:
    """A small RGB copy; None, with the problem noted, if there is no such photo."""
    try:
        picture = photos(name) if callable(photos) else photos[name]
    except KeyError:
        problems.append(f"photo {name!r}: not among the photos given; give its picture")
        return None
    picture = picture.convert("RGB")
    picture.thumbnail((_THUMB, _THUMB))
    return picture


def _json(path: Path) -> dict:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    return found


def _read(path: Path, reader: Callable, problems: list[str], needed: str = ""):
    """What `reader` makes of the file; None if it is absent (a problem if `needed`) or broken."""
    if not path.exists():
        if needed:
            problems.append(f"{path}: missing; {needed}")
        return None
    return _try(lambda: reader(path), problems, path)


def _try(make: Callable, problems: list[str], path: Path):
    try:
        return make()
    except (ValueError, OSError) as problem:
        problems.append(f"{path}: {problem}")
        return None


def _read_logs(folder: Path, stage: str, problems: list[str]) -> dict[int, list[dict]]:
    """Training seed -> rows of its log, for the seeds that have one."""
    logs = {}
    for path in folder.glob(f"seed*/{stage}/log.jsonl"):
        number = path.parts[-3].removeprefix("seed")
        if number.isdecimal():
            logs[int(number)] = _read(path, read_records, problems) or []
    return dict(sorted(logs.items()))
