"""Which layers of a backbone make a feature pyramid: its levels by their strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..backbones import Backbone

# Side of the image that is run to see the strides; a stride of 32 still leaves two cells.
_SIDE = 64


def layer_strides(backbone: Backbone) -> dict[str, int]:
    """For each layer that can be tapped, pixels of the image a cell, in computation order."""
    import torch

    from ..backbones.network import FeatureGraph

    network = backbone.network
    device = next(network.parameters()).device
    pixels = torch.zeros((1, _SIDE, _SIDE, 3), dtype=torch.uint8, device=device)
    with torch.inference_mode():
        layers = FeatureGraph(network, network.layer_names).to(device)(pixels)
    strides = [round(_SIDE / layer.shape[-1]) for layer in layers]
    return dict(zip(network.layer_names, strides))


def pyramid_layers(backbone: Backbone, strides: Sequence[int]) -> tuple[str, ...]:
    """The last layer of each of `strides`, finest first; the default layers if there is none."""
    last = {stride: name for name, stride in layer_strides(backbone).items()}
    return tuple(last[s] for s in sorted(strides) if s in last) or backbone.network.default_layers
