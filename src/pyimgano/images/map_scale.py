"""What the values of an anomaly map stand for: multiples of the threshold that decides.

The decision about an image is made by its score, and a score is more than the peak of the map in
some methods: context counts, or neighbours do. So a fixed threshold of pixels would outline places
in images that are called good, and none in some that are called defective. Instead each map is
read on a scale of its own image: the strongest place stands for the score, a place as in a normal
image for nothing, and what lies between for its share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from typing_extensions import Self

#: A region around a place at the threshold ends where the map falls below this multiple.
REGION_EDGE = 0.5
# Multiples beyond these say no more, and float32 could not hold them all. A score far below a
# negative threshold has a multiple below 0.
_LEAST_RATIO = 1e-6
_LARGEST_RATIO = 1e6


@dataclass(frozen=True)
class MapScale:
    """A straight scale from values of a map to multiples of the threshold.

    Attributes
    ----------
    normal
        The value that stands for 0: that of a place in a normal image.
    line
        The value that stands for 1.0, above `normal`. A map reaches it where its image is called
        defective, and nowhere where it is called good.
    """

    normal: float
    line: float

    @classmethod
    def of(
        cls,
        peak: float,
        *,
        score: float,
        threshold: float,
        normal: float = 0.0,
    ) -> Self:
        """Return the scale on which the peak of a map has the multiple of its image's score.

        The multiple is `pyimgano.calibration.score_ratio` of the score, score / threshold where
        the threshold is positive. So `peak >= scale.line` if and only if `score >= threshold`,
        also in float32.

        Parameters
        ----------
        peak
            The largest float32 value of the map where pixels count.
        score, threshold
            The image is called defective if score >= threshold. Finite.
        normal
            The mean of the pixels of normal images (`PixelCalibration.mean`).
        """
        defective = score >= threshold
        ratio = 1.0 + (score - threshold) / (abs(threshold) or 1.0)
        ratio = min(max(ratio, _LEAST_RATIO), _LARGEST_RATIO)
        span = peak - normal
        if span <= 0.0:
            # The map holds nothing but what is normal, and does not explain the score.
            unit = max(abs(peak), abs(normal), 1.0)
            return cls(peak - unit, peak) if defective else cls(normal, normal + unit)
        line = normal + span / ratio
        if defective:  # rounding must not decide otherwise than the score does
            return cls(normal, min(max(line, float(np.nextafter(normal, np.inf))), peak))
        above = np.nextafter(np.float32(peak), np.float32(np.inf))
        return cls(normal, max(line, float(above)))

    def value(self, multiple: float) -> float:
        """Return the value of the map that stands for a multiple of the threshold."""
        if multiple == 1.0:
            return self.line  # to the bit, for decisions hang on it
        return self.normal + multiple * (self.line - self.normal)

    def multiple(self, value: float) -> float:
        """Return the multiple of the threshold that a value of the map stands for."""
        return float(self.multiples(np.asarray(value, np.float32)))

    def multiples(self, anomaly_map: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the multiples of the threshold, of the map's shape, float32."""
        span = max(self.line - self.normal, 1e-30)
        with np.errstate(over="ignore"):
            found = (anomaly_map - self.normal) / span
        return np.asarray(np.clip(found, -_LARGEST_RATIO, _LARGEST_RATIO), np.float32)
