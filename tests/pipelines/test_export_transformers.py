"""Exports of the methods on vision transformers: as the detector, in every format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyimgano.errors import UsageError
from pyimgano.images import resize_image
from pyimgano.pipelines import export_detector
from pyimgano.pipelines.export import formats
from tests.models.test_transformer_methods import SIZE, images, make, spoilt, tiny  # noqa: F401

MODELS: dict[str, dict[str, Any]] = {
    "vision_anomalydino": {"turns": 1, "object_mask": False},
    "vision_subspace": {"turns": 0},
    "vision_rad": {"similar_images": 2},
    "vision_dinomaly": {"backbone": "dinov2_tiny_reg", "steps": 2},
}
LEFT = [[[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]]
SHOWN = [*images(2, seed=3), spoilt(images(1, seed=4)[0])]


@pytest.mark.parametrize("form", ["openvino", "onnx", "torch"])
@pytest.mark.parametrize("model", MODELS)
def test_every_format_does_as_the_detector(model: str, form: str, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnx")
    detector = make(model, **MODELS[model]).fit(images(4))
    check = export_detector(detector, tmp_path / "model", format=form, check_images=SHOWN).check
    assert check.images == 3 and check.labels_differ == 0
    assert check.score.relative < 1e-4 and check.anomaly_map.relative < 1e-4
    program, _ = formats.FORMATS[form].open(tmp_path / "model")
    batch = np.stack([resize_image(image, SIZE) for image in SHOWN])
    score, anomaly_map, label = program(batch)  # the number of images is free
    np.testing.assert_allclose(score, detector.decision_function(SHOWN), rtol=1e-4)
    np.testing.assert_allclose(
        anomaly_map, detector.predict_anomaly_map(SHOWN), rtol=1e-3, atol=1e-4
    )
    assert label.tolist() == detector.predict(SHOWN).tolist()


@pytest.mark.parametrize("model", MODELS)
def test_a_region_of_interest(model: str, tmp_path: Path) -> None:
    detector = make(model, roi=LEFT, **MODELS[model]).fit(images(4))
    folder = tmp_path / "model"
    check = export_detector(detector, folder, format="torch", check_images=SHOWN).check
    assert check.score.relative < 1e-4 and check.anomaly_map.relative < 1e-4
    program, _ = formats.FORMATS["torch"].open(folder)
    assert (program(SHOWN[2][None])[1][:, :, 56:] == 0).all()


@pytest.mark.parametrize("radius", [0, 2, 9])
def test_places_of_any_radius(radius: int, tmp_path: Path) -> None:
    detector = make("vision_rad", radius=radius, similar_images=3).fit(images(4))
    check = export_detector(detector, tmp_path / "m", format="torch", check_images=SHOWN).check
    assert check.score.relative < 1e-4


def test_a_mask_of_the_object_is_refused(tmp_path: Path) -> None:
    detector = make("vision_anomalydino", turns=1).fit(images(4))
    if detector.object_mask_ is None:
        detector.learned_.object_mask_ = object()
    with pytest.raises(UsageError, match="fit it with object_mask=False"):
        export_detector(detector, tmp_path / "model", check_images=SHOWN)
    assert not (tmp_path / "model").exists()
