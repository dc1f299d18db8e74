"""Large images by tiles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyimgano.calibration import MapStatistics
from pyimgano.errors import ImageReadError, NotFittedError, SavedModelError, UsageError
from pyimgano.inference import calibrate_threshold, infer
from pyimgano.models import create_model, load_model
from pyimgano.models.tiled import TiledDetector
from pyimgano.models.tiles import TrainingTiles, blend_weights, tile_starts
from tests.conftest import picture, save
from tests.pixel_detector import Darkness, fitted, plain


@given(st.integers(1, 500), st.integers(1, 120), st.data())
def test_whole_tiles_cover_every_pixel_and_their_weights_add_up(
    length: int, tile: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, tile))
    starts = tile_starts(length, tile, stride)
    side = min(tile, length)
    covered, total = np.zeros(length, int), np.zeros(length)
    for start, weights in zip(starts, blend_weights(length, tile, stride), strict=True):
        assert 0 <= start <= length - side and len(weights) == side
        covered[start : start + side] += 1
        total[start : start + side] += weights
        assert (weights > 0).all()
    assert covered.min() >= 1 and starts == sorted(set(starts))
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 150), st.integers(20, 150), st.integers(16, 70), st.integers(1, 70))
@example(137, 69, 63, 1)  # nearly two thousand tiles lie over a pixel
def test_a_blended_map_is_the_map_of_the_pixels(
    height: int, width: int, tile: int, stride: int
) -> None:
    tile_h, tile_w = tile, max(16, tile // 2)
    stride = min(stride, tile_w)
    image = np.random.default_rng(height).integers(0, 255, (height, width, 3), np.uint8)
    # resized to the very tile, so that nothing but cutting and blending is looked at
    if height < tile_h or width < tile_w:
        return
    tiled = TiledDetector(
        fitted(resize=(tile_h, tile_w)), tile_size=(tile_h, tile_w), tile_stride=stride
    )
    (result,) = tiled.score_images([image])
    assert result.anomaly_map is not None and result.anomaly_map.dtype == np.float32
    np.testing.assert_allclose(result.anomaly_map, 255.0 - image[:, :, 0], rtol=2e-5, atol=1e-3)
    assert result.score == 255.0 - image[:, :, 0].min()


def test_a_defect_scores_the_same_wherever_it_lies() -> None:
    tiled = TiledDetector(fitted(), tile_size=64, tile_stride=48)
    scores = []
    for at in range(0, 190, 3):  # across every border of a tile
        image = plain(220, 200, 230)
        image[at : at + 8, at : at + 8] = 10
        scores.append(float(tiled.decision_function([image])[0]))
    assert set(scores) == {245.0}


def test_no_seams_with_a_network() -> None:
    images = [picture(i, 96) for i in range(4)]
    inner = create_model("vision_patchcore", pretrained=False, resize=(64, 64)).fit(images)
    tiled = TiledDetector(inner, tile_size=64, tile_stride=32)
    found = tiled.get_anomaly_map(picture(9, 200))
    assert found.shape == (200, 200)
    down = np.abs(np.diff(found, axis=0)).max(axis=1)
    # where tiles begin and end the map changes no faster than elsewhere
    borders = [32 * i - 1 for i in range(1, 5)]
    elsewhere = np.delete(down, borders)
    assert down[borders].max() <= elsewhere.max() * 1.05


def test_small_images_are_scored_whole() -> None:
    inner = fitted(resize=(32, 32))
    tiled = TiledDetector(inner, tile_size=64)
    image = picture(3, 48)
    whole = next(iter(inner.score_images([image])))
    (result,) = tiled.score_images([image])
    assert result.score == whole.score and result.original_size == (48, 48)
    assert result.anomaly_map is not None and result.anomaly_map.shape == (48, 48)
    inner.learned_.batches.clear()
    (narrow,) = tiled.score_images([plain(200, 40, 200)])
    assert narrow.anomaly_map is not None and narrow.anomaly_map.shape == (40, 200)
    assert sum(inner.learned_.batches) == len(tile_starts(200, 64, 48))


def test_the_detector_contract(tmp_path: Path) -> None:
    tiled = TiledDetector(fitted(resize=(64, 80)), tile_size=(64, 80), tile_stride=(32, 40))
    good, bad = plain(220, 150, 150), plain(220, 150, 150)
    bad[149, 149] = 0
    assert tiled.predict([good, bad]).tolist() == [0, 1]
    assert tiled.predict_anomaly_map([good, bad]).shape == (2, 150, 150)
    with pytest.raises(UsageError, match="several sizes"):
        tiled.predict_anomaly_map([good, plain()])
    path = save(tmp_path / "a.png", bad)
    (tmp_path / "b.png").write_bytes(b"no")
    results = list(tiled.score_images([str(path), tmp_path / "b.png"], on_error="record"))
    assert results[0].score == 255.0 and results[1].score is None
    assert results[1].error is not None and "b.png" in str(results[1].error)
    with pytest.raises(ImageReadError):
        tiled.decision_function([tmp_path / "b.png"])
    params = tiled.get_params()
    assert params["tile_size"] == (64, 80) and params["detector__resize"] == (64, 80)
    tiled.set_params(tile_size=40, tile_stride=20, detector__random_seed=3)
    assert tiled.tile_size == (40, 40) and tiled.detector.random_seed == 3
    with pytest.raises(UsageError, match="tile_sise"):
        tiled.set_params(tile_sise=3)
    assert tiled.describe()["tile_stride"] == [20, 20]


@pytest.mark.parametrize(
    ("size", "stride", "said"),
    [
        (0, None, "tile_size"),
        ((64, 64, 64), None, "tile_size"),
        ("64", None, "tile_size"),
        (True, None, "tile_size"),
        (64, 0, "tile_stride"),
        (64, 65, "must not be larger"),
    ],
)
def test_bad_tiles_are_refused(size: object, stride: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TiledDetector(fitted(), tile_size=size, tile_stride=stride)  # type: ignore[arg-type]


def test_a_region_of_interest_is_refused_with_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = fitted()
    monkeypatch.setattr(detector, "get_params", lambda deep=True: {"roi": [0, 0, 5, 5]})
    with pytest.raises(UsageError, match="roi"):
        TiledDetector(detector, tile_size=64)


def test_fitting_holds_images_out_and_says_how_many(tmp_path: Path) -> None:
    values = [210, 200, 220, 100, 215, 205, 225, 120]  # every fourth is calibrated on
    paths = [save(tmp_path / f"{i}.png", plain(v, 100, 130)) for i, v in enumerate(values)]
    tiled = TiledDetector(Darkness(), tile_size=64).fit(paths)
    assert tiled.n_train_ == 6 and tiled.calibrated_on_tiles_
    assert sorted(tiled.decision_scores_) == [135.0, 155.0]  # 255 - 120 and 255 - 100
    assert tiled.threshold_ == np.nextafter(155.0, np.inf)
    assert tiled.calibration_.method == "held-out-images"
    said = "of 8 images 6 were learned from and 2 set aside to calibrate on"
    assert said in tiled.calibration_.notes
    assert tiled.pixel_calibration_ is not None and tiled.pixel_calibration_.n_images == 2
    given = TiledDetector(Darkness(), tile_size=64).fit(paths[3:], calibration_images=paths[:3])
    assert given.n_train_ == 5 and len(given.decision_scores_) == 3

    with pytest.raises(UsageError, match="at least two"):
        TiledDetector(Darkness(), tile_size=64).fit(paths[:1])
    (tmp_path / "1.png").write_bytes(b"no")
    (tmp_path / "3.png").write_bytes(b"no")
    with pytest.raises(ImageReadError, match=r"1\.png"):
        TiledDetector(Darkness(), tile_size=64).fit(paths)
    skipping = TiledDetector(Darkness(), tile_size=64).fit(paths, on_error="skip")
    assert skipping.n_train_ == 5 and len(skipping.decision_scores_) == 1
    assert [(one.index, one.role) for one in skipping.skipped_] == [
        (1, "train"),
        (3, "calibration"),
    ]


def test_training_tiles_cover_the_images(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (70, 100, 3), np.uint8)
    sources: Sequence[object] = [plain(1), save(tmp_path / "a.png", image)]
    tiles = TrainingTiles(sources, [1], (32, 32), "raise")  # type: ignore[arg-type]
    assert len(tiles) == 3 * 4 == len(list(tiles))
    listed = list(tiles)
    for at in range(len(tiles)):
        np.testing.assert_array_equal(listed[at], tiles[at])
    np.testing.assert_array_equal(listed[0], image[:32, :32])
    np.testing.assert_array_equal(listed[-1], image[38:, 68:])


def test_a_threshold_for_untiled_images_promises_nothing_until_calibrated() -> None:
    inner = fitted()
    with pytest.raises(NotFittedError):
        TiledDetector(Darkness(), tile_size=64).predict([plain()])
    tiled = TiledDetector(inner, tile_size=64)
    assert tiled.threshold_ == inner.threshold_ and not tiled.calibrated_on_tiles_
    assert tiled.calibration_.promised_false_alarm_rate is None
    assert tiled.calibration_.method == "all-images, untiled"
    assert "calibrated on untiled images" in tiled.calibration_.notes[-1]
    found = calibrate_threshold(tiled, [plain(150, 200, 200), plain(160, 200, 200)])
    assert found == tiled.threshold_ == np.nextafter(105.0, np.inf)
    assert tiled.calibrated_on_tiles_ and tiled.calibration_.promised_false_alarm_rate is not None
    assert inner.threshold_ < 100  # the detector of the tiles keeps its own
    assert [r.label for r in infer(tiled, [plain(151, 90, 90), plain(149, 90, 90)])] == [0, 1]


def test_a_tiled_detector_is_saved_whole(tmp_path: Path) -> None:
    train = [picture(seed, 150) for seed in range(8)]
    inner = create_model("vision_patchcore", resize=(64, 64))
    tiled = TiledDetector(inner, tile_size=(64, 80)).fit(train)
    assert tiled.save(tmp_path / "model") == tmp_path / "model"
    again = load_model(tmp_path / "model")
    assert isinstance(again, TiledDetector) and again.calibrated_on_tiles_
    assert again.tile_size == (64, 80) and again.tile_stride == tiled.tile_stride
    assert again.calibration_ == tiled.calibration_ and again.threshold_ == tiled.threshold_
    assert again.pixel_calibration_ == tiled.pixel_calibration_
    assert again.n_train_ == tiled.n_train_ and again.skipped_ == []
    np.testing.assert_array_equal(again.decision_scores_, tiled.decision_scores_)
    image = picture(99, 150, spot=True)
    assert again.decision_function([image]) == tiled.decision_function([image])
    again.save(tmp_path / "twice")
    with pytest.raises(UsageError, match="cannot be exported"):
        again.export_graph()


@pytest.mark.parametrize(
    "name, value",
    [
        ("tile_size", [0, 64]),
        ("tile_stride", [999, 64]),
        ("decision_scores", []),
        ("calibration", {}),
        ("strange", 1),
    ],
)
def test_tiles_that_will_not_do_are_refused(tmp_path: Path, name: str, value: object) -> None:
    inner = create_model("vision_patchcore", resize=(32, 32))
    TiledDetector(inner, tile_size=48).fit([picture(i, 64) for i in range(4)]).save(tmp_path / "m")
    path = tmp_path / "m" / "detector.json"
    document = json.loads(path.read_text())
    document["tiles"][name] = value
    path.write_text(json.dumps(document))
    with pytest.raises(SavedModelError) as error:
        load_model(tmp_path / "m")
    assert "tiles" in str(error.value) and "\n" not in str(error.value)


def test_statistics_of_a_large_map_are_those_of_its_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps = np.random.default_rng(1).normal(5, 2, (3, 60, 50)).astype(np.float32)
    monkeypatch.setattr("pyimgano.calibration.pixel_threshold._BLOCK_PIXELS", 1000)
    statistics = MapStatistics()
    statistics.add(maps)
    found = statistics.calibrate("x")
    assert found is not None and found.n_images == 3
    assert found.mean == pytest.approx(maps.mean(dtype=np.float64), rel=1e-12)
    assert found.std == pytest.approx(maps.std(dtype=np.float64), rel=1e-9)


def test_other_tiles_after_the_fit_promise_nothing() -> None:
    tiled = TiledDetector(fitted(), tile_size=64)
    tiled.calibrate([plain(150, 200, 200), plain(160, 200, 200)])
    assert tiled.set_params(tile_size=(64, 64)).calibrated_on_tiles_  # the same ones
    tiled.set_params(tile_size=32, tile_stride=16)
    assert not tiled.calibrated_on_tiles_
    assert tiled.calibration_.promised_false_alarm_rate is None
    was = tiled.detector.get_params()
    with pytest.raises(UsageError):
        tiled.set_params(tile_size=0, tile_stride=9, detector__calibration_quantile=0.5)
    assert tiled.detector.get_params() == was and tiled.tile_size == (32, 32)
