"""What is wrong with a question file or a folder of pictures, before any model sees it.

`python -m finer1_lite audit FILE...` prints the findings. A finding is a count with its
total and a few examples; nothing is changed.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from finer1_lite.data import folders, images, scoring
from finer1_lite.data.benchmark import Question
from finer1_lite.evals import controls, questions
from finer1_lite.rewards import normalise
from finer1_lite.runtime.files import DataError

EXAMPLES = 3
HASH_SIDE = 8  # a picture's difference hash: 8 x 8 comparisons of neighbours, 64 bits
NEAR = 6  # bits in which near-duplicates may differ


@dataclass(frozen=True)
class Finding:
    """`count` of `total` rows (or pictures, or names) have this; examples, cut short."""

    what: str
    count: int
    total: int
    examples: Sequence[str] = ()

    def __str__(self) -> str:
        line = f"{self.what}: {self.count:,} of {self.total:,}"
        shown = "".join(f"\n    e.g. {e}" for e in self.examples[:EXAMPLES])
        return line + (shown if self.count else "")


# --- question files --------------------------------------------------------------------------


def audit_questions(paths: Iterable[Path | str]) -> list[Finding]:
    """Findings over all files together. Lines that cannot be read are findings too.

    DataError for a file that is not there or is not named <data set>_<split>.jsonl.
    """
    found, broken, unreadable = questions.gather(paths)
    if unreadable:
        raise DataError(unreadable, "nothing to audit in:")
    return [
        Finding("rows that cannot be asked", len(broken), len(found) + len(broken), broken),
        *_positions(found),
        *_names(found),
        _repeats(found),
        *_splits(found),
        *_released_rules(found),
    ]


def _rows(
    what: str, found: Sequence[Question], bad: Callable[[Question], bool], show: Callable
) -> Finding:
    """Of how many questions something holds."""
    rows = [q for q in found if bad(q)]
    return Finding(what, len(rows), len(found), [str(show(q)) for q in rows[:EXAMPLES]])


def _positions(found: Sequence[Question]) -> list[Finding]:
    """How often the right option stands at each position."""
    places = Counter(q.options.index(q.label) for q in found)
    ranks = {0: "first", 1: "second", 2: "third", 3: "fourth"}
    what = "the right option stands"
    return [Finding(f"{what} {ranks.get(i, i + 1)}", places[i], len(found)) for i in sorted(places)]


def _wrong(question: Question) -> list[str]:
    return [option for option in question.options if option != question.label]


def _names(found: Sequence[Question]) -> list[Finding]:
    def substring(q: Question) -> bool:
        return any(q.label in option for option in _wrong(q))

    def folded(q: Question) -> bool:
        return any(normalise(q.label) in normalise(option) for option in _wrong(q))

    def show(q: Question) -> str:
        return f"{q.label!r} in {_wrong(q)}"

    return [
        _rows("the label is part of a wrong option", found, substring, show),
        _rows("the same, case, dashes and articles aside", found, folded, show),
    ]


def _repeats(found: Sequence[Question]) -> Finding:
    """One picture with two labels; the same picture asked twice alike is no contradiction."""
    labels = defaultdict(set)
    for q in found:
        labels[q.dataset, q.photo].add(q.label)
    torn = [f"{path}: {sorted(named)}" for (_, path), named in labels.items() if len(named) > 1]
    return Finding("pictures with two different answers", len(torn), len(labels), torn)


def _splits(found: Sequence[Question]) -> list[Finding]:
    """Classes that are an answer on both sides; unseen classes that seen rows mention."""
    findings = []
    for dataset in dict.fromkeys(q.dataset for q in found):
        rows = [q for q in found if q.dataset == dataset]
        seen, unseen = ({q.label for q in rows if q.split == split} for split in questions.SPLITS)
        if not (seen and unseen):
            continue
        offered = {option for q in rows if q.split == "seen" for option in q.options}
        both = sorted(seen & unseen)
        shown = len(offered & unseen)
        findings += [
            Finding(
                f"{dataset}: classes both seen and unseen", len(both), len(seen | unseen), both
            ),
            Finding(
                f"{dataset}: unseen classes that stand as options in seen rows", shown, len(unseen)
            ),
        ]
    return findings


def _released_rules(found: Sequence[Question]) -> list[Finding]:
    """What the released scoring makes of these rows."""
    classes = questions.classes_of(found)
    names = {dataset: [name.lower() for name in names] for dataset, names in classes.items()}
    shared: dict[str, bool] = {}  # label -> whether another class's name holds its short form

    def credited(q: Question) -> bool:
        if scoring.released_coarse(q.photo) != "car":
            return False
        if q.label not in shared:
            label = q.label.lower()
            short = " ".join(label.split()[:-2])
            shared[q.label] = any(short in other for other in names[q.dataset] if other != label)
        return shared[q.label]

    def guessed(q: Question) -> bool:
        return scoring.released_coarse(q.photo) == "object"

    world = "released open world"
    other = f"{world}: another class's name would be counted as right"
    word = f"{world}: the coarse word falls back to 'object'"
    return [
        _rows(other, found, credited, lambda q: repr(q.label)),
        _rows(word, found, guessed, lambda q: q.photo),
    ]


def control_lines(found: Sequence[Question]) -> list[str]:
    """What image-free answerers score, released beside ours, in words."""
    lines = [
        f"{who}: {100 * by['released']:.1f} % released, {100 * by['ours']:.1f} % ours"
        for who, by in controls.score_completions(found).items()
    ]
    rows = [(q.dataset + q.split, q.options, q.label) for q in found]
    share = sum(controls.least_used(rows)) / max(len(rows), 1)
    return [*lines, f"least used as a wrong option (order-free): {100 * share:.1f} %"]


# --- pictures --------------------------------------------------------------------------------


def difference_hash(image: Image.Image) -> int:
    """Which of 64 neighbouring pairs of a 9 x 8 grey copy rise: 64 bits (dHash)."""
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
            codes[file.split][file.id] = difference_hash(images.decode(file.path))
    total = sum(map(len, codes.values()))
    split = bool(codes["train"] and codes["test"])
    train, test = (codes["train"], codes["test"]) if split else (codes[""], codes[""])
    pairs = [pair for pair in near_duplicates(train, test) if split or pair[0] < pair[1]]
    shown = [f"{a} ~ {b} ({n} of 64 bits differ)" for a, b, n in pairs]
    near = len({b for _, b, _ in pairs})
    what = f"{root}: test pictures with a near-duplicate in training"
    return [
        Finding(f"{root}: problems of files and tables", len(problems), total, problems),
        Finding(what, near, len(test), shown),
    ]


def report_lines(paths: Sequence[Path]) -> list[str]:
    """The lines that the command prints: question files and picture folders in any mix."""
    files = [path for path in paths if not path.is_dir()]
    lines = []
    if files:
        lines += [str(finding) for finding in audit_questions(files)]
        found = [q for path in files for _, q, _ in questions.scan(path) if q]
        lines += ["", "without looking at a picture:", *control_lines(found)]
    for path in paths:
        if path.is_dir():
            lines += [str(finding) for finding in audit_folder(path)]
    return lines
