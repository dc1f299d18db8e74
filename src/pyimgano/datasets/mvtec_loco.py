"""MVTec LOCO AD: structural and logical anomalies, several masks an image.

Bergmann, Batzner, Fauser, Sattlegger, Steger, "Beyond Dents and Scratches: Logical Constraints
in Unsupervised Anomaly Detection and Localization", IJCV 2022.

    <category>/train/good, validation/good
    <category>/test/{good,logical_anomalies,structural_anomalies}
    <category>/ground_truth/<kind>/<stem>/000.png, 001.png, ...
    <category>/defects_config.json

Each mask file is one defect; the value of its pixels says which kind, and defects_config.json
from which overlap on that kind counts as found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from ..errors import DataError
from ..foreign import quoted, read_regular, reason_of_failure
from .folders import good_samples, samples_by_kind, train_samples
from .inside import require_inside
from .layout import Category, Layout, Saturation, category_names
from .listing import MaskFolders

_CONFIG = "defects_config.json"
# The authors' have some hundreds.
_CONFIG_BYTES = 2**20


class MVTecLOCOLayout(Layout):
    """sPRO and image AUROC, for logical and structural anomalies apart."""

    name = "mvtec_loco"
    has_validation = True
    own_metrics: ClassVar[tuple[str, ...]] = ("auroc", "spro")
    aupro_limit = 0.05
    kinds_apart = True

    def list_categories(self, root: Path) -> list[str]:
        return category_names(root, ("train/good", "train", "test"))

    def load(self, root: Path, category: str) -> Category:
        self.require_category(root, category)
        folder = root / category
        train = train_samples(folder / "train" / "good")
        test, strays = samples_by_kind(folder / "test", folder / "ground_truth", MaskFolders)
        require_inside(folder / _CONFIG, root, self.allow_outside)
        saturation = _read_config(folder / _CONFIG)
        notes = () if saturation is not None else (f"{folder / _CONFIG}: no such file, so no sPRO",)
        return Category(
            category,
            train,
            tuple(test),
            validation=tuple(good_samples(folder / "validation" / "good")),
            saturation=saturation,
            stray_masks=tuple(strays),
            notes=notes,
        )


class _Entry(BaseModel):
    """One kind of defect; the names of the fields are the file's."""

    defect_name: str
    pixel_value: Annotated[int, Field(ge=1, le=255)]
    saturation_threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    relative_saturation: bool


def _read_config(path: Path) -> Mapping[int, Saturation] | None:
    """By pixel value; None if there is no such file."""
    try:
        entries = TypeAdapter(list[_Entry]).validate_json(read_regular(path, _CONFIG_BYTES))
    except FileNotFoundError:
        return None
    except ValidationError as error:  # which is a ValueError
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of_failure(error)})") from error
    if not entries:
        raise DataError(f"{path}: lists no defect")
    found: dict[int, Saturation] = {}
    for entry in entries:
        if entry.relative_saturation and entry.saturation_threshold > 1:
            raise DataError(
                f"{path}: {quoted(entry.defect_name)}: a relative saturation_threshold must lie in "
                f"(0, 1], got {entry.saturation_threshold:g}"
            )
        if entry.pixel_value in found:
            raise DataError(f"{path}: pixel_value {entry.pixel_value} stands there twice")
        found[entry.pixel_value] = Saturation(entry.saturation_threshold, entry.relative_saturation)
    return found
