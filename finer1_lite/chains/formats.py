"""Chains and triplets as files: our JSON lines, TRL's rows, the released files, and back.

A line of ours is one `Record`; TRL's are conversational rows with images. The released files are
sharegpt JSON (stage 1) and parquet (stage 2), whose columns are images (the anchor), image_noisy
(which holds the *positive*), image_aug (the *hard negative*), problem and answer. What a foreign
format has no place for it carries in a column of its own: nothing is lost there and back.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from finer1_lite.data.chain_text import Chain
from finer1_lite.data.layouts import file_of
from finer1_lite.runtime.files import DataError, require_none, write_atomically, write_lines
from finer1_lite.runtime.files import read as read_lines

VERSION = 1
CARRY = "finer1_lite"  # the column of our own fields in foreign formats
IMAGE = "<image>"
POSITIVE, NEGATIVE = "image_noisy", "image_aug"  # the released names
ROLES = ["system", "user", "assistant"]


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


_KINDS = {f.name: f.type for f in fields(Record)}
_NEEDED = ("id", "photo", "species", "question", "chain")
_SPOKEN = {"question", "chain", "images", "system"}  # what foreign formats have a place for


# --- our JSON lines --------------------------------------------------------------------------


def to_row(record: Record) -> dict:
    """Write a record as a JSON object."""
    row = {"version": VERSION} | asdict(record)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in row.items()}


def from_row(row: object) -> Record:
    """Read a JSON object; ValueError naming every problem of the row."""
    if not isinstance(row, dict):
        raise ValueError(f"is no JSON object but {type(row).__name__}")
    problems = [f"lacks {name!r}" for name in _NEEDED if name not in row]
    if row.get("version") != VERSION:
        problems.append(f"has version {row.get('version')!r}; this program reads {VERSION}")
    values = {name: value for name, value in row.items() if name != "version"}
    for name, value in values.items():
        kind = _KINDS.get(name)
        if kind is None:
            problems.append(f"has an unknown field {name!r}; put it into extra")
        elif kind in (str, int, dict):
            if not isinstance(value, kind) or isinstance(value, bool):
                what = "text" if kind is str else kind.__name__
                problems.append(f"{name} is no {what}: {value!r}")
        elif isinstance(value, list) and all(isinstance(v, str) for v in value):
            values[name] = tuple(value)
        else:
            problems.append(f"{name} is no list of texts: {value!r}")
    if problems:
        raise ValueError("; ".join(problems))
    return Record(**values)


def _convert(path: Path, rows: Iterable[tuple[object, object]], convert: Callable) -> list:
    """Convert all rows, each (where, row); one DataError for the problems of all of them."""
    found, problems = [], []
    for where, row in rows:
        try:
            found.append(convert(row))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            said = error if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
            problems.append(f"{path}, {where}: {said}")
    require_none(problems, f"{len(problems)} rows cannot be used:")
    return found


def append_row(path: Path, row: Mapping) -> None:
    """Append a JSON line, on the disk when this returns; a line torn by a kill goes first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = path.read_bytes() if path.exists() else b""
    if not data.endswith(b"\n"):
        write_atomically(path, data[: data.rfind(b"\n") + 1])
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


def _restored(row: Mapping, spoken: Sequence[str], place: str) -> Record:
    """A record of what a foreign row says (system, question, chain) and carries, if it does."""
    given = dict(zip(("system", "question", "chain"), spoken, strict=True))
    given["images"] = list(row["images"])
    carried = row.get(CARRY)
    if carried is not None:
        return from_row((json.loads(carried) if isinstance(carried, str) else carried) | given)
    answer = Chain(given["chain"]).answer
    if answer is None:  # of somebody else's row it is the label
        raise ValueError("the chain has no <answer>, so its label is not known")
    photo = given["images"][0] if given["images"] else ""
    kept = {"version": VERSION, "id": place or photo, "photo": photo, "species": answer.strip()}
    return from_row(kept | given)


def to_trl(record: Record) -> dict:
    """Write images, prompt, completion as `SFTTrainer` reads them; paths stand for pictures."""
    *prompt, completion = _messages(record)
    carried = json.dumps(_carried(record), ensure_ascii=False)
    images = list(record.images)
    return {"images": images, "prompt": prompt, "completion": [completion], CARRY: carried}


