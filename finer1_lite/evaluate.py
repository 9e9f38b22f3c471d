"""Ask, score, record: every answer is one line of `records.jsonl`.

Closed world: four options, the right one among look-alikes, drawn and shuffled by a seed.
Open world: no options; the name must match exactly (case, dashes and articles aside).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finer1_lite import generation, prompts, rewards
from finer1_lite.evals import scoring
from finer1_lite.generation import Student
from finer1_lite.species import Collection, Photo

OPTION_SEED = 0  # the same options for every stage and training seed
_STAGES = {"sft": "SFT", "tapo": "TAPO"}  # what tables call them


@dataclass(frozen=True)
class Cell:
    """One homogeneous block of an evaluation."""

    stage: str  # base | sft | tapo
    seed: int | None  # training seed; the base has none
    prompt: str  # key of prompts.QUESTIONS
    task: str  # open | closed

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.prompt}-{self.task}"


def cells(stage: str, seed: int | None, kinds: Sequence[str] = ("think",)) -> list[Cell]:
    return [Cell(stage, seed, kind, task) for kind in kinds for task in ("open", "closed")]


def ask(student: Student, questions, images=None, *, max_new_tokens: int, batch_size: int = 128):
    """Greedy answers in order: yields the rollouts of one batch after the other."""
    for at in range(0, len(questions), batch_size):
        part = slice(at, at + batch_size)
        shown = images[part] if images is not None else None
        batch = generation.encode_prompts(student.model, student.processor, questions[part], shown)
        yield generation.generate(
            student.model, student.processor, batch, max_new_tokens=max_new_tokens
        )


def answer_row(
    completion: str,
    label: str,
    classes: Sequence[str],
    *,
    model: str,
    prompt: str,
    task: str,
    photo: str,
    split: str,
    dataset: str = "test pictures",
    coarse: str = "",
    groups: Mapping[str, str] | None = None,
    aliases: rewards.Aliases = None,
    options: Sequence[str] | None = None,
    order: str | None = None,
    letters: bool = False,
    picture: bool = True,
    rotation: int = 0,
    sample: int = 0,
    tokens: int = 0,
    cut: bool = False,
    problem: str | None = None,
    released_path: str = "",
) -> dict:
    """One answer, scored: the row of every records.jsonl, by the same parser as the reward's.

    classes: every name that counts as a name; groups: name -> its genus or other group;
    released_path: see `protocols.judge`; problem: why there is no answer to score.
    """
    verdict = scoring.judge(
        completion,
        label,
        classes,
        options=options,
        letters=letters,
        prompt=prompt,
        aliases=aliases,
        released_path=released_path,
    )
    group = groups or {}
    return {
        "model": model,
        "prompt": prompt,
        "task": task,
        "picture": picture,
        "order": order,
        "dataset": dataset,
        "split": split,
        "photo": photo,
        "label": label,
        "coarse": coarse,
        "group": group.get(label, ""),
        "named_group": group.get(verdict.named or "", ""),
        "options": list(options) if options else None,
        "rotation": rotation,
        "sample": sample,
        "completion": completion,
        "answer": verdict.answer,
        "named": verdict.named,
        "correct": verdict.correct,
        "included": verdict.included,
        "tokens": tokens,
        "cut": cut,
        "problem": problem,
    }


def record(cell: Cell, collection: Collection, photo: Photo, options, text, tokens, cut) -> dict:
    """An answer of the lab run: its row, and the stage and training seed that it came from."""
    stage = _STAGES.get(cell.stage, cell.stage)
    return {"stage": cell.stage, "seed": cell.seed} | answer_row(
        text,
        photo.species,
        collection.names,
        prompt=cell.prompt,
        task=cell.task,
        photo=photo.id,
        model=stage if cell.seed is None else f"{stage}, seed {cell.seed}",
        options=options,
        split="seen" if collection.of(photo.species).seen else "unseen",
        tokens=tokens,
        cut=cut,
        coarse=collection.coarse,
        groups=collection.groups,
        aliases=collection.aliases,
        order="shuffle" if options else None,
    )


def evaluate(
    student: Student,
    collection: Collection,
    cell: Cell,
    folder: Path,
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[int]:
    """Answer all test pictures of a cell into `folder`/<cell>.jsonl; yields the count done."""

    def answer(part: Sequence[Photo], at: int) -> list[dict]:
        options = [
            collection.options(p, seed=OPTION_SEED) if cell.task == "closed" else None for p in part
        ]
        asked = [prompts.question(cell.prompt, collection.coarse, o) for o in options]
        images = [p.image() for p in part]
        (out,) = ask(student, asked, images, max_new_tokens=max_new_tokens, batch_size=len(part))
        return [
            record(cell, collection, *row)
            for row in zip(
                part, options, out.completions, out.lengths.tolist(), out.truncated.tolist()
            )
        ]

    return append_batches(folder / f"{cell.name}.jsonl", collection.test, batch_size, answer)


def append_batches(
    path: Path, items: Sequence, batch_size: int, answer: Callable, rows_each: int = 1
) -> Iterator[int]:
    """Append answer(batch, its place) to a file of JSON lines; yields how many items are done.

    answer returns `rows_each` records an item. Whole batches are appended; an interrupted
    file is cut back to its last whole batch and continued, with the batches of an
    undisturbed run.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    done = _whole_batches(path, batch_size * rows_each, len(items) * rows_each) // rows_each
    yield done
    for at in range(done, len(items), batch_size):
        part = items[at : at + batch_size]
        rows = answer(part, at)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        yield at + len(part)


def _whole_batches(path: Path, batch_size: int, total: int) -> int:
    """Cut a file back to whole batches of whole lines; how many rows are left."""
    if not path.exists():
        return 0
    lines = path.read_bytes().split(b"\n")[:-1]  # a last line torn, even in a letter, goes
    keep = len(lines) if len(lines) == total else len(lines) - len(lines) % batch_size
    path.write_bytes(b"".join(line + b"\n" for line in lines[:keep]))
    return keep
