"""The job behind `predict`: photographs without labels -> a row each, a table, a page.

Rows are appended to predictions.jsonl batch by batch, keyed by path and content, so that a killed
job goes on, and a file that was replaced is asked about again. A few photographs are in memory at
a time, however many there are.
"""

import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from finer1_lite import predict
from finer1_lite.data import images
from finer1_lite.data.images import PictureError
from finer1_lite.evals.report import Page
from finer1_lite.evals.tables import percent
from finer1_lite.predict import Namer, Prediction
from finer1_lite.runtime import files
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.files import DataError, fingerprint, open_folder, write_atomically
from finer1_lite.students.card import relative

log = logging.getLogger("finer1_lite")
KEPT = 10  # names of each photograph that are written down
SHOWN = 300  # photographs on the page
THUMB = 180  # their longest side, pixels
KINDS = {"likelihood": "likelihood of names", "agreement": "completions", "combined": "both: used"}


@dataclass(frozen=True)
class Found:
    """What a job found out: rows of predictions.jsonl in the order of the photographs.

    A row: file, sha256, ranked ([name, confidence] of the first `KEPT`), answer, completion,
    agrees, share, note; ranked is empty where the file could not be read, and the note says why.
    """

    namer: Namer
    samples: int
    rows: list[dict[str, Any]]

    def name(self, row: dict[str, Any], threshold: float) -> str:
        """What a row is called: a class, "unknown" under the threshold, "" for a broken file."""
        if not row["ranked"]:
            return ""
        name, confidence = row["ranked"][0]
        return name if confidence >= threshold else "unknown"


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
    if namer.fitted(samples) is None:
        _calibrate(namer, samples)
    fit = namer.fitted(samples) or {}
    config = {
        "job": "predictions",
        "name": folder.name,
        "model": relative(namer.folder, folder),
        "card": fingerprint(
            [namer.card.model_copy(update={"calibration": None}).model_dump_json()]
        ),
        "calibration": {name: fit.get(name) for name in ("temperature", "agreement", "n")},
        "samples": samples,
        "preset": {},
    }
    open_folder(folder, config, fresh)
    return Found(namer, samples, list(_name_all(namer, paths, folder, samples)))


def photographs(places: Sequence[Path]) -> list[Path]:
    """The files named and those in the folders named, at any depth, each once; says what is left.

    Left out of folders: what is hidden, and what has no ending of a picture.
    """
    problems = [f"{place}: does not exist" for place in places if not place.exists()]
    found: list[Path] = []
    left: Counter[str] = Counter()
    for place in places:
        inside = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
        for path in inside:
            hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
            if path == place or (path.suffix.lower() in images.ENDINGS and not hidden):
                found.append(path)
            else:
                left["hidden" if hidden else path.suffix.lower() or "no ending"] += 1
    if left:
        log.info("left out: %s", ", ".join(f"{n} {kind}" for kind, n in sorted(left.items())))
    if problems or not found:
        raise DataError(problems or [f"{p}: holds no photograph" for p in places], "no photograph:")
    return list(dict.fromkeys(found))


def _calibrate(namer: Namer, samples: int) -> None:
    """Fit the confidences where there are photographs for it; else say that it is not done."""
    try:
        photos, where = predict.held_out(namer.card, namer.folder)
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
    rows = {(row["file"], row["sha256"]): row for _, row in kept}
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
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _name_some(
    namer: Namer, some: dict[tuple[str, str], Path], samples: int
) -> Iterator[dict[str, Any]]:
    """A row for each of a batch's photographs."""
    shown: list[Image.Image | str] = []
    for path in some.values():
        try:
            shown.append(images.decode(path))
        except PictureError as error:
            shown.append(str(error))
    said = iter(namer([one for one in shown if not isinstance(one, str)], samples))
    trained = set(namer.card.trained_on.values())
    for (file, digest), one in zip(some, shown, strict=True):
        if isinstance(one, str):
            yield _row(file, digest, None, one)
        else:
            yield _row(file, digest, next(said), "was trained on" if digest in trained else "")


def _row(file: str, digest: str, said: Prediction | None, note: str) -> dict[str, Any]:
    told = {name: getattr(said, name, None) for name in ("answer", "completion", "agrees", "share")}
    ranked = said.ranked[:KEPT] if said else []
    return {"file": file, "sha256": digest, "ranked": ranked} | told | {"note": note}


