"""One image file to pixels: whole and right, or an `ImageReadError` that says why not.

Pillow reads every header, and decodes whatever is not plain. Plain 8-bit grey and colour
files, the most, go to quicker decoders: PNG to ISA-L and OpenCV, in less than half of Pillow's
time, after the checksums of all its parts were compared; JPEG to libjpeg-turbo in its strict mode,
in which damage is an error. JPEG has no checksums, so damage that happens to spell valid code
cannot be told from a picture.

How each kind becomes 8-bit RGB:

========================  ==================================================================
8-bit grey, RGB           as they are; grey is repeated in the three channels
1-bit                     0 and 255
RGBA, grey with alpha     the alpha channel is dropped
palette                   looked up
CMYK, YCbCr, LAB          Pillow's conversion, without colour profiles
16-bit grey               ``value / 257``: 0 stays 0, 65535 becomes 255; in a TIFF with b bits a
                          sample ``255 value / (2^b - 1)``
grey where 0 is white     inverted (TIFF)
16-bit colour             the upper eight bits
32-bit or float           ``255 (value - low) / (high - low)``, cut at 0 and 255, where the TIFF
                          tags SMinSampleValue and SMaxSampleValue state the range from low to
                          high; refused without them, since the range is then not known
several pages             the first page, with a remark in the report
EXIF orientation          applied; in a PNG that of its eXIf chunk alone
========================  ==================================================================
"""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageReadError
from ..foreign import read_regular
from ..memory import is_out_of_memory
from .limit import opened
from .png import check_png, quick_png

#: Suffixes (lower case) of the files that dataset layouts take for images.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

#: No image file is longer: as many pixels as may be declared, of six bytes, are less than half.
MAX_FILE_BYTES = 2**32

# How many pixels a file may declare is `max_pixels` in limit.py. Pillow warns of fewer, which says
# nothing to our users: cameras with 100 million pixels exist.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Nor does what it thinks of metadata that we do not use.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

EXIF_ORIENTATION = 0x0112
_SAMPLE_RANGE = (340, 341)  # the TIFF tags SMinSampleValue and SMaxSampleValue
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # further TIFF tags
# Formats whose further pages are pictures of their own; those of MPO are a JPEG's thumbnails.
_PAGED = frozenset({"TIFF", "WEBP", "GIF", "PNG"})
# OpenCV complains on stderr of a PNG with a longer side, and does not read it.
_LONGEST_SIDE = 1_000_000
# Orientations are ours to find, and Pillow's to apply.
_PLAINLY = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """Decode one image.

    Parameters
    ----------
    path
        An image file; what it is is told by its content, not by its suffix.

    Returns
    -------
    numpy.ndarray
        (H, W, 3) uint8, RGB, 0 to 255.

    Raises
    ------
    ImageReadError
        The file is missing, empty, truncated, damaged, no image, of more than `max_pixels`, or
        of a kind without a rule in the table above; or a decoder failed, for whatever reason.
    """
    return read_image_and_remark(path)[0]


def read_image_and_remark(
    path: str | Path, data: bytes | None = None
) -> tuple[npt.NDArray[np.uint8], str | None]:
    """As `read_image`, and what was left out of the file, in words; None if nothing was.

    `data` is the file's content if it is at hand.
    """
    data = read_bytes(path) if data is None else data
    header = _open_header(path, data)
    try:
        pixels = _decode(path, data, header)
    except ImageReadError:
        raise
    except Exception as error:  # a decoder's own trouble, or memory: it costs this image
        raise ImageReadError(str(path), reason_of(error)) from error
    if header.format not in _PAGED:
        return pixels, None
    # counted on a reader of its own: one that has gone to a page that is damaged stays there
    return pixels, pages_remark(page_count(_open_header(path, data)))


def pages_remark(count: int) -> str | None:
    """What is left out of a file with `count` pages, in words; None if nothing is."""
    return f"has {count} pages, of which the first is used" if count > 1 else None


def page_count(header: Image.Image) -> int:
    """Pictures in the file that are pages or frames; 1 where that cannot be told.

    The reader may be at another page afterwards.
    """
    if header.format not in _PAGED:
        return 1
    try:
        return int(getattr(header, "n_frames", 1))
    except Exception:  # a damaged chain of pages: decoding the first has the last word
        return 1


