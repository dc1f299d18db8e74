"""Copies of images: found, left out together, and counted once."""

from __future__ import annotations

import io
import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pyimgano.datasets import check_dataset, get_layout, load_category
from pyimgano.images import CopyGroups, copies_among, signature_of
from pyimgano.models import Detector, create_model, load_model
from pyimgano.models.gaussian import group_left_out
from pyimgano.models.seen_images import SeenImages, calibrate_apart, largest_of_each
from pyimgano.models.training.images import divide
from pyimgano.pipelines.measure import Task, fit, measure
from tests.pixel_detector import Darkness

_Image = npt.NDArray[np.uint8]

# A small network without weights: what is asked here does not turn on what it learned.
SMALL = {"backbone": "resnet18", "pretrained": False, "layers": ("layer2", "layer3")}


def part(number: int, side: int = 64) -> _Image:
    """A part under a fixed camera: a disc, and speckles that are its own."""
    rng = np.random.default_rng(number)
    speckles = cv2.resize(rng.normal(0, 12, (12, 12)), (side, side), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:side, :side] / side - 0.5
    plain = 60 + 90 * (np.hypot(y, x) < 0.35) + speckles
    return np.clip(np.stack([plain, 0.8 * plain, 0.6 * plain], axis=2), 0, 255).astype(np.uint8)


def jpeg(image: _Image, quality: int) -> _Image:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data).convert("RGB"))


def resized(image: _Image, factor: float) -> _Image:
    """As it comes from a file of another size, brought to the working size."""
    height, width = image.shape[:2]
    small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height)), np.uint8)


def frame(image: _Image) -> _Image:
    """The next picture of a video: a third of a pixel further, with the camera's noise."""
    move = np.array([[1, 0, 0.3], [0, 1, 0.2]], np.float32)
    height, width = image.shape[:2]
    moved = cv2.warpAffine(image, move, (width, height), borderMode=cv2.BORDER_REFLECT)
    noise = np.random.default_rng(int(image.sum()) % 1000).normal(0, 2, image.shape)
    return np.clip(np.round(moved + noise), 0, 255).astype(np.uint8)


PARTS = [part(number, 256) for number in range(12)]


def groups(images: list[_Image]) -> CopyGroups:
    return CopyGroups.of([signature_of(image) for image in images])


# ---- finding


def test_parts_under_a_fixed_camera_are_no_copies() -> None:
    found = groups(PARTS)
    assert found.group.tolist() == list(range(12))
    assert (found.distinct, found.copies, found.alike) == (12, 0, 0)


@pytest.mark.parametrize(
    "changed",
    [
        lambda image: image.copy(),
        lambda image: jpeg(image, 75),
        lambda image: jpeg(image, 50),
        lambda image: resized(image, 0.5),
        lambda image: resized(image, 0.9),
        lambda image: jpeg(resized(image, 0.7), 75),
        frame,
        lambda image: np.clip(image * 1.05 + 3, 0, 255).astype(np.uint8),
    ],
    ids=["same", "q75", "q50", "half", "nine-tenths", "resized-jpeg", "video", "brighter"],
)
def test_a_changed_image_is_a_copy(changed: object) -> None:
    found = groups([*PARTS, *(changed(image) for image in PARTS)])  # type: ignore[operator]
    assert found.group.tolist() == [*range(12), *range(12)]
    assert (found.distinct, found.copies) == (12, 12)
    assert [some.tolist() for some in found.members()] == [[n, n + 12] for n in range(12)]


def test_many_copies_of_each_are_one_group() -> None:
    """More than are compared closely, of two kinds that differ."""
    images = [image for image in PARTS[:3] for _ in range(12)]
    images += [jpeg(image, 60) for image in PARTS[:3] for _ in range(12)]
    found = groups(images)
    assert found.distinct == 3
    assert found.group[36:].tolist() == found.group[:36].tolist()


