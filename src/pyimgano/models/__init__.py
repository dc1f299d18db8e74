"""Detectors by registry name. Names are looked up when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registry import create_model, list_models, model_info, register_model

if TYPE_CHECKING:
    from .detector import Detector
    from .distillation import distill_teacher
    from .image_score import ImageScore
    from .loading import load_model
    from .many_products import ManyProducts
    from .training_images import SkippedImage

_HOMES = {
    "Detector": "detector",
    "ImageScore": "image_score",
    "ManyProducts": "many_products",
    "SkippedImage": "training_images",
    "distill_teacher": "distillation",
    "load_model": "loading",
}

__all__ = [
    "Detector",
    "ImageScore",
    "ManyProducts",
    "SkippedImage",
    "create_model",
    "distill_teacher",
    "list_models",
    "load_model",
    "model_info",
    "register_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
