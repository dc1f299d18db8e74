"""On a GPU as on a processor, within rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyimgano.models import create_model
from pyimgano.models.neighbors import MemoryBank, greedy_coreset

from .conftest import picture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

TRAIN = [picture(i) for i in range(8)]
TEST = [picture(50 + i, spot=i % 2 == 1) for i in range(6)]


@pytest.mark.parametrize("recipe", ["whitened", "paper"])
def test_scores_and_maps_are_those_of_a_processor(recipe: str) -> None:
    def fitted(device: str):  # type: ignore[no-untyped-def]
        keywords = {"recipe": recipe, "device": device, "engine": "torch", "resize": (128, 128)}
        return create_model("vision_patchcore", **keywords).fit(TRAIN)

    here, there = fitted("cpu"), fitted("cuda")
    expected = here.decision_function(TEST)
    np.testing.assert_allclose(there.decision_function(TEST), expected, rtol=1e-2)
    np.testing.assert_array_equal(there.predict(TEST), here.predict(TEST))
    maps = here.predict_anomaly_map(TEST)
    np.testing.assert_allclose(
        there.predict_anomaly_map(TEST), maps, rtol=1e-2, atol=1e-2 * float(maps.max())
    )


def test_searches_and_selections_are_those_of_a_processor() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(6000, 64, generator=generator)
    queries = torch.randn(3000, 64, generator=generator)
    image = torch.arange(6000) // 60
    asked = torch.arange(3000) // 100
    distances, rows = MemoryBank(points, image).search(queries, asked)
    far, found = MemoryBank(points.cuda(), image.cuda()).search(queries.cuda(), asked.cuda())
    torch.testing.assert_close(far.cpu(), distances, rtol=1e-5, atol=0)
    # sums of squares in another order may settle a tie otherwise
    assert (found.cpu() == rows).float().mean() > 0.999
    picks = greedy_coreset(points, 300, start=7)
    assert (greedy_coreset(points.cuda(), 300, start=7).cpu() == picks).all()
