"""Rewards: what a completion earns. Strings in, numbers out.

A good completion reads ``<think>chain</think><answer>class name</answer>``. Tags are
lower-case and exact, and a tag that the chain merely mentions counts as a tag.
Everything runs in time linear in the completion, whatever a policy learns to write.
Source: Fine-R1 (arXiv 2602.07605), reward = 0.9 accuracy + 0.1 format; there accuracy
is "the label occurs in the answer", which pays an answer that lists every class.
Here an answer must be the name of exactly one class.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache

Aliases = Mapping[str, Sequence[str]] | None  # class -> further names of it
Completion = str | list[dict[str, object]]  # text, or TRL's list of messages

# Unicode's Default_Ignorable_Code_Point: zero-width spaces and joiners, soft hyphens,
# marks of writing direction, variation selectors, fillers.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_FULL_STOPS = (".", "\u3002", "\u06d4")
# What is written for ' (accents, primes, half rings, quotes) and for other signs.
APOSTROPHES = "'`´ʹʻʼʽʾʿˈˊˋ΄՚\u05f3‘’‚‛′‵‹›❛❜Ꞌꞌ＇"
_MEANT = {"'": APOSTROPHES, '"': "«»ʺˮ\u05f4“”„‟″‶❝❞⹂「」『』〝〞〟＂", "/": "⁄∕", " ": "_"}
_MEANT |= {"x": "×✕✖⨉⨯", "-": "˗⁃−─➖"}  # and all of Unicode's dashes
_SIGNS = str.maketrans({sign: meant for meant, signs in _MEANT.items() for sign in signs})
_HYBRID = re.compile(r"(?<!\S)[×✕✖⨉⨯](?=[^\W\d])")  # before a word: "Mentha ×piperita"
# Around a whole answer: "**`Rose`**.", few of each, so that the search stays linear.
_MARKED = re.compile(r"(\*{0,3})([_`]{0,3})(.*?)\2\1([.\u3002\u06d4]?)", re.DOTALL)
# Articles are words of their own: not the A of "A-10", "A 10" and "A-Class".
_ARTICLE = re.compile(r"\A(?:an? |the[ -]+)(?=[^\d -])")
_NUMBERED = re.compile(r"\A(?:an?|the) (?=\d)")  # read as an article if no class is called so
# CPython sorts a run of combining marks in quadratic time (100,000 of them: seconds).
# Pieces of this length bound it, and no class name is longer.
_PIECE = 512


def plain(text: str) -> str:
    """One spelling for every sign: NFKC, case fold, no zero-width characters, single spaces.

    An apostrophe is ', a quote ", a dash -, a multiplication sign x, a ligature its letters.
    """
    text = " ".join(_INVISIBLE.sub("", text).split())
    text = _HYBRID.sub("x ", text).translate(_SIGNS)
    pieces = []
    for start in range(0, len(text), _PIECE):
        piece = unicodedata.normalize("NFKC", text[start : start + _PIECE]).casefold()
        piece = piece.translate(_SIGNS).replace("\u00e6", "ae").replace("\u0153", "oe")
        pieces.append(unicodedata.normalize("NFKC", piece))
    dashed = ("-" if unicodedata.category(char) == "Pd" else char for char in "".join(pieces))
    return " ".join("".join(dashed).split())


@lru_cache(maxsize=4096)  # the names of the classes come again with every completion
def _readings(text: str) -> tuple[str, ...]:
    """A name as it stands, without its article, and without one before a number."""
    marked = _MARKED.fullmatch(text.strip())  # always: there may be no marks
    name = plain(marked[3] + marked[4]).strip(" -")
    if name.endswith(_FULL_STOPS):
        name = name[:-1]
    forms = (name, _ARTICLE.sub("", name), _NUMBERED.sub("", name))
    return tuple(" ".join(form.replace("-", " ").split()) for form in forms)


def normalise(text: str) -> str:
    """The form in which names are compared.

    Plain, without marks around it, dashes as spaces; then one trailing full stop and one leading
    article (a, an, the) are dropped. ``"The  Black-Footed ALBATROSS."`` -> ``"black footed
    albatross"``, but ``"An-12"`` -> ``"an 12"``: an article is a word, no part of a designation.
    """
    return _readings(text)[1]


def _split(text: str, tag: str) -> tuple[str, str, str] | None:
    """(before, inside, after) of the one <tag>...</tag>; None if not exactly one."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    if text.count(opening) != 1 or text.count(closing) != 1:
        return None
    before, _, rest = text.partition(opening)
    inside, closed, after = rest.partition(closing)
    return (before, inside, after) if closed else None


def parse_answer(completion: str) -> str | None:
    """The raw text inside the one valid ``<answer>``, or None.

    Valid: exactly one opening and one closing tag, outside ``<think>``, nothing but
    white space after it. The chain itself is not asked for; `format_reward` does that.
    """
    parts = _split(completion, "answer")
    if parts is None or parts[2].strip():
        return None
    before = parts[0]
    more_opened = before.count("<think>") > before.count("</think>")
    return None if more_opened or before.rfind("<think>") > before.rfind("</think>") else parts[1]


