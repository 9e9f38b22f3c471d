"""Anchor, positive, hard negative: the three pictures that a TAPO group is made of."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finer1_lite.data import augment
from finer1_lite.runtime.files import require_none
from finer1_lite.species import Collection, Photo


@dataclass(frozen=True)
class Triplet:
    """What a group is made of (Fine-R1, section 3.2)."""

    anchor: Photo
    positive: Photo  # another picture of the anchor's class: intra-class augmentation
    negative: Photo  # a picture of the most similar other class: inter-class augmentation
    options: tuple[str, ...] = ()  # names to choose from, none in the open world


def require_enough(collection: Collection, names: Iterable[str] = ()) -> None:
    """DataError where no triplets can be made of these classes; of none: of all seen ones."""
    counts = Counter(photo.species for photo in collection.train)
    names = names or dict.fromkeys((*collection.seen_names, *counts))
    few = ", ".join(repr(name) for name in names if counts[name] < 2)
    problems = [f"{few} needs a second training picture: add some, or raise shots"] if few else []
    if len(counts.keys() & {*collection.seen_names}) < 2:
        only = ", ".join(map(repr, counts)) or "this collection"
        mend = "add classes, or make more of them seen (classes.csv, a lower --unseen-share)"
        problems.append(f"{only} needs a second seen class with training pictures: {mend}")
    require_none(problems, "stage 2 (TAPO) cannot make its triplets:")


def make_triplet(
    collection: Collection,
    anchor: Photo,
    rng: random.Random,
    *,
    positive: str = "class",
    negative: str = "nearest",
) -> Triplet:
    """Positive and negative from the training pictures alone.

    positive: `class`, another picture of it, or `distorted`, the anchor under noise;
    negative: of the other *seen* classes (training touches no others) the `nearest`, by the
    collection's own distance, or a `random` one, what a hard negative is compared with; or
    `masked`, the anchor with patches blackened. DataError as of `require_enough`.
    """
    require_enough(collection, [anchor.species])
    same = [p for p in collection.train if p.species == anchor.species and p.id != anchor.id]
    others = [n for n in collection.seen_names if n != anchor.species]
    second = augment.view(anchor, positive, rng) if positive == "distorted" else rng.choice(same)
    if negative == "masked":
        return Triplet(anchor, second, augment.view(anchor, negative, rng))
    nearest = collection.neighbours(anchor.species, among=others)[0]
    chosen = rng.choice(others) if negative == "random" else nearest
    hard = rng.choice([p for p in collection.train if p.species == chosen])
    return Triplet(anchor, second, hard)


def draw_triplets(
    collection: Collection,
    count: int,
    seed: int,
    step: int,
    round_: int = 0,
    offer: bool = False,
    **how: Any,
) -> list[Triplet]:
    """The triplets of one step: a function of (count, seed, step, round) alone.

    Round 0 walks through shuffled epochs, so that every anchor has its turn; later rounds
    (dynamic sampling drew again) take anchors at random. offer: every second one has four
    names to choose from, of seen classes; how: see `make_triplet`.
    """
    rng = random.Random(f"triplets/{seed}/{step}/{round_}")
    pool = collection.train
    if round_:
        anchors = [rng.choice(pool) for _ in range(count)]
    else:
        anchors = [_epoch_item(pool, seed, step * count + i) for i in range(count)]
    drawn = [make_triplet(collection, anchor, rng, **how) for anchor in anchors]
    for i in range((step * count + 1) % 2, count, 2) if offer else ():
        options = collection.options(anchors[i], seed=step, among=collection.seen_names)
        drawn[i] = replace(drawn[i], options=tuple(options))
    return drawn


def _epoch_item(pool: Sequence[Photo], seed: int, position: int) -> Photo:
    """The item at a position of one endless sequence of shuffled epochs."""
    epoch, place = divmod(position, len(pool))
    order = list(pool)
    random.Random(f"epoch/{seed}/{epoch}").shuffle(order)
    return order[place]
