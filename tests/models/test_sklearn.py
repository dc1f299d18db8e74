"""Detectors among scikit-learn's tools and under PyOD's names, and pickled.

scikit-learn's and PyOD's estimator checks make tables of numbers and hand them to `fit`; a detector
takes images. Those that need no data are run as they are (`CHECKS`); what the others check is
checked here with images; `NOT_RUN` says of each why.
"""

from __future__ import annotations

import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.base import clone, is_outlier_detector
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

from pyimgano.errors import NotFittedError, SavedModelError, UsageError
from pyimgano.models import Detector, create_model, list_models
from pyimgano.models.tiled import TiledDetector
from tests.conftest import picture, save
from tests.pixel_detector import DarknessMethod

GOOD = [picture(i, 32) for i in range(8)]
BAD = [picture(50 + i, 32, spot=True) for i in range(4)]
X = [*GOOD, *BAD]
Y = np.array([0] * 8 + [1] * 4)
#: Learn from good images, score others: rows to train on and to test on.
SPLITS = [(np.arange(4), np.arange(4, 12)), (np.arange(4, 8), np.r_[0:4, 8:12])]
SMALL = {"image_size": 32, "device": "cpu", "layers": ["blocks.2"]}

CHECKS = (
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
)
#: What scikit-learn would run on an outlier detector besides, and why it is not run.
NOT_RUN = {
    "hands a table of numbers, or an array that is no image, to fit": """
        check_complex_data check_dict_unchanged check_dont_overwrite_attributes
        check_dont_overwrite_parameters check_dtype_object check_estimator_sparse_array
        check_estimator_sparse_container check_estimator_sparse_matrix check_estimator_sparse_tag
        check_estimators_dtypes check_estimators_empty_data_messages
        check_estimators_fit_returns_self check_estimators_nan_inf
        check_estimators_overwrite_params check_estimators_pickle check_estimators_unfitted
        check_f_contiguous_array_estimator check_fit1d check_fit2d_1feature check_fit2d_1sample
        check_fit2d_predict1d check_fit_check_is_fitted check_fit_idempotent check_fit_score_takes_y
        check_methods_sample_order_invariance check_methods_subset_invariance
        check_n_features_in check_n_features_in_after_fitting check_outlier_contamination
        check_outlier_corruption check_outliers_fit_predict check_outliers_train
        check_pipeline_consistency check_positive_only_tag_during_fit check_readonly_memmap_input
    """,
    "is about columns, weights or iterations, of which images and fit have none": """
        check_dataframe_column_names_consistency check_non_transformer_estimators_n_iter
        check_sample_weight_equivalence_on_dense_data check_sample_weights_list
        check_sample_weights_not_an_array check_sample_weights_not_overwritten
        check_sample_weights_pandas_series check_sample_weights_shape
    """,
}


def make(**keywords: Any) -> Detector:
    return create_model("vision_knn", **{**SMALL, **keywords})


@pytest.fixture(scope="module")
def fitted() -> Detector:
    return make().fit(GOOD)


# ---- scikit-learn's own checks


@pytest.mark.parametrize("name", CHECKS)
def test_checks_of_scikit_learn(name: str) -> None:
    check = getattr(estimator_checks, name, None)
    if check is None:
        pytest.skip("this version of scikit-learn has no such check")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check("VisionKNN", make())


def test_checks_that_are_not_run_are_known() -> None:
    """A check that a new scikit-learn brings is run here or has a reason why not."""
    listed = {*CHECKS, *" ".join(NOT_RUN.values()).split()}
    try:
        yielded = estimator_checks._yield_all_checks(make(), legacy=True)
        names = {getattr(check, "func", check).__name__ for check in yielded}
    except (AttributeError, TypeError):
        pytest.skip("this version of scikit-learn lists its checks in another way")
    assert names - listed == set()


@pytest.mark.parametrize("name", list_models())
def test_every_model_is_an_outlier_detector(name: str) -> None:
    detector = create_model(name)
    assert is_outlier_detector(detector)
    twin = clone(detector)
    assert type(twin) is type(detector) and twin.get_params() == detector.get_params()


def test_tags_are_made_without_importing_scikit_learn_early() -> None:
    code = "import sys, pyimgano.models.detector; sys.exit('sklearn' in sys.modules)"
    import subprocess

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- pipelines and searches


