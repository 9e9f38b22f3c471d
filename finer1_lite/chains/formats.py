"""Chains and triplets as files: our JSON lines, TRL's rows, the released files, and back.

A line of ours is one `Record`; TRL's are conversational rows with images. The released files are
sharegpt JSON (stage 1) and parquet (stage 2), whose columns are images (the anchor), image_noisy
(which holds the *positive*), image_aug (the *hard negative*), problem and answer. What a foreign
format has no place for it carries in a column of its own: nothing is lost there and back.
Chains of others are read as LLaVA, LLaMA-Factory and TRL write them, in an array or in lines.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from finer1_lite.data import marks
from finer1_lite.data.chain_text import Chain
from finer1_lite.data.images import ENDINGS, check_bytes
from finer1_lite.data.layouts import file_of
from finer1_lite.data.marks import IMAGE
from finer1_lite.runtime import files
from finer1_lite.runtime.files import require_none, write_atomically, write_lines

log = logging.getLogger("finer1_lite")

VERSION = 1
CARRY = "finer1_lite"  # the column of our own fields in foreign formats
POSITIVE, NEGATIVE = "image_noisy", "image_aug"  # the released names
ROLES = ["system", "user", "assistant"]
SPEAKERS = {"human": "user", "gpt": "assistant"}  # LLaVA's words for them
FORMS = {  # the field by which a form is known -> whose it is, the field of the reply if another
    "prompt": ("TRL's prompt and completion", "completion"),
    "messages": ("LLaMA-Factory's sharegpt", ""),
    "conversations": ("LLaVA's and VLM-R1's sharegpt", ""),
}


@dataclass(frozen=True)
class Record:
    """One chain about one picture.

    photo: its id in the collection; images: paths; species: the label; candidates, concepts,
    dropped: what the teacher was given; extra: anything else, kept as it is.
    """

    id: str
    photo: str
    species: str
    question: str
    chain: str
    images: tuple[str, ...] = ()
    system: str = ""
    aliases: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    teacher: str = ""
    sample: int = 0
    extra: dict = field(default_factory=dict)

    def parsed(self, loose: bool = False) -> Chain:
        """Take the chain apart for the checks; loose: written in the released free form."""
        names, given = (self.species, self.aliases), (self.candidates, self.concepts, self.dropped)
        return Chain(self.chain, *names, *given, loose)


@dataclass(frozen=True)
class TripletRow:
    """A question about an anchor, with its positive and its hard negative, as picture paths."""

    anchor: str
    positive: str
    negative: str
    question: str
    label: str
    extra: dict = field(default_factory=dict)


_SPOKEN = {"question", "chain", "images", "system"}  # what foreign formats have a place for


# --- our JSON lines --------------------------------------------------------------------------


def to_row(record: Record | TripletRow) -> dict:
    """Write a record or a triplet as a JSON object."""
    return {"version": VERSION} | asdict(record)


def from_row(row: object) -> Record:
    """Read a JSON object; ValueError naming every problem of the row."""
    record = _filled(Record, row)
    spoken = (record.system, record.question, record.species, *record.candidates, record.chain)
    if mark := marks.problem(*spoken):
        raise ValueError(mark)
    return record


def _filled(kind: type, row: object) -> Any:
    """A `Record` or `TripletRow` of a JSON object; ValueError naming every problem of the row."""
    if not isinstance(row, dict):
        raise ValueError(f"is no JSON object but {type(row).__name__}")
    values = {name: value for name, value in row.items() if name != "version"}
    known = {one.name: one for one in fields(kind)}
    needed = [n for n, one in known.items() if one.default is one.default_factory is MISSING]
    problems = [f"lacks {name!r}" for name in needed if name not in row]
    if row.get("version") != VERSION and (kind is Record or "version" in row):
        problems.append(f"has version {row.get('version')!r}; this program reads {VERSION}")
    for name, value in values.items():
        wanted = known[name].type if name in known else None
        if wanted is None:
            problems.append(f"has an unknown field {name!r}; put it into extra")
        elif wanted in (str, int, dict):
            if not isinstance(value, wanted) or isinstance(value, bool):
                what = "text" if wanted is str else wanted.__name__
                problems.append(f"{name} is no {what}: {value!r}")
        elif isinstance(value, list) and all(isinstance(v, str) for v in value):
            values[name] = tuple(value)
        else:
            problems.append(f"{name} is no list of texts: {value!r}")
    if problems:
        raise ValueError("; ".join(problems))
    return kind(**values)


def _convert(
    path: Path, rows: Iterable[tuple[int, Any]], convert: Callable[[Any], Any], unit: str = "line"
) -> list:
    """Convert all rows, each (number, row); one DataError for the problems of all of them."""
    found, problems = [], []
    for number, row in rows:
        try:
            found.append(convert(row))
        except ValueError as error:
            problems.append(f"{path}, {unit} {number}: {error}")
    require_none(problems, f"{len(problems)} rows cannot be used:")
    return found


def append_row(path: Path, row: Mapping) -> None:
    """Append a JSON line, on the disk when this returns; a line torn by a kill goes first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.read_bytes() if path.exists() else b""
    if not data.endswith(b"\n"):
        kept = data[: data.rfind(b"\n") + 1]
        with suppress(ValueError):  # whole but for its end, as an editor may leave it
            json.loads(data[len(kept) :])
            kept = data + b"\n"
        write_atomically(path, kept)
    with path.open("ab") as stream:
        text = json.dumps(row, ensure_ascii=False) + "\n"
        stream.write(text.encode("utf-8", "surrogatepass"))
        stream.flush()
        os.fsync(stream.fileno())


