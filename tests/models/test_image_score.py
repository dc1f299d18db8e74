"""The image score of `vision_patchcore`: the largest distance, or the mean of the top share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyimgano.models import create_model, load_model
from pyimgano.models.few_images import mean_of_top
from pyimgano.models.on_backbone import features_of
from pyimgano.models.power_means import joint_score
from pyimgano.pipelines import export_detector
from tests.conftest import picture

GOOD = [picture(i) for i in range(8)]
SHOWN = [picture(60), picture(61, spot=True)]


def make(**keywords: Any) -> Any:
    given = {"resize": (64, 64), "device": "cpu", **keywords}
    return create_model("vision_patchcore", **given).fit(GOOD)


def counted(detector: Any) -> list[torch.Tensor]:
    """The patches (B, k, D) of the images shown, near and around."""
    learned = detector.learned_
    return [some.flatten(1, 2) for some in features_of(learned.backbone, SHOWN)]


def wanted(distances: torch.Tensor, way: str) -> np.ndarray:
    ordered = np.sort(distances.numpy().astype(np.float64), axis=1)
    count = 1 if way == "largest" else max(1, round(0.1 * ordered.shape[1]))
    return ordered[:, -count:].mean(axis=1)


@pytest.mark.parametrize("way", ["largest", "top_share"])
def test_the_papers_recipe(way: str) -> None:
    detector = make(recipe="paper", image_score=way, top_share=0.1)
    distances, _ = detector.learned_.nearest(counted(detector)[0])
    found = detector.decision_function(SHOWN)
    np.testing.assert_allclose(found, wanted(distances, way), rtol=1e-5)
    assert not np.allclose(found, make(recipe="paper").decision_function(SHOWN))


@pytest.mark.parametrize("way", ["largest", "top_share"])
def test_the_whitened_recipe(way: str) -> None:
    detector = make(recipe="whitened", image_score=way, top_share=0.1)
    near, context = detector.learned_.memories.distances(counted(detector))
    assert context is not None
    each = [torch.from_numpy(wanted(one, way)) for one in (near, context)]
    found = detector.decision_function(SHOWN)
    np.testing.assert_allclose(found, joint_score(*each), rtol=1e-5)
    # the unit is what it is in a good image, so that good ones lie around 1
    assert 0.5 < np.median(detector.decision_scores_) < 2


@pytest.mark.parametrize("recipe", ["paper", "whitened"])
def test_it_is_saved_and_exported(recipe: str, tmp_path: Path) -> None:
    detector = make(recipe=recipe, image_score="top_share", top_share=0.05)
    detector.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    np.testing.assert_array_equal(
        again.decision_function(SHOWN), detector.decision_function(SHOWN)
    )  # fmt: skip
    check = export_detector(again, tmp_path / "export", format="torch", check_images=SHOWN).check
    assert check.score.relative < 1e-4


def test_the_mean_of_the_top_is_at_most_the_largest() -> None:
    values = torch.rand(3, 50)
    assert (mean_of_top(values, 0.1) <= values.amax(dim=1)).all()
