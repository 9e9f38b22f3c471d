"""The job behind `predict`: photographs without labels -> a row each, a table, a page.

Rows are appended to predictions.jsonl batch by batch, keyed by path and content, so that a killed
job goes on, and a file that was replaced is asked about again. A few photographs are in memory at
a time, however many there are.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from finer1_lite import models, predict
from finer1_lite.data import images, tables
from finer1_lite.data.images import PictureError
from finer1_lite.data.layouts import Walk
from finer1_lite.evals.report import Page
from finer1_lite.evals.tables import percent
from finer1_lite.evaluate import read_image
from finer1_lite.predict import Namer
from finer1_lite.runtime import files
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.files import DataError, write_atomically
from finer1_lite.students import run_cards
from finer1_lite.students.card import relative, weights

log = logging.getLogger("finer1_lite")
KEPT = 10  # names of each photograph that are written down
SHOWN = 300  # photographs on the page
TOLD = ("answer", "completion", "agrees", "share")  # of a prediction
UNKNOWN = "unknown"
BROKEN = "no name"
THUMB = 180  # their longest side, pixels
KINDS = {"likelihood": "likelihood of names", "agreement": "completions", "combined": "both: used"}


@dataclass(frozen=True)
class Found:
    """What a job found out: rows of predictions.jsonl in the order of the photographs.

    A row: file, sha256, ranked ([name, confidence] of the first `KEPT`), answer, completion,
    agrees, share, note; ranked is empty where there is no name, and the note says why.
    """

    namer: Namer
    samples: int
    rows: list[dict[str, Any]]

    def name(self, row: dict[str, Any], threshold: float) -> str:
        """What a row is called: a class, or `UNKNOWN` under the threshold, or `BROKEN`."""
        guess = UNKNOWN if row["ranked"] else BROKEN
        return row["ranked"][0][0] if self.known(row, threshold) else guess

    def known(self, row: dict[str, Any], threshold: float) -> bool:
        """Whether a row has a class; a class may be called `UNKNOWN`, so names do not tell."""
        return bool(row["ranked"]) and row["ranked"][0][1] >= threshold


def run(
    source: Path,
    places: Sequence[Path],
    folder: Path,
    *,
    samples: int = 0,
    batch: int | None = None,
    base: str | None = None,
    fresh: bool = False,
) -> Found:
    """Name every photograph of these files and folders that the folder has no row of yet.

    The first time a student is asked, its confidences are calibrated (`predict.calibrate`), where
    photographs for that are there. DataError for places that do not exist or hold none.
    """
    paths = photographs(places)
    namer = predict.load(source, base=base)
    namer.batch = batch or namer.batch
    below = weights(base) if base else []
    if below and _another(below, namer.folder):
        namer.card = namer.card.model_copy(update={"calibration": None})
        log.warning("not calibrated: %s is not the base of %s", base, namer.folder)
    else:
        calibrate(namer, samples)
    fit = namer.fitted(samples) or {}
    config = {
        "job": "predictions",
        "name": folder.name,
        "model": relative(namer.folder, folder),
        "card": files.fingerprint(
            [namer.card.model_copy(update=dict(calibration=None, measured=())).model_dump_json()]
        ),
        "calibration": {name: fit.get(name) for name in ("temperature", "agreement", "n")},
        "samples": samples,
        "weights": weights(namer.folder) + below,
        "base": base,
        "preset": {},
    }
    files.open_folder(folder, config, fresh)
    found = Found(namer, samples, list(_name_all(namer, paths, folder, samples)))
    if not any(row["ranked"] for row in found.rows):
        problems = [f"{row['file']}: {row['note']}" for row in found.rows]
        raise DataError(problems, "no photograph could be named:")
    return found


def photographs(places: Sequence[Path]) -> list[Path]:
    """The files named and the pictures in the folders named, at any depth, each once.

    Says what is left out of folders. DataError with every place that holds none.
    """
    problems: list[str] = []
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            walk = Walk(place, problems)
            for other in walk.others:
                walk.skip(other)
            walk.say()
            pictures, lack = walk.pictures, "holds no photograph"
        else:
            pictures, lack = [place] * place.exists(), "is not there"
        problems += [] if pictures else [f"{place}: {lack}"]
        found += pictures
    files.require_none(problems, "photographs that cannot be named:")
    return list(dict.fromkeys(found))


def _another(base: list[str], folder: Path) -> bool:
    """Whether these weights are not the adapter's own base, as far as this machine tells."""
    try:
        own = weights(models.base_of(folder))
    except DataError:  # its own is nowhere, or the model is no adapter
        return False
    return bool(own) and own != base


