"""The released files: stage-1 chains (sharegpt JSON), stage-2 triplets (parquet), an audit.

The parquet's columns, as the released trainer reads them: images (the anchor), image_noisy
(which holds the *positive*), image_aug (which holds the *hard negative*), problem, answer.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from finer1_lite.chains import checks, formats
from finer1_lite.chains.formats import CARRY, Record, TripletRow
from finer1_lite.runtime.files import DataError, write_atomically
from finer1_lite.runtime.files import read as read_lines

IMAGE = "<image>"
POSITIVE, NEGATIVE = "image_noisy", "image_aug"  # the released names
ROLES = ["system", "user", "assistant"]


# --- stage 1: sharegpt JSON ---------------------------------------------------------------


def to_sharegpt(record: Record, carry: bool = True) -> dict:
    """messages and images as released; carry: our other fields too, in a column of their own."""
    system = [{"role": "system", "content": record.system}] if record.system else []
    messages = [
        *system,
        {"role": "user", "content": IMAGE + record.question},
        {"role": "assistant", "content": record.chain},
    ]
    row = {"messages": messages, "images": list(record.images)}
    kept = {
        k: v
        for k, v in formats.to_row(record).items()
        if k not in ("question", "chain", "images", "system")
    }
    return row | ({CARRY: kept} if carry else {})


def from_sharegpt(row: Mapping, place: str) -> Record:
    """ValueError where a row has other roles, or no picture at the start of the question."""
    messages = row["messages"]
    roles = [m["role"] for m in messages]
    if roles not in (ROLES, ROLES[1:]):
        raise ValueError(f"the roles are {roles}, wanted {ROLES}")
    question = messages[-2]["content"]
    if not question.startswith(IMAGE) or question.count(IMAGE) != 1 or len(row["images"]) != 1:
        raise ValueError(f"the question must begin with the one {IMAGE}: {question[:60]!r}")
    given = {
        "question": question.removeprefix(IMAGE),
        "chain": messages[-1]["content"],
        "images": list(row["images"]),
        "system": messages[0]["content"] if len(messages) == 3 else "",
    }
    return formats.restore(row, given, place)


def read_sharegpt(path: Path) -> list[Record]:
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError([f"{path}: is no JSON ({error})"], "cannot be read:") from None
    if not isinstance(rows, list):
        raise DataError([f"{path}: is no list of conversations"], "cannot be read:")
    numbered = [(f"entry {i}", (i, row)) for i, row in enumerate(rows)]
    return formats.each_row(path, numbered, lambda pair: from_sharegpt(pair[1], str(pair[0])))


def write_sharegpt(path: Path, records: Iterable[Record], carry: bool = True) -> None:
    rows = [to_sharegpt(r, carry) for r in records]
    write_atomically(path, json.dumps(rows, ensure_ascii=False, indent=2).encode())


def read_any(path: Path) -> tuple[list[Record], str]:
    """Records of a file and its format (ours, trl or sharegpt), told by its content."""
    path = Path(path)
    if path.suffix == ".json":
        return read_sharegpt(path), "sharegpt"
    rows = read_lines(path)
    if rows and isinstance(rows[0][1], dict) and "completion" in rows[0][1]:
        return formats.read_trl(path), "trl"
    return formats.read_records(path), "ours"


def is_free(records: Sequence[Record]) -> bool:
    """Whether chains are written in free prose, as released, and not in our form."""
    ours = sum(not checks.parts(r.parsed()) for r in records)
    return 2 * ours < len(records)


# --- stage 2: parquet ---------------------------------------------------------------------


def write_parquet(path: Path, rows: Sequence[TripletRow], root: Path) -> None:
    """The released columns, pictures inside as the bytes of their files under `root`.

    The released trainer reuses the anchor's token ids for the positive, so give it positives
    of the anchor's size; this project tokenises each picture and needs no such thing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    missing = sorted(
        {p for r in rows for p in (r.anchor, r.positive, r.negative) if not (root / p).is_file()}
    )
    if missing:
        raise DataError([f"{root / p}: there is no such picture" for p in missing], "no parquet:")

    def picture(name: str) -> list[dict]:
        return [{"bytes": (root / name).read_bytes(), "path": name}]

    table = {
        "images": [picture(r.anchor) for r in rows],
        "problem": [IMAGE + r.question for r in rows],
        "answer": [r.label for r in rows],
        NEGATIVE: [picture(r.negative) for r in rows],
        POSITIVE: [picture(r.positive) for r in rows],
        CARRY: [json.dumps(r.extra) for r in rows],
    }
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    types = {"images": kind, NEGATIVE: kind, POSITIVE: kind}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in table])
    draft = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table, schema=schema), draft)
    draft.replace(path)