def from_trl(row: Mapping, place: str = "") -> Record:
    """Read a row of TRL, ours or of others; place: its id where it carries none."""
    *system, user = row["prompt"]
    (reply,) = row["completion"]
    spoken = (_content(system[0]) if system else "", _content(user), _content(reply))
    return _restored(row, spoken, place)


def _content(message: Mapping) -> str:
    """Text of a message, written plainly or in parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def to_sharegpt(record: Record, carry: bool = True) -> dict:
    """Write messages and images as released; carry: our other fields too, in a column."""
    row = {"messages": _messages(record, IMAGE), "images": list(record.images)}
    return row | ({CARRY: _carried(record)} if carry else {})


def from_sharegpt(row: Mapping, place: str) -> Record:
    """Read a released row; ValueError for other roles, or no picture before the question."""
    roles = [m["role"] for m in row["messages"]]
    if roles not in (ROLES, ROLES[1:]):
        raise ValueError(f"the roles are {roles}, wanted {ROLES}")
    system, question, chain = ["", *(m["content"] for m in row["messages"])][-3:]
    if not question.startswith(IMAGE) or question.count(IMAGE) != 1 or len(row["images"]) != 1:
        raise ValueError(f"the question must begin with the one {IMAGE}: {question[:60]!r}")
    return _restored(row, (system, question.removeprefix(IMAGE), chain), place)


def read_records(path: Path, torn: bool = False) -> list[Record]:
    """Read our JSON lines; torn: without a half-written last line. DataError lists all problems."""
    return _convert(path, [(f"line {n}", row) for n, row in read_lines(path, torn)], from_row)


def read_any(path: Path) -> tuple[list[Record], str]:
    """Read chains of any format, and tell which one by the content: ours, trl or sharegpt."""
    path = Path(path)
    if path.suffix == ".json":
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError([f"{path}: is no JSON ({error})"], "cannot be read:") from None
        if not isinstance(found, list):
            raise DataError([f"{path}: is no list of conversations"], "cannot be read:")
        rows = [(f"entry {i}", (row, str(i))) for i, row in enumerate(found)]
        return _convert(path, rows, lambda pair: from_sharegpt(*pair)), "sharegpt"
    lines = read_lines(path)
    if lines and isinstance(lines[0][1], dict) and "completion" in lines[0][1]:
        rows = [(f"line {n}", (row, str(n))) for n, row in lines]
        return _convert(path, rows, lambda pair: from_trl(*pair)), "trl"
    return read_records(path), "ours"


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

    def convert(row: Mapping) -> TripletRow:
        return TripletRow(**{k: v for k, v in row.items() if k != "version"})

    return _convert(path, [(f"line {n}", row) for n, row in read_lines(path)], convert)


def write_triplets(path: Path, rows: Iterable[TripletRow]) -> None:
    """Write triplets as JSON lines, in one step."""
    write_lines(path, ({"version": VERSION} | asdict(row) for row in rows))


def write_parquet(path: Path, rows: Sequence[TripletRow], root: Path) -> None:
    """Write the released columns, pictures inside as the bytes of their files under `root`.

    DataError naming every picture that is not there. The released trainer reuses the anchor's
    token ids for the positive, so give it positives of the anchor's size; this project
    tokenises each picture and needs no such thing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    draft = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), draft)
    draft.replace(path)


def read_parquet(path: Path, root: Path) -> list[TripletRow]:
    """Read triplets of a released file; their pictures are written under `root`.

    A stored path that leads out of `root`, or none, gives way to a name made of the row.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    pictures = ("images", POSITIVE, NEGATIVE)
    missing = sorted({*pictures, "problem", "answer"} - set(table.column_names))
    if missing:
        raise DataError([f"{path}: lacks the column {c}" for c in missing], "no triplets:")
    rows = []
    for number, row in enumerate(table.to_pylist()):
        names = [_unpack(row[column], root, f"{number}-{column}") for column in pictures]
        question = row["problem"].removeprefix(IMAGE)
        rows.append(TripletRow(*names, question, row["answer"], json.loads(row.get(CARRY) or "{}")))
    return rows


def _unpack(cell: object, root: Path, otherwise: str) -> str:
    """Write one picture cell (a list or a single one; bytes with or without a path)."""
    one = cell[0] if isinstance(cell, list) else cell
    data, name = (one, None) if isinstance(one, bytes) else (one["bytes"], one.get("path"))
    if not name or not (root / name).resolve().is_relative_to(root.resolve()):
        name = otherwise
    write_atomically((root / name).resolve(), data)
    return name
