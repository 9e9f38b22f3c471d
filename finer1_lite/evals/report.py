"""The page of a run: report.html, report.md and figures/, all from its files.

Every number is computed from records.jsonl; metrics.json alone serves where the records were
not kept. The words stand in `templates`. Whatever a model or a user wrote is escaped in HTML; in
Markdown it is escaped or stands in a fence that it cannot end.
"""

import base64
import html
import io
import json
import logging
import mimetypes
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from finer1_lite import metrics, paperbirds, plots
from finer1_lite.data import images
from finer1_lite.data.chain_text import pieces
from finer1_lite.data.layouts import file_of
from finer1_lite.evals import advice, baselines, changes, facts, figures, tables
from finer1_lite.metrics import STAGES, TASKS, Entry, LabRecord, Record, entries
from finer1_lite.runtime.files import CONFIG, require_none, run_config, write_atomically

log = logging.getLogger("finer1_lite")
MAX_SHOWN = 4000  # characters of one completion on the page
MAX_CELL = 300  # characters of one cell of a table
CONFUSED = 4  # pairs of classes shown side by side
DIFFERING = 8  # pictures shown on which two entries differ
THUMB = 360  # longest side of a sample picture, pixels
FILES = {
    "config.json": "Settings",
    "requests.json": "Requests of the last start",
    "timing.json": "Time and hardware",
}
_BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

Photos = Callable[[str], Image.Image]  # of an id; KeyError for none


@dataclass
class Page:
    """A page that is put together section by section and then written, in HTML and Markdown."""

    title: str
    sections: list[dict] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)  # path below the folder -> PNG

    def add(self, title: str, table: pd.DataFrame | None = None, **parts: Any) -> None:
        """A section: its table and points, note, figure, code, samples; none of an empty one.

        about: the key of its words in texts.jinja, where that is not the title.
        """
        if table is None or not table.empty:
            note = {} if table is None else table.attrs
            section = {"title": title, "about": title, "table": table}
            self.sections.append(section | note | parts)

    def picture(self, name: str, picture: Figure | bytes) -> str:
        """Keep a figure, or a file in PNG; returns its path below the page's folder."""
        path = f"figures/{name}.png"
        if isinstance(picture, Figure):
            data = io.BytesIO()
            picture.savefig(data, format="png", dpi=200)
            picture = data.getvalue()
        self.images[path] = picture
        return path

    def write(self, folder: Path, name: str = "report") -> Path:
        """Write the page and its pictures into the folder; returns the HTML page."""
        for path, data in self.images.items():
            write_atomically(folder / path, data)
        for kind in ("md", "html"):
            write_atomically(folder / f"{name}.{kind}", self.render(kind).encode())
        return folder / f"{name}.html"

    def render(self, kind: str) -> str:
        """The text of the page, "html" (with its pictures inside) or "md"."""
        environment = _environment()
        environment.filters["data"] = self._data
        template = environment.get_template(f"page.{kind}.jinja")
        return template.render(title=self.title, sections=self.sections)

    def _data(self, path: str) -> Markup:
        kind = mimetypes.guess_type(path)[0]
        return Markup(f"data:{kind};base64," + base64.b64encode(self.images[path]).decode())


def _environment() -> jinja2.Environment:
    """Where the templates are; whatever they print is made visible, and escaped in HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda template: template == "page.html.jinja",
        finalize=lambda value: visible(value, len(value)) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "cell": cell, "fence": fence, "pieces": pieces}
    return environment


def visible(text: str, limit: int = MAX_SHOWN) -> str:
    """`text` with control characters and marks of writing direction as escapes, cut at `limit`.

    Line ends and tabs stay. What was cut off is counted.
    """
    shown = "".join(
        f"\\u{ord(c):04x}"
        if c in _BIDI or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t")
        else c
        for c in text[:limit].replace("\r\n", "\n")
    )
    return shown if len(text) <= limit else f"{shown} … ({len(text) - limit} more characters)"


def cell(text: str, limit: int = MAX_CELL) -> str:
    """`text` on one line of Markdown, in a table too, that opens no tag."""
    return html.escape(" ".join(visible(text, limit).split()), quote=False).replace("|", "\\|")


def fence(text: str) -> str:
    """A Markdown code block that `text` cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    mark = "`" * max(3, longest + 1)
    return f"{mark}text\n{text.strip()}\n{mark}"


