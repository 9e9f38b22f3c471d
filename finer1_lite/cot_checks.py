"""What makes a chain unfit to learn from: one small function a fault, all in one table.

Each function takes a parsed `Chain` and returns the reason in words, or None. The same table
serves our own form (each part on a line that begins with its heading) and the released
chains' free prose, whose headings are looked for by pattern.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb

from finer1_lite import concepts, prompts, rewards

PARTS = ("analysis", "candidates", "comparison", "prediction")
MIN_WORDS, MAX_WORDS = 12, 900  # of the thought
ENDING = 600  # characters that hold a free chain's conclusion
MIN_LETTERS = 200  # fewer do not tell a language
LANGUAGES = ["en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "zh", "ja", "ko", "ar", "tr"]

_ITEM = re.compile(r"^ ?(?:[-*\u2022]|\*{0,2}\d+[.)])\s+(.+)$", re.MULTILINE)
_HEADING = {  # released chains: a line or a sentence that opens the part
    "analysis": re.compile(r"(?im)^[\s#*\d.]*(?:\w+ )?analy\w+\b[^\n]{0,70}$"),
    "candidates": re.compile(r"(?im)^[^\n]{0,160}\bcandidate[^\n]{0,200}$"),
    "comparison": re.compile(r"(?im)^[ #*]{0,4}(?:\d\. )?[\w' ]{0,30}compar\w*\b[^\n]{0,60}$"),
    "prediction": re.compile(r"(?im)^[\s#*]*(?:the |final |final answer and )?predict\w*\b[^\n]*$"),
}
_HIDDEN = re.compile(
    r"(?:provided|given|supplied) (?:visual |textual |detailed |image |background )?"
    r"(?:descriptions?|details?|information|texts?|contexts?|labels?|concepts?|notes?|captions?)"
    r"|(?:description|details?|information|label|names?|text|context|caption)s? "
    r"(?:was |were |is |are |as |that (?:was |were )?)?(?:provided|supplied|given)"
    r"|(?:mentioned|described|stated|noted|listed) in the (?:\w+ )?(?:description|text|caption|prompt)"
    r"|(?:according to|as per|based on|from|matches|match|aligns? with|in) the (?:\w+ )?"
    r"(?:description|caption|metadata|label|prompt)(?! of)\b"
    r"|ground[- ]truth|correct (?:answer|label)|(?:i|we) (?:was|were|am|are) (?:told|given)"
    r"|(?:question|prompt|user) (?:specif|stat|mention)\w*"
)
_UNIT = r"(?:met(?:er|re)s?|cm|centimet(?:er|re)s?|mm|millimet(?:er|re)s?|inch(?:es)?|feet|foot|ft|m|in)"
_MEASURE = re.compile(
    rf"\d(?:[\d.,]*\d)?(?:\s*(?:-|\u2013|to)\s*\d[\d.,]*)?[\s-]*{_UNIT}\b(?!-)"
    r"|\d[\d.,]*\s*(?:kg|kilograms?|grams?|pounds?|lbs?|horsepower|hp|mph|km/h|litres?|liters?)\b"
)
_YEAR = re.compile(r"\b(?:18|19|20)\d\d\b")
_SENSE = re.compile(
    r"\b(?:tast(?:e|es|y|ing)|flavou?rs?|aromas?|aromatic|scents?|scented|fragran(?:t|ce)|smells?|"
    r"sweet(?:er|est|ness)?|sour|acidity|juic(?:y|iness)|crisp(?:y|ier)?|mellow|desserts?|"
    r"songs?|sings?|singing|calls? loudly|mimicry|engine sound)\b"
)


def fold(text: str) -> str:
    """As names are compared: no case, no invisible characters, dashes as spaces."""
    return rewards.normalise(text)


def names_in(text: str, name: str) -> bool:
    """Whether the name stands in the text as whole words, in the singular or plural."""
    return bool(re.search(rf"(?<!\w){re.escape(fold(name))}(?:e?s)?(?!\w)", fold(text)))


@dataclass(frozen=True)
class Chain:
    """A chain with all that it is judged by; parsed once.

    asked: the candidates that the teacher was given; loose: headings by pattern (released
    chains) instead of our exact form; shared: texts, folded, that other chains have too.
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
        (m.start() for m in _HEADING["comparison"].finditer(think)
         if not first or m.start() > first.start()), None,
    )  # fmt: skip
    for opening in _HEADING["candidates"].finditer(think):
        end = compare if compare and compare > opening.end() else len(think)
        if items(think[opening.end() : end]):
            parts["candidates"] = think[opening.end() : end]
            break
    if re.search("(?i)compar", think):
        parts["comparison"] = think[compare:] if compare else think
    final = list(_HEADING["prediction"].finditer(think))
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


# --- one function a fault ------------------------------------------------------------------


def tags(c: Chain) -> str | None:
    if not rewards.format_reward(c.text):
        return "not one <think>...</think> and then one <answer>...</answer>"


