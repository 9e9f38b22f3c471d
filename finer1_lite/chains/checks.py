"""What makes a chain unfit to learn from: one small function a problem, named by its code.

Each `check_CODE` takes a parsed `Chain` and returns the reason in words, or None; `CHECKS` is the
table of all. The same table serves our own form and the released chains' free prose.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from scipy.stats import binom

from finer1_lite import prompts, rewards
from finer1_lite.chains import concepts
from finer1_lite.chains.formats import Record
from finer1_lite.data import marks, wording
from finer1_lite.data.chain_text import LOOSE_HEADINGS, PARTS, Chain, fold, names_in

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


# --- one function a problem ------------------------------------------------------------------


def check_tags(c: Chain) -> str | None:
    """A broken form, e.g. two answers, or words before <think>."""
    if not rewards.format_reward(c.text):
        return "not one <think>...</think> and then one <answer>...</answer>"


def check_marks(c: Chain) -> str | None:
    """A mark of tokenizers, e.g. "<|im_end|>", which would end the turn."""
    return marks.problem(c.text) or None


def check_parts(c: Chain) -> str | None:
    """A heading that is missing, twice or out of order, e.g. no "comparison:"."""
    if c.loose:
        missing = [p for p in PARTS if not LOOSE_HEADINGS[p].search(c.think)]
        return f"no heading for {', '.join(missing)}" if missing else None
    headings = re.findall(rf"^(?:{'|'.join(prompts.SECTIONS)})", c.think, re.MULTILINE)
    if headings != list(prompts.SECTIONS):
        return f"the headings are {headings or 'missing'}, wanted {list(prompts.SECTIONS)}"


def check_empty(c: Chain) -> str | None:
    """A heading without words, e.g. "analysis:" and then the candidates."""
    empty = [part for part, text in c.parts.items() if not re.search(r"\w", text)]
    if empty:
        return f"nothing is said under {', '.join(empty)}"


def check_answer(c: Chain) -> str | None:
    """An answer that is not the label to the letter, e.g. "owl" for a barn owl."""
    if c.answer is None or c.answer.strip() != c.label:
        return f"answers {(c.answer or '').strip()!r}, the label is {c.label!r}"


def check_listed(c: Chain) -> str | None:
    """Candidates without the label, e.g. "tawny owl, snowy owl" of a barn owl."""
    part = c.parts.get("candidates", "") if c.loose else ""
    if c.place < 0 and not any(names_in(part, name) for name in c.names):
        return f"{c.label!r} is not among the candidates {c.listed}"


def check_number(c: Chain) -> str | None:
    """One candidate, too many, or one twice, e.g. "barn owl, tawny owl, barn owl"."""
    most = prompts.MAX_CANDIDATES
    names = [fold(n) for n in c.listed]
    if not 2 <= len(names) <= most:
        return f"{len(names)} candidates; 2 to {most} are wanted"
    if len(set(names)) < len(names):
        return f"a candidate stands twice in {c.listed}"


def check_unasked(c: Chain) -> str | None:
    """Invented candidates, or the given ones in another order, e.g. the label at the front."""
    if c.wanted and [fold(n) for n in c.listed] != [fold(n) for n in c.wanted]:
        return f"the candidates are {c.listed}, the prompt gave {list(c.wanted)}"


def check_uncompared(c: Chain) -> str | None:
    """No comparison at all, e.g. the prediction right after the candidates."""
    if not c.parts.get("comparison"):
        return "no comparison"


def check_compared(c: Chain) -> str | None:
    """A candidate without a remark of its own, e.g. no "snowy owl: ..." among the remarks."""
    part = c.parts.get("comparison", "")
    if c.loose:
        left_out = [n for n in c.listed if not names_in(part, n)]
    else:
        left_out = [n for n in c.listed if not c.remarks.get(fold(n))]
    if part and left_out:
        return f"not compared: {', '.join(left_out)}"


def check_leak(c: Chain) -> str | None:
    """The label before any candidate, e.g. "the barn owl has a pale face" in the analysis."""
    for name in c.names:
        if names_in(c.before, name):
            return f"{name!r} is named before the candidates"


def check_hidden(c: Chain) -> str | None:
    """A source that the student does not see, e.g. "as in the provided description"."""
    found = _HIDDEN.search(c.think.casefold())
    if found:
        return f"argues from what only the teacher saw: {found.group()!r}"


def _nameless(c: Chain) -> str:
    """The thought, case folded, without names of classes."""
    return wording.without_names(c.think, {*c.names, *c.listed, *c.wanted})


def _invisible(c: Chain, pattern: re.Pattern, reason: str) -> str | None:
    """The reason, if the pattern stands in the thought outside names of classes."""
    found = pattern.search(_nameless(c))
    return reason.format(found.group()) if found else None


# what no photograph shows, e.g. "13-15 inches long", "taken in 2012", "known for its song"
check_measure = partial(_invisible, pattern=wording.MEASURE, reason="a photo does not show {!r}")
check_year = partial(_invisible, pattern=wording.YEAR, reason="a photo does not show the year {}")
check_sense = partial(_invisible, pattern=wording.SENSE, reason="a photo has no {!r}")


def check_unnamed(c: Chain) -> str | None:
    """A label that the thought never says, e.g. an answer out of the blue."""
    if not any(names_in(c.think, name) for name in c.names):
        return f"{c.label!r} is never named"


def check_conclusion(c: Chain) -> str | None:
    """A prediction other than the label, e.g. "maybe a barn owl?"; of prose, an end without it."""
    if not c.loose:
        said = c.parts.get("prediction", "")
        right = fold(said) in map(fold, c.names)
        return None if right else f"predicts {said[:60]!r}, the label is {c.label!r}"
    # prose need only end with all words of the label but a year
    end = max(c.think.casefold().rfind("prediction"), len(c.think) - ENDING)
    words = [w for w in re.findall(r"\w+", fold(c.label)) if not w.isdigit()]
    missing = [w for w in words if not names_in(c.think[end:], w)]
    if missing:
        return f"concludes without {', '.join(map(repr, missing))} of {c.label!r}"


def check_contradiction(c: Chain) -> str | None:
    """A prediction of another candidate, e.g. "snowy owl" before the answer "barn owl"."""
    said = fold(c.parts.get("prediction", ""))
    label = set(fold(c.label).split())
    others = []
    for name in c.listed:
        words = set(fold(name).split())
        if words and words <= set(re.findall(r"[^\s.,;:()*]+", said)):
            if words <= label or label <= words:
                return None  # the label could be meant
            others.append(name)
    if others and not any(names_in(said, name) for name in c.names):
        return f"concludes {others[0]!r} and answers {c.label!r}"


def check_coarser(c: Chain) -> str | None:
    """An answer that is a part of the name concluded, e.g. "rose" after "Hybrid Tea Rose"."""
    for name in c.listed:
        part = fold(name) != fold(c.label) and fold(name).endswith(fold(c.label))
        if part and names_in(name, c.label) and names_in(c.parts.get("prediction", ""), name):
            return f"concludes {name!r} and answers only {c.label!r}"


def check_uncited(c: Chain) -> str | None:
    """Concepts that were dropped, or none of the kept ones, e.g. a "green branch"."""
    clauses = concepts.clauses(c.before) if c.kept or c.dropped else []
    foreign = [d for d in c.dropped if concepts.mentions(d, clauses)]
    if foreign:
        return f"cites {foreign[0]!r}, which was not selected"
    if c.kept and not any(concepts.mentions(k, clauses) for k in c.kept):
        return f"cites none of the selected {list(c.kept)}"


def check_length(c: Chain) -> str | None:
    """A thought that is too short or too long, e.g. one of 8 words."""
    words = len(c.think.split())
    if not MIN_WORDS <= words <= MAX_WORDS:
        return f"{words} words of thought; {MIN_WORDS} to {MAX_WORDS} are wanted"


def check_repeats(c: Chain) -> str | None:
    """A loop: one clause of five words or more, four times over."""
    clauses = (fold(s) for s in re.split(r"[.;,\n]", c.think))
    often = Counter(s for s in clauses if len(s.split()) >= 5).most_common(1)
    if often and often[0][1] >= 4:
        return f"says {often[0][1]} times {often[0][0][:50]!r}"


def check_language(c: Chain) -> str | None:
    """Another language than English, by script and by py3langid; names of classes may be in any."""
    text = _nameless(c)
    letters = [ch for ch in text if ch.isalpha()]
    foreign = [ch for ch in letters if ord(ch) > 0x24F]  # beyond Latin Extended-B
    if len(foreign) > 0.05 * max(len(letters), 1):
        return f"not in English: {''.join(foreign[:8])!r}"
    if len(letters) >= MIN_LETTERS:
        found, _ = _langid().classify(text)
        if found != "en":
            return f"not in English but in {found!r}"


@cache
def _langid() -> Any:
    import py3langid  # its table takes a moment to load

    py3langid.set_languages(LANGUAGES)
    return py3langid


CHECKS: dict[str, Callable[[Chain], str | None]] = {
    name.removeprefix("check_"): function
    for name, function in dict(globals()).items()
    if name.startswith("check_")
}


@dataclass(frozen=True)
class ChainProblem:
    """One thing wrong with a chain; code: a key of CHECKS, or "duplicate"."""

    code: str
    reason: str

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


def check(chain: Chain) -> list[ChainProblem]:
    """Everything that is wrong with one chain, in the table's order."""
    reasons = {code: function(chain) for code, function in CHECKS.items()}
    return [ChainProblem(code, reason) for code, reason in reasons.items() if reason]


