"""Photos -> descriptions -> concepts -> chains -> checks -> a folder ready for review.

The folder: config.json, cache/ (paid answers), concepts.json, chains.jsonl (chains that pass),
rejected.jsonl (the others, each with its reasons), report.json, review.csv, decisions.jsonl and
reviewed.jsonl. Every file grows by whole lines or is replaced in one step; the same command
started again goes on where it was, and asks for nothing twice.
"""

import json
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

from finer1_lite import cot, prompts
from finer1_lite.chains import checks, concepts, formats
from finer1_lite.chains.checks import Finding
from finer1_lite.chains.concepts import Selection
from finer1_lite.chains.formats import Record
from finer1_lite.chains.review import Review, summary
from finer1_lite.chains.teachers import Ledger, Teacher, TeacherError, TeacherStopped
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.files import (
    DataError,
    fingerprint,
    open_folder,
    write_atomically,
    write_lines,
)
from finer1_lite.runtime.files import read as read_lines
from finer1_lite.species import Collection, Photo

log = logging.getLogger("finer1_lite")
PATIENCE = 3  # pictures without an answer in a row, then the endpoint counts as down


@dataclass(frozen=True)
class Settings:
    """What chains depend on besides data and teacher."""

    descriptions: int = 6  # of each picture
    extract: str = "teacher"  # who names concepts: teacher | yake
    estimator: str = "count"  # count | infonce
    beta: float = concepts.BETA
    neighbours: int = 3  # classes that concepts must tell apart
    per_picture: int = 1  # chains of each picture that pass
    rounds: int = 4  # tries for each of them
    guess: bool = False  # the teacher is not told the label: its chain is kept if it is right
    seed: int = 0

    def check(self) -> "Settings":
        problems = [
            f"{name} = {value}: a whole number from 1 on"
            for name, value in asdict(self).items()
            if name in ("descriptions", "neighbours", "per_picture", "rounds") and value < 1
        ]
        for name, known in (("extract", ("teacher", "yake")), ("estimator", ("count", "infonce"))):
            if getattr(self, name) not in known:
                problems.append(f"{name} = {getattr(self, name)!r}: one of {', '.join(known)}")
        if not 0 <= self.beta <= 1:
            problems.append(f"beta = {self.beta}: from 0 to 1 (at 1 no concept is worth its price)")
        if problems:
            raise DataError(problems, "settings that make no sense:")
        return self


@dataclass
class Work:
    """One start of the job."""

    folder: Path
    collection: Collection
    teacher: Teacher
    settings: Settings
    ledger: Ledger
    bars: bool = True  # progress bars
    done: dict[str, list[str]] = field(default_factory=dict)  # photo -> folded thoughts
    lock: threading.Lock = field(default_factory=threading.Lock)

    def config(self) -> dict:
        photos = self.collection.train
        return {
            "job": "chains of thought",
            "coarse": self.collection.coarse,
            "pictures": len(photos),
            "data": fingerprint([p.id for p in photos]),
            "preset": asdict(self.settings) | {"teacher": self.teacher.identity},
        }


def make(work: Work) -> dict:
    """Do the whole job; returns what report.json holds.

    Raises DataError at the end where pictures are left without a chain, all else written.
    """
    work.settings.check()
    open_folder(work.folder, work.config(), fresh=False)
    stopped: list[str] = []
    try:
        described = describe(work)
        selected = choose(work, described)
        stopped = write_all(work, described, selected)
    except TeacherError as error:
        stopped = [str(error)]
    report = finish(work, stopped)
    if stopped:
        raise DataError(
            stopped,
            f"not all is done ({work.folder}); what is done is kept, and the same "
            "command goes on from here:",
        )
    return report


# --- the teacher is asked --------------------------------------------------------------------


def in_parallel(
    teacher: Teacher, items: Sequence, act: Callable, what: str, bars: bool = True
) -> list[str]:
    """act(item) for all, the teacher's `workers` at a time; returns what went wrong, item by item.

    Stops handing out items when the teacher is done for good, or after `PATIENCE` failures
    in a row; what is under way is waited for, since it is being paid for.
    """
    problems: list[str] = []
    in_a_row = 0
    halted = threading.Event()

    def guarded(item):
        return None if halted.is_set() else act(item)

    bar = progress_bar(len(items), what, hidden=not bars)
    with ThreadPoolExecutor(teacher.workers) as pool, bar:
        tasks = {pool.submit(guarded, item): item for item in items}
        for task in as_completed(tasks):
            bar.update()
            try:
                task.result()
                in_a_row = 0
            except TeacherError as error:
                problems.append(f"{getattr(tasks[task], 'id', tasks[task])}: {error}")
                in_a_row += 1
                if isinstance(error, TeacherStopped) or in_a_row >= PATIENCE:
                    halted.set()
            except BaseException:
                halted.set()
                raise
    return problems


