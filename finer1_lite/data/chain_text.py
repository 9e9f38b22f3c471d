"""A chain's text taken apart: the one reader of what a model thought, in four sections.

Two ways to read one text. `pieces`, `section`, `opening` and `edit_chain` take whatever a
student wrote, find headings in any case and lose nothing. `Chain` is for judging: our own
form has each section on a line that begins with its heading; the released chains are free
prose, whose headings are looked for by pattern (`loose`). Loads neither torch nor matplotlib.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from finer1_lite import prompts, rewards

PARTS = tuple(heading.rstrip(":") for heading in prompts.SECTIONS)
_ANYWHERE = [re.compile(heading, re.IGNORECASE) for heading in prompts.SECTIONS]
_AT_LINE_START = [re.compile(f"^{heading}", re.MULTILINE) for heading in prompts.SECTIONS]
LOOSE_HEADINGS = {  # released chains: a line or a sentence that opens the section
    "analysis": re.compile(r"(?im)^[ #*]{0,4}(?:\d\. )?(?:\w{1,20} )?analy\w{1,9}\b[^\n]{0,70}$"),
    "candidates": re.compile(r"(?im)^[^\n]{0,160}\bcandidate[^\n]{0,200}$"),
    "comparison": re.compile(r"(?im)^[ #*]{0,4}(?:\d\. )?[\w' ]{0,30}compar\w{0,9}\b[^\n]{0,60}$"),
    "prediction": re.compile(r"(?im)^[ #*]{0,4}(?:the |final )?predict\w{0,9}\b[^\n]*$"),
}
_FITS = re.compile(r"(?i)\b(?:fits?|match(?:es)?|agrees?|consistent)\b")
_FITS_NOT = re.compile(r"(?i)\b(?:not|no|nothing|neither|never|cannot|but|less)\b|n't\b")
_ITEM = re.compile(r"^ ?(?:[-*\u2022]|\*{0,2}\d+[.)])\s+(.+)$", re.MULTILINE)


@lru_cache(maxsize=1024)  # every check folds the same few texts
def fold(text: str) -> str:
    """Bring a text to the form in which names are compared (`rewards.normalise`)."""
    return rewards.normalise(text)


def names_in(text: str, name: str) -> bool:
    """Whether the name stands in the text as whole words, in the singular or plural."""
    return bool(re.search(rf"(?<!\w){re.escape(fold(name))}(?:e?s)?(?!\w)", fold(text)))


# --- whatever a student wrote ----------------------------------------------------------------


def spans(text: str, exact: bool = False) -> dict[str, tuple[int, int]]:
    """Where each section stands, heading included: part -> (start, end) in characters.

    Headings are looked for in order; a section runs to the next one found, or to ``</think>``.
    exact: headings as they are written and at the beginning of a line only.
    """
    stop = text.find("</think>")
    stop = len(text) if stop < 0 else stop
    starts: dict[str, int] = {}
    at = 0
    for part, heading in zip(PARTS, _AT_LINE_START if exact else _ANYWHERE, strict=True):
        found = heading.search(text, at, stop)
        if found:
            starts[part], at = found.span()
    return dict(zip(starts, pairwise([*starts.values(), stop]), strict=True))


def pieces(completion: str) -> list[tuple[str | None, str]]:
    """Cut a completion at its headings: (part, or None around them; text with its heading).

    The texts joined are the completion again.
    """
    found = spans(completion)
    edges = list(found.values()) or [(len(completion), len(completion))]
    named = [(part, completion[start:end]) for part, (start, end) in found.items()]
    whole = [(None, completion[: edges[0][0]]), *named, (None, completion[edges[-1][1] :])]
    return [(part, text) for part, text in whole if text]


def section(completion: str, part: str) -> str:
    """What stands under the heading of `part` (one of `PARTS`); "" where there is none."""
    start, end = spans(completion).get(part, (0, 0))
    return completion[start:end].partition(":")[2].strip()


def opening(completion: str) -> str:
    """The completion up to the heading of its candidates; "" where there is none."""
    return completion[: spans(completion).get("candidates", (0, 0))[0]]


def edit_chain(completion: str, changes: Mapping[str, str]) -> str | None:
    """The chain up to its candidates, with cited marks replaced; None if none is cited.

    changes: phrase -> phrase. Only the analysis is kept, because the rest argues from it.
    """
    edited = kept = opening(completion)
    for old, new in changes.items():
        edited = edited.replace(old, new)
    return edited if edited != kept else None


# --- whether the chain leads to the answer ----------------------------------------------------


def agreement(
    completion: str, answer: str | None, names: Sequence[str], label: str | None = None
) -> dict[str, bool | str | None]:
    """Whether a completion's thought leads to its answer; names are compared as in scoring.

    Returns a dict: parts (all four are there), listed (the label or, given no truth, the answer
    is among the candidates), distinct (two candidates or more, each once), picked (the one
    candidate of which the comparison says that it fits; None for none or several), compared
    (there is such a one, and it was listed), predicted (spelled as in `names` where it is one of
    them), agrees (prediction equals answer, and so does the pick where there is one).
    """
    wanted = fold(answer or "")
    candidates = [fold(c) for c in section(completion, "candidates").split(",") if c.strip()]
    spelled = {fold(name): name for name in names}
    picked = _picked(section(completion, "comparison"))
    predicted = section(completion, "prediction").partition("\n")[0].strip()
    sought = wanted if label is None else fold(label)
    return {
        "parts": len(spans(completion)) == len(PARTS),
        "listed": bool(sought) and sought in candidates,
        "distinct": len(set(candidates)) == len(candidates) > 1,
        "compared": picked is not None and fold(picked) in candidates,
        "picked": picked and spelled.get(fold(picked), picked),
        "predicted": spelled.get(fold(predicted), predicted) or None,
        "agrees": bool(wanted) and all(fold(n) == wanted for n in (predicted, picked or wanted)),
    }


def _picked(comparison: str) -> str | None:
    """The name whose remark alone says that it fits."""
    remarks = [row.partition(":") for row in re.split(r"[;\n]", comparison)]
    fitting = {name.strip() for name, _, said in remarks if _FITS.search(said)}
    fitting -= {name.strip() for name, _, said in remarks if _FITS_NOT.search(said)}
    return fitting.pop() or None if len(fitting) == 1 else None


# --- a chain that is judged ------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """A chain with all that it is judged by; each part is read once.

    wanted: the candidates that the teacher was given; kept, dropped: concepts; loose: headings
    by pattern (released chains) instead of our exact form.
    """

    text: str
    label: str = ""
    aliases: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    loose: bool = False

    @cached_property
    def think(self) -> str:
        """The text between the tags of the thought."""
        return self.text.partition("<think>")[2].partition("</think>")[0]

    @cached_property
    def answer(self) -> str | None:
        """The text of the one valid answer, or None (`rewards.parse_answer`)."""
        return rewards.parse_answer(self.text)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The label and its aliases."""
        return (self.label, *self.aliases)

    @cached_property
    def parts(self) -> dict[str, str]:
        """Part -> its text without the heading, for the parts that are found."""
        if self.loose:
            return _loose_parts(self.think)
        found = spans(self.think, exact=True)
        return {part: self.think[a:b].partition(":")[2].strip() for part, (a, b) in found.items()}

    @cached_property
    def before(self) -> str:
        """What is said before any candidate is named."""
        if self.loose:
            return re.split(r"(?i)candidate", self.think)[0]
        return self.parts.get("analysis", self.think.partition("candidates:")[0])

    @cached_property
    def listed(self) -> list[str]:
        """The candidates' names as the chain lists them."""
        part = self.parts.get("candidates", "")
        if not self.loose:
            return [c.strip() for c in part.split(",") if c.strip()]
        ends = r"\*\*:?\s|:| - | \u2013 |\s\(|;"
        return [re.split(ends, item)[0].strip(" *.") for item in _items(part)]

    @cached_property
    def place(self) -> int:
        """Where the label stands among the candidates, counted from 0; -1: nowhere."""
        names = {fold(name) for name in self.names}
        return next((i for i, n in enumerate(self.listed) if fold(n) in names), -1)

    @cached_property
    def remarks(self) -> dict[str, str]:
        """Candidate, folded -> what the comparison says of it, in our form."""
        rows = re.split(r"[;\n]", self.parts.get("comparison", ""))
        halves = [row.partition(":") for row in rows]
        return {fold(name): remark.strip() for name, colon, remark in halves if colon}

    @cached_property
    def prediction(self) -> str:
        """The text of the prediction; "" where there is none."""
        return self.parts.get("prediction", "")


