"""Anchor, positive, hard negative: the three pictures that a TAPO group is made of."""

import random
from dataclasses import dataclass

from finer1_lite.species import Collection, Photo


@dataclass(frozen=True)
class Triplet:
    anchor: Photo
    positive: Photo  # another picture of the anchor's class: intra-class augmentation
    negative: Photo  # a picture of the most similar other class: inter-class augmentation


def make_triplet(collection: Collection, anchor: Photo, rng: random.Random) -> Triplet:
    """Positive and negative from the training pictures alone.

    The negative is of the nearest other *seen* species: training touches seen classes only.
    Raises ValueError where a class has one picture or there is no second class.
    """
    same = [p for p in collection.train if p.species == anchor.species and p.id != anchor.id]
    others = [n for n in collection.seen_names if n != anchor.species]
    if not same or not others:
        raise ValueError(
            f"{anchor.species!r} needs a second training picture and a second seen class"
        )
    nearest = collection.neighbours(anchor.species, among=others)[0]
    negatives = [p for p in collection.train if p.species == nearest]
    return Triplet(anchor, rng.choice(same), rng.choice(negatives))


def draw_triplets(
    collection: Collection, count: int, seed: int, step: int, round_: int = 0
) -> list[Triplet]:
    """The triplets of one step: a function of (seed, step, round) alone.

    Round 0 walks through shuffled epochs, so that every anchor has its turn; later rounds
    (dynamic sampling drew again) take anchors at random.
    """
    rng = random.Random(f"triplets/{seed}/{step}/{round_}")
    pool = list(collection.train)
    if round_:
        anchors = [rng.choice(pool) for _ in range(count)]
    else:
        anchors = [_epoch_item(pool, seed, step * count + i) for i in range(count)]
    return [make_triplet(collection, anchor, rng) for anchor in anchors]


def _epoch_item(pool: list[Photo], seed: int, position: int) -> Photo:
    epoch, place = divmod(position, len(pool))
    order = list(range(len(pool)))
    random.Random(f"epoch/{seed}/{epoch}").shuffle(order)
    return pool[order[place]]