def describe(work: Work) -> dict[str, list[str]]:
    """photo -> its descriptions. Raises TeacherError where one is missing."""
    found: dict[str, list[str]] = {}
    coarse, count = work.collection.coarse, work.settings.descriptions

    def act(photo: Photo) -> None:
        views = [
            (prompts.ask_describe(coarse, v), range(v, count, len(prompts.DESCRIPTIONS)))
            for v in range(min(count, len(prompts.DESCRIPTIONS)))
        ]
        found[photo.id] = [
            reply.text
            for asked, samples in views
            for reply in work.teacher.ask(photo, asked, list(samples))
        ]

    problems = in_parallel(work.teacher, work.collection.train, act, "descriptions", work.bars)
    if problems:
        raise TeacherError("; ".join(problems[:5]))
    return found


def choose(work: Work, described: dict[str, list[str]]) -> dict[str, Selection]:
    """class -> its concepts against its nearest classes that have pictures."""
    classes = list(dict.fromkeys(p.species for p in work.collection.train))
    own = {c: [described[p.id] for p in work.collection.train if p.species == c] for c in classes}
    phrases = {c: _phrases(work, [t for p in own[c] for t in p]) for c in classes}
    chosen = {}
    for name in classes:
        near = work.collection.neighbours(name, classes)[: work.settings.neighbours]
        around = concepts.merge(p for c in (name, *near) for p in phrases[c])
        usable = [c for c in around if not checks.invisible(c)]
        chosen[name] = concepts.select(
            name,
            {c: own[c] for c in (name, *near)},
            usable,
            estimator=work.settings.estimator,
            beta=work.settings.beta,
        )
    rows = {name: asdict(selection) for name, selection in chosen.items()}
    write_json(work.folder / "concepts.json", rows)
    return chosen


def _phrases(work: Work, texts: Sequence[str]) -> list[str]:
    texts = list(dict.fromkeys(texts))
    if work.settings.extract == "yake":
        return concepts.extract(texts)
    (reply,) = work.teacher.ask(None, prompts.ask_extract(texts), [0])
    return concepts.read_list(reply.text)


# --- chains ----------------------------------------------------------------------------------


def write_all(
    work: Work, described: dict[str, list[str]], selected: dict[str, Selection]
) -> list[str]:
    """A chain for every picture that lacks one; returns what went wrong."""
    path = work.folder / "chains.jsonl"
    for record in formats.read_records(path, torn=True) if path.exists() else ():
        work.done.setdefault(record.photo, []).append(checks.fold(record.parsed().think))
    _drop_torn_line(path)
    _drop_torn_line(work.folder / "rejected.jsonl")

    def act(photo: Photo) -> None:
        _write_one(work, photo, described[photo.id], selected[photo.species])

    problems = in_parallel(work.teacher, work.collection.train, act, "chains", work.bars)
    short = [
        f"{p.id}: {len(work.done.get(p.id, []))} of {work.settings.per_picture} chains passed in "
        f"{work.settings.rounds} rounds (reasons: rejected.jsonl)"
        for p in work.collection.train
        if len(work.done.get(p.id, [])) < work.settings.per_picture
    ]
    return problems or short


def _write_one(work: Work, photo: Photo, texts: Sequence[str], selection: Selection) -> None:
    """Rounds for one picture. A round that was rejected before is answered from the cache."""
    kept = concepts.of_picture(selection, texts)
    needed = work.settings.per_picture
    for sample in range(work.settings.rounds * needed):
        if len(work.done.get(photo.id, [])) >= needed:
            return
        asked = _request(work, photo, kept, sample)
        (reply,) = work.teacher.ask(photo, asked, [sample])
        record = _record(work, photo, asked, kept, selection, sample, reply.text)
        with work.lock:
            _accept(work, record)


def _request(work: Work, photo: Photo, kept: Sequence[str], sample: int) -> prompts.Asked:
    rng = random.Random(f"candidates/{work.settings.seed}/{photo.id}/{sample}")
    chosen = cot.candidates(work.collection.neighbours(photo.species), photo.species, rng)
    if work.settings.guess:
        return prompts.ask_guess(work.collection.coarse, chosen)
    return prompts.ask_write(work.collection.coarse, photo.species, chosen, kept)


def _record(
    work: Work,
    photo: Photo,
    asked: prompts.Asked,
    kept: Sequence[str],
    selection: Selection,
    sample: int,
    text: str,
) -> Record:
    told = not work.settings.guess  # who was told no concepts cannot be held to them
    return Record(
        id=f"{photo.id}#{sample}",
        photo=photo.id,
        species=photo.species,
        question=prompts.question("think", work.collection.coarse),
        chain=text.strip(),
        images=(photo.id,),
        aliases=work.collection.of(photo.species).aliases,
        candidates=asked.candidates,
        concepts=tuple(kept) if told else (),
        dropped=selection.dropped if told else (),
        teacher=work.teacher.identity["teacher"],
        sample=sample,
    )


