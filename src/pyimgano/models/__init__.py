"""Detectors by registry name."""

from .detector import Detector, ImageScore, SkippedImage
from .loading import load_model
from .registry import create_model, list_models, model_info, register_model

__all__ = [
    "Detector",
    "ImageScore",
    "SkippedImage",
    "create_model",
    "list_models",
    "load_model",
    "model_info",
    "register_model",
]