def test_a_pipeline() -> None:
    pipeline = make_pipeline(FunctionTransformer(list), make()).fit(GOOD)
    np.testing.assert_array_equal(pipeline.predict(BAD), [1, 1, 1, 1])
    np.testing.assert_array_equal(
        pipeline.score_samples(X), -pipeline.decision_function(np.stack(X))
    )
    assert pipeline.predict_proba(X).shape == (12, 2)


@pytest.mark.parametrize("jobs", [1, 2])
def test_cross_validation(jobs: int) -> None:
    found = cross_validate(
        make(), X, Y, cv=SPLITS, scoring="roc_auc", n_jobs=jobs, return_estimator=True
    )
    for detector, (train, test), area in zip(found["estimator"], SPLITS, found["test_score"]):
        alone = make().fit([X[i] for i in train])
        scores = alone.decision_function([X[i] for i in test])
        assert area == roc_auc_score(Y[test], scores)
        np.testing.assert_array_equal(detector.decision_function([X[i] for i in test]), scores)
        assert detector.get_params() == alone.get_params()
    assert min(cross_val_score(make(), X, Y, cv=SPLITS, scoring="average_precision")) > 0.9


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_search(jobs: int, tmp_path: Path) -> None:
    paths = [str(save(tmp_path / f"{i}.png", image)) for i, image in enumerate(X)]
    pipeline = make_pipeline("passthrough", make())
    grid = {"visionknn__n_neighbors": [1, 2], "visionknn__embedding": ["mean", "max"]}
    search = GridSearchCV(pipeline, grid, cv=SPLITS, scoring="roc_auc", n_jobs=jobs, refit=False)
    found = search.fit(paths, Y)
    assert len(found.cv_results_["params"]) == 4
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()
    with pytest.raises(ValueError, match="n_neighbours"):
        make().set_params(n_neighbours=2)


# ---- names of PyOD


def test_labels_and_signs(fitted: Detector) -> None:
    np.testing.assert_array_equal(fitted.labels_, fitted.fit_predict(GOOD))
    assert fitted.labels_.shape == fitted.decision_scores_.shape
    scores = fitted.decision_function(X)
    assert scores[8:].min() > scores[:8].max()  # higher is more anomalous
    np.testing.assert_array_equal(fitted.score_samples(X), -scores)
    for name in ("labels_", "decision_scores_", "threshold_"):
        assert not hasattr(make(), name)
    with pytest.raises(NotFittedError):
        make().predict_proba(X)


def test_probabilities(fitted: Detector) -> None:
    scores = fitted.decision_function(X)
    order = np.argsort(scores)
    for method in ("threshold", "linear", "unify"):
        found = fitted.predict_proba(X, method=method)
        assert found.shape == (12, 2) and (found >= 0).all() and (found <= 1).all()
        np.testing.assert_allclose(found.sum(axis=1), 1.0)
        assert (np.diff(found[order, 1]) >= 0).all()
    second = fitted.predict_proba(X)[:, 1]
    np.testing.assert_array_equal(second >= 0.5, fitted.predict(X) == 1)
    assert len(np.unique(second)) == len(np.unique(scores))  # the order is kept
    with pytest.raises(UsageError, match="method must be one of threshold, linear, unify"):
        fitted.predict_proba(X, method="softmax")  # type: ignore[arg-type]


class _Given(Detector):
    """Scores that a test gives, whatever the images are."""

    given: np.ndarray

    def decision_function(self, X: Any) -> np.ndarray:
        return self.given

    method = DarknessMethod


@pytest.mark.parametrize(
    ("known", "threshold"),
    [
        ([1.0, 2.0, 3.0, 7.0], 7.0),
        ([1.0, 2.0, 3.0, 7.0], 2.0),  # below the median
        ([4.0, 4.0, 4.0], 4.0),  # no spread
        ([0.0, 0.0], 0.0),
        ([1e-12, 3e-12], 3e-12),
    ],
)
def test_the_threshold_is_in_the_middle(known: list[float], threshold: float) -> None:
    detector = _Given()
    detector.decision_scores_ = np.array(known)
    detector.threshold_ = threshold
    unit = threshold - np.median(known)
    far = [threshold + 1e3 * max(known[-1], 1e-9), threshold + 1e6 * max(known[-1], 1e-9)]
    detector.given = np.array([np.median(known), threshold, threshold + abs(unit), *far])
    low, middle, above, *highest = detector.predict_proba([])[:, 1]
    assert middle == 0.5 < highest[0] < highest[1] < 1.0
    if unit > 0:
        assert low == pytest.approx(0.25) and above == pytest.approx(0.75)


