"""Every prompt that a teacher is given, who writes chains for a student to learn from."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    coarse: str,
    name: str,
    candidates: Sequence[str],
    concepts: Sequence[str],
    dropped: Sequence[str] = (),
) -> TeacherPrompt:
    """Ask for a chain towards a known label, from the concepts that were kept, not dropped."""
    marks = f", using these marks where they can be seen: {'; '.join(concepts) or 'any'}"
    form = _FORM.format(marks=marks, candidates=", ".join(candidates))
    text = _TOLD.format(coarse=coarse, name=name, form=form)
    return TeacherPrompt("write", text, tuple(candidates), tuple(concepts), tuple(dropped))


def guess_prompt(coarse: str, candidates: Sequence[str]) -> TeacherPrompt:
    """Ask for a chain without telling the label: it is kept only if it is right."""
    form = _FORM.format(marks="", candidates=", ".join(candidates))
    return TeacherPrompt("guess", _UNTOLD.format(coarse=coarse, form=form), tuple(candidates))
