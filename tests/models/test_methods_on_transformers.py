"""Methods that take any backbone, on a transformer with blocks by number and by depth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.models.test_transformer_methods import images, make, spoilt, tiny  # noqa: F401

METHODS: dict[str, dict[str, Any]] = {
    "vision_patchcore": {"recipe": "paper"},
    "vision_patchcore whitened": {"recipe": "whitened"},
    "vision_softpatch": {},
    "vision_padim": {"d_reduced": 8},
    "vision_dfm": {},
    "vision_spade": {},
    "vision_mahalanobis": {},
    "vision_knn": {},
    "vision_lof": {},
    "vision_ocsvm": {},
    "vision_iforest": {"n_estimators": 8},
    "vision_pca": {},
    "vision_kde": {},
    "vision_gmm": {},
    "vision_ecod": {},
    "vision_copod": {},
    "vision_hbos": {},
}
LAYERS = {"number": ("block1", "block3.normed"), "depth": ("0.5", "1.0.normed")}


@pytest.mark.parametrize("method", METHODS)
def test_blocks_by_number_and_by_depth_are_the_same(method: str) -> None:
    shown = [*images(2, seed=3), spoilt(images(1, seed=4)[0])]
    found = {}
    for way, layers in LAYERS.items():
        detector = make(method.split(maxsplit=1)[0], layers=layers, **METHODS[method]).fit(
            images(8)
        )
        assert detector.describe()["backbone"]["layers"] == list(LAYERS["number"])
        found[way] = detector.decision_function(shown)
        assert np.isfinite(found[way]).all()
    np.testing.assert_array_equal(found["number"], found["depth"])
    assert found["depth"][2] > found["depth"][:2].max()
