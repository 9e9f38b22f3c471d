"""Pictures: what is converted, what is turned, and what is refused with which reason."""

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from photo_folders import four_classes, noise, only_problem
from PIL import Image

from finer1_lite.data import images
from finer1_lite.species import Photo, load_folder

ORIENTATION = 0x0112


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return four_classes(tmp_path / "birds")


def colour(image: Image.Image, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel(at)


@pytest.mark.parametrize(
    "mode, fill, expected, note",
    [
        ("CMYK", (0, 255, 255, 0), (255, 0, 0), "CMYK"),
        ("L", 128, (128, 128, 128), "grey"),
        ("1", 1, (255, 255, 255), "black-and-white"),
        ("I;16", 40000, (156, 156, 156), "16-bit grey"),
        ("RGBA", (255, 0, 0, 0), (255, 255, 255), "transparency"),
        ("LA", (0, 0), (255, 255, 255), "transparency"),
    ],
)
def test_unusual_modes_are_converted_and_logged(root, caplog, mode, fill, expected, note):
    path = root / "red-kite" / ("new.tif" if mode == "CMYK" else "new.PNG")
    Image.new(mode, (20, 10), fill).save(path)
    with caplog.at_level(logging.INFO, logger="finer1_lite"):
        birds = load_folder(root)
    photo = next(p for p in birds.train + birds.test if "new" in p.id)
    assert colour(photo.image()) == expected
    assert any(note in m and photo.id in m for m in caplog.messages)


def test_palette_with_transparency_is_laid_on_white(root):
    image = Image.new("P", (20, 10), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.putpixel((3, 3), 0)
    image.save(root / "red-kite" / "new.gif", transparency=0)
    kite = images.decode(root / "red-kite" / "new.gif")
    assert colour(kite) == (200, 10, 20) and colour(kite, (3, 3)) == (255, 255, 255)
    load_folder(root)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_applied(tmp_path, ending):
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))  # the left half: on top after a turn by 90 degrees
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / f"turned.{ending}", exif=exif)
    upright = images.decode(tmp_path / f"turned.{ending}")
    assert upright.size == (20, 40)
    top, bottom = colour(upright, (10, 5)), colour(upright, (10, 35))
    assert top[2] > 200 > top[0] and bottom[0] > 200 > bottom[2]
    assert images.check(tmp_path / f"turned.{ending}").notes == ("turned upright by EXIF",)


def chunk(kind: bytes, data: bytes, off: int = 0) -> bytes:
    """A chunk of a PNG file; off: how far its checksum is off."""
    check = struct.pack(">I", zlib.crc32(kind + data) + off)
    return struct.pack(">I", len(data)) + kind + data + check


