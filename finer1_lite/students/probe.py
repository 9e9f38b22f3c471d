"""What does a student know, and does it use it? Fresh pictures, greedy decoding."""

from finer1_lite import paperbirds, prompts, rewards
from finer1_lite.evaluate import ask
from finer1_lite.generation import Student


def marks_right(text: str, marks: dict[str, str]) -> int:
    """How many of a bird's six marks a description names rightly."""
    said = {part.strip() for part in text.replace(".", "").split(",")}
    return sum(f"{mark} {value}" in said for mark, value in marks.items())


def probe(student: Student, world: paperbirds.World, per_species: int = 4) -> dict[str, float]:
    """Shares right, seen and unseen species apart.

    marks: described marks; all_marks: pictures with every mark right (what the
    descriptions would allow); quiz: "which species has ...?" in words; guide: "what does
    ... look like?"; argue: a whole chain from marks given in words; direct: the name asked
    of a picture without thinking; think: with.
    """
    scores = {}
    for half in ("seen", "unseen"):
        names = [n for n in world.names if (n in world.seen) == (half == "seen")]
        photos = [paperbirds.photo(world, n, "probe", i) for n in names for i in range(per_species)]
        images = [p.image() for p in photos]
        told = _told(student, [prompts.DESCRIBE.format(coarse="bird")] * len(photos), images)
        right = [marks_right(t, world.marks[p.species]) for t, p in zip(told, photos)]
        total = len(paperbirds.MARKS)
        scores[f"marks_{half}"] = sum(right) / (total * len(right))
        scores[f"all_marks_{half}"] = sum(r == total for r in right) / len(right)
        for key, kind, limit in (("quiz", "answer", 24), ("argue", "think", 110)):
            asked = [
                f"A bird has {paperbirds.knowledge(world, n)}. {prompts.question(kind, 'bird')}"
                for n in names
            ]
            named = _told(student, asked, max_new_tokens=limit)
            scores[f"{key}_{half}"] = _share(named, names, world)
        looks = _told(student, [prompts.LOOKS.format(name=n) for n in names])
        scores[f"guide_{half}"] = sum(
            marks_right(t, world.marks[n]) for t, n in zip(looks, names)
        ) / (total * len(names))
        for key, kind, limit in (("direct", "answer", 24), ("think", "think", 110)):
            asked = [prompts.question(kind, "bird")] * len(photos)
            named = _told(student, asked, images, max_new_tokens=limit)
            scores[f"{key}_{half}"] = _share(named, [p.species for p in photos], world)
    return {k: round(v, 4) for k, v in scores.items()}


def _told(student, questions, images=None, max_new_tokens: int = 40) -> list[str]:
    parts = ask(student, questions, images, max_new_tokens=max_new_tokens)
    return [text for part in parts for text in part.completions]


def _share(texts, labels, world) -> float:
    right = [
        rewards.accuracy_reward(t, label, classes=world.names) for t, label in zip(texts, labels)
    ]
    return sum(right) / len(right)
