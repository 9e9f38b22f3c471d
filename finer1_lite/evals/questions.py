"""Question files -> benchmarks: the released ones, and questions of one's own about pictures.

Released: `<data set>_<seen|unseen>.jsonl`, one question a line, of
PKU-ICST-MIPL/FineR1_ICLR2026, eval/data (MIT licence). A row has image_path, question,
options and ground_truth; in every released row the right option stands first. The coarse
word belongs to the data set and is not guessed from a path.

One's own (in the manner of ImageWikiQA: the answer needs the name, which is not asked): a
line has image (path), question, answer, and where wanted options (the answer, or its letter,
among them), aliases (further spellings of the answer) and split (seen or unseen; left out:
unseen). The data set is called as the file.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from finer1_lite import rewards
from finer1_lite.data import hubsets, marks, scoring
from finer1_lite.data import images as pictures
from finer1_lite.data.benchmark import Benchmark, Question
from finer1_lite.data.records import SPLITS
from finer1_lite.runtime import files
from finer1_lite.runtime.files import DataError, require_none

log = logging.getLogger("finer1_lite")

_OWN_MARK = re.compile(  # "A. rose", "(b) rose", "3) rose", "Option C: rose", "ii - rose"
    r"\s*(?:option\s+|choice\s+)?[(\[]?([a-z]|\d{1,2}|[ivx]{2,4})"
    r"(?:[.)\]\u3001\uff0e]+(?!\d)|:(?!\s*\d)|\s+[-\u2013](?=\s)(?!\s*\d))\s*(\S.*?)\s*",
    re.IGNORECASE | re.DOTALL,
)
_ROWS = (  # the marks of a list, from its first on
    "abcdefghijklmnopqrstuvwxyz",
    [str(n) for n in range(100)],
    [str(n) for n in range(1, 100)],
    ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"],
)


def of_files(
    paths: Sequence[Path], images: Path, allow_missing: bool = False, own: bool = False
) -> Benchmark:
    """The questions of released files, or of one's `own` about pictures; pictures below `images`.

    DataError counts the missing pictures, unless they are allowed: then they are left out and
    counted in the benchmark. One's own are asked as they stand there; several about one picture
    are numbered, so that each has an id of its own.
    """
    found = read_questions(paths, own)
    kept = _with_pictures(found, images, allow_missing)
    missing = len(found) - len(kept)
    times: Counter[tuple[str, str]] = Counter()
    for at, question in enumerate(kept if own else ()):
        times[question.dataset, question.photo] += 1
        n = times[question.dataset, question.photo]
        kept[at] = question if n == 1 else replace(question, photo=f"{question.photo}#{n}")
    return Benchmark(tuple(kept), classes_of(found), missing=missing, released=not own)


def _with_pictures(found: list[Question], images: Path, allow_missing: bool) -> list[Question]:
    """The questions whose picture is there, with the way to it."""
    there = [(images / q.photo).is_file() for q in found]
    lost = [str(images / q.photo) for q, here in zip(found, there, strict=True) if not here]
    if lost and not (allow_missing and any(there)):
        first = "; ".join(lost[:3])
        problem = f"{len(lost)} of {len(found)} pictures are missing (first: {first}); give their "
        problem += "folder with --images, or --allow-missing to leave them out"
        raise DataError([problem], "no evaluation:")
    kept = [q for q, here in zip(found, there, strict=True) if here]
    return [replace(q, image=partial(pictures.decode, images / q.photo)) for q in kept]


def dataset_of(path: Path | str) -> tuple[str, str]:
    """("bird", "seen") of ".../bird_seen.jsonl"; DataError for any other form of name."""
    dataset, _, split = Path(path).stem.rpartition("_")
    if not dataset or split not in SPLITS:
        raise DataError([f"{path}: call it <data set>_seen.jsonl or <data set>_unseen.jsonl"])
    return dataset, split


def _released(dataset: str, split: str, row: object, said: Counter) -> Question:
    """The question of a released row; the id of a picture is its path as it stands there."""
    photo, _, label = _texts(row, ("image_path", "question", "ground_truth"))
    options, label = _choice(row.get("options"), label, said)
    coarse, fine = hubsets.coarse_word(dataset)
    return Question(photo, dataset, split, label, options=options, coarse=coarse, fine=fine)


def _own(dataset: str, row: object, said: Counter) -> Question:
    """The question of a row of one's own."""
    photo, question, label = _texts(row, ("image", "question", "answer"))
    about = marks.without_picture(question)
    said[f"{marks.IMAGE} at an end of the question is dropped"] += about != question
    if not about:
        raise ValueError(f"question: holds {marks.IMAGE} alone; add words")
    options, aliases = None, row.get("aliases") or []
    if row.get("options") is not None:
        options, label = _choice(row["options"], label, said)
    if not isinstance(aliases, list) or not all(isinstance(one, str) for one in aliases):
        raise ValueError("aliases: give a list of texts")
    rewards.match_class(None, options or (label,), {label: aliases})
    split = row.get("split", "unseen")
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: write seen or unseen")
    words = {"coarse": "answer", "fine": "", "about": about, "aliases": tuple(aliases)}
    return Question(photo, dataset, split, label, options=options, **words)