def parts(c: Chain) -> str | None:
    if c.loose:
        lacking = [p for p in PARTS if not _HEADING[p].search(c.think)]
        return f"no heading for {', '.join(lacking)}" if lacking else None
    heads = re.findall(rf"^(?:{'|'.join(prompts.SECTIONS)})", c.think, re.MULTILINE)
    if heads != list(prompts.SECTIONS):
        return f"the headings are {heads or 'missing'}, wanted {list(prompts.SECTIONS)}"


def empty(c: Chain) -> str | None:
    bare = [part for part, text in c.parts.items() if not re.search(r"\w", text)]
    if bare:
        return f"nothing is said under {', '.join(bare)}"


def answer(c: Chain) -> str | None:
    if c.answer is None or c.answer.strip() != c.label:
        return f"answers {(c.answer or '').strip()!r}, the label is {c.label!r}"


def listed(c: Chain) -> str | None:
    """The label among the candidates, word for word."""
    if c.loose:
        there = any(names_in(c.parts.get("candidates", ""), name) for name in c.names)
    else:
        there = any(fold(n) == fold(name) for n in c.listed for name in c.names)
    if not there:
        return f"{c.label!r} is not among the candidates {c.listed}"


def number(c: Chain) -> str | None:
    most = prompts.MAX_CANDIDATES
    names = [fold(n) for n in c.listed]
    if not 2 <= len(names) <= most:
        return f"{len(names)} candidates; 2 to {most} are wanted"
    if len(set(names)) < len(names):
        return f"a candidate stands twice in {c.listed}"


def unasked(c: Chain) -> str | None:
    """Invented candidates, or the given ones in another order (the label moved to the front)."""
    if c.asked and [fold(n) for n in c.listed] != [fold(n) for n in c.asked]:
        return f"the candidates are {c.listed}, asked were {list(c.asked)}"


def uncompared(c: Chain) -> str | None:
    if not c.parts.get("comparison"):
        return "no comparison"


def compared(c: Chain) -> str | None:
    """Every candidate has a remark of its own."""
    part = c.parts.get("comparison", "")
    said = (lambda n: names_in(part, n)) if c.loose else (lambda n: c.remarks.get(fold(n)))
    left_out = [n for n in c.listed if not said(n)]
    if part and left_out:
        return f"not compared: {', '.join(left_out)}"


def leak(c: Chain) -> str | None:
    for name in c.names:
        if names_in(c.before, name):
            return f"{name!r} is named before the candidates"


def hidden(c: Chain) -> str | None:
    found = _HIDDEN.search(c.think.casefold())
    if found:
        return f"argues from what only the teacher saw: {found.group()!r}"


def measure(c: Chain) -> str | None:
    found = _MEASURE.search(_without(c, c.think.casefold()))
    if found:
        return f"a photo does not show {found.group()!r}"


def year(c: Chain) -> str | None:
    found = _YEAR.search(_without(c, c.think.casefold()))
    if found:
        return f"a photo does not show the year {found.group()}"


def sense(c: Chain) -> str | None:
    found = _SENSE.search(_without(c, c.think.casefold()))
    if found:
        return f"a photo has no {found.group()!r}"


def invisible(phrase: str) -> bool:
    """Whether a phrase tells of what no photo shows: a taste, a size in numbers, a year."""
    said = Chain(f"<think>{phrase}</think>", "")
    return any(look(said) for look in (sense, measure, year))


def _without(c: Chain, text: str) -> str:
    """The text without names of classes, which may hold a year or a scent."""
    for name in sorted({*c.names, *c.listed, *c.asked} - {""}, key=len, reverse=True):
        text = text.replace(name.casefold(), " ")
    return text


def unnamed(c: Chain) -> str | None:
    """The chain never says the name that it answers."""
    if not any(names_in(c.think, name) for name in c.names):
        return f"{c.label!r} is never named"


def conclusion(c: Chain) -> str | None:
    """The prediction is the label; in free prose it has all words of the label but a year."""
    part = c.parts.get("prediction", "")
    if not c.loose and not any(fold(part) == fold(name) for name in c.names):
        return f"predicts {part[:60]!r}, the label is {c.label!r}"
    if c.loose:
        end = max(c.think.casefold().rfind("prediction"), len(c.think) - ENDING)
        said = set(re.findall(r"\w+", fold(c.think[end:])))
        lacking = [w for w in re.findall(r"\w+", fold(c.label))
                   if w not in said and f"{w}s" not in said and not w.isdigit()]  # fmt: skip
        if lacking:
            return f"concludes without {', '.join(map(repr, lacking))} of {c.label!r}"