def photo_source(root: Path | None = None) -> Photos:
    """Photo id -> picture: a paper bird is drawn from its id, a file lies below `root`.

    KeyError for any other id.
    """

    def picture(name: str) -> Image.Image:
        parts = name.split("/")
        if len(parts) == 5 and parts[0] == "paperbirds" and parts[1].isdecimal():
            marks = paperbirds.make_world(int(parts[1])).marks[parts[3].replace("-", " ")]
            return paperbirds.draw_id(marks, name)
        if root is None or not (path := file_of(root, name)).is_file():
            raise KeyError(name)
        return images.decode(path)

    return picture


def thumbnail(photos: Photos, name: str) -> bytes | None:
    """A small RGB copy of a photo, in PNG; None if there is no such photo."""
    try:
        return images.small(photos(name).convert("RGB"), THUMB)
    except KeyError:
        return None


# --- the page of a run ---------------------------------------------------------------------


def write_report(folder: Path | str, photos: Photos | None = None) -> Path:
    """Write report.html, report.md and figures/ into a run's folder; returns report.html.

    A run of lab or evaluate has records.jsonl (or metrics.json alone), one of analyse has
    analysis.jsonl, and analysis.json is written beside it. photos: the picture of a photo by its
    id; without it paper birds are drawn, and of other photos the text stands alone. What has not
    run yet is left out. DataError lists everything that is missing or unreadable.
    """
    folder = Path(folder)
    problems: list[str] = []
    if (folder / "analysis.jsonl").exists():
        found = changes.summary(metrics.read_records(folder / "analysis.jsonl"))
        write_atomically(folder / "analysis.json", json.dumps(found, indent=1).encode())
        page = Page(f"{folder.resolve().name}: what changed")
        figure = page.picture("changes", figures.changes(found))
        page.add("Before and after training", figure=figure)
        for title, table in changes.tables(found).items():
            page.add(title, table)
    else:
        page = _run_page(folder, photos, problems)
    for name, title in FILES.items():
        found = _read(folder / name, _read_object, problems)
        if found:
            page.add(title, code=json.dumps(found, indent=1, ensure_ascii=False))
    require_none(problems, f"no report of {folder}:")
    return page.write(folder)


def _run_page(folder: Path, photos: Photos | None, problems: list[str]) -> Page:
    """The page of a lab run or an evaluation; what is wrong with its files goes to `problems`."""
    page = Page(f"{folder.resolve().name}: answers on the same pictures")
    required = photos is not None
    photos = photo_source(facts.photos_of(folder)) if photos is None else photos
    frame = _read(folder / "records.jsonl", read_table, problems)
    found = _read(folder / "metrics.json", _read_object, problems)
    logs = {stage: _read_logs(folder, stage, problems) for stage in ("sft", "tapo")}
    if frame is None and found is None and not problems:
        problems.append(f"{folder}: neither records.jsonl nor metrics.json; evaluate first")
    if problems:
        return page
    lab = frame is None or {*STAGES.values()} >= {*entries(frame)} > set()
    if frame is not None:
        found = metrics.lab_scores(frame) if lab else metrics.scores(frame)
    idle = advice.idle(logs, frame)
    if idle:
        page.add("Read this first", points=idle)
    for told in idle:
        log.warning("%s", told)
    more = _add_advice(page, folder, found, frame, photos if lab else None)
    if lab:
        page.add("Summary", note=summary(found))
    _add_accuracy(page, dict(found) | more, frame)
    for task in TASKS:
        if lab:
            cells = tables.stored_differences(found, task)
        else:
            rows = entries(frame[frame["task"] == task])
            cells = tables.differences(tables.within(rows), rows, rows)
        title = f"Differences, {task} world"
        page.add(title, tables.difference_table(cells), about="Differences")
    if frame is not None:
        _add_details(page, frame, folder, photos)
    if any(logs.values()):
        curves = plots.learning_curves(logs["tapo"], logs["sft"])
        steps = [row.get("step_s") or 0 for rows in logs["tapo"].values() for row in rows]
        note = f"Minutes of TAPO steps, all seeds: {sum(steps) / 60:.1f}." if any(steps) else ""
        page.add("Training", figure=page.picture("learning", curves), note=note)
    if lab and frame is not None:
        _add_samples(page, tables.pick_samples(frame), photos, problems if required else None)
    return page


