"""A draw of `k` pictures a class from a stream, kept on the disk.

Each picture has a rank, the hash of a seed and its bytes, and the smallest ranks are kept:
a uniform draw without replacement, the same for any order of the stream and any cut into
shards. (Reservoir sampling would depend on the order.)
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from finer1_lite.data import images


def rank(seed: int, text: str) -> str:
    """The order of a draw: the smallest are kept."""
    return hashlib.sha256(f"{seed}/{text}".encode()).hexdigest()


def two_labels(folder: Path) -> dict[str, list[str]]:
    """digest -> the files of a picture that is kept in more than one class."""
    same = defaultdict(list)
    for path in sorted(folder.glob("*/*-*")):
        same[path.stem.partition("-")[2]].append(path.relative_to(folder).as_posix())
    return {digest: names for digest, names in same.items() if len(names) > 1}


class Draw:
    """The pictures kept so far, `folder`/<class>/<role>-<digest>.<ending>; all state is there.

    What is kept is the set of the smallest ranks among all pictures offered, whatever their
    order; offering one again changes nothing. `limits` is {role: pictures a class, 0: all}.
    """

    def __init__(self, folder: Path, limits: Mapping[str, int], seed: int):
        self.folder, self.limits, self.seed = folder, limits, seed
        self._kept: dict[tuple[str, str], list] = defaultdict(list)  # heaps, the worst first
        self._names: dict[tuple[str, str], set[str]] = defaultdict(set)  # digests
        # digest -> classes, of the test pictures kept
        self._tested: dict[str, set[str]] = defaultdict(set)
        for path in sorted(folder.glob("*/*")):
            if path.suffix == ".tmp":
                path.unlink()
            else:
                role, _, digest = path.stem.partition("-")
                self._add(role, path.parent.name, digest, path)

    def offer(self, role: str, own: str, data: bytes) -> str:
        """Keep the picture of class `own` if its rank is among the smallest.

        A training picture that is kept for the test already is not kept again, and its classes
        there are returned; else "". PictureError if the bytes are no usable picture.
        """
        digest = hashlib.sha256(data).hexdigest()[:32]
        if role == "train" and self._tested.get(digest):
            return ", ".join(sorted(self._tested[digest]))
        heap, limit = self._kept[role, own], self.limits[role]
        if digest in self._names[role, own]:
            return ""
        if limit and len(heap) >= limit and _order(self.seed, digest) < heap[0][0]:
            return ""
        checked = images.check_bytes(data)
        if checked.problem:
            raise images.PictureError(checked.problem)
        path = self.folder / own / f"{role}-{digest}{images.ending(data)}"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        draft.write_bytes(data)
        os.replace(draft, path)
        self._add(role, own, digest, path)
        return ""

    def _add(self, role: str, own: str, digest: str, path: Path) -> None:
        heap, limit = self._kept[role, own], self.limits[role]
        heapq.heappush(heap, (_order(self.seed, digest), digest, path))
        self._names[role, own].add(digest)
        if role == "test":
            self._tested[digest].add(own)
        if limit and len(heap) > limit:
            _, digest, path = heapq.heappop(heap)
            self._names[role, own].remove(digest)
            if role == "test":
                self._tested[digest].discard(own)
            path.unlink()


def _order(seed: int, digest: str) -> int:
    """The rank with its sign turned: a heap then has the worst in front."""
    return -int(rank(seed, digest), 16)
