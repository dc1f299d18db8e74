"""One detector for many products: as single ones to the bit, and a stranger is never good."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyimgano import load_model
from pyimgano.backbones import Backbone
from pyimgano.errors import (
    DataError,
    ImageReadError,
    NotFittedError,
    SavedModelError,
    UnknownProductError,
    UsageError,
)
from pyimgano.inference import infer, iter_infer
from pyimgano.inference.detectors import tiled
from pyimgano.models import ManyProducts, create_model
from pyimgano.models.product_recognition import ProductImages, Recogniser
from tests.conftest import picture, save

KEYWORDS: dict[str, Any] = {
    "backbone": "resnet18",
    "pretrained": False,
    "engine": "torch",
    "resize": (64, 64),
}


def lid(seed: int, *, spot: bool = False) -> np.ndarray:
    return picture(seed, spot=spot)


def nut(seed: int, *, spot: bool = False) -> np.ndarray:
    """A bright part with stripes across."""
    return np.ascontiguousarray(255 - picture(1000 + seed, spot=spot).transpose(1, 0, 2))


def stranger(seed: int) -> np.ndarray:
    """Blocks of colours."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)


TRAIN = {"lid": [lid(i) for i in range(12)], "nut": [nut(i) for i in range(12)]}
MIXED = [lid(100), nut(101), lid(102, spot=True), nut(103, spot=True), nut(104)]
NAMES = ["lid", "nut", "lid", "nut", "nut"]


@pytest.fixture(scope="module")
def many() -> ManyProducts:
    return ManyProducts("vision_patchcore", **KEYWORDS).fit(TRAIN)


@pytest.fixture
def folder(many: ManyProducts, tmp_path: Path) -> Path:
    return many.save(tmp_path / "model")


@pytest.mark.parametrize(
    "model", ["vision_patchcore", "vision_padim", "vision_knn", "vision_anomalydino"]
)
def test_each_product_is_judged_as_by_a_single_detector(model: str) -> None:
    few = 3 if model == "vision_anomalydino" else 8
    train = {name: images[:few] for name, images in TRAIN.items()}
    many = ManyProducts(model, **KEYWORDS).fit(train)
    for name, images in train.items():
        single = create_model(model, **KEYWORDS).fit(images)
        assert many.product(name).threshold_ == single.threshold_
        np.testing.assert_array_equal(many.product(name).decision_scores_, single.decision_scores_)
        scores = single.decision_function(MIXED)
        np.testing.assert_array_equal(many.decision_function(MIXED, product=name), scores)
        np.testing.assert_array_equal(
            many.predict(MIXED, product=name), (scores >= single.threshold_).astype(int)
        )
        if single.has_maps:
            for one, two in zip(
                many.predict_anomaly_map(MIXED, product=name), single.predict_anomaly_map(MIXED)
            ):
                np.testing.assert_array_equal(one, two)
    # in one batch, with the features of one pass
    single_scores = [
        many.decision_function([image], product=name)[0] for image, name in zip(MIXED, NAMES)
    ]
    np.testing.assert_allclose(
        many.decision_function(MIXED, product=NAMES), single_scores, rtol=1e-5
    )


