"""The exercises of the notebooks: read from `exercises.md`, and how their inputs are drawn."""

import math
import random
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = ["rumar lark", "lovok lark", "pisil heron", "dasil wren", "tamun finch"]
BLOCK = re.compile(r"```python\n(.*?)```\n", re.DOTALL)
MISTAKE = re.compile(r"^- `(.+?)` -> `(.*?)`: (.+)$", re.MULTILINE)


class Exercise(NamedTuple):
    """A section of exercises.md."""

    function: str
    arguments: list[str]
    task: str
    stub: str
    solution: str
    why: str
    mistakes: dict[str, str]  # what a learner is told -> the source of the mistaken solution


@cache
def read_exercises() -> dict[str, Exercise]:
    """Every exercise by its number: "03.1" is the first of notebook 03."""
    text = Path(__file__).with_name("exercises.md").read_text(encoding="utf-8")
    found = {}
    for section in text.split("\n## ")[1:]:
        head, _, body = section.partition("\n")
        number, name = head.split()
        task, stub, _, solution, rest = BLOCK.split(body)
        why = MISTAKE.split(rest, maxsplit=1)[0].strip()
        mistakes = {told: solution.replace(old, new) for old, new, told in MISTAKE.findall(rest)}
        arguments = re.search(r"^def \w+\((.*)\):", stub, re.MULTILINE)[1].split(", ")
        found[number] = Exercise(name, arguments, task.strip(), stub, solution, why, mistakes)
    return found


class Dice(random.Random):
    """Chance, for the inputs of an exercise."""

    def normal(self, *shape: int) -> Tensor:
        """Normal numbers of a shape."""
        return torch.tensor([self.gauss() for _ in range(math.prod(shape))]).view(shape)

    def flags(self, n: int) -> list[bool]:
        """True or False, n times."""
        return [self.random() < 0.6 for _ in range(n)]

    def names(self, n: int, among: int = 3) -> list[str]:
        """N names of a few classes."""
        return self.choices(self.sample(NAMES, among), k=n)


def completions_of(label: str, other: str) -> list[str]:
    """A completion of every kind that the reward tells apart."""
    right, wrong = f"<answer>{label}</answer>", f"<answer>{other}</answer>"
    think, shout = f"<think>{other} or {label}</think>", f"<answer> {label.upper()} </answer>"
    found = [right, wrong, f"{think}\n{right}\n", f"{think}{wrong}", f"{think}so {right}"]
    found += [f"{think}{right} I hope", f"{wrong}{right}", f"The answer is {label}"]
    return [*found, f"<answer>{label} or {other}</answer>", think + shout]


def _candidates(dice: Dice) -> tuple[list[list[str]], list[str]]:
    lists = [dice.sample(NAMES, 4) for _ in range(dice.randint(2, 9))]
    return lists, [dice.choice(dice.choice([NAMES, names])) for names in lists]


def _marks(dice: Dice) -> tuple[dict, str]:
    names, parts = dice.sample(NAMES, 5), ("crown", "back", "belly", "wing")
    return {n: {p: dice.choice(["red", "blue"]) for p in parts} for n in names}, dice.choice(names)


def _padded(dice: Dice) -> tuple[Tensor, int, int]:
    prompt = dice.randint(1, 5)
    return torch.tensor(dice.sample(range(99), 12)), prompt, prompt + dice.randint(2, 6)


def _adapter(dice: Dice) -> tuple[Tensor, Tensor, Tensor, int]:
    rank = dice.randint(1, 4)
    return dice.normal(5, 6), dice.normal(rank, 6), dice.normal(5, rank), dice.choice([3, 8])


def _masked(dice: Dice) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([[dice.randint(1, 7)] for _ in range(3)])
    return dice.normal(3, 7), (torch.arange(7) < lengths).long()


def _comparison(dice: Dice) -> tuple[str, str]:
    said = dice.choices(["back red, fits", "fits but for its belly", "has tail fan"], k=3)
    names = dice.sample(NAMES, 3)
    return "; ".join(map(": ".join, zip(names, said, strict=True))), dice.choice(NAMES)


def _groups(dice: Dice) -> tuple[Tensor]:
    same, mixed = [[0] * 3, [1] * 3], [[0, 1, 0], [1, 1, 0]]
    rows = [dice.choice(dice.choice([same, same, mixed])) for _ in range(12)]
    return (torch.tensor(rows).float().view(6, 2, 3),)


def _weights(dice: Dice) -> tuple[Tensor, Tensor, int]:
    levels = sorted([-1.0, 0.0, 1.0, *(dice.uniform(-1, 1) for _ in range(5))])
    sizes = torch.tensor([1.0, 9.0, 0.1]).repeat_interleave(4)
    return dice.normal(12) * sizes, torch.tensor(levels), 4


def _log(dice: Dice) -> tuple[list[dict]]:
    kinds = {"varied": [0, 2, 4, 4, 4], "truncated": [0.1, 0.5, 0.6], "format": [0.4, 0.9, 1.0]}
    kinds["anchor_entropy"] = [0.05, 0.1, 0.2, 0.5]
    rows = [{column: dice.choice(of) for column, of in kinds.items()} for _ in range(6)]
    kept = [{c: value for c, value in row.items() if dice.random() < 0.4} for row in rows]
    return ([{"step": 5 * at + 3, **row} for at, row in enumerate(kept)],)


