"""Pictures made from a picture: patches blackened, noise added."""

import random

import torch
from PIL import Image

from finer1_lite.species import Photo

MASKED_SHARE = 0.6  # of the picture's cells (PAPO, arXiv 2507.06448)
NOISE = 40.0  # standard deviation of the noise, in grey levels of 255


def mask_cells(image: Image.Image, seed: float, cells: int = 6) -> Image.Image:
    """Most cells of a grid, chosen by the seed, blackened: an RGB picture of the same size."""
    image = image.copy()  # the caller may keep its own
    rng = random.Random(seed)
    columns, rows = ([i * size // cells for i in range(cells + 1)] for size in image.size)
    grid = [(x, y) for x in range(cells) for y in range(cells)]
    for x, y in rng.sample(grid, round(MASKED_SHARE * len(grid))):
        image.paste((0, 0, 0), (columns[x], rows[y], columns[x + 1], rows[y + 1]))
    return image


def add_noise(image: Image.Image, seed: float) -> Image.Image:
    """Every channel of every pixel under the seed's noise: an RGB picture of the same size."""
    generator = torch.Generator().manual_seed(int(seed * 2**31))
    noise = torch.randn((image.height, image.width, 3), generator=generator) * NOISE
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(noise.shape)
    noisy = (pixels + noise).clamp(0, 255).to(torch.uint8)
    return Image.frombytes("RGB", image.size, noisy.numpy().tobytes())


VIEWS = {"masked": mask_cells, "distorted": add_noise}  # of PAPO, of NoisyRollout


def view(photo: Photo, how: str, rng: random.Random) -> Photo:
    """The photograph in one of the `VIEWS`, the same whenever it is decoded."""
    seed = rng.random()
    return Photo(f"{photo.id}#{how}", photo.species, lambda: VIEWS[how](photo.image(), seed))