def summary(found: Mapping) -> str:
    """A lab run in a few plain sentences, from the numbers of `metrics.summarise`."""
    scores: dict[str, dict[str, dict]] = {}
    told: dict[str, list[str]] = {}
    for task in TASKS:
        for stage, split, cell in metrics.cells_of(found, list(STAGES), (task,)):
            scores.setdefault(f"{task} world, {split} classes", {})[str(STAGES[stage])] = cell
        compared = metrics.cells_of(found.get("differences", {}), ("tapo-sft",), (task,))
        for _, split, cell in compared:
            points = f"{task} world, {split} classes {tables.points(cell)} points"
            told.setdefault(tables.verdict(cell), []).append(points)
    seeds = [len(cell["seeds"]) for *_, cell in metrics.cells_of(found, ("sft", "tapo"))]
    template = _environment().get_template("summary.jinja")
    return " ".join(template.render(scores=scores, told=told, seeds=seeds).split())


def _add_advice(
    page: Page, folder: Path, found: Mapping, frame: pd.DataFrame | None, photos: Photos | None
) -> dict:
    """What a user can act on; returns the scores of a classifier beside a lab run.

    photos: pictures of a lab run, for that classifier; None for other runs.
    """
    told, remarks, more, names = [], [], {}, None
    if frame is None:
        names = (run_config(folder / CONFIG) or {}).get("species")
    elif student := tables.last_student(frame):
        tools = frame
        if photos is not None:
            rows, remark = baselines.beside(folder, frame, photos)
            tools, remarks = metrics.table(rows), [remark] * bool(remark)
            more = metrics.scores(tools)
        told, names = advice.advice(frame, student[0], tools), tables.names_of(frame)
    cells = {STAGES.get(key, key): cell for key, cell in found.items() if key != "differences"}
    points = [*told, *advice.chance_sentences(cells, names), *remarks]
    if points:
        page.add("What it is good for", points=points)
    return more


def _add_accuracy(page: Page, found: Mapping, frame: pd.DataFrame | None, run: str = "") -> None:
    """The main figure and tables, data sets, and what was not scored."""
    shares = {}
    if frame is not None:
        controls = tables.controls(frame[frame["task"] == "closed"], "closed")
        shares = {name: scored["correct"].mean() for name, scored in controls.items()}
    if not run:
        page.add("Accuracy", figure=page.picture("accuracy", plots.accuracy(found, shares)))
    for task in TASKS:
        title = f"{task.capitalize()} world"
        page.add(f"{run}{title}", tables.main_table(found, task, frame), about=title)
    if frame is not None:
        page.add(f"{run}Not scored", tables.not_scored_table(frame), about="Not scored")


def _add_details(page: Page, frame: pd.DataFrame, folder: Path, photos: Photos) -> None:
    """What stands behind the numbers."""
    for task in TASKS:
        table = tables.dataset_table(frame, task)
        page.add(f"Data sets, {task} world", table, about="Data sets")
    page.add("Chain and answer", advice.agreement_table(advice.judged(frame)))
    if student := tables.last_student(frame):
        page.add("Classes", tables.class_table(*student))
        page.add("Confusions", tables.confusion_table(*student))
        if drawn := figures.confusion(student[1]):
            page.add("Confusion matrix", figure=page.picture("confusion", drawn))
        _add_confusions(page, *student, folder, frame, photos)
    page.add("Accuracy against length", tables.length_table(frame))
    page.add("Several samples", tables.sample_table(frame))


