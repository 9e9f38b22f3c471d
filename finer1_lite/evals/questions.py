"""Question files -> benchmarks: the released ones, and questions of one's own about pictures.

Released: `<data set>_<seen|unseen>.jsonl`, one question a line, of
PKU-ICST-MIPL/FineR1_ICLR2026, eval/data (MIT licence). A row has image_path, question,
options and ground_truth; in every released row the right option stands first. The coarse
word belongs to the data set and is not guessed from a path.

One's own (in the manner of ImageWikiQA: the answer needs the name, which is not asked): a
line has image (path), question, answer, and where wanted options (the answer among them),
aliases (further spellings of the answer) and split (seen or unseen; left out: unseen). The
data set is called as the file.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from finer1_lite import rewards
from finer1_lite.data import hubsets
from finer1_lite.data import images as pictures
from finer1_lite.data.benchmark import Benchmark, Question
from finer1_lite.data.records import SPLITS
from finer1_lite.runtime import files
from finer1_lite.runtime.files import DataError, require_none

Scanned = Iterator[tuple[int, Question | None, str]]


def of_files(paths: Sequence[Path], images: Path, allow_missing: bool = False) -> Benchmark:
    """The questions of released files, their pictures below `images`.

    DataError counts the missing pictures, unless they are allowed: then they are left out
    and counted in the benchmark.
    """
    found = read_questions(paths)
    kept = _with_pictures(found, images, allow_missing)
    missing = len(found) - len(kept)
    return Benchmark(tuple(kept), classes_of(found), missing=missing, released=True)


def of_questions(paths: Sequence[Path], images: Path, allow_missing: bool = False) -> Benchmark:
    """Questions of one's own about pictures, asked as they stand there; otherwise as `of_files`.

    Several about one picture are numbered, so that each has an id of its own.
    """
    found = read_questions(paths, scan_own)
    times: Counter[tuple[str, str]] = Counter()
    items = []
    for question in _with_pictures(found, images, allow_missing):
        times[question.dataset, question.photo] += 1
        n = times[question.dataset, question.photo]
        items.append(question if n == 1 else replace(question, photo=f"{question.photo}#{n}"))
    aliases = {q.label: q.aliases for q in found if q.aliases}
    missing = len(found) - len(items)
    return Benchmark(tuple(items), classes_of(found), aliases=aliases, missing=missing)


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


def scan(path: Path | str) -> Scanned:
    """(line number, question, problem) of each line: a question, or None and what is wrong.

    The id of a picture is its path as it stands there.
    """
    dataset, split = dataset_of(path)
    words = dict(zip(("coarse", "fine"), hubsets.coarse_word(dataset), strict=True))
    for number, row, problem in files.scan(path):
        question = None
        problem = problem or _texts_problem(row, ("image_path", "question", "ground_truth"))
        problem = problem or _options_problem(row.get("options"), row["ground_truth"])
        if not problem:
            place = (row["image_path"], dataset, split, row["ground_truth"])
            question = Question(*place, options=tuple(row["options"]), **words)
        yield number, question, problem


def scan_own(path: Path | str) -> Scanned:
    """As `scan`, of a file of one's own questions."""
    for number, row, problem in files.scan(path):
        question, problem = None, problem or own_problem(row)
        if not problem:
            place = (row["image"], Path(path).stem, row.get("split", "unseen"), row["answer"])
            words = {"coarse": "answer", "fine": "", "about": row["question"]}
            words |= {"aliases": tuple(row.get("aliases") or ())}
            question = Question(*place, options=tuple(row.get("options") or ()) or None, **words)
        yield number, question, problem


def own_problem(row: object) -> str:
    """Why a row of one's own cannot be asked, with the mend; "" if it can."""
    if problem := _texts_problem(row, ("image", "question", "answer")):
        return problem
    answer, others, split = row["answer"], row.get("aliases") or [], row.get("split", "unseen")
    if not rewards.normalise(answer):
        return f"answer {answer!r}: nothing is left of it once normalised; reword"
    if row.get("options") is not None and (problem := _options_problem(row["options"], answer)):
        return problem
    if not isinstance(others, list) or not all(isinstance(o, str) for o in others):
        return "aliases: give a list of texts"
    return "" if split in SPLITS else f"split {split!r}: write seen or unseen"


def _texts_problem(row: object, names: Sequence[str]) -> str:
    if not isinstance(row, dict):
        return "is no JSON object; write {...}"
    texts = [name for name in names if not isinstance(row.get(name), str) or not row[name].strip()]
    return f"{', '.join(texts)}: missing or no text; fill in" if texts else ""


def _options_problem(options: object, answer: str) -> str:
    if not isinstance(options, list) or len(options) < 2:
        return "options: give a list of two names or more"
    if any(not isinstance(o, str) or not rewards.normalise(o) for o in options):
        return "options: one is no name; fill in"
    if answer not in options:
        return f"the answer {answer!r} is not among the options; add it"
    if len({rewards.normalise(o) for o in options}) < len(options):
        return f"two options read alike: {options}; keep one"
    return ""


def gather(
    paths: Iterable[Path | str], scan: Callable[[Path | str], Scanned] = scan
) -> tuple[list[Question], list[str], list[str]]:
    """(questions, lines that cannot be asked, files that cannot be read), in order."""
    found, broken, unreadable = [], [], []
    for path in paths:
        try:
            for number, question, problem in scan(path):
                found += [question] if question else []
                broken += [f"{path}, line {number}: {problem}"] if problem else []
        except DataError as error:
            unreadable += error.problems
        except OSError as error:
            unreadable.append(f"{path}: cannot be read ({error.strerror}); give a question file")
    return found, broken, unreadable


def read_questions(
    paths: Iterable[Path | str], scan: Callable[[Path | str], Scanned] = scan
) -> list[Question]:
    """All questions of the files, in order; scan: `scan`, or `scan_own` for one's own.

    DataError lists every problem of every file, also names that only differ in spelling.
    """
    found, broken, unreadable = gather(paths, scan)
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
