"""Frozen networks that turn pixels into feature maps, and the engines that run them."""

from .backbone import Backbone, create_backbone, list_backbones
from .engines import ENGINE_TOLERANCE, resolve_device

__all__ = ["ENGINE_TOLERANCE", "Backbone", "create_backbone", "list_backbones", "resolve_device"]
