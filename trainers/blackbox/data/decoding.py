"""From a file to an RGB picture: the one way for every read.

An ordinary 8-bit picture comes out as `Image.open(path).convert("RGB")` has it. Beyond that, 16-bit
grey is scaled, transparency is composited on white, and EXIF's orientation is applied.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import BlackBoxError, first_line

ORIENTATION = 0x0112  # EXIF's tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DEEP_FORMATS = ("JPEG2000", "PNG", "PPM", "TIFF")
# TIFF's tags about levels, which Pillow does not apply to grey of more than 8 bits. MaxSampleValue
# is not among them: by TIFF 6.0 it must not change what is seen.
BITS, PHOTOMETRIC, SAMPLE_FORMAT, LOWEST, HIGHEST = 258, 262, 339, 340, 341
LONGEST = 1000  # times the shorter side: resized to a shorter side of 224, 50 million pixels
# what is done to pictures that CoOp's loader reads otherwise, by the words of the note
DEEP = "of more than 8 bits (scaled to 8, where CoOp clips them)"
DIM = (
    "nearly black for the range of their levels (12 bits kept in 16, perhaps: rescale them, or "
    "name the top in the TIFF tag SMaxSampleValue)"
)
CLEAR = "with transparency (composited on white, where CoOp drops it)"
TURNED = "with an EXIF orientation (applied, where CoOp ignores it)"
ANEW = "Replace the file, or copy the data set anew."


def shown(path: str) -> str:
    """A path on one line, and as UTF-8 whatever the bytes of its name."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path)


@contextmanager
def naming(path: str, problem: str = "cannot be decoded", cure: str = ANEW) -> Iterator[None]:
    """Turn whatever is raised about an image into a BlackBoxError that names it.

    On damaged data Pillow raises errors of many kinds, those of `struct` and `zlib` among them.
    """
    try:
        yield
    except BlackBoxError:
        raise
    except Exception as e:
        reason = first_line(e)
        if isinstance(e, UnidentifiedImageError):
            reason = "it is in no format that Pillow knows"
        elif isinstance(e, OSError) and e.strerror:
            reason = e.strerror
        raise BlackBoxError(f"The image {shown(path)} {problem} ({shown(reason)}). {cure}") from e


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warning about pictures of many pixels, which are an error here.

    Filters of warnings belong to the process: this is for its main thread.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def regular(path: str) -> os.stat_result:
    """What the system says about a file, links followed.

    Raises:
        OSError: there is none, or it is no regular file; reading a pipe would wait forever.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no regular file")
    return found


def opened(source: str | BinaryIO) -> Image.Image:
    """A picture of which the header alone is read.

    Raises:
        ValueError: it has more pixels than Pillow deems safe, or would have when its shorter side
            is enlarged to the model's input.
    """
    image = Image.open(source)
    most, (width, height) = Image.MAX_IMAGE_PIXELS, image.size
    problem = ""
    if most is not None and width * height > most:
        problem = f"has {width * height:,} pixels, more than the {most:,} that Pillow deems safe"
    elif max(width, height) > LONGEST * min(width, height):
        problem = (
            f"is {width:,} x {height:,} pixels, and the longer side may be at most {LONGEST:,} "
            f"times the shorter; crop it"
        )
    if problem:
        image.close()
        raise ValueError(f"it {problem}")
    return image


def decode(path: str) -> Image.Image:
    """The RGB picture of a file, or whatever Pillow raises."""
    regular(path)
    with opened(path) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened picture, decoded by the rules above."""
    image.load()
    turn = TURNS.get(orientation(image))
    if is_deep(image):
        image = shallow(image)
    elif isinstance(image, TiffImageFile) and 2 in np.ravel(image.tag_v2.get(SAMPLE_FORMAT, 1)):
        raise ValueError("it has signed levels of 8 bits, which are not read; save it unsigned")
    elif image.has_transparency_data:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        image = Image.alpha_composite(white, picture).convert("RGB")
    else:
        image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def rules(image: Image.Image) -> list[str]:
    """Which rules touch a picture of which the header is read."""
    found = [DEEP] if is_deep(image) else [CLEAR] if image.has_transparency_data else []
    # Pillow itself turns a TIFF
    if image.format != "TIFF" and orientation(image, Image.Image.getexif) in TURNS:
        found.append(TURNED)
    return found


