"""Chains and triplets as files: our JSON lines, TRL's vision rows, and back without loss.

A line of ours is one `Record`: version, id, photo (its id in the collection), images (paths),
species (the label), question, chain, and where known system, aliases, candidates, concepts,
dropped, teacher, sample and extra (anything else, kept as it is).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from finer1_lite.chains.checks import Chain
from finer1_lite.runtime.files import DataError, write_lines
from finer1_lite.runtime.files import read as read_lines

VERSION = 1
CARRY = "finer1_lite"  # the column in which foreign formats carry what they have no place for


@dataclass(frozen=True)
class Record:
    """One chain about one picture."""

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
        """For the checks; loose: written in the released free form."""
        return Chain(
            self.chain,
            self.species,
            self.aliases,
            self.candidates,
            self.concepts,
            self.dropped,
            loose,
        )


_KINDS = {f.name: f.type for f in fields(Record)}
_NEEDED = ("id", "photo", "species", "question", "chain")


def to_row(record: Record) -> dict:
    row = {"version": VERSION} | asdict(record)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in row.items()}


def from_row(row: object) -> Record:
    """ValueError naming every problem of the row."""
    if not isinstance(row, dict):
        raise ValueError(f"is no JSON object but {type(row).__name__}")
    problems = [f"lacks {name!r}" for name in _NEEDED if name not in row]
    if row.get("version") != VERSION:
        problems.append(f"has version {row.get('version')!r}; this program reads {VERSION}")
    unknown = sorted(row.keys() - _KINDS.keys() - {"version"})
    problems += [f"has an unknown field {name!r}; put it into extra" for name in unknown]
    values = {}
    for name, value in row.items():
        kind = _KINDS.get(name)
        if kind is str and not isinstance(value, str):
            problems.append(f"{name} is no text: {value!r}")
        elif kind == tuple[str, ...]:
            if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
                problems.append(f"{name} is no list of texts: {value!r}")
            else:
                values[name] = tuple(value)
        elif kind in (int, dict) and (not isinstance(value, kind) or isinstance(value, bool)):
            problems.append(f"{name} is no {kind.__name__}: {value!r}")
        elif kind:
            values[name] = value
    if problems:
        raise ValueError("; ".join(problems))
    return Record(**values)


def each_row(path: Path, rows: Iterable[tuple[object, object]], convert: Callable) -> list:
    """Convert all rows; one DataError for the problems of all of them."""
    found, problems = [], []
    for where, row in rows:
        try:
            found.append(convert(row))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            said = error if isinstance(error, ValueError) else f"{type(error).__name__} {error}"
            problems.append(f"{path}, {where}: {said}")
    if problems:
        raise DataError(problems, f"{len(problems)} rows cannot be used:")
    return found


def read_records(path: Path, torn: bool = False) -> list[Record]:
    rows = [(f"line {n}", row) for n, row in read_lines(path, torn)]
    return each_row(path, rows, from_row)


def write_records(path: Path, records: Iterable[Record]) -> None:
    write_lines(path, (to_row(r) for r in records))


# --- TRL: conversational prompt-completion rows with images ---------------------------------


def to_trl(record: Record) -> dict:
    """images, prompt, completion as `SFTTrainer` reads them; paths stand for pictures."""
    system = [{"role": "system", "content": record.system}] if record.system else []
    kept = {
        k: v
        for k, v in to_row(record).items()
        if k not in ("question", "chain", "images", "system")
    }
    return {
        "images": list(record.images),
        "prompt": [*system, {"role": "user", "content": record.question}],
        "completion": [{"role": "assistant", "content": record.chain}],
        CARRY: json.dumps(kept, ensure_ascii=False),
    }


def from_trl(row: Mapping, place: str = "") -> Record:
    """Rows of others carry no record of ours: the answer is then the label."""
    *system, user = row["prompt"]
    (reply,) = row["completion"]
    given = {
        "question": _content(user),
        "chain": _content(reply),
        "images": list(row["images"]),
        "system": _content(system[0]) if system else "",
    }
    return restore(row, given, place)


def _content(message: Mapping) -> str:
    """Text of a message, written plainly or in parts."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def restore(row: Mapping, given: dict, place: str) -> Record:
    """A record of what a foreign row says and what it carries of ours."""
    carried = row.get(CARRY)
    if carried is not None:
        kept = json.loads(carried) if isinstance(carried, str) else dict(carried)
        return from_row(kept | given)
    parsed = Chain(given["chain"], "")
    if parsed.answer is None:
        raise ValueError("the chain has no <answer>, so its label is not known")
    photo = given["images"][0] if given["images"] else ""
    label = parsed.answer.strip()
    kept = {"version": VERSION, "id": place or photo, "photo": photo, "species": label}
    return from_row(kept | given)


def write_trl(path: Path, records: Iterable[Record]) -> None:
    write_lines(path, (to_trl(r) for r in records))


def read_trl(path: Path) -> list[Record]:
    rows = read_lines(path)
    return each_row(
        path,
        [(f"line {n}", (n, row)) for n, row in rows],
        lambda pair: from_trl(pair[1], str(pair[0])),
    )


# --- triplets of stage 2 ---------------------------------------------------------------------


@dataclass(frozen=True)
class TripletRow:
    """A question about an anchor, with its positive and its hard negative, as picture paths."""

    anchor: str
    positive: str
    negative: str
    question: str
    label: str
    extra: dict = field(default_factory=dict)


def write_triplets(path: Path, rows: Sequence[TripletRow]) -> None:
    write_lines(path, ({"version": VERSION} | asdict(row) for row in rows))


def read_triplets(path: Path) -> list[TripletRow]:
    rows = [(f"line {n}", row) for n, row in read_lines(path)]
    return each_row(
        path, rows, lambda row: TripletRow(**{k: v for k, v in row.items() if k != "version"})
    )