def contradiction(c: Chain) -> str | None:
    """The prediction names another candidate, and nothing that the label could mean."""
    part = fold(c.parts.get("prediction", ""))
    label = set(fold(c.label).split())
    others = []
    for name in c.listed:
        words = set(fold(name).split())
        if words and words <= set(re.findall(r"[^\s.,;:()*]+", part)):
            if words <= label or label <= words:
                return None
            others.append(name)
    if others and not any(names_in(part, name) for name in c.names):
        return f"concludes {others[0]!r} and answers {c.label!r}"


def coarser(c: Chain) -> str | None:
    """The answer is a part of the name that was concluded ("rose" after "Hybrid Tea Rose")."""
    part = c.parts.get("prediction", "")
    for name in c.listed:
        if fold(name) != fold(c.label) and fold(name).endswith(f" {fold(c.label)}"):
            if names_in(part, name):
                return f"concludes {name!r} and answers only {c.label!r}"


def uncited(c: Chain) -> str | None:
    """Marks in the analysis that the bottleneck dropped, or none of the kept ones."""
    said = concepts.clauses(c.before)
    foreign = [d for d in c.dropped if concepts.mentions(d, said)]
    if foreign:
        return f"cites {foreign[0]!r}, which was not selected"
    if c.kept and not any(concepts.mentions(k, said) for k in c.kept):
        return f"cites none of the selected {list(c.kept)}"


def length(c: Chain) -> str | None:
    words = len(c.think.split())
    if not MIN_WORDS <= words <= MAX_WORDS:
        return f"{words} words of thought; {MIN_WORDS} to {MAX_WORDS} are wanted"


def repeats(c: Chain) -> str | None:
    """A degenerate text: one clause of five words or more, four times over."""
    parts_ = (fold(s) for s in re.split(r"[.;,\n]", c.think))
    often = Counter(s for s in parts_ if len(s.split()) >= 5).most_common(1)
    if often and often[0][1] >= 4:
        return f"says {often[0][1]} times {often[0][0][:50]!r}"


def language(c: Chain) -> str | None:
    """English by script, and by py3langid where there is enough text to tell."""
    letters = [ch for ch in c.think if ch.isalpha()]
    foreign = [ch for ch in letters if ord(ch) > 0x24F]  # beyond Latin Extended-B
    if len(foreign) > 0.05 * max(len(letters), 1):
        return f"not in English: {''.join(foreign[:8])!r}"
    if len(letters) >= MIN_LETTERS:
        import py3langid  # its table takes a moment to load

        py3langid.set_languages(LANGUAGES)
        found, _ = py3langid.classify(c.think)
        if found != "en":
            return f"not in English but in {found!r}"


CHECKS: dict[str, Callable[[Chain], str | None]] = {
    "tags": tags, "parts": parts, "empty": empty, "answer": answer, "listed": listed,
    "number": number, "unasked": unasked, "uncompared": uncompared, "compared": compared, "leak": leak, "hidden": hidden,
    "measure": measure, "year": year, "sense": sense, "unnamed": unnamed, "conclusion": conclusion,
    "contradiction": contradiction, "coarser": coarser, "uncited": uncited, "length": length,
    "repeats": repeats, "language": language,
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    code: str  # a key of CHECKS, or "duplicate"
    reason: str

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


def check(chain: Chain) -> list[Finding]:
    """Everything that is wrong with one chain, in the table's order."""
    found = ((code, look(chain)) for code, look in CHECKS.items())
    return [Finding(code, reason) for code, reason in found if reason]


# --- of all chains together ------------------------------------------------------------------


def duplicates(chains: Mapping[str, Chain]) -> dict[str, Finding]:
    """Every chain whose thought, folded, an earlier one has already."""
    first: dict[str, str] = {}
    found = {}
    for key, chain in chains.items():
        text = fold(chain.think)
        if text in first:
            found[key] = Finding("duplicate", f"the same thought as {first[text]}")
        first.setdefault(text, key)
    return found


def places(chains: Sequence[Chain]) -> Counter[int]:
    """How often the label is the first, second, ... candidate; -1: not among them."""
    found: Counter[int] = Counter()
    for c in chains:
        names = {fold(n) for n in c.names}
        found[next((i for i, n in enumerate(c.listed) if fold(n) in names), -1)] += 1
    return found


def habit(chains: Sequence[Chain]) -> str | None:
    """The label in one place too often to be chance (binomial, p < 0.001, any place)."""
    by_size: dict[int, Counter[int]] = defaultdict(Counter)
    for c in chains:
        by_size[len(c.listed)].update(places([c]))
    for size, counts in by_size.items():
        total = sum(n for place, n in counts.items() if place >= 0)
        for place, often in counts.items():
            if place >= 0 and size > 1 and _tail(often, total, 1 / size) < 0.001 / size:
                return (f"the label is candidate {place + 1} of {size} in {often} of {total} "
                        "chains: shuffle the candidates")  # fmt: skip
    return None


def _tail(least: int, n: int, p: float) -> float:
    """P(at least `least` of n)."""
    return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(least, n + 1))
