"""Question files: the released ones, and questions of one's own about pictures.

Released: `<data set>_<seen|unseen>.jsonl`, one question a line, of
PKU-ICST-MIPL/FineR1_ICLR2026, eval/data (MIT licence). A row has image_path, question,
options and ground_truth; in every released row the right option stands first. The coarse
word belongs to the data set and is not guessed from a path.

One's own (in the manner of ImageWikiQA: the answer needs the name, which is not asked): a
line has image (path), question, answer, and where wanted options (the answer among them),
aliases (further spellings of the answer) and split (seen or unseen; left out: unseen). The
data set is called as the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finer1_lite import rewards
from finer1_lite.evals import scoring
from finer1_lite.runtime import files
from finer1_lite.runtime.files import DataError

SPLITS = ("seen", "unseen")
COARSE = {  # data set -> (coarse word, what the fine name is called)
    "aircraft": ("aircraft", "variant"),
    "bird": ("bird", "species"),
    "car": ("car", "make, model and year"),
    "dog": ("dog", "breed"),
    "flower": ("flower", "species"),
    "pet": ("pet", "breed"),
}
_TEXTS = ("image_path", "question", "ground_truth")


@dataclass(frozen=True)
class Question:
    """One row of a question file, as it stands there."""

    dataset: str
    split: str
    image_path: str
    question: str
    options: tuple[str, ...]
    label: str
    aliases: tuple[str, ...] = ()


def dataset_of(path: Path | str) -> tuple[str, str]:
    """("bird", "seen") of ".../bird_seen.jsonl"; DataError for any other form of name."""
    dataset, _, split = Path(path).stem.rpartition("_")
    if not dataset or split not in SPLITS:
        raise DataError([f"{path}: call it <data set>_seen.jsonl or <data set>_unseen.jsonl"])
    return dataset, split


def scan(path: Path | str) -> Iterator[tuple[int, Question | None, str]]:
    """(line number, question, problem) of each line: a question, or None and what is wrong."""
    dataset, split = dataset_of(path)
    for number, row, problem in files.scan(path):
        if problem:
            yield number, None, problem
            continue
        problem = row_problem(row)
        question = (
            None
            if problem
            else Question(
                dataset,
                split,
                row["image_path"],
                row["question"],
                tuple(row["options"]),
                row["ground_truth"],
            )
        )
        yield number, question, problem


def row_problem(row: object) -> str:
    """Why a row cannot be asked, with the mend; "" if it can."""
    if not isinstance(row, dict):
        return "is no JSON object; write {...}"
    return _texts_problem(row, _TEXTS) or _options_problem(row.get("options"), row["ground_truth"])


def _texts_problem(row: dict, names: Sequence[str]) -> str:
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


def scan_own(path: Path | str) -> Iterator[tuple[int, Question | None, str]]:
    """As `scan`, of a file of one's own questions."""
    for number, row, problem in files.scan(path):
        problem = problem or own_problem(row)
        question = (
            None
            if problem
            else Question(
                Path(path).stem,
                row.get("split", "unseen"),
                row["image"],
                row["question"],
                tuple(row.get("options") or ()),
                row["answer"],
                tuple(row.get("aliases") or ()),
            )
        )
        yield number, question, problem


def own_problem(row: object) -> str:
    """Why a row of one's own cannot be asked, with the mend; "" if it can."""
    if not isinstance(row, dict):
        return "is no JSON object; write {...}"
    problem = _texts_problem(row, ("image", "question", "answer"))
    if not problem and not rewards.normalise(row["answer"]):
        problem = f"answer {row['answer']!r}: nothing is left of it once normalised; reword"
    if not problem and row.get("options") is not None:
        problem = _options_problem(row["options"], row["answer"])
    others, split = row.get("aliases") or [], row.get("split", "unseen")
    if not isinstance(others, list) or not all(isinstance(o, str) for o in others):
        problem = problem or "aliases: give a list of texts"
    if split not in SPLITS:
        problem = problem or f"split {split!r}: write seen or unseen"
    return problem


def read_questions(paths: Iterable[Path | str], scan: Callable = scan) -> list[Question]:
    """All questions of the files, in order; scan: `scan`, or `scan_own` for one's own.

    DataError lists every problem of every file, also names that only differ in spelling.
    """
    questions: list[Question] = []
    problems: list[str] = []
    for path in paths:
        try:
            for number, question, problem in scan(path):
                if question is None:
                    problems.append(f"{path}, line {number}: {problem}")
                else:
                    questions.append(question)
        except DataError as error:
            problems += error.problems
        except OSError as error:
            problems.append(f"{path}: cannot be read ({error.strerror}); give a question file")
    problems += spelled_twice(classes_of(questions))
    if not questions and not problems:
        problems.append("no questions found; give files such as bird_seen.jsonl")
    if problems:
        raise DataError(problems, f"these questions cannot be asked; to mend: {len(problems)}")
    return questions


def classes_of(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Data set -> every name that is an answer or an option in it, sorted."""
    names: dict[str, set[str]] = {}
    for question in questions:
        names.setdefault(question.dataset, set()).update((*question.options, question.label))
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


def coarse_word(dataset: str) -> tuple[str, str]:
    """(coarse word, word for the fine name) of a data set; its own name if it is not known."""
    return COARSE.get(dataset, (dataset, "kind"))


# --- what answerers without eyes would score ---------------------------------------------


def score_answerers(questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """{"always first"|"list all": {"released"|"ours": share right}} of two blind answerers.

    Released: the options as they stand in the file, scored by inclusion. Ours: every
    rotation of the options, scored by our parser.
    """
    right = {who: dict.fromkeys(scoring.PROTOCOLS, 0.0) for who in _ANSWERERS}
    for q in questions:
        orders = scoring.rotations(q.options, q.image_path)
        for who, answerer in _ANSWERERS.items():
            told = f"<answer>{answerer(q.options)}</answer>"
            said = scoring.released_answer(told)
            right[who]["released"] += scoring.released_inclusion(said, q.label)
            for order in orders:
                told = f"<answer>{answerer(order)}</answer>"
                verdict = scoring.judge(told, q.label, order, options=order)
                right[who]["ours"] += verdict.correct / len(orders)
    total = max(len(questions), 1)
    return {who: {p: n / total for p, n in by.items()} for who, by in right.items()}


_ANSWERERS = {"always first": lambda options: options[0], "list all": ", ".join}
