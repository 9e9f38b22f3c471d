"""What is wrong with a question file or a folder of pictures, before any model sees it.

`python -m finer1_lite audit FILE...` prints the findings. A finding is a count with its
total and a few examples; nothing is changed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from finer1_lite import rewards
from finer1_lite.data import folders, images
from finer1_lite.evals import controls, scoring
from finer1_lite.evals import questions as question_files
from finer1_lite.evals.questions import Question
from finer1_lite.runtime.files import DataError

EXAMPLES = 3
HASH_SIDE = 8  # a picture's fingerprint: 8 x 8 comparisons of neighbours, 64 bits
NEAR = 6  # bits in which near-duplicates may differ


@dataclass(frozen=True)
class Finding:
    """`count` of `total` rows (or pictures, or names) have this; examples, cut short."""

    what: str
    count: int
    total: int
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        line = f"{self.what}: {self.count:,} of {self.total:,}"
        shown = "".join(f"\n    e.g. {e}" for e in self.examples[:EXAMPLES])
        return line + (shown if self.count else "")


def audit_questions(paths: Iterable[Path | str]) -> list[Finding]:
    """Findings over all files together. Lines that cannot be read are findings too.

    DataError for a file that is not there or is not named <data set>_<split>.jsonl.
    """
    questions, broken, unreadable = [], [], []
    for path in paths:
        try:
            for number, question, problem in question_files.scan(path):
                questions += [question] if question else []
                broken += [f"{path}, line {number}: {problem}"] if problem else []
        except OSError as error:
            unreadable.append(f"{path}: cannot be read ({error.strerror})")
        except DataError as error:
            unreadable += error.problems
    if unreadable:
        raise DataError(unreadable, "nothing to audit in:")
    rows = len(questions) + len(broken)
    return [
        Finding("rows that cannot be asked", len(broken), rows, tuple(broken)),
        *_positions(questions),
        *_names(questions),
        _repeats(questions),
        *_splits(questions),
        *_released_rules(questions),
    ]


def _found(what: str, rows: Sequence[Question], total: int, show) -> Finding:
    return Finding(what, len(rows), total, tuple(show(q) for q in rows[:EXAMPLES]))


def _positions(questions: Sequence[Question]) -> list[Finding]:
    """How often the right option stands at each position."""
    places = Counter(q.options.index(q.label) for q in questions)
    ranks = ("first", "second", "third", "fourth")
    return [
        Finding(f"the right option stands {ranks[i] if i < 4 else i + 1}", n, len(questions))
        for i, n in sorted(places.items())
    ]


def _names(questions: Sequence[Question]) -> list[Finding]:
    substring = [q for q in questions if any(q.label in o for o in q.options if o != q.label)]
    folded = [
        q
        for q in questions
        if any(
            rewards.normalise(q.label) in rewards.normalise(o) for o in q.options if o != q.label
        )
    ]

    def show(q):
        return f"{q.label!r} in {[o for o in q.options if o != q.label]}"

    return [
        _found("the label is part of a wrong option", substring, len(questions), show),
        _found("the same, case, dashes and articles aside", folded, len(questions), show),
    ]


def _repeats(questions: Sequence[Question]) -> Finding:
    """One picture with two labels; the same picture asked twice alike is no contradiction."""
    labels = defaultdict(set)
    for q in questions:
        labels[q.dataset, q.image_path].add(q.label)
    torn = [f"{path}: {sorted(found)}" for (_, path), found in labels.items() if len(found) > 1]
    return Finding("pictures with two different answers", len(torn), len(labels), tuple(torn))


def _splits(questions: Sequence[Question]) -> list[Finding]:
    """Classes that are an answer on both sides; unseen classes that seen rows mention."""
    findings = []
    for dataset in dict.fromkeys(q.dataset for q in questions):
        answers, offered = defaultdict(set), defaultdict(set)
        for q in questions:
            if q.dataset == dataset:
                answers[q.split].add(q.label)
                offered[q.split].update(q.options)
        both = sorted(answers["seen"] & answers["unseen"])
        if len(answers) == 2:
            findings += [
                Finding(
                    f"{dataset}: classes both seen and unseen",
                    len(both),
                    len(answers["seen"] | answers["unseen"]),
                    tuple(both),
                ),
                Finding(
                    f"{dataset}: unseen classes that stand as options in seen rows",
                    len(offered["seen"] & answers["unseen"]),
                    len(answers["unseen"]),
                ),
            ]
    return findings


def _released_rules(questions: Sequence[Question]) -> list[Finding]:
    """What the released scoring makes of these rows."""
    names = {
        d: [n.lower() for n in found] for d, found in question_files.classes_of(questions).items()
    }
    credited, guessed, shared = [], [], {}
    for q in questions:
        word = scoring.released_coarse(q.image_path)
        if word == "object":
            guessed.append(q)
        if word == "car" and q.label not in shared:
            short = " ".join(q.label.lower().split()[:-2])
            shared[q.label] = any(
                short in other for other in names[q.dataset] if other != q.label.lower()
            )
        if word == "car" and shared[q.label]:
            credited.append(q)
    return [
        _found(
            "released open world: another class's name would be counted as right",
            credited,
            len(questions),
            lambda q: repr(q.label),
        ),
        _found(
            "released open world: the coarse word falls back to 'object'",
            guessed,
            len(questions),
            lambda q: q.image_path,
        ),
    ]


def blind_lines(questions: Sequence[Question]) -> list[str]:
    """What answerers without eyes score, released beside ours, in words."""
    lines = [
        f"{who}: {100 * by['released']:.1f} % released, {100 * by['ours']:.1f} % ours"
        for who, by in question_files.score_answerers(questions).items()
    ]
    rows = [(q.dataset + q.split, q.options, q.label) for q in questions]
    share = sum(controls.least_used(rows)) / max(len(rows), 1)
    return [*lines, f"least used as a wrong option (order-free): {100 * share:.1f} %"]


# --- pictures ------------------------------------------------------------------------------


def fingerprint(image: Image.Image) -> int:
    """Difference hash: which of 64 neighbouring pairs of a 9 x 8 grey copy rise. 64 bits."""
    grey = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.int16)
    bits = (values[:, 1:] > values[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_duplicates(
    train: dict[str, int], test: dict[str, int], bits: int = NEAR
) -> list[tuple[str, str, int]]:
    """(training picture, test picture, bits that differ) of every pair at most `bits` apart."""
    if not train or not test:
        return []
    names = list(test)
    codes = np.array([test[name] for name in names], dtype=np.uint64)
    found = []
    for name, code in train.items():
        apart = np.bitwise_count(codes ^ np.uint64(code))
        found += [(name, names[i], int(apart[i])) for i in np.flatnonzero(apart <= bits)]
    return sorted(found, key=lambda pair: (pair[2], pair))


def audit_folder(root: Path) -> list[Finding]:
    """Near-duplicates between the train and test pictures of a folder of class folders.

    Without a split in index.csv every pair of one folder is looked at. Pictures that
    cannot be read are a finding.
    """
    classes, problems = folders.read_folder(root, shots=0)
    if not classes:
        raise DataError(problems, f"nothing to audit in {root}:")
    codes: dict[str, dict[str, int]] = defaultdict(dict)
    for one in classes:
        for file in one.files:
            codes[file.split][file.id] = fingerprint(images.decode(file.path))
    total = sum(map(len, codes.values()))
    sides = ("train", "test") if codes["train"] and codes["test"] else ("", "")
    pairs = near_duplicates(codes[sides[0]], codes[sides[1]])
    if sides == ("", ""):
        pairs = [pair for pair in pairs if pair[0] < pair[1]]
    shown = tuple(f"{a} ~ {b} ({n} of 64 bits differ)" for a, b, n in pairs)
    tests = {b for _, b, _ in pairs}
    return [
        Finding(f"{root}: problems of files and tables", len(problems), total, tuple(problems)),
        Finding(
            f"{root}: test pictures with a near-duplicate in training",
            len(tests),
            len(codes[sides[1]]),
            shown,
        ),
    ]


def report_lines(paths: Sequence[Path]) -> list[str]:
    """The lines that the command prints: question files and picture folders in any mix."""
    files = [path for path in paths if not path.is_dir()]
    lines = []
    if files:
        lines += [str(finding) for finding in audit_questions(files)]
        questions = [q for path in files for _, q, _ in question_files.scan(path) if q]
        lines += ["", "without looking at a picture:", *blind_lines(questions)]
    for path in paths:
        if path.is_dir():
            lines += [str(finding) for finding in audit_folder(path)]
    return lines