def _named(
    answer: str | None, classes: Sequence[str], aliases: Aliases, label: str | None = None
) -> str | None:
    """The class whose name is a reading of the answer; ValueError listing all bad names."""
    if isinstance(classes, str):
        raise ValueError(f"classes is one string, {classes!r}: give a list of names")
    problems = [] if len(classes) else ["classes is empty: name at least one class"]
    found: dict[str, list[tuple[int, str]]] = {}
    for index, name in enumerate(classes):
        others = (aliases or {}).get(name) or ()
        if isinstance(others, str):
            problems.append(f"aliases of {name!r} is one string, {others!r}: give a list")
            others = ()
        shown = {name: repr(name)} | {other: f"{other!r} (alias of {name!r})" for other in others}
        for spelling, text in shown.items():
            for key in dict.fromkeys(_readings(spelling)[1::-1]):
                found.setdefault(key, []).append((index, text))
    for key, owners in found.items():
        listed = ", ".join(text for _, text in owners)
        if not key:
            problems.append(f"nothing is left of {listed} once normalised: rename")
        elif len({index for index, _ in owners}) > 1:
            problems.append(f"ambiguous, all read as {key!r}: {listed}: rename or drop")
    if label is not None and label not in classes:
        problems.append(f"label {label!r} is not among the {len(classes)} classes")
    if problems:
        raise ValueError("names cannot be scored:\n- " + "\n- ".join(problems))
    owners = next((found[reading] for reading in _readings(answer or "") if reading in found), ())
    return classes[owners[0][0]] if owners else None


def match_class(text: str | None, classes: Sequence[str], aliases: Aliases = None) -> str | None:
    """The class that `text` names, spelled as in `classes`; None if it names none.

    The whole text must be the name: a sentence round it, a negation or a second name
    makes it no match. Aliases of classes that are not in `classes` are left unused (a
    question may offer four of them all). ValueError, all problems listed: no classes,
    or names that normalise alike.
    """
    return _named(text, classes, aliases)


def accuracy_reward(
    completion: str, label: str, *, classes: Sequence[str], aliases: Aliases = None
) -> float:
    """1.0 if the one valid answer names `label` and nothing else, otherwise 0.0.

    ValueError as `match_class`, and for a label that is not spelled as in `classes`.
    """
    return float(_named(parse_answer(completion), classes, aliases, label) == label)


def format_reward(completion: str) -> float:
    """1.0 for one think block, then one answer, nothing around but white space."""
    think, answer = _split(completion, "think"), _split(completion, "answer")
    if think is None or answer is None or think[0].strip() or answer[2].strip():
        return 0.0
    return float(think[2].lstrip().startswith("<answer>"))


def overlong_penalty(length: int, limit: int, buffer: int) -> float:
    """DAPO's soft punishment (arXiv 2503.14476, section 3.4), from 0 down to -1.

    0 up to `limit` - `buffer` tokens, then linearly down to -1 at `limit`; buffer 0: always 0.
    """
    if not buffer:
        return 0.0
    return -min(1.0, max(0.0, (length - (limit - buffer)) / buffer))


def text_of(completion: Completion) -> str:
    """The text of a completion: a string, or the last message of a conversation."""
    content = completion if isinstance(completion, str) else completion[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content)


def accuracy(
    completions: Sequence[Completion],
    label: Sequence[str],
    classes: Sequence[str] | Sequence[Sequence[str]],
    aliases: Aliases | Sequence[Aliases] = None,
    **_: object,
) -> list[float]:
    """`accuracy_reward` of each completion, with the signature that TRL calls.

    `classes`: one list of names for all, or a list per completion; `aliases`: one
    mapping for all, or one per completion. ValueError lists the problems of all rows.
    """
    size = len(completions)
    shared = not len(classes) or isinstance(classes[0], str)
    class_rows = [classes] * size if shared else classes
    alias_rows = [aliases] * size if aliases is None or isinstance(aliases, Mapping) else aliases
    if not size == len(label) == len(class_rows) == len(alias_rows):
        lengths = f"{len(label)} label, {len(class_rows)} classes, {len(alias_rows)} aliases"
        raise ValueError(f"{size} completions, but rows of the columns: {lengths}")
    paid, problems = [], []
    rows = zip(completions, label, class_rows, alias_rows, strict=True)
    for completion, name, names, more in rows:
        try:
            paid.append(accuracy_reward(text_of(completion), name, classes=names, aliases=more))
        except ValueError as problem:
            problems.append(str(problem))
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))
    return paid


def format(completions: Sequence[Completion], **_: object) -> list[float]:
    """`format_reward` of each completion, with the signature that TRL calls."""
    return [format_reward(text_of(completion)) for completion in completions]
