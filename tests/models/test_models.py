"""The registry, and the contract that every registered detector keeps."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import pickle
import pkgutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from pydantic import Field
from sklearn.base import clone

from pyimgano.cli.models_table import type_in_words
from pyimgano.errors import DataError, ImageReadError, NotFittedError, UsageError
from pyimgano.models import (
    create_model,
    list_models,
    load_model,
    model_info,
    register_model,
)
from pyimgano.models import registry as registry_module
from pyimgano.models.built_in import BUILT_IN
from pyimgano.models.detector import Detector
from pyimgano.models.parameters import Count, DetectorParams, Ratio
from pyimgano.threads import limited_threads
from tests.conftest import copy_registry, picture, save
from tests.pixel_detector import Darkness, DarknessMethod, plain

IMAGES = [picture(i) for i in range(6)]


#: Keywords that make a model quick to fit, where its defaults are not.
CHEAP: dict[str, dict[str, object]] = {
    "vision_iforest": {"n_estimators": 8},
    # whose weights users bring
    "vision_anomalydino": {"backbone": "dinov3_vits16", "pretrained": False, "turns": 2},
    "vision_subspace": {"backbone": "dinov3_vits16", "pretrained": False, "turns": 2},
    "vision_rad": {"backbone": "dinov3_vits16", "pretrained": False},
    "vision_dinomaly": {
        "backbone": "dinov3_vits16",
        "pretrained": False,
        "layers": ["block0", "block1"],
        "steps": 1,
        "engine": "torch",
    },
    "vision_padim": {"d_reduced": 24},
    "vision_stfpm": {"steps": 3, "train_batch_size": 4, "engine": "torch"},
    "vision_reverse_distillation": {"steps": 3, "train_batch_size": 4, "engine": "torch"},
    "vision_supersimplenet": {"steps": 2, "hidden_dim": 32, "engine": "torch"},
    "vision_efficientad": {
        "steps": 1,
        "teacher_steps": 1,
        "train_batch_size": 2,
        "engine": "torch",
    },
}

LEFT = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]


def make(name: str, **keywords: object) -> Detector:
    cheap = CHEAP.get(name, {})
    return create_model(name, **{"resize": (64, 64), "device": "cpu", **cheap, **keywords})


@cache
def fitted_once(name: str, region: bool) -> Detector:
    return make(name, **({"roi": LEFT} if region else {})).fit(IMAGES)


@pytest.fixture
def fitted(name: str) -> Detector:
    """Fitted on IMAGES, once for all tests; each gets a copy of its own."""
    return copy.deepcopy(fitted_once(name, False))


@pytest.fixture
def fitted_in_region(name: str) -> Detector:
    """As `fitted`, with the left half as region of interest."""
    return copy.deepcopy(fitted_once(name, True))


def scores_and_maps(detector: Detector, images: list[np.ndarray]) -> tuple[list, list]:
    found = list(detector.score_images(images))
    return [one.score for one in found], [one.anomaly_map for one in found]


def assert_same(one: tuple[list, list], two: tuple[list, list]) -> None:
    """To the bit."""
    assert one[0] == two[0]
    for first, second in zip(one[1], two[1], strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", list_models(), scope="class")  # one model after another
class TestContract:
    def test_is_an_estimator(self, name: str) -> None:
        detector = make(name, contamination=0.2)
        params = detector.get_params()
        assert params["contamination"] == 0.2 and params["resize"] == (64, 64)
        twin = clone(detector)
        assert twin is not detector and twin.get_params() == params
        assert detector.set_params(contamination=0.3) is detector
        assert detector.contamination == 0.3
        with pytest.raises(UsageError, match="did you mean contamination"):
            detector.set_params(contaminaton=0.3)
        assert "contamination=0.3" in repr(detector)

    def test_shapes_and_decisions(self, name: str, fitted: Detector) -> None:
        test = [picture(50 + i, spot=i % 2 == 0) for i in range(5)]
        scores = fitted.decision_function(test)
        assert scores.shape == (5,) and scores.dtype == np.float64 and np.isfinite(scores).all()
        assert fitted.predict(test).tolist() == (scores >= fitted.threshold_).tolist()
        n = len(fitted.decision_scores_)
        assert n == (2 if fitted.calibration_.method == "held-out-images" else 6)
        if "trained" not in model_info(name)["tags"]:  # by so few steps: their own tests see to it
            assert scores[::2].min() > scores[1::2].max()  # those with a spot
        if fitted.has_maps:
            maps = fitted.predict_anomaly_map(test)
            assert maps.shape == (5, 64, 64) and maps.dtype == np.float32
            assert np.isfinite(maps).all() and (maps >= 0).all()
            np.testing.assert_array_equal(fitted.get_anomaly_map(test[0]), maps[0])
            assert fitted.predict_anomaly_map([]).shape == (0, 64, 64)
        else:
            with pytest.raises(UsageError, match="scores whole images and has no anomaly maps"):
                fitted.predict_anomaly_map(test)
            assert fitted.pixel_calibration_ is None
        assert fitted.decision_function([]).shape == (0,)
        assert json.dumps(fitted.describe(), allow_nan=False)

    def test_a_fit_is_the_same_again_whatever_the_threads(
        self, name: str, fitted: Detector
    ) -> None:
        images = [*IMAGES[:2], picture(50, spot=True)]
        was, scored = fitted.decision_scores_, scores_and_maps(fitted, images)
        with limited_threads(1):
            found = fitted.fit_predict(IMAGES, [0] * 6)
            assert found.shape == (6,)
            assert len(was) < 6 or not found.any()
            np.testing.assert_array_equal(fitted.decision_scores_, was)
            assert_same(scores_and_maps(fitted, images), scored)

    def test_an_image_is_scored_by_itself(self, name: str, fitted: Detector) -> None:
        """Whatever is scored with it, before it, and how many at a time."""
        images = [*IMAGES, picture(50, spot=True), picture(51), picture(52)]
        whole = scores_and_maps(fitted, images)
        order = [4, 7, 0, 6, 8, 1, 3, 5, 2]
        for size in (1, 4):
            vars(fitted)["batch_size"] = size
            found = scores_and_maps(fitted, [images[i] for i in order])
            assert_same(found, tuple([part[i] for i in order] for part in whole))

    def test_unfitted(self, name: str) -> None:
        with pytest.raises(NotFittedError, match="not fitted yet"):
            make(name).decision_function(IMAGES)

    def test_unreadable_images(self, name: str, tmp_path: Path, fitted: Detector) -> None:
        paths = [str(save(tmp_path / f"{i}.png", image)) for i, image in enumerate(IMAGES)]
        broken = tmp_path / "broken.png"
        broken.write_bytes(Path(paths[0]).read_bytes()[:200])
        mixed = [*paths[:3], str(broken), *paths[3:]]
        with pytest.raises(ImageReadError, match=r"broken\.png"):
            make(name).fit(mixed)
        detector = make(name).fit(mixed, on_error="skip")
        assert [skipped.path for skipped in detector.skipped_] == [str(broken)]
        assert detector.skipped_[0].index == 3 and detector.n_train_ == 6
        np.testing.assert_array_equal(detector.decision_scores_, fitted.decision_scores_)
        with pytest.raises(ImageReadError, match=r"broken\.png"):
            detector.predict(mixed)
        recorded = list(detector.score_images(mixed, on_error="record"))
        assert [r.index for r in recorded] == list(range(7))
        assert recorded[3].score is None and recorded[3].anomaly_map is None
        assert recorded[3].error is not None and recorded[3].error.path == str(broken)
        assert all(r.score is not None for r in recorded if r.index != 3)
        with pytest.raises(DataError, match="none of 1 training images could be used; the first: "):
            make(name).fit([str(broken)], on_error="skip")

    def test_bad_input(self, name: str) -> None:
        with pytest.raises(UsageError, match="X is empty"):
            make(name).fit([])
        with pytest.raises(UsageError, match="got one path"):
            make(name).fit("folder")  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="on_error"):
            make(name).fit(IMAGES, on_error="ignore")  # type: ignore[arg-type]

    def test_images_of_any_size(self, name: str, fitted: Detector) -> None:
        tiny = np.zeros((1, 1, 3), np.uint8)
        found = list(fitted.score_images([tiny, picture(3, 300)]))
        assert [one.original_size for one in found] == [(1, 1), (300, 300)]
        assert all(np.isfinite(one.score) for one in found)

    def test_a_failed_fit_leaves_nothing_behind(self, name: str, fitted: Detector) -> None:
        with pytest.raises(ImageReadError):
            fitted.fit([IMAGES[0], "/no/where.png"])
        with pytest.raises(NotFittedError):
            fitted.predict(IMAGES)

    def test_keywords_set_after_fit_wait_for_the_next(self, name: str, fitted: Detector) -> None:
        """Which is here on one image, of another size."""
        before = scores_and_maps(fitted, IMAGES[:2])
        fitted.set_params(resize=(32, 48))
        assert_same(scores_and_maps(fitted, IMAGES[:2]), before)
        fitted.fit([picture(0, 90)])
        scores, maps = scores_and_maps(fitted, [picture(0, 90), picture(1, spot=True)])
        assert np.isfinite(scores).all() and fitted.decision_scores_.shape == (1,)
        assert np.isfinite(fitted.threshold_)
        assert fitted.calibration_.promised_false_alarm_rate is None or (
            fitted.calibration_.promised_false_alarm_rate >= 0.5
        )
        if fitted.has_maps:
            assert maps[0].shape == (32, 48) and np.isfinite(maps).all()

    @pytest.mark.parametrize(
        "images",
        [
            pytest.param([picture(0)] * 3, id="identical"),
            pytest.param([np.full((64, 64, 3), grey, np.uint8) for grey in (0, 0, 255)], id="flat"),
        ],
    )
    def test_images_with_nothing_to_learn_from(self, name: str, images: list[np.ndarray]) -> None:
        detector = make(name).fit(images)
        assert np.isfinite(detector.decision_scores_).all() and np.isfinite(detector.threshold_)
        for one in detector.score_images([*images, picture(3, spot=True)]):
            assert np.isfinite(one.score)
            assert one.anomaly_map is None or np.isfinite(one.anomaly_map).all()

    def test_a_score_that_is_not_finite_is_an_error(
        self, name: str, fitted: Detector, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        score = fitted.learned_.score

        def broken(images, maps):  # type: ignore[no-untyped-def]
            scores, anomaly_maps = score(images, maps)
            scores[1] = np.nan
            return scores, anomaly_maps

        monkeypatch.setattr(fitted.learned_, "score", broken)
        with pytest.raises(ImageReadError, match="image 1: the score or the map is not finite"):
            fitted.predict(IMAGES[:3])
        recorded = list(fitted.score_images(IMAGES[:3], on_error="record"))
        assert [r.score is None for r in recorded] == [False, True, False]

    def test_bad_files_are_reported_as_they_come(self, name: str, fitted: Detector) -> None:
        def endless():  # type: ignore[no-untyped-def]
            while True:
                yield "/no/where.png"

        stream = fitted.score_images(endless(), on_error="record")
        assert all(next(stream).error is not None for _ in range(30))
        stream.close()

    def test_endless_input_is_scored_as_it_comes(self, name: str, fitted: Detector) -> None:
        def endless():  # type: ignore[no-untyped-def]
            while True:
                yield picture(3)

        stream = fitted.score_images(endless(), maps=False)
        assert [next(stream).index for _ in range(9)] == list(range(9))
        stream.close()

    def test_comes_back_from_a_folder(
        self, name: str, tmp_path: Path, fitted_in_region: Detector
    ) -> None:
        detector = fitted_in_region
        loaded = load_model(detector.save(tmp_path / "model"))
        assert type(loaded) is type(detector) and loaded.threshold_ == detector.threshold_
        assert loaded.calibration_ == detector.calibration_
        assert loaded.pixel_calibration_ == detector.pixel_calibration_
        assert loaded.describe() == detector.describe() and loaded.n_train_ == 6
        public = {key for key in vars(detector) if key.endswith("_")}
        public -= {"copies_", "decision_images_", "signatures_"}  # which are not saved
        assert public == {key for key in vars(loaded) if key.endswith("_")}
        assert_same(scores_and_maps(loaded, IMAGES), scores_and_maps(detector, IMAGES))
        again = loaded.save(tmp_path / "again")
        for arrays in (tmp_path / "model").glob("*.safetensors"):
            assert (again / arrays.name).read_bytes() == arrays.read_bytes()

    def test_nothing_outside_a_region_counts(
        self, name: str, fitted: Detector, fitted_in_region: Detector
    ) -> None:
        def other(image: np.ndarray) -> np.ndarray:
            changed = image.copy()
            changed[:, 32:] = 255 - changed[:, 32:]
            return changed

        one = fitted_in_region
        two = make(name, roi=LEFT).fit([other(image) for image in IMAGES])
        assert one.threshold_ == two.threshold_ != fitted.threshold_
        test = [picture(50, spot=True)]
        found = scores_and_maps(one, test)
        assert_same(scores_and_maps(two, [other(test[0])]), found)
        if one.has_maps:
            ((found_map,),) = (found[1],)
            assert (found_map[:, 32:] == 0).all() and (found_map[:, :32] > 0).any()

    def test_copies(self, name: str, fitted: Detector) -> None:
        detector = fitted
        pickled = pickle.loads(pickle.dumps(detector))
        for twin in (copy.copy(detector), copy.deepcopy(detector), pickled):
            assert_same(scores_and_maps(twin, IMAGES[:2]), scores_and_maps(detector, IMAGES[:2]))

    def test_info(self, name: str) -> None:
        info = model_info(name)
        json.dumps(info, allow_nan=False)
        assert info["name"] == name and info["summary"] and info["tags"]
        assert str(info["year"]) in info["paper"] and info["link"].startswith("https://")
        assert info["needs_training"] and info["calibration_method"] and info["requires"] is None
        assert info["has_maps"] == ("pixel-map" in info["tags"]) != ("image-level" in info["tags"])
        assert info["parameters"]["contamination"]["default"] is None
        for one in info["parameters"].values():
            assert {"default", "description", "type"} == set(one) and type_in_words(one["type"])
        for preset in info["presets"]:
            create_model(name, preset=preset)

    def test_bad_keywords_are_found_before_any_image(self, name: str) -> None:
        """Every keyword refuses something, and says its name."""
        for keyword in model_info(name)["parameters"]:
            with pytest.raises(UsageError, match=f"^{keyword}") as error:
                create_model(name, **{keyword: object()})
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"n_neighbors": 0}, "n_neighbors: input should be greater than or equal to 1, got 0"),
        ({"n_neighbors": 2.5}, "n_neighbors: input should be a valid integer"),
        ({"n_neighbors": "9"}, "n_neighbors: input should be a valid integer, got '9'"),
        ({"coreset_sampling_ratio": 0.0}, "coreset_sampling_ratio: .* greater than 0"),
        ({"coreset_sampling_ratio": 1.5}, "coreset_sampling_ratio: .* less than or equal to 1"),
        ({"resize": (0, 10)}, "resize"),
        ({"resize": 256}, "resize"),
        ({"pretrained": 1}, "pretrained"),
        ({"calibration_quantile": 1.0}, "calibration_quantile: .* less than 1"),
        ({"contamination": 0.9}, "contamination"),
        ({"calibration": "test-labels"}, "calibration"),
        ({"coreset_ratio": 0.1}, "unknown keyword of vision_patchcore 'coreset_ratio'; did you"),
        ({"preset": "fast"}, "unknown preset of vision_patchcore 'fast'"),
    ],
)
def test_bad_keywords_are_one_line_before_any_image(keywords: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        create_model("vision_patchcore", **keywords)
    assert "\n" not in str(error.value)


def test_the_registry_loads_once_for_many_threads() -> None:
    code = (
        "import threading; from pyimgano.models import list_models; found = []\n"
        "def look(): found.append(len(list_models()))\n"
        "ts = [threading.Thread(target=look) for _ in range(8)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]; assert len(set(found)) == 1 and found[0]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class BaseParams(DetectorParams):
    share: Ratio = Field(0.5, description="A share.")


class MineParams(BaseParams):
    own: Count = Field(3, description="A number of its own.")
    share: Ratio = Field(0.25, description="Another share.")


def test_keywords_that_are_inherited() -> None:
    class MineMethod(DarknessMethod):
        Params = MineParams

    class Mine(Detector):
        """Mine.

        Notes
        -----
        Of no use.
        """

        method = MineMethod

    mine = Mine(resize=(4, 4))
    first = list(mine.get_params().items())[:3]
    assert first == [("own", 3), ("share", 0.25), ("resize", (4, 4))]
    assert str(inspect.signature(Mine)).startswith(
        "(*, own: 'Count' = 3, share: 'Ratio' = 0.25, resize: 'Size' = (256, 256), device: "
    )
    assert Mine.__doc__.startswith(
        "Mine.\n\nParameters\n----------\n"
        "own\n    A number of its own.\nshare\n    Another share.\n"
    )
    assert Mine.__doc__.endswith("\n\nNotes\n-----\nOf no use.\n")
    with pytest.raises(TypeError, match="Mine has no keyword 'owns'"):
        Mine(owns=2)
    with pytest.raises(UsageError, match="share"):
        Mine(share=2.0).validate_params()
    with pytest.raises(UsageError, match="resize"):
        Mine(resize=(0, 4)).validate_params()
    with pytest.raises(UsageError, match="unknown keyword of Mine 'owns'; did you mean own"):
        mine.set_params(owns=2)


def test_numpy_numbers_and_lists_will_do() -> None:
    create_model("vision_patchcore", n_neighbors=np.int64(3), resize=[64, np.int64(64)])
    for size in ((True, 64), ("64", "64"), (64.5, 64)):
        with pytest.raises(UsageError, match="resize"):
            create_model("vision_patchcore", resize=size)


def test_what_is_given_beats_the_preset() -> None:
    preset = create_model("vision_patchcore", preset="industrial-fast")
    assert preset.get_params()["resize"] == (256, 256)
    given = create_model("vision_patchcore", preset="industrial-fast", resize=(96, 96))
    assert given.get_params()["resize"] == (96, 96)


def test_unknown_model_lists_the_near_ones() -> None:
    with pytest.raises(UsageError, match="did you mean vision_patchcore"):
        create_model("vision_patchcor")
    with pytest.raises(UsageError, match="known: "):
        model_info("zzz")


def test_tags_select() -> None:
    assert "vision_patchcore" in list_models(tags="memory-bank")
    assert "vision_patchcore" in list_models(tags=["memory-bank", "pixel-map"])
    assert list_models(tags=["memory-bank", "no-such-tag"]) == []


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_registry(monkeypatch)


def test_registering(fresh_registry: None) -> None:
    base = registry_module.model_entry("vision_patchcore").detector

    @register_model("mine", tags=("own",), metadata={"paper": "none"})
    class Mine(base):  # type: ignore[misc,valid-type]
        """A detector of mine."""

    assert "mine" in list_models(tags="own")
    assert model_info("mine")["summary"] == "A detector of mine."
    assert isinstance(create_model("mine"), Mine)
    with pytest.raises(UsageError, match="registered already"):
        register_model("mine")(Mine)
    register_model("mine", overwrite=True)(Mine)
    with pytest.raises(UsageError, match="subclass of Detector"):
        register_model("other")(dict)  # type: ignore[type-var]
    with pytest.raises(UsageError, match="unknown keyword"):
        register_model("other", presets={"p": {"zzz": 1}})(Mine)


def test_the_table_of_built_in_models_is_what_they_register() -> None:
    """A model whose line is missing in the table would not be found."""
    package = importlib.import_module("pyimgano.models")
    for module in pkgutil.walk_packages(package.__path__, "pyimgano.models."):
        importlib.import_module(module.name)
    ours = {
        name: entry
        for name, entry in registry_module._entries.items()
        if entry.detector.__module__.startswith("pyimgano.models.")
    }
    registered = {
        name: (
            entry.detector.__module__.removeprefix("pyimgano.models."),
            entry.metadata["year"],
            entry.tags,
            entry.summary,
        )
        for name, entry in ours.items()
    }
    assert registered == {name: line[:4] for name, line in BUILT_IN.items()}


def test_quantile_follows_contamination() -> None:
    def asked(**keywords: object) -> float:
        return Darkness(**keywords).fit([plain()]).calibration_.quantile_asked

    assert asked() == 0.995 and asked(contamination=0.25) == 0.75
    assert asked(contamination=0.25, calibration_quantile=0.6) == 0.6


def test_a_built_in_name_is_taken_before_its_module_is_imported() -> None:
    code = (
        "from pyimgano.models import Detector, create_model, register_model\n"
        "from pyimgano.models.method import Method\n"
        "from pyimgano.errors import UsageError\n"
        "class Mine(Detector): method = Method\n"
        "try: register_model('vision_patchcore')(Mine); raise SystemExit('taken over')\n"
        "except UsageError: pass\n"
        "register_model('vision_patchcore', overwrite=True)(Mine)\n"
        "import pyimgano.models.patchcore\n"
        "assert type(create_model('vision_patchcore')) is Mine\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PLUGIN = '''
from pyimgano.models import register_model
from pyimgano.models.registry import model_entry

Base = model_entry("vision_patchcore").detector

@register_model("vision_plugged", tags=("plugged",))
class Plugged(Base):
    """From another package."""
'''


def test_another_package_adds_its_model(tmp_path: Path) -> None:
    (tmp_path / "plugged.py").write_text(PLUGIN)
    info = tmp_path / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyimgano.models]\nplugged = plugged\n")
    code = "from pyimgano.models import list_models; print(list_models(tags='plugged'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['vision_plugged']"


def test_listing_models_does_not_import_torch() -> None:
    code = (
        "import sys, pyimgano\n"
        "assert not {'torch', 'numpy', 'cv2', 'pydantic'} & set(sys.modules)\n"
        "assert 'vision_patchcore' in pyimgano.list_models(tags='memory-bank')\n"
        "assert not {'torch', 'numpy', 'cv2', 'pydantic'} & set(sys.modules)\n"
        "pyimgano.model_info('vision_patchcore'); assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
