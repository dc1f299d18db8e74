"""Frozen networks that turn pixels into feature maps, and the engines that run them."""

from ..threads import calm_openmp

calm_openmp()  # before torch is imported

from .backbone import (  # noqa: E402
    Backbone,
    create_backbone,
    list_backbones,
    ways_to_weights,
    weights_at_hand,
)
from .choice import LastOfStages, LastOfStrides, LayerChoice  # noqa: E402
from .engines import ENGINE_TOLERANCE, resolve_device  # noqa: E402

__all__ = [
    "ENGINE_TOLERANCE",
    "Backbone",
    "LastOfStages",
    "LastOfStrides",
    "LayerChoice",
    "create_backbone",
    "list_backbones",
    "resolve_device",
    "ways_to_weights",
    "weights_at_hand",
]