def _accept(work: Work, record: Record) -> None:
    """Append a chain to the good ones, or to the others with its reasons."""
    parsed = record.parsed()
    findings = checks.check(parsed)
    thought = checks.fold(parsed.think)
    if any(thought in others for others in work.done.values()):
        findings.append(Finding("duplicate", "the same thought as another chain's"))
    name = "rejected.jsonl" if findings else "chains.jsonl"
    row = formats.to_row(record)
    if findings:
        row["findings"] = [asdict(f) for f in findings]
    else:
        work.done.setdefault(record.photo, []).append(thought)
    with (work.folder / name).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _drop_torn_line(path: Path) -> None:
    if path.exists():
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            write_atomically(path, data[: data.rfind(b"\n") + 1])


# --- the end ---------------------------------------------------------------------------------


def finish(work: Work, stopped: Sequence[str]) -> dict:
    """Sort the files, write report and review table, apply decisions made so far."""
    places = {p.id: i for i, p in enumerate(work.collection.train)}
    records = _tidy(work.folder / "chains.jsonl", lambda r: (places[r["photo"]], r["sample"]))
    rejected = _tidy(work.folder / "rejected.jsonl", lambda r: (places[r["photo"]], r["sample"]))
    chains = [formats.from_row(r) for r in records]
    parsed = [c.parsed() for c in chains]
    reasons = Counter(f["code"] for row in rejected for f in row["findings"])
    report = {
        "pictures": len(work.collection.train),
        "chains": len(chains),
        "rejected": len(rejected),
        "reasons": dict(reasons.most_common()),
        "habit": checks.habit(parsed),
        "place of the label": dict(sorted(checks.places(parsed).items())),
        "this start": work.ledger.to_dict(),
        "all paid": _total(work),
        "stopped": list(stopped),
    }
    review = apply_review(work.folder)
    report["review"] = summary(review)
    write_json(work.folder / "report.json", report)
    return report


def _tidy(path: Path, key: Callable) -> list[dict]:
    """Rows in the collection's order, each once (a killed start may have written one again)."""
    rows = [row for _, row in read_lines(path, torn=True)] if path.exists() else []
    once = {row["id"]: row for row in rows}
    ordered = sorted(once.values(), key=key)
    if rows or path.exists():
        write_lines(path, ordered)
    return ordered


def _total(work: Work) -> dict:
    """Answers and tokens over all starts, from the cache on disk."""
    counts: Counter[str] = Counter()
    for path in (work.folder / "cache").glob("*/*.json"):
        reply = json.loads(path.read_text(encoding="utf-8"))
        counts.update(answers=1, tokens_in=reply["tokens_in"], tokens_out=reply["tokens_out"])
    prices = work.ledger
    whole = Ledger(prices.price_in, prices.price_out, counts=counts)
    return dict(counts) | {"cost": round(whole.cost, 6)}


def open_review(folder: Path) -> Review:
    """The review of a folder that `make` has written."""
    path = folder / "chains.jsonl"
    if not path.exists():
        raise DataError([f"{path} does not exist; run `cot make` first"], "nothing to review:")
    return Review(formats.read_records(path, torn=True), folder / "decisions.jsonl")


def apply_review(folder: Path, undecided: bool = True) -> Review:
    """Take over review.csv, write it anew, and write the chains that stay to reviewed.jsonl.

    undecided: chains that passed the checks and that nobody looked at stay too.
    """
    if not (folder / "chains.jsonl").exists():
        return Review((), folder / "decisions.jsonl")
    review = open_review(folder)
    table = folder / "review.csv"
    if table.exists():
        taken = review.read_csv(table)
        if taken:
            log.info("%s: %d new decisions", table, taken)
    review.write_csv(table)
    formats.write_records(folder / "reviewed.jsonl", review.results(undecided))
    return review


def write_json(path: Path, value: object) -> None:
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1).encode())


def triplet_rows(collection: Collection, seed: int = 0) -> Iterable[formats.TripletRow]:
    """A triplet for every training picture, as stage 2 would draw it."""
    from finer1_lite.triplets import draw_triplets

    question = prompts.question("think", collection.coarse)
    for t in draw_triplets(collection, len(collection.train), seed, 0):
        yield formats.TripletRow(
            t.anchor.id,
            t.positive.id,
            t.negative.id,
            question,
            t.anchor.species,
            {"negative_label": t.negative.species},
        )