def png_header(width: int, height: int) -> bytes:
    """A one-bit PNG that claims a size; its pixels need not exist to be refused."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


# Numbers -----------------------------------------------------------------------------

RAMP = np.add.outer(np.arange(64), np.arange(64)) / 126  # from 0 to 1


def decoded(path: Path, values: np.ndarray) -> np.ndarray:
    Image.fromarray(values).save(path)
    assert any("scaled to 8 bits" in note for note in images.check(path).notes)
    return np.asarray(images.decode(path))[..., 0]


@pytest.mark.parametrize(
    "low, high, kind",
    [
        *((0, 1, "f4"), (0, 255, "f4"), (0, 65535, "f4"), (-1, 1, "f4"), (0, 0.01, "f4")),
        *((273, 310, "f4"), (0, 4095, "u2"), (0, 1023, "u2"), (0, 65535, "u2")),
        *((0, 4095, "i4"), (0, 1_000_000, "i4"), (-500, 500, "i4")),
    ],
)
def test_numbers_are_scaled_by_the_range_that_they_use(tmp_path, low, high, kind):
    found = decoded(tmp_path / "x.tif", (low + RAMP * (high - low)).astype(kind))
    assert np.abs(found - RAMP * 255).max() <= 1.5


def test_numbers_without_a_sign_are_no_negative_ones(tmp_path):
    """Pillow reads uint32 as int32: what is above its half comes back below zero."""
    values = (RAMP * (2**32 - 1)).astype(np.uint32).view(np.int32)
    path = tmp_path / "x.tif"
    Image.fromarray(values).save(path)
    signed = struct.pack("<HHIH", 339, 3, 1, 2)  # the entry SampleFormat: 2 has a sign, 1 none
    assert path.read_bytes().count(signed) == 1
    path.write_bytes(path.read_bytes().replace(signed, struct.pack("<HHIH", 339, 3, 1, 1)))
    found = np.asarray(images.decode(path))[..., 0]
    assert np.abs(found - RAMP * 255).max() <= 1.5


def test_grey_of_12_bits_in_16_is_no_black_png(tmp_path):
    assert decoded(tmp_path / "x.png", (RAMP * 4095).astype("u2")).max() == 255


@pytest.mark.parametrize("odd, words", [(np.nan, "finite"), (np.inf, "finite"), (-9999, "-9999")])
def test_numbers_that_make_no_picture_are_refused(tmp_path, odd, words):
    values = RAMP.astype("f4")
    values[3, 3] = odd
    Image.fromarray(values).save(tmp_path / "x.tif")
    problem = images.check(tmp_path / "x.tif").problem
    assert words in problem and "save it as 8-bit RGB" in problem
    with pytest.raises(images.PictureError, match=words):
        images.to_rgb(Image.fromarray(values))


@pytest.mark.parametrize("bits, usable", [(12, False), (16, True)])
def test_colours_of_16_bits_that_turn_black_are_refused(tmp_path, bits, usable):
    colours = np.repeat(RAMP[..., None] * (2**bits - 1), 3, 2).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in colours)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
    problem = images.check(tmp_path / "x.png").problem
    assert not problem if usable else "16 bits a colour" in problem


# Metadata ----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jpg", "webp", "avif", "heic", "png"])
def test_a_picture_without_metadata_has_none_that_are_broken(tmp_path, ending):
    if {"heic": "HEIF"}.get(ending, "AVIF") not in images.FORMATS:
        pytest.skip(f"no reader of {ending}")
    Image.new("RGB", (64, 40), "red").save(tmp_path / f"x.{ending}")
    assert not images.check(tmp_path / f"x.{ending}").notes


@pytest.mark.parametrize("ending", ["jpg", "webp", "avif", "heic", "png"])
def test_broken_exif_is_no_fault_of_the_picture(tmp_path, ending):
    if {"heic": "HEIF"}.get(ending, "AVIF") not in images.FORMATS:
        pytest.skip(f"no reader of {ending}")
    path, exif = tmp_path / f"x.{ending}", Image.Exif()
    exif[ORIENTATION], exif[0x10E] = 6, "red"
    Image.new("RGB", (64, 40), "red").save(path, exif=exif)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"MM\0*", b"MMMM").replace(b"II*\0", b"IIII"))
    assert path.read_bytes() != whole
    # AVIF turns the picture itself
    assert images.decode(path).size == ((40, 64) if ending == "avif" else (64, 40))
    assert "read without its metadata, which are broken" in images.check(path).notes


@pytest.mark.parametrize(
    "beside",
    [
        *(chunk(b"pHYs", b"\0"), chunk(b"tEXt", b"a\0b", off=1), chunk(b"iCCP", b"x\0\5")),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))),
    ],
)
def test_broken_chunks_beside_the_pixels_of_png(tmp_path, beside):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (64, 40)).save(tmp_path / "x.png", exif=exif)
    data = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(data[:33] + beside + data[33:])
    assert images.decode(tmp_path / "x.png").size == (40, 64)
    assert "metadata" in " ".join(images.check(tmp_path / "x.png").notes)
    (tmp_path / "x.png").write_bytes(data[:33] + beside + data[33:-30])  # pixels do count
    assert "is broken" in images.check(tmp_path / "x.png").problem


def jpeg_bytes(tmp_path: Path) -> bytes:
    return noise(tmp_path / "whole.jpg", (64, 64)).read_bytes()


BAD_PICTURES = {
    "zero bytes": (lambda tmp: b"", "0 bytes"),
    "truncated": (lambda tmp: jpeg_bytes(tmp)[:-900], "truncated"),
    "header only": (lambda tmp: jpeg_bytes(tmp)[:30], "broken|no picture"),
    "text": (lambda tmp: b"a photo of a kite", "no picture"),
    "postscript": (
        lambda tmp: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "no pic",
    ),
    "twice too large": (lambda tmp: png_header(20000, 10000), "too large"),
    "too large": (lambda tmp: png_header(10000, 9000), "too large .10000x9000"),
    "one pixel": (lambda tmp: png_header(1, 1), "too small .1x1"),
    "narrow": (lambda tmp: png_header(1600, 8), "too narrow .1600x8"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_pictures_are_named_with_the_reason(root, tmp_path, kind):
    make, reason = BAD_PICTURES[kind]
    path = root / "red-kite" / "bad.jpg"
    path.write_bytes(make(tmp_path))
    problem = only_problem(root)
    assert problem.startswith("red-kite/bad.jpg: ")
    with pytest.raises(images.PictureError, match=reason) as caught:
        images.decode(path)
    assert problem.removeprefix("red-kite/bad.jpg") in str(caught.value)


def test_broken_link_with_a_pictures_name_is_a_problem(root):
    (root / "red-kite" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    assert "red-kite/gone.jpg: cannot be read" in only_problem(root)


def test_phone_pictures_of_two_frames_and_animations_give_their_first(tmp_path):
    red, blue = (Image.new("RGB", (16, 16), name) for name in ("red", "blue"))
    red.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=[blue])
    red.save(tmp_path / "moving.gif", save_all=True, append_images=[blue])
    assert images.decode(tmp_path / "phone.jpg").getpixel((5, 5))[0] > 200
    assert images.decode(tmp_path / "moving.gif").getpixel((5, 5)) == (255, 0, 0)
    assert images.check(tmp_path / "phone.jpg").notes == ()
    assert "first of several frames kept" in images.check(tmp_path / "moving.gif").notes


def test_a_photo_that_vanishes_after_loading_is_named(root):
    photo = load_folder(root).test[0]
    photo.source.unlink()
    with pytest.raises(images.PictureError, match=photo.source.name):
        photo.image()


# --- large pictures --------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A picture of 40 x 30 pixels where 300 are the most, and what has been reduced so far."""
    monkeypatch.setattr(images, "MOST", 300)
    monkeypatch.setattr(images, "_reduced", {})
    path = tmp_path / "large.png"
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(path)
    return path