# --- of all chains together ------------------------------------------------------------------


def duplicates(chains: Mapping[str, Chain]) -> dict[str, ChainProblem]:
    """Every chain whose thought, folded, an earlier one has already."""
    first: dict[str, str] = {}
    found = {}
    for key, chain in chains.items():
        earlier = first.setdefault(fold(chain.think), key)
        if earlier != key:
            found[key] = ChainProblem("duplicate", f"the same thought as {earlier}")
    return found


def same_analysis(chains: Iterable[tuple[str, Chain]]) -> dict[str, int]:
    """Count the photographs that share their analysis with another one; chains: (photo, chain).

    Of a description all photographs of a class can get one text: what it says was not seen.
    """
    photos: dict[str, set[str]] = {}
    for photo, chain in chains:
        if chain.parts.get("analysis"):
            photos.setdefault(fold(chain.parts["analysis"]), set()).add(photo)
    shared = [own for own in photos.values() if len(own) > 1]
    most = max(map(len, shared), default=0)
    return {"photographs": len(set().union(*shared)), "texts": len(shared), "most": most}


def habit(chains: Sequence[Chain]) -> str | None:
    """The label in one place too often to be chance (binomial, p < 0.001, any place)."""
    listing = [c for c in chains if c.place >= 0 and len(c.listed) > 1]
    for size in dict.fromkeys(len(c.listed) for c in listing):
        counts = Counter(c.place for c in listing if len(c.listed) == size)
        total = counts.total()
        for place, often in counts.items():
            if binom.sf(often - 1, total, 1 / size) < 0.001 / size:
                where = f"candidate {place + 1} of {size} in {often} of {total} chains"
                return f"the label is {where}: shuffle the candidates"
    return None


