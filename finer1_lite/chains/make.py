"""Photos -> descriptions -> concepts -> chains -> checks -> a folder ready for review.

The folder: config.json, cache/ (paid replies), concepts.json, chains.jsonl (chains that pass),
rejected.jsonl (the others, each with its reasons), report.json, review.csv, decisions.jsonl and
reviewed.jsonl. Every file grows by whole lines or is replaced in one step; the same command
started again goes on where it was, and pays for nothing twice.
"""

import json
import logging
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from finer1_lite import cot, prompts
from finer1_lite.chains import checks, concepts, formats, review, teacher_prompts
from finer1_lite.chains.client import Ledger, Teacher, TeacherError, in_parallel
from finer1_lite.chains.concepts import Selection
from finer1_lite.data import wording
from finer1_lite.data.chain_text import fold
from finer1_lite.runtime import files
from finer1_lite.runtime.files import require_none
from finer1_lite.species import Collection, Photo

log = logging.getLogger("finer1_lite")


@dataclass(frozen=True)
class Settings:
    """What chains depend on besides data and teacher."""

    descriptions: int = 6  # of each picture
    extract: str = "teacher"  # who names concepts: teacher | yake
    beta: float = concepts.BETA
    neighbours: int = 3  # classes that concepts must tell apart
    per_picture: int = 1  # chains of each picture that pass
    rounds: int = 4  # tries for each of them
    guess: bool = False  # the teacher is not told the label: its chain is kept if it is right
    seed: int = 0

    def check(self) -> None:
        """Raise a DataError naming every setting that makes no sense."""
        counts = ("descriptions", "neighbours", "per_picture", "rounds")
        wrong = {name: "a whole number from 1 on" for name in counts if getattr(self, name) < 1}
        if self.extract not in ("teacher", "yake"):
            wrong["extract"] = "one of teacher, yake"
        if not 0 <= self.beta <= 1:
            wrong["beta"] = "from 0 to 1 (at 1 no concept is worth its price)"
        require_none([f"{name} = {getattr(self, name)!r}: {m}" for name, m in wrong.items()])


