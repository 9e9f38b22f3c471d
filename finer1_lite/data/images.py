"""From a picture file to an upright RGB picture, or to the reason why not.

`decode` serves every later read; `check` runs the same decoding once for each file when a
folder is loaded, so that what passes the check cannot fail in the middle of a training run.
Nothing is written: pictures are converted in memory each time they are read, and what is kept of
one that had to be reduced, so that it is once, is bounded.
"""

import hashlib
import io
import math
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, features

from finer1_lite.data.duplicates import Look

try:  # HEIC, the form of photographs on many phones
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:
    pillow_heif = None

ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .avif .heic .heif".split()
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
MOST = 2**20  # pixels of a picture for a student; a photograph of a phone has twelve times as many
ROOM = 4  # pixels left for each that a student looks at, for its own reduction to choose from
KEPT = 2**28  # bytes of reduced pictures; beyond them the oldest are forgotten
MIN_SIDE = 8  # pixels
MAX_ASPECT = 200  # Qwen2.5-VL's image processor refuses pictures as narrow as this

NO_HEIF = "is HEIC, which is read with: pip install pillow-heif (or save it as JPEG)"
_HEIF = re.compile(rb".{4}ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)", re.DOTALL)
_PNG = b"\x89PNG\r\n\x1a\n"
_STARTS = re.compile(  # of files that are pictures, whatever they are called
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF.{4}WEBP|.{4}ftypavi[fs]|BM.{4}\0{4}|"
    rb"(II\*\0|MM\0\*)(?!.{4}CR)|" + _HEIF.pattern,
    re.DOTALL,
)
# of cameras; they begin as TIFF does, which would read the thumbnail for the picture
_RAW = frozenset(".arw .cr2 .dng .nef .orf .pef .rw2 .sr2 .srw".split())
_NOT_READ = {  # how files begin that some take for pictures
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000",
    rb"\xff\x0a|\0\0\0\x0cJXL ": "JPEG XL",
    rb"%PDF": "PDF",
    rb"8BPS": "a Photoshop file",
    rb"(?i)(\xef\xbb\xbf)?\s*(<svg|<\?xml)": "SVG or XML",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|head|!--)": "a web page; fetch the picture itself",
    rb"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` fetches it",
    rb".{4}ftyp|\x1aE\xdf\xa3": "a film, or of a form that is not read",
    rb"PK\x03\x04|\x1f\x8b": "an archive; unpack it",
}
_ENDING_OF = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}
_ORIENTATION = 0x0112  # the EXIF tag; 1 means upright, 2 to 8 are turned or mirrored
_NUMBERS = "16-bit grey, or other numbers, scaled to 8 bits by the range that they use"
_SAVE = "save it as 8-bit RGB, or remove it"
_BARE = "read without its metadata, which are broken"
_MODE_NOTES = {
    "CMYK": "CMYK read as RGB",
    "1": "black-and-white read as RGB",
    **dict.fromkeys(("L", "LA"), "grey read as RGB"),
    **dict.fromkeys(("P", "PA"), "palette read as RGB"),
    **dict.fromkeys("IF", _NUMBERS),
}


class PictureError(ValueError):
    """A picture file that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Checked:
    """What `check` found out: the bytes' digest, decisions, a problem, its look, its ending."""

    digest: str
    notes: tuple[str, ...] = ()
    problem: str = ""
    look: Look | None = field(default=None, repr=False)
    ending: str = ""


_reduced: dict[tuple[Path, int, int], bytes] = {}


def decode(path: Path, whole: bool = False) -> Image.Image:
    """Read a picture as upright RGB, transparency on white; in at most `MOST` pixels, or whole.

    PictureError names file and problem.
    """
    path = Path(path)
    try:
        facts = path.stat()
        key = (path.absolute(), facts.st_mtime_ns, facts.st_size)
        if not whole and (kept := _reduced.get(key)):
            return Image.open(io.BytesIO(kept)).convert("RGB")
        picture = _decode(path.read_bytes())[0]
    except (PictureError, OSError) as error:
        raise PictureError(f"{path}: {error}") from error
    small = picture if whole else reduced(picture, MOST)
    if small is not picture:
        while sum(map(len, list(_reduced.values()))) > KEPT:  # a copy: threads read here too
            _reduced.pop(next(iter(list(_reduced))), None)
        _reduced[key] = png(small)
    return small


