"""The bodies of requests: read within limits, and decoded as strictly as image files are."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import ImageReadError, PyimganoError
from ..images.limit import max_pixels, opened, require_pixels
from ..images.read import decode_image
from ..images.samples import narrow_array
from .refusals import CLIENT_GONE, Refusal

#: What messages call the image.
_NAME = "the image"
_FORMS = ("multipart/", "application/json")


@dataclass(frozen=True)
class RawFormat:
    """What the bytes of a body without a file format are.

    Attributes
    ----------
    shape
        (H, W) grey or (H, W, 3), row by row.
    dtype
        `uint8`, or `uint16` with the lower byte first.
    order
        The order of the channels.
    """

    shape: tuple[int, ...]
    dtype: Literal["uint8", "uint16"] = "uint8"
    order: Literal["rgb", "bgr"] = "rgb"

    @classmethod
    def parse(
        cls,
        shape: str | None,
        dtype: Literal["uint8", "uint16"] | None,
        order: Literal["rgb", "bgr"] | None,
    ) -> RawFormat | None:
        """Return the format that a query gives; None where it gives none: the body is a file.

        Raises
        ------
        Refusal
            400: the shape is none of an image, or the rest is given without it.
        """
        if shape is None:
            if dtype is not None or order is not None:
                raise Refusal(400, "bad_request", "dtype and order need shape, such as 480,640,3")
            return None
        parts = shape.replace("x", ",").split(",")
        digits = all(part.isascii() and part.isdigit() and len(part) < 8 for part in parts)
        sides = tuple(int(part) for part in parts) if digits else ()
        if len(sides) not in (2, 3) or 0 in sides or (len(sides) == 3 and sides[2] != 3):
            raise Refusal(
                400,
                "bad_request",
                f"shape must be height,width or height,width,3, got {shape[:40]!r}",
            )
        if order is not None and len(sides) == 2:
            raise Refusal(400, "bad_request", "order has no effect on a grey image")
        return cls(sides, dtype or "uint8", order or "rgb")

    @property
    def n_bytes(self) -> int:
        """Return how many bytes the body must have."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


async def read_body(chunks: AsyncIterator[bytes], limit: int, declared: str | None) -> bytes:
    """Read a body of at most `limit` bytes; `declared` is the `Content-Length` header.

    Raises
    ------
    Refusal
        413: it has more, or says so. 400: it is empty. 499: the client went away.
    """
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    total = 0
    try:
        async for chunk in chunks:
            total += len(chunk)
            if total > limit:
                raise _too_large(limit)
            parts.append(chunk)
    except Refusal:
        raise
    except Exception as error:  # starlette's ClientDisconnect
        raise Refusal(CLIENT_GONE, "client_gone", "the client went away") from error
    if not total:
        raise Refusal(400, "unreadable", "the body is empty; send the image itself as the body")
    return b"".join(parts)


def require_image_type(content_type: str) -> None:
    """Refuse a form, whose parts would be taken for a damaged image.

    Any other type is accepted: what an image is is told by its content.

    Raises
    ------
    Refusal
        415.
    """
    kind = content_type.lower()
    if kind.startswith(_FORMS):
        raise Refusal(
            415,
            "bad_request",
            f"{kind.partition(';')[0][:40]} is not taken; send the image itself as the body, for "
            "instance with curl --data-binary @part.png",
        )


def decoded_size(body: bytes, raw: RawFormat | None) -> int:
    """Return how many bytes the decoded image has, from its header alone; no less than it needs.

    Where the header cannot be read that is what the largest image has: decoding will tell.
    """
    if raw is not None:
        height, width = raw.shape[:2]
    else:
        try:
            width, height = opened(_NAME, body).size
        except Exception:  # Pillow's plugins raise many kinds
            return 3 * max_pixels()
    return 3 * height * width


def decode(
    body: bytes, raw: RawFormat | None, bit_depth: int | None
) -> tuple[npt.NDArray[np.uint8], str | None]:
    """Decode a body.

    Parameters
    ----------
    body
        A JPEG, PNG, TIFF or other image file that `pyimgano.images.read` knows, or raw pixels.
    raw
        What the raw pixels are; None for a file.
    bit_depth
        Bits that count in images with 16 bits a sample.

    Returns
    -------
    tuple
        (H, W, 3) uint8 RGB, and a remark in words, None if there is none.

    Raises
    ------
    Refusal
        422: the body is no whole image.
    """
    try:
        if raw is None:
            decoded = decode_image(_NAME, body, bit_depth=bit_depth)
            return decoded.pixels, decoded.remark
        require_pixels(_NAME, raw.shape[1], raw.shape[0])
        if len(body) != raw.n_bytes:
            raise ImageReadError(
                _NAME,
                f"has {len(body)} bytes, and {raw.dtype} of shape "
                f"{','.join(map(str, raw.shape))} has {raw.n_bytes}",
            )
        array = np.frombuffer(body, np.dtype(raw.dtype).newbyteorder("<")).reshape(raw.shape)
        if raw.order == "bgr":
            array = array[:, :, ::-1]
        if array.ndim == 2 and array.dtype == np.uint8:
            array = np.repeat(array[:, :, None], 3, axis=2)  # (H, W, 3)
        # a copy: what lies in the body itself cannot be written to, which torch wants
        pixels, _, remark = narrow_array(_NAME, np.array(array, order="C"), bit_depth)
        return pixels, remark
    except ImageReadError as error:
        raise Refusal(422, "unreadable", f"the image cannot be read: {error.reason}") from error
    except PyimganoError as error:
        raise Refusal(422, "unreadable", str(error)) from error


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "too_large", f"the body has more than the {limit} bytes that are allowed")