@dataclass
class ChainJob:
    """One start of the job that fills a folder with chains."""

    folder: Path
    collection: Collection
    teacher: Teacher
    settings: Settings
    ledger: Ledger
    bars: bool = True  # progress bars
    whole: bool = True  # a picture without a chain at the end is a fault, and not a warning

    def __post_init__(self) -> None:
        self._thoughts: dict[str, list[str]] = defaultdict(list)  # photo -> folded thoughts
        self._held: set[str] = set()  # ids of the chains that an earlier start wrote
        self._lock = threading.Lock()

    def build(self) -> dict:
        """Do the job; what report.json holds. DataError at the end where chains are missing."""
        self.settings.check()
        shown = self.collection.train
        told = [f"{p.id}/{p.species}" for p in shown]
        own = [files.digest(p.source) for p in shown if isinstance(p.source, Path)]
        config = {"job": "chains of thought", "coarse": self.collection.coarse}
        config |= {"pictures": len(shown), "data": files.fingerprint(told)}
        config |= {"photographs": files.fingerprint(own)}
        held = (files.run_config(self.folder / files.CONFIG) or {}).get("preset", {})
        more = {n: held[n] for n in ("rounds", "per_picture") if n in held}  # no chain depends on
        config["preset"] = asdict(self.settings) | more | {"teacher": self.teacher.identity}
        mend = "choose another --out (lab: --name), or delete it"
        files.open_folder(self.folder, config, fresh=False, mend=mend)
        try:
            described = self._describe()
            stopped = self._write_chains(described, self._select_concepts(described))
        except TeacherError as error:
            stopped = [str(error)]
        report = self._report(stopped)
        headline = f"not all is done ({self.folder}); what is done is kept, and the same "
        require_none(stopped, headline + "command goes on from here:")
        return report

    # --- descriptions and concepts -----------------------------------------------------------

    def _describe(self) -> dict[str, list[str]]:
        """Photo -> its descriptions. TeacherError where one is missing."""
        found: dict[str, list[str]] = {}
        count, views = self.settings.descriptions, len(teacher_prompts.DESCRIPTIONS)

        def act(photo: Photo) -> None:
            texts = []
            for view in range(min(count, views)):
                prompt = teacher_prompts.description_prompt(self.collection.coarse, view)
                replies = self.teacher.ask(photo, prompt, list(range(view, count, views)))
                texts += [reply.text for reply in replies]
            found[photo.id] = texts

        problems = in_parallel(self.teacher, self.collection.train, act, "descriptions", self.bars)
        if problems:
            raise TeacherError("; ".join(problems[:5]))
        return found

    def _select_concepts(self, described: dict[str, list[str]]) -> dict[str, Selection]:
        """Class -> its concepts against its nearest classes that have pictures."""
        own: dict[str, list[list[str]]] = {}
        for photo in self.collection.train:
            own.setdefault(photo.species, []).append(described[photo.id])
        phrases, selected = {}, {}
        for name, pictures in own.items():
            every = list(dict.fromkeys(text for texts in pictures for text in texts))
            if self.settings.extract == "yake":
                phrases[name] = concepts.extract(every)
            else:
                (reply,) = self.teacher.ask(None, teacher_prompts.concepts_prompt(every), [0])
                phrases[name] = concepts.read_list(reply.text)
        for name in own:
            near = self.collection.neighbours(name, list(own))[: self.settings.neighbours]
            every = concepts.merge(p for c in (name, *near) for p in phrases[c])
            visible = [c for c in every if not wording.invisible(c)]
            texts = {c: own[c] for c in (name, *near)}
            selected[name] = concepts.select(name, texts, visible, beta=self.settings.beta)
        rows = {name: asdict(selection) for name, selection in selected.items()}
        write_json(self.folder / "concepts.json", rows)
        return selected

    # --- chains ------------------------------------------------------------------------------

    def _write_chains(
        self, described: dict[str, list[str]], selected: dict[str, Selection]
    ) -> list[str]:
        """Write a chain for every picture that lacks one; returns what went wrong."""
        path = self.folder / "chains.jsonl"
        for record in formats.read_records(path, torn=True) if path.exists() else ():
            self._thoughts[record.photo].append(fold(record.parsed().think))
            self._held.add(record.id)

        def act(photo: Photo) -> None:
            self._write_one(photo, described[photo.id], selected[photo.species])

        problems = in_parallel(self.teacher, self.collection.train, act, "chains", self.bars)
        needed, rounds = self.settings.per_picture, self.settings.rounds
        passed = {p.id: len(self._thoughts[p.id]) for p in self.collection.train}
        what = f"of {needed} chains passed in {rounds} rounds (reasons: rejected.jsonl; "
        what += "`cot make --rounds N` with more goes on from here)"
        missing = [f"{photo}: {n} {what}" for photo, n in passed.items() if n < needed]
        if problems or self.whole:
            return problems or missing
        for line in missing:
            log.warning(line)
        return []

    def _write_one(self, photo: Photo, texts: Sequence[str], selection: Selection) -> None:
        """Go through the rounds of one picture; one rejected before is answered from the cache."""
        kept = concepts.of_picture(selection, texts)
        coarse, name, needed = self.collection.coarse, photo.species, self.settings.per_picture
        for sample in range(self.settings.rounds * needed):
            if len(self._thoughts[photo.id]) >= needed:
                return
            if f"{photo.id}#{sample}" in self._held:
                continue
            rng = random.Random(f"candidates/{self.settings.seed}/{photo.id}/{sample}")
            chosen = cot.candidates(self.collection.neighbours(name), name, rng)
            if self.settings.guess:  # who is given no concepts cannot be held to them
                prompt = teacher_prompts.guess_prompt(coarse, chosen)
            else:
                given = (chosen, kept, selection.dropped)
                prompt = teacher_prompts.chain_prompt(coarse, name, *given)
            (reply,) = self.teacher.ask(photo, prompt, [sample])
            record = formats.Record(
                id=f"{photo.id}#{sample}",
                photo=photo.id,
                species=name,
                question=prompts.question("think", coarse),
                chain=reply.text.strip(),
                images=(photo.id,),
                aliases=self.collection.of(name).aliases,
                candidates=prompt.candidates,
                concepts=prompt.concepts,
                dropped=prompt.dropped,
                teacher=self.teacher.identity["teacher"],
                sample=sample,
            )
            with self._lock:
                self._accept(record)

    def _accept(self, record: formats.Record) -> None:
        """Append a chain to the good ones, or to the others with its problems."""
        parsed = record.parsed()
        problems = checks.check(parsed)
        thought = fold(parsed.think)
        if any(thought in others for others in self._thoughts.values()):
            problems.append(checks.ChainProblem("duplicate", "the same thought as another chain's"))
        row = formats.to_row(record)
        if problems:
            row["findings"] = [asdict(p) for p in problems]
            formats.append_row(self.folder / "rejected.jsonl", row)
        else:
            formats.append_row(self.folder / "chains.jsonl", row)
            self._thoughts[record.photo].append(thought)

    # --- the end -----------------------------------------------------------------------------

    def _report(self, stopped: Sequence[str]) -> dict:
        """Sort the files, write report and review table, apply decisions made so far."""
        chains = [formats.from_row(row).parsed() for row in self._sorted_rows("chains.jsonl")]
        rejected = self._sorted_rows("rejected.jsonl")
        reasons = Counter(f["code"] for row in rejected for f in row["findings"])
        paid = Ledger(self.ledger.price_in, self.ledger.price_out)  # over all starts
        for reply in map(files.load, (self.folder / "cache").glob("*/*.json")):
            tokens = {name: reply[name] for name in ("tokens_in", "tokens_out")}
            paid.counts.update(answers=1, **tokens)
        report = {
            "pictures": len(self.collection.train),
            "chains": len(chains),
            "rejected": len(rejected),
            "reasons": dict(reasons.most_common()),
            "habit": checks.habit(chains),
            "place of the label": dict(sorted(Counter(c.place for c in chains).items())),
            "this start": self.ledger.to_dict(),
            "all paid": paid.to_dict(),
            "stopped": list(stopped),
            "review": review.summary(review.apply_review(self.folder)) if chains else {},
        }
        write_json(self.folder / "report.json", report)
        return report

    def _sorted_rows(self, name: str) -> list[dict]:
        """Rows in the collection's order, each once (a killed start may have written one again)."""
        path = self.folder / name
        if not path.exists():
            return []
        order = {p.id: i for i, p in enumerate(self.collection.train)}
        once = {row["id"]: row for _, row in files.read(path, torn=True)}
        rows = sorted(once.values(), key=lambda row: (order[row["photo"]], row["sample"]))
        files.write_lines(path, rows)
        return rows


def write_json(path: Path, value: object) -> None:
    """Write a JSON file in one step."""
    files.write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1).encode())


def triplet_rows(collection: Collection, seed: int = 0) -> Iterator[formats.TripletRow]:
    """Draw a triplet for every training picture, as stage 2 would."""
    from finer1_lite.triplets import draw_triplets

    question = prompts.question("think", collection.coarse)
    for t in draw_triplets(collection, len(collection.train), seed, 0):
        pictures = (t.anchor.id, t.positive.id, t.negative.id)
        negative = {"negative_label": t.negative.species}
        yield formats.TripletRow(*pictures, question, t.anchor.species, negative)
