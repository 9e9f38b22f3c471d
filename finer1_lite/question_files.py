"""The released question files: `<data set>_<seen|unseen>.jsonl`, one question a line.

Source: PKU-ICST-MIPL/FineR1_ICLR2026, eval/data (MIT licence). A row has image_path,
question, options and ground_truth; in every released row the right option stands first.
The coarse word belongs to the data set and is not guessed from a path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finer1_lite import jsonl, protocols, rewards
from finer1_lite.species import DataError

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


def dataset_of(path: Path | str) -> tuple[str, str]:
    """("bird", "seen") of ".../bird_seen.jsonl"; DataError for any other form of name."""
    dataset, _, split = Path(path).stem.rpartition("_")
    if not dataset or split not in SPLITS:
        raise DataError([f"{path}: call it <data set>_seen.jsonl or <data set>_unseen.jsonl"])
    return dataset, split


def scan(path: Path | str) -> Iterator[tuple[int, Question | None, str]]:
    """(line number, question, fault) of each line: a question, or None and what is wrong."""
    dataset, split = dataset_of(path)
    for number, row, fault in jsonl.scan(path):
        if fault:
            yield number, None, fault
            continue
        fault = row_fault(row)
        question = None if fault else Question(
            dataset, split, row["image_path"], row["question"], tuple(row["options"]),
            row["ground_truth"],
        )  # fmt: skip
        yield number, question, fault


def row_fault(row: object) -> str:
    """Why a row cannot be asked, with the mend; "" if it can."""
    if not isinstance(row, dict):
        return "is no JSON object; write {...}"
    texts = [name for name in _TEXTS if not isinstance(row.get(name), str) or not row[name].strip()]
    if texts:
        return f"{', '.join(texts)}: missing or no text; fill in"
    options = row.get("options")
    if not isinstance(options, list) or len(options) < 2:
        return "options: give a list of two names or more"
    if any(not isinstance(o, str) or not rewards.normalise(o) for o in options):
        return "options: one is no name; fill in"
    if row["ground_truth"] not in options:
        return f"the answer {row['ground_truth']!r} is not among the options; add it"
    if len({rewards.normalise(o) for o in options}) < len(options):
        return f"two options read alike: {options}; keep one"
    return ""


def read_questions(paths: Iterable[Path | str]) -> list[Question]:
    """All questions of the files, in order. DataError lists every fault of every file."""
    questions: list[Question] = []
    faults: list[str] = []
    for path in paths:
        try:
            for number, question, fault in scan(path):
                if question is None:
                    faults.append(f"{path}, line {number}: {fault}")
                else:
                    questions.append(question)
        except DataError as error:
            faults += error.faults
        except OSError as error:
            faults.append(f"{path}: cannot be read ({error.strerror}); give a question file")
    if not questions and not faults:
        faults.append("no questions found; give files such as bird_seen.jsonl")
    if faults:
        raise DataError(faults, f"these questions cannot be asked; to mend: {len(faults)}")
    return questions


def classes_of(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Data set -> every name that is an answer or an option in it, sorted."""
    names: dict[str, set[str]] = {}
    for question in questions:
        names.setdefault(question.dataset, set()).update(question.options)
    return {dataset: sorted(found) for dataset, found in names.items()}


def coarse_word(dataset: str) -> tuple[str, str]:
    """(coarse word, word for the fine name) of a data set; its own name if it is not known."""
    return COARSE.get(dataset, (dataset, "kind"))


# --- what answerers without eyes would score ---------------------------------------------


def score_answerers(questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """{"always first"|"list all": {"released"|"ours": share right}} of two blind answerers.

    Released: the options as they stand in the file, scored by inclusion. Ours: every
    rotation of the options, scored by our parser.
    """
    right = {who: dict.fromkeys(protocols.PROTOCOLS, 0.0) for who in _ANSWERERS}
    for q in questions:
        orders = protocols.rotations(q.options, q.image_path)
        for who, answerer in _ANSWERERS.items():
            told = f"<answer>{answerer(q.options)}</answer>"
            said = protocols.released_answer(told)
            right[who]["released"] += protocols.released_inclusion(said, q.label)
            for order in orders:
                told = f"<answer>{answerer(order)}</answer>"
                verdict = protocols.judge(told, q.label, order, options=order)
                right[who]["ours"] += verdict.correct / len(orders)
    total = max(len(questions), 1)
    return {who: {p: n / total for p, n in by.items()} for who, by in right.items()}


_ANSWERERS = {"always first": lambda options: options[0], "list all": ", ".join}
