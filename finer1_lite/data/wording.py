"""Descriptions of classes taken apart: clauses that a photograph can show, without class names.

A negation stays with what it negates ("without a disc" never becomes "disc"), a list that ends in
"or" stays whole, and a clause that is broken once a name is taken out of it goes with the name.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

from finer1_lite.data.chain_text import JOINED, edges, names_in
from finer1_lite.rewards import APOSTROPHES

NEGATION = re.compile(
    r"\b(?:without|no|not(?!\s+only)|never|neither|nor|none|cannot|absent|missing|"
    rf"\w+n[{APOSTROPHES}]t|"
    r"lack(?:s|ing|ed)?(?:\s+of)?|absence\s+of|devoid\s+of|free\s+(?:of|from)|"
    r"hardly|rarely|seldom)\b|\bnon-|-free\b",
    re.IGNORECASE,
)
_DEGREE = ("almost", "nearly", "virtually", "practically", "often", "usually", "mostly")
_WHOLE = "".join(rf"(?<!\b{word})" for word in _DEGREE)
_OPENS = rf"(?:(?:{'|'.join(_DEGREE)})\s+)?"  # "almost no neck" stays whole
_OPENS += r"(?:without|no|lack(?:s|ing|ed)?|neither|devoid|free\s+(?:of|from)|absence)"
_EITHER = re.compile(r"(?:\b(?:occurs?|comes?)\s+)?\bwith\s+(?:and|or)\s+without\b[^,.;]*", re.I)
_SCOPE = re.compile(
    r"[;:!?()\n<>]|\.(?!\d)|\bfor\s+(?:example|instance)\b|,(?!\s*n?or\b)(?![^,.;:]{1,40},?\s+n?or\b)"
    rf"|{_WHOLE}\s(?=(?:but|while|whereas|though|although|{_OPENS})\b)"
    r"|\s(?=and\s+(?:has|have|is|are|shows?|with|without|no|not|never)\b)",
    re.IGNORECASE,
)
_STOPS = str.maketrans("，、；：。！？（）।،؛؟", ",,;:;!?();,;?")  # of other scripts
_WORD = re.compile(rf"(?:[\w'\u2019/%{JOINED}-]|(?<=\w)[{APOSTROPHES}](?=\w))+(?:\.\d+)?|,")
_PART = re.compile(r"\s(?=(?:with|which|that|and\s+(?:an?|the|its?))\b)", re.IGNORECASE)
_ARTICLES = {"a", "an", "the", "its", "this"}
_EMPTY = _ARTICLES | {"is", "are", "has", "have", "having", "shows", "and", "or", "but"}
_EMPTY |= {"with", "it", "there", "also", "that", "which", "then", "of", "contains"}
_CLOSING = _EMPTY - {"it", "there", "also", "then"}  # "milk on it"
_OPENING = _EMPTY | {"while", "whereas", "though", "although"}
_LINKING = {"of", "with", "in", "on", "at", "to", "for", "from", "by", "than", "like", "unlike"}
_LINKING |= {"as", "into", "over", "under", "near", "between", "among"}

_UNIT = r"(?:(?:centi|milli)?met(?:er|re)s?|cm|mm|inch(?:es)?|feet|foot|ft|m|in)"
_NUMBER = r"(?<![\d.,])\d{1,9}(?:[.,]\d{1,9}){0,2}"  # bounded: linear in any run of digits
MEASURE = re.compile(
    rf"{_NUMBER}(?:\s?(?:-|\u2013|to)\s?\d{{1,9}}(?:[.,]\d{{1,9}})?)?[\s-]{{0,3}}{_UNIT}\b(?!-)"
    rf"|{_NUMBER}\s?(?:kg|kilograms?|grams?|pounds?|lbs?|horsepower|hp|mph|km/h|litres?|liters?)\b"
)
YEAR = re.compile(r"\b(?:18|19|20)\d\d\b")
SENSE = re.compile(
    r"\b(?:tast(?:e|es|y|ing)|flavou?rs?|aromas?|aromatic|scents?|scented|fragran(?:t|ce)|smells?|"
    r"sweet(?:er|est|ness)?|sour|acidity|juic(?:y|iness)|crisp(?:y|ier)?|mellow|desserts?|"
    r"songs?|sings?|singing|calls? loudly|mimicry|engine sound)\b"
)


def invisible(phrase: str) -> bool:
    """Whether a phrase tells of what no photo shows: a taste, a size in numbers, a year."""
    return any(kind.search(phrase.casefold()) for kind in (MEASURE, YEAR, SENSE))


def negated(text: str) -> bool:
    """Whether a clause says that something is not there."""
    return bool(NEGATION.search(text))


def scopes(text: str) -> list[str]:
    """Cut a text where what it says, or denies, ends: no negation reaches beyond its part."""
    parts = (part.strip(" ,") for part in _SCOPE.split(_EITHER.sub(" ", text.translate(_STOPS))))
    return [part for part in parts if part]


def clauses(text: str) -> list[str]:
    """The short phrases of a description, in its order: case folded, without empty words."""
    found: list[str] = []
    for scope in scopes(text):
        for part in [scope] if negated(scope) else _PART.split(scope):
            clause = _trimmed(_WORD.findall(part.casefold()))
            if found and " " not in found[-1] and not negated(clause):  # "white, firm pulp"
                clause = f"{found.pop()}, {clause}".removesuffix(", ")
            found += [clause] if clause else []
    return list(dict.fromkeys(found))


def _trimmed(words: list[str]) -> str:
    """The words without empty ones around them, which are taken out of the list."""
    while words and (words[0] in _OPENING or words[0] == ","):
        del words[0]
    while words and (words[-1] in _CLOSING or words[-1] == ","):
        del words[-1]
    return " ".join(words).replace(" ,", ",")


def cut(clause: str, words: int) -> str:
    """The first words of a clause; one with a negation stays whole, for it would lose its noun."""
    every = clause.split()
    if len(every) <= words or negated(clause):
        return clause
    kept = every[:words]
    while kept and kept[-1].strip(",") in _LINKING | _EMPTY:
        del kept[-1]
    return " ".join(kept).rstrip(",")


# --- names -----------------------------------------------------------------------------------


def looks(
    descriptions: Mapping[str, str], aliases: Mapping[str, Iterable[str]] | None = None
) -> dict[str, list[str]]:
    """Class -> the clauses of its description that a photo can show and that name no class.

    Taken out are whole names and aliases, runs of two words or more that only one name has, and
    of the class's own name the words that neither another name nor another description has:
    those would give the answer away. "yellow" of a yellow pepper stays if others are called so.
    """
    names = {name: [name, *(aliases or {}).get(name, ())] for name in descriptions}
    owners, users = defaultdict(set), defaultdict(set)  # of a run in names; of a word anywhere
    for name, text in descriptions.items():
        for run in (run for one in names[name] for run in _runs(one)):
            owners[run].add(name)
        for word in _words(" ".join([text, *names[name]])):
            users[_root(word)].add(name)
    whole = {tuple(_words(one)) for known in names.values() for one in known}
    anyone = _pattern(whole | {run for run, of in owners.items() if len(of) == 1 < len(run)})
    found = {}
    for name, text in descriptions.items():
        words = {word for one in names[name] for word in _words(one)}
        own = _pattern({(word,) for word in words if users[_root(word)] == {name}})
        kept = (_struck(_struck(clause, anyone), own) for clause in clauses(text))
        kept = [clause for clause in kept if clause and not invisible(clause)]
        found[name] = [c for c in kept if not any(names_in(c, one) for one in names[name])]
    return found


def without_names(text: str, names: Iterable[str]) -> str:
    """The text, case folded, with a space for each name."""
    return _pattern({tuple(_words(name)) for name in names}).sub(" ", text.casefold())


def _words(text: str) -> list[str]:
    return re.findall(rf"[\w{JOINED}]+", text.casefold())


def _root(word: str) -> str:
    """A word without the ending of a plural."""
    return re.sub("e?s$", "", word)


def _runs(name: str) -> set[tuple[str, ...]]:
    """Every run of words of a name."""
    words = _words(name)
    return {tuple(words[a:b]) for a in range(len(words)) for b in range(a + 1, len(words) + 1)}


def _pattern(runs: Iterable[tuple[str, ...]]) -> re.Pattern:
    """What finds any of these runs of words, the longest first, in the singular or plural."""
    ranked = sorted(filter(None, runs), key=lambda run: (-len(run), -len("".join(run)), run))
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)  # by what stands around them
    for run in ranked:
        around = edges("".join(run), f"(?:e?s|[{APOSTROPHES}]s)?")
        alike[around].append(r"[\W_]+".join(map(re.escape, run)))
    each = (f"{before}(?:{'|'.join(of)}){behind}" for (before, behind), of in alike.items())
    return re.compile("|".join(each) or r"(?!)")


def _struck(clause: str, names: re.Pattern) -> str:
    """The clause without the names; "" where that leaves a broken phrase ("unlike the")."""
    while found := names.search(clause):
        before, after = clause[: found.start()].split(), clause[found.end() :].split()
        core = [word for word in before if word not in _ARTICLES]
        linked = core and core[-1] in _LINKING
        if linked and (not after or after[0] in _LINKING | _EMPTY | {","}):
            return ""
        clause = _trimmed([*before, *after])
    return clause
