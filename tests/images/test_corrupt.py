"""Corruptions: formulas, draws that depend on the image alone, masks that move with it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano.errors import UsageError
from pyimgano.images import (
    CORRUPTIONS,
    SEVERITIES,
    AlteredImage,
    corrupt_image,
    corrupt_mask,
    distort,
    get_corruption,
    read_image,
    resize_image,
    stream_images,
)
from tests.conftest import save

NAMES = list(CORRUPTIONS)
RANDOM = ["lighting", "glare", "geo_jitter", "noise", "motion"]


def part(seed: int, height: int = 150, width: int = 200, *, grey: bool = False) -> np.ndarray:
    """A blurred random scene with a few hard edges, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = rng.uniform(40, 210, (6, 8, 1 if grey else 3))
    scene = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    scene = scene.reshape(height, width, -1)
    scene[height // 3 : height // 2, width // 4 : width // 2] *= 0.5
    scene[:, 2 * width // 3 : 2 * width // 3 + 4] += 50
    image = np.clip(scene, 0, 255).astype(np.uint8)
    return np.repeat(image, 3, axis=2) if grey else image


def change(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other).mean())


@pytest.mark.parametrize("name", NAMES)
def test_a_higher_severity_changes_more(name: str) -> None:
    for seed in (0, 1, 5):
        image = part(seed, 300, 400, grey=seed == 5)
        kept = image.copy()
        results = [corrupt_image(image, name, s, identity=f"{seed}.png") for s in SEVERITIES]
        changes = [change(result, image) for result in results]
        assert changes == sorted(changes) and len(set(changes)) == 5 and changes[0] > 0
        assert all(r.shape == image.shape and r.dtype == np.uint8 for r in results)
        assert (image == kept).all()  # it is a copy that is changed


@pytest.mark.parametrize("name", NAMES)
def test_draws_depend_on_seed_corruption_and_identity_alone(name: str) -> None:
    image = part(1)
    first = corrupt_image(image, name, 3, seed=7, identity="a/b.png")
    corrupt_image(image, name, 5, seed=7, identity="other")
    assert (corrupt_image(image, name, 3, seed=7, identity="a/b.png") == first).all()
    others = [
        corrupt_image(image, name, 3, seed=8, identity="a/b.png"),
        corrupt_image(image, name, 3, seed=7, identity="a/c.png"),
    ]
    assert all((other != first).any() for other in others) == (name in RANDOM)


@pytest.mark.parametrize("name", ["glare", "geo_jitter", "motion", "lighting", "noise"])
def test_all_severities_share_an_images_draws(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[float]] = []
    real = np.random.PCG64
    monkeypatch.setattr(np.random, "PCG64", lambda n: drawn.append(n) or real(n))
    after = []
    for severity in SEVERITIES:
        corrupt_image(part(2), name, severity, seed=3, identity="x")
    assert len(set(drawn)) == 1 and len(drawn) == 5
    # and as many are taken, whatever the parameters
    for severity in SEVERITIES:
        rng = np.random.default_rng(0)
        kind = get_corruption(name)
        kind.apply(part(2), rng, **kind.at(severity))
        after.append(rng.random())
    assert len(set(after)) == 1


def test_neither_order_nor_threads_matter(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.png", part(i, 60, 80)) for i in range(6)]

    def source(path: Path) -> AlteredImage:
        def alter(image: np.ndarray) -> np.ndarray:
            return corrupt_image(image, "noise", 4, identity=path.name)

        return AlteredImage(str(path), alter)

    forward = list(stream_images([source(p) for p in paths], (40, 40), threads=3))
    backward = list(stream_images([source(p) for p in paths[::-1]], (40, 40), threads=1))
    for one, other in zip(forward, backward[::-1]):
        assert one.name == other.name and one.original_size == (60, 80)
        assert (np.asarray(one.pixels) == np.asarray(other.pixels)).all()
    expected = resize_image(
        corrupt_image(read_image(paths[0]), "noise", 4, identity="0.png"), (40, 40)
    )
    assert (np.asarray(forward[0].pixels) == expected).all()  # corrupted before it is resized


def test_an_altered_image_that_cannot_be_read_has_its_error(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("broken")
    (one,) = stream_images([AlteredImage(str(tmp_path / "x.png"), lambda image: image)], (8, 8))
    assert one.pixels is None and one.error is not None and "x.png" in str(one.error)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (1, 50), (2, 3000), (3000, 2)])
def test_any_size(name: str, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for severity in (1, 5):
        result = corrupt_image(image, name, severity)
        assert result.shape == image.shape and result.dtype == np.uint8
        mask = corrupt_mask(image[:, :, 0], name, severity)
        assert mask.shape == shape and mask.dtype == np.uint8


@pytest.mark.parametrize("name", NAMES)
def test_sides_beyond_what_formats_and_libraries_count(name: str) -> None:
    image = np.tile(part(3, 2, 700), (1, 100, 1))  # 70,000 pixels wide
    assert corrupt_image(image, name, 2).shape == image.shape


@pytest.mark.parametrize("name", NAMES)
def test_grey_stays_grey(name: str) -> None:
    for severity in (1, 3, 5):
        result = corrupt_image(part(4, grey=True), name, severity, identity="g")
        assert (result[:, :, 0] == result[:, :, 1]).all()
        assert (result[:, :, 0] == result[:, :, 2]).all()


@pytest.mark.parametrize(
    "name", ["lighting", "blur", "glare", "geo_jitter", "noise", "contrast", "defocus", "motion"]
)
def test_small_and_large_images_suffer_alike(name: str) -> None:
    small, large = part(5, 300, 400), part(5, 1200, 1600)
    for severity in (3, 5):
        one = change(corrupt_image(small, name, severity, identity="i"), small)
        shrunk = resize_image(corrupt_image(large, name, severity, identity="i"), (300, 400))
        other = change(shrunk, resize_image(large, (300, 400)))
        assert 0.6 < one / other < 1.6


@pytest.mark.parametrize("severity", [0, 6, -1, True, 1.0, "1", None])
def test_there_are_five_severities(severity: object) -> None:
    with pytest.raises(UsageError, match="severity must be 1, 2, 3, 4 or 5, got"):
        corrupt_image(part(0), "blur", severity)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="severity must be"):
        corrupt_mask(np.zeros((4, 4), np.uint8), "blur", severity)  # type: ignore[arg-type]


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown corruption 'jpg'; did you mean jpeg"):
        corrupt_image(part(0), "jpg", 1)
    for image in (part(0)[:, :, 0], part(0).astype(float), np.zeros((0, 4, 3), np.uint8), None):
        with pytest.raises(UsageError, match="image must be an"):
            corrupt_image(image, "blur", 1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="mask must be an"):
        corrupt_mask(part(0), "blur", 1)
    for seed in (-1, 1.5, True):
        with pytest.raises(UsageError, match="seed must be an integer"):
            corrupt_image(part(0), "blur", 1, seed=seed)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(identity=st.text(st.characters(), max_size=20), seed=st.integers(0, 2**64))
def test_any_name_and_seed(identity: str, seed: int) -> None:
    image = part(0, 6, 5)
    one = corrupt_image(image, "noise", 5, seed=seed, identity=identity)
    assert (one == corrupt_image(image, "noise", 5, seed=seed, identity=identity)).all()
    corrupt_image(image, "noise", 5, identity="\udcfc.png")  # a byte that is no text


# ---- masks


def square(height: int = 120, width: int = 160) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[50:70, 90:120] = 255
    return mask


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("identity", ["a", "b", "c"])
def test_masks_move_as_the_image_does(severity: int, identity: str) -> None:
    mask = square()
    mask[:8, 60:90] = 255  # at the border, where what comes in is reflected
    image = np.repeat(mask[:, :, None], 3, axis=2)
    moved = corrupt_mask(mask, "geo_jitter", severity, seed=1, identity=identity)
    seen = corrupt_image(image, "geo_jitter", severity, seed=1, identity=identity)[:, :, 0]
    assert set(np.unique(moved)) == {0, 255} and (moved != mask).any()
    # the nearest pixel is a quarter of the value at least, also at a corner
    assert (moved[seen > 194] == 255).all() and (moved[seen < 61] == 0).all()
    assert ((seen > 194) | (seen < 61)).mean() > 0.95


def test_values_of_a_mask_stay() -> None:
    mask = square()
    mask[mask > 0] = 7
    moved = corrupt_mask(mask, "geo_jitter", 5)
    assert set(np.unique(moved)) == {0, 7}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "geo_jitter"])
