"""One detector for many products: named, recognised or unknown, and each as if it were alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyimgano.cli import main
from pyimgano.errors import UsageError
from pyimgano.inference import infer
from pyimgano.models import ManyProducts, create_model, load_model
from tests.conftest import picture, save

SIZE: dict[str, Any] = {"resize": (64, 64)}


def lid(seed: int, spot: bool = False) -> np.ndarray:
    return picture(seed, spot=spot)


def nut(seed: int) -> np.ndarray:
    """Stripes of another colour, a little different each time."""
    rng = np.random.default_rng(1000 + seed)
    stripes = np.where(np.arange(64) // 8 % 2, 210, 40)[:, None, None]
    colour = np.array([1.0, 0.4, 0.1])
    noisy = stripes * colour + rng.normal(0, 6, (64, 64, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def stranger() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def many() -> ManyProducts:
    images = {"lid": [lid(n) for n in range(12)], "nut": [nut(n) for n in range(12)]}
    return ManyProducts("vision_patchcore", **SIZE).fit(images)


def test_a_named_product_is_judged_as_by_a_detector_of_its_own(many: ManyProducts) -> None:
    alone = create_model("vision_patchcore", **SIZE).fit([lid(n) for n in range(12)])
    new = [lid(50), lid(51, spot=True)]
    np.testing.assert_array_equal(
        many.decision_function(new, product="lid"), alone.decision_function(new)
    )
    assert many.products_["lid"].threshold_ == alone.threshold_
    named = infer(many, new, product="lid", regions=True)
    single = infer(alone, new, regions=True)
    assert [one.score for one in named] == [one.score for one in single]
    assert [one.regions for one in named] == [one.regions for one in single]
    assert {one.product for one in named} == {"lid"}
    assert {one.product_known_by for one in named} == {"named"}


def test_products_are_recognised_and_strangers_are_no_product(many: ManyProducts) -> None:
    new = [lid(60), nut(60), stranger(), lid(61, spot=True)]
    assert [one.name for one in many.recognise(new[:2])] == ["lid", "nut"]
    results = infer(many, new)
    assert [one.product for one in results[:3]] == ["lid", "nut", None]
    unknown = results[2]
    assert unknown.product_known_by == "unknown" and unknown.label is None
    assert unknown.score is None and "product" in str(unknown.error)
    assert list(many.predict(new))[2] == -1
    assert many.decision_function(new)[2] == np.inf
    # the spot fills so much of the frame that the part may pass for a stranger, never for good
    assert results[3].label != 0
    # recognised and named are judged alike
    named = infer(many, new[:2], product=["lid", "nut"])
    assert [one.score for one in named] == [one.score for one in results[:2]]


def test_it_comes_back_the_same(many: ManyProducts, tmp_path: Path) -> None:
    folder = many.save(tmp_path / "saved")
    back = load_model(folder)
    assert isinstance(back, ManyProducts)
    new = [lid(70), nut(70), stranger()]
    np.testing.assert_array_equal(back.decision_function(new), many.decision_function(new))
    arrays = next(folder.glob("arrays-*.safetensors"))
    data = bytearray(arrays.read_bytes())
    data[-1] ^= 1
    arrays.write_bytes(bytes(data))
    with pytest.raises(Exception, match=arrays.name):
        load_model(folder)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([lid(0)], "by its name"),
        ({"lid": [lid(0), lid(1)]}, "two"),
    ],
)
def test_what_cannot_be_fitted(images: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ManyProducts("vision_patchcore", **SIZE).fit(images)


def test_methods_that_share_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="vision_stfpm"):
        ManyProducts("vision_stfpm")


def test_an_unknown_name_is_met_with_the_known_ones(many: ManyProducts) -> None:
    with pytest.raises(UsageError, match="did you mean lid"):
        many.decision_function([lid(0)], product="lidd")


def test_the_commands(
    many: ManyProducts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(many.save(tmp_path / "saved"))
    for name, image in (("a.png", lid(80)), ("b.png", nut(80)), ("c.png", stranger())):
        save(tmp_path / "new" / name, image)
    words = ["infer", "--model-dir", folder, "--input", str(tmp_path / "new")]
    main(words)
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["product"] for one in records] == ["lid", "nut", None]
    assert records[2]["pred"] is None and records[2]["product_known_by"] == "unknown"
    assert main([*words, "--product", "lid"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {one["product"] for one in records} == {"lid"}
    assert main([*words, "--product", "cap"]) == 2
    assert "cap" in capsys.readouterr().err
    for refused in (["threshold", folder], [*words, "--threshold", "3"]):
        assert main(refused) == 2
        assert "many products" in capsys.readouterr().err
