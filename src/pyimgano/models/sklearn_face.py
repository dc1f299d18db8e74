"""What scikit-learn and PyOD ask of a detector beside `fit`, `predict` and `decision_function`.

Tags, so that pipelines, searches and scorers know an outlier detector; decisions and shares of
the training images under PyOD's names; and pickling, through which joblib sends detectors to
other processes. scikit-learn is imported by nothing here but the tags, which it asks for itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ..errors import NotFittedError, SavedModelError, UsageError
from ..images import ImageSource
from .saved import FILES, TileFacts, read_arrays, read_document
from .saving import require_saveable, restore_detector, saved_files

ProbabilityMethod = Literal["threshold", "linear", "unify"]
_METHODS = ("threshold", "linear", "unify")
#: Marks the state of a fitted detector among pickled states: no keyword has a space.
_FILES = "saved files"


class SklearnFace:
    """Mixed into what has `decision_function`, `decision_scores_`, `threshold_` and `get_params`.

    Attributes
    ----------
    labels_
        (M,) int64 of 0 (good) and 1: the decision on each of `decision_scores_`, in their order.
        They are the training images, unless `calibration_images` were given to `fit` or the
        notes of `calibration_` say that a part of them was scored.
    """

    # scikit-learn up to 1.5 asks this, later ones `__sklearn_tags__`
    _estimator_type: ClassVar[str] = "outlier_detector"

    decision_scores_: npt.NDArray[np.float64]
    threshold_: float

    if TYPE_CHECKING:

        def decision_function(self, X: Iterable[ImageSource]) -> npt.NDArray[np.float64]: ...

        def get_params(self, deep: bool = True) -> dict[str, Any]: ...

        def _to_save(self) -> tuple[Any, TileFacts | None]:
            """Return the detector whose folder holds this one, and its tiles if it has some."""

        def _take_restored(self, detector: Any, tiles: TileFacts | None) -> None:
            """Become what was loaded."""

    # ---- scikit-learn

    def __sklearn_tags__(self) -> Any:
        """Return `sklearn.utils.Tags`: an outlier detector that needs no y and takes images."""
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type="outlier_detector",
            target_tags=TargetTags(required=False),
            # a list of paths, and not a table of numbers
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "threshold_")

    def score_samples(self, X: Iterable[ImageSource]) -> npt.NDArray[np.float64]:
        """Return how normal N images are, (N,): the negative of `decision_function`.

        This is scikit-learn's sign, in which lower is more anomalous. `decision_function` has
        PyOD's, in which higher is more anomalous.
        """
        return -self.decision_function(X)

    # ---- PyOD

    @property
    def labels_(self) -> npt.NDArray[np.int64]:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")
        return (self.decision_scores_ >= self.threshold_).astype(np.int64)

    def predict_proba(
        self, X: Iterable[ImageSource], method: ProbabilityMethod = "threshold"
    ) -> npt.NDArray[np.float64]:
        """Return scores brought to 0..1, (N, 2): how good and how defective each image looks.

        The columns add up to 1, and the second never falls where the score rises. It is no
        frequency of defects: good images alone cannot tell that.

        Parameters
        ----------
        X
            N images, as for `decision_function`.
        method
            `threshold`: 0.5 at the threshold, so that `predict` gives 1 where the second column
            is at least 0.5; 0.25 at the median of `decision_scores_`, 0.75 as far above the
            threshold, and never quite 0 or 1, so that the order of images stays.
            `linear` and `unify` are PyOD's. `linear`: 0 at the least and 1 at the largest of
            `decision_scores_`, cut off outside. `unify`: the Gaussian error function of the
            distance from their mean in deviations, cut off below 0.

        Raises
        ------
        UsageError
            Another `method`.
        NotFittedError
            Nothing was learned yet.
        """
        if method not in _METHODS:
            raise UsageError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
        scores = self.decision_function(X)
        known = self.decision_scores_
        if method == "linear":
            least, largest = known.min(), known.max()
            second = np.clip((scores - least) / ((largest - least) or 1.0), 0.0, 1.0)
        elif method == "unify":
            from scipy.special import erf

            second = np.clip(
                erf((scores - known.mean()) / ((known.std() or 1.0) * np.sqrt(2))), 0, 1
            )
        else:
            # the median is one unit below the threshold; where all scores are equal, any will do
            unit = self.threshold_ - float(np.median(known))
            if unit <= 0:
                unit = float(known.std()) or abs(self.threshold_) or 1.0
            distance = (scores - self.threshold_) / unit
            second = 0.5 + 0.5 * distance / (1.0 + np.abs(distance))
        return np.column_stack([1.0 - second, second])

    # ---- pickling

    def __getstate__(self) -> dict[str, Any]:
        """Return keywords if nothing was learned yet; else the files of the saved folder too.

        Raises
        ------
        UsageError
            It is of a class that cannot be saved.
        """
        keywords = self.get_params(deep=False)
        if not self.__sklearn_is_fitted__():
            return keywords
        inner, tiles = self._to_save()
        try:
            require_saveable(inner)
            # a file of weights may not be where it is unpickled; a package or a seed is
            weights = getattr(inner.params_, "weights", None)
            files = saved_files(inner, weights is not None, tiles)
        except UsageError as error:
            raise UsageError(f"a fitted {type(self).__name__} cannot be pickled: {error}") from None
        backbone = inner.backbone_
        return {
            _FILES: files,
            "class": type(inner),
            "keywords": inner.get_params(),
            "weights": weights,
            "origin": None if backbone is None else backbone.weights,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take keywords; or load the files with all the checks of `load_model`.

        Raises
        ------
        SavedModelError, UsageError
            As `load_model`.
        """
        if _FILES not in state:
            self.__dict__.update(state)
            return
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "detector"
            folder.mkdir()
            for file, data in state[_FILES].items():
                if file not in FILES:
                    raise SavedModelError(f"the pickled detector: an unexpected file {file!r}")
                (folder / file).write_bytes(data)
            try:
                document = read_document(folder)
                inner = restore_detector(
                    state["class"], folder, document, read_arrays(folder, document)
                )
            except (SavedModelError, UsageError) as error:
                said = str(error).replace(str(folder), "the pickled detector")
                raise type(error)(said) from None
        for keyword, value in state["keywords"].items():
            setattr(inner, keyword, value)
        if state["weights"] is not None:  # where they came from, not the folder that is gone
            inner.params_.weights = state["weights"]
            inner.backbone_.weights = state["origin"]
        self._take_restored(inner, document.tiles)