def _loose_parts(think: str) -> dict[str, str]:
    """The released prose by its headings; the candidates are the first list after theirs."""
    first = re.search(r"(?i)candidate", think)
    parts = {"analysis": think[: first.start()] if first else think}
    headings = LOOSE_HEADINGS["comparison"].finditer(think)
    starts = (m.start() for m in headings if not first or m.start() > first.start())
    compare = next(starts, None)
    for heading in LOOSE_HEADINGS["candidates"].finditer(think):
        end = compare if compare and compare > heading.end() else len(think)
        if _items(think[heading.end() : end]):
            parts["candidates"] = think[heading.end() : end]
            break
    if re.search("(?i)compar", think):
        parts["comparison"] = think[compare or 0 :]
    for heading in LOOSE_HEADINGS["prediction"].finditer(think):
        parts["prediction"] = think[heading.start() :]  # the last one counts
    return parts


def _items(text: str) -> list[str]:
    """The entries of the first list in a text: those of one mark, without nested ones."""
    for block in re.split(r"\n\s*\n(?=\s{0,1}[^\s\-*\u2022\d])", text):
        rows = list(_ITEM.finditer(block))
        numbered = [m for m in rows if m.group().lstrip(" *")[0].isdigit()]
        if rows:
            return [m.group(1) for m in (numbered or rows)]
    return []