@pytest.mark.parametrize("method", ["linear", "unify"])
def test_probabilities_are_those_of_pyod(method: str) -> None:
    base = pytest.importorskip("pyod.models.base")

    class Theirs(base.BaseDetector):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__(contamination=0.1)

        def fit(self, X: Any, y: Any = None) -> Any:
            self._set_n_classes(y)
            self.decision_scores_ = X[:, 0]
            self._process_decision_scores()
            return self

        def decision_function(self, X: Any) -> Any:
            return X[:, 0]

    rng = np.random.default_rng(0)
    known, new = rng.normal(size=(20, 1)), 3 * rng.normal(size=(50, 1))
    ours = _Given()
    ours.decision_scores_, ours.threshold_, ours.given = known[:, 0], 1.0, new[:, 0]
    wanted = Theirs().fit(known).predict_proba(new, method=method)
    np.testing.assert_allclose(ours.predict_proba([], method=method), wanted, atol=1e-12)  # type: ignore[arg-type]


# ---- pickling


def same(one: Detector, two: Detector) -> None:
    assert type(one) is type(two)
    np.testing.assert_array_equal(one.decision_function(X), two.decision_function(X))
    assert (one.threshold_, one.calibration_) == (two.threshold_, two.calibration_)
    assert one.describe() == two.describe() and one.get_params() == two.get_params()


def test_pickle_and_joblib(fitted: Detector, tmp_path: Path) -> None:
    same(fitted, pickle.loads(pickle.dumps(fitted)))
    joblib.dump(fitted, tmp_path / "detector.joblib", compress=3)
    same(fitted, joblib.load(tmp_path / "detector.joblib"))
    plain = pickle.loads(pickle.dumps(make(n_neighbors=3)))
    assert plain.get_params() == make(n_neighbors=3).get_params()
    changed = pickle.loads(pickle.dumps(fitted)).set_params(n_neighbors=5)
    assert pickle.loads(pickle.dumps(changed)).get_params() == changed.get_params()


def test_weights_from_a_file_go_with_it(tmp_path: Path) -> None:
    import torch

    from pyimgano.backbones import create_backbone

    network = create_backbone("efficientnet_lite0", pretrained=False, device="cpu").network
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    detector = make(weights=str(tmp_path / "weights.pth"), engine="torch").fit(GOOD)
    data = pickle.dumps(detector)
    (tmp_path / "weights.pth").unlink()
    twin = pickle.loads(data)
    same(detector, twin)
    assert pickle.loads(pickle.dumps(twin)).get_params() == detector.get_params()


def test_a_tiled_detector_is_pickled_too() -> None:
    tiled = TiledDetector(make(), tile_size=24)
    assert pickle.loads(pickle.dumps(tiled)).tile_size == (24, 24)
    tiled.fit(GOOD)
    twin = pickle.loads(pickle.dumps(tiled))
    np.testing.assert_array_equal(twin.decision_function(X), tiled.decision_function(X))
    assert twin.calibration_ == tiled.calibration_ and twin.calibrated_on_tiles_
    assert is_outlier_detector(tiled) and tiled.predict_proba(X).shape == (12, 2)
    np.testing.assert_array_equal(tiled.labels_, [0] * len(tiled.decision_scores_))


def test_a_damaged_pickle_is_refused(fitted: Detector) -> None:
    state = fitted.__getstate__()
    arrays = bytearray(state["saved files"]["arrays.safetensors"])
    arrays[-1] ^= 1
    for name, data, said in (
        ("arrays.safetensors", bytes(arrays), "the pickled detector/arrays.safetensors: "),
        ("../escaped", b"", "an unexpected file '../escaped'"),
        ("detector.json", b"{}", "the pickled detector/detector.json: "),
    ):
        changed = {**state, "saved files": {**state["saved files"], name: data}}
        with pytest.raises(SavedModelError, match=said) as error:
            type(fitted).__new__(type(fitted)).__setstate__(changed)
        assert "\n" not in str(error.value)
    other = create_model("vision_lof", **SMALL)
    with pytest.raises(SavedModelError, match="is a VisionKNN, not a VisionLOF"):
        other.__setstate__(state)


def test_what_cannot_be_saved_cannot_be_pickled() -> None:
    detector = _Given()
    detector.threshold_ = 1.0
    with pytest.raises(UsageError, match=r"a fitted _Given cannot be pickled: .*cannot be saved"):
        pickle.dumps(detector)
