"""Concepts: the short phrases of descriptions that tell a class from its look-alikes.

Extraction and merging are a library's work (or the teacher's); what is ours is the choice, an
information bottleneck, I(concept; class) - beta I(concept; picture), estimated from how often the
descriptions of each picture mention the concept.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import snowballstemmer
from numpy.typing import NDArray
from rapidfuzz import fuzz
from scipy.special import entr

from finer1_lite.data import wording

Floats = NDArray[np.float64]

BETA = 0.7  # price of a bit about the single picture, in bits about the class
LEAST = 3  # concepts kept at least (SelfSynthX)
ALIKE = 90.0  # of 100: phrases that differ by a letter or an ending are one
DENIED_WORDS = 8  # of a clause that is a concept as a whole
NEGATED = "\u00ac"  # stands for any negation among stems
ARTICLES = {"a", "an", "the"}
AGREED = 1 / 3  # share of a picture's descriptions that make a concept its own
_CLAUSE = re.compile(r"[.,;:!?()\n]|\band\b|\bbut\b|\bwhile\b")


@lru_cache(maxsize=50_000)
def _stem(word: str) -> str:
    # a stemmer keeps its word in itself, and teachers answer in threads: one for each word
    return snowballstemmer.stemmer("english").stemWord(word)


def stems(text: str) -> frozenset[str]:
    """Reduce a text to its words without their endings; every negation is `NEGATED`."""
    words = re.findall(r"\w+", wording.NEGATION.sub(" ", text.casefold()))
    found = frozenset(map(_stem, words)) - ARTICLES
    return found | {NEGATED} if found and wording.negated(text) else found


def clauses(text: str) -> list[frozenset[str]]:
    """Reduce each clause to stems: "crown red, back blue" has no "red back"; denials stay whole."""
    found = []
    for scope in wording.scopes(text):
        found += [scope] if wording.negated(scope) else _CLAUSE.split(scope)
    return [words for words in map(stems, found) if words]


def mentions(concept: str, stems_of_clauses: Sequence[frozenset[str]]) -> bool:
    """Whether one clause holds all words of the concept, in any order and ending.

    A denied concept ("without a disc") is mentioned where it is denied, any other where it is not.
    """
    words = stems(concept)
    denied = NEGATED in words
    found = (words <= others and denied == (NEGATED in others) for others in stems_of_clauses)
    return bool(words) and any(found)


# --- extraction and merging ----------------------------------------------------------------


def extract(texts: Sequence[str], limit: int = 40) -> list[str]:
    """Find noun-like phrases of one to three words by YAKE (statistics of texts, no model).

    A clause that denies something is a concept as a whole: YAKE would lose its negation.
    """
    import yake  # slow to import, and a teacher may extract instead

    every = [clause for text in texts for clause in wording.clauses(text)]
    denied = [clause for clause in every if wording.negated(clause)]
    extractor = yake.KeywordExtractor(lan="en", n=3, dedup_lim=1.0, top=4 * limit)
    found = extractor.extract_keywords(".\n".join(c for c in every if c not in denied))
    short = [clause for clause in denied if len(clause.split()) <= DENIED_WORDS]
    return merge([*short, *(phrase.casefold().strip(" .") for phrase, _ in found)])[:limit]


def read_list(answer: str, limit: int = 200) -> list[str]:
    """Read the phrases of a teacher's list: one a line, bullets and numbers taken off."""
    lines = [re.sub(r"^[\s\-*\u2022\d.)]+", "", line).strip(" .\t") for line in answer.splitlines()]
    return [line.casefold() for line in lines if 0 < len(line.split()) <= 5][:limit]


def merge(phrases: Iterable[str], alike: float = ALIKE) -> list[str]:
    """Keep one phrase of all that say the same: the first, unless a longer one says more.

    Same stems in any order, or nearly the same letters, or all words part of a longer phrase
    that is already there ("yellow" beside "yellow shell").
    """
    kept: list[str] = []
    for phrase in sorted(dict.fromkeys(phrases), key=lambda p: -len(p.split())):
        words = stems(phrase)
        alike_ones = [k for k in kept if wording.negated(k) == wording.negated(phrase)]
        same = (words <= stems(k) or fuzz.token_sort_ratio(phrase, k) >= alike for k in alike_ones)
        if words and not any(same):
            kept.append(phrase)
    return kept


# --- the bottleneck -------------------------------------------------------------------------


def information(rates: Floats, groups: Sequence[int]) -> Floats:
    """Return I(mentioned; group) in bits, (J,); groups and their pictures are equally likely.

    rates: (J, P) share of each picture's descriptions that mention the concept; groups: (P,)
    the group of each picture. Every picture its own group gives I(mentioned; picture).
    """
    index = np.asarray(groups)
    means = np.stack([rates[:, index == g].mean(1) for g in np.unique(index)], axis=1)  # (J, G)
    nats = [entr(p) + entr(1 - p) for p in (means.mean(1), means)]  # of coins
    return (nats[0] - nats[1].mean(1)) / np.log(2)


