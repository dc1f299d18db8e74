"""Where a detector to export comes from, and the images to check it on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from ...datasets.listing import image_files
from ...errors import DataError, UsageError
from ...models import Detector
from ...runs.schema import ImageRecord
from ...untrusted_files import read_regular, reason_of_failure

# Images of a run that an export is checked on.
_OF_A_RUN = 16


def load_detector(
    *,
    from_run: Path | None = None,
    category: str | None = None,
    model_dir: Path | None = None,
    device: str = "cpu",
    allow_outside: bool = False,
    product: str | None = None,
) -> Detector:
    """Load the saved detector of a run, or of a folder; `allow_outside` as `load_model` has it.

    Of a detector of many products it is that of `product`.

    Raises
    ------
    UsageError
        Not one of the two, or a category without a run.
    DataError
        There is none, or it cannot be loaded.
    """
    from ... import models, runs

    if (from_run is None) == (model_dir is None):
        raise UsageError("give either --from-run RUN or --model-dir DIR")
    if from_run is None and category is not None:
        raise UsageError("--category goes with --from-run")
    if from_run is not None:
        folder = runs.find_model(from_run, category)
    else:
        assert model_dir is not None
        folder = model_dir
    detector = models.load_model(folder, device=device, allow_outside=allow_outside)
    if isinstance(detector, models.ManyProducts):
        if product is None:
            raise UsageError(
                f"{folder}: a detector of many products is exported one product at a time; name it "
                f"with --product: {', '.join(detector.products_)}"
            )
        return detector.product(product)
    if product is not None:
        raise UsageError("--product: the detector is of one product and knows no names")
    if not isinstance(detector, models.Detector):
        raise UsageError(f"{folder}: a detector that works by tiles cannot be exported")
    return detector


def check_images_in(places: Iterable[Path]) -> list[Path]:
    """Files as they are, and the image files directly in folders, sorted by name.

    Raises
    ------
    UsageError
        A place that is not there, or a folder without images.
    """
    found: list[Path] = []
    for place in places:
        if not place.is_dir():
            if not place.exists():
                raise UsageError(f"--check {place}: no such file or folder")
            found.append(place)
            continue
        inside = image_files(place)
        if not inside:
            raise UsageError(f"--check {place}: holds no images (subfolders are not looked into)")
        found += inside
    return found


def check_images_of_run(run: Path, category: str | None = None) -> list[Path]:
    """Up to 16 images that a run has scored, evenly spread, good and defective ones.

    Parameters
    ----------
    run
        A run directory.
    category
        Needed where the run has several.

    Raises
    ------
    UsageError
        None of them is there any more, or which category is meant is not said.
    DataError
        A file of records that cannot be read.
    """
    by_category: dict[str, list[Path]] = {}
    for path in sorted(run.glob("categories/*/per_image.jsonl")):
        for record in _records(path):
            if record.score is not None:
                by_category.setdefault(record.category, []).append(Path(record.input))
    if category is None and len(by_category) > 1:
        raise UsageError(f"{run}: which category? give --category: {', '.join(by_category)}")
    scored = by_category.get(category, []) if category is not None else []
    if category is None:
        scored = [path for paths in by_category.values() for path in paths]
    there = [path for path in scored if path.is_file()]
    if not there:
        raise UsageError(f"{run}: none of the images it scored is there; give images with --check")
    step = max(1.0, len(there) / _OF_A_RUN)
    return [there[int(i * step)] for i in range(min(_OF_A_RUN, len(there)))]


def _records(path: Path) -> Iterator[ImageRecord]:
    try:
        lines = read_regular(path).split(b"\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of_failure(error)})") from error
    for number, line in enumerate(lines[:-1], 1):  # after the last newline: nothing, or a cut line
        try:
            yield ImageRecord.model_validate_json(line)
        except ValidationError:
            raise DataError(f"{path}: line {number} is not a record of an image") from None
