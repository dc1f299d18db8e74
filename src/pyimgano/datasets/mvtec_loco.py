"""MVTec LOCO AD: structural and logical anomalies, several masks an image.

Bergmann, Batzner, Fauser, Sattlegger, Steger, "Beyond Dents and Scratches: Logical Constraints
in Unsupervised Anomaly Detection and Localization", IJCV 2022.

    <category>/train/good, validation/good
    <category>/test/{good,logical_anomalies,structural_anomalies}
    <category>/ground_truth/<kind>/<stem>/000.png, 001.png, ...
    <category>/defects_config.json

Images may lie one folder deeper (`test/<kind>/<folder>/<stem>.png`), their masks then in
`ground_truth/<kind>/<folder>`; a mask may also be the one file `<stem>.png` or `<stem>_mask.png`.

Each mask file is one defect; the value of its pixels says which kind, and defects_config.json
from which overlap on that kind counts as found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from ..errors import DataError
from ..untrusted_files import quoted, read_regular, reason_of_failure
from .folders import good_kinds, good_samples, train_samples
from .layout import Category, Layout, Sample, Saturation, category_names
from .listing import Masks, image_files, subfolders
from .stay_inside import require_inside
from .words import words

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

    reads = (
        "the images in train/good, validation/good, test/<kind> and ground_truth/<kind>, and in "
        "the folders directly in these"
    )
    official: ClassVar[frozenset[str]] = words(
        "breakfast_box juice_bottle pushpins screw_bag splicing_connectors"
    )

    def list_categories(self, root: Path) -> list[str]:
        return category_names(
            root, ("train/good", "train", "test"), self.official, layout=self.name
        )

    def load(self, root: Path, category: str) -> Category:
        self.require_category(root, category)
        folder = root / category
        train = train_samples(folder / "train", "good", deeper=True)
        test = _test_samples(folder / "test", folder / "ground_truth")
        used = {mask for sample in test for mask in sample.mask_paths}
        strays = [path for path in _masks_below(folder / "ground_truth") if path not in used]
        require_inside(folder / _CONFIG, root, self.allow_outside)
        saturation = _read_config(folder / _CONFIG)
        notes = () if saturation is not None else (f"{folder / _CONFIG}: no such file, so no sPRO",)
        return Category(
            category,
            train,
            tuple(test),
            validation=tuple(good_samples(folder / "validation", deeper=True)),
            saturation=saturation,
            stray_masks=tuple(strays),
            notes=notes,
            folder=folder,
        )


def _test_samples(test: Path, ground_truth: Path) -> list[Sample]:
    """Return the test images of all kinds, each with its masks."""
    good = good_kinds(test)
    samples = []
    for kind in subfolders(test):
        for folder in (kind, *subfolders(kind)):
            if kind in good:
                samples += [Sample(path, 0, "good") for path in image_files(folder)]
                continue
            masks = ground_truth / folder.relative_to(test)
            beside = Masks(masks)
            samples += [
                # as published a folder of masks for each image, elsewhere one file
                Sample(path, 1, kind.name, tuple(own) if own else beside.of(path.stem))
                for path in image_files(folder)
                for own in [image_files(masks / path.stem)]
            ]
    return samples


def _masks_below(ground_truth: Path) -> list[Path]:
    """Return the mask files at the depths at which masks are looked for."""
    found = image_files(ground_truth)
    level = [ground_truth]
    for _ in ("kind", "folder or image", "image"):
        level = [folder for above in level for folder in subfolders(above)]
        found += [path for folder in level for path in image_files(folder)]
    return found


class _Entry(BaseModel):
    """One kind of defect; the names of the fields are the file's."""

    defect_name: str
    pixel_value: Annotated[int, Field(ge=1, le=255)]
    saturation_threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    relative_saturation: bool


def _read_config(path: Path) -> Mapping[int, Saturation] | None:
    """Read what the file says, by pixel value; None if there is no such file."""
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
