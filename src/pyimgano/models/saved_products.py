"""The folder of a detector of many products, and what it is brought back from.

`detector.json` holds the document of each product's detector as a single one has it. The arrays of
each are in a file of its own, the weights of the network, if they are saved, are there once, and
what the products are told apart by is in `recognition.safetensors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, SavedModelError
from .detector import Detector
from .product_recognition import MOST_IMAGES, ProductImages, Recogniser, require_alike
from .saved import (
    ARRAYS,
    BACKBONE,
    DOCUMENT,
    RECOGNITION,
    SCHEMA_VERSION,
    ProductsDocument,
    SavedDocument,
    SavedProduct,
    product_arrays,
    read_tensors,
    serialized,
)
from .saving import saved_files

if TYPE_CHECKING:
    from .many_products import ManyProducts


def product_files(many: ManyProducts, include_backbone: bool) -> dict[str, bytes]:
    """Return the files of a fitted detector of many products by name, the document last.

    Raises
    ------
    UsageError
        It cannot be saved.
    DataError
        Some numbers are not finite.
    """
    files: dict[str, bytes] = {}
    products: list[SavedProduct] = []
    arrays: dict[str, Any] = {}
    version = ""
    for number, (name, detector) in enumerate(many.products_.items()):
        own = saved_files(detector, include_backbone)
        document = SavedDocument.model_validate_json(own[DOCUMENT])
        version = document.pyimgano_version
        files[product_arrays(number)] = own[ARRAYS]
        if BACKBONE in own:  # the same for all
            files[BACKBONE] = own[BACKBONE]
        products.append(SavedProduct(name=name, detector=document))
        recognised_by = many.recogniser_.products[name]
        arrays[f"{number}.vectors"] = recognised_by.vectors
        arrays[f"{number}.distances"] = recognised_by.distances
    document_of_all = ProductsDocument(
        schema_version=SCHEMA_VERSION,
        kind="pyimgano-products",
        pyimgano_version=version,
        saved_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        unknown_rate=many.unknown_rate,
        recognition_size=list(many.recognition_size_),
        recognition=serialized(RECOGNITION, arrays, files),
        products=products,
    )
    files[DOCUMENT] = (document_of_all.model_dump_json(indent=2) + "\n").encode()
    return files


def restore_recogniser(
    folder: Path, document: ProductsDocument, detectors: Mapping[str, Detector]
) -> tuple[Recogniser, tuple[int, int]]:
    """Return what told the products apart, and the (height, width) that it looks at images at.

    Raises
    ------
    SavedModelError
        The products have the same name, or are not of one kind; or the arrays are not theirs.
    """
    if len(detectors) != len(document.products):
        raise SavedModelError(f"{folder}: two products have the same name")
    if any(one.detector.tiles is not None for one in document.products):
        raise SavedModelError(f"{folder}: a product whose detector works by tiles")
    try:
        size = require_alike(detectors)
    except DataError as error:
        raise SavedModelError(f"{folder}: {error}") from None
    if size != tuple(document.recognition_size):
        raise SavedModelError(f"{folder}: recognition_size: must be {list(size)}")
    path = folder / RECOGNITION
    arrays = read_tensors(path, document.recognition)
    backbone = next(iter(detectors.values())).backbone_
    assert backbone is not None
    widths = [shape[-1 if backbone.of_patches else 1] for shape in backbone.shapes(size)]
    products = {}
    for number, name in enumerate(detectors):
        vectors = arrays.pop(f"{number}.vectors", None)
        distances = arrays.pop(f"{number}.distances", None)
        if (
            vectors is None
            or vectors.dtype != np.float32
            or vectors.ndim != 2
            or vectors.shape[1] != sum(widths)
            or not 2 <= len(vectors) <= MOST_IMAGES
        ):
            raise SavedModelError(
                f"{path}: {number}.vectors, float32 of shape (2 to {MOST_IMAGES}, {sum(widths)}), "
                "is missing"
            )
        if (
            distances is None
            or distances.dtype != np.float64
            or distances.ndim != 1
            or not 2 <= len(distances) <= len(vectors)
            or (distances < 0).any()
        ):
            raise SavedModelError(f"{path}: {number}.distances, float64 of 0 or more, is missing")
        products[name] = ProductImages(vectors, distances)
    if arrays:
        raise SavedModelError(f"{path}: an unexpected array {next(iter(arrays))!r}")
    return Recogniser(products, document.unknown_rate), size