# --- foreign formats of chains ---------------------------------------------------------------


def _messages(record: Record, mark: str = "") -> list[dict]:
    """The conversation of a record; mark: what stands before the question."""
    texts = (record.system, mark + record.question, record.chain)
    turns = [{"role": role, "content": text} for role, text in zip(ROLES, texts, strict=True)]
    return turns if record.system else turns[1:]


def _carried(record: Record) -> dict:
    """The fields that foreign formats have no place for."""
    return {k: v for k, v in to_row(record).items() if k not in _SPOKEN}


def to_trl(record: Record) -> dict:
    """Write images, prompt, completion as `SFTTrainer` reads them; paths stand for pictures."""
    *prompt, completion = _messages(record)
    carried = json.dumps(_carried(record), ensure_ascii=False)
    images = list(record.images)
    return {"images": images, "prompt": prompt, "completion": [completion], CARRY: carried}


def to_sharegpt(record: Record, carry: bool = True) -> dict:
    """Write messages and images as released; carry: our other fields too, in a column."""
    row = {"messages": _messages(record, IMAGE), "images": list(record.images)}
    return row | ({CARRY: _carried(record)} if carry else {})


def from_others(row: object, place: str = "") -> Record:
    """Read a row of one of `FORMS`; place: its id if it has none. ValueError: form, field."""
    name = form_of(row)
    if not name:
        raise ValueError(f"is no chain of ours, nor has it a field of {', '.join(FORMS)}")
    form, reply = FORMS[name]
    if reply and not row.get(reply):
        raise ValueError(f"{form}: lacks the field {reply!r}, so it holds no chain")
    try:
        turns = _turns(row, name, "user") + (_turns(row, reply, "assistant") if reply else [])
        roles = [role for role, _ in turns]
        if roles not in (ROLES, ROLES[1:]):
            raise ValueError(f"field {name!r}: the roles are {roles}, wanted {ROLES}")
        return _restored(row, name, {"system": row.get("system") or "", **dict(turns)}, place)
    except ValueError as error:
        raise ValueError(f"{form}: {error}") from None


def form_of(row: object) -> str:
    """The field by which somebody else's form is known, or ""."""
    foreign = isinstance(row, dict) and "version" not in row
    return next((name for name in FORMS if foreign and name in row), "")


