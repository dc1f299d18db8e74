"""Types of detector keywords, with their ranges, and checking them.

A detector's `__init__` annotates each keyword with one of these (or any type that pydantic
understands); that is all there is to validation, to `model_info`, and to the error a user
sees.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    WithJsonSchema,
    create_model,
)

from ..errors import UsageError, invalid_value, unknown_name
from ..images import MAX_BIT_DEPTH, MIN_BIT_DEPTH, RegionOfInterest

_Side = Annotated[int, Strict(), Field(ge=1, le=16384)]
#: (height, width) in pixels.
Size = tuple[_Side, _Side]
Count = Annotated[int, Strict(), Field(ge=1)]
#: A count that may be 0.
Natural = Annotated[int, Strict(), Field(ge=0)]
Seed = Annotated[int, Strict(), Field(ge=0, le=2**63 - 1)]
Ratio = Annotated[float, Strict(), Field(gt=0, le=1)]
#: Images of a training step, for networks with batch norm.
MinibatchSize = Annotated[int, Strict(), Field(ge=2, le=4096)]
#: A learning rate or the like.
Positive = Annotated[float, Strict(), Field(gt=0, le=1e6)]
#: A momentum, a decay or the like.
Share = Annotated[float, Strict(), Field(ge=0, lt=1)]
Flag = Annotated[bool, Strict()]
Contamination = Annotated[float, Strict(), Field(ge=1e-9, le=0.5)]
Quantile = Annotated[float, Strict(), Field(gt=0, lt=1)]
#: Bits that count of the 16 that a sample of an image has.
BitDepth = Annotated[int, Strict(), Field(ge=MIN_BIT_DEPTH, le=MAX_BIT_DEPTH)]
CalibrationSource = Literal["out-of-sample", "in-sample"]


def _check_roi(value: Any) -> Any:
    """Polygons are checked; a file is opened by `fit`."""
    if value is None or isinstance(value, RegionOfInterest):
        return value
    if isinstance(value, (str, Path)):
        if not str(value):
            raise ValueError("a file or polygons are wanted")
        return value
    return RegionOfInterest.from_polygons(value)


#: A mask file, a .json file of polygons, polygons, or a `RegionOfInterest`; None for the frame.
Roi = Annotated[
    Any,
    BeforeValidator(_check_roi),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string"}, {"type": "array"}, {"type": "null"}],
            "description": "a mask image, a .json file of polygons, or polygons, [x, y] in 0..1",
        }
    ),
]


class _Keyword(NamedTuple):
    written: inspect.Parameter  # with its annotation as it is written
    init: Callable[..., None]  # that names it

    @property
    def default(self) -> Any:
        return self.written.default


@cache
def _parameters(cls: type) -> dict[str, _Keyword]:
    """The keywords of `cls.__init__`, its own first; then, where it takes `**others` and hands
    them on, those of the classes that it is made from. A class that names one again has its own
    default and type for it.
    """
    found: dict[str, _Keyword] = {}
    for base in cls.__mro__:
        init = vars(base).get("__init__")
        if init is None or base is object:
            continue
        own = list(inspect.signature(init).parameters.values())[1:]  # without self
        for one in own:
            if one.kind is not one.VAR_KEYWORD and one.name not in found:
                found[one.name] = _Keyword(one, init)
        if all(one.kind is not one.VAR_KEYWORD for one in own):
            break
    return found


def parameter_names(cls: type) -> list[str]:
    """The keywords of `cls`, its own first."""
    return list(_parameters(cls))


def parameter_defaults(cls: type) -> dict[str, Any]:
    return {name: one.default for name, one in _parameters(cls).items()}


class FullSignature:
    """The signature of a class with the keywords that its `__init__` hands on."""

    def __get__(self, instance: object, owner: type) -> inspect.Signature:
        written = [one.written for one in _parameters(owner).values()]
        return inspect.Signature(sorted(written, key=lambda one: one.kind))


def describe_parameters(cls: type) -> dict[str, dict[str, Any]]:
    """For each keyword its default and its JSON Schema (type and range); plain JSON values."""
    schema = _checker(cls).model_json_schema()["properties"]
    described = {}
    for name, default in parameter_defaults(cls).items():
        entry = {k: v for k, v in schema[name].items() if k not in ("title", "default")}
        described[name] = {
            "default": list(default) if isinstance(default, tuple) else default,
            "type": entry,
        }
    return described


def understand(keywords: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """Return keywords under the names that a detector with the keywords `known` has for them.

    `image_size`, one number of pixels or (height, width), is what other packages call `resize`.

    Raises
    ------
    UsageError
        `image_size` beside `resize`.
    """
    found = dict(keywords)
    if "image_size" in found and "image_size" not in known and "resize" in known:
        if "resize" in found:
            raise UsageError("image_size is another name of resize; give one of the two")
        size = found.pop("image_size")
        found["resize"] = (size, size) if isinstance(size, int) else size
    return found


def reject_unknown(cls: type, name: str, keywords: Mapping[str, Any]) -> None:
    """Raise `UsageError`, with the near ones, if `cls` does not take one of `keywords`."""
    known = parameter_names(cls)
    for keyword in keywords:
        if keyword not in known:
            raise UsageError(unknown_name(f"keyword of {name}", keyword, known))


def check_parameters(cls: type, values: Mapping[str, Any]) -> Any:
    """`values` as the annotations of `cls.__init__` want them, or one line that says why not.

    Returns an object with one attribute a keyword.
    """
    plain = {name: plain_value(value) for name, value in values.items()}
    try:
        checked = _checker(cls)(**plain)
        return SimpleNamespace(**{name: getattr(checked, name) for name in plain})
    except ValidationError as error:
        raise invalid_value(error, plain) from None


def plain_value(value: Any) -> Any:
    """Numbers of numpy's as Python's, also inside a tuple or list."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (tuple, list)):
        return type(value)(plain_value(item) for item in value)
    return value


@cache
def _checker(cls: type) -> type[BaseModel]:
    fields: dict[str, Any] = {
        name: (typing.get_type_hints(one.init, include_extras=True).get(name, Any), one.default)
        for name, one in _parameters(cls).items()
    }
    return create_model(cls.__name__, __config__=ConfigDict(extra="forbid"), **fields)
