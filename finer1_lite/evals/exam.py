"""One examination: any pictures with names, any student, answers in `answers/*.jsonl`.

A block of questions is homogeneous (one prompt, one task, with or without the picture).
Questions are batched by length; whole batches are appended, so a killed run goes on with
the batches of an undisturbed one. `records.jsonl` joins the blocks and is the single truth
that every table is made from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from finer1_lite import evaluate, generation, prompts
from finer1_lite.data import images as pictures
from finer1_lite.evals import questions as question_files
from finer1_lite.evals import scoring
from finer1_lite.generation import Student
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Collection

# each answer at each position; one seeded order; the file's
ORDERS = ("rotate", "shuffle", "as_is")
N_OPTIONS = 4


@dataclass(frozen=True)
class Item:
    """One picture with its right name; `options` as a file gives them, None without."""

    photo: str
    dataset: str
    split: str  # seen | unseen
    coarse: str
    fine: str
    label: str
    image: Callable[[], Image.Image] = field(repr=False, compare=False)
    options: tuple[str, ...] | None = None
    question: str = ""  # asked instead of the name; the label is then its answer


@dataclass(frozen=True)
class Exam:
    """Items, every name that counts as a name (by data set), and each name's group."""

    items: tuple[Item, ...]
    classes: dict[str, list[str]]
    groups: dict[str, str] = field(default_factory=dict)
    missing: int = 0  # pictures that were not there and are not asked about
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    released: bool = False  # of released question files: their rule reads the picture's path

    @classmethod
    def of_collection(cls, collection: Collection, dataset: str, fine: str = "kind") -> Exam:
        """The test pictures, with the options of `Collection.options`, the right one first."""
        items = tuple(
            Item(
                p.id,
                dataset,
                "seen" if collection.of(p.species).seen else "unseen",
                collection.coarse,
                fine,
                p.species,
                p.image,
                tuple(sorted(collection.options(p, N_OPTIONS), key=lambda o: o != p.species)),
            )
            for p in collection.test
        )
        return cls(
            items, {dataset: collection.names}, collection.groups, aliases=collection.aliases
        )

    @classmethod
    def of_files(cls, paths: Sequence[Path], images: Path, allow_missing: bool = False) -> Exam:
        """The questions of released files, their pictures below `images`.

        DataError counts the missing pictures of each data set, unless they are allowed;
        allowed ones are left out and counted.
        """
        questions = question_files.read_questions(paths)
        kept = _with_pictures(questions, images, allow_missing)
        items = [
            Item(
                q.image_path,
                q.dataset,
                q.split,
                *question_files.coarse_word(q.dataset),
                q.label,
                partial(pictures.decode, images / q.image_path),
                q.options,
            )
            for q in kept
        ]
        classes = question_files.classes_of(questions)
        missing = len(questions) - len(kept)
        return cls(tuple(items), classes, missing=missing, released=True)

    @classmethod
    def of_questions(cls, paths: Sequence[Path], images: Path, allow_missing: bool = False) -> Exam:
        """Questions of one's own about pictures (`question_files`), asked as they stand there.

        Several about one picture are numbered, so that each is an item of its own.
        """
        questions = question_files.read_questions(paths, question_files.scan_own)
        kept, times = _with_pictures(questions, images, allow_missing), Counter()
        items = []
        for q in kept:
            times[q.dataset, q.image_path] += 1
            n = times[q.dataset, q.image_path]
            name = q.image_path if n == 1 else f"{q.image_path}#{n}"
            items.append(
                Item(
                    name,
                    q.dataset,
                    q.split,
                    "answer",
                    "",
                    q.label,
                    partial(pictures.decode, images / q.image_path),
                    q.options or None,
                    q.question,
                )
            )
        return cls(
            tuple(items),
            question_files.classes_of(questions),
            missing=len(questions) - len(kept),
            aliases={q.label: q.aliases for q in questions if q.aliases},
        )


def _with_pictures(questions: Sequence, images: Path, allow_missing: bool) -> list:
    """The questions whose picture is there; see `Exam.of_files`."""
    kept = [q for q in questions if (images / q.image_path).is_file()]
    lost = [q for q in questions if not (images / q.image_path).is_file()]
    if lost and (not allow_missing or not kept):
        first = "; ".join(str(images / q.image_path) for q in lost[:3])
        problem = (
            f"{len(lost)} of {len(questions)} pictures are missing (first: {first}); "
            "give their folder with --images, or --allow-missing to leave them out"
        )
        raise DataError([problem], "no examination:")
    return kept


