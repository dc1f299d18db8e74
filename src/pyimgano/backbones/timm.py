"""Any timm model as a backbone, `timm:<name>`, where the extra `pyimgano[timm]` is installed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UsageError, WeightsError
from .network import TappedNetwork
from .weights import WeightsOrigin
from .without_telemetry import import_timm


class TimmNetwork(TappedNetwork):
    """A timm model through its `features_only` interface.

    Layers are named as timm's `feature_info` names them; the defaults are those whose
    stride is 8 and 16.
    """

    def __init__(self, name: str, *, pretrained: bool, seed: int) -> None:
        super().__init__()
        self._name = name
        try:
            timm = import_timm()
        except Exception as error:  # a torchvision that does not match torch fails in many ways
            raise UsageError(
                f"backbone 'timm:{name}' needs timm, which cannot be imported here "
                f"({error}); pip install 'pyimgano[timm]'"
            ) from error
        try:
            with torch.random.fork_rng(devices=[]):  # random weights are the seed's alone
                torch.manual_seed(seed)
                self.model = timm.create_model(name, pretrained=pretrained, features_only=True)
        except Exception as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise WeightsError(f"timm cannot make {name!r}: {first_line}") from error
        info = self.model.feature_info
        self.layer_names = tuple(info.module_name())
        self._kinds = tuple(zip(info.channels(), info.reduction(), strict=True))
        by_stride = {stride: layer for layer, stride in zip(self.layer_names, info.reduction())}
        wanted = tuple(by_stride[stride] for stride in (8, 16) if stride in by_stride)
        self.default_layers = wanted or self.layer_names[-2:]
        config = getattr(self.model, "pretrained_cfg", None) or {}
        red, green, blue = (255.0 * m for m in config.get("mean", (0.485, 0.456, 0.406)))
        self.mean = (red, green, blue)
        red, green, blue = (255.0 * s for s in config.get("std", (0.229, 0.224, 0.225)))
        self.std = (red, green, blue)

    def tapped(self, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        try:
            found = self.model(x)
        except AssertionError as error:  # how timm's models say that they take another size
            reason = " ".join(str(error).split())[:200] or "it does not say why"
            raise UsageError(
                f"backbone 'timm:{self._name}' does not take images of {x.shape[2]} x {x.shape[3]} "
                f"pixels ({reason}); give the resize that it was made for"
            ) from error
        maps = dict(zip(self.layer_names, found))
        return [maps[layer] for layer in layers]

    def layer_kinds(self) -> dict[str, tuple[int, int]]:
        return dict(zip(self.layer_names, self._kinds))  # not every model takes a small image


def origin(name: str, *, pretrained: bool, seed: int) -> WeightsOrigin:
    if pretrained:
        return WeightsOrigin("timm", name, None)
    return WeightsOrigin("random", f"seed {seed}", None)