def test_equal_images_are_one_and_blank_ones_are_told_apart_by_their_noise() -> None:
    equal = groups([PARTS[0]] * 5)
    assert (equal.distinct, equal.alike) == (1, 0)
    flat = groups([np.full((32, 32, 3), 7, np.uint8)] * 3)
    assert (flat.distinct, flat.copies) == (1, 2)
    levels = groups([np.full((32, 32, 3), value, np.uint8) for value in (7, 8, 200)])
    assert levels.distinct == 3
    rng = np.random.default_rng(0)
    blank = [np.clip(rng.normal(128, 3, (64, 64, 3)), 0, 255).astype(np.uint8) for _ in range(8)]
    assert groups(blank).distinct == 8


def test_pictures_of_one_scene_promise_nothing() -> None:
    rng = np.random.default_rng(0)
    noisy = [
        np.clip(PARTS[0] + rng.normal(0, 1, PARTS[0].shape), 0, 255).astype(np.uint8)
        for _ in range(6)
    ]
    found = groups(noisy)
    assert found.alike == 6
    assert found.distinct == 1
    assert found.group.tolist() == list(range(6))  # scored as if they were distinct
    most = groups([*noisy, *PARTS[5:8]])
    assert (most.alike, most.distinct) == (6, 4)
    assert most.group.tolist() == list(range(9))
    few = groups([*noisy, *PARTS[5:12]])
    assert (few.alike, few.distinct) == (0, 8)
    assert few.group.tolist() == [0] * 6 + list(range(6, 13))


def test_groups_without_images_and_with_one() -> None:
    assert groups([]).distinct == 0
    assert groups(PARTS[:1]).distinct == 1


def test_test_images_that_are_training_images() -> None:
    known = [signature_of(image) for image in PARTS[:8]]
    others = [signature_of(PARTS[9]), signature_of(jpeg(PARTS[3], 75)), signature_of(PARTS[10])]
    assert copies_among(known, others) == [(1, 3)]
    assert copies_among([], others) == []


# ---- leaving out


def test_a_group_is_left_out_of_a_gaussian_exactly() -> None:
    import torch

    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 4))
    x[7:] = x[2] + 0.01 * rng.normal(size=(2, 4))
    members, ridge = [2, 7, 8], 0.3
    away = x - x.mean(axis=0)
    whole = away.T @ away + ridge * np.eye(4)
    factor = np.linalg.inv(np.linalg.cholesky(whole))
    z = torch.from_numpy((factor @ away[members].T)[None])
    others = np.delete(x, members, axis=0)
    rest = others - others.mean(axis=0)
    inverse = np.linalg.inv(rest.T @ rest + ridge * np.eye(4))
    want = [(x[i] - others.mean(axis=0)) @ inverse @ (x[i] - others.mean(axis=0)) for i in members]
    np.testing.assert_allclose(group_left_out(z, 9, 3)[:, 0].numpy(), want, rtol=1e-9)


def test_copies_are_in_the_part_of_their_first() -> None:
    group = np.array([n % 20 for n in range(40)])
    parts = divide(40, calibrate=True, groups=group)
    plain = divide(20, calibrate=True)
    for some, wanted in ((parts.calibrate, plain.calibrate), (parts.learn, plain.learn)):
        assert sorted(set(group[some])) == wanted.tolist()
        assert len(some) == 2 * len(wanted)
    same = divide(20, calibrate=True, groups=np.arange(20))
    assert same.learn.tolist() == plain.learn.tolist()


def test_the_largest_score_of_a_group() -> None:
    scores = np.array([3.0, 1.0, 2.0, 5.0, 4.0])
    assert largest_of_each(scores, np.array([0, 1, 0, 1, 4])).tolist() == [0, 3, 4]


def test_calibration_images_that_are_copies_do_not_count() -> None:
    known = [signature_of(image) for image in PARTS[:6]]
    held = [signature_of(one) for one in (PARTS[6], jpeg(PARTS[0], 75), PARTS[7], PARTS[7])]
    kept, unseen, notes = calibrate_apart(np.array([1.0, 0.0, 2.0, 3.0]), held, known)
    assert kept.tolist() == [0, 3]
    assert unseen
    assert "1 of the 4" in notes[0]
    assert "2 are distinct" in notes[1]
    kept, unseen, _ = calibrate_apart(np.array([1.0, 2.0]), known[:2], known)
    assert kept.tolist() == [0, 1]
    assert not unseen


