"""A person's decisions about chains: kept at once, appended only, undone by appending.

`decisions.jsonl` is replayed from its beginning, so that a panel that is closed or a
computer that dies loses nothing. The same decisions can be made in a CSV file.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from finer1_lite.chains import checks, formats
from finer1_lite.chains.formats import Record
from finer1_lite.data import marks, tables
from finer1_lite.runtime.files import DataError, require_none
from finer1_lite.runtime.files import read as read_lines

log = logging.getLogger("finer1_lite")
ACTIONS = ("keep", "drop", "edit")
ACTION_OF = {"undecided": "", "kept": "keep", "dropped": "drop", "edited": "edit"}
FILTERS = ("all", *ACTION_OF, "with findings")
COLUMNS = ("id", "species", "findings", "chain", "decision", "new_chain")


@dataclass(frozen=True)
class Decision:
    """What a person decided about a chain; chain: the new text of an edit."""

    action: str = ""  # keep | drop | edit; empty: none yet
    chain: str = ""


class Review:
    """Records, and what was decided about them so far."""

    def __init__(self, records: Iterable[Record], path: Path) -> None:
        self.records = {r.id: r for r in records}
        self.path = Path(path)
        self.history: list[tuple[str, Decision]] = []
        self.written: dict[str, Decision] = {}  # what the table held when it was last written
        self.undecided = True  # whether chains stay that nobody has decided about
        for _, row in read_lines(self.path, torn=True) if self.path.exists() else ():
            self._replay(row)

    def _replay(self, row: dict) -> None:
        if row["action"] == "undo":  # of the chain named: another process may have gone on
            own = [i for i, (id_, _) in enumerate(self.history) if id_ == row.get("id", id_)]
            for last in own[-1:]:  # none where another process took it back already
                del self.history[last]
        elif row["action"] == "table":
            self.written = self.decisions
        elif row["action"] == "undecided":
            self.undecided = row["stay"]
        else:
            self.history.append((row["id"], Decision(row["action"], row.get("chain", ""))))

    def _add(self, row: dict) -> None:
        formats.append_row(self.path, row)  # on the disk before the next click
        self._replay(row)

    def decide(self, id_: str, action: str, chain: str = "", first: bool = False) -> None:
        """Decide about one chain; ValueError for an unknown id or action, or an empty edit.

        first: what is kept is the first text, and no edit of before.
        """
        problem = self._problem(id_, action, chain)
        if problem or not action:
            raise ValueError(problem or f"{id_}: no decision")
        text = chain or (self.records[id_].chain if first and action == "keep" else "")
        self._add({"id": id_, "action": action} | ({"chain": text} if text else {}))

    def undo(self) -> str | None:
        """Take the last decision back; returns whose it was, None where there is none."""
        if not self.history:
            return None
        id_ = self.history[-1][0]
        self._add({"action": "undo", "id": id_})
        return id_

    def _problem(self, id_: str, action: str, chain: str) -> str | None:
        """What is wrong with a decision; an empty action is none yet."""
        if id_ not in self.records:
            return f"there is no chain {id_!r}"
        if action and action not in ACTIONS:
            return f"the decision {action!r} must be one of {', '.join(ACTIONS)}, or empty"
        if action != "edit" and chain.strip():
            return f"{id_}: new_chain is filled; make the decision edit, or empty it"
        if action == "edit" and not chain.strip():
            return f"{id_}: edit needs the whole new text in new_chain; or drop it"
        mark = marks.problem(chain) if action == "edit" else ""
        return f"{id_}: the new chain {mark}" if mark else None

    # --- what it comes to ------------------------------------------------------------------

    @property
    def decisions(self) -> dict[str, Decision]:
        """The last decision of each record; keeping an edited chain keeps the edit."""
        state: dict[str, Decision] = {}
        for id_, decision in self.history:
            edit = state.get(id_, Decision()).chain
            if decision.action == "keep":  # with a text: the first one, as the table says
                decision = (
                    Decision("edit", edit) if edit and not decision.chain else Decision("keep")
                )
            state[id_] = decision
        return {i: d for i, d in state.items() if i in self.records}

    def current(self, id_: str) -> Record:
        """Return the record, with its new text where it was edited."""
        record = self.records[id_]
        return replace(record, chain=self.decisions.get(id_, Decision()).chain or record.chain)

    def problems(self, id_: str) -> list[checks.ChainProblem]:
        """Check the text as it now stands."""
        return checks.check(self.current(id_).parsed())

    def ids(self, which: str = "all") -> list[str]:
        """Return the records under one of `FILTERS`, in file order."""
        if which == "all":
            return list(self.records)
        if which == "with findings":
            return [i for i in self.records if self.problems(i)]
        decisions = self.decisions
        return [i for i in self.records if decisions.get(i, Decision()).action == ACTION_OF[which]]

    def results(self, undecided: bool = False) -> list[Record]:
        """Return the chains that stay: kept and edited ones; undecided: these too.

        An edit that brought a problem stays out: a person's slip must not reach the training.
        """
        out = {*self.ids("dropped"), *self.turned_down()}
        out.update([] if undecided else self.ids("undecided"))
        return [self.current(id_) for id_ in self.records if id_ not in out]

    def turned_down(self) -> dict[str, str]:
        """The edits that bring a problem, and so stay out: id -> row of review.csv and why."""
        edited = set(self.ids("edited"))
        return {
            id_: f"review.csv, row {row} ({id_}): " + "; ".join(map(str, problems))
            for row, id_ in enumerate(self.records, 2)
            if id_ in edited and (problems := self.problems(id_))
        }

    # --- the same in a table ---------------------------------------------------------------

    def write_csv(self, path: Path) -> None:
        """Write a row a chain; a person fills in keep, drop or edit, and the text of an edit."""
        decisions = self.decisions
        rows = []
        for id_, record in self.records.items():
            made = decisions.get(id_, Decision())
            found = "; ".join(map(str, self.problems(id_)))
            rows.append([id_, record.species, found, record.chain, made.action, made.chain])
        tables.write(path, COLUMNS, rows)
        if self.written != decisions:
            self._add({"action": "table"})  # what a row then says otherwise is a person's

    def read_csv(self, path: Path) -> int:
        """Take over what is new in the table, or nothing (DataError, all problems); how many."""
        table = tables.read(path, [("id",), ("decision",), ("new_chain",)], exact=True)
        table.say_unused(COLUMNS)
        problems = table.problems
        decisions, new, told = self.decisions, [], {}
        for number, row in table.rows:
            action = row["decision"].strip().lower()
            chain = row["new_chain"].replace("\r\n", "\n")  # spreadsheets
            found = [self._problem(row["id"], action, chain)]
            if row["id"] in told:
                found.append(f"{row['id']} has a row already; keep one")
            told[row["id"]] = action
            known = self.records.get(row["id"])
            if known and row.get("chain", known.chain).split() != known.chain.split():
                found.append(
                    f"{row['id']}: the chain was changed; write it into new_chain, to edit"
                )
            problems += [f"{path}, row {number}: {problem}" for problem in found if problem]
            decision = Decision(action, chain if action == "edit" else "")
            if action and decision not in (decisions.get(row["id"]), self.written.get(row["id"])):
                new.append((row["id"], action, chain))
        require_none(problems, "no decision was taken over; to mend:")
        if held := [id_ for id_ in self.written if id_ in decisions and not told.get(id_)]:
            said = "%s: %d decisions stand that are not in it (--undo takes the last back): %s"
            log.info(said, path, len(held), ", ".join(held))
        if bare := [id_ for id_ in self.records if id_ not in told]:
            said = "%s: %d chains without a row in it stay undecided (drop leaves one out): %s"
            log.info(said, path, len(bare), ", ".join(bare[:3]))
        for id_, *decided in new:  # a keep takes back the edit that the table held, and no other
            self.decide(id_, *decided, self.written.get(id_, Decision()).action == "edit")
        return len(new)


def summary(review: Review) -> dict[str, int]:
    """Count the chains under each decision, and the edits that were turned down."""
    made = [d.action for d in review.decisions.values()]
    counts = {action: made.count(action) for action in ACTIONS}
    counts["undecided"] = len(review.records) - len(made)
    return counts | {"turned down": len(review.turned_down())}


def open_review(folder: Path) -> Review:
    """Open the review of a folder that `cot make` wrote; DataError where there are no chains."""
    path = folder / "chains.jsonl"
    if not path.exists():
        raise DataError([f"{path} does not exist; run `cot make` first"], "nothing to review:")
    return Review(formats.read_records(path, torn=True), folder / "decisions.jsonl")


def apply_review(folder: Path, undecided: bool | None = None) -> Review:
    """Take over review.csv, write it anew, and write the chains that stay to reviewed.jsonl.

    undecided: chains that passed the checks and that nobody looked at stay too; None: as said last.
    """
    review = open_review(folder)
    table = folder / "review.csv"
    if table.exists() and (taken := review.read_csv(table)):
        log.info("%s: %d new decisions", table, taken)
    review.write_csv(table)
    for reason in review.turned_down().values():
        log.warning("this edit is turned down, and its chain left out: %s", reason)
    if undecided not in (None, review.undecided):
        review._add({"action": "undecided", "stay": undecided})
    if not review.undecided:
        log.info(
            "chains that nobody has decided about are left out: %d", len(review.ids("undecided"))
        )
    formats.write_records(folder / "reviewed.jsonl", review.results(review.undecided))
    return review