def _paid(dice: Dice) -> tuple[list[dict], int, float]:
    gains = [dice.choice([0.0, 0.05, 0.1]), dice.choice([0.0, 0.05])]
    rewards, right = ([g * at + dice.uniform(0, 0.2) for at in range(9)] for g in gains)
    return _rows(rewards, right), dice.randint(2, 6), 0.2


def _rows(rewards: list[float], right: list[float]) -> list[dict]:
    return [{"reward": r, "accuracy": a} for r, a in zip(rewards, right, strict=True)]


def _entropies(first: float, last: float) -> list[dict]:
    return [{"step": 3, "anchor_entropy": first}, {"step": 4, "anchor_entropy": last}]


def _sure(dice: Dice) -> tuple[list[float], list[bool]]:
    n = dice.randint(4, 30)  # between the edges of the bins, and each confidence once
    return [x / 100 + 0.005 for x in dice.sample(range(100), n)], dice.flags(n)


DRAWS: dict[str, Callable[[Dice], tuple]] = {  # the arguments of a call
    "00.1": lambda dice: (dice.choice(completions_of(*(p := dice.sample(NAMES, 2)))), p[0]),
    "00.2": lambda dice: (torch.tensor([1.0, 0, *dice.choices([0, 0.1], k=dice.randint(1, 5))]),),
    "01.1": _candidates,
    "01.2": _marks,
    "02.1": _padded,
    "02.2": _adapter,
    "02.3": lambda dice: ([dice.sample(range(8, 99), 2) for _ in range(3)], dice.randint(2, 16)),
    "03.1": lambda dice: (dice.normal(5, 7), torch.tensor(dice.choices(range(7), k=5))),
    "03.2": lambda dice: (dice.normal(12).exp(), dice.normal(12)),
    "03.3": _masked,
    "04.1": lambda dice: (dice.normal(6) - 3, dice.normal(6) - 3),
    "04.2": _comparison,
    "04.3": _groups,
    "05.1": lambda dice: (dice.choice([32, 64, 128]), dice.choice([64, 256])),
    "05.2": _weights,
    "05.3": lambda dice: tuple(dice.sample([2, 3, 5, 8, 16, 36, 128], 6)),
    "06.1": lambda dice: (dice.randint(1, 19), dice.randint(20, 200)),
    "06.2": lambda dice: (dice.flags(n := dice.randint(8, 40)), dice.flags(n)),
    "06.3": _sure,
    "07.1": lambda dice: (dice.normal(8, 3) + 2, dice.normal(8, 4) - 1),
    "07.2": lambda dice: (dice.names(12), dice.names(12)),
    "08.1": lambda dice: (dice.names(12), dice.sample(range(12), 12), dice.randint(1, 3)),
    "08.2": lambda dice: (*_sure(dice), dice.choice([0.5, 0.75, 0.875])),
    "08.3": lambda dice: ([*dice.names(dice.randint(1, 8)), *[None] * dice.randint(0, 3)],),
    "09.1": _log,
    "09.2": _paid,
}
EDGES: dict[str, list[tuple]] = {  # calls that are made besides
    "00.1": [(text, NAMES[0]) for text in completions_of(*NAMES[:2])],
    "00.2": [(torch.ones(4),), (torch.zeros(8),)],
    "01.1": [([NAMES[:4]], NAMES[4:])],
    "03.1": [(torch.tensor([[300.0, 0], [0, 300], [0, 0]]), torch.tensor([0, 1, 0]))],
    "03.2": [(torch.tensor([1.25, 0.5, 0.7, 3.5]), torch.tensor([1.0, 1, -1, -1]))],
    "04.2": [("a: fits; b: fits", "a"), ("a: fits but for its belly; b: has tail fan", "a")],
    "04.3": [(torch.ones(2, 2, 3),)],
    "05.2": [(torch.zeros(8), torch.tensor([-1.0, 0, 1]), 4)],
    "06.1": [(0, 20), (20, 20)],
    "06.2": [([True, False], [True, False]), ([True, False], [False, True])],
    "06.3": [([1.0, 1.0, 0.95], [True, False, True])],
    "07.2": [(["a", "b"], ["a", "b"])],
    "08.2": [([0.2, 0.9], [False, False], 0.5)],
    "08.3": [([None, None],), (["b", "a", None],)],
    "09.1": [(_entropies(*pair),) for pair in [(0.3, 0.05), (0.05, 0.5), (0.1, 0.1)]],
    "09.2": [(_rows([0, 0, 1, 1], right), 2, 0.2) for right in ([0] * 4, [0, 0, 1, 1])]
    + [(_rows([0, 2, 1, 1], [0] * 4), 2, 0.2), (_rows([0, 1, 1], [0] * 3), 2, 0.2)],
}


def draw_inputs(number: str, seed: int, count: int = 20) -> list[tuple]:
    """The calls that check an exercise: a function of the number and the seed alone."""
    dice = Dice(f"{seed}/{number}")
    return [*(DRAWS[number](dice) for _ in range(count)), *EDGES.get(number, [])]
