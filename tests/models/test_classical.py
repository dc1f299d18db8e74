"""Classical heads: against the libraries they are over, and against plain formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyimgano.errors import DataError, SavedModelError, UsageError
from pyimgano.models import Detector, create_model, list_models, load_model
from pyimgano.models.classical import embedding as adapter
from pyimgano.models.classical.densities import Subspace
from pyimgano.models.classical.embedding import EmbeddingMethod
from pyimgano.models.classical.pooling import Scaling, pool, pooled_width
from tests.conftest import picture

HEADS = list_models(tags="classical")
IMAGES = [picture(i) for i in range(13)]  # more than there are folds
TEST = [picture(50), picture(51, spot=True), picture(52)]
CHEAP: dict[str, dict[str, Any]] = {
    "vision_iforest": {"n_estimators": 5},
    "vision_gmm": {"n_components": 1},
}


def make(name: str, **keywords: Any) -> Detector:
    cheap = {"layers": ["blocks.2", "blocks.4"], "resize": (64, 64), "device": "cpu"}
    detector = create_model(name, **{**cheap, **CHEAP.get(name, {}), **keywords})
    assert issubclass(detector.method, EmbeddingMethod)
    return detector


@cache
def fitted(name: str) -> Detector:
    return make(name).fit(IMAGES)


def rows_of(detector: Detector, images: list[np.ndarray]) -> np.ndarray:
    learned: Any = detector.learned_
    found = adapter.embed(learned.backbone, images, learned.region, learned.pooling)  # type: ignore[arg-type]
    return found.astype(np.float64)


def scaled(train: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Each channel to mean 0 and deviation 1, in plain steps."""
    deviation = np.sqrt(((train - train.mean(0)) ** 2).mean(0))
    least = 0.1 * np.sqrt((deviation**2).mean())
    return (rows - train.mean(0)) / np.maximum(deviation, least)


# ---- embeddings


def test_an_embedding_is_layers_pooled() -> None:
    detector = fitted("vision_knn")
    first, second = (layer[0].numpy() for layer in detector.backbone_.features([IMAGES[0]]))
    parts = [first.mean((1, 2)), first.max((1, 2)), second.mean((1, 2)), second.max((1, 2))]
    (found,) = rows_of(detector, [IMAGES[0]])
    np.testing.assert_allclose(found, np.concatenate(parts), rtol=1e-5, atol=1e-6)
    assert len(found) == pooled_width("mean+max", [len(first), len(second)])
    assert detector.describe()["embedding"] == {"pooling": "mean+max", "dimension": len(found)}


def test_pooling() -> None:
    layer = np.array([[1.0, 2.0, 3.0, -6.0], [4.0, 4.0, 4.0, 4.0]], np.float32)

    def pooled(how: Any) -> list[list[float]]:
        return [part.tolist() for part in pool(layer, how)]

    assert pooled("mean") == [[0.0, 4.0]] and pooled("max") == [[3.0, 4.0]]
    assert pooled("std")[0] == pytest.approx([np.sqrt(50 / 4), 0.0])
    assert pooled("gem")[0] == pytest.approx([(36 / 4) ** (1 / 3), 4.0])
    assert pooled("mean+std") == [*pooled("mean"), *pooled("std")]


def test_layers_are_those_of_strides_8_16_and_32() -> None:
    detector = create_model("vision_knn", resize=(64, 64), device="cpu", engine="torch")
    assert detector.prepare().layers == ("blocks.4", "blocks.10", "blocks.15")


def test_a_channel_that_hardly_moves_drowns_no_other() -> None:
    rows = np.array([[0.0, 5.0, 1.0], [2.0, 5.0, 1.0 + 1e-9]])
    scaling = Scaling.of(rows)
    rms = np.sqrt(1.0 / 3.0)  # of the deviations 1, 0 and nearly 0
    assert scaling.deviation == pytest.approx([1.0, 0.1 * rms, 0.1 * rms])
    np.testing.assert_array_equal(Scaling.of(rows[:1])(rows)[0], [0.0, 0.0, 0.0])


def test_without_standardising_the_rows_are_as_they_are() -> None:
    detector = make("vision_knn", standardize=False, embedding="max").fit(IMAGES[:4])
    train, rows = rows_of(detector, IMAGES[:4]), rows_of(detector, TEST)
    nearest = np.sqrt(((rows[:, None] - train) ** 2).sum(-1)).min(1)
    np.testing.assert_allclose(detector.decision_function(TEST), nearest, rtol=1e-12)


# ---- heads


def method_of(detector: Detector) -> Any:
    """Return the method that the detector's keywords ask for."""
    return detector.method(detector.validate_params())


