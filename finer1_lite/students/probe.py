"""What does a student know, and does it use it? Fresh pictures, greedy decoding."""

from collections.abc import Sequence

from PIL import Image

from finer1_lite import paperbirds, prompts, rewards
from finer1_lite.evaluate import ask
from finer1_lite.generation import Student

LIMITS = {"answer": 24, "think": 110}  # new tokens of a prompt's completion


def marks_right(text: str, marks: dict[str, str]) -> int:
    """How many of a bird's six marks a description names rightly."""
    named = {part.strip() for part in text.replace(".", "").split(",")}
    return sum(f"{mark} {value}" in named for mark, value in marks.items())


def probe(student: Student, world: paperbirds.World, per_species: int = 4) -> dict[str, float]:
    """Shares right, seen and unseen species apart.

    marks: described marks; all_marks: pictures with every mark right (what the
    descriptions would allow); quiz: "which species has ...?" in words; guide: "what does
    ... look like?"; argue: a whole chain from marks given in words; direct: the name asked
    of a picture without thinking; think: with.
    """
    scores = {}
    total = len(paperbirds.MARKS)
    for half in ("seen", "unseen"):
        names = [n for n in world.names if (n in world.seen) == (half == "seen")]
        photos = [paperbirds.photo(world, n, "probe", i) for n in names for i in range(per_species)]
        images = [photo.image() for photo in photos]
        labels = [photo.species for photo in photos]
        describe = [prompts.DESCRIBE.format(coarse="bird")] * len(photos)
        described = _complete(student, describe, images)
        right = [marks_right(t, world.marks[n]) for t, n in zip(described, labels, strict=True)]
        scores[f"marks_{half}"] = sum(right) / (total * len(right))
        scores[f"all_marks_{half}"] = sum(r == total for r in right) / len(right)
        for key, kind in (("quiz", "answer"), ("argue", "think")):
            question = prompts.question(kind, "bird")
            given = [f"A bird has {paperbirds.knowledge(world, n)}. {question}" for n in names]
            named = _complete(student, given, None, LIMITS[kind])
            scores[f"{key}_{half}"] = _share(named, names, world)
        looks = _complete(student, [prompts.LOOKS.format(name=name) for name in names])
        right = [marks_right(t, world.marks[n]) for t, n in zip(looks, names, strict=True)]
        scores[f"guide_{half}"] = sum(right) / (total * len(names))
        for key, kind in (("direct", "answer"), ("think", "think")):
            questions = [prompts.question(kind, "bird")] * len(photos)
            named = _complete(student, questions, images, LIMITS[kind])
            scores[f"{key}_{half}"] = _share(named, labels, world)
    return {name: round(score, 4) for name, score in scores.items()}


def _complete(
    student: Student,
    questions: list[str],
    images: list[Image.Image] | None = None,
    max_new_tokens: int = 40,
) -> list[str]:
    """Greedy completions, a question each."""
    batches = ask(student, questions, images, max_new_tokens=max_new_tokens)
    return [completion for batch in batches for completion in batch.completions]


def _share(completions: Sequence[str], labels: Sequence[str], world: paperbirds.World) -> float:
    """The share of completions that name the right species."""
    pairs = zip(completions, labels, strict=True)
    right = [rewards.accuracy_reward(text, label, classes=world.names) for text, label in pairs]
    return sum(right) / len(right)
