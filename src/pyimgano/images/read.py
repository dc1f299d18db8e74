"""One image file to pixels: whole and right, or an `ImageReadError` that says why not.

Two decoders share the work. Pillow reads every header, and decodes whatever is not plain.
OpenCV decodes 8-bit grey and colour PNG and JPEG, in about two thirds of Pillow's time;
because some of its versions return a half-grey image for a truncated file, the file's
structure is checked before OpenCV sees a byte.

How each kind becomes 8-bit RGB:

========================  ==================================================================
8-bit grey, RGB, 1-bit    as they are; grey is repeated in the three channels
RGBA, grey with alpha     the alpha channel is dropped
palette                   looked up
CMYK, YCbCr, LAB          Pillow's conversion, without colour profiles
16-bit grey               ``value / 257``: 0 stays 0, 65535 becomes 255
32-bit or float           refused: the range of the values is not known
several pages             the first page
EXIF orientation          applied
========================  ==================================================================
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageReadError

#: Suffixes (lower case) of the files that dataset layouts take for images.
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})

#: An image whose header declares more pixels than this is refused before it is decoded:
#: a file of a few bytes can otherwise ask for any amount of memory.
MAX_PIXELS = 400_000_000

# Our own limit stands in for Pillow's, which warns at 89 million pixels.
Image.MAX_IMAGE_PIXELS = None

# The stream decodes several images at once; OpenCV's own threads would only compete.
cv2.setNumThreads(1)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_END = b"\xff\xd9"
_EXIF_ORIENTATION = 0x0112


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
        The file is missing, empty, truncated, damaged, no image, too large, or of a kind
        without a rule in the table above.
    """
    data = _read_bytes(path)
    header = _open_header(path, data)
    if header.format in ("PNG", "JPEG") and header.mode in ("L", "RGB"):
        _check_structure(path, data, header.format)
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if decoded is not None:
            return np.asarray(decoded, dtype=np.uint8)  # (H, W, 3)
        # Pillow has the last word: it reads the file or says what is wrong with it.
    return _decode_with_pillow(path, header)


def read_mask(path: str | Path) -> npt.NDArray[np.uint8]:
    """Decode one ground-truth mask, as the values that stand in the file.

    Returns
    -------
    numpy.ndarray
        (H, W) uint8. Colour masks become grey by their largest channel; a palette mask
        gives its indices; EXIF orientation is not applied, since masks carry none.

    Raises
    ------
    ImageReadError
        As `read_image`.
    """
    header = _open_header(path, _read_bytes(path))
    try:
        header.load()
        if header.mode == "1":
            values = np.asarray(header.convert("L"))
        elif header.mode.startswith("I"):
            values = np.asarray(header)
            values = np.where(values > 255, 255, values)  # an index, or plainly "defect"
        elif header.mode in ("L", "P"):
            values = np.asarray(header)
        else:
            values = np.asarray(header.convert("RGB")).max(axis=2)
    except Exception as error:
        raise ImageReadError(str(path), _reason(error)) from error
    return np.ascontiguousarray(values, dtype=np.uint8)


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels as `read_image` gives them, read from the header alone.

    Raises
    ------
    ImageReadError
        The file cannot be opened or is no image.
    """
    try:
        with Image.open(path) as header:
            width, height = header.size
            turned = header.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise ImageReadError(str(path), _reason(error)) from error
    return (width, height) if turned else (height, width)


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


def _read_bytes(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageReadError(str(path), _reason(error)) from error
    if not data:
        raise ImageReadError(str(path), "the file is empty")
    return data


def _open_header(path: str | Path, data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that we do not use
            header = Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's plugins raise many kinds on damaged headers
        raise ImageReadError(str(path), _reason(error)) from error
    width, height = header.size
    if width * height > MAX_PIXELS:
        raise ImageReadError(
            str(path),
            f"declares {width} x {height} pixels, more than the limit of {MAX_PIXELS}",
        )
    return header


def _decode_with_pillow(path: str | Path, image: Image.Image) -> npt.NDArray[np.uint8]:
    try:
        image.load()
        oriented = ImageOps.exif_transpose(image)
        if oriented.mode.startswith("I;16"):
            wide = np.asarray(oriented).astype(np.float32)  # (H, W), 0 to 65535
            grey = np.rint(wide / 257.0).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if oriented.mode in ("I", "F"):
            raise ImageReadError(
                str(path),
                f"has {'32-bit integer' if oriented.mode == 'I' else 'float'} pixels of "
                "unknown range; convert it to 8 or 16 bits",
            )
        return np.asarray(oriented.convert("RGB"), dtype=np.uint8)
    except ImageReadError:
        raise
    except Exception as error:  # damaged data: OSError, SyntaxError, struct.error, zlib.error
        raise ImageReadError(str(path), _reason(error)) from error


def _check_structure(path: str | Path, data: bytes, kind: str) -> None:
    """Refuse a PNG or JPEG that ends early or, for PNG, whose checksums do not hold."""
    if kind == "PNG":
        _check_png(path, data)
    elif _JPEG_END not in data[-4096:]:  # some cameras append a few bytes of their own
        raise ImageReadError(str(path), "the JPEG is truncated (no end marker)")


def _check_png(path: str | Path, data: bytes) -> None:
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        (stored,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(memoryview(data)[position + 4 : end - 4]) != stored:
            name = kind.decode("ascii", "replace")
            raise ImageReadError(str(path), f"the PNG is damaged (checksum of chunk {name})")
        if kind == b"IEND":
            return
        position = end
    raise ImageReadError(str(path), "the PNG is truncated (no end chunk)")


def _reason(error: Exception) -> str:
    """A decoder's complaint, short and on one line, without the path we put before it."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text or type(error).__name__