def read_parquet(path: Path, root: Path) -> list[TripletRow]:
    """Triplets of a released file; their pictures are written under `root`.

    A stored path that leads out of `root`, or none, gives way to a name made of the row.
    """
    import pyarrow.parquet as pq

    table = pq.read_table(path).to_pylist()
    wanted = {"images", "problem", "answer", POSITIVE, NEGATIVE}
    lacking = wanted - set(table[0] if table else wanted)
    if lacking:
        raise DataError([f"{path}: lacks the column {c}" for c in sorted(lacking)], "no triplets:")
    rows = []
    for number, row in enumerate(table):
        names = [_unpack(row[c], root, f"{number}-{c}") for c in ("images", POSITIVE, NEGATIVE)]
        extra = json.loads(row.get(CARRY) or "{}")
        question = row["problem"].removeprefix(IMAGE)
        rows.append(TripletRow(*names, question, row["answer"], extra))
    return rows


def _unpack(cell: object, root: Path, otherwise: str) -> str:
    """Write one picture cell (a list or a single one; bytes with or without a path)."""
    one = cell[0] if isinstance(cell, list) else cell
    data, name = (one, None) if isinstance(one, bytes) else (one["bytes"], one.get("path"))
    target = (root / (name or otherwise)).resolve()
    if not name or not target.is_relative_to(root.resolve()):
        name, target = otherwise, root / otherwise
    write_atomically(target, data)
    return name


# --- the audit ------------------------------------------------------------------------------


def audit_chains(records: Sequence[Record]) -> dict:
    """Counts of each finding, its first examples, and facts of the file as a whole."""
    loose = is_free(records)
    chains = {r.id: r.parsed(loose) for r in records}
    found = {key: checks.check(chain) for key, chain in chains.items()}
    for key, finding in checks.duplicates(chains).items():
        found[key].append(finding)
    counts = Counter(f.code for findings in found.values() for f in findings)
    examples = {
        code: next(f"{key}: {f.reason}" for key, fs in found.items() for f in fs if f.code == code)
        for code in counts
    }
    every = list(chains.values())
    places = checks.places(every)
    words = sorted(len(r.chain.split()) for r in records)
    return {
        "chains": len(records),
        "form": "free prose" if loose else "ours",
        "clean": sum(not f for f in found.values()),
        "median words": words[len(words) // 2] if words else 0,
        "findings": {code: counts[code] for code in [*checks.CHECKS, "duplicate"]},
        "examples": examples,
        "candidates listed": dict(sorted(Counter(len(c.listed) for c in every).items())),
        "place of the label": dict(sorted(places.items())),
        "habit": checks.habit(every),
        "found": found,
    }


def audit_text(result: Mapping) -> str:
    """The audit as a table for the terminal."""
    lines = [
        f"{result['chains']} chains ({result['form']}), {result['clean']} without a finding, "
        f"median {result['median words']} words",
        "",
    ]
    for code, count in result["findings"].items():
        example = result["examples"].get(code, "")
        lines.append(f"{code:14}{count:6}  {example[:90]}")
    placed = {k: v for k, v in result["place of the label"].items() if k >= 0}
    shares = ", ".join(f"{k + 1}: {v / sum(placed.values()):.0%}" for k, v in placed.items())
    lines += ["", f"label at place (where listed word for word): {shares or 'never listed'}"]
    lines += [f"candidates in the list -> chains: {result['candidates listed']}"]
    return "\n".join([*lines, f"habit: {result['habit'] or 'none'}"])
