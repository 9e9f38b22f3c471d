"""What makes a chain unfit to learn from: one small function a problem, all in one table.

Each function takes a parsed `Chain` and returns the reason in words, or None. The same table
serves our own form (each part on a line that begins with its heading) and the released
chains' free prose, whose headings are looked for by pattern.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import comb

from finer1_lite import prompts, rewards
from finer1_lite.chains import concepts
from finer1_lite.chains.text import LOOSE_HEADINGS, PARTS, Chain, fold, names_in

MIN_WORDS, MAX_WORDS = 20, 900  # of the thought
ENDING = 600  # characters that hold a free chain's conclusion
MIN_LETTERS = 200  # fewer do not tell a language
LANGUAGES = ["en", "de", "fr", "es", "it", "pt", "nl", "pl", "ru", "zh", "ja", "ko", "ar", "tr"]

_HIDDEN = re.compile(
    r"(?:provided|given|supplied) (?:visual |textual |detailed |image |background )?"
    r"(?:descriptions?|details?|information|texts?|contexts?|labels?|concepts?|notes?|captions?)"
    r"|(?:description|details?|information|label|names?|text|context|caption)s? "
    r"(?:was |were |is |are |as |that (?:was |were )?)?(?:provided|supplied|given)"
    r"|(?:mentioned|described|stated|noted|listed) in the (?:\w+ )?"
    r"(?:description|text|caption|prompt)"
    r"|(?:according to|as per|based on|from|matches|match|aligns? with|in) the (?:\w+ )?"
    r"(?:description|caption|metadata|label|prompt)(?! of)\b"
    r"|ground[- ]truth|correct (?:answer|label)|(?:i|we) (?:was|were|am|are) (?:told|given)"
    r"|(?:question|prompt|user) (?:specif|stat|mention)\w*"
)
_UNIT = (
    r"(?:met(?:er|re)s?|cm|centimet(?:er|re)s?|mm|millimet(?:er|re)s?"
    r"|inch(?:es)?|feet|foot|ft|m|in)"
)
_NUMBER = r"(?<![\d.,])\d{1,9}(?:[.,]\d{1,9}){0,2}"  # bounded: linear in any run of digits
_MEASURE = re.compile(
    rf"{_NUMBER}(?:\s?(?:-|\u2013|to)\s?\d{{1,9}}(?:[.,]\d{{1,9}})?)?[\s-]{{0,3}}{_UNIT}\b(?!-)"
    rf"|{_NUMBER}\s?(?:kg|kilograms?|grams?|pounds?|lbs?|horsepower|hp|mph|km/h|litres?|liters?)\b"
)
_YEAR = re.compile(r"\b(?:18|19|20)\d\d\b")
_SENSE = re.compile(
    r"\b(?:tast(?:e|es|y|ing)|flavou?rs?|aromas?|aromatic|scents?|scented|fragran(?:t|ce)|smells?|"
    r"sweet(?:er|est|ness)?|sour|acidity|juic(?:y|iness)|crisp(?:y|ier)?|mellow|desserts?|"
    r"songs?|sings?|singing|calls? loudly|mimicry|engine sound)\b"
)


# --- one function a problem ------------------------------------------------------------------


def tags(c: Chain) -> str | None:
    if not rewards.format_reward(c.text):
        return "not one <think>...</think> and then one <answer>...</answer>"


def parts(c: Chain) -> str | None:
    if c.loose:
        lacking = [p for p in PARTS if not LOOSE_HEADINGS[p].search(c.think)]
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


def label_listed(c: Chain) -> str | None:
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
    if c.wanted and [fold(n) for n in c.listed] != [fold(n) for n in c.wanted]:
        return f"the candidates are {c.listed}, asked were {list(c.wanted)}"


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
    for name in sorted({*c.names, *c.listed, *c.wanted} - {""}, key=len, reverse=True):
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
        lacking = [
            w
            for w in re.findall(r"\w+", fold(c.label))
            if w not in said and f"{w}s" not in said and not w.isdigit()
        ]
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
        longer = fold(name).endswith(f" {fold(c.label)}")
        if longer and names_in(part, name):
            return f"concludes {name!r} and answers only {c.label!r}"


def uncited(c: Chain) -> str | None:
    """Marks in the analysis that the bottleneck dropped, or none of the kept ones."""
    said = concepts.clauses(c.before) if c.kept or c.dropped else []
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
        found, _ = _identifier().classify(c.think)
        if found != "en":
            return f"not in English but in {found!r}"


@cache
def _identifier():
    import py3langid  # its table takes a moment to load

    py3langid.set_languages(LANGUAGES)
    return py3langid


CHECKS: dict[str, Callable[[Chain], str | None]] = {
    "tags": tags,
    "parts": parts,
    "empty": empty,
    "answer": answer,
    "listed": label_listed,
    "number": number,
    "unasked": unasked,
    "uncompared": uncompared,
    "compared": compared,
    "leak": leak,
    "hidden": hidden,
    "measure": measure,
    "year": year,
    "sense": sense,
    "unnamed": unnamed,
    "conclusion": conclusion,
    "contradiction": contradiction,
    "coarser": coarser,
    "uncited": uncited,
    "length": length,
    "repeats": repeats,
    "language": language,
}


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
                return (
                    f"the label is candidate {place + 1} of {size} in {often} of {total} "
                    "chains: shuffle the candidates"
                )
    return None


def _tail(least: int, n: int, p: float) -> float:
    """P(at least `least` of n)."""
    return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(least, n + 1))