@dataclass(frozen=True)
class Block:
    """What is asked of every item, and how."""

    prompt: str  # one of prompts.PROMPTS
    task: str  # open | closed
    picture: bool = True  # False: the control that sees nothing
    order: str = "rotate"  # one of ORDERS; the open world has none
    letters: bool = False
    samples: int = 1  # answers a question: 1 is greedy, more are drawn at temperature 1

    @property
    def name(self) -> str:
        parts = [self.prompt, self.task, "" if self.picture else "blind"]
        parts += [self.order if self.task == "closed" else "", "letters" if self.letters else ""]
        parts += [f"x{self.samples}" if self.samples > 1 else ""]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Asked:
    """One question: an item, the words, and the options in the order shown."""

    item: Item
    text: str
    options: tuple[str, ...] | None
    rotation: int


def questions(exam: Exam, block: Block) -> list[Asked]:
    """Every question of a block, long ones first: batches of like lengths, and a batch
    that does not fit in memory fails at the start. The order depends on nothing else."""
    asked = []
    for item in exam.items:
        for k, options in enumerate(_orders(item, block)):
            text = _words(item, block, options)
            asked.append(Asked(item, text, options and tuple(options), k))
    return sorted(asked, key=lambda a: -len(a.text))


def _words(item: Item, block: Block, options: Sequence[str] | None) -> str:
    if item.question:
        return prompts.about(block.prompt, item.question, options, letters=block.letters)
    return prompts.question(
        block.prompt, item.coarse, options, fine=item.fine, letters=block.letters
    )


def _orders(item: Item, block: Block) -> list[list[str] | None]:
    """The options of a question in each order; a question of one's own has one task only."""
    if item.question and (block.task == "open") != (item.options is None):
        return []
    if block.task == "open":
        return [None]
    if item.options is None:
        raise ValueError(f"{item.photo}: no options; the closed world needs them")
    if block.order == "as_is":
        return [list(item.options)]
    every = scoring.rotations(item.options, item.photo)
    return every if block.order == "rotate" else every[:1]


def answer_block(
    student: Student,
    exam: Exam,
    block: Block,
    model: str,
    folder: Path,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[int]:
    """Answer a block into `folder`/<block>.jsonl; yields the number of questions done."""

    def answer(part: Sequence[Asked], at: int) -> list[dict]:
        return _answer(student, exam, block, model, part, at, max_new_tokens)

    path = folder / f"{block.name}.jsonl"
    return evaluate.append_batches(path, questions(exam, block), batch_size, answer, block.samples)


def _answer(student, exam, block, model, part, at, max_new_tokens) -> list[dict]:
    """The records of one batch; a picture that cannot be read is a record with a problem."""
    images = [read_image(one.item.image) if block.picture else None for one in part]
    broken = [isinstance(image, str) for image in images]
    good = [i for i, bad in enumerate(broken) if not bad]
    out = None
    if good:
        shown = [images[i] for i in good] if block.picture else None
        batch = generation.encode_prompts(
            student.model, student.processor, [part[i].text for i in good], shown
        )
        generator = torch.Generator(student.device).manual_seed(at)
        out = generation.generate(
            student.model,
            student.processor,
            batch,
            num_generations=block.samples,
            max_new_tokens=max_new_tokens,
            generator=generator,
            temperature=1.0 if block.samples > 1 else 0.0,
        )
    records = []
    for i, one in enumerate(part):
        for sample in range(block.samples):
            row = good.index(i) * block.samples + sample if i in good else None
            text = "" if row is None else out.completions[row]
            record = record_of(exam, block, model, one, text, sample)
            if row is None:
                record |= {"problem": images[i], "tokens": 0, "cut": False}
            else:
                record |= {"tokens": int(out.lengths[row]), "cut": bool(out.truncated[row])}
            records.append(record)
    return records


def read_image(image: Callable[[], Image.Image]) -> Image.Image | str:
    """The picture, or why it cannot be read."""
    try:
        return image()
    except (pictures.PictureError, OSError) as error:
        return str(error)


def record_of(
    exam: Exam, block: Block, model: str, asked: Asked, completion: str, sample: int = 0
) -> dict:
    """One answer, scored. `tokens`, `cut` and `problem` are the caller's to fill."""
    item = asked.item
    return evaluate.answer_row(
        completion,
        item.label,
        exam.classes[item.dataset],
        model=model,
        prompt=block.prompt,
        task=block.task,
        photo=item.photo,
        split=item.split,
        dataset=item.dataset,
        coarse=item.coarse,
        groups=exam.groups,
        aliases=exam.aliases,
        options=asked.options,
        order=block.order if block.task == "closed" else None,
        letters=block.letters,
        picture=block.picture,
        rotation=asked.rotation,
        sample=sample,
        released_path=item.photo if exam.released else "",
    )


def answers_folder(folder: Path, model: str) -> Path:
    """Where a run keeps the answers of a model, whatever slashes its name has."""
    return folder / "answers" / model.replace("/", "--")


def join(folder: Path) -> str:
    """The text of records.jsonl: every block's answers, blocks by name."""
    files = sorted((folder / "answers").rglob("*.jsonl"))
    return "".join(file.read_text(encoding="utf-8") for file in files)