@pytest.mark.parametrize(
    ("size", "pixels", "becomes"),
    [
        ((40, 30), 1200, (40, 30)),
        ((40, 30), 300, (20, 15)),
        ((40, 30), 299, (19, 15)),
        ((600, 8), 300, (150, 2)),
        ((5000, 8), 10, (10, 1)),
    ],
)
def test_a_picture_is_reduced_in_its_shape_and_only_where_it_is_larger(size, pixels, becomes):
    picture = Image.new("RGB", size, "red")
    small = images.reduced(picture, pixels)
    assert small.size == becomes and (small is picture) == (size == becomes)


def test_a_large_picture_is_read_whole_once_and_anew_when_its_file_changes(large, monkeypatch):
    reads, real = [], images._decode
    monkeypatch.setattr(images, "_decode", lambda data: reads.append(1) or real(data))
    first, again = images.decode(large), images.decode(large)
    assert first.size == again.size == (20, 15) and first.mode == again.mode == "RGB"
    assert first.tobytes() == again.tobytes() and reads == [1]
    Image.new("RGB", (50, 30), "blue").save(large)
    assert images.decode(large).getpixel((0, 0)) == (0, 0, 255) and reads == [1, 1]
    assert images.check(large).problem == ""


def test_a_whole_picture_is_there_for_who_asks_for_it(large):
    """A teacher's paid reply is found again by all pixels of its picture."""
    photo = Photo("x", "wren", large)
    assert [photo.image().size, photo.image(whole=True).size] == [(20, 15), (40, 30)]


@pytest.mark.parametrize("size", [(19_800, 100), (39_600, 200), (100, 19_800), (3000, 4000)])
def test_a_reduced_picture_is_no_narrower_than_the_whole(size):
    """Qwen-VL's processor refuses more than 200 to 1."""
    small = images.reduced(Image.new("RGB", size), 28_224)
    assert small.width * small.height <= 28_224
    assert max(small.size) / min(small.size) <= max(size) / min(size) + 1e-9


def test_a_picture_that_fits_is_not_kept(large):
    Image.new("RGB", (20, 15)).save(large)
    assert images.decode(large).size == (20, 15) and images._reduced == {}


def test_what_is_kept_of_large_pictures_is_bounded(large, monkeypatch, tmp_path):
    monkeypatch.setattr(images, "KEPT", 1)
    images.decode(large)
    other = tmp_path / "other.png"
    Image.new("RGB", (40, 30), "blue").save(other)
    images.decode(other)
    assert len(images._reduced) == 1