def test_products_share_one_network_and_one_pass(
    many: ManyProducts, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert many.product("lid").backbone_ is many.product("nut").backbone_
    passes: list[int] = []
    run = Backbone._run

    def counted(self: Backbone, images: list[Any]) -> Any:
        passes.append(len(images))
        return run(self, images)

    monkeypatch.setattr(Backbone, "_run", counted)
    many.predict(MIXED)
    assert passes == [len(MIXED)]


def test_products_are_recognised(many: ManyProducts) -> None:
    found = many.recognise([lid(200), nut(201), lid(202), nut(203)])
    assert [one.name for one in found] == ["lid", "nut", "lid", "nut"]
    assert {one.known_by for one in found} == {"recognised"}


def test_a_stranger_gets_no_decision(many: ManyProducts) -> None:
    images = [stranger(i) for i in range(4)]
    assert (many.predict(images) == -1).all()
    assert np.isposinf(many.decision_function(images)).all()
    for one in many.score_images(images):
        assert isinstance(one.error, UnknownProductError) and one.score is None
        assert one.product is not None and one.product.name is None
    results = infer(many, images, include_maps=True, regions=True)
    assert all(one.label is None and one.score is None for one in results)
    assert {one.product_known_by for one in results} == {"unknown"}
    assert all("unknown product" in str(one.error) for one in results)


def test_what_is_beyond_the_threshold_is_never_good() -> None:
    """Between threshold and reach an image may be called defective alone."""
    many = ManyProducts("vision_patchcore", **KEYWORDS).fit(TRAIN)
    image = lid(300)
    vector = many.pooled_features([image])[0]
    own = many.recogniser_.products["lid"]
    distance = own.to_each(vector).min()
    # as if the product's images were nearer to each other than this one is to them
    closer = ProductImages(own.vectors, np.full_like(own.distances, distance / 1.01))
    products = {**many.recogniser_.products, "lid": closer}
    many.recogniser_ = Recogniser(products, many.unknown_rate)
    found = many.recogniser_.recognise(vector)
    assert found.name == "lid" and not found.as_good
    threshold = many.product("lid").threshold_
    assert many.decision_function([image], product="lid")[0] < threshold
    assert many.predict([image]).tolist() == [-1]
    many.product("lid").set_threshold(1e-6)
    assert many.predict([image]).tolist() == [1]


def test_distances_are_out_of_sample_and_copies_do_not_count() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(9, 5)).astype(np.float32)
    doubled = np.concatenate([vectors, vectors[:1]])
    groups = np.array([*range(9), 0])
    found = ProductImages.of(doubled, groups, "lid")
    units = doubled / found.scale
    for number in range(9):
        others = np.delete(units, [0, 9] if number == 0 else number, axis=0)
        plain = np.sqrt(np.square(others - units[number]).sum(axis=1)).min()
        np.testing.assert_allclose(found.distances[number], plain, rtol=1e-6)
    with pytest.raises(DataError, match=r"at least two good images .* got 1"):
        ProductImages.of(doubled[[0, 9]], np.array([0, 0]), "lid")


def test_the_rate_of_unknown_good_images_is_at_most_that_asked_for() -> None:
    """Of good images drawn as the training images, as the conformal rank promises."""
    rng = np.random.default_rng(1)
    train = rng.normal(size=(300, 8)).astype(np.float32)
    other = (rng.normal(size=(50, 8)) + 30).astype(np.float32)
    products = {
        "a": ProductImages.of(train, np.arange(300), "a"),
        "b": ProductImages.of(other, np.arange(50), "b"),
    }
    recogniser = Recogniser(products, 0.05)
    new = rng.normal(size=(3000, 8)).astype(np.float32)
    beyond = np.mean([not recogniser.recognise(one).as_good for one in new])
    assert beyond < 0.05 + 4 * np.sqrt(0.05 * 0.95 * (1 / 300 + 1 / 3000))
    assert recogniser.without("b").recognise(other[0]).known_by == "unknown"


def test_sizes_of_products_may_differ() -> None:
    sizes = {"lid": (64, 64), "nut": (64, 96)}
    detectors = {
        name: create_model("vision_padim", **{**KEYWORDS, "resize": sizes[name]}).fit(images)
        for name, images in TRAIN.items()
    }
    many = ManyProducts.of(detectors, TRAIN)
    assert many.recognition_size_ == (64, 64)
    for name, one in detectors.items():
        images = [image for image, own in zip(MIXED, NAMES) if own == name][:1]
        images += TRAIN[name][:1]
        single = one.decision_function(images)
        np.testing.assert_allclose(many.decision_function(images), single, rtol=1e-5)
        named = many.decision_function(images, product=[name] * 2)
        np.testing.assert_allclose(named, single, rtol=1e-5)