def _add_confusions(
    page: Page, who: Entry, rows: pd.DataFrame, folder: Path, frame: pd.DataFrame, photos: Photos
) -> None:
    """A confused test picture beside a picture of the class that it was called."""
    shots = _read(folder / "chains.jsonl", metrics.read_records, []) or []
    others = {row.label: (row.photo, "test") for row in frame[::-1].itertuples()}
    others |= {row.get("species"): (row.get("photo"), "training") for row in reversed(shots)}
    samples = []
    for part, times in tables.confusions(rows):
        record = min(part.to_dict("records"), key=tables.by_hash)
        called, name = record["named"], f"confusions/{len(samples) + 1}"
        other, kind = others.get(called, ("", ""))
        beside = thumbnail(photos, other)
        sample = _sample(page, name, photos, {"the answer": record}) if beside else {}
        if sample.get("picture"):
            sample["beside"] = page.picture(f"{name}-beside", beside)
            sample["facts"]["beside it"] = f"a {kind} picture of {called}: {other}"
            sample["facts"]["times"] = f"{times} answers of {who}"
            samples.append(sample)
        if len(samples) == CONFUSED:
            break
    if samples:
        page.add("Confusion pairs", samples=samples)


def _add_samples(
    page: Page, chosen: Sequence[dict], photos: Photos, problems: list[str] | None
) -> None:
    """Some pictures with what the last stage of a lab run wrote about them.

    problems: takes the pictures that are not there; without it they are left out, with a warning.
    """
    if not chosen:
        return
    who = tables.described(Entry(chosen[0]["model"], chosen[0]["prompt"]), chosen[0]["seed"])
    samples = [
        _sample(page, f"samples/{number}", photos, {who: record})
        for number, record in enumerate(chosen, 1)
    ]
    missing = [sample["facts"]["photo"] for sample in samples if not sample["picture"]]
    if missing and problems is None:
        log.warning("%d photographs are not here; give --photos DIR to show them", len(missing))
    elif missing:
        mend = "not among the photos given; give its picture (--photos DIR)"
        problems += [f"photo {name!r}: {mend}" for name in missing]
    note = (
        f"Open world, {who}: right and wrong completions, {tables.PER_KIND} of each kind at most, "
        "taken in the order of a hash of the photo's id (the first seen, the first unseen, then "
        "the next). The page colours the four parts of a chain."
    )
    page.add("Test pictures", note=note, samples=samples)


def _sample(page: Page, name: str, photos: Photos, records: Mapping[str, Mapping]) -> dict:
    """Completions about one picture, with facts about them; records: who -> record."""
    first = next(iter(records.values()))
    picture = thumbnail(photos, first["photo"])
    facts = {"class": f"{first['label']} ({first['split']})", "photo": first["photo"]}
    for who, record in records.items():
        answer = "no answer" if record["answer"] is None else record["answer"]
        facts[who] = f"{'right' if record['correct'] else 'wrong'}: {answer}"
    return {
        "right": bool(first["correct"]),
        "facts": facts,
        "completions": {who: record["completion"] for who, record in records.items()},
        "picture": page.picture(name, picture) if picture else "",
    }