def count_scores(rates: Floats, classes: Sequence[int], beta: float) -> Floats:
    """Return I(concept; class) - beta I(concept; picture) in bits, (J,).

    What all classes share scores 0. A mark of all the class's pictures and of no others scores
    (1 - beta) times its relevance, so it survives any beta below 1; what one description of one
    picture says falls below 0 (with two pictures a class from beta 0.6 on, with more earlier).
    beta 0: relevance alone. ValueError unless all classes have equally many pictures.
    """
    sizes = np.unique(np.asarray(classes), return_counts=True)[1]
    if len(set(sizes.tolist())) > 1:
        raise ValueError(f"classes with {sizes.tolist()} pictures: give each equally many")
    return information(rates, classes) - beta * information(rates, np.arange(rates.shape[1]))


# --- the choice ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """Concepts with their scores; the kept ones best first."""

    kept: tuple[str, ...]
    dropped: tuple[str, ...]
    scores: dict[str, float]


def mention_rates(concepts: Sequence[str], described: Sequence[Sequence[str]]) -> Floats:
    """Return the share of each picture's descriptions that mention each concept, (J, P)."""
    rates = np.zeros((len(concepts), len(described)))
    for p, texts in enumerate(described):
        split = [clauses(text) for text in texts]
        for j, concept in enumerate(concepts):
            rates[j, p] = sum(mentions(concept, s) for s in split) / max(len(split), 1)
    return rates


def select(
    name: str,
    described: Mapping[str, Sequence[Sequence[str]]],
    concepts: Sequence[str],
    *,
    beta: float = BETA,
    least: int = LEAST,
) -> Selection:
    """Choose the concepts of class `name` against the other classes of `described`.

    Kept is what scores above 0 and is said of this class more often than of the others.
    described: class -> for each of its pictures the descriptions. A concept that no description
    of the class mentions is neither kept nor dropped.
    """
    fewest = min(len(pictures) for pictures in described.values())
    classes = [c for c in described for _ in range(fewest)]
    rates = mention_rates(concepts, [p for c in described for p in described[c][:fewest]])
    of_class = np.array([c == name for c in classes])
    said = rates[:, of_class].max(1, initial=0) > 0
    concepts = [c for c, s in zip(concepts, said, strict=True) if s]
    rates = rates[said]
    scores = count_scores(rates, [list(described).index(c) for c in classes], beta)
    own = rates[:, of_class].mean(1)
    others = np.zeros(len(concepts)) if of_class.all() else rates[:, ~of_class].mean(1)
    # a mark that only the others have cannot be seen here
    ranked = [int(j) for j in np.argsort(-scores, kind="stable") if own[j] > others[j]]
    kept = [j for place, j in enumerate(ranked) if scores[j] > 0 or place < least]
    dropped = tuple(c for j, c in enumerate(concepts) if j not in kept)
    by_name = {concepts[j]: float(scores[j]) for j in ranked}
    return Selection(tuple(concepts[j] for j in kept), dropped, by_name)


def over_beta(
    name: str,
    described: Mapping[str, Sequence[Sequence[str]]],
    concepts: Sequence[str],
    beta: float = BETA,
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """What `figures.bottleneck` draws: (shares, scores, the concepts that beta keeps of a class).

    described: class -> for each picture its descriptions, equally many pictures a class. A row
    a concept, the kept ones first. shares: in what share of each class's descriptions it occurs;
    scores: I(concept; class) - beta I(concept; picture) for beta from 0 to 1.
    """
    chosen = select(name, described, concepts, beta=beta, least=0)
    shown = [*chosen.kept, *chosen.dropped]
    kinds = [name, *(c for c in described if c != name)]
    index = np.array([i for i, c in enumerate(kinds) for _ in described[c]])
    rates = mention_rates(shown, [p for c in kinds for p in described[c]])
    shares = {c: rates[:, index == i].mean(1) for i, c in enumerate(kinds)}
    scores = {b: count_scores(rates, index, b) for b in np.linspace(0, 1, 21)}
    return pd.DataFrame(shares, shown), pd.DataFrame(scores, shown), chosen.kept


def of_picture(selection: Selection, texts: Sequence[str], least: int = LEAST) -> list[str]:
    """Return the class's kept concepts that this picture's descriptions agree on."""
    rates = mention_rates(selection.kept, [texts])[:, 0]
    own = [c for c, rate in zip(selection.kept, rates, strict=True) if rate >= AGREED]
    return own or list(selection.kept[:least])