def test_nothing_else_moves(name: str) -> None:
    mask = square()
    assert corrupt_mask(mask, name, 5) is mask
    assert not CORRUPTIONS[name].moves


def test_how_far_it_moves() -> None:
    """The centre moves by the drawn share, 0.7 to 1, of what the table says."""
    mask = np.zeros((401, 401), np.uint8)
    mask[195:206, 195:206] = 1
    for severity in SEVERITIES:
        shift = CORRUPTIONS["geo_jitter"].at(severity)["shift"] * 401
        for identity in "abcdef":
            moved = corrupt_mask(mask, "geo_jitter", severity, identity=identity)
            away = np.hypot(*(np.argwhere(moved).mean(axis=0) - 200))
            assert 0.7 * shift - 1 < away < shift + 1


@pytest.mark.parametrize("nearest", [False, True])
def test_long_images_are_warped_alike(monkeypatch: pytest.MonkeyPatch, nearest: bool) -> None:
    image = square() if nearest else part(6, 120, 160)
    keywords = {"degrees": 3.0, "shift": 0.03, "zoom": 0.02, "nearest": nearest}
    usual = distort.geo_jitter(image, np.random.default_rng(2), **keywords)
    monkeypatch.setattr(distort, "_WARP_SIDE", 1)
    long = distort.geo_jitter(image, np.random.default_rng(2), **keywords)
    assert change(usual, image) > 1 and change(usual, long) < 0.5