# --- a whole file ----------------------------------------------------------------------------


def audit_chains(records: Sequence[Record]) -> dict:
    """Counts of each problem with a first example, and facts of the file as a whole.

    "found" holds the problems of each record. Chains are read as free prose where most of
    them have not our headings.
    """
    loose = 2 * sum(not check_parts(r.parsed()) for r in records) < len(records)
    chains = {r.id: r.parsed(loose) for r in records}
    found = {key: check(chain) for key, chain in chains.items()}
    for key, problem in duplicates(chains).items():
        found[key].append(problem)
    counts = dict.fromkeys([*CHECKS, "duplicate"], 0)
    examples: dict[str, str] = {}
    for key, problems in found.items():
        for problem in problems:
            counts[problem.code] += 1
            examples.setdefault(problem.code, f"{key}: {problem.reason}")
    every = list(chains.values())
    words = sorted(len(r.chain.split()) for r in records)
    return {
        "chains": len(records),
        "form": "free prose" if loose else "ours",
        "clean": sum(not problems for problems in found.values()),
        "median words": words[len(words) // 2] if words else 0,
        "findings": counts,
        "examples": examples,
        "candidates listed": dict(sorted(Counter(len(c.listed) for c in every).items())),
        "place of the label": dict(sorted(Counter(c.place for c in every).items())),
        "same analysis": same_analysis((r.photo, chains[r.id]) for r in records),
        "habit": habit(every),
        "found": found,
    }


def audit_text(result: Mapping) -> str:
    """The audit as a table for the terminal."""
    placed = {k: v for k, v in result["place of the label"].items() if k >= 0}
    shares = ", ".join(f"{k + 1}: {v / sum(placed.values()):.0%}" for k, v in placed.items())
    head = "{chains} chains ({form}), {clean} without a problem, median {median words} words\n"
    lines = [head.format_map(result)]
    for code, count in result["findings"].items():
        lines.append(f"{code:14}{count:6}  {result['examples'].get(code, '')[:90]}")
    lines.append(f"\nlabel at place (where listed word for word): {shares or 'never listed'}")
    lines.append(f"candidates in the list -> chains: {result['candidates listed']}")
    same = "{photographs} photographs have one of {texts} shared texts, the commonest has {most}"
    lines.append(f"same analysis: {same.format_map(result['same analysis'])}")
    return "\n".join([*lines, f"habit: {result['habit'] or 'none'}"])
