"""Spots of light lie all over the frame, brighten alone, and depend on nothing but the draws."""

import numpy as np

from pyimgano.images import distort


def test_spots_lie_all_over_the_frame_and_only_brighten():
    image = np.full((90, 120, 3), 100, np.uint8)
    lit = distort.spots(image, np.random.default_rng(3), strength=0.1, radius=0.04)
    added = lit.astype(int) - 100
    assert lit.shape == image.shape and lit.dtype == np.uint8
    assert added.min() >= 0 and 15 < added.max() <= 30
    quarters = [added[r : r + 45, c : c + 60] for r in (0, 45) for c in (0, 60)]
    assert all(quarter.max() > 6 for quarter in quarters)
    assert distort.is_grey(lit)
    again = distort.spots(image, np.random.default_rng(3), strength=0.1, radius=0.04)
    assert np.array_equal(lit, again)