# ---- formulas


def test_noise_has_the_variance_it_says() -> None:
    for value, severity in ((60, 3), (128, 3), (200, 5)):
        p = CORRUPTIONS["noise"].at(severity)
        image = np.full((400, 500, 3), value, np.uint8)
        noisy = corrupt_image(image, "noise", severity).astype(float) / 255
        light = (value / 255) ** 2.2
        wanted = np.sqrt(p["shot"] * light + p["read"] ** 2)
        assert np.std(noisy**2.2) == pytest.approx(wanted, rel=0.06)
        assert np.mean(noisy**2.2) == pytest.approx(light, rel=0.03)
    noisy = corrupt_image(np.full((400, 500, 3), (90, 120, 150), np.uint8), "noise", 5)
    assert abs(np.corrcoef(noisy[:, :, 0].ravel(), noisy[:, :, 1].ravel())[0, 1]) < 0.02


def test_contrast_keeps_the_mean() -> None:
    image = part(7)
    result = corrupt_image(image, "contrast", 4).astype(float)
    kept = CORRUPTIONS["contrast"].at(4)["kept"]
    assert result.mean((0, 1)) == pytest.approx(image.mean((0, 1)), abs=0.3)
    assert result.std((0, 1)) == pytest.approx(kept * image.std((0, 1)), rel=0.02)


@pytest.mark.parametrize("name", ["blur", "defocus", "motion"])
def test_blurs_keep_the_mean_and_a_flat_image(name: str) -> None:
    flat = np.full((90, 120, 3), (10, 128, 240), np.uint8)
    assert (corrupt_image(flat, name, 5) == flat).all()
    dot = np.zeros((201, 201, 3), np.uint8)
    dot[99:102, 99:102] = 255
    spread = corrupt_image(dot, name, 5).astype(float)
    assert spread.sum() == pytest.approx(dot.sum(dtype=float), rel=0.1)
    rows, columns = np.nonzero(spread[:, :, 0] > 1)
    reach = max(np.ptp(rows), np.ptp(columns)) / 201
    wanted = {"blur": 4 * 0.008, "defocus": 2 * 0.0135, "motion": 0.034 / np.sqrt(2)}[name]
    assert reach > wanted


def test_motion_is_along_a_line() -> None:
    dot = np.zeros((201, 201, 3), np.uint8)
    dot[100, 100] = 255
    streak = corrupt_image(np.asarray(dot), "motion", 5)[:, :, 0].astype(float)
    points = np.argwhere(streak > 8) - 100
    spread = np.linalg.svd(points - points.mean(0), compute_uv=False)
    assert spread[0] > 3 * spread[1]


def test_lighting_is_darker_or_brighter() -> None:
    flat = np.full((60, 80, 3), 100, np.uint8)
    means = [corrupt_image(flat, "lighting", 5, identity=str(i)).mean() for i in range(40)]
    assert all(abs(mean - 100) > 20 for mean in means)
    assert 8 < sum(mean > 100 for mean in means) < 32


def test_glare_only_adds_and_saturates() -> None:
    image = part(8)
    image[:] = np.minimum(image, 150)
    results = [corrupt_image(image, "glare", 5, identity=str(i)) for i in range(5)]
    assert all((result >= image).all() and result.max() >= 235 for result in results)


def test_jpeg_is_what_the_codec_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    image = part(9, 65, 97)
    quality = int(CORRUPTIONS["jpeg"].at(5)["quality"])
    coded = simplejpeg.encode_jpeg(image, quality, colorspace="RGB", colorsubsampling="420")
    assert (corrupt_image(image, "jpeg", 5) == simplejpeg.decode_jpeg(coded, "RGB")).all()
    grey = part(9, 65, 97, grey=True)
    whole = corrupt_image(grey, "jpeg", 5)
    monkeypatch.setattr(distort, "_JPEG_SIDE", 32)
    assert (corrupt_image(grey, "jpeg", 5) == whole).all()  # pieces end at a block's border


def test_every_parameter_grows_with_severity() -> None:
    for name, kind in CORRUPTIONS.items():
        assert kind.name == name and kind.about
        for values in kind.parameters.values():
            assert len(values) == 5
            assert list(values) in (sorted(values), sorted(values, reverse=True))