def test_names_of_products(many: ManyProducts, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown product 'lit'; did you mean lid"):
        many.predict(MIXED, product="lit")
    with pytest.raises(UsageError, match="2 names for 5 images"):
        many.predict(MIXED, product=["lid", "nut"])
    # one of many that is wrong costs that image alone
    assert many.predict(MIXED, product=["lid", "bolt", "lid", "nut", None])[1] == -1
    paths = [save(tmp_path / name / "x.png", image) for name, image in zip(NAMES[:2], MIXED)]
    found = list(iter_infer(many, iter(paths), product=lambda path: Path(path).parent.name))
    assert [one.product for one in found] == ["lid", "nut"]
    assert {one.product_known_by for one in found} == {"named"}
    with pytest.raises(UsageError, match="of one product"):
        infer(many.product("lid"), MIXED, product="lid")


def test_an_unreadable_image_is_an_error(many: ManyProducts, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(ImageReadError):
        many.predict([bad])
    found = list(many.score_images([bad, lid(1)], on_error="record"))
    assert found[0].error is not None and found[0].product is None
    assert found[1].product is not None and found[1].product.name == "lid"


@pytest.mark.parametrize("model", ["vision_stfpm", "vision_efficientad", "vision_supersimplenet"])
def test_methods_that_train_a_network_are_refused(model: str) -> None:
    with pytest.raises(UsageError, match="trains a network of its own"):
        ManyProducts(model)


def test_what_cannot_be_fitted() -> None:
    many = ManyProducts("vision_padim", **KEYWORDS)
    with pytest.raises(NotFittedError):
        many.predict(MIXED)
    for wanted, images in (
        ("at least two, got 1", {"lid": TRAIN["lid"]}),
        ("name must be text", {"lid": TRAIN["lid"], "": TRAIN["nut"]}),
        ("by its name", TRAIN["lid"]),
    ):
        with pytest.raises(UsageError, match=wanted):
            many.fit(images)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown_rate must lie in"):
        ManyProducts("vision_padim", unknown_rate=0.0)
    with pytest.raises(UsageError, match="calibration_images"):
        many.fit(TRAIN, calibration_images={"bolt": TRAIN["lid"]})
    with pytest.raises(DataError, match="product 'nut': to be recognised"):
        many.fit({"lid": TRAIN["lid"], "nut": TRAIN["nut"][:1]})


def test_tiles_and_export_are_refused_in_a_line(many: ManyProducts) -> None:
    with pytest.raises(UsageError, match="does not work by tiles"):
        tiled(many, 64, None)
    with pytest.raises(UsageError, match=r"one product at a time; name it .*lid, nut"):
        many.export_graph()


def test_threads_score_while_it_is_fitted_anew() -> None:
    many = ManyProducts("vision_padim", **KEYWORDS).fit(TRAIN)
    wanted = many.predict(MIXED, product="lid")
    fitted = many.as_fitted()
    with ThreadPoolExecutor(3) as pool:
        scored = [pool.submit(fitted.predict, MIXED, "lid") for _ in range(4)]
        many.fit({"lid": TRAIN["nut"], "nut": TRAIN["lid"]})
        for one in scored:
            np.testing.assert_array_equal(one.result(), wanted)
    assert [one.name for one in many.recognise([lid(1)])] == ["nut"]


# ---- saved and brought back


def same(one: ManyProducts, two: ManyProducts) -> None:
    images = [*MIXED, stranger(0)]
    for a, b in zip(one.score_images(images), two.score_images(images), strict=True):
        assert a.score == b.score and a.product == b.product
        if a.anomaly_map is not None:
            np.testing.assert_array_equal(a.anomaly_map, b.anomaly_map)
    assert one.describe() == two.describe()


def test_it_comes_back_the_same(many: ManyProducts, tmp_path: Path) -> None:
    folder = many.save(tmp_path / "model", include_backbone=True)
    loaded = load_model(folder)
    assert isinstance(loaded, ManyProducts)
    same(many, loaded)
    assert loaded.product("lid").backbone_ is loaded.product("nut").backbone_
    assert sum(one.name == "backbone.safetensors" for one in folder.iterdir()) == 1
    same(many, pickle.loads(pickle.dumps(many)))
    same(many, copy.deepcopy(many))


def test_a_threshold_is_moved_and_kept(many: ManyProducts, tmp_path: Path) -> None:
    moved = copy.deepcopy(many)
    moved.product("lid").set_threshold(5.0)
    folder = moved.save(tmp_path / "model")
    with pytest.raises(UsageError, match="exists already"):
        many.save(folder)
    many.save(folder, overwrite=True)
    moved.save(folder, overwrite=True)
    loaded = load_model(folder)
    assert loaded.product("lid").threshold_ == 5.0
    assert loaded.product("nut").threshold_ == many.product("nut").threshold_
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def _edit(folder: Path, change: Any) -> None:
    path = folder / "detector.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("wanted", "change"),
    [
        ("two products have the same name", lambda d: d["products"][1].update(name="lid")),
        ("products", lambda d: d.update(products=d["products"][:1])),
        ("recognition_size: must be", lambda d: d.update(recognition_size=[4096, 4096])),
        ("unknown_rate", lambda d: d.update(unknown_rate=0.9)),
        ("is not the file that was saved", lambda d: d["recognition"].update(sha256="0" * 64)),
        ("a newer version", lambda d: d.update(schema_version=99)),
        ("extra", lambda d: d.update(more=1)),
        ("kind", lambda d: d.update(kind="pyimgano-others")),
        (
            "has no keyword",
            lambda d: d["products"][0]["detector"]["parameters"].update(command="x"),
        ),
        (
            "unknown model",
            lambda d: d["products"][0]["detector"].update(model="os.system"),
        ),
        (
            "bytes, detector.json says|cut or|is not the file",
            lambda d: d["products"].reverse(),
        ),
    ],
)
def test_a_document_that_was_tampered_with(folder: Path, wanted: str, change: Any) -> None:
    _edit(folder, change)
    with pytest.raises(SavedModelError, match=wanted) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_cut_or_strange(folder: Path, tmp_path: Path) -> None:
    names = sorted(one.name for one in folder.iterdir())
    assert names == [
        "arrays-000.safetensors",
        "arrays-001.safetensors",
        "detector.json",
        "recognition.safetensors",
    ]
    for name in names:
        for number, harm in enumerate((Path.unlink, lambda path: path.write_bytes(b"{"))):
            other = Path(shutil.copytree(folder, tmp_path / f"{name}{number}"))
            harm(other / name)
            with pytest.raises(SavedModelError):
                load_model(other)
    (folder / "arrays-002.safetensors").write_bytes(b"")
    with pytest.raises(SavedModelError, match="unexpected file 'arrays-002"):
        load_model(folder)


def test_recognition_of_another_shape(folder: Path) -> None:
    import hashlib

    from safetensors.numpy import load_file, save_file

    path = folder / "recognition.safetensors"
    good = load_file(path)

    for name, array, wanted in (
        ("0.vectors", good["0.vectors"][:, :3], "0.vectors, float32"),
        ("0.vectors", good["0.vectors"].astype(np.float64), "0.vectors, float32"),
        ("1.distances", -good["1.distances"], "1.distances, float64"),
        ("1.distances", good["1.distances"] * np.nan, "not finite"),
        ("7.vectors", good["0.vectors"], "unexpected array"),
    ):
        save_file({**good, name: np.ascontiguousarray(array)}, path)
        data = path.read_bytes()
        facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        _edit(folder, lambda d, facts=facts: d.update(recognition=facts))
        with pytest.raises(SavedModelError, match=wanted):
            load_model(folder)
