"""Name new photographs: one completion each, and how likely every class name is.

Three lines: `from finer1_lite import predict`, `namer = predict.load("runs/flowers")`,
`namer(["a.jpg", "b.jpg"])`. The completion is greedy; every name is then scored as the end of its
chain: log-probability of the whole answer, by a temperature, plus a weight times the share of
completions with that name, in a softmax over the classes. `calibrate` fits both numbers.
Names behind the chain: negative log-likelihood 0.70 on an earlier student's paper birds; straight
behind the question 1.85 (asked without a chain), 2.38 (with one), behind its analysis alone 0.73.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.special import log_softmax

from finer1_lite import generation, logprobs, models, prompts, rewards
from finer1_lite.data import calibration, chain_text, images
from finer1_lite.generation import PromptBatch, Student
from finer1_lite.presets import Preset
from finer1_lite.runtime.checkpoints import NotFinite, require_finite
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.files import DataError
from finer1_lite.runtime.oom import Limits
from finer1_lite.species import Photo
from finer1_lite.students import card as cards
from finer1_lite.students.card import Card

log = logging.getLogger("finer1_lite")
AT_ONCE = 16  # photographs in memory, of any size

Picture = Image.Image | Path | str


@dataclass(frozen=True)
class Prediction:
    """What a photograph shows: its name, and how sure that is.

    ranked: every class with its confidence (they add up to 1), the likeliest first; answer: the
    completion's own; agrees: the chain leads to this answer, None without a chain; share: of the
    samples that give `name`, None where none were drawn.
    """

    name: str
    confidence: float
    ranked: list[tuple[str, float]]
    completion: str
    answer: str | None
    agrees: bool | None
    share: float | None


@dataclass(frozen=True)
class Evidence:
    """What a student says of P photographs and C classes.

    logps: (P, C) log-probability of each name, normalised over the classes; shares: (P, C) of the
    completions (the greedy one and the samples); completions: P lists, the greedy one first.
    """

    logps: np.ndarray
    shares: np.ndarray
    completions: list[list[str]]

    def each(self) -> "list[Evidence]":
        """The same, a photograph at a time."""
        rows = [slice(p, p + 1) for p in range(len(self.completions))]
        return [Evidence(self.logps[r], self.shares[r], self.completions[r]) for r in rows]


@dataclass
class Namer:
    """A student that names photographs; `load` makes one."""

    student: Student
    card: Card
    folder: Path
    batch: int = AT_ONCE
    limits: Limits = field(default_factory=Limits)

    @property
    def names(self) -> list[str]:
        """Every class that it can name."""
        return self.card.names

    def __call__(self, pictures: Sequence[Picture], samples: int = 0) -> list[Prediction]:
        """A prediction a picture, in order; PictureError for a file that cannot be read.

        samples: further completions of each, drawn at temperature 1. NotFinite for a picture
        whose logits overflow.
        """
        found = self.named(pictures, samples)
        for one in found:
            if isinstance(one, str):
                raise NotFinite(one)
        return found

    def named(self, pictures: Sequence[Picture], samples: int = 0) -> list[Prediction | str]:
        """As a call, but for a picture without a prediction the reason is in its place."""
        seen = self.evidence(pictures, samples)
        return [e if isinstance(e, str) else next(self._predict(e, samples)) for e in seen]

    def evidence(self, pictures: Sequence[Picture], samples: int = 0) -> list[Evidence | str]:
        """Of each picture alone, `batch` or fewer looked at together; or why there is none."""

        def at_once(size: int) -> list[Evidence]:
            parts = (pictures[at : at + size] for at in range(0, len(pictures), size))
            return [one for part in parts for one in self.look(part, samples).each()]

        lower = "pixels or samples"
        try:
            return self.limits.fit("photographs at a time", self.batch, at_once, lower)
        except NotFinite as error:
            if len(pictures) == 1:
                return [str(error)]
            return [one for picture in pictures for one in self.evidence([picture], samples)]

    def look(self, pictures: Sequence[Picture], samples: int = 0) -> Evidence:
        """The evidence on one batch of pictures."""
        shown = [
            images.reduced(images.to_rgb(p), images.MOST)
            if isinstance(p, Image.Image)
            else images.decode(p)
            for p in pictures
        ]
        question = self.card.question or prompts.question(self.card.prompt, self.card.coarse)
        model, processor = self.student.model, self.student.processor
        batch = generation.encode_prompts(model, processor, [question] * len(shown), shown)
        limit = self.card.max_new_tokens
        write = partial(generation.generate, model, processor, batch, max_new_tokens=limit)
        said = [[text] for text in write().completions]
        if samples:
            own = [torch.Generator(self.student.device).manual_seed(_seed(p)) for p in shown]
            more = write(num_generations=samples, temperature=1.0, generator=own).completions
            said = [[*s, *more[p * samples :][:samples]] for p, s in enumerate(said)]
        chains = [chain_of(texts[0]) for texts in said]
        logps = name_logps(self.student, batch, chains, self.names)
        shares = np.array([self._shares(texts) for texts in said])
        return Evidence(log_softmax(logps, 1), shares, said)

    def fitted(self, samples: int = 0) -> dict[str, Any] | None:
        """What was fitted for so many samples; None before `calibrate`."""
        return (self.card.calibration or {}).get(str(samples))

    def reliability(self, samples: int = 0) -> str:
        """How far the confidences can be trusted, in a plain sentence."""
        return calibration.reliability(self.fitted(samples))

    def _shares(self, texts: Sequence[str]) -> np.ndarray:
        """The share of completions that name each class: (C,)."""
        answers = map(rewards.parse_answer, texts)
        named = [rewards.match_class(answer, self.names, self.card.aliases) for answer in answers]
        return np.array([named.count(name) / len(texts) for name in self.names])

    def _predict(self, seen: Evidence, samples: int) -> Iterator[Prediction]:
        fit = self.fitted(samples) or {"temperature": 1.0, "agreement": 0.0}
        weights = np.array([1 / fit["temperature"], fit["agreement"]])
        rows = calibration.confidences(weights, np.stack([seen.logps, seen.shares]))
        for texts, row in zip(seen.completions, rows, strict=True):
            order = np.argsort(-row, kind="stable")
            ranked = [(self.names[i], float(row[i])) for i in order]
            answer = rewards.parse_answer(texts[0])
            chain = chain_text.agreement(texts[0], answer, self.names, aliases=self.card.aliases)
            agrees = chain["agrees"] if chain["predicted"] else None
            share = float(self._shares(texts[1:])[order[0]]) if samples else None
            yield Prediction(*ranked[0], ranked, texts[0], answer, agrees, share)


def load(source: str | Path, preset: Preset | None = None, base: str | None = None) -> Namer:
    """A student that names photographs, out of a run's folder, an adapter or a merged model.

    preset: how it is loaded (quantize, pixels, eval_batch), where not as it was trained; base:
    of the adapter, where it is not where the card says. DataError without a card.
    """
    folder = cards.adapter_of(source)
    card = cards.read_card(folder)
    if card is None:
        what = f"{folder}: has no {cards.FILE}; start the `lab` of this run again, which writes it"
        raise DataError([what], "which classes this model knows is not written anywhere:")
    kept = {k: card.settings[k] for k in ("quantize", "eval_batch") if k in card.settings}
    preset = preset or Preset(pixels=min(card.pixels, images.MOST), **kept)
    student = models.load_trained(folder, preset, base)
    return Namer(student, card, folder, min(AT_ONCE, preset.eval_batch))


# --- the likelihood of names ------------------------------------------------------------------


def chain_of(completion: str) -> str:
    """A completion up to its answer; a chain that was cut or never ended is closed."""
    head = completion.partition("<answer>")[0]
    return f"{head}\n</think>\n" if "<think>" in head and "</think>" not in head else head


def _seed(picture: Image.Image) -> int:
    """A picture's own seed, so that its samples depend on nothing beside it."""
    return int.from_bytes(hashlib.sha256(picture.tobytes()).digest()[:4])


