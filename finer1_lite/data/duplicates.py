"""Pictures that are nearly the same: saved again, made smaller, or taken a moment later.

Two signs must agree. The difference hash (dHash) tells what rises from left to right in a grey
copy of 9 x 8 pixels; the thumbnail tells colours, for pictures of little structure share a hash.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

HASH_SIDE = 8  # a picture's difference hash: 8 x 8 comparisons of neighbours, 64 bits
THUMB_SIDE = 8  # pixels
# bits of the hash, and levels of 255 of the thumbnails on average, that two pictures may differ by:
NEAR = (6, 12.0)  # taken a moment apart, or cut a little
SAME = (5, 6.0)  # two files of one photograph


@dataclass(frozen=True, eq=False)
class Look:
    """How a picture looks from afar: its difference hash and a thumbnail (8, 8, 3), uint8."""

    code: int
    thumbnail: np.ndarray

    @classmethod
    def of(cls, image: Image.Image) -> "Look":
        """The look of an upright RGB picture."""
        grey = image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
        values = np.asarray(grey, dtype=np.int16)
        rises = (values[:, 1:] > values[:, :-1]).ravel()  # each from its left neighbour
        code = int.from_bytes(np.packbits(rises).tobytes(), "big")
        small = image.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)
        return cls(code, np.asarray(small, dtype=np.uint8))


def pairs(
    some: Iterable[Look], others: Sequence[Look], bits: int = NEAR[0], levels: float = NEAR[1]
) -> list[tuple[int, int, int]]:
    """(place in `some`, place in `others`, bits that differ) of each pair that looks alike."""
    if not others:
        return []
    codes = np.array([one.code for one in others], dtype=np.uint64)
    thumbnails = np.stack([one.thumbnail for one in others]).astype(np.float32)
    found = []
    for place, one in enumerate(some):
        apart = np.bitwise_count(codes ^ np.uint64(one.code))
        near = np.flatnonzero(apart <= bits)
        colours = np.abs(thumbnails[near] - one.thumbnail).mean(axis=(1, 2, 3))
        found += [(place, int(i), int(apart[i])) for i in near[colours <= levels]]
    return found
