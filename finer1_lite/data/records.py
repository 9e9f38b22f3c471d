"""What a line of records.jsonl holds: one scored completion, how it is made, what may be wrong."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from finer1_lite.data import scoring
from finer1_lite.data.benchmark import Benchmark, Condition, Question

SPLITS = ("seen", "unseen")
TASKS = ("open", "closed")


class Entry(NamedTuple):
    """A model under one prompt; without the picture, its image-free baseline."""

    model: str
    prompt: str
    picture: bool = True

    def __str__(self) -> str:
        return f"{self.label} ({self.prompt})"

    @property
    def label(self) -> str:
        """The model as tables call it."""
        return self.model if self.picture else f"{self.model}, no picture"


STAGES = {  # of a lab run
    "base": Entry("base", "answer"),
    "base_think": Entry("base", "think"),
    "sft": Entry("SFT", "think"),
    "tapo": Entry("TAPO", "think"),
}


class Record(BaseModel):
    """A scored completion: what is counted of a line of records.jsonl; more may stand there.

    seed: the training seed, null for a model that the run did not train; included: right by the
    released rule; listed, agrees: of the chain, null where none was asked for; error: why there
    is no completion, null where there is one.
    """

    model_config = ConfigDict(strict=True)
    unique: ClassVar[Sequence[str]] = ()  # what no two records may share

    model: str
    seed: int | None
    prompt: str
    task: Literal["open", "closed"]
    picture: bool
    dataset: str
    split: Literal["seen", "unseen"]
    photo: str
    label: str
    group: str
    named_group: str
    options: list[str] | None
    rotation: int
    sample: int
    completion: str
    answer: str | None
    named: str | None
    correct: bool
    included: bool
    listed: bool | None = None
    agrees: bool | None = None
    tokens: float
    truncated: bool
    error: str | None
    similarity: float | None = None  # open world, where a text encoder was asked
    encoder: str | None = None


class LabRecord(Record):
    """A record of a lab run: of one of the `STAGES`, with its training seed, and only once."""

    unique = ("model", "prompt", "seed", "split", "task", "photo")

    @model_validator(mode="after")
    def _check(self) -> Self:
        entry = Entry(self.model, self.prompt)
        if entry not in STAGES.values():
            raise ValueError(f"{entry} is none of {', '.join(map(str, STAGES.values()))}")
        if (self.seed is None) != (self.model == "base"):
            raise ValueError(f"seed {self.seed} of {entry}; give a number, null for the base")
        return self


def problems(rows: Sequence[Mapping], schema: type[Record]) -> list[str]:
    """A line for every record with something wrong, in their order."""
    wrong, lacking = defaultdict(list), defaultdict(list)  # number of the record -> what, which
    try:
        TypeAdapter(list[schema]).validate_python(rows)
    except ValidationError as caught:
        for error in caught.errors():
            number, *field = error["loc"]
            if error["type"] == "missing":
                lacking[number].append(field[0])
            else:
                given = f"{field[0]} {error['input']!r:.60}: " if field else ""
                wrong[number].append(given + error["msg"])
    for number, names in lacking.items():
        wrong[number].append(f"lacks {', '.join(names)}; evaluate again")
    seen = set()
    for number, row in enumerate(rows if schema.unique else ()):
        key = number if number in wrong else tuple(row[name] for name in schema.unique)
        if key in seen:
            wrong[number] = [f"{key} stands there twice; keep one"]
        seen.add(key)
    return [f"record {number + 1}: {'; '.join(wrong[number])}" for number in sorted(wrong)]


@dataclass(frozen=True)
class Completion:
    """One sample of an answer to a question."""

    text: str = ""
    tokens: int = 0
    truncated: bool = False  # the length limit came before the end
    error: str | None = None  # why there is no text to score


def record(
    benchmark: Benchmark,
    condition: Condition,
    question: Question,
    completion: Completion,
    *,
    model: str,
    seed: int | None = None,
    sample: int = 0,
) -> dict[str, Any]:
    """A completion, scored by the same parser as the reward's: the line of every records.jsonl."""
    classes, aliases = benchmark.names(question)
    verdict = scoring.judge(
        completion.text,
        question.label,
        classes,
        options=question.options,
        letters=condition.letters,
        prompt=condition.prompt,
        aliases=aliases,
        released_path=question.photo if benchmark.released else "",
        chain=not question.about,
    )
    return {
        "model": model,
        "seed": seed,
        "prompt": condition.prompt,
        "task": condition.task,
        "picture": condition.picture,
        "order": condition.order if condition.task == "closed" else None,
        "dataset": question.dataset,
        "split": question.split,
        "photo": question.photo,
        "label": question.label,
        "coarse": question.coarse,
        "group": benchmark.groups.get(question.label, ""),
        "named_group": benchmark.groups.get(verdict.named or "", ""),
        "options": list(question.options) if question.options else None,
        "rotation": question.rotation,
        "sample": sample,
        "completion": completion.text,
        **vars(verdict),
        "tokens": completion.tokens,
        "truncated": completion.truncated,
        "error": completion.error,
    }
