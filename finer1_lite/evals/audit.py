"""What is wrong with a question file or a folder of pictures, before any model sees it.

`python -m finer1_lite audit FILE...` prints the findings. A finding is a count with its
total and a few examples; nothing is changed.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from finer1_lite.data import duplicates, folders, scoring
from finer1_lite.data.benchmark import Question
from finer1_lite.evals import controls, questions
from finer1_lite.rewards import normalise
from finer1_lite.runtime.files import DataError

EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """`count` of `total` rows (or pictures, or names) have this; examples, cut short."""

    what: str
    count: int
    total: int
    examples: Sequence[str] = ()

    def __str__(self) -> str:
        return self.text()

    def text(self, every: bool = False) -> str:
        """The finding with a few of its examples, or with every one."""
        line = f"{self.what}: {self.count:,} of {self.total:,}"
        shown = self.examples if every else self.examples[:EXAMPLES]
        lines = "".join(f"\n    e.g. {one}" for one in shown)
        left = len(self.examples) - len(shown)
        more = f"\n    and {left} more (--all)" if left else ""
        return line + (lines + more if self.count else "")


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
    return Finding(what, len(rows), len(found), [str(show(q)) for q in rows])


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


def audit_folder(root: Path, reading: folders.Reading = folders.PLAIN) -> list[Finding]:
    """Near-duplicates between the train and test pictures of a folder of photographs.

    Without a split every pair is looked at. Pictures that cannot be read, and those that carry
    two labels, are a finding.
    """
    classes, problems = folders.read_folder(root, shots=0, reading=reading)
    if not classes:
        raise DataError(problems, f"nothing to audit in {root}:")
    files = [file for one in classes for file in one.files]
    split = {file.split for file in files} >= {"train", "test"}
    train, test = ([f for f in files if f.split == r or not split] for r in ("train", "test"))
    found = duplicates.pairs([file.look for file in train], [file.look for file in test])
    named = [(bits, train[i].id, test[j].id) for i, j, bits in found]
    pairs = sorted(pair for pair in named if split or pair[1] < pair[2])
    shown = [f"{a} ~ {b} ({bits} of 64 bits differ)" for bits, a, b in pairs]
    what = f"{root}: test pictures with a near-duplicate in training"
    return [
        Finding(f"{root}: problems of files and tables", len(problems), len(files), problems),
        Finding(what, len({b for _, _, b in pairs}), len(test), shown),
    ]


def report_lines(paths: Sequence[Path], every: bool = False) -> list[str]:
    """The lines that the command prints: question files and picture folders in any mix.

    every: show each picture and problem instead of a few examples.
    """
    files = [path for path in paths if not path.is_dir()]
    lines = []
    if files:
        lines += [finding.text(every) for finding in audit_questions(files)]
        found = [q for path in files for _, q, _ in questions.scan(path) if q]
        lines += ["", "without looking at a picture:", *control_lines(found)]
    for path in paths:
        if path.is_dir():
            lines += [finding.text(every) for finding in audit_folder(path)]
    return lines