def _turns(row: Mapping, name: str, role: str) -> list[tuple[str, str]]:
    """(role, text) of each turn of a field; of a plain text, which `role` says, one."""
    said = row[name] if isinstance(row[name], list) else [{"role": role, "content": row[name]}]
    found = []
    for turn in said:
        turn = turn if isinstance(turn, dict) else {}
        text = turn.get("content", turn.get("value"))
        if isinstance(text, list) and all(isinstance(part, dict) for part in text):
            pictures = (str(part.get("type")).startswith("image") for part in text)
            parts = zip(pictures, text, strict=True)
            text = "".join(IMAGE if shown else str(part.get("text") or "") for shown, part in parts)
        if not isinstance(text, str):
            raise ValueError(f"field {name!r}: a turn has no text: {str(turn)[:60]}")
        speaker = str(turn.get("role", turn.get("from", role)))
        found.append((SPEAKERS.get(speaker, speaker), text))
    return found


def _restored(row: Mapping, name: str, said: Mapping[str, str], place: str) -> Record:
    """A record of what a foreign row says by role, and of what it carries, if it does."""
    field_ = "image" if "image" in row else "images"
    images = row.get(field_)
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(one, str) for one in images):
        raise ValueError(f"field {field_!r}: give the path of the picture, not {str(images)[:60]}")
    question, carried = said["user"], row.get(CARRY)
    given = {"system": said["system"], "chain": said["assistant"], "images": images}
    if carried is not None:
        carried = json.loads(carried) if isinstance(carried, str) else carried
        if not isinstance(carried, dict):
            raise ValueError(f"field {CARRY!r}: is no JSON object")
        return from_row(carried | given | {"question": question.removeprefix(IMAGE)})
    bare = marks.without_picture(question)
    if (bare == question and name != "prompt") or IMAGE in bare or len(images) != 1:
        what = f"the question must begin with the one {IMAGE} of one picture: {question[:60]!r}"
        raise ValueError(f"field {name!r}: {what}")
    answer = Chain(given["chain"]).answer
    if answer is None:  # of somebody else's row it is the label
        what = "the chain has no <answer>, so its label is not known"
        raise ValueError(f"field {FORMS[name][1] or name!r}: {what}")
    read = {name, FORMS[name][1], field_, "system"}
    kept = {"version": VERSION, "id": place or images[0], "photo": images[0], "question": bare}
    kept |= {"species": answer.strip(), "extra": {k: v for k, v in row.items() if k not in read}}
    return from_row(kept | given)


def read_records(path: Path, torn: bool = False) -> list[Record]:
    """Read our JSON lines; torn: without a half-written last line. DataError lists all problems."""
    return _convert(path, files.read(path, torn), from_row)


def read_any(path: Path) -> tuple[list[Record], str]:
    """Read chains of any format, in lines or one array; also which: ours, trl or sharegpt."""
    array = files.is_array(path)
    found = list(enumerate(files.load(path))) if array else files.read(path)
    rows = [(n, (row, str(n))) for n, row in found]

    def convert(pair: tuple[object, str]) -> Record:
        own = isinstance(pair[0], dict) and {"version", "chain"} & pair[0].keys()
        return from_row(pair[0]) if own else from_others(*pair)

    kinds = {"": "ours", "prompt": "trl"}  # by the field that tells
    told = dict.fromkeys(kinds.get(form_of(row), "sharegpt") for _, row in found)
    return _convert(path, rows, convert, "entry" if array else "line"), " and ".join(told)


def write_records(
    path: Path, records: Iterable[Record], kind: str = "ours", carry: bool = True
) -> None:
    """Write chains in one step; kind: ours, trl or sharegpt (carry: with our other fields)."""
    if kind == "sharegpt":
        rows = [to_sharegpt(r, carry) for r in records]
        write_atomically(path, json.dumps(rows, ensure_ascii=False, indent=2).encode())
    else:
        write_lines(path, map({"ours": to_row, "trl": to_trl}[kind], records))