def note_rules(counts: Counter[str], total: int, what: str) -> None:
    """Tell which pictures CoOp reads otherwise."""
    words = [f"{counts[rule]:,} {rule}" for rule in (DEEP, DIM, CLEAR, TURNED) if counts[rule]]
    if words:
        print(
            f"Note: {what}: of {total:,} images {', '.join(words)}. CoOp's results can differ there"
        )


def orientation(image: Image.Image, getexif: Callable = lambda image: image.getexif()) -> int:
    """EXIF's orientation, 1 where there is none. A PNG's own `getexif` decodes the picture."""
    try:
        return getexif(image).get(ORIENTATION, 1)
    except Exception:  # what cannot be read says nothing: the picture beside it may be sound
        return 1


def is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def shallow(image: Image.Image) -> Image.Image:
    """A grey picture of more than 8 bits -> RGB of 8: 0 is black, the top of its range white.

    Integers of 32 bits and floats say nothing of their range: it is the smallest of 1 (floats), 255
    and 65,535 that holds them. A TIFF's tags can name another range, or make white 0.

    Raises:
        ValueError: no range holds the levels; deep levels of the format are not known here.
    """
    if image.format not in DEEP_FORMATS:
        raise ValueError(
            f"it has more than 8 bits a level, which are not read from {image.format}; save it as "
            f"PNG or TIFF"
        )
    levels = np.asarray(image)
    tags: Any = image.tag_v2 if isinstance(image, TiffImageFile) else {PHOTOMETRIC: 1}
    low, high = levels.min(), levels.max()
    bits, signed = tags.get(BITS, (16,))[0], tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    top = 2 ** (min(bits, 16) - (signed and bits <= 16)) - 1
    tops: tuple[int, ...] = (1, 255, top) if image.mode == "F" else (top,)
    if image.mode == "I" and image.format == "TIFF":
        tops = (255, top)
    lowest = float(np.ravel(tags.get(LOWEST, 0))[0])
    highest = [float(np.ravel(tags.get(HIGHEST, top))[0]) for top in tops]
    white = next((top for top in highest if lowest <= low and high <= top and lowest < top), None)
    if white is None:
        raise ValueError(
            f"its levels go from {low:g} to {high:g}, and grey levels go from {lowest:g} to "
            f"{' or '.join(f'{top:g}' for top in dict.fromkeys(highest))}; save it with 8 or 16 "
            f"bits"
        )
    # without the tag, Pillow takes white for 0 in 8 bits
    black, white = (lowest, white) if tags.get(PHOTOMETRIC, 0) else (white, lowest)
    grey = np.rint((levels.astype(np.float32) - black) * (255 / (white - black))).astype(np.uint8)
    clear = image.info.get("transparency")
    if clear is not None:
        grey[levels == clear] = 255
    return Image.fromarray(grey).convert("RGB")


class Look(NamedTuple):
    """What one look at a file found."""

    picture: Image.Image | None  # RGB; None where the header alone is read
    rules: list[str]  # of `decoding`, that touch it
    pixels: int
    digest: str  # SHA-256 of the file, if so asked


def look(path: str, decoding: bool, digest: bool = False) -> Look:
    """Open a picture; decode it, and name its file's content, if so asked.

    Raises:
        BlackBoxError: it cannot be opened or decoded; the text names it.
    """
    with naming(path):
        regular(path)
        data = Path(path).read_bytes() if digest else b""
        with opened(io.BytesIO(data) if digest else path) as image:
            picture = to_rgb(image) if decoding else None
            found = rules(image)
            if picture is not None and DEEP in found and 0 < int(np.asarray(picture).max()) < 32:
                found.append(DIM)  # it ends below an eighth of the range
            name = hashlib.sha256(data).hexdigest() if digest else ""
            return Look(picture, found, image.width * image.height, name)