def calibrate(namer: Namer, samples: int = 0) -> None:
    """Fit the confidences once, where there are photographs for it; else say it is not done."""
    if namer.fitted(samples) is not None:
        return
    try:
        photos, where = run_cards.held_out(namer.card, namer.folder)
        log.info("calibration, once: %d held-out photographs (%s)", len(photos), where)
        predict.calibrate(namer, photos, samples, where)
    except (DataError, PictureError) as error:
        log.warning("not calibrated: %s", error)


def _name_all(
    namer: Namer, paths: Sequence[Path], folder: Path, samples: int
) -> Iterator[dict[str, Any]]:
    """The row of each photograph, in order; new ones are appended batch by batch."""
    store = folder / "predictions.jsonl"
    kept = files.read(store, torn=True, objects=True) if store.exists() else []
    rows = {(row["file"], row["sha256"]): row for _, row in kept if row["ranked"]}
    files.write_lines(store, rows.values())  # without a torn line, to which no other is appended
    with progress_bar(len(paths), f"{folder.name} predict") as bar:
        for at in range(0, len(paths), namer.batch):
            some = {(str(path), _digest(path)): path for path in paths[at : at + namer.batch]}
            new = {key: path for key, path in some.items() if key not in rows}
            made = dict(zip(new, _name_some(namer, new, samples), strict=True))
            with store.open("a", encoding="utf-8", newline="\n") as file:
                file.write("".join(json.dumps(row) + "\n" for row in made.values()))
            yield from (rows.get(key) or made[key] for key in some)
            bar.update(len(some))


def _digest(path: Path) -> str:
    """SHA-256 of a file; "" where it cannot be read."""
    try:
        return files.digest(path)
    except OSError:
        return ""


def _name_some(
    namer: Namer, some: dict[tuple[str, str], Path], samples: int
) -> Iterator[dict[str, Any]]:
    """A row for each of a batch's photographs."""
    shown = [read_image(partial(images.decode, path)) for path in some.values()]
    said = iter(namer.named([one for one in shown if not isinstance(one, str)], samples))
    trained = set(namer.card.trained_on.values())
    for (file, digest), one in zip(some, shown, strict=True):
        named = one if isinstance(one, str) else next(said)
        row = {"file": file, "sha256": digest, "ranked": []} | dict.fromkeys(TOLD)
        if isinstance(named, str):
            row |= {"note": named.removeprefix(f"{file}: ")}
        else:
            row |= {"ranked": named.ranked[:KEPT], "note": "was trained on" * (digest in trained)}
            row |= {name: getattr(named, name) for name in TOLD}
        yield row


def write_csv(found: Found, path: Path, top: int, threshold: float) -> None:
    """A line a photograph, in UTF-8 as spreadsheets expect it."""
    fitted = "calibrated" if found.namer.fitted(found.samples) else "not calibrated"
    lines = []
    for row in found.rows:
        names = [*row["ranked"], *[("", "")] * top]
        line = {"file": row["file"], "name": found.name(row, threshold)}
        line |= {"confidence": names[0][1], "confidence is": fitted, "best guess": names[0][0]}
        for place, (name, confidence) in enumerate(names[1:top], 2):
            line |= {f"name {place}": name, f"confidence {place}": confidence}
        line |= {k: row[k] for k in ("agrees", "answer", "completion", "note")}
        lines.append({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in line.items()})
    tables.write(path, list(lines[0]), (line.values() for line in lines))


