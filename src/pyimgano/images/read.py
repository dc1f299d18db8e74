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
16-bit grey               ``255 value / top``, rounded: 0 stays 0 and top becomes 255. top is
                          2^bit_depth - 1 where a bit depth is given; else what the file declares
                          (PNG's sBIT, TIFF's SMaxSampleValue or MaxSampleValue, PGM's maxval);
                          else all that b bits a sample hold, 2^b - 1. A value above top is an
                          error
16-bit colour             the same, rounded down; a PNG over all 16 bits: the upper eight bits
grey where 0 is white     inverted (TIFF)
signed, 32-bit or float   ``255 (value - low) / (high - low)``, cut at 0 and 255, where the TIFF
                          tags SMinSampleValue and SMaxSampleValue state the range from low to
                          high; refused without them, since the range is then not known (but
                          signed 16-bit with a bit depth is read as unsigned)
several pages             the first page, with a remark in the report
EXIF orientation          applied; in a PNG that of its eXIf chunk alone
========================  ==================================================================
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import ImageReadError
from ..memory import is_out_of_memory
from ..untrusted_files import read_regular
from .jpeg import decode_jpeg
from .limit import open_header, opened, require_pixels
from .netpbm import find_wide_netpbm, read_wide_netpbm
from .png import PngParts, check_png, quick_png
from .samples import SampleRange, check_bit_depth, in_three_channels, scale_wide, top_of
from .tiff import (
    TiffFacts,
    decode_tiff,
    is_decoded_here,
    is_tiff,
    palette_of,
    read_tiff_facts,
    require_known_tiff,
)

#: Suffixes (lower case) of the files that dataset layouts take for images.
IMAGE_SUFFIXES = frozenset(
    {
        *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp"),
        *(".pgm", ".ppm", ".pnm"),
    }
)

#: Suffixes (lower case) of formats that hold images and are not read. Such a file is no stray
#: file: its owner takes it for a picture of a part.
UNREAD_IMAGE_SUFFIXES = frozenset(
    {
        *(".heic", ".heif", ".hif", ".avif", ".gif", ".jp2", ".j2k", ".jpx", ".jxl", ".tga"),
        *(".pbm", ".pam", ".pfm", ".exr", ".hdr", ".psd", ".dcm", ".dib", ".jpe", ".jif"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
    }
)

#: No image file is longer: as many pixels as may be declared, of six bytes, are less than half.
MAX_FILE_BYTES = 2**32

# How many pixels a file may declare is `max_pixels` in limit.py. Pillow warns of fewer, which says
# nothing to our users: cameras with 100 million pixels exist.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Nor does what it thinks of metadata that we do not use.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

EXIF_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _MAXIMUM = 258, 262, 281  # TIFF tags
UNKNOWN_RANGE = (
    "has 32-bit integer or float pixels of unknown range; convert the image to 8 or 16 bits"
)
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


class DecodedImage(NamedTuple):
    """An image, and how it was read.

    Attributes
    ----------
    pixels
        (H, W, 3) uint8 RGB.
    remark
        What was left out of the file or is odd about it, in words; None if nothing is.
    samples
        Over which range it was read, of an image with 16 bits a sample; None for others.
    """

    pixels: npt.NDArray[np.uint8]
    remark: str | None = None
    samples: SampleRange | None = None


def read_image(path: str | Path, *, bit_depth: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode one image.

    Parameters
    ----------
    path
        An image file; what it is is told by its content, not by its suffix.
    bit_depth
        How many bits count in an image with 16 bits a sample, 9 to 16: a camera of 12 bits
        leaves the upper four empty. None takes what the file declares, and else all 16.

    Returns
    -------
    numpy.ndarray
        (H, W, 3) uint8, RGB, 0 to 255.

    Raises
    ------
    ImageReadError
        The file is missing, empty, truncated, damaged, no image, of more than `max_pixels`,
        of a kind without a rule in the table above, or holds a value that `bit_depth` bits do
        not; or a decoder failed, for whatever reason.
    UsageError
        `bit_depth` is something else.
    """
    return decode_image(path, bit_depth=check_bit_depth(bit_depth)).pixels


def read_image_and_remark(
    path: str | Path, data: bytes | None = None, *, bit_depth: int | None = None
) -> tuple[npt.NDArray[np.uint8], str | None]:
    """Decode one image as `read_image` does, and say in words what was left out of the file.

    `data` is the file's content if it is at hand; the remark is None if nothing was left out.
    """
    decoded = decode_image(path, data, bit_depth=bit_depth)
    return decoded.pixels, decoded.remark


def decode_image(
    path: str | Path, data: bytes | None = None, *, bit_depth: int | None = None
) -> DecodedImage:
    """Decode one image as `read_image` does, and tell how it was read.

    `data` is the file's content if it is at hand.
    """
    data = read_bytes(path) if data is None else data
    try:
        if is_tiff(data):
            return _decode_tiff_file(path, data, bit_depth)
        header = _open_header(path, data)
        decoded = _decode(path, data, header, bit_depth)
    except ImageReadError:
        raise
    except Exception as error:  # a decoder's own trouble, or memory: it costs this image
        raise ImageReadError(str(path), reason_of(error)) from error
    if header.format not in _PAGED:
        return decoded
    # counted on a reader of its own: one that has gone to a page that is damaged stays there
    pages = pages_remark(page_count(_open_header(path, data)))
    return decoded._replace(remark=join_remarks(decoded.remark, pages))


def join_remarks(*remarks: str | None) -> str | None:
    """Return those remarks that say something, as one text; None if none does."""
    return "; ".join(one for one in remarks if one) or None


def pages_remark(count: int) -> str | None:
    """Return what is left out of a file with `count` pages, in words; None if nothing is."""
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


def _decode(
    path: str | Path, data: bytes, header: Image.Image, bit_depth: int | None
) -> DecodedImage:
    """Any image but a TIFF."""
    png = turn = None
    if header.format == "PNG":
        # whatever its kind: Pillow passes over checksums of pixels
        png = check_png(path, data)
        turn = orientation_in(png.exif)
        if png.bits == 16:
            deep = _decode_wide_png(path, data, png, header, bit_depth)
            return deep._replace(pixels=turned(deep.pixels, turn))
    if header.format == "PPM":
        wide = find_wide_netpbm(data)
        if wide is not None:
            samples = read_wide_netpbm(path, data, wide)
            declared = None if wide.maxval == top_of(16) else float(wide.maxval)
            narrow, found, remark = scale_wide(
                path, samples, bit_depth=bit_depth, declared=declared, container=wide.maxval
            )
            return DecodedImage(in_three_channels(narrow), remark, found)
        text = _NETPBM_MAXVAL.match(data[:4096])
        if text is not None and int(text[1]) > 255:
            return _decode_text_netpbm(path, header, int(text[1]), bit_depth)
    if header.mode in ("L", "RGB"):
        if png is not None and turn == 1 and max(header.size) <= _LONGEST_SIDE:
            quick = quick_png(data, png)
            decoded = None
            if quick is not None:
                decoded = cv2.imdecode(np.frombuffer(quick, np.uint8), _PLAINLY)
            if decoded is not None and decoded.shape[:2] == header.size[::-1]:
                return DecodedImage(np.asarray(decoded, dtype=np.uint8))  # (H, W, 3)
            # Pillow has the last word: it reads the file or says what is wrong with it
        elif header.format == "JPEG":
            image, remark = decode_jpeg(path, data, header.size)
            return DecodedImage(turned(image, orientation(header)), remark)
    return _decode_with_pillow(path, header, turn, bit_depth)


def turned(image: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Return (H, W, ...) as EXIF `orientation` wants it shown; another number changes nothing."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _decode_wide_png(
    path: str | Path, data: bytes, png: PngParts, header: Image.Image, bit_depth: int | None
) -> DecodedImage:
    """Return a PNG of 16 bits a sample, not turned."""
    wide = _wide_png_samples(path, data, png, header)
    declared_bits = png.colours_declared
    remark, declared, stated = None, None, False
    if declared_bits is not None and 0 < declared_bits < 16:
        stated = True
        peak = int(wide.max())
        if peak <= top_of(declared_bits):
            declared = float(top_of(declared_bits))
            # PNG wants samples scaled up to 16 bits, and most cameras write them as they are;
            # what is dark enough could be either
            step = 2 ** (16 - declared_bits)
            if bit_depth is None and peak and not (wide % step).any():
                remark = (
                    f"declares {declared_bits} bits and holds only multiples of {step} up to "
                    f"{peak}; it was read with {top_of(declared_bits)} as its largest value, and "
                    "bit_depth=16 reads it as scaled up to 16 bits"
                )
        elif bit_depth == declared_bits:
            bit_depth = None  # scaled up, as the specification wants it
    narrow, found, contradiction = scale_wide(
        path, wide, bit_depth=bit_depth, declared=declared, upper_byte=True
    )
    found = found._replace(stated=found.stated or stated)
    return DecodedImage(in_three_channels(narrow), join_remarks(remark, contradiction), found)


def _wide_png_samples(
    path: str | Path, data: bytes, png: PngParts, header: Image.Image
) -> npt.NDArray[np.uint16]:
    """Return (H, W) or (H, W, 3), RGB, without alpha."""
    grey = png.header[9] in (0, 4)
    if max(header.size) > _LONGEST_SIDE:
        raise ImageReadError(
            str(path), f"a PNG of 16 bits with a side of more than {_LONGEST_SIDE} pixels"
        )
    # OpenCV must not see what is damaged
    quick = quick_png(data, png)
    if quick is None:
        header.load()
        if header.mode.startswith("I"):  # some versions of Pillow open it as 32-bit integers
            return np.asarray(header).astype(np.uint16)
        quick = data
    samples = cv2.imdecode(np.frombuffer(quick, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16 or samples.shape[:2] != header.size[::-1]:
        raise ImageReadError(str(path), "the PNG of 16 bits could not be decoded")
    if samples.ndim == 2:
        return np.asarray(samples, np.uint16)
    if samples.shape[2] < 3 or grey:
        return np.ascontiguousarray(samples[..., 0])
    return np.ascontiguousarray(samples[..., 2::-1])


def read_tiff_header(
    path: str | Path, file: BinaryIO
) -> tuple[TiffFacts | None, Image.Image | None]:
    """Open a TIFF: what its tags say, and Pillow's reader where Pillow opens it.

    Raises
    ------
    ImageReadError
        It is damaged, of more pixels than the limit, or of a kind without a rule.
    """
    header: Image.Image | None = None
    failure: Exception | None = None
    facts: TiffFacts | None = None
    try:
        facts = read_tiff_facts(file)
    except Exception as error:  # Pillow may still read it
        failure = error
    if facts is not None:
        require_pixels(path, facts.width, facts.height)
    try:
        file.seek(0)
        header = open_header(path, file)
    except ImageReadError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on damaged headers
        if facts is None:
            raise ImageReadError(str(path), reason_of(failure or error)) from error
    if facts is not None:
        require_known_tiff(path, facts, header is not None)
    return facts, header


def _decode_tiff_file(path: str | Path, data: bytes, bit_depth: int | None) -> DecodedImage:
    facts, header = read_tiff_header(path, io.BytesIO(data))
    if facts is not None and is_decoded_here(facts, header is not None):
        narrow, found, remark = _tiff_picture(path, data, facts, bit_depth)
        pixels = turned(in_three_channels(narrow), facts.orientation)
        return DecodedImage(pixels, join_remarks(remark, pages_remark(facts.pages)), found)
    assert header is not None
    decoded = _decode_with_pillow(path, header, None, bit_depth)
    pages = pages_remark(page_count(_open_header(path, data)))
    return decoded._replace(remark=join_remarks(decoded.remark, pages))


def _tiff_picture(
    path: str | Path, data: bytes, facts: TiffFacts, bit_depth: int | None
) -> tuple[npt.NDArray[np.uint8], SampleRange | None, str | None]:
    """Return (H, W) or (H, W, 3) uint8, not turned; its range and a remark."""
    require_known_range(path, facts, bit_depth)
    values = decode_tiff(path, data, facts)
    found, remark = None, None
    if facts.photometric == 3:
        return palette_of(facts)[values], None, None
    if values.dtype == np.int16 and bit_depth is not None:
        if (values < 0).any():
            raise ImageReadError(
                str(path), f"holds negative values, and bit_depth={bit_depth} means none"
            )
        values = values.view(np.uint16)
    if values.dtype == np.uint8:
        narrow = values
    elif values.dtype == np.uint16:
        narrow, found, remark = scale_wide(path, values, bit_depth=bit_depth, **_declared(facts))
    else:
        narrow = _in_stated_range(path, values, facts.low, facts.high)
    if facts.photometric == 0:
        narrow = 255 - narrow
    if narrow.ndim == 3 and narrow.shape[2] == 4:
        size = (facts.width, facts.height)
        narrow = np.asarray(Image.frombytes("CMYK", size, narrow.tobytes()).convert("RGB"))
    return narrow, found, remark


def _declared(facts: TiffFacts) -> dict[str, Any]:
    """Return the range that the tags of unsigned 16-bit samples declare, for `scale_wide`."""
    whole = top_of(16)
    if facts.high is not None:
        low = facts.low or 0.0
        if (low, facts.high) == (0.0, whole):
            return {}
        return {"declared": facts.high, "low": low, "cut": True}
    if facts.maximum is not None and 0 < facts.maximum < whole:
        return {"declared": facts.maximum}
    return {}


def require_known_range(path: str | Path, facts: TiffFacts, bit_depth: int | None) -> None:
    """Raise `ImageReadError` where the range of the samples is not known, or makes no sense."""
    kind = f"{facts.bits}-bit {'signed' if facts.sample_format == 2 else 'unsigned'}"
    dtype = facts.dtype
    if dtype is None or facts.photometric == 3 or dtype.newbyteorder("=") == np.uint8:
        return
    wide = dtype.newbyteorder("=") == np.uint16
    if wide and (facts.high is None or bit_depth is not None):
        return
    if dtype.newbyteorder("=") == np.int16 and bit_depth is not None:
        return
    low = 0.0 if wide and facts.low is None else facts.low
    if low is None or facts.high is None:
        pixels = "float pixels" if facts.sample_format == 3 else f"{kind} integer pixels"
        remedy = ", or bit_depth," if facts.bits == 16 and facts.sample_format == 2 else ""
        raise ImageReadError(
            str(path),
            f"has {pixels} of unknown range; state it in the TIFF tags SMinSampleValue and "
            f"SMaxSampleValue{remedy or ','} or convert the image to 8 or 16 bits",
        )
    if not (np.isfinite(low) and np.isfinite(facts.high) and low < facts.high):
        raise ImageReadError(
            str(path), f"states the range {low:g} to {facts.high:g} for its pixels"
        )


def _in_stated_range(
    path: str | Path, values: npt.NDArray[Any], low: float | None, high: float | None
) -> npt.NDArray[np.uint8]:
    """Numbers of any kind to 0 to 255, by a range that was checked."""
    assert low is not None and high is not None
    numbers = values.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ImageReadError(str(path), "has float pixels that are not finite")
    share = np.clip((numbers - low) / (high - low), 0.0, 1.0)
    return np.rint(255.0 * share).astype(np.uint8)


def read_mask(path: str | Path) -> npt.NDArray[np.uint8]:
    """Decode one ground-truth mask, as the values that stand in the file.

    Returns
    -------
    numpy.ndarray
        (H, W) uint8. Colour masks become grey by their largest channel, after what is
        transparent became black; where nothing is left of the colours then, and the alpha
        channel is not the same everywhere, the mask is the alpha channel. A palette of greys is
        looked up; one of colours only tells kinds of defects apart, so the indices are taken.
        Values above 255 become 255. EXIF orientation is not applied, since masks carry none.

    Raises
    ------
    ImageReadError
        As `read_image`; also for negative or float values.
    """
    data = read_bytes(path)
    try:
        if is_tiff(data):
            facts, header = read_tiff_header(path, io.BytesIO(data))
            if facts is not None and is_decoded_here(facts, header is not None):
                values = _tiff_mask_values(decode_tiff(path, data, facts), facts)
                return np.ascontiguousarray(values, dtype=np.uint8)
            assert header is not None
        else:
            header = _open_header(path, data)
        if header.format == "PNG":
            check_png(path, data)
        if header.format == "PPM":
            wide = find_wide_netpbm(data)
            if wide is not None:
                samples = read_wide_netpbm(path, data, wide)
                return _one_channel(_at_most_255(samples))
        header.load()
        values = _unscaled(_mask_values(header), header, data)
    except ImageReadError:
        raise
    except Exception as error:
        raise ImageReadError(str(path), reason_of(error)) from error
    return np.ascontiguousarray(values, dtype=np.uint8)


def _tiff_mask_values(values: npt.NDArray[Any], facts: TiffFacts) -> npt.NDArray[np.uint8]:
    """Return (H, W) uint8 of a TIFF that Pillow does not read."""
    if facts.photometric == 3:
        colours = palette_of(facts)
        grey = (colours.min(axis=1) == colours.max(axis=1)).all()
        return colours[values, 0] if grey else np.asarray(values, np.uint8)
    if facts.photometric == 5:
        raise ValueError("a mask in CMYK, whose meaning is not known")
    if values.dtype.kind == "f":
        raise ValueError("a mask with float pixels, whose meaning is not known")
    if values.dtype.kind == "i" and (values < 0).any():
        raise ValueError("a mask with negative values")
    if facts.photometric == 0:
        values = np.iinfo(values.dtype).max - values
    return _one_channel(_at_most_255(values))


def _at_most_255(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return indices as they are, and larger values as 255: they plainly mean defect."""
    return np.where(values > 255, 255, values).astype(np.uint8)


def _one_channel(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return values if values.ndim == 2 else np.asarray(values.max(axis=2), np.uint8)


_NETPBM_MAXVAL = re.compile(rb"P[2356](?:(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})){3}")


def _unscaled(
    values: npt.NDArray[np.uint8], header: Image.Image, data: bytes
) -> npt.NDArray[np.uint8]:
    """Return the values of a PGM or PPM of fewer than 8 bits, which Pillow scaled to 255."""
    found = _NETPBM_MAXVAL.match(data[:4096]) if header.format == "PPM" else None
    if found is None or int(found[1]) >= 255:
        return values
    return np.asarray(np.rint(values * (int(found[1]) / 255.0)), dtype=np.uint8)


def _mask_values(mask: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the values of a mask, (H, W) uint8."""
    if mask.mode == "F":
        raise ValueError("a mask with float pixels, whose meaning is not known")
    if mask.mode.startswith("I"):
        wide = np.asarray(mask)
        if (wide < 0).any():
            raise ValueError("a mask with negative values")
        return _at_most_255(wide)
    if mask.mode == "L":
        return np.asarray(mask, dtype=np.uint8)
    if mask.mode == "P" and "transparency" not in mask.info:
        colours = np.asarray(mask.convert("RGB"))  # (H, W, 3)
        if (colours.min(axis=2) != colours.max(axis=2)).any():
            return np.asarray(mask, dtype=np.uint8)
        return np.asarray(colours[..., 0], dtype=np.uint8)
    rgba = np.asarray(mask.convert("RGBA"), dtype=np.uint16)  # (H, W, 4)
    alpha = rgba[..., 3]
    shown = rgba[..., :3].max(axis=2) * alpha // 255
    if not shown.any() and alpha.min() != alpha.max():
        # black on nothing: what is drawn is in the alpha channel alone
        return np.asarray(alpha, dtype=np.uint8)
    return np.asarray(shown, dtype=np.uint8)


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
    """Return the content of a file that is not empty; raises `ImageReadError`."""
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


def _decode_with_pillow(
    path: str | Path, image: Image.Image, turn: int | None, bit_depth: int | None
) -> DecodedImage:
    """Decode with Pillow; `turn` is the orientation, None takes it from the metadata."""
    try:
        image.load()
        if turn is None:
            oriented = ImageOps.exif_transpose(image)
        else:
            oriented = image.transpose(_TURNS[turn]) if turn in _TURNS else image
        if oriented.mode.startswith("I;16"):
            tags = getattr(image, "tag_v2", {})
            container = top_of(min(16, max(9, int(np.ravel(tags.get(_BITS, 16))[0]))))
            wide = np.minimum(np.asarray(oriented).astype(np.uint16), container)  # (H, W)
            declared = float(np.ravel(tags.get(_MAXIMUM, container))[0])
            narrow, found, remark = scale_wide(
                path,
                wide,
                bit_depth=bit_depth,
                declared=declared if 0 < declared < container else None,
                container=container,
            )
            if tags.get(_PHOTOMETRIC) == 0:
                narrow = 255 - narrow
            if container != top_of(16):  # as few bits as there are
                found = found._replace(stated=True)
            return DecodedImage(in_three_channels(narrow), remark, found)
        if oriented.mode in ("I", "F"):
            raise ImageReadError(str(path), UNKNOWN_RANGE)
        return DecodedImage(np.asarray(oriented.convert("RGB"), dtype=np.uint8))
    except ImageReadError:
        raise
    except Exception as error:  # damaged data: OSError, SyntaxError, struct.error, zlib.error
        raise ImageReadError(str(path), reason_of(error)) from error


def _decode_text_netpbm(
    path: str | Path, image: Image.Image, maxval: int, bit_depth: int | None
) -> DecodedImage:
    """Decode a PGM or PPM of 16 bits in text, whose maxval Pillow scales to 65535 where it is
    grey.
    """
    image.load()
    if image.mode != "I":
        if bit_depth is not None and top_of(bit_depth) != maxval:
            raise ImageReadError(
                str(path), "is a PPM in text, to which bit_depth is not applied; save it as binary"
            )
        return DecodedImage(np.asarray(image.convert("RGB"), dtype=np.uint8))
    wide = np.rint(np.clip(np.asarray(image), 0, top_of(16)) * (maxval / top_of(16)))
    declared = None if maxval == top_of(16) else float(maxval)
    narrow, found, remark = scale_wide(
        path, wide.astype(np.uint16), bit_depth=bit_depth, declared=declared, container=maxval
    )
    return DecodedImage(in_three_channels(narrow), remark, found)


def orientation_in(metadata: bytes | None) -> int:
    """Return the orientation in the EXIF block of a PNG; 1 without one, and where it is damaged."""
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
    """Return a decoder's complaint, short and on one line, without the path we put before it."""
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