def reduced(picture: Image.Image, pixels: int) -> Image.Image:
    """The picture in at most so many pixels; itself where it has no more."""
    share = math.sqrt(pixels / (picture.width * picture.height))
    if share >= 1:
        return picture
    short = math.ceil(round(min(picture.size) * share, 6))  # no narrower than it was
    long = min(pixels // short, round(max(picture.size) * share))
    size = (long, short) if picture.width >= picture.height else (short, long)
    return picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def png(picture: Image.Image) -> bytes:
    """The picture as a file without loss, quickly."""
    return small(picture, max(picture.size), compress_level=1)


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
        picture, notes, ending = _decode(data)
        return Checked(digest, notes, look=Look.of(picture), ending=ending)
    except PictureError as error:
        return Checked(digest, problem=str(error))


def starts_like_a_picture(path: Path) -> bool:
    """Whether a file begins as pictures do, whatever its name; False if it cannot be read."""
    if path.suffix.lower() in _RAW:
        return False
    try:
        with path.open("rb") as stream:
            return bool(_STARTS.match(stream.read(16)))
    except OSError:
        return False


def to_rgb(image: Image.Image, unsigned: bool = False) -> Image.Image:
    """A picture of any Pillow mode as RGB: alpha on white, numbers scaled to 8 bits.

    unsigned: Pillow's whole numbers are int32, and these were uint32. PictureError for numbers
    that make no picture.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode[0] in "IF":  # convert() would clip everything above 255 to white
        values = np.asarray(image)
        image = Image.fromarray(_levels(values.view(np.uint32) if unsigned else values))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _levels(values: np.ndarray) -> np.ndarray:
    """Numbers as 256 levels of grey, by the range that they use.

    That is 0 to 1, or 0 to what 8, 9, ... 16 bits hold, if they fill a quarter of it, as 12-bit
    grey does with 12 of its 16; else it is from the least to the greatest.
    """
    if not np.isfinite(values).all():
        raise PictureError(f"holds numbers that are not finite; {_SAVE}")
    grey = values.astype(np.float64)
    low, high = grey.min(), grey.max()
    floats = values.dtype.kind == "f"
    whole = 1 if floats and high <= 1 else 2 ** max(8, int(np.ceil(high)).bit_length()) - 1
    if low >= 0 and whole / 4 <= high - low * floats and high <= 65535:
        low, high = 0, whole
    elif np.ptp(np.quantile(grey, (0.02, 0.98))) * 255 <= high - low:
        what = f"holds numbers from {low:g} to {high:g}, nearly all of them the same"
        raise PictureError(f"{what}: black or white in 8 bits; {_SAVE}")
    return np.rint((grey - low) / ((high - low) / 255)).astype(np.uint8)


def small(image: Image.Image, side: int, form: str = "PNG", **settings: int) -> bytes:
    """The picture as a file, its longer side at most `side` pixels; settings: of the form."""
    image = image.copy()
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, form, **settings)
    return stream.getvalue()


def _decode(data: bytes) -> tuple[Image.Image, tuple[str, ...], str]:
    """The upright RGB picture in `data`, the decisions taken on the way, the ending that fits it.

    PictureError where there is none. Metadata may be broken, pixels may not.
    """
    if not data:
        raise PictureError("is empty (0 bytes); copy it again or remove it")
    try:
        return _upright(data)
    except PictureError as error:
        try:
            picture, notes, ending = _upright(_without_metadata(data))
        except PictureError:
            raise error from None
        return picture, (*notes, _BARE), ending


def _upright(data: bytes) -> tuple[Image.Image, tuple[str, ...], str]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header only
            _require_size(*image.size)
            deep = any(";16" in str(tile.args) for tile in image.tile)
            notes = _notes(image)
            # SampleFormat, which is 1 (unsigned) where it is not there
            unsigned = image.mode == "I" and getattr(image, "tag_v2", {}).get(339, (1,)) == (1,)
            image.load()
            # turning it, Pillow writes the metadata anew, which fails where they are odd
            image.info = {k: v for k, v in image.info.items() if k == "transparency"}
            upright = ImageOps.exif_transpose(image)
            # of colours, Pillow keeps the upper 8 of 16 bits
            if deep and "RGB" in image.mode and max(image.convert("L").getextrema()) < 64:
                what = "has 16 bits a colour and uses 14 or fewer, which is black in 8 bits"
                raise PictureError(f"{what}; {_SAVE}")
            ending = _ENDING_OF.get(image.format, f".{image.format.lower()}")
            return to_rgb(upright, unsigned), tuple(notes), ending
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        raise PictureError(_unread(data)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(_too_large(str(error))) from None  # Pillow stops at twice MAX_PIXELS
    except Exception as error:  # decoders raise whatever they like on broken bytes
        raise PictureError(f"is broken ({error}); copy it again, {_SAVE}") from error


def _without_metadata(data: bytes) -> bytes:
    """The file without what stands beside its pixels and may be broken.

    Of PNG, its chunks in small letters, but for transparency and EXIF that is whole; of other
    forms, EXIF under the name by which decoders find it.
    """
    if not data.startswith(_PNG):
        return data.replace(b"Exif", b"none").replace(b"EXIF", b"none")
    kept, at = [_PNG], len(_PNG)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4])
        chunk, kind = data[at : at + 12 + size], data[at + 4 : at + 8]
        whole = chunk[-4:] == zlib.crc32(chunk[4:-4]).to_bytes(4)
        if kind[:1].isupper() or kind == b"tRNS" or (kind == b"eXIf" and whole):
            kept.append(chunk)
        at += len(chunk)
    return b"".join([*kept, data[at:]])


def _unread(data: bytes) -> str:
    """Why no decoder takes these bytes, as far as their beginning tells, with the mend."""
    if _HEIF.match(data) and pillow_heif is None:
        return NO_HEIF
    names = (name for start, name in _NOT_READ.items() if re.match(start, data, re.DOTALL))
    name = next(names, "")
    if _STARTS.match(data):
        name = "broken, or of a form that this Pillow does not read"
    if name:
        return f"is {name}" + "; save it as JPEG or PNG" * (";" not in name)
    return "is no picture, whatever its name says; replace or remove it"


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
    mode = image.mode.partition(";")[0]
    notes = [_MODE_NOTES[mode]] if mode in _MODE_NOTES else []
    if image.has_transparency_data and mode != "I":
        notes.append("transparency laid on white")
    if image.format == "PNG":
        image.load()  # which getexif() does too, for EXIF may stand behind the pixels
    with suppress(Exception):  # of metadata alone: no pixels are read here
        image.getexif()  # Pillow tries once, and then has none
    exif = image.getexif()
    if not exif and any(map(image.info.get, ("exif", "Raw profile type exif"))):
        notes.append(_BARE)
    if exif.get(_ORIENTATION) in range(2, 9):
        notes.append("turned upright by EXIF")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        notes.append("first of several frames kept")
    return notes
