"""The keywords of detectors: their types, ranges, defaults and meanings, and checking them.

A method's `Params` is a pydantic class with one field for each keyword. Each field has a type
of this module (or any other that pydantic understands), a default and a description. That is
all there is to the signature of the detector, its help, validation, `model_info`, and the error
that a user sees.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    WithJsonSchema,
)

from ..calibration import DEFAULT_TAIL, CalibrationTail
from ..errors import UsageError, invalid_value, unknown_name
from ..images import RegionOfInterest
from . import ranges

BitDepth = ranges.BitDepth
Contamination = ranges.Contamination
Count = ranges.Count
Flag = ranges.Flag
Quantile = ranges.Quantile
Ratio = ranges.Ratio
Seed = ranges.Seed
Size = ranges.Size
#: A count that may be 0.
Natural = Annotated[int, Strict(), Field(ge=0)]
#: Images of a training step, for networks with batch norm.
MinibatchSize = Annotated[int, Strict(), Field(ge=2, le=4096)]
#: A learning rate or the like.
Positive = Annotated[float, Strict(), Field(gt=0, le=1e6)]
#: A momentum, a decay or the like.
Share = Annotated[float, Strict(), Field(ge=0, lt=1)]
CalibrationSource = Literal["out-of-sample", "in-sample"]


def _check_roi(value: Any) -> Any:
    """Polygons are checked; a file is opened by `fit`."""
    if value is None or isinstance(value, RegionOfInterest):
        return value
    if isinstance(value, (str, Path)):
        if not str(value):
            raise ValueError("give a file or polygons")
        return value
    return RegionOfInterest.from_polygons(value)


#: A mask file, a .json file of polygons, polygons, or a `RegionOfInterest`; None for the frame.
Roi = Annotated[
    Any,
    BeforeValidator(_check_roi),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array"}, {"type": "null"}]}),
]


class DetectorParams(BaseModel):
    """The keywords that every detector has, and the base of every method's `Params`.

    A checked object of such a class is what a method is made with, and `params_` of the fitted
    detector. Values that the images decide (`resize` None) are put in before the method is made.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    resize: Size = Field(
        (256, 256),
        description="Height and width in pixels that images are resized to and maps are given at.",
    )
    device: str = Field(
        "auto", description="The device that computes: `auto`, `cpu`, `cuda` or `cuda:N`."
    )
    random_seed: Seed = Field(0, description="Seed of the random number generators.")
    contamination: Contamination | None = Field(
        None,
        description=(
            "The expected share of the training images whose scores lie above the threshold, "
            "in (0, 0.5]."
        ),
    )
    calibration: CalibrationSource = Field(
        "out-of-sample",
        description=(
            "Which scores the threshold is calibrated on. `out-of-sample` scores each training "
            "image as if it had not been learned from. `in-sample` scores images that were learned "
            "from, and promises nothing."
        ),
    )
    calibration_quantile: Quantile | None = Field(
        None,
        description=(
            "The quantile of the scores of good images that the threshold lies at, in (0, 1). It "
            "takes precedence over `contamination`. Without either it is 0.995."
        ),
    )
    calibration_tail: CalibrationTail = Field(
        DEFAULT_TAIL,
        description=(
            "How the threshold is estimated at this quantile. `exponential` models the tail of the "
            "scores where that is believable; `conformal` takes the rank of a score."
        ),
    )
    roi: Roi | None = Field(
        None,
        description=(
            "The region of interest: a mask image of any size in which every value but 0 counts, "
            "a .json file of polygons, or polygons of [x, y] in fractions of width and height. "
            "None is the whole frame."
        ),
    )
    bit_depth: BitDepth | None = Field(
        None,
        description=(
            "How many bits the camera has, 9 to 16, where images have 16 bits a sample: "
            "2^bit_depth - 1 becomes white. None takes what each file declares, and else all 16. "
            "It is saved with the detector, and images to score are read in the same way."
        ),
    )