def summary(found: Found, threshold: float) -> str:
    """How many are named, what how often, and how far that can be trusted, a line each."""
    named = Counter(found.name(r, threshold) for r in found.rows if found.known(r, threshold))
    broken = sum(not row["ranked"] for row in found.rows)
    unknown = len(found.rows) - named.total() - broken
    head = f"{len(found.rows)} photographs: {named.total()} named, {unknown} unknown (confidence "
    head += f"under {threshold:g}), {broken} without a name"
    names = ", ".join(f"{name} {n}" for name, n in named.most_common())
    return "\n".join(filter(None, [head, names, found.namer.reliability(found.samples)]))


def write_page(found: Found, path: Path, top: int, threshold: float) -> None:
    """One HTML file that needs nothing beside it: names, how sure they are, the least sure first.

    Of the photographs `SHOWN` are on it at most; the table has them all.
    """
    page = Page(f"{len(found.rows)} photographs named")
    page.add("How sure the names are", note=found.namer.reliability(found.samples))
    fit = found.namer.fitted(found.samples)  # how good each kind of evidence is, and both
    lines = [
        {
            "confidence from": KINDS[kind],
            "right, %": percent(cell["accuracy"]),
            "mean confidence, %": percent(cell["confidence"]),
            "calibration error, points": percent(cell["ece"]),
            "Brier": f"{cell['brier']:.3f}",
            "n": str(cell["n"]),
        }
        for kind, cell in (fit["measured"] if fit else {}).items()
    ]
    page.add("Calibration", pd.DataFrame(lines))
    called = Counter((found.name(r, threshold), found.known(r, threshold)) for r in found.rows)
    names = [(name, n) for (name, _), n in called.most_common()]
    page.add("Names", pd.DataFrame(names, columns=["name", "photographs"]).astype(str))
    broken = [(row["file"], row["note"]) for row in found.rows if not row["ranked"]]
    page.add("Files without a name", pd.DataFrame(broken, columns=["file", "reason"]))
    rows = sorted((r for r in found.rows if r["ranked"]), key=lambda row: row["ranked"][0][1])
    samples = [
        _sample(page, f"{place}.jpg", row, found.known(row, threshold), top)
        for place, row in enumerate(rows[:SHOWN])
    ]
    note = f"The least sure first. {len(rows) - len(samples)} more stand in the table alone."
    page.add("Photographs", note=note, samples=samples)
    write_atomically(path, page.render("html").encode())


def _sample(page: Page, place: str, row: dict[str, Any], known: bool, top: int) -> dict[str, Any]:
    """A photograph of the page: its picture, facts and completion."""
    ranked = [f"{one} {100 * confidence:.0f} %" for one, confidence in row["ranked"][:top]]
    agrees = {True: "agree", False: "do not agree", None: "there is no chain"}[row["agrees"]]
    facts = {"name": ranked[0] if known else f"unknown (best guess {ranked[0]})"}
    facts |= {"then": ", ".join(ranked[1:]), "answer": row["answer"] or "none that can be read"}
    facts |= {"chain and answer": agrees, "photo": row["file"]}
    if row["share"] is not None:
        facts["share of samples"] = f"{percent(row['share'])} %"
    facts |= {"note": row["note"]} if row["note"] else {}
    try:
        picture = images.decode(Path(row["file"]))
        page.images[place] = images.small(picture, THUMB, "JPEG", quality=80)
    except PictureError:  # it is gone since
        place = ""
    said = {"completion": row["completion"]}
    return {"right": known, "facts": facts, "completions": said, "picture": place}
