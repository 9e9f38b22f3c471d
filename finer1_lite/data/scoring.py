"""From a completion to right or wrong, under two protocols. Strings in, verdicts out.

`ours`: the whole answer must be the name of one class (or the letter of one option, where
letters were shown), by the same parser as the reward's. `released`: what the published
script counts (PKU-ICST-MIPL/FineR1_ICLR2026, eval/evaluation.py, commit 2c656a3): the
label occurs somewhere in the answer. Both run in time linear in the completion.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from finer1_lite import prompts, rewards
from finer1_lite.data.chain_text import agreement
from finer1_lite.rewards import Aliases

PROTOCOLS = ("ours", "released")
# Prompts that ask for tags; of another's completion without any tag all of the text counts.
TAGGED = (*prompts.QUESTIONS, "exact", "coarse", "none")
_AROUND_LETTER = "()[]{}*'\".,、:;- "


@dataclass(frozen=True)
class Verdict:
    """What a completion is worth."""

    answer: str | None  # the text inside its one valid <answer>
    named: str | None  # the class that this names
    correct: bool
    included: bool  # the released rule: the label occurs in the answer
    listed: bool | None  # the label is among the chain's candidates; None: no chain was asked for
    agrees: bool | None  # the chain leads to the answer (`chain_text.agreement`)


def judge(
    completion: str,
    label: str,
    classes: Sequence[str],
    *,
    options: Sequence[str] | None = None,
    letters: bool = False,
    prompt: str = "think",
    aliases: Aliases = None,
    released_path: str = "",
    chain: bool = True,
) -> Verdict:
    """Score a completion.

    classes: every name that counts as a name at all; options: what was offered, in the order
    shown (None: open world). A class that was not offered is wrong, but named. In the open world
    `included` reads the whole completion where it holds no answer, as released; released_path:
    the picture's path in a released file, from which the released rule tells cars; chain: its
    candidates can hold the label, as those of a question about something else cannot.
    """
    answer = rewards.parse_answer(completion)
    if answer is None and prompt not in TAGGED and "<" not in completion:
        answer = completion.strip() or None
    named = rewards.match_class(answer, classes, aliases)
    if named is None and letters and options and answer is not None:
        named = option_of_letter(answer, options)
    said = released_answer(completion)
    if options is None:
        included = released_open_inclusion(said or completion, label, released_path)
    else:
        included = released_inclusion(said, label)
    listed = agrees = None
    if chain and prompt in prompts.WITH_CHAIN:
        found = agreement(completion, named or answer, classes, label, aliases)
        listed, agrees = found["listed"], found["agrees"]
    return Verdict(answer, named, named == label, included, listed, agrees)


def option_of_letter(answer: str, options: Sequence[str]) -> str | None:
    """The option that "B", "(b)" or "B. its name" points at; None for all else ("B. other")."""
    text = rewards.plain(answer).strip(_AROUND_LETTER)
    first, *rest = re.split(f"[{re.escape(_AROUND_LETTER)}]", text, maxsplit=1)
    letters = {prompts.letter(i).casefold(): option for i, option in enumerate(options)}
    option = letters.get(first)
    names = {rewards.normalise(one.strip(_AROUND_LETTER)) for one in (*rest, option or "")}
    return option if len(names) == 1 else None


def released_answer(completion: str) -> str | None:
    """The released parse: from the first <answer> to the last </answer>; None without both."""
    start = completion.find("<answer>")
    end = completion.rfind("</answer>")
    if start < 0 or end < start + len("<answer>"):
        return None
    return completion[start + len("<answer>") : end].strip()


def released_inclusion(answer: str | None, label: str) -> bool:
    """The released rule: the label occurs in the answer; case and underscores aside."""
    if not answer:
        return False
    return label.lower().replace("_", " ") in answer.lower().replace("_", " ")


def released_open_inclusion(answer: str, label: str, image_path: str) -> bool:
    """The released open-world rule, which drops the last two words of a car's name."""
    if released_coarse(image_path) == "car":
        return " ".join(label.lower().split()[:-2]) in answer.lower()
    return label.lower().replace("_", " ") in answer.lower()


def released_coarse(image_path: str) -> str:
    """The coarse word as the released script guesses it from a path."""
    words = {"aircraft": "aircraft", "birds": "bird", "cars": "car", "flower": "flower"}
    return next((word for part, word in words.items() if part in image_path), "object")
