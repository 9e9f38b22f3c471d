"""What does a student know, and does it use it? Fresh pictures, greedy decoding."""

from collections.abc import Sequence

from finer1_lite import paperbirds, prompts
from finer1_lite.data import scoring
from finer1_lite.data.chain_text import remarks_of, section
from finer1_lite.evaluate import complete
from finer1_lite.generation import Student

LIMITS = {"answer": 24, "think": 160}  # new tokens of a prompt's completion


def marks_right(text: str, marks: dict[str, str]) -> int:
    """How many of a bird's six marks a description names rightly."""
    named = {part.strip() for part in text.replace(".", "").split(",")}
    return sum(f"{mark} {value}" in named for mark, value in marks.items())


def remarks_true(completion: str, world: paperbirds.World) -> bool:
    """Whether each candidate has one remark, true of it and of the analysis.

    The candidate's plumage stands there as in the field guide, what it `has` otherwise are its
    marks that the analysis does not cite, all of them, and it `fits` where there are none.
    """
    said = _marks(section(completion, "analysis").partition("\n")[0])
    remarks = remarks_of(section(completion, "comparison"))
    for name, remark in remarks:
        if name not in world.marks:
            return False
        recited, _, against = remark.partition("has ")
        marks = set(_marks(paperbirds.knowledge(world, name)))
        if not set(_marks(paperbirds.recite(world, name))) <= set(_marks(recited)) <= marks:
            return False
        lacking = marks - set(said)
        if set(_marks(against)) != lacking or remark.endswith("fits") == bool(lacking):
            return False
    listed = [name.strip() for name in section(completion, "candidates").split(",")]
    return sorted(name for name, _ in remarks) == sorted(listed)


def _marks(text: str) -> list[str]:
    """The marks that a text lists ("crown red")."""
    parts = (part.strip(" .") for part in text.split(","))
    return [part for part in parts if part.partition(" ")[0] in paperbirds.MARKS]


def probe(student: Student, world: paperbirds.World, per_species: int = 4) -> dict[str, float]:
    """Shares right, seen and unseen species apart.

    marks: described marks; all_marks: pictures with every mark right (what the
    descriptions would allow); quiz: "which species has ...?" in words; guide: "what does
    ... look like?"; argue: a whole chain from marks given in words; direct: the name asked
    of a picture without thinking; think: with. Of chains also how many are right and agree
    (`chain_text.agreement`), and how many of all have true remarks.
    """
    scores: dict[str, float] = {}
    total = len(paperbirds.MARKS)
    for half in ("seen", "unseen"):
        names = [n for n in world.names if (n in world.seen) == (half == "seen")]
        photos = [paperbirds.photo(world, n, "probe", i) for n in names for i in range(per_species)]
        images = [photo.image() for photo in photos]
        labels = [photo.species for photo in photos]
        asked = [prompts.DESCRIBE.format(coarse="bird")] * len(photos)
        described = complete(student, asked, images, max_new_tokens=40)
        right = [marks_right(t, world.marks[n]) for t, n in zip(described, labels, strict=True)]
        found = {"marks": sum(right) / (total * len(right))}
        found["all_marks"] = sum(r == total for r in right) / len(right)
        asked = [prompts.LOOKS.format(name=name) for name in names]
        looks = complete(student, asked, max_new_tokens=40)
        right = [marks_right(t, world.marks[n]) for t, n in zip(looks, names, strict=True)]
        found["guide"] = sum(right) / (total * len(names))
        known = [f"A bird has {paperbirds.knowledge(world, n)}. " for n in names]
        for key, kind in (("quiz", "answer"), ("argue", "think")):
            asked = [text + prompts.question(kind, "bird") for text in known]
            said = complete(student, asked, max_new_tokens=LIMITS[kind])
            found |= shares(key, kind, said, names, world)
        for key, kind in (("direct", "answer"), ("think", "think")):
            asked = [prompts.question(kind, "bird")] * len(photos)
            said = complete(student, asked, images, max_new_tokens=LIMITS[kind])
            found |= shares(key, kind, said, labels, world)
        scores |= {f"{name}_{half}": round(share, 4) for name, share in found.items()}
    return scores


def shares(
    key: str, kind: str, completions: Sequence[str], labels: Sequence[str], world: paperbirds.World
) -> dict[str, float]:
    """Shares of completions that name the right species, and of chains that lead to it."""
    pairs = zip(completions, labels, strict=True)
    verdicts = [scoring.judge(text, label, world.names, prompt=kind) for text, label in pairs]
    found = {key: [v.correct for v in verdicts]}
    if kind in prompts.WITH_CHAIN:
        found[f"{key}_agrees"] = [bool(v.correct and v.agrees) for v in verdicts]
        found[f"{key}_true"] = [remarks_true(text, world) for text in completions]
    return {name: sum(of) / len(of) for name, of in found.items()}
