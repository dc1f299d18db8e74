"""The operating point of a fitted detector: its threshold, and where it comes from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from ..calibration import (
    Calibration,
    MapStatistics,
    ScoreScale,
    calibrate,
    calibration_at,
    raise_again,
)
from ..errors import NotFittedError

if TYPE_CHECKING:
    from typing_extensions import Self

_T = TypeVar("_T", bound="SettableThreshold")


class _Threshold:
    """The attribute `threshold_`: where it is set, `calibration_` says so.

    Otherwise a detector would decide by one threshold and document another.
    """

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: SettableThreshold, owner: type) -> float: ...

    def __get__(self, instance: SettableThreshold | None, owner: type) -> Self | float:
        if instance is None:
            return self
        try:
            value: float = vars(instance)["threshold_"]
        except KeyError:
            raise AttributeError(f"{owner.__name__} has no threshold_ before fit") from None
        return value

    def __set__(self, instance: SettableThreshold, value: float) -> None:
        known = vars(instance).get("calibration_")
        if known is not None and value != known.threshold:
            instance._take_calibration(_given(instance, value, "threshold_ was set"))
            return
        vars(instance)["threshold_"] = value

    def __delete__(self, instance: SettableThreshold) -> None:
        del vars(instance)["threshold_"]


class SettableThreshold:
    """What detectors and tiled detectors have in common: the threshold can be moved.

    Nothing is learned or scored anew for that.
    """

    #: `predict` calls an image defective if its score is greater than or equal to this.
    threshold_ = _Threshold()
    calibration_: Calibration
    decision_scores_: npt.NDArray[np.float64]

    def set_threshold(self: _T, value: float, *, origin: str = "a value that was given") -> _T:
        """Decide by `value` from now on, and say so in `calibration_`.

        Its false-alarm rate is counted among `decision_scores_`.

        Parameters
        ----------
        value
            Finite. A score greater than or equal to it is called defective.
        origin
            Where it comes from, in words, for `calibration_` and the saved detector.

        Raises
        ------
        NotFittedError
            There is nothing to decide yet.
        UsageError
            `value` is not a finite number.
        """
        self._require_threshold()
        self._take_calibration(_given(self, value, origin))
        return self

    def recalibrate(self: _T, *, quantile: float | None = None, tail: str | None = None) -> _T:
        """Take the threshold from `decision_scores_` anew, at another quantile or tail.

        Parameters
        ----------
        quantile
            In (0, 1); None for that which was asked for before. At one that is given the threshold
            is not raised above slightly disturbed good images, as `fit` may have done.
        tail
            `exponential` or `conformal`; None for that which was asked for before.

        Raises
        ------
        NotFittedError
            There is nothing to calibrate yet.
        UsageError
            A quantile outside (0, 1), or an unknown tail.
        """
        self._require_threshold()
        now = self.calibration_
        asked = now.quantile_asked if quantile is None else quantile
        found = calibrate(
            self.decision_scores_,
            asked,
            method=now.method,
            unseen=now.unseen,
            notes=now.score_notes,
            tail=now.tail_asked if tail is None else tail,
            origin=f"recalibrated at the quantile {asked:g}",
        )
        if quantile is None and now.disturbed_score is not None:
            found = raise_again(
                replace(found, disturbed_score=now.disturbed_score, disturbance=now.disturbance)
            )
        self._take_calibration(found)
        return self

    def score_scale(self) -> ScoreScale:
        """Return what gives the ratio to the threshold and the p-value of a score.

        Raises
        ------
        NotFittedError
            There is no threshold yet.
        """
        self._require_threshold()
        seen = not self.calibration_.unseen
        return ScoreScale(self.threshold_, None if seen else self.decision_scores_)

    def _take_calibration(
        self,
        calibration: Calibration,
        scores: npt.NDArray[np.float64] | None = None,
        maps: MapStatistics | None = None,
    ) -> None:
        """Decide by this threshold from now on, and keep the scores and maps that it comes from.

        Without `scores` and `maps` those that are there stay.
        """
        new: dict[str, Any] = {"calibration_": calibration, "threshold_": calibration.threshold}
        if scores is not None:
            new["decision_scores_"] = scores
        if maps is not None:
            pixels = maps.calibrate(calibration.method, unseen=calibration.unseen)
            if pixels is not None and getattr(self, "roi_", None) is not None:
                # the 0 outside the region stays below the threshold
                least = float(np.finfo(np.float32).tiny)
                pixels = pixels if pixels.threshold > 0 else replace(pixels, threshold=least)
            new["pixel_calibration_"] = pixels
        self.__dict__ = {**vars(self), **new}  # in one step, for threads that score meanwhile

    def _require_threshold(self) -> None:
        if not hasattr(self, "threshold_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")


def _given(detector: SettableThreshold, value: Any, origin: str) -> Calibration:
    was = detector.calibration_
    note = f"the threshold was not calibrated: {origin}; before it was {was.threshold:.6g}"
    return calibration_at(
        value,
        detector.decision_scores_,
        method=was.method,
        origin=origin,
        unseen=was.unseen,
        notes=was.score_notes,
        tail_asked=was.tail_asked,
        more=(note,),
    )