def by_neighbours(train: np.ndarray, row: np.ndarray) -> float:
    return float(np.sqrt(((train - row) ** 2).sum(1)).min())


def by_lof(train: np.ndarray, row: np.ndarray) -> float:
    """Definitions 3 to 7 of Breunig et al., word for word."""
    k = min(20, len(train) - 1)
    among = np.sqrt(((train[:, None] - train) ** 2).sum(-1))
    np.fill_diagonal(among, np.inf)
    k_distance = np.sort(among, axis=1)[:, k - 1]

    def density(distances: np.ndarray) -> float:
        near = np.argsort(distances)[:k]
        return float(1.0 / np.maximum(k_distance[near], distances[near]).mean())

    mine = np.sqrt(((train - row) ** 2).sum(1))
    near = np.argsort(mine)[:k]
    return float(np.mean([density(among[i]) for i in near]) / density(mine))


def by_kernels(train: np.ndarray, row: np.ndarray) -> float:
    n, width = train.shape
    h = n ** (-1.0 / (width + 4))
    exponents = -((train - row) ** 2).sum(1) / (2 * h * h)
    log_sum = exponents.max() + np.log(np.exp(exponents - exponents.max()).sum())
    return float(-(log_sum - np.log(n) - width * np.log(h * np.sqrt(2 * np.pi))))


def by_components(train: np.ndarray, row: np.ndarray) -> float:
    centred = train - train.mean(0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    variances = singular**2 / (len(train) - 1)
    q = int(np.searchsorted(np.cumsum(variances) / variances.sum(), 0.97)) + 1
    y = axes @ (row - train.mean(0))
    off = row - train.mean(0) - axes[:q].T @ y[:q]
    least = 1e-3 * variances.sum() / train.shape[1]
    noise = max(variances[q:].mean(), least)
    return float((y[:q] ** 2 / np.maximum(variances[:q], least)).sum() + (off**2).sum() / noise)


def by_one_gaussian(train: np.ndarray, row: np.ndarray) -> float:
    variances = train.var(0) + 1e-3
    return float(
        0.5 * (((row - train.mean(0)) ** 2 / variances) + np.log(2 * np.pi * variances)).sum()
    )


def by_ocsvm(train: np.ndarray, row: np.ndarray) -> float:
    from sklearn.svm import OneClassSVM

    return -float(OneClassSVM(nu=0.1, gamma="scale").fit(train).decision_function(row[None])[0])


def by_iforest(train: np.ndarray, row: np.ndarray) -> float:
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=5, random_state=0, max_samples=min(256, len(train)))
    return -float(forest.fit(train).score_samples(row[None])[0])


def by_ecod(train: np.ndarray, row: np.ndarray) -> float:
    """Algorithm 1 of Li et al.: tail probabilities of the row among the training rows and it."""
    from scipy.stats import skew

    every = np.vstack([train, row])
    left = -np.log((every <= row).mean(0))
    right = -np.log((every >= row).mean(0))
    skewed = np.nan_to_num(skew(every, axis=0))
    by_skew = np.where(skewed < 0, left, np.where(skewed > 0, right, left + right))
    return float(np.maximum(np.maximum(left, right), by_skew).sum())


def by_copod(train: np.ndarray, row: np.ndarray) -> float:
    """Algorithm 1 of Li et al., the larger taken in each channel."""
    from scipy.stats import skew

    every = np.vstack([train, row])
    left = -np.log((every <= row).mean(0))
    right = -np.log((every >= row).mean(0))
    skewed = np.nan_to_num(skew(every, axis=0))
    by_skew = np.where(skewed < 0, left, np.where(skewed > 0, right, left + right))
    return float(np.maximum(by_skew, (left + right) / 2).sum())


def by_histograms(train: np.ndarray, row: np.ndarray) -> float:
    total = 0.0
    for values, x in zip(train.T, row, strict=True):
        heights, edges = np.histogram(values, bins=10, density=True)
        width = edges[1] - edges[0]
        lowest = np.log2(heights + 0.1).min()
        place = int(np.digitize(x, edges, right=True)) - 1  # bins are (low, high] here
        if -1 < place < 10:
            total -= np.log2(heights[place] + 0.1)
        elif (edges[0] - x if place < 0 else x - edges[-1]) <= 0.5 * width:
            total -= np.log2(heights[0 if place < 0 else 9] + 0.1)
        else:
            total -= lowest
    return total


PLAIN: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "vision_knn": by_neighbours,
    "vision_lof": by_lof,
    "vision_kde": by_kernels,
    "vision_pca": by_components,
    "vision_gmm": by_one_gaussian,
    "vision_ocsvm": by_ocsvm,
    "vision_iforest": by_iforest,
    "vision_ecod": by_ecod,
    "vision_copod": by_copod,
    "vision_hbos": by_histograms,
}
UNSCALED = ("vision_iforest", "vision_ecod", "vision_copod")


