"""What a line of records.jsonl holds: one scored completion, the same for every kind of run."""

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, model_validator

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