class BackboneParams(DetectorParams):
    """The keywords of methods that take features from a frozen backbone."""

    backbone: str = Field(
        "efficientnet_lite0",
        description=(
            "The network that gives the features: a name of `pyimgano.backbones.list_backbones()`, "
            "or `timm:<name>`."
        ),
    )
    layers: Sequence[str] | None = Field(
        None,
        description=(
            "The layers of the backbone whose features are taken. None is the method's choice, or "
            "else the backbone's own, which is strides 8 and 16. Those of a vision transformer are "
            "blocks, such as `block9.normed` or `0.75.normed` (docs/transformers.md)."
        ),
    )
    pretrained: Flag = Field(
        True,
        description="False takes random weights, drawn from `random_seed`, instead of ImageNet's.",
    )
    weights: str | None = Field(
        None,
        description=(
            "A file of weights for the backbone, or a folder that holds one; it takes precedence "
            "over `pretrained`."
        ),
    )
    engine: str = Field(
        "auto", description="What runs the backbone: `auto`, `openvino` or `torch`."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description=(
            "The number format that the backbone computes in. `bfloat16` is about twice as quick "
            "on processors and GPUs that have units for it. Features then differ by about 0.5 % "
            "with the ResNet family and by 2.5 % with EfficientNet-Lite, and scores are not "
            "comparable with those of `float32`."
        ),
    )
    cache_dir: str | None = Field(
        None,
        description="A folder to keep the backbone's features of image files in, for the next fit.",
    )


_Params = type[BaseModel]
_P = TypeVar("_P", bound=BaseModel)


def _written(params: _Params) -> dict[str, Any]:
    """Return the annotation of each keyword as it is written, a method's own keywords first."""
    found: dict[str, Any] = {}
    for base in params.__mro__:
        for name, written in vars(base).get("__annotations__", {}).items():
            if name in params.model_fields:
                found.setdefault(name, written)
    return found


def parameter_defaults(params: _Params) -> dict[str, Any]:
    """Return the keywords of a `Params` class with their defaults, a method's own first."""
    return {name: params.model_fields[name].default for name in _written(params)}


def signature_of(params: _Params) -> inspect.Signature:
    """Return the signature of a detector with these keywords: what `help()` shows."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [
            inspect.Parameter(
                name, kind, default=params.model_fields[name].default, annotation=written
            )
            for name, written in _written(params).items()
        ]
    )


def documented(doc: str, params: _Params) -> str:
    """Return a docstring with a section that says what each keyword means.

    The section goes before the first one that the docstring has.
    """
    lines = ["Parameters", "----------"]
    for name in parameter_defaults(params):
        meaning = params.model_fields[name].description or ""
        lines += [name, *(f"    {line}" for line in textwrap.wrap(meaning, 92))]
    text = inspect.cleandoc(doc).split("\n")
    underlined = (n for n, line in enumerate(text[1:]) if line and not line.strip("-"))
    place = next(underlined, len(text) + 1)
    parts = [text[:place], [""] if place > len(text) else [], lines, [""], text[place:]]
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


def describe_parameters(params: _Params) -> dict[str, dict[str, Any]]:
    """Return the default, the JSON Schema (type and range) and the meaning of each keyword.

    They are plain JSON values, under `default`, `type` and `description`.
    """
    schema = params.model_json_schema()["properties"]
    described = {}
    for name, default in parameter_defaults(params).items():
        known = ("title", "default", "description")
        described[name] = {
            "default": list(default) if isinstance(default, tuple) else default,
            "type": {key: value for key, value in schema[name].items() if key not in known},
            "description": params.model_fields[name].description or "",
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


def reject_unknown(known: Iterable[str], name: str, keywords: Iterable[str]) -> None:
    """Raise `UsageError`, with the near ones, if `name` does not take one of `keywords`."""
    known = list(known)
    for keyword in keywords:
        if keyword not in known:
            raise UsageError(unknown_name(f"keyword of {name}", keyword, known))


def check_parameters(params: type[_P], values: Mapping[str, Any]) -> _P:
    """Return the checked keywords, or raise `UsageError` with one line that says what is wrong."""
    plain = {name: plain_value(value) for name, value in values.items()}
    try:
        return params(**plain)
    except ValidationError as error:
        raise invalid_value(error, plain) from None


def plain_value(value: Any) -> Any:
    """Return numbers of numpy as Python's, also inside a tuple or list."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (tuple, list)):
        return type(value)(plain_value(item) for item in value)
    return value
