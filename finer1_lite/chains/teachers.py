"""Teachers on this machine: an oracle, a table of descriptions, any image-text-to-text model.

All teachers share one small protocol (`client.Teacher`), picture + prompt + which samples ->
replies. A reply is a function of these alone, so that a killed job goes on where it stopped;
what costs time or money is kept on disk by `client.Cached`. A model behind HTTP is
`client.Endpoint`.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from finer1_lite import cot, paperbirds, prompts
from finer1_lite.chains import concepts
from finer1_lite.chains.client import Reply, Samples, TeacherStopped, digest
from finer1_lite.chains.teacher_prompts import TeacherPrompt
from finer1_lite.data import wording
from finer1_lite.species import Collection, Photo


@dataclass
class Oracle:
    """Knows every paper bird's marks; describes with human failings, writes without any.

    overlooks, mistakes: probability that a mark is left out of a description, or told wrong.
    """

    world: paperbirds.World
    overlooks: float = 0.15
    mistakes: float = 0.05
    workers: int = 1

    @property
    def identity(self) -> dict:
        """What replies depend on."""
        failings = {"overlooks": self.overlooks, "mistakes": self.mistakes}
        return {"teacher": "oracle", "world": self.world.seed} | failings

    def ask(self, photo: Photo | None, prompt: TeacherPrompt, samples: Samples) -> list[Reply]:
        """Return a reply for each sample; each draws its failings from a seed of its own."""
        where = photo.id if photo else prompt.text
        reply = {"describe": self._describe, "extract": self._extract}.get(prompt.kind, self._write)
        seeds = [f"oracle/{where}/{prompt.kind}/{sample}" for sample in samples]
        return [Reply(reply(photo, prompt, random.Random(seed))) for seed in seeds]

    def _describe(self, photo: Photo, prompt: TeacherPrompt, rng: random.Random) -> str:
        seen = {}
        for mark, value in self.world.marks[photo.species].items():
            if rng.random() < self.overlooks:
                continue
            wrong = rng.random() < self.mistakes
            seen[mark] = rng.choice(paperbirds.MARKS[mark]) if wrong else value
        return ", ".join(f"{mark} {value}" for mark, value in seen.items())

    def _extract(self, photo: None, prompt: TeacherPrompt, rng: random.Random) -> str:
        every = [f"{m} {v}" for m, values in paperbirds.MARKS.items() for v in values]
        return "\n".join(phrase for phrase in every if re.search(rf"\b{phrase}\b", prompt.text))

    def _write(self, photo: Photo, prompt: TeacherPrompt, rng: random.Random) -> str:
        name, marks = photo.species, self.world.marks[photo.species]
        cited = [f"{m} {v}" for m, v in marks.items() if f"{m} {v}" in prompt.concepts]
        remarks = [cot.remark(self.world, marks, c) for c in prompt.candidates]
        analysis = ", ".join(cited) or paperbirds.describe(marks)
        return prompts.chain(analysis, prompt.candidates, remarks, name)


@dataclass
class Table:
    """Writes from a table of class descriptions. It has not seen the picture."""

    collection: Collection
    workers: int = 1

    @property
    def identity(self) -> dict:
        """What replies depend on."""
        descriptions = {s.name: s.description for s in self.collection.species}
        return {"teacher": "table", "table": digest(json.dumps(descriptions))}

    def ask(self, photo: Photo | None, prompt: TeacherPrompt, samples: Samples) -> list[Reply]:
        """A reply a sample: some of what there is to look for. TeacherStopped for concepts."""
        if prompt.kind == "extract":
            raise TeacherStopped("a table cannot extract concepts: use --extract yake")
        return [Reply(self._write(photo, prompt, sample)) for sample in samples]

    def _write(self, photo: Photo, prompt: TeacherPrompt, sample: int) -> str:
        told = cot.looks(self.collection, photo.species)
        if prompt.kind == "describe":
            return "; ".join(told)
        rng = random.Random(f"table/{photo.id}/{sample}")
        said = [phrase for phrase in told if not _cites(phrase, prompt.dropped)]
        first = [phrase for phrase in said if _cites(phrase, prompt.concepts)]
        if prompt.concepts and not first:
            said = first = prompt.concepts
        analysis = cot.to_look_for(said, rng, first)
        return cot.table_chain_of(self.collection, photo.species, prompt.candidates, analysis)


def _cites(phrase: str, cited: Sequence[str]) -> bool:
    """Whether a phrase mentions one of these concepts."""
    stems = concepts.clauses(wording.cut(phrase, cot.SEEN_WORDS))
    return any(concepts.mentions(concept, stems) for concept in cited)


@dataclass
class Local:
    """A vision-language model of a family that students have, on this machine.

    model, processor: as `models.load_student` loads them; the student itself may be handed in.
    Samples of one prompt are generated together.
    """

    model: Any
    processor: Any
    name: str
    max_new_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 0.95
    made_of: Sequence[str] = ()  # what tells its weights from others of the same name
    workers: int = 1
    together: ClassVar[bool] = True  # the samples of one prompt cost one reading of the picture

    @property
    def identity(self) -> dict:
        """What replies depend on."""
        names = ("max_new_tokens", "temperature", "top_p")
        settings = {name: getattr(self, name) for name in names}
        made_of = {"made of": list(self.made_of)} if self.made_of else {}
        return {"teacher": "local", "model": self.name} | settings | made_of

    def ask(self, photo: Photo | None, prompt: TeacherPrompt, samples: Samples) -> list[Reply]:
        """Return a reply for each sample, seeded so that another sample is another text.

        Empty where logits are not finite, as float16 may have it for one picture.
        """
        import torch

        from finer1_lite.generation import encode_prompts, generate
        from finer1_lite.runtime.checkpoints import NotFinite

        model, processor = self.model, self.processor
        batch = encode_prompts(model, processor, [prompt.text], [photo.image()] if photo else None)
        seed = int(digest(f"{prompt.text}/{list(samples)}")[:12], 16)
        try:
            made = generate(
                model,
                processor,
                batch,
                num_generations=len(samples),
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                generator=torch.Generator().manual_seed(seed),
            )
        except NotFinite:
            return [Reply("")] * len(samples)
        texts = processor.tokenizer.batch_decode(made.completion_ids, skip_special_tokens=True)
        read = int(batch.attention_mask.sum())
        facts = zip(texts, made.lengths.tolist(), made.truncated.tolist(), strict=True)
        return [Reply(t.strip(), read, n, "length" if cut else "stop") for t, n, cut in facts]


def load_local(
    source: str | Path, quantize: str = "none", pixels: int = 1024 * 28 * 28, **settings: Any
) -> Local:
    """A model of the hub or of a folder; quantize: nf4 is 4 bits (a 32B then wants about 24 GB)."""
    from finer1_lite import models
    from finer1_lite.presets import Preset
    from finer1_lite.students.card import weights

    student = models.load_student(source, Preset(quantize=quantize, pixels=pixels))
    name = Path(source).resolve().name if Path(source).exists() else str(source)
    made_of = [*weights(source), *([quantize] if quantize != "none" else [])]
    return Local(student.model, student.processor, name, made_of=made_of, **settings)
