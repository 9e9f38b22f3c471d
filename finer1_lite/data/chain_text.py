"""A chain's text taken apart: the one reader of what a model thought, in four sections.

Two ways to read one text. `pieces`, `section`, `opening` and `edit_chain` take whatever a
student wrote, find headings in any case and lose nothing. `Chain` is for judging: our own
form has each section on a line that begins with its heading; the released chains are free
prose, whose headings are looked for by pattern (`loose`). Loads neither torch nor matplotlib.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from finer1_lite import prompts, rewards
from finer1_lite.rewards import normalise as fold  # texts are compared as names are

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
_WHOLE = str.maketrans(",:;", "\ue000\ue001\ue002")  # inside a name they separate nothing
_APART = {to: at for at, to in _WHOLE.items()}
_ITEM = re.compile(r"^ ?(?:[-*\u2022]|\*{0,2}\d+[.)])\s+(.+)$", re.MULTILINE)
# Scripts that put no space between words, join particles to them, or have vowels that count as
# no letters (Hebrew to Korean, Khmer, Chinese, Japanese): names are found inside a run of them.
JOINED = "\u0590-\u11ff\u1780-\u17ff\u2e80-\u2fff\u3005-\u3007\u3041-\ua4cf\uac00-\ud7ff"
JOINED += "\uf900-\ufdff\ufe70-\ufefe\U00020000-\U0003ffff"


def edges(name: str, ending: str = "(?:e?s)?") -> tuple[str, str]:
    """Patterns that make a name between them a whole word, where its script has such."""
    before = "" if re.match(f"[{JOINED}]", name) else r"(?<!\w)"
    return before, "" if re.match(f"[{JOINED}]", name[-1:]) else rf"{ending}(?!\w)"


def names_in(text: str, name: str) -> bool:
    """Whether the name stands in the text as whole words, in the singular or plural."""
    before, behind = edges(fold(name))
    return bool(re.search(before + re.escape(fold(name)) + behind, fold(text)))


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
    """Cut at the headings, losing nothing: (part, or None around them; text with its heading)."""
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
    completion: str,
    answer: str | None,
    names: Sequence[str] = (),
    label: str | None = None,
    aliases: rewards.Aliases = None,
) -> dict[str, bool | str | list[str] | None]:
    """Whether a completion's thought leads to its answer; names are compared as in scoring.

    names: of the classes, with their aliases, which stand for them; one that holds a comma, colon
    or semicolon is taken whole. Returns a dict: parts (all four are there), candidates as written,
    listed (the label or, given no truth, the answer is among them), distinct (two candidates or
    more, each once), picked (the one name that the comparison leaves, see `_picked`; None for none
    or several), compared (there is such a one, and each candidate has one remark), predicted,
    agrees (all of that, and pick, prediction and answer are one name).
    """
    spelled = {fold(n): name for name in names for n in (name, *(aliases or {}).get(name, ()))}
    known = {label or "", *names, *(n for name in names for n in (aliases or {}).get(name, ()))}
    completion = _masked(completion, known)
    spelled |= {fold(n.translate(_WHOLE)): spelled.get(fold(n), n) for n in known}

    def one(name: str) -> str:
        return fold(spelled.get(fold(name), name))

    written = [c.strip() for c in section(completion, "candidates").split(",") if c.strip()]
    candidates = [one(name) for name in written]
    remarks = [(one(name), said) for name, said in remarks_of(section(completion, "comparison"))]
    picked = _picked(remarks)
    predicted = section(completion, "prediction").partition("\n")[0].strip()
    wanted = one(answer or "")
    sought = wanted if label is None else one(label)
    found = {
        "parts": len(spans(completion)) == len(PARTS),
        "candidates": [name.translate(_APART) for name in written],
        "listed": bool(sought) and sought in candidates,
        "distinct": len(set(candidates)) == len(candidates) > 1,
        "compared": picked is not None and sorted(n for n, _ in remarks) == sorted(candidates),
        "picked": picked and spelled.get(picked, picked),
        "predicted": spelled.get(fold(predicted), predicted) or None,
    }
    whole = found["parts"] and found["distinct"] and found["compared"]
    return found | {"agrees": whole and bool(wanted) and one(predicted) == picked == wanted}


def _picked(remarks: Sequence[tuple[str, str]]) -> str | None:
    """The name whose remark alone says that it fits.

    Where none does and every remark lists what its candidate `has` otherwise behind what it
    looks like ("crown red, back blue, has back blue"), the name with the shortest list.
    """
    fitting = {name for name, said in remarks if _FITS.search(said)}
    fitting -= {name for name, said in remarks if _FITS_NOT.search(said)}
    against = {name: _lacking(said) for name, said in remarks}
    if not fitting and all(against.values()):
        least = min(against.values(), default=0)
        fitting = {name for name, n in against.items() if n == least}
    return fitting.pop() or None if len(fitting) == 1 else None


def _lacking(remark: str) -> int:
    """How many marks, two words each, a remark lists behind its recital; 0: none, or prose."""
    recital, _, listed = remark.rpartition(", has ")
    marks = listed.split(", ")
    return len(marks) if "," in recital and all(len(m.split()) == 2 for m in marks) else 0


def _masked(text: str, names: Iterable[str]) -> str:
    """The text, where commas, colons and semicolons inside these names separate nothing."""
    for name in sorted({n for n in names if n != n.translate(_WHOLE)}, key=len, reverse=True):
        text = text.replace(name, name.translate(_WHOLE))
    return text


def remarks_of(comparison: str) -> list[tuple[str, str]]:
    """The comparison's (candidate, remark), as they are written."""
    halves = [row.partition(":") for row in re.split(r"[;\n]", comparison)]
    return [(name.strip(), said.strip()) for name, colon, said in halves if colon]


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
            written = _masked(part, (*self.names, *self.wanted)).split(",")
            return [c.strip().translate(_APART) for c in written if c.strip()]
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
        text = _masked(self.parts.get("comparison", ""), (*self.names, *self.wanted))
        pairs = remarks_of(text)
        return {fold(name.translate(_APART)): said.translate(_APART) for name, said in pairs}


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