def name_logps(
    student: Student, batch: PromptBatch, chains: Sequence[str], names: Sequence[str]
) -> np.ndarray:
    """Log-probability of every answer behind prompt p and chains[p]: (P, C), in nats.

    Of the whole ``<answer>name</answer>``, less what all names have in common at its beginning.
    """
    tok = student.processor.tokenizer
    every = [tok(prompts.answer(n), add_special_tokens=False)["input_ids"] for n in names]
    shared = min(len(os.path.commonprefix(every)), min(map(len, every)) - 1)
    heads = [tok(c, add_special_tokens=False)["input_ids"] + every[0][:shared] for c in chains]
    tails = [torch.tensor(ids[shared:]) for ids in every]
    found = logprobs.of_each(student.model, generation.extended(batch, heads), tails)
    require_finite([("the log-probabilities of names", found)])
    return found.cpu().double().numpy()


def calibrate(
    namer: Namer, photos: Sequence[Photo], samples: int = 0, source: str = "given photographs"
) -> dict[str, Any]:
    """`calibration.fit` on held-out photographs, kept in card.json.

    source: what the photographs are; one without evidence is left out. DataError for fewer than 4.
    """
    parts: list[Evidence | str] = []
    with progress_bar(len(photos), "calibration") as bar:
        for at in range(0, len(photos), namer.batch):
            some = [photo.image() for photo in photos[at : at + namer.batch]]
            parts += namer.evidence(some, samples)
            bar.update(len(some))
    pairs = [(e, p) for e, p in zip(parts, photos, strict=True) if not isinstance(e, str)]
    if len(pairs) < len(photos):
        log.warning("calibration: %d overflow and are left out", len(photos) - len(pairs))
    if len(pairs) < 4:
        raise DataError([f"{len(pairs)} photographs: 4 are needed at least"], "not calibrated:")
    labels = np.array([namer.names.index(photo.species) for _, photo in pairs])
    logps = np.concatenate([part.logps for part, _ in pairs])
    shares = np.concatenate([part.shares for part, _ in pairs])
    fit = calibration.fit(logps, shares, labels, source)
    known = (namer.card.calibration or {}) | {str(samples): fit}
    namer.card = namer.card.model_copy(update={"calibration": known})
    try:
        cards.keep_card(namer.folder, namer.card)
    except OSError as error:
        log.warning("%s: the calibration cannot be kept (%s)", namer.folder, error.strerror)
    return fit