def write_comparison(first: Path | str, second: Path | str, photos: Photos | None = None) -> Path:
    """A page in `second` that compares it with `first`: tables and differing pictures.

    photos as in `write_report`; where a picture is not there, the text stands alone.
    """
    folders = [Path(first), Path(second)]
    problems: list[str] = []
    names = [folder.resolve().name for folder in folders]
    if names[0] == names[1]:
        names = [str(folder) for folder in folders]
    paths = [folder / "records.jsonl" for folder in folders]
    frames = [_read(path, read_table, problems, "missing; evaluate first") for path in paths]
    require_none(problems, "no comparison:")
    page = Page(f"{names[1]} beside {names[0]}")
    photos = photo_source(facts.photos_of(folders[1])) if photos is None else photos
    frames, shared = tables.on_shared_pictures(*frames)
    mine, other = (_asked(folder) for folder in folders)
    remarks = [shared] * bool(shared) + [
        f"{what}: {mine[what]!r} in {names[0]}, {other[what]!r} in {names[1]}."
        for what in mine
        if None not in (mine[what], other[what]) and mine[what] != other[what]
    ]
    for remark in remarks:
        log.warning("%s beside %s: %s", *names[::-1], remark)
    if remarks:
        page.add("What is compared", points=remarks)
    for name, frame in zip(names, frames, strict=True):
        _add_accuracy(page, metrics.scores(frame), frame, f"Run {name}, ")
    runs = (f"{names[1]}: ", f"{names[0]}: ")
    for task in TASKS:
        left, right = (entries(frame[frame["task"] == task]) for frame in frames[::-1])
        pairs = tables.between(left, right)
        table = tables.difference_table(tables.differences(pairs, left, right, runs))
        page.add(f"Differences, {task} world", table, about="Differences")
        found = tables.differing(left[pairs[-1][0]], right[pairs[-1][1]]) if pairs else []
        if found:
            who = [f"{run}{entry}" for run, entry in zip(runs, pairs[-1], strict=True)]
            samples = [
                _sample(page, f"differ/{task}-{n}", photos, dict(zip(who, records, strict=True)))
                for n, records in enumerate(found[:DIFFERING], 1)
            ]
            note = f"{len(found)} pictures that exactly one of the two names rightly; the first "
            note += f"{len(samples)} in the order of a hash of the photo's id."
            page.add(f"Where they differ, {task} world", note=note, samples=samples)
    return page.write(folders[1], f"compared-with-{folders[0].resolve().name}")


def _asked(folder: Path) -> dict[str, Any]:
    """What a run's questions were like, as its files tell; None where they do not."""
    preset = (run_config(folder / CONFIG) or {}).get("preset", {})
    words = {row.get("coarse") for row in metrics.read_records(folder / "records.jsonl")}
    return {
        "The word for what the pictures show": words.pop() if len(words) == 1 else None,
        "The limit of a completion, tokens": preset.get("max_new_tokens"),
        "The size of a picture at most, pixels": preset.get("pixels"),
    }


# --- files of a run ------------------------------------------------------------------------


def read_table(path: Path) -> pd.DataFrame:
    """The table of a run's records, those of a lab run checked as such. ValueError for none."""
    records = metrics.read_records(path)
    if not records:
        raise ValueError("is empty; evaluate first")
    named = {(record.get("model"), record.get("prompt")) for record in records}
    lab = named <= {(stage.model, stage.prompt) for stage in STAGES.values()}
    frame = metrics.table(records, LabRecord if lab else Record)
    known = (run_config(path.parent / CONFIG) or {}).get("species")  # not all need be asked about
    return frame.assign(names=known) if known else frame


def _read(path: Path, reader: Callable, problems: list[str], needed: str = "") -> Any:
    """What `reader` makes of the file; None if it is absent (a problem if `needed`) or broken."""
    try:
        return reader(path)
    except FileNotFoundError:
        problems += [f"{path}: {needed}"] if needed else []
    except (ValueError, OSError) as error:
        problems.append(f"{path}: {error}")
    return None


def _read_object(path: Path) -> dict:
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    return found


def _read_logs(folder: Path, stage: str, problems: list[str]) -> dict[int, list[dict]]:
    """Training seed -> rows of its log, for the seeds that have one."""
    paths = {p.parts[-3].removeprefix("seed"): p for p in folder.glob(f"seed*/{stage}/log.jsonl")}
    seeds = sorted(int(seed) for seed in paths if seed.isdecimal())
    return {n: _read(paths[str(n)], metrics.read_records, problems) or [] for n in seeds}