# --- triplets --------------------------------------------------------------------------------


def read_triplets(path: Path) -> list[TripletRow]:
    """Read triplets from JSON lines; DataError lists all problems."""
    return _convert(path, files.read(path), _triplet)


def _triplet(row: object) -> TripletRow:
    """Read a JSON object; ValueError naming every problem of the row."""
    found = _filled(TripletRow, row)
    bare = marks.without_picture(found.question)
    if mark := marks.problem(bare, found.label):
        raise ValueError(mark)
    return replace(found, question=bare)


def write_triplets(path: Path, rows: Iterable[TripletRow]) -> None:
    """Write triplets as JSON lines, in one step."""
    write_lines(path, map(to_row, rows))


def write_parquet(path: Path, rows: Sequence[TripletRow], root: Path) -> None:
    """Write the released columns, pictures inside as the bytes of their files under `root`.

    DataError naming every picture that is not there. The released trainer reuses the anchor's
    token ids for the positive, so give it positives of the anchor's size; this project
    tokenises each picture and needs no such thing.
    """
    import pandas as pd

    names = {name for r in rows for name in (r.anchor, r.positive, r.negative)}
    files = {name: file_of(root, name) for name in sorted(names)}
    missing = [f"{f}: there is no such picture" for f in files.values() if not f.is_file()]
    require_none(missing, "no parquet; --pictures names the folder that paths start from:")

    def picture(name: str) -> list[dict]:
        return [{"bytes": files[name].read_bytes(), "path": name}]

    columns = {
        "images": [picture(r.anchor) for r in rows],
        "problem": [IMAGE + r.question for r in rows],
        "answer": [r.label for r in rows],
        NEGATIVE: [picture(r.negative) for r in rows],
        POSITIVE: [picture(r.positive) for r in rows],
        CARRY: [json.dumps(r.extra) for r in rows],
    }
    write_atomically(path, pd.DataFrame(columns).to_parquet(index=False))


def read_parquet(path: Path, root: Path) -> list[TripletRow]:
    """Read triplets of a released file; their pictures are written under `root`.

    A stored path that leads out of `root`, that a file of other bytes has, or none, gives way to
    a name made of the bytes: no file is replaced, and no two pictures become one.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    pictures = {"anchor": "images", "positive": POSITIVE, "negative": NEGATIVE}
    missing = sorted({*pictures.values(), "problem", "answer"} - set(table.column_names))
    require_none([f"{path}: lacks the column {c}" for c in missing], "no triplets:")

    renamed: list[str | None] = []

    def convert(row: dict) -> TripletRow:
        told = {"question": row["problem"], "label": row["answer"]}
        told["extra"] = json.loads(row.get(CARRY) or "{}")
        for role, column in pictures.items():
            told[role] = _unpack(row[column], root, column, renamed)
        return _triplet(told)

    found = _convert(path, enumerate(table.to_pylist()), convert, "row")
    if renamed:
        log.info("%s: %d pictures have a name of their own bytes now", path, len(renamed))
    return found


def _unpack(cell: object, root: Path, column: str, renamed: list) -> str:
    """Write one picture cell (a list or a single one; bytes with or without a path)."""
    one = cell[0] if isinstance(cell, list) and cell else cell
    data = one if isinstance(one, bytes) else one.get("bytes") if isinstance(one, dict) else None
    if not isinstance(data, bytes):
        raise ValueError(f"column {column!r}: no bytes of a picture")
    found = check_bytes(data)
    if found.problem:
        raise ValueError(f"column {column!r}: {found.problem}")
    name = one.get("path") if isinstance(one, dict) else None
    path = (root / (name or "")).resolve()
    usable = path.is_relative_to(root.resolve()) and path.suffix.lower() in ENDINGS
    if not usable or path.exists() and not (path.is_file() and path.read_bytes() == data):
        renamed.append(name)
        name = found.digest[:16] + found.ending
        path = root / name
    write_atomically(path, data)
    return name
