"""Every prompt that a model is ever given, and the form of the chain that it shall write.

Imports nothing of the package. One question for all sizes: SFT, TAPO and evaluation use
the same words, so that a gap between two numbers is never a gap between two prompts.
The prompts of a *teacher*, who writes chains for the student to learn from, stand below.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SECTIONS = ("analysis:", "candidates:", "comparison:", "prediction:")
MAX_CANDIDATES = 4

DESCRIBE = "Describe the {coarse}."
LIST = "List the marks of the {coarse}."
LOOK = "Describe the {coarse}. Think inside <think></think>: analysis."
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
    return words[kind].format(coarse=coarse, fine=fine) + _offered(options, letters)


def about(
    kind: str, text: str, options: Sequence[str] | None = None, *, letters: bool = False
) -> str:
    """Put a question of one's own about a picture into the same form; kind: a key of `ABOUT`."""
    if kind not in ABOUT:
        raise ValueError(f"prompt {kind!r} asks for a name: choose one of {sorted(ABOUT)}")
    return f"{text.strip()} {ABOUT[kind]}" + _offered(options, letters)


def _offered(options: Sequence[str] | None, letters: bool) -> str:
    """The options as they end a question; nothing in the open world."""
    if options is None:
        return ""
    shown = [f"({chr(65 + i)}) {o}" for i, o in enumerate(options)] if letters else options
    return f" Options: {', '.join(shown)}."


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


def look(analysis: str) -> str:
    """Write the first part of a chain alone: what a describing student thinks."""
    return f"<think>\n{SECTIONS[0]} {analysis}\n</think>"


def answer(name: str) -> str:
    """Put a name into the tags of an answer."""
    return f"<answer>{name}</answer>"


def messages(text: str, with_image: bool = True) -> list[dict]:
    """Write one user turn in the chat format of Qwen2.5-VL."""
    picture = [{"type": "image"}] if with_image else []
    return [{"role": "user", "content": [*picture, {"type": "text", "text": text}]}]


# --- the prompts of a teacher ------------------------------------------------------------

DESCRIPTIONS = (  # several views of one picture: what is said each time is likely there
    "Describe the {coarse} in this picture from head to tail: shape, colours, patterns. "
    "Say only what can be seen. Do not name its kind.",
    "List every visible mark by which an expert would tell this {coarse} from similar ones, "
    "as short phrases separated by commas. Do not name its kind.",
    "Somebody has to find this {coarse} among its look-alikes by your words alone. "
    "What do you see that would help? Do not name its kind.",
)
_EXTRACT = (
    "Below are descriptions of pictures, one in each paragraph. List the visible marks that "
    "occur in them, each once, as a noun phrase of two to four words, one in each line. "
    "Leave out names of kinds, places, behaviour, sizes in numbers, and opinions.\n\n{texts}"
)
_FORM = (
    " Use exactly this form, each part on a line that begins as shown:\n"
    "<think>\n"
    "analysis: what is visible{marks}\n"
    "candidates: {candidates}\n"
    "comparison: for each candidate in that order its name, a colon, and what fits or does not; "
    "separate the candidates by semicolons\n"
    "prediction: the name of the one that fits best\n"
    "</think>\n"
    "<answer>the same name</answer>"
)
_TOLD = (
    "The picture shows a {coarse}. Write how an expert with nothing but the picture would work "
    "out its exact kind.{form}\n"
    "Right is: {name}. Do not name any kind before the candidates, and never say that you were "
    "given a name, a list or a description. Give no sizes in numbers and no years; a picture "
    "does not show them."
)
_UNTOLD = "The picture shows a {coarse}. Work out its exact kind from the picture alone.{form}"


@dataclass(frozen=True)
class TeacherPrompt:
    """What a teacher is given: a text for a model, and its facts for the oracle and the table."""

    kind: str  # describe | extract | write | guess | evaluate
    text: str
    name: str = ""
    candidates: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()  # concepts that must not be cited


def description_prompt(coarse: str, view: int) -> TeacherPrompt:
    """Ask for a description; view: which of `DESCRIPTIONS`, counted round and round."""
    return TeacherPrompt("describe", DESCRIPTIONS[view % len(DESCRIPTIONS)].format(coarse=coarse))


def concepts_prompt(texts: Sequence[str]) -> TeacherPrompt:
    """Ask for the short phrases that occur in descriptions; no picture goes with it."""
    return TeacherPrompt("extract", _EXTRACT.format(texts="\n\n".join(texts)))


def chain_prompt(
    coarse: str, name: str, candidates: Sequence[str], concepts: Sequence[str]
) -> TeacherPrompt:
    """Ask for a chain towards a known label, from the concepts that were kept."""
    marks = f", using these marks where they can be seen: {'; '.join(concepts) or 'any'}"
    form = _FORM.format(marks=marks, candidates=", ".join(candidates))
    text = _TOLD.format(coarse=coarse, name=name, form=form)
    return TeacherPrompt("write", text, name, tuple(candidates), tuple(concepts))


def guess_prompt(coarse: str, candidates: Sequence[str]) -> TeacherPrompt:
    """Ask for a chain without telling the label: it is kept only if it is right."""
    form = _FORM.format(marks="", candidates=", ".join(candidates))
    text = _UNTOLD.format(coarse=coarse, form=form)
    return TeacherPrompt("guess", text, "", tuple(candidates))
