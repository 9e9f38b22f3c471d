"""From a picture file to an upright RGB picture, or to the reason why not.

`decode` serves every later read; `check` runs the same decoding once for each file when a
folder is loaded, so that what passes the check cannot fail in the middle of a training run.
Nothing is written: pictures are converted in memory each time they are read.
"""

import hashlib
import io
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, features

from finer1_lite.data.duplicates import Look

try:  # HEIC, the form of photographs on many phones
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:
    pillow_heif = None

ENDINGS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".avif", ".heic", ".heif"}
)
# Only these decoders may run, whatever a file calls itself: Pillow would hand a renamed
# EPS file to Ghostscript. The JPEG reader also takes the MPO files of many phones.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"),
    *(["AVIF"] if features.check("avif") else []),
    *(["HEIF"] if pillow_heif else []),
)
# Pillow's own warning level; it is written out because Pillow only warns up to twice it.
MAX_PIXELS = 89_478_485
MIN_SIDE = 8  # pixels
MAX_ASPECT = 200  # Qwen2.5-VL's image processor refuses pictures as narrow as this

NO_HEIF = "is HEIC, which is read with: pip install pillow-heif (or save it as JPEG)"
_HEIF = re.compile(rb".{4}ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)
_STARTS = re.compile(  # of files that are pictures, whatever they are called
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF.{4}WEBP|.{4}ftypavi[fs]|" + _HEIF.pattern, re.DOTALL
)
_NOT_READ = {  # how files begin that some take for pictures
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"%PDF": "PDF",
    b"8BPS": "a Photoshop file",
    b"<svg": "SVG",
    b"<?xml": "SVG or XML",
}
_ENDING_OF = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}
_ORIENTATION = 0x0112  # the EXIF tag; 1 means upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODE_NOTES = {
    "CMYK": "CMYK read as RGB",
    "L": "grey read as RGB",
    "LA": "grey read as RGB",
    "1": "black-and-white read as RGB",
    "P": "palette read as RGB",
    "PA": "palette read as RGB",
    "I": "16-bit grey scaled to 8 bits",
}


class PictureError(ValueError):
    """A picture file that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Checked:
    """What `check` found out: the bytes' digest, decisions, a problem, and how it looks."""

    digest: str
    notes: tuple[str, ...] = ()
    problem: str = ""
    look: Look | None = field(default=None, repr=False)


def decode(path: Path) -> Image.Image:
    """Read a picture file as an upright RGB picture, transparency laid on white.

    Raises PictureError naming the file for anything that `check` would call a problem.
    """
    try:
        return _decode(Path(path).read_bytes())[0]
    except (PictureError, OSError) as error:
        raise PictureError(f"{path}: {error}") from error


def check(path: Path) -> Checked:
    """Decode a picture file completely; a problem is returned, never raised."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return Checked("", problem=f"cannot be read ({error.strerror}); check its permissions")
    return check_bytes(data)


def check_bytes(data: bytes) -> Checked:
    """`check` for the bytes of a picture file."""
    digest = hashlib.sha256(data).hexdigest()
    try:
        picture, notes = _decode(data)
        return Checked(digest, tuple(notes), look=Look.of(picture))
    except PictureError as error:
        return Checked(digest, problem=str(error))


def starts_like_a_picture(path: Path) -> bool:
    """Whether a file begins as pictures do, whatever its name; False if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return bool(_STARTS.match(stream.read(16)))
    except OSError:
        return False


def ending(data: bytes) -> str:
    """The file ending that fits a picture which `check_bytes` found usable, such as ".jpg"."""
    with _open(data) as image:
        return _ENDING_OF.get(image.format, f".{image.format.lower()}")


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any Pillow mode as RGB: alpha on white, 16-bit grey scaled to 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # convert() would clip everything above 255 to white
        levels = np.asarray(image).astype(np.float64).clip(0, 65535) / 257
        image = Image.fromarray(np.rint(levels).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def small(image: Image.Image, side: int, form: str = "PNG", **settings: int) -> bytes:
    """The picture as a file, its longer side at most `side` pixels; settings: of the form."""
    image = image.copy()
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, form, **settings)
    return stream.getvalue()


def _decode(data: bytes) -> tuple[Image.Image, list[str]]:
    """The picture in `data` and the decisions taken on the way; else PictureError."""
    if not data:
        raise PictureError("is empty (0 bytes); copy it again or remove it")
    try:
        with _open(data) as image:
            _require_size(*image.size)
            notes = _notes(image)
            image.load()
            # after load(): the TIFF reader turns the picture itself and drops the tag
            turn = _TURNS.get(_orientation(image))
            return to_rgb(image.transpose(turn) if turn is not None else image.copy()), notes
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        raise PictureError(_unread(data)) from None
    except Exception as error:  # decoders raise whatever they like on broken bytes
        mend = "copy it again, save it as 8-bit RGB, or remove it"
        raise PictureError(f"is broken ({error}); {mend}") from error


def _unread(data: bytes) -> str:
    """Why no decoder takes these bytes, as far as their beginning tells, with the mend."""
    if _HEIF.match(data) and pillow_heif is None:
        return NO_HEIF
    names = [name for start, name in _NOT_READ.items() if data.startswith(start)]
    if _STARTS.match(data):
        names = ["broken, or of a form that this Pillow does not read"]
    if names:
        return f"is {names[0]}; save it as JPEG or PNG"
    return "is no picture, whatever its name says; replace or remove it"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 where there is none."""
    return image.getexif().get(_ORIENTATION, 1)


def _open(data: bytes) -> Image.Image:
    """Read the header only; Pillow itself stops at twice MAX_PIXELS."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(_too_large(str(error))) from None


def _require_size(width: int, height: int) -> None:
    """Raise PictureError unless a picture of these pixels can be used."""
    size = f"({width}x{height})"
    if width * height > MAX_PIXELS:
        raise PictureError(_too_large(f"{width}x{height}"))
    if min(width, height) < MIN_SIDE:
        mend = f"both sides need {MIN_SIDE} pixels: replace or remove it"
        raise PictureError(f"is too small {size}; {mend}")
    if max(width, height) >= MAX_ASPECT * min(width, height):
        mend = f"one side is {MAX_ASPECT} times the other or more: crop or remove it"
        raise PictureError(f"is too narrow {size}; {mend}")


def _too_large(size: str) -> str:
    return f"is too large ({size}); shrink it to at most {MAX_PIXELS:,} pixels"


def _notes(image: Image.Image) -> list[str]:
    """The decisions that `_decode` takes for this picture, in words."""
    mode = "I" if image.mode.startswith("I") else image.mode
    notes = [_MODE_NOTES[mode]] if mode in _MODE_NOTES else []
    if image.has_transparency_data and mode != "I":
        notes.append("transparency laid on white")
    if _orientation(image) in _TURNS:
        notes.append("turned upright by EXIF")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        notes.append("first of several frames kept")
    return notes
