"""What is wrong with a question file or a folder of pictures, before any model sees it.

`python -m finer1_lite audit FILE...` prints the findings. A finding is a count with its
total and a few examples; nothing is changed.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from finer1_lite.data import duplicates, folders, scoring
from finer1_lite.data.benchmark import Question
from finer1_lite.evals import controls, questions
from finer1_lite.rewards import normalise
from finer1_lite.runtime.files import DataError, require_none

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
        shown = self.examples if every else self.examples[:EXAMPLES]
        lines = [f"{self.what}: {self.count:,} of {self.total:,}"]
        lines += [f"    e.g. {one}" for one in shown]
        left = len(self.examples) - len(shown)
        return "\n".join([*lines, f"    and {left} more (--all)"] if left else lines)


def audit_questions(paths: Iterable[Path | str]) -> list[Finding]:
    """Findings over all files together. Lines that cannot be read are findings too.

    DataError for a file that is not there or is not named <data set>_<split>.jsonl.
    """
    found, broken, unreadable = questions.gather(paths)
    require_none(unreadable, "nothing to audit in:")
    return [
        Finding("rows that cannot be asked", len(broken), len(found) + len(broken), broken),
        *_positions(found),
        *_names(found),
        _repeats(found),
        *_splits(found),
        *_released_rules(found),
    ]


def _positions(found: Sequence[Question]) -> list[Finding]:
    """How often the right option stands at each position."""
    places = Counter(q.options.index(q.label) for q in found)
    ranks = {0: "first", 1: "second", 2: "third", 3: "fourth"}
    what = "the right option stands"
    return [Finding(f"{what} {ranks.get(i, i + 1)}", places[i], len(found)) for i in sorted(places)]


def _names(found: Sequence[Question]) -> list[Finding]:
    forms = {
        "the label is part of a wrong option": str,
        "the same, case, dashes and articles aside": normalise,
    }
    findings = []
    for what, form in forms.items():
        wrong = [[o for o in q.options if o != q.label] for q in found]
        pairs = [(q.label, w) for q, w in zip(found, wrong, strict=True)]
        bad = [f"{n!r} in {w}" for n, w in pairs if any(form(n) in form(o) for o in w)]
        findings.append(Finding(what, len(bad), len(found), bad))
    return findings


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
        offered = {option for q in rows if q.split == "seen" for option in q.options}
        both, shown = sorted(seen & unseen), len(offered & unseen)
        names = f"{dataset}: classes both seen and unseen"
        what = f"{dataset}: unseen classes that stand as options in seen rows"
        if seen and unseen:
            findings.append(Finding(names, len(both), len(seen | unseen), both))
            findings.append(Finding(what, shown, len(unseen)))
    return findings


def _released_rules(found: Sequence[Question]) -> list[Finding]:
    """What the released scoring makes of these rows."""
    names = questions.classes_of(found)

    @cache
    def shared(dataset: str, label: str) -> bool:
        short = " ".join(label.lower().split()[:-2])
        others = (name.lower() for name in names[dataset])
        return any(short in other for other in others if other != label.lower())

    cars = [q for q in found if scoring.released_coarse(q.photo) == "car"]
    credited = [repr(q.label) for q in cars if shared(q.dataset, q.label)]
    guessed = [q.photo for q in found if scoring.released_coarse(q.photo) == "object"]
    world = "released open world"
    other = f"{world}: another class's name would be counted as right"
    word = f"{world}: the coarse word falls back to 'object'"
    return [
        Finding(other, len(credited), len(found), credited),
        Finding(word, len(guessed), len(found), guessed),
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


def audit_folder(root: Path) -> list[Finding]:
    """Near-duplicates between the train and test pictures of a folder of photographs.

    Without a split every pair is looked at. Pictures that cannot be read, and those that carry
    two labels, are a finding.
    """
    classes, problems = folders.read_folder(root, shots=0)
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
        found, *_ = questions.gather(files)
        lines += ["", "without looking at a picture:", *control_lines(found)]
    for path in paths:
        if path.is_dir():
            lines += [finding.text(every) for finding in audit_folder(path)]
    return lines
