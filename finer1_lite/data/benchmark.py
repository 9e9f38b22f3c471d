"""What is asked: pictures with their right names, the conditions, the questions.

Open world: no options. Closed world: the right name among look-alikes, in every rotation or
in one order. Whatever a benchmark is made of (a collection here, question files in
`evals.questions`), it is asked and scored in the same way (`evaluate`).
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from finer1_lite import prompts
from finer1_lite.rewards import Aliases, normalise
from finer1_lite.species import Collection

N_OPTIONS = 4
OPTION_SEED = 0  # the same options for every model and training seed
NO_PROMPT = "none"  # of an answerer that reads no words
PLACEHOLDER = re.compile(r"\{(coarse|fine|options)\}")


@dataclass(frozen=True)
class Question:
    """One picture with its right name; `questions` adds the words and orders the options."""

    photo: str  # its id
    dataset: str
    split: str  # seen | unseen
    label: str
    image: Callable[[], Image.Image] | None = field(default=None, repr=False, compare=False)
    coarse: str = ""  # what the picture shows, in a word
    fine: str = "kind"  # what its exact name is called
    options: tuple[str, ...] | None = None
    about: str = ""  # asked instead of the name; the label is then its answer
    aliases: tuple[str, ...] = ()
    text: str = ""  # the words, once it is asked
    rotation: int = 0


@dataclass(frozen=True)
class Condition:
    """How every question of a benchmark is asked."""

    prompt: str  # one of prompts.PROMPTS, NO_PROMPT, or a file and its hash
    task: str  # open | closed
    picture: bool = True  # False: the image-free control
    order: str = "rotate"  # closed world: rotate (every option at every place) | shuffle | as_is
    letters: bool = False
    samples: int = 1  # completions a question: 1 is greedy, more are drawn at temperature 1
    words: str = ""  # of a file, in the place of our own: see `filled`

    @property
    def name(self) -> str:
        """The name of its file."""
        parts = [self.prompt, self.task, "" if self.picture else "no_picture"]
        parts += [self.order if self.task == "closed" else "", "letters" if self.letters else ""]
        parts += [f"x{self.samples}" if self.samples > 1 else ""]
        return "-".join(part for part in parts if part)


@dataclass(frozen=True)
class Benchmark:
    """Pictures to ask about, and by data set every name that counts as a name."""

    items: tuple[Question, ...]
    classes: Mapping[str, Sequence[str]]
    groups: Mapping[str, str] = field(default_factory=dict)  # name -> genus, maker, ...
    aliases: Aliases = None
    missing: int = 0  # pictures that were not there and are not asked about
    released: bool = False  # of released question files: their rule reads the picture's path
    drawn: bool = False  # the options stand in an order that was drawn: rotation 0 keeps it
    as_drawn: bool = False  # keep the order of the pictures, too

    @classmethod
    def of_collection(
        cls,
        collection: Collection,
        dataset: str = "test pictures",
        fine: str = "kind",
        as_drawn: bool = False,
    ) -> "Benchmark":
        """The test pictures with `Collection.options`, which `lab` asks in the same order."""
        items = tuple(
            Question(
                photo=photo.id,
                dataset=dataset,
                split="seen" if collection.of(photo.species).seen else "unseen",
                label=photo.species,
                image=photo.image,
                coarse=collection.coarse,
                fine=fine,
                options=tuple(collection.options(photo, N_OPTIONS, OPTION_SEED)),
            )
            for photo in collection.test
        )
        classes = {dataset: collection.names}
        known = {"groups": collection.groups, "aliases": collection.aliases}
        return cls(items, classes, **known, drawn=True, as_drawn=as_drawn)

    def names(self, question: Question) -> tuple[Sequence[str], Aliases]:
        """The names that count as one, and their aliases.

        A question of one's own brings its aliases itself: they mean nothing to another question,
        and the answers of others that read like one of them are no names here.
        """
        classes = self.classes[question.dataset]
        if not question.about:
            return classes, self.aliases
        own = {*map(normalise, question.aliases)} - {normalise(question.label)}
        kept = [name for name in classes if not own or normalise(name) not in own]
        return kept, {question.label: question.aliases}


def questions(benchmark: Benchmark, condition: Condition) -> list[Question]:
    """Every question of a condition, in an order that depends on nothing else.

    Long ones come first, unless `as_drawn`: batches are then of like lengths, and one that
    does not fit in memory fails at the start. ValueError where options are lacking.
    """
    every = [
        replace(item, text=_words(item, condition, options), options=options, rotation=k)
        for item in benchmark.items
        for k, options in enumerate(_orders(item, condition, benchmark.drawn))
    ]
    return every if benchmark.as_drawn else sorted(every, key=lambda one: -len(one.text))


def _words(item: Question, condition: Condition, options: Sequence[str] | None) -> str:
    if condition.prompt == NO_PROMPT:
        return ""
    if condition.words:
        return filled(condition.words, item, options, condition.letters)
    if item.about:
        return prompts.about(condition.prompt, item.about, options, letters=condition.letters)
    form = {"fine": item.fine, "letters": condition.letters}
    return prompts.question(condition.prompt, item.coarse, options, **form)


def filled(words: str, item: Question, options: Sequence[str] | None, letters: bool = False) -> str:
    """Somebody else's words with {coarse}, {fine} and {options} filled in; nothing is added."""
    every = enumerate(options or ())
    named = [f"({prompts.letter(i)}) {name}" if letters else name for i, name in every]
    known = {"coarse": item.coarse, "fine": item.fine, "options": ", ".join(named)}
    return PLACEHOLDER.sub(lambda found: known[found[1]], words)


def _orders(item: Question, condition: Condition, drawn: bool) -> list[tuple[str, ...] | None]:
    """The options in each order asked; a question of one's own has one task only.

    As they are, the right one comes first, as in the released files.
    """
    if item.about and (condition.task == "open") != (item.options is None):
        return []
    if condition.task == "open":
        return [None]
    if item.options is None:
        raise ValueError(f"{item.photo}: no options; the closed world needs them")
    if condition.order == "as_is":
        right_first = sorted(item.options, key=lambda option: option != item.label)
        return [tuple(right_first) if drawn else item.options]
    first = item.options if drawn else shuffled(item.options, item.photo)
    every = rotations(first)
    return [tuple(order) for order in (every if condition.order == "rotate" else every[:1])]


def shuffled(options: Sequence[str], key: str) -> list[str]:
    """The options in an order that is a function of the key alone."""
    order = list(options)
    random.Random(f"{OPTION_SEED}/{key}").shuffle(order)
    return order


def rotations(options: Sequence[str]) -> list[list[str]]:
    """As many orders as options: each option stands at each position exactly once."""
    order = list(options)
    return [order[k:] + order[:k] for k in range(len(order))]