def _decode(path: str | Path, data: bytes, header: Image.Image) -> npt.NDArray[np.uint8]:
    png = turn = None
    if header.format == "PNG":
        # whatever its kind: Pillow passes over checksums of pixels
        png = check_png(path, data)
        turn = orientation_in(png.exif)
    if header.mode in ("L", "RGB"):
        if png is not None and turn == 1 and max(header.size) <= _LONGEST_SIDE:
            quick = quick_png(data, png)
            decoded = None
            if quick is not None:
                decoded = cv2.imdecode(np.frombuffer(quick, np.uint8), _PLAINLY)
            if decoded is not None and decoded.shape[:2] == header.size[::-1]:
                return np.asarray(decoded, dtype=np.uint8)  # (H, W, 3)
            # Pillow has the last word: it reads the file or says what is wrong with it
        elif header.format == "JPEG":
            image = _decode_jpeg(path, data, header.size)
            if orientation(header) == 1:
                return image
    return _decode_with_pillow(path, header, turn)


def read_mask(path: str | Path) -> npt.NDArray[np.uint8]:
    """Decode one ground-truth mask, as the values that stand in the file.

    Returns
    -------
    numpy.ndarray
        (H, W) uint8. Colour masks become grey by their largest channel, after what is
        transparent became black. A palette of greys is looked up; one of colours only tells
        kinds of defects apart, so the indices are taken. Values above 255 become 255. EXIF
        orientation is not applied, since masks carry none.

    Raises
    ------
    ImageReadError
        As `read_image`; also for negative or float values.
    """
    data = read_bytes(path)
    header = _open_header(path, data)
    if header.format == "PNG":
        check_png(path, data)
    try:
        header.load()
        values = _mask_values(header)
    except Exception as error:
        raise ImageReadError(str(path), reason_of(error)) from error
    return np.ascontiguousarray(values, dtype=np.uint8)


def _mask_values(mask: Image.Image) -> npt.NDArray[np.uint8]:
    """(H, W) uint8."""
    if mask.mode == "F":
        raise ValueError("a mask with float pixels, whose meaning is not known")
    if mask.mode.startswith("I"):
        wide = np.asarray(mask)
        if (wide < 0).any():
            raise ValueError("a mask with negative values")
        # an index, or plainly "defect"
        return np.asarray(np.where(wide > 255, 255, wide), dtype=np.uint8)
    if mask.mode == "L":
        return np.asarray(mask, dtype=np.uint8)
    if mask.mode == "P" and "transparency" not in mask.info:
        colours = np.asarray(mask.convert("RGB"))  # (H, W, 3)
        if (colours.min(axis=2) != colours.max(axis=2)).any():
            return np.asarray(mask, dtype=np.uint8)
        return np.asarray(colours[..., 0], dtype=np.uint8)
    rgba = np.asarray(mask.convert("RGBA"), dtype=np.uint16)  # (H, W, 4)
    return np.asarray(rgba[..., :3].max(axis=2) * rgba[..., 3] // 255, dtype=np.uint8)


def resize_image(
    image: npt.NDArray[np.uint8], size: tuple[int, int] | None
) -> npt.NDArray[np.uint8]:
    """Resize (H, W, 3) uint8 to `size` (height, width); None leaves it as it is.

    Shrinking averages over the pixels' area, so that a thin scratch fades but is not
    skipped; enlarging is bilinear. An image that shrinks along one side and grows along the
    other is done one side at a time.
    """
    if size is None or image.shape[:2] == size:
        return image
    height, width = size
    old_height, old_width = image.shape[:2]
    shrunk = (min(height, old_height), min(width, old_width))
    if shrunk != (old_height, old_width):
        image = np.asarray(
            cv2.resize(image, (shrunk[1], shrunk[0]), interpolation=cv2.INTER_AREA), np.uint8
        )
    if shrunk != size:
        image = np.asarray(
            cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8
        )
    return image


def read_bytes(path: str | Path) -> bytes:
    """The content of a file that is not empty; raises `ImageReadError`."""
    try:
        data = read_regular(path, MAX_FILE_BYTES)
    except (OSError, ValueError, MemoryError) as error:  # ValueError: a name with a null byte
        raise ImageReadError(str(path), reason_of(error)) from error
    if not data:
        raise ImageReadError(str(path), "the file is empty")
    return data


def _open_header(path: str | Path, data: bytes) -> Image.Image:
    try:
        return opened(path, data)
    except ImageReadError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on damaged headers
        raise ImageReadError(str(path), reason_of(error)) from error


def orientation(header: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 also where the tag is damaged."""
    try:
        found = header.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # metadata of a picture that is otherwise whole
        return 1
    return found if isinstance(found, int) else 1


def _decode_jpeg(path: str | Path, data: bytes, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """`size` (width, height) is what Pillow found, and held to its limit."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=True)
        if (width, height) != size:
            raise ValueError(f"states {size[0]} x {size[1]} pixels and {width} x {height}")
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=True), dtype=np.uint8)
    except ValueError as error:
        raise ImageReadError(str(path), reason_of(error)) from error