DETECTORS = {
    "vision_knn": {},
    "vision_gmm": {},
    "vision_mahalanobis": {},
    "vision_dfm": {},
    "vision_spade": {},
    "vision_padim": {"d_reduced": 20},
    "vision_softpatch": {"outlier_cutoff": None},
    "vision_patchcore": {"recipe": "paper"},
    "whitened": {"recipe": "whitened"},
}


def fitted(name: str, images: list[_Image]) -> Detector:
    model = "vision_patchcore" if name == "whitened" else name
    keywords = {**SMALL, "resize": (64, 64), **DETECTORS[name]}
    return create_model(model, **keywords).fit(images)


@pytest.mark.parametrize("name", DETECTORS)
def test_copies_neither_lower_the_threshold_nor_raise_the_promise(name: str) -> None:
    parts = [part(number) for number in range(8)]
    plain = fitted(name, parts)
    twice = fitted(name, [*parts, *(jpeg(one, 95) for one in parts)])
    assert plain.copies_ == ()
    assert twice.copies_ == tuple((n, n + 8) for n in range(8))
    assert twice.calibration_.n_scores == 8 == len(twice.decision_scores_)
    assert twice.calibration_.promised_false_alarm_rate == pytest.approx(1 / 9)
    assert twice.n_train_ == 16
    assert twice.seen_ is not None
    assert (twice.seen_.images, twice.seen_.distinct) == (16, 8)
    assert "8 are distinct" in twice.calibration_.notes[0]
    assert not any("distinct" in note for note in plain.calibration_.notes)
    new = [part(number) for number in range(50, 58)]
    alarms = (twice.decision_function(new) >= twice.threshold_).mean()
    assert alarms <= 0.5  # of images that were learned twice each, all are alarms


@pytest.mark.parametrize("name", ["vision_knn", "vision_padim", "vision_dfm", "whitened"])
def test_copies_of_one_image_promise_nothing(name: str) -> None:
    detector = fitted(name, [part(0)] * 3)
    calibration = detector.calibration_
    assert calibration.promised_false_alarm_rate is None
    assert any("copies of one" in note for note in calibration.notes)
    assert np.isfinite(detector.threshold_)


def test_images_of_another_kind() -> None:
    grey = np.repeat(part(0)[..., :1], 3, axis=2)
    seen = SeenImages.of([(60, 80), (60, 90)], [signature_of(part(n)) for n in range(2)], 2)
    assert seen.unlike((60, 80), signature_of(part(5))) is None
    assert "80 pixels" in str(seen.unlike((80, 60), signature_of(part(5))))
    assert seen.unlike((60, 85), signature_of(grey)) == (
        "it is grey, and all training images are in colour"
    )
    trained_on_grey = SeenImages.of([(60, 80)], [signature_of(grey)], 1)
    assert "in colour" in str(trained_on_grey.unlike((60, 80), signature_of(part(5))))
    assert trained_on_grey.unlike((60, 80), None) is None


def test_a_saved_detector_remembers_its_images(tmp_path: Path) -> None:
    detector = fitted("vision_knn", [part(number) for number in range(4)])
    detector.save(tmp_path / "saved", include_backbone=True)
    loaded = load_model(tmp_path / "saved")
    assert isinstance(loaded, Detector)
    assert loaded.seen_ == detector.seen_
    grey = np.repeat(part(9)[..., :1], 3, axis=2)
    portrait = part(9)[:, :32]
    found = [one.unlike_training for one in loaded.score_images([part(9), grey, portrait])]
    assert found[0] is None
    assert found[1] is not None and "grey" in found[1]
    assert found[2] is not None and "as wide as high" in found[2]
    document = tmp_path / "saved" / "detector.json"
    facts = json.loads(document.read_text())
    del facts["training_images"]  # as older ones have none
    document.write_text(json.dumps(facts))
    old = load_model(tmp_path / "saved")
    assert isinstance(old, Detector)
    assert old.seen_ is None
    assert [one.unlike_training for one in old.score_images([portrait])] == [None]