def scan(path: Path | str, own: bool = False) -> Iterator[tuple[int, Question | None, str]]:
    """(line number, question, problem) of each line: a question, or None and what is wrong.

    What is taken for granted is logged, counted.
    """
    read = partial(_own, Path(path).stem) if own else partial(_released, *dataset_of(path))
    said: Counter[str] = Counter()
    for number, row, problem in files.scan(path):
        question = None
        try:
            question = None if problem else read(row, said)
            if question:
                problem = marks.problem(question.about, question.label, *(question.options or ()))
        except ValueError as error:
            problem = str(error).replace("\n- ", " ")
        yield number, None if problem else question, problem
    for what, count in said.items():
        if count:
            log.info("%s: %d questions: %s", path, count, what)


def _texts(row: object, names: Sequence[str]) -> list[str]:
    """The texts of these fields, of which the last, the answer, may be a number among options."""
    if not isinstance(row, dict):
        raise ValueError("is no JSON object; write {...}")
    found = [row.get(name) for name in names]
    if row.get("options") is not None and type(found[-1]) is int:
        found[-1] = str(found[-1])
    texts = zip(names, found, strict=True)
    bad = [name for name, text in texts if not isinstance(text, str) or not text.strip()]
    if bad:
        raise ValueError(f"{', '.join(bad)}: missing or no text; fill in")
    return found


def _choice(options: object, answer: str, said: Counter) -> tuple[tuple[str, ...], str]:
    """(options, the right one), without letters or numbers of their own: orders change.

    ValueError where the answer is none of the options, nor the letter or number of one.
    """
    own = {}
    if isinstance(options, dict):  # {"A": "rose", "B": "tulip"}
        own = {key.casefold(): one for key, one in options.items()}
        options = list(options.values())
    if not isinstance(options, list) or len(options) < 2:
        raise ValueError("options: give a list of two names or more")
    if any(not isinstance(one, str) or not rewards.normalise(one) for one in options):
        raise ValueError("options: one is no name; fill in")
    own = own or _by_mark(options)
    plain = list(own.values()) or options
    if len({rewards.normalise(one) for one in plain}) < len(plain):
        raise ValueError(f"two options read alike: {plain}; keep one")
    spelled = dict(zip(plain, plain, strict=True)) | dict(zip(options, plain, strict=True))
    label = spelled.get(answer) or own.get(answer.strip("()[]. :").casefold())
    if not label and (not own or "a" in own):  # "A", "(a)", "A. its name"
        label = scoring.option_of_letter(answer, [own[mark] for mark in sorted(own)] or options)
    if not label and answer.strip().isdecimal():
        what = "a place, which may be counted from 0 or from 1; write the option itself"
        raise ValueError(f"the answer {answer!r} is {what}")
    if not label:
        raise ValueError(f"the answer {answer!r} is not among the options; add it")
    said["letters or numbers of the options' own are taken off"] += plain != options
    said["an answer given by its place stands for the option there"] += answer not in spelled
    return tuple(plain), label


def _by_mark(options: Sequence[str]) -> dict[str, str]:
    """Letter or number -> its option without it, where all have one of one row; else {}."""
    found = [_OWN_MARK.fullmatch(one) for one in options]
    if not all(found):
        return {}
    own = {one[1].casefold(): one[2] for one in found}
    return own if any(own.keys() == {*row[: len(options)]} for row in _ROWS) else {}


def gather(
    paths: Iterable[Path | str], own: bool = False
) -> tuple[list[Question], list[str], list[str]]:
    """(questions, lines that cannot be asked, files that cannot be read), in order."""
    found, broken, unreadable = [], [], []
    for path in paths:
        try:
            for number, question, problem in scan(path, own):
                found += [question] if question else []
                broken += [f"{path}, line {number}: {problem}"] if problem else []
        except DataError as error:
            unreadable += error.problems
        except OSError as error:
            unreadable.append(f"{path}: cannot be read ({error.strerror}); give a question file")
    return found, broken, unreadable


def read_questions(paths: Iterable[Path | str], own: bool = False) -> list[Question]:
    """All questions of the files, in order; own: of one's own, not released ones.

    DataError lists every problem of every file, also names that only differ in spelling.
    """
    found, broken, unreadable = gather(paths, own)
    problems = [*broken, *unreadable, *spelled_twice(classes_of(found))]
    if not found and not problems:
        problems.append("no questions found; give files such as bird_seen.jsonl")
    require_none(problems, f"these questions cannot be asked; to mend: {len(problems)}")
    return found


def classes_of(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Data set -> every name that is an answer or an option in it, sorted."""
    names: dict[str, set[str]] = {}
    for question in questions:
        names.setdefault(question.dataset, set()).update(question.options or (), (question.label,))
    return {dataset: sorted(found) for dataset, found in names.items()}


def spelled_twice(classes: Mapping[str, Sequence[str]]) -> list[str]:
    """A problem for every two names of a data set that the parser cannot tell apart."""
    problems = []
    for dataset, names in classes.items():
        first: dict[str, str] = {}
        for name in names:
            other = first.setdefault(rewards.normalise(name), name)
            if other != name:
                problems.append(f"{dataset}: {other!r} and {name!r} read alike; spell them one way")
    return problems