def _decode_with_pillow(
    path: str | Path, image: Image.Image, turn: int | None
) -> npt.NDArray[np.uint8]:
    """`turn` is the orientation; None takes it from the image's metadata."""
    try:
        image.load()
        if turn is None:
            oriented = ImageOps.exif_transpose(image)
        else:
            oriented = image.transpose(_TURNS[turn]) if turn in _TURNS else image
        # some versions of Pillow open 16-bit PNG as 32-bit integers
        if oriented.mode.startswith("I;16") or (oriented.mode == "I" and image.format == "PNG"):
            tags = getattr(image, "tag_v2", {})
            top = 2.0 ** min(16, max(9, int(np.ravel(tags.get(_BITS, 16))[0]))) - 1.0
            wide = np.minimum(np.asarray(oriented).astype(np.float64), top)  # (H, W), 0 to top
            if tags.get(_PHOTOMETRIC) == 0:
                wide = top - wide
            grey = np.rint(wide * 255.0 / top).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if oriented.mode in ("I", "F"):
            return _from_stated_range(path, image, oriented)
        return np.asarray(oriented.convert("RGB"), dtype=np.uint8)
    except ImageReadError:
        raise
    except Exception as error:  # damaged data: OSError, SyntaxError, struct.error, zlib.error
        raise ImageReadError(str(path), reason_of(error)) from error


def _from_stated_range(
    path: str | Path, image: Image.Image, oriented: Image.Image
) -> npt.NDArray[np.uint8]:
    """32-bit integers or floats to (H, W, 3), by the range that the file's tags state."""
    tags = getattr(image, "tag_v2", {})
    kind = "32-bit integer" if oriented.mode == "I" else "float"
    try:
        low, high = (float(np.ravel(tags[tag])[0]) for tag in _SAMPLE_RANGE)
    except KeyError:
        raise ImageReadError(
            str(path),
            f"has {kind} pixels of unknown range; state it in the TIFF tags SMinSampleValue and "
            "SMaxSampleValue, or convert the image to 8 or 16 bits",
        ) from None
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ImageReadError(str(path), f"states the range {low:g} to {high:g} for its pixels")
    pixels = np.asarray(oriented)  # (H, W)
    unsigned = [int(np.ravel(tags.get(tag, 1))[0]) for tag in (_BITS, _SAMPLE_FORMAT)] == [32, 1]
    if oriented.mode == "I" and unsigned:
        pixels = pixels.view(np.uint32)  # for which Pillow has no kind of its own
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        raise ImageReadError(str(path), "has float pixels that are not finite")
    grey = np.rint(255.0 * np.clip((values - low) / (high - low), 0.0, 1.0)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def orientation_in(metadata: bytes | None) -> int:
    """The orientation in the EXIF block of a PNG; 1 without one, and where it is damaged."""
    if metadata is None:
        return 1
    try:
        block = Image.Exif()
        block.load(b"Exif\x00\x00" + metadata)
        found = block.get(EXIF_ORIENTATION, 1)
    except Exception:  # metadata of a picture that is otherwise whole
        return 1
    return found if isinstance(found, int) else 1


def reason_of(error: Exception) -> str:
    """A decoder's complaint, short and on one line, without the path we put before it."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if is_out_of_memory(error):
        return "not enough memory for it"
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text or type(error).__name__