# ---- runs and checks


def written(folder: Path, images: list[_Image], suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03d}{suffix}")


def dataset(root: Path) -> Path:
    """Six parts, one of them twice; one of the test images is a training image, one portrait."""
    category = root / "nut"
    written(category / "train/good", [*PARTS[:6], resized(PARTS[2], 0.5)])
    written(category / "test/good", [jpeg(PARTS[4], 75), PARTS[7], PARTS[8][:, 64:192]])
    written(category / "test/spot", [PARTS[9]])
    written(category / "ground_truth/spot", [])
    Image.fromarray(np.eye(256, dtype=np.uint8) * 255).save(
        category / "ground_truth/spot/000_mask.png"
    )
    return root


def test_the_check_finds_copies_where_it_decodes(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    kinds = {"similar_image", "shared_image"}

    def told(deep: bool) -> list[tuple[str, str, bool]]:
        (one,) = check_dataset("mvtec", root, deep=deep).categories
        return [
            (found.kind, Path(found.path).parent.name + "/" + Path(found.path).name, found.error)
            for found in one.findings
            if found.kind in kinds
        ]

    assert told(deep=False) == []
    assert told(deep=True) == [
        ("similar_image", "good/006.png", False),
        ("shared_image", "good/000.png", False),
    ]


def test_a_run_tells_of_shared_images_and_of_other_kinds(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    detector = Darkness(resize=(64, 64))
    category = load_category(get_layout("mvtec"), root, "nut")
    task = Task([str(one.path) for one in category.train], category.test)
    measured = measure(detector, task, fit(detector, task))
    assert detector.copies_ == ((2, 6),)
    assert detector.calibration_.n_scores == 6
    other, shared = measured.notes
    assert other.startswith("1 of 4 test images is of another kind")
    assert "002.png: 128 x 256 pixels" in other
    assert shared.startswith("1 of 4 test images is a copy of training images")
    assert shared.endswith("000.png")


def test_the_cache_of_features_keeps_signatures(tmp_path: Path) -> None:
    """Or a second run would know of no copies."""
    written(tmp_path / "images", [PARTS[0], PARTS[1], PARTS[2], jpeg(PARTS[1], 90)])
    paths = sorted(str(path) for path in (tmp_path / "images").iterdir())
    keywords = {**SMALL, "resize": (64, 64), "cache_dir": str(tmp_path / "cache")}
    first = create_model("vision_knn", **keywords).fit(paths)
    again = create_model("vision_knn", **keywords).fit(paths)
    assert first.copies_ == again.copies_ == ((1, 3),)
    assert again.decision_scores_.tolist() == first.decision_scores_.tolist()
    assert again.seen_ == first.seen_


def test_a_suspect_is_left_out_with_its_copies() -> None:
    odd = (part(70) // 4).astype(np.uint8)
    images = [jpeg(odd, 90), part(0), jpeg(part(0), 90), odd, *map(part, range(1, 20))]
    (suspect,) = Darkness().fit(images).training_suspects_
    assert any("1 image is a copy of it" in reason for reason in suspect.reasons)
    without = Darkness().fit(images, exclude_suspects=True)
    assert [one.index for one in without.excluded_] == [0, 3]
    assert without.n_train_ == 21 and without.training_suspects_ == []
    assert without.copies_ == ((1, 2),)  # positions in what `fit` was given
    assert "1 of 21 good images was left out" in without.calibration_.notes[-1]
    held = [part(number) for number in range(40, 60)]
    asked = Darkness().fit(
        images[4:], calibration_images=[odd, jpeg(odd, 90), *held], exclude_suspects=True
    )
    assert [(one.index, one.role) for one in asked.excluded_] == [
        (0, "calibration"),
        (1, "calibration"),
    ]
    assert asked.calibration_.n_scores == 20
