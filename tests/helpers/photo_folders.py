"""Small folders of pictures, made on the spot, for the tests that load photos."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finer1_lite.runtime.files import DataError
from finer1_lite.species import load_folder

FOUR = ("black-kite", "red-kite", "barn-owl", "tawny-owl")
DESCRIBED = "class,description\n" + "".join(f"{name},a bird\n" for name in FOUR)


def noise(path: Path, size: tuple[int, int] = (16, 12)) -> Path:
    """A picture whose bytes depend on its path, so that no two are copies."""
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def four_classes(root: Path) -> Path:
    """Four classes of six pictures, without tables."""
    for name in FOUR:
        for number in range(6):
            noise(root / name / f"{number}.png")
    return root


def problems_of(root: Path, **settings) -> list[str]:
    with pytest.raises(DataError) as caught:
        load_folder(root, **settings)
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    return caught.value.problems


def only_problem(root: Path, **settings) -> str:
    problems = problems_of(root, **settings)
    assert len(problems) == 1, problems
    return problems[0]


def write_index(root: Path, trained: int = 4, **changed: str) -> None:
    """The first `trained` pictures of each class are train; owls and kites are groups."""
    lines = ["file,coarse,split"]
    for path in sorted(root.glob("*/*.png")):
        name = path.relative_to(root).as_posix()
        split = "train" if int(path.stem) < trained else "test"
        lines.append(changed.get(name, f"{name},{name.split('/')[0].split('-')[1]},{split}"))
    (root / "index.csv").write_text("\n".join(lines), encoding="utf-8")
