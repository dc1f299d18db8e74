"""One detector, eight threads: every score and map is that of one thread, to the bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from pyimgano.inference import infer
from pyimgano.models import create_model
from pyimgano.models.tiled import TiledDetector
from tests.conftest import picture

_THREADS = 8
_SIZE: dict[str, Any] = {"resize": (64, 64)}


def _made(name: str) -> Any:
    if name == "tiles":
        return TiledDetector(create_model("vision_patchcore", **_SIZE), tile_size=48)
    return create_model(name, **_SIZE)


@pytest.mark.parametrize(
    "name", ["vision_patchcore", "vision_padim", "vision_knn", "vision_stfpm", "tiles"]
)
def test_eight_threads_get_the_bits_that_one_gets(name: str) -> None:
    keywords: dict[str, Any] = {"steps": 2} if name == "vision_stfpm" else {}
    detector = _made(name)
    detector.set_params(**keywords)
    detector.fit([picture(seed) for seed in range(6)])
    images = [picture(100 + seed, spot=seed % 2 == 0) for seed in range(5)]
    alone = infer(detector, images, include_maps=detector.has_maps, regions=detector.has_maps)
    together = Barrier(_THREADS)

    def score(number: int) -> list[Any]:
        together.wait(60)
        order = [(number + step) % len(images) for step in range(len(images))]
        found: list[Any] = [None] * len(images)
        size = 1 + number % 3  # one after another, or some together
        for start in range(0, len(order), size):
            some = order[start : start + size]
            chosen = [images[one] for one in some]
            results = infer(
                detector, chosen, include_maps=detector.has_maps, regions=detector.has_maps
            )
            for one, result in zip(some, results):
                found[one] = result
        return found

    with ThreadPoolExecutor(_THREADS) as pool:
        for results in pool.map(score, range(_THREADS)):
            for expected, result in zip(alone, results):
                assert result.score == expected.score and result.label == expected.label
                assert result.regions == expected.regions
                assert result.p_value == expected.p_value
                if expected.anomaly_map is not None:
                    np.testing.assert_array_equal(result.anomaly_map, expected.anomaly_map)