# --- what is written and said -------------------------------------------------------------------


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
        lines.append(line | {k: row[k] for k in ("agrees", "answer", "completion", "note")})
    text = pd.DataFrame(lines).to_csv(index=False, float_format="%.4f")
    write_atomically(path, text.encode("utf-8-sig", "surrogatepass"))


def counts(found: Found, threshold: float) -> Counter[str]:
    """How many photographs have each name, "unknown" and "could not be read" among them."""
    return Counter(found.name(row, threshold) or "could not be read" for row in found.rows)


def summary(found: Found, threshold: float) -> str:
    """The names counted, and how far they can be trusted, in a few lines."""
    by_name = counts(found, threshold)
    unknown, broken = by_name.pop("unknown", 0), by_name.pop("could not be read", 0)
    head = f"{len(found.rows)} photographs: {by_name.total()} named, {unknown} unknown (confidence "
    head += f"under {threshold:g}), {broken} could not be read"
    names = ", ".join(f"{name} {n}" for name, n in by_name.most_common())
    return "\n".join(filter(None, [head, names, found.namer.reliability(found.samples)]))


def write_page(found: Found, path: Path, top: int, threshold: float) -> None:
    """One HTML file that needs nothing beside it: names, how sure they are, the least sure first.

    Of the photographs `SHOWN` are on it at most; the table has them all.
    """
    page = Page(f"{len(found.rows)} photographs named")
    page.add("Names", _table(("name", "photographs"), counts(found, threshold).most_common()))
    fit = found.namer.fitted(found.samples)
    page.add("How sure the names are", note=found.namer.reliability(found.samples))
    if fit:
        page.add("Calibration", _calibration_table(fit))
    broken = [(row["file"], row["note"]) for row in found.rows if not row["ranked"]]
    page.add("Could not be read", _table(("file", "reason"), broken))
    rows = sorted((r for r in found.rows if r["ranked"]), key=lambda row: row["ranked"][0][1])
    note = f"The least sure first. {max(0, len(rows) - SHOWN)} more stand in the table alone."
    samples = [
        _sample(page, f"{i}", row, found.name(row, threshold), top)
        for i, row in enumerate(rows[:SHOWN])
    ]
    page.add("Photographs", note=note, samples=samples)
    write_atomically(path, page.render("html").encode())


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns), dtype=str)


def _calibration_table(fit: dict[str, Any]) -> pd.DataFrame:
    columns = (
        "confidence from",
        "right, %",
        "mean confidence, %",
        "calibration error",
        "Brier",
        "n",
    )
    rows = [
        (KINDS[kind], percent(c["accuracy"]), percent(c["confidence"]))
        + (f"{c['ece']:.3f}", f"{c['brier']:.3f}", str(c["n"]))
        for kind, c in fit["measured"].items()
    ]
    return _table(columns, rows)


def _sample(page: Page, number: str, row: dict[str, Any], name: str, top: int) -> dict[str, Any]:
    """A photograph of the page: its picture, facts and completion."""
    ranked = [f"{one} {100 * confidence:.0f} %" for one, confidence in row["ranked"][:top]]
    agrees = {True: "agree", False: "do not agree", None: "there is no chain"}[row["agrees"]]
    facts = {"name": f"unknown (best guess {ranked[0]})" if name == "unknown" else ranked[0]}
    facts |= {"then": ", ".join(ranked[1:]), "answer": row["answer"] or "none"}
    facts |= {"chain and answer": agrees, "photo": row["file"]}
    if row["share"] is not None:
        facts["share of samples"] = f"{100 * row['share']:.0f} %"
    facts |= {"note": row["note"]} if row["note"] else {}
    said = {"completion": row["completion"]}
    picture = _thumbnail(page, number, Path(row["file"]))
    return {"right": name != "unknown", "facts": facts, "completions": said, "picture": picture}


def _thumbnail(page: Page, number: str, path: Path) -> str:
    """Keep a small JPEG of a photograph for the page; "" where it is gone since."""
    try:
        picture = images.decode(path)
    except PictureError:
        return ""
    picture.thumbnail((THUMB, THUMB))
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=80)
    page.images[f"{number}.jpg"] = data.getvalue()
    return f"{number}.jpg"
