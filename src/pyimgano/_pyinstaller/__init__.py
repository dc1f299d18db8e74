"""Tells PyInstaller, through the entry points `pyinstaller40`, what it cannot see by itself."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """Return the folder of the hooks, which PyInstaller asks for where pyimgano is installed."""
    return [str(Path(__file__).parent)]