@pytest.mark.parametrize("name", HEADS)
def test_scores_are_those_of_the_method_on_the_embeddings(name: str) -> None:
    detector = fitted(name)
    train, rows = rows_of(detector, IMAGES), rows_of(detector, TEST)
    if name not in UNSCALED:
        train, rows = scaled(train, train), scaled(train, rows)
    wanted = [PLAIN[name](train, row) for row in rows]
    np.testing.assert_allclose(detector.decision_function(TEST), wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ["ecod", "copod", "hbos"])
def test_heads_written_here_score_as_those_of_pyod(name: str) -> None:
    """Among the columns are constant ones, coarse ones with ties, and skewed ones."""
    module = pytest.importorskip(f"pyod.models.{name}")
    rng = np.random.default_rng(3)
    train = np.hstack(
        [
            rng.normal(size=(40, 6)),
            rng.integers(0, 4, size=(40, 6)),
            np.exp(rng.normal(size=(40, 6))),
            -np.exp(rng.normal(size=(40, 6))),
            np.maximum(rng.normal(size=(40, 6)) - 1, 0),
        ]
    )
    rows = np.vstack([train[:5], rng.normal(size=(5, 30)), np.full((1, 30), 50.0), train[:1] + 0.4])
    theirs = getattr(module, name.upper())().fit(train)
    wanted = [float(theirs.decision_function(row[None])[0]) for row in rows]
    detector = make(f"vision_{name}")
    head = method_of(detector).fit(train)
    found = [head.score(row[None]) for row in rows]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize("name", ["vision_ecod", "vision_copod"])
def test_a_channel_in_which_all_is_equal_says_nothing(name: str) -> None:
    detector = make(name)
    head = method_of(detector).fit(np.full((9, 3), 0.1))
    assert head.score(np.full((1, 3), 0.1)) == 0.0
    assert 0.0 < head.score(np.array([[0.1, 0.1, 7.0]])) < np.inf


@pytest.mark.parametrize("name", ["vision_ecod", "vision_hbos"])
def test_a_head_that_was_saved_when_it_was_pyods_loads(name: str, tmp_path: Path) -> None:
    folder = fitted(name).save(tmp_path / "model")
    document = json.loads((folder / "detector.json").read_text())
    assert document["state"]["library"] == "pyimgano"
    document["state"].update(library="pyod", library_version="2.0.3")
    (folder / "detector.json").write_text(json.dumps(document))
    scores = load_model(folder).decision_function(TEST)
    np.testing.assert_array_equal(scores, fitted(name).decision_function(TEST))
    document["state"].update(library="scikit-learn")
    (folder / "detector.json").write_text(json.dumps(document))
    with pytest.raises(SavedModelError, match=r"state\.library: the head is pyimgano's"):
        load_model(folder)


@pytest.mark.parametrize("name", HEADS)
def test_training_scores_are_those_of_heads_without_the_image(name: str) -> None:
    detector = fitted(name)
    train = rows_of(detector, IMAGES)
    left_out = name in ("vision_knn", "vision_kde")
    method = "leave-one-image-out" if left_out else "refitted-folds"
    assert detector.calibration_.method == method
    drawn = np.random.default_rng(0).permutation(13)
    for number in (0, 5, 12):
        fold = int(np.flatnonzero(drawn == number)[0]) % 10
        gone = [number] if left_out else [int(i) for i in drawn[fold::10]]
        assert number in gone
        others = np.delete(train, gone, axis=0)
        row = train[number]
        if name not in UNSCALED:
            others, row = scaled(others, others), scaled(others, row)
        wanted = PLAIN[name](others, row)
        assert detector.decision_scores_[number] == pytest.approx(wanted, rel=1e-6)


def test_k_is_the_kth_nearest_also_where_an_image_is_left_out() -> None:
    detector = make("vision_knn", n_neighbors=3).fit(IMAGES)
    train, rows = rows_of(detector, IMAGES), rows_of(detector, TEST)

    def third(others: np.ndarray, row: np.ndarray) -> float:
        away = scaled(others, others) - scaled(others, row)
        return float(np.sort(np.sqrt((away**2).sum(1)))[2])

    np.testing.assert_allclose(
        detector.decision_function(TEST), [third(train, row) for row in rows], rtol=1e-9
    )
    without = third(np.delete(train, 4, axis=0), train[4])
    assert detector.decision_scores_[4] == pytest.approx(without, rel=1e-9)


