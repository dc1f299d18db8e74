"""One detector of the categories of a run, and how well it recognises the product of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..calibration import clopper_pearson
from ..models import Detector
from ..models.many_products import ManyProducts
from ..models.product_recognition import Product, Recogniser
from ..models.training_images import Progress
from ..runs import JointReport, ProductReport, RecognisedReport, ShareReport, shown
from .measure import Task

#: The fitted detectors by category, each with what it was fitted on.
Products = Mapping[str, tuple[Detector, Task]]


def join_products(products: Products, on_error: str, progress: Progress | None) -> ManyProducts:
    """Make one detector of those of the categories; errors are those of `ManyProducts.of`."""
    return ManyProducts.of(
        {name: detector for name, (detector, _) in products.items()},
        {name: task.train for name, (_, task) in products.items()},
        on_error="skip" if on_error == "skip" else "raise",
        progress=progress,
    )


def measure_recognition(many: ManyProducts, products: Products) -> JointReport:
    """Return what the joint detector takes the test images of each category for."""
    recogniser = many.recogniser_
    per_product, right, unreadable, total = {}, 0, 0, 0
    for name, (_, task) in products.items():
        paths = [str(sample.path) for sample in task.test]
        vectors, read = many.pooled_readable(paths)
        unreadable += len(paths) - len(read)
        found = [recogniser.recognise(one) for one in vectors]
        right += sum(one.name == name for one in found)
        total += len(found)
        labels = [task.test[position].label for position in read]
        left_out = None
        if len(products) > 2:
            rest: Recogniser = recogniser.without(name)
            left_out = [rest.recognise(one) for one in vectors]
        calibration = recogniser.calibrations[name]
        per_product[shown(name)] = ProductReport(
            recognised_by=len(recogniser.products[name].vectors),
            promised_unknown_rate=calibration.promised_false_alarm_rate,
            good=_recognised(name, [p for p, label in zip(found, labels) if label == 0]),
            defective=_recognised(name, [p for p, label in zip(found, labels) if label == 1]),
            unknown_if_left_out=None
            if left_out is None
            else _share([one.name is None for one in left_out]),
            may_be_good_if_left_out=None
            if left_out is None
            else _share([one.as_good for one in left_out]),
        )
    height, width = many.recognition_size_
    return JointReport(
        products=[shown(name) for name in products],
        unknown_rate=many.unknown_rate,
        recognition_size=(height, width),
        accuracy=_share(np.arange(total) < right),
        unreadable=unreadable,
        per_product=per_product,
        saved_model=None,
    )


def _recognised(name: str, found: Sequence[Product]) -> RecognisedReport:
    return RecognisedReport(
        right=_share([one.name == name for one in found]),
        wrong=_share([one.name not in (name, None) for one in found]),
        unknown=_share([one.name is None for one in found]),
        unlike_good=_share([one.name is not None and not one.as_good for one in found]),
    )


def _share(which: Sequence[bool] | np.ndarray) -> ShareReport:
    found = clopper_pearson(int(np.sum(which)), len(which))
    return ShareReport(
        events=found.events,
        images=found.trials,
        rate=found.rate,
        low=found.low,
        high=found.high,
    )
