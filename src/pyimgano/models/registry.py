"""Detectors by name: the built-in ones, those registered here, those of other packages.

What a list says of the built-in ones stands in a table (`built_in.py`), so that listing them
imports neither their modules nor numpy; a module is imported when its detector is asked for.
Another package adds its own through the entry-point group `pyimgano.models`, each entry point
being a module that registers when it is imported.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..errors import UnknownNameError, UsageError, unknown_name
from ..threads import ForkSafeLock
from .built_in import BUILT_IN

if TYPE_CHECKING:
    from .detector import Detector

_D = TypeVar("_D", bound="type[Detector]")


class ModelLine(NamedTuple):
    """A model in a list; `year` is None where what registered it gives none."""

    name: str
    year: int | None
    tags: tuple[str, ...]
    summary: str


@dataclass(frozen=True)
class ModelEntry:
    """A registered detector class with what is said of it."""

    name: str
    detector: type[Detector]
    tags: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        return next(iter((self.detector.__doc__ or "").strip().splitlines()), "")


#: Tags of every detector, for it takes images as files and as arrays.
COMMON_TAGS = ("vision", "numpy")
#: Tags of the methods that have a network; these have the tag `deep` too.
_DEEP = {"deep-features", "trained"}

_entries: dict[str, ModelEntry] = {}
_loaded = False
_begun = False
_loading = ForkSafeLock(reentrant=True)  # a module that lists models on import comes back in


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
        What `model_info` shows besides: `paper`, `year`, `link`, `needs_training`,
        `calibration_method`.
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
        from .detector import Detector
        from .parameters import reject_unknown

        if not (isinstance(cls, type) and issubclass(cls, Detector)):
            raise UsageError(f"model {name!r} must be a subclass of Detector, got {cls!r}")
        # imported after a plug-in took its name over: what took over stays
        built_in = name in BUILT_IN and cls.__module__ == _home(name)
        if built_in and name in _entries and _entries[name].detector.__module__ != cls.__module__:
            return cls
        if (name in _entries or (name in BUILT_IN and not built_in)) and not overwrite:
            raise UsageError(f"model {name!r} is registered already; overwrite=True replaces it")
        for keywords in (presets or {}).values():
            reject_unknown(cls.Params.model_fields, name, keywords)
        replaced = _entries.get(name)
        if replaced is not None and vars(replaced.detector).get("registered_name") == name:
            del replaced.detector.registered_name
        _entries[name] = ModelEntry(
            name, cls, tuple(tags), dict(metadata or {}), dict(presets or {})
        )
        if "registered_name" not in vars(cls) or cls.registered_name not in _entries:
            cls.registered_name = name  # what a saved detector is found by
        return cls

    return register


def list_models(*, tags: Iterable[str] | str | None = None) -> list[str]:
    """Registered names, sorted; with `tags`, those that have every one of them."""
    return [line.name for line in model_lines(tags=tags)]


def model_lines(*, tags: Iterable[str] | str | None = None) -> list[ModelLine]:
    """Return what a list shows of the models that `list_models` names. Imports none of the
    built-in.
    """
    _load_plug_ins()
    wanted = {tags} if isinstance(tags, str) else set(tags or ())
    lines = [_line(name) for name in sorted({*BUILT_IN, *_entries})]
    return [line for line in lines if wanted <= set(line.tags)]


def _line(name: str) -> ModelLine:
    if name in BUILT_IN and _is_ours(name):
        one = BUILT_IN[name]
        return ModelLine(name, one.year, _with_common(one.tags), one.summary)
    entry = _entries[name]
    tags = _with_common(entry.tags)
    return ModelLine(name, entry.metadata.get("year"), tags, entry.summary)


def _with_common(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags with those that follow from them or that all models have."""
    deep = () if _DEEP.isdisjoint(tags) else ("deep",)
    return tuple(dict.fromkeys((*tags, *deep, *COMMON_TAGS)))


def _home(name: str) -> str:
    return f"{__package__}.{BUILT_IN[name].module}"


def _is_ours(name: str) -> bool:
    """Return whether a built-in name has not been taken over."""
    return name not in _entries or _entries[name].detector.__module__ == _home(name)


def model_entry(name: str) -> ModelEntry:
    """Return the registered entry; an unknown name is a `UsageError` that lists the near ones."""
    if name not in _entries and name in BUILT_IN:
        importlib.import_module(_home(name))
    if name not in _entries:
        _load_plug_ins()
    if name not in _entries:
        raise UnknownNameError(unknown_name("model", name, list_models()))
    return _entries[name]


def registered_name(cls: type[Detector]) -> str | None:
    """Return the name that this very class is registered under; None if it is not."""
    name: str | None = vars(cls).get("registered_name")
    return name


def model_info(name: str) -> dict[str, Any]:
    """Return all about a model, as plain JSON values.

    Returns
    -------
    dict
        `name`, `summary`, `signature`, the keywords with their defaults as Python writes them,
        `tags`; of `metadata` as it was registered `paper`, `year`, `link`, `needs_training` and
        `calibration_method`; `has_maps`; `requires`, always None since no model needs a package
        that pyimgano does not install; `parameters`, for each keyword its `default`, its
        `type` as JSON Schema and its `description`; `presets`, the keywords of each.

    Raises
    ------
    UsageError
        An unknown name.
    """
    from .parameters import describe_parameters, parameter_defaults

    entry = model_entry(name)
    keywords = parameter_defaults(entry.detector.Params)
    written = ", ".join(f"{keyword}={default!r}" for keyword, default in keywords.items())
    return {
        "name": entry.name,
        "summary": entry.summary,
        "signature": f"{entry.detector.__name__}(*, {written})",
        "tags": list(_with_common(entry.tags)),
        **entry.metadata,
        "has_maps": entry.detector.has_maps,
        "requires": None,
        "parameters": describe_parameters(entry.detector.Params),
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
        `image_size` is understood as `resize`.

    Raises
    ------
    UsageError
        An unknown name, preset or keyword (with the near ones), or a value out of range.
    """
    from .parameters import reject_unknown, understand

    entry = model_entry(name)
    known = entry.detector.Params.model_fields
    kwargs = understand(kwargs, known)
    reject_unknown(known, name, kwargs)
    detector = entry.detector(**{**preset_keywords(name, preset), **kwargs})
    detector.validate_params()
    return detector


def preset_keywords(name: str, preset: str | None) -> dict[str, Any]:
    """Return the keywords of a model's preset; none for None.

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
    """Return a model's keywords with their defaults."""
    from .parameters import parameter_defaults

    return parameter_defaults(model_entry(name).detector.Params)


def _load_plug_ins() -> None:
    from importlib.metadata import entry_points  # half of what `--help` would import

    global _loaded, _begun
    with _loading:
        if _loaded or _begun:
            return
        _begun = True
        try:
            for point in entry_points(group="pyimgano.models"):
                try:
                    point.load()
                except Exception as error:  # one that is broken does no harm to the others
                    warnings.warn(
                        f"the model plug-in {point.name!r} ({point.value}) cannot be loaded: "
                        f"{error}",
                        stacklevel=4,
                    )
            _loaded = True
        finally:
            _begun = False
