"""A person's decisions about chains: kept at once, appended only, undone by appending.

`decisions.jsonl` is replayed from its beginning, so that a panel that is closed or a
computer that dies loses nothing. The same decisions can be made in a CSV file.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finer1_lite.chains import checks
from finer1_lite.chains.checks import Finding
from finer1_lite.chains.formats import Record
from finer1_lite.runtime.files import DataError, write_atomically
from finer1_lite.runtime.files import read as read_lines

ACTIONS = ("keep", "drop", "edit")
FILTERS = ("all", "undecided", "kept", "dropped", "edited", "with findings")
COLUMNS = ("id", "species", "findings", "chain", "decision", "new_chain")


@dataclass(frozen=True)
class Decision:
    action: str  # keep | drop | edit
    chain: str = ""  # the new text of an edit


class Review:
    """Records, and what was decided about them so far."""

    def __init__(self, records: Iterable[Record], path: Path):
        self.records = {r.id: r for r in records}
        self.path = Path(path)
        self.history: list[tuple[str, Decision]] = []
        for _, row in read_lines(self.path, torn=True) if self.path.exists() else ():
            self._replay(row)

    def _replay(self, row: dict) -> None:
        if row["action"] == "undo":
            self.history.pop()
        else:
            self.history.append((row["id"], Decision(row["action"], row.get("chain", ""))))

    def _append(self, row: dict) -> None:
        """On the disk before the next click; a line torn by a kill is closed first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as stream:
            stream.seek(0, os.SEEK_END)
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":
                    self._cut_torn(stream)
            stream.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    @staticmethod
    def _cut_torn(stream) -> None:
        stream.seek(0)
        whole = stream.read().rfind(b"\n") + 1
        stream.truncate(whole)
        stream.seek(0, os.SEEK_END)

    def decide(self, id_: str, action: str, chain: str = "") -> None:
        """ValueError for an unknown id or action, or an edit without text."""
        if id_ not in self.records:
            raise ValueError(f"there is no chain {id_!r}")
        if action not in ACTIONS:
            raise ValueError(f"{action!r}: choose one of {', '.join(ACTIONS)}")
        if action == "edit" and not chain.strip():
            raise ValueError(f"{id_}: an edit needs the new chain; drop it instead")
        row = {"id": id_, "action": action} | ({"chain": chain} if action == "edit" else {})
        self._append(row)
        self._replay(row)

    def undo(self) -> str | None:
        """Take the last decision back; returns whose it was, None where there is none."""
        if not self.history:
            return None
        id_ = self.history[-1][0]
        self._append({"action": "undo"})
        self._replay({"action": "undo"})
        return id_

    # --- what it comes to ------------------------------------------------------------------

    @property
    def decisions(self) -> dict[str, Decision]:
        """The last decision of each record, edits that were kept later included."""
        state: dict[str, Decision] = {}
        for id_, decision in self.history:
            old = state.get(id_)
            if decision.action == "keep" and old and old.chain:
                decision = Decision("edit", old.chain)  # keeping an edited chain keeps the edit
            state[id_] = decision
        return {i: d for i, d in state.items() if i in self.records}

    def current(self, id_: str) -> Record:
        """The record, with its new text where it was edited."""
        decision = self.decisions.get(id_)
        chain = decision.chain if decision and decision.chain else self.records[id_].chain
        return replace(self.records[id_], chain=chain)

    def findings(self, id_: str) -> list[Finding]:
        """Of the text as it now stands."""
        return checks.check(self.current(id_).parsed())

    def ids(self, which: str = "all") -> list[str]:
        """The records under a filter, in file order."""
        if which not in FILTERS:
            raise ValueError(f"{which!r}: choose one of {', '.join(FILTERS)}")
        if which == "with findings":
            return [i for i in self.records if self.findings(i)]
        done = self.decisions
        wanted = {"undecided": None, "kept": "keep", "dropped": "drop", "edited": "edit"}
        return [
            i
            for i in self.records
            if which == "all" or (done[i].action if i in done else None) == wanted[which]
        ]

    def results(self, undecided: bool = False) -> list[Record]:
        """The chains that stay: kept and edited ones, and undecided ones where asked for.

        An edit that brought a problem stays out: a person's slip must not reach the training.
        """
        done = self.decisions
        return [
            self.current(i)
            for i in self.records
            if (done[i].action != "drop" if i in done else undecided)
            and not (i in done and done[i].action == "edit" and self.findings(i))
        ]

    # --- the same in a table ---------------------------------------------------------------

    def write_csv(self, path: Path) -> None:
        """A row a chain; fill `decision` with keep, drop or edit, the new text in `new_chain`."""
        stream = io.StringIO(newline="")
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        done = self.decisions
        for id_, record in self.records.items():
            decision = done.get(id_, Decision(""))
            found = "; ".join(map(str, self.findings(id_)))
            writer.writerow(
                [id_, record.species, found, record.chain, decision.action, decision.chain]
            )
        write_atomically(path, stream.getvalue().encode("utf-8-sig"))

    def read_csv(self, path: Path) -> int:
        """Take over what the table says anew; returns how many decisions that was.

        DataError with every problem, before anything is taken over.
        """
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            lacking = {"id", "decision", "new_chain"} - set(reader.fieldnames or ())
            rows = list(reader)
        problems = [f"{path}: lacks the column {name}" for name in sorted(lacking)]
        done, new = self.decisions, []
        for number, row in enumerate(rows if not lacking else (), 2):
            action, chain = (row["decision"] or "").strip().lower(), row["new_chain"] or ""
            chain = chain.replace("\r\n", "\n")  # spreadsheets
            problem = self._problem(row["id"], action, chain)
            if problem:
                problems.append(f"{path}, row {number}: {problem}")
            decision = Decision(action, chain if action == "edit" else "")
            if action and done.get(row["id"]) != decision:
                new.append((row["id"], decision))
        if problems:
            raise DataError(problems, "no decision was taken over; to mend:")
        for id_, decision in new:
            self.decide(id_, decision.action, decision.chain)
        return len(new)

    def _problem(self, id_: str, action: str, chain: str) -> str | None:
        if id_ not in self.records:
            return f"there is no chain {id_!r}"
        if action and action not in ACTIONS:
            return f"the decision {action!r} must be one of {', '.join(ACTIONS)}, or empty"
        if action == "edit" and not chain.strip():
            return "edit needs the whole new text in new_chain"
        return None


def summary(review: Review) -> dict[str, int]:
    """How many stand where."""
    done: Sequence[Decision] = list(review.decisions.values())
    counts = {action: sum(d.action == action for d in done) for action in ACTIONS}
    return counts | {"undecided": len(review.records) - len(done)}