def test_kernels_are_summed_exactly_in_many_dimensions() -> None:
    """The library's tree is off by hundreds there with its own leaves."""
    from sklearn.neighbors import KernelDensity

    rng = np.random.default_rng(0)
    train, row = rng.normal(size=(120, 600)), rng.normal(size=600) * 1.5
    detector = make("vision_kde", standardize=False)
    head = method_of(detector).fit(train)
    wanted = by_kernels(train, row)
    assert head.score(row[None]) == pytest.approx(wanted, rel=1e-12)
    tree = KernelDensity(bandwidth="scott", algorithm="kd_tree", rtol=0, atol=0).fit(train)
    assert abs(-tree.score_samples(row[None])[0] - wanted) > 1.0


def test_a_mixture_has_no_more_components_than_images_bear() -> None:
    detector = make("vision_gmm", n_components=5)
    rows = np.random.default_rng(0).normal(size=(20, 4))
    assert method_of(detector).fit(rows).estimator.n_components == 2
    assert method_of(detector).fit(rows[:3]).estimator.n_components == 1


def test_in_sample_promises_nothing() -> None:
    detector = make("vision_knn", calibration="in-sample").fit(IMAGES[:4])
    assert detector.decision_scores_.tolist() == [0.0] * 4
    assert detector.calibration_.promised_false_alarm_rate is None


def test_one_image_says_that_nothing_is_promised() -> None:
    detector = make("vision_knn").fit(IMAGES[:1])
    assert detector.calibration_.promised_false_alarm_rate is None
    assert any("1 training image" in note for note in detector.calibration_.notes)


def test_many_images_are_calibrated_on_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_CALIBRATED", 4)
    some = make("vision_knn").fit(IMAGES)
    assert "calibrated on 4 of the 13 training images" in some.calibration_.notes[0]
    every = fitted("vision_knn").decision_scores_
    assert some.decision_scores_.tolist() == [every[i] for i in (0, 4, 7, 10)]
    folds = make("vision_lof").fit(IMAGES)
    assert folds.decision_scores_.shape == (4,) and folds.calibration_.method == "refitted-folds"


def test_features_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = make("vision_pca").fit(IMAGES[:4])
    embed = adapter.embed

    def broken(*given: Any) -> np.ndarray:
        found = embed(*given)
        found[1, 0] = np.nan
        return found

    monkeypatch.setattr(adapter, "embed", broken)
    recorded = list(detector.score_images(TEST, on_error="record"))
    assert [one.score is None for one in recorded] == [False, True, False]
    with pytest.raises(DataError, match="features of training images that are not finite"):
        detector.fit(IMAGES[:4])


@pytest.mark.parametrize(
    ("name", "keywords", "said"),
    [
        ("vision_knn", {"embedding": "flat"}, "embedding: input should be 'mean', 'max'"),
        ("vision_ocsvm", {"nu": 0.0}, "nu: .* greater than 0"),
        ("vision_kde", {"bandwidth": 0.0}, "bandwidth: .* greater than 0|bandwidth: "),
        ("vision_pca", {"explained_variance": 1.0}, "explained_variance: .* less than 1"),
        ("vision_gmm", {"covariance_type": "round"}, "covariance_type"),
        ("vision_hbos", {"n_bins": 1}, "n_bins: .* greater than or equal to 2"),
        ("vision_iforest", {"max_samples": 0}, "max_samples"),
        ("vision_ecod", {"standardize": True}, "unknown keyword of vision_ecod 'standardize'"),
    ],
)
def test_bad_keywords(name: str, keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        make(name, **keywords)
    assert "\n" not in str(error.value)


# ---- saving


def test_a_library_that_gives_other_scores_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = fitted("vision_pca")
    folder = detector.save(tmp_path / "model")
    document = json.loads((folder / "detector.json").read_text())
    assert document["state"]["library"] == "scikit-learn"
    document["state"]["library_version"] = "0.1"
    (folder / "detector.json").write_text(json.dumps(document))
    load_model(folder)  # another version that gives the same scores will do
    score = Subspace.score
    monkeypatch.setattr(Subspace, "score", lambda self, row: 1.001 * score(self, row))
    with pytest.raises(SavedModelError, match=r"gives other scores than .* with scikit-learn 0\.1"):
        load_model(folder)


def test_embeddings_of_another_width_are_an_error(tmp_path: Path) -> None:
    folder = fitted("vision_knn").save(tmp_path / "model")
    document = json.loads((folder / "detector.json").read_text())
    document["parameters"]["embedding"] = "max"
    (folder / "detector.json").write_text(json.dumps(document))
    with pytest.raises(SavedModelError, match=r"the array 'embeddings' is float32 of shape"):
        load_model(folder)
