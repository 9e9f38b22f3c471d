"""A chain's text taken apart: thought, answer, the four parts, the candidates.

Our own form has each part on a line that begins with its heading; the released chains are
free prose, whose headings are looked for by pattern.
"""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from finer1_lite import prompts, rewards

PARTS = ("analysis", "candidates", "comparison", "prediction")
_ITEM = re.compile(r"^ ?(?:[-*\u2022]|\*{0,2}\d+[.)])\s+(.+)$", re.MULTILINE)
HEADINGS = {  # released chains: a line or a sentence that opens the part
    "analysis": re.compile(r"(?im)^[ #*]{0,4}(?:\d\. )?(?:\w{1,20} )?analy\w{1,9}\b[^\n]{0,70}$"),
    "candidates": re.compile(r"(?im)^[^\n]{0,160}\bcandidate[^\n]{0,200}$"),
    "comparison": re.compile(r"(?im)^[ #*]{0,4}(?:\d\. )?[\w' ]{0,30}compar\w{0,9}\b[^\n]{0,60}$"),
    "prediction": re.compile(r"(?im)^[ #*]{0,4}(?:the |final )?predict\w{0,9}\b[^\n]*$"),
}


@lru_cache(maxsize=1024)  # every check folds the same few texts
def fold(text: str) -> str:
    """As names are compared: no case, no invisible characters, dashes as spaces."""
    return rewards.normalise(text)


def names_in(text: str, name: str) -> bool:
    """Whether the name stands in the text as whole words, in the singular or plural."""
    return bool(re.search(rf"(?<!\w){re.escape(fold(name))}(?:e?s)?(?!\w)", fold(text)))


@dataclass(frozen=True)
class Chain:
    """A chain with all that it is judged by; parsed once.

    asked: the candidates that the teacher was given; kept, dropped: concepts; loose: headings
    by pattern (released chains) instead of our exact form.
    """

    text: str
    label: str
    aliases: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    loose: bool = False

    @cached_property
    def think(self) -> str:
        return self.text.partition("<think>")[2].partition("</think>")[0]

    @cached_property
    def answer(self) -> str | None:
        return rewards.parse_answer(self.text)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return (self.label, *self.aliases)

    @cached_property
    def parts(self) -> dict[str, str]:
        """Heading -> text, for the headings that are there once and in order."""
        return (_loose_parts if self.loose else _strict_parts)(self.think)

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
        return [re.split(r"\*\*:?\s|:| - | \u2013 |\s\(|;", i)[0].strip(" *.") for i in items(part)]

    @cached_property
    def remarks(self) -> dict[str, str]:
        """Candidate -> what the comparison says of it, in our form."""
        found = {}
        for piece in re.split(r"[;\n]", self.parts.get("comparison", "")):
            name, colon, remark = piece.partition(":")
            if colon:
                found[fold(name)] = remark.strip()
        return found


def _strict_parts(think: str) -> dict[str, str]:
    starts = [re.search(rf"^{heading}", think, re.MULTILINE) for heading in prompts.SECTIONS]
    found = [(p, s) for p, s in zip(PARTS, starts) if s]
    ends = [s.start() for _, s in found[1:]] + [len(think)]
    return {
        part: think[start.end() : end].strip()
        for (part, start), end in zip(found, ends)
        if start.end() <= end
    }


def _loose_parts(think: str) -> dict[str, str]:
    """The released prose by its headings; the candidates are the first list after theirs."""
    parts = {}
    first = re.search(r"(?i)candidate", think)
    parts["analysis"] = think[: first.start()] if first else think
    compare = next(
        (
            m.start()
            for m in HEADINGS["comparison"].finditer(think)
            if not first or m.start() > first.start()
        ),
        None,
    )
    for opening in HEADINGS["candidates"].finditer(think):
        end = compare if compare and compare > opening.end() else len(think)
        if items(think[opening.end() : end]):
            parts["candidates"] = think[opening.end() : end]
            break
    if re.search("(?i)compar", think):
        parts["comparison"] = think[compare:] if compare else think
    final = list(HEADINGS["prediction"].finditer(think))
    if final:
        parts["prediction"] = think[final[-1].start() :]
    return parts


def items(text: str) -> list[str]:
    """The entries of the first list in a text: those of one mark, without nested ones."""
    found = []
    for block in re.split(r"\n\s*\n(?=\s{0,1}[^\s\-*\u2022\d])", text):
        rows = list(_ITEM.finditer(block))
        numbered = [m for m in rows if m.group().lstrip(" *")[0].isdigit()]
        found = [m.group(1) for m in (numbered or rows)]
        if found:
            break
    return found
