"""Detectors by name: the built-in ones, those registered here, those of other packages.

Every module of this package is imported when the registry is first asked; they import torch
only inside their methods, so that listing names stays quick. What needs torch at import
lives in subpackages, which are not. Another
package adds its own through the entry-point group `pyimgano.models`, each entry point being
a module that registers when it is imported.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, TypeVar

from ..errors import UsageError, unknown_name
from .detector import Detector
from .parameters import describe_parameters, parameter_defaults, reject_unknown

_D = TypeVar("_D", bound=type[Detector])


@dataclass(frozen=True)
class ModelEntry:
    """A registered detector class with what is said of it."""

    name: str
    detector: type[Detector]
    tags: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


_entries: dict[str, ModelEntry] = {}
_loaded = False
_begun = False
_loading = threading.RLock()  # a module that lists models on import comes back in


def register_model(
    name: str,
    *,
    tags: Iterable[str] = (),
    metadata: Mapping[str, Any] | None = None,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    overwrite: bool = False,
) -> Callable[[_D], _D]:
    """Class decorator that makes a detector known under `name`.

    Parameters
    ----------
    name
        The name users give.
    tags
        Words to search by, e.g. `memory-bank`.
    metadata
        What `model_info` shows besides: `paper`, `year`, `calibration`, ...
    presets
        Keywords for each preset name.
    overwrite
        Whether an existing name may be replaced.

    Raises
    ------
    UsageError
        The name is taken, the class is no `Detector`, or a preset has an unknown keyword.
    """

    def register(cls: _D) -> _D:
        if not (isinstance(cls, type) and issubclass(cls, Detector)):
            raise UsageError(f"model {name!r} must be a subclass of Detector, got {cls!r}")
        if name in _entries and not overwrite:
            raise UsageError(f"model {name!r} is registered already; overwrite=True replaces it")
        for keywords in (presets or {}).values():
            reject_unknown(cls, name, keywords)
        _entries[name] = ModelEntry(
            name, cls, tuple(tags), dict(metadata or {}), dict(presets or {})
        )
        return cls

    return register


def list_models(*, tags: Iterable[str] | str | None = None) -> list[str]:
    """Registered names, sorted; with `tags`, those that have every one of them."""
    _load()
    wanted = {tags} if isinstance(tags, str) else set(tags or ())
    return sorted(name for name, entry in _entries.items() if wanted <= set(entry.tags))


def model_entry(name: str) -> ModelEntry:
    """The registered entry; an unknown name is a `UsageError` that lists the near ones."""
    _load()
    if name not in _entries:
        raise UsageError(unknown_name("model", name, _entries))
    return _entries[name]


def registered_name(cls: type[Detector]) -> str | None:
    """The name that this very class is registered under; None if it is not."""
    _load()
    names = sorted(name for name, entry in _entries.items() if entry.detector is cls)
    return names[0] if names else None


def model_info(name: str) -> dict[str, Any]:
    """Name, tags, paper, what the method is, keywords with types and defaults, presets.

    Plain JSON values.

    Raises
    ------
    UsageError
        An unknown name.
    """
    entry = model_entry(name)
    summary = next(iter((entry.detector.__doc__ or "").strip().splitlines()), "")
    return {
        "name": entry.name,
        "summary": summary,
        "tags": list(entry.tags),
        **entry.metadata,
        "has_maps": entry.detector.has_maps,
        "parameters": describe_parameters(entry.detector),
        "presets": {preset: dict(keywords) for preset, keywords in entry.presets.items()},
    }


def create_model(name: str, *, preset: str | None = None, **kwargs: Any) -> Detector:
    """Make a detector.

    Parameters
    ----------
    name
        A registered name.
    preset
        A preset of the model; `kwargs` beat it.
    kwargs
        The detector's keywords; values are checked here already, by type and range.

    Raises
    ------
    UsageError
        An unknown name, preset or keyword (with the near ones), or a value out of range.
    """
    entry = model_entry(name)
    reject_unknown(entry.detector, name, kwargs)
    detector = entry.detector(**{**preset_keywords(name, preset), **kwargs})
    detector.validate_params()
    return detector


def preset_keywords(name: str, preset: str | None) -> dict[str, Any]:
    """The keywords of a model's preset; none for None.

    Raises
    ------
    UsageError
        The model has no such preset.
    """
    if preset is None:
        return {}
    entry = model_entry(name)
    if preset not in entry.presets:
        raise UsageError(unknown_name(f"preset of {name}", preset, entry.presets))
    return dict(entry.presets[preset])


def default_keywords(name: str) -> dict[str, Any]:
    """A model's keywords with their defaults."""
    return parameter_defaults(model_entry(name).detector)


def _load() -> None:
    global _loaded, _begun
    with _loading:
        if _loaded or _begun:
            return
        _begun = True
        try:
            _load_all()
            _loaded = True
        finally:
            _begun = False


def _load_all() -> None:
    package = importlib.import_module(__package__ or "pyimgano.models")
    for module in pkgutil.iter_modules(package.__path__):
        if not module.ispkg:
            importlib.import_module(f"{package.__name__}.{module.name}")
    for point in entry_points(group="pyimgano.models"):
        try:
            point.load()
        except Exception as error:  # a plug-in that is broken does no harm to the others
            warnings.warn(
                f"the model plug-in {point.name!r} ({point.value}) cannot be loaded: {error}",
                stacklevel=4,
            )
