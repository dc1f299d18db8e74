"""Any timm model as a backbone, `timm:<name>`, where the extra `pyimgano[timm]` is installed.

A plain vision transformer, whose blocks are all of one grid, has the layers of
`transformer.VisionTransformer`; any other model those of timm's `features_only` interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError, WeightsError
from .dinov2 import resized
from .network import TappedNetwork
from .transformer import Rotation, VisionTransformer
from .weights import WeightsOrigin
from .without_telemetry import import_timm


def timm_network(name: str, *, pretrained: bool, seed: int) -> TappedNetwork:
    """Return a timm model as a backbone's network.

    Raises
    ------
    UsageError
        timm cannot be imported.
    WeightsError
        timm has no such model, or no weights of it.
    """
    model = _made(name, pretrained, seed, features_only=True)
    if not _is_plain(model):
        return TimmNetwork(name, model)
    try:  # that it takes images of any size
        whole = _made(name, pretrained, seed, num_classes=0, dynamic_img_size=True)
    except WeightsError:
        whole = _made(name, pretrained, seed, num_classes=0)
    return TimmTransformer(name, whole)


def _made(name: str, pretrained: bool, seed: int, **options: Any) -> Any:
    try:
        timm = import_timm()
    except Exception as error:  # a torchvision that does not match torch fails in many ways
        raise UsageError(
            f"backbone 'timm:{name}' needs timm, which cannot be imported here "
            f"({_first_line(error)}); pip install 'pyimgano[timm]'"
        ) from error
    try:
        with torch.random.fork_rng(devices=[]):  # random weights are the seed's alone
            torch.manual_seed(seed)
            return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:
        raise WeightsError(f"timm cannot make {name!r}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _is_plain(model: Any) -> bool:
    """Return whether a `features_only` model is a vision transformer of one grid and square
    patches.
    """
    inner = getattr(model, "model", None)
    patch = getattr(getattr(inner, "patch_embed", None), "patch_size", ())
    return (
        all(hasattr(inner, name) for name in ("blocks", "norm", "forward_intermediates"))
        and len(set(patch)) == 1
        and set(model.feature_info.reduction()) == set(patch)
    )


def _normalisation(model: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of the input, for pixels of 0 to 255."""
    config = getattr(model, "pretrained_cfg", None) or {}
    red, green, blue = (255.0 * m for m in config.get("mean", (0.485, 0.456, 0.406)))
    mean = (red, green, blue)
    red, green, blue = (255.0 * s for s in config.get("std", (0.229, 0.224, 0.225)))
    return mean, (red, green, blue)


def _another_size(name: str, x: Tensor, error: Exception) -> UsageError:
    """Return the error where a model refuses the size of its input."""
    reason = " ".join(str(error).split())[:200] or "it does not say why"
    return UsageError(
        f"backbone 'timm:{name}' does not take images of {x.shape[2]} x {x.shape[3]} "
        f"pixels ({reason}); give the resize that it was made for"
    )


class TimmNetwork(TappedNetwork):
    """A timm model through its `features_only` interface.

    Layers are named as timm's `feature_info` names them; the defaults are those whose
    stride is 8 and 16.
    """

    def __init__(self, name: str, model: Any) -> None:
        super().__init__()
        self._name = name
        self.model = model
        info = model.feature_info
        self.layer_names = tuple(info.module_name())
        self._kinds = tuple(zip(info.channels(), info.reduction(), strict=True))
        by_stride = {stride: layer for layer, stride in zip(self.layer_names, info.reduction())}
        wanted = tuple(by_stride[stride] for stride in (8, 16) if stride in by_stride)
        self.default_layers = wanted or self.layer_names[-2:]
        self.mean, self.std = _normalisation(model)

    def tapped(self, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        try:
            found = self.model(x)
        except AssertionError as error:  # how timm's models say that they take another size
            raise _another_size(self._name, x, error) from error
        maps = dict(zip(self.layer_names, found))
        return [maps[layer] for layer in layers]

    def layer_kinds(self) -> dict[str, tuple[int, int]]:
        return dict(zip(self.layer_names, self._kinds))  # not every model takes a small image


class TimmTransformer(VisionTransformer):
    """A plain vision transformer of timm's; `blocks.3`, its name there, is another of `block3`."""

    def __init__(self, name: str, model: Any) -> None:
        before = int(getattr(model, "num_prefix_tokens", 1))
        super().__init__(
            width=int(model.embed_dim),
            depth=len(model.blocks),
            patch=int(model.patch_embed.patch_size[0]),
            registers=max(0, before - 1),
        )
        self.has_class = before > 0
        self._name = name
        self.model = model
        self.mean, self.std = _normalisation(model)

        added = getattr(model, "pos_embed", None) is not None
        turned = getattr(model, "rope", None) is not None
        parts = ("cls_token", "reg_token", "no_embed_class", "norm_pre")
        #: Whether positions are resized here, for OpenVINO's bicubic interpolation is another.
        self._resizes = (
            added
            and not turned
            and getattr(model, "dynamic_img_size", False)
            and all(hasattr(model, part) for part in parts)
        )
        self.torch_alone = added and not self._resizes

    def after_blocks(
        self, x: Tensor, grid: tuple[int, int], numbers: Sequence[int]
    ) -> dict[int, Tensor]:
        try:
            if self._resizes:
                return super().after_blocks(x, grid, numbers)
            found = self.model.forward_intermediates(
                x,
                indices=list(numbers),
                return_prefix_tokens=True,
                norm=False,
                output_fmt="NLC",
                intermediates_only=True,
            )
        except AssertionError as error:  # how timm's models say that they take another size
            raise _another_size(self._name, x, error) from error
        after = {}
        for number, one in zip(numbers, found, strict=True):
            patches, before = one if isinstance(one, tuple) else (one, None)
            after[number] = patches if before is None else torch.cat([before, patches], dim=1)
        return after

    def tokens(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        model = self.model
        patches = model.patch_embed(x).reshape(-1, grid[0] * grid[1], self.width)
        with_position = 0 if model.no_embed_class else self.has_class + self.registers
        own = model.pos_embed[:, with_position:]
        patches = patches + resized(own, tuple(model.patch_embed.grid_size), grid, smooth=True)
        first = [one for one in (model.cls_token, model.reg_token) if one is not None]
        if first:
            before = torch.cat(first, dim=1)
            if with_position:
                before = before + model.pos_embed[:, :with_position]
            patches = torch.cat([before.expand(x.shape[0], -1, -1), patches], dim=1)
        found: Tensor = model.norm_pre(patches)
        return found

    def block(self, number: int, tokens: Tensor, rotation: Rotation | None) -> Tensor:
        found: Tensor = self.model.blocks[number](tokens)
        return found

    def normed(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.model.norm(tokens)
        return found

    def cut(self, layers: Sequence[str]) -> None:
        """Keep all of it, whose parts know how many they are."""


def origin(name: str, *, pretrained: bool, seed: int) -> WeightsOrigin:
    if pretrained:
        return WeightsOrigin("timm", name, None)
    return WeightsOrigin("random", f"seed {seed}", None)
