"""Weights that their authors publish: where, under which licence, and fetching them.

Nothing is fetched unasked: `pyimgano weights fetch NAME` does it, into the user's cache, where a
backbone of that name finds its weights from then on. On a machine without internet the file can
be put there by hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from ..errors import DataError, UsageError, WeightsError, unknown_name

_DINOV2 = "https://dl.fbaipublicfiles.com/dinov2"
_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Published:
    """One published file of weights.

    Attributes
    ----------
    url
        Where its authors publish it; None where everybody has to ask them for it.
    licence
        Under which licence they do.
    sha256
        Hash of the file, in hexadecimal digits; None if `url` is None.
    page
        Where they tell of it.
    """

    url: str | None
    licence: str
    sha256: str | None
    page: str


def _dinov2(size: str, sha256: str) -> dict[str, Published]:
    network = size.removesuffix("_reg")
    file = f"dinov2_{network}_{'reg4_' if size != network else ''}pretrain.pth"
    url = f"{_DINOV2}/dinov2_{network}/{file}"
    page = "https://github.com/facebookresearch/dinov2"
    return {f"dinov2_{size}": Published(url, "Apache-2.0", sha256, page)}


def _dinov3(size: str) -> dict[str, Published]:
    page = "https://ai.meta.com/dinov3"
    return {f"dinov3_{size}": Published(None, "DINOv3 License", None, page)}


#: By the name of the backbone. The hashes are those that other programs pin for the same files.
PUBLISHED: dict[str, Published] = {
    **_dinov2("vits14", "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
    **_dinov2("vits14_reg", "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb"),
    **_dinov2("vitb14", "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
    **_dinov2("vitb14_reg", "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71"),
    **_dinov2("vitl14", "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
    **_dinov2("vitl14_reg", "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51"),
    **_dinov2("vitg14", "baf8467e50af277596bbbafa06887c177ee899ab46033649c383577d7e9309d3"),
    **_dinov2("vitg14_reg", "746ecb8c6301c645c5c855be91687d274587d6e48fdaec4a729753160b34a283"),
    **_dinov3("vits16"),
    **_dinov3("vits16plus"),
    **_dinov3("vitb16"),
    **_dinov3("vitl16"),
    **_dinov3("vitl16plus"),
    **_dinov3("vith16plus"),
    **_dinov3("vit7b16"),
}


def fetched_file(name: str) -> Path:
    """Return where the fetched weights of a backbone lie in the user's cache, there or not."""
    return user_cache_path("pyimgano") / "weights" / f"{name}.pth"


def fetch(
    name: str,
    *,
    to: Path | None = None,
    tell: Callable[[dict[str, object]], None],
    progress: Callable[[int, int | None], None] | None = None,
    dry_run: bool = False,
) -> Path:
    """Fetch the published weights of a backbone.

    Parameters
    ----------
    name
        A key of `PUBLISHED`.
    to
        The file to write; by default that of `fetched_file`.
    tell
        Called once before anything is fetched, with `name`, `url`, `bytes` (None where the server
        does not say), `licence`, `sha256` and `file`.
    progress
        Called with the bytes that are there and the bytes that there are, None if unknown.
    dry_run
        Whether to stop after `tell`.

    Returns
    -------
    Path
        The file. One that is there already, with the published hash, is left as it is.

    Raises
    ------
    UsageError
        An unknown name, or weights that their authors give to those alone who ask them.
    DataError
        The file cannot be fetched or written.
    WeightsError
        What came is not the published file. Nothing is kept of it.
    """
    if name not in PUBLISHED:
        raise UsageError(unknown_name("backbone with published weights", name, PUBLISHED))
    one = PUBLISHED[name]
    if one.url is None:
        raise UsageError(
            f"the weights of {name} are under the {one.licence}, and their authors give them to "
            f"those who accept it at {one.page}; give the file or folder with weights=..., or put "
            f"it at {fetched_file(name)}"
        )
    target = fetched_file(name) if to is None else to
    facts: dict[str, object] = {
        "name": name,
        "url": one.url,
        "bytes": None,
        "licence": one.licence,
        "sha256": one.sha256,
        "file": str(target),
    }
    if target.is_file() and _sha256(target) == one.sha256:
        tell({**facts, "bytes": target.stat().st_size})
        return target
    try:
        with urllib.request.urlopen(one.url, timeout=_TIMEOUT) as answer:
            length = answer.headers.get("Content-Length")
            size = int(length) if length is not None and length.isdecimal() else None
            tell({**facts, "bytes": size})
            if dry_run:
                return target
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=target.parent, suffix=".part")
            try:
                digest, done = hashlib.sha256(), 0
                with os.fdopen(handle, "wb") as file:
                    while block := answer.read(_BLOCK):
                        file.write(block)
                        digest.update(block)
                        done += len(block)
                        if progress is not None:
                            progress(done, size)
                _require(one, digest.hexdigest(), done, size)
                Path(beside).replace(target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    Path(beside).unlink()
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{one.url}: cannot be fetched ({' '.join(str(reason).split())}); on a machine without "
            f"internet put the file at {target} or give it with weights=..."
        ) from error
    return target


def _require(one: Published, sha256: str, done: int, size: int | None) -> None:
    """Raise `WeightsError` unless what came is what was published."""
    if size is not None and done != size:
        raise WeightsError(f"{one.url}: only {done} of {size} bytes came; fetch it again")
    if sha256 != one.sha256:
        raise WeightsError(
            f"{one.url}: what came has the SHA-256 {sha256} instead of {one.sha256}; it is not the "
            "published file, and is not kept"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
