"""The import path of `load_dataset` that users know."""

from ..datasets import load_dataset

__all__ = ["load_dataset"]
