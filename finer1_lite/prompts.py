"""Every prompt that a student is ever given, and the form of the chain that it shall write.

One question for all sizes: SFT, TAPO and evaluation use the same words, so that a gap between
two numbers is never a gap between two prompts. A teacher's stand in `chains.teacher_prompts`.
"""

from collections.abc import Sequence

SECTIONS = ("analysis:", "candidates:", "comparison:", "prediction:")
MAX_CANDIDATES = 4

DESCRIBE = "Describe the {coarse}."
LIST = "List the marks of the {coarse}."
CAPTION = "Caption the picture."
LOOKS = "What does the {name} look like?"
_NAME = "Name the exact kind of {coarse}."
_ANSWER = "Give only its name inside <answer></answer>."
_THINK = "Think inside <think></think>: analysis, candidates, comparison, prediction. "
QUESTIONS = {  # prompt name (it stands in every record) -> words
    "think": f"{_NAME} {_THINK}{_ANSWER}",
    "answer": f"{_NAME} {_ANSWER}",
}

# For comparison with a base model only; no student is trained on these. `coarse` leaves
# open how exact the name shall be and `exact` insists on it, so that the two together show
# how much of a gain is naming at the right granularity. `no_think` asks for no tags.
COMPARISONS = {
    "exact": "Name the exact {fine} of this {coarse}, as an expert would: the most specific "
    f"name, not a general word for its kind. {_ANSWER}",
    "coarse": f"What does this picture show? {_ANSWER}",
    "no_think": "Name the exact kind of {coarse}. Reply with its name and nothing else.",
}
PROMPTS = (*QUESTIONS, *COMPARISONS)
WITH_CHAIN = ("think",)  # those whose completion holds a chain of thought

# Around a question of somebody else's about a picture, whose answer needs the name.
_GIVE = "Give only the answer inside <answer></answer>."
ABOUT = {
    "think": f"{_THINK}{_GIVE}",
    "answer": _GIVE,
    "no_think": "Reply with the answer and nothing else.",
}


def question(
    kind: str,
    coarse: str,
    options: Sequence[str] | None = None,
    *,
    fine: str = "kind",
    letters: bool = False,
) -> str:
    """Write the question about a picture.

    kind: one of `PROMPTS`; coarse: the word for what the picture shows ("bird"); fine: what
    its exact name is called ("species", "breed"); options: the closed world's choices, in
    the order shown; None for the open world; letters: put (A), (B), ... before them.
    ValueError for an unknown kind.
    """
    words = QUESTIONS | COMPARISONS
    if kind not in words:
        raise ValueError(f"unknown prompt {kind!r}: choose one of {sorted(words)}")
    return words[kind].format(coarse=coarse, fine=fine) + offered(options, letters)


def about(
    kind: str, text: str, options: Sequence[str] | None = None, *, letters: bool = False
) -> str:
    """Put a question of one's own about a picture into the same form; kind: a key of `ABOUT`."""
    if kind not in ABOUT:
        raise ValueError(f"prompt {kind!r} asks for a name: choose one of {sorted(ABOUT)}")
    return f"{text.strip()} {ABOUT[kind]}" + offered(options, letters)


def offered(options: Sequence[str] | None, letters: bool = False) -> str:
    """The options as they end a question; nothing in the open world."""
    if not options:
        return ""
    shown = [f"({letter(i)}) {o}" for i, o in enumerate(options)] if letters else options
    return f" Options: {', '.join(shown)}."


def letter(place: int) -> str:
    """What stands before the option at a place: A to Z, then AA, AB, ... as in a spreadsheet."""
    return (letter(place // 26 - 1) if place > 25 else "") + chr(65 + place % 26)


def chain(analysis: str, candidates: Sequence[str], comparison: Sequence[str], name: str) -> str:
    """Write the four-part chain of thought and the answer (arXiv 2602.07605, section 3.1).

    analysis: what the picture shows; candidates: names, at most four, `name` among them;
    comparison: one remark a candidate, in the same order. ValueError where these do not fit.
    """
    if name not in candidates or len(candidates) > MAX_CANDIDATES:
        problem = f"{name!r} must be one of at most {MAX_CANDIDATES} candidates: {candidates}"
        raise ValueError(problem)
    remarks = "; ".join(f"{c}: {r}" for c, r in zip(candidates, comparison, strict=True))
    parts = (analysis, ", ".join(candidates), remarks, name)
    body = "\n".join(f"{head} {part}" for head, part in zip(SECTIONS, parts, strict=True))
    return f"<think>\n{body}\n</think>\n{answer(name)}"


def answer(name: str) -> str:
    """Put a name into the tags of an answer."""
    return f"<answer>{name}</answer>"


def messages(text: str, with_image: bool = True) -> list[dict]:
    """Write one user turn in the chat format of Qwen2.5-VL."""
    picture = [{"type": "image"}] if with_image else []
    return [{"role": "user", "content": [*picture, {"type": "text", "text": text}]}]
