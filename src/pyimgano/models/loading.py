"""Loading a saved detector: nothing in the folder is run, and nothing is taken on trust."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import SavedModelError, UsageError
from .detector import Detector
from .many_products import ManyProducts
from .registry import model_entry
from .saved import ARRAYS, ProductsDocument, SavedDocument, product_arrays, read_arrays, read_saved
from .saved_products import restore_recogniser
from .saving import restore_detector
from .tiled import TiledDetector


def load_model(
    folder: str | Path,
    *,
    device: str | None = None,
    weights: str | Path | None = None,
    allow_outside: bool = False,
) -> Detector | TiledDetector | ManyProducts:
    """Load a detector as `Detector.save`, `TiledDetector.save` or `ManyProducts.save` left it.

    Scores and maps are those of the saved detector to the bit on the same engine and machine;
    on another engine a warning says so. The weights of the backbone are taken from `weights`,
    else from the folder if they were saved with it, else from where they came from when it was
    fitted: the installed package, the seed, or, with `allow_outside`, the file. They must be the
    same.

    Parameters
    ----------
    folder
        Of `Detector.save`.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`; None takes what was asked for when it was fitted.
    weights
        The file of the backbone's weights.
    allow_outside
        Whether a file of weights that the saved detector names is read: it may name any file of
        this machine.

    Returns
    -------
    Detector, TiledDetector or ManyProducts
        Fitted. Its keywords are those of the fit, with `device` and `weights` as they are now,
        the region of interest itself for `roi`, and no `cache_dir`.

    Raises
    ------
    SavedModelError
        No saved detector, one of a newer version, or one that is damaged or was tampered with;
        a model that is not known here; weights that are missing or others. The line says which.
    UsageError
        A `device` that is not there, or an argument that does not apply to the model.
    """
    folder = Path(os.path.expanduser(folder))  # noqa: PTH111 -- an unknown user is no error
    document = read_saved(folder)

    def restored(one: SavedDocument, file: str) -> Detector:
        arrays = read_arrays(folder, one, file)
        try:
            cls = model_entry(one.model).detector
        except UsageError as error:
            raise SavedModelError(f"{folder}: {error}") from None
        detector: Detector = restore_detector(
            cls,
            folder,
            one,
            arrays,
            device=device,
            weights=weights,
            allow_outside=allow_outside,
        )
        return detector

    if isinstance(document, ProductsDocument):
        detectors = {
            one.name: restored(one.detector, product_arrays(number))
            for number, one in enumerate(document.products)
        }
        recogniser, size = restore_recogniser(folder, document, detectors)
        return ManyProducts.restored(detectors, recogniser, size)
    detector = restored(document, ARRAYS)
    if document.tiles is None:
        return detector
    return TiledDetector.restored(detector, document.tiles, str(folder))
