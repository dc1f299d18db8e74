"""What scripts and notebooks of earlier versions ask of the models; one test a promise."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from pyimgano import cli
from pyimgano.errors import UsageError
from pyimgano.models import create_model, list_models, model_info

IMAGES = list(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8))
SMALL = {"device": "cpu", "layers": ["blocks.2"]}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = cli.main(["benchmark", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_these_need_no_further_package() -> None:
    """Where PyOD, numba and matplotlib cannot be imported, they fit and score all the same."""
    names = ("vision_ecod", "vision_copod", "vision_hbos")
    code = (
        "import sys\n"
        "for absent in ('pyod', 'numba', 'matplotlib'): sys.modules[absent] = None\n"
        "import numpy as np, pyimgano\n"
        "images = list(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype('uint8'))\n"
        f"for name in {names!r}:\n"
        "    detector = pyimgano.create_model(name, image_size=32, device='cpu',\n"
        "                                     layers=['blocks.2'], engine='torch').fit(images)\n"
        "    assert detector.predict(images).shape == (6,)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(names) <= set(list_models())


def test_tags() -> None:
    for name in list_models():
        assert {"vision", "numpy", "deep"} <= set(model_info(name)["tags"])
    assert list_models(tags=["vision", "numpy"]) == list_models(tags="deep") == list_models()


def test_model_info_has_a_signature(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "--model-info", "vision_patchcore")
    (line,) = [line for line in out.splitlines() if line.startswith("Signature")]
    assert code == 0 and "max_bank_size=" in line and "vision_patchcore" in out
    code, out, _ = said(capsys, "--model-info", "vision_patchcore", "--json")
    info = json.loads(out)
    assert code == 0 and info["name"] == "vision_patchcore"
    assert info["signature"].startswith("VisionPatchCore(*, ") and info["signature"] in line


def test_a_list_and_one_model_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(capsys, "--list-models", "--model-info", "vision_patchcore")
    assert code == 2 and out == ""
    assert "--list-models and --model-info exclude each other" in err


def test_predict_proba() -> None:
    detector = create_model("vision_knn", image_size=32, **SMALL).fit(IMAGES)
    found = detector.predict_proba(IMAGES[:4])
    assert found.shape == (4, 2) and (found >= 0).all() and (found <= 1).all()
    np.testing.assert_allclose(found.sum(axis=1), 1.0)


def test_image_size_is_resize() -> None:
    assert create_model("vision_knn", image_size=64).resize == (64, 64)
    assert create_model("vision_knn", image_size=(64, 48)).resize == (64, 48)
    # beats a preset's, as resize does
    assert create_model("vision_knn", preset="industrial-fast", image_size=64).resize == (64, 64)
    with pytest.raises(UsageError, match="image_size is another name of resize"):
        create_model("vision_knn", image_size=64, resize=(64, 64))
    with pytest.raises(UsageError, match="resize"):
        create_model("vision_knn", image_size="large")


def test_image_size_in_the_keywords_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dataset", "demo", "--category", "washer", "--model", "vision_knn"]
    arguments += ["--preset", "industrial-fast", "--limit-train", "4", "--limit-test", "4"]
    keywords = ["--model-kwargs", '{"image_size": 32}']
    code, out, err = said(capsys, *arguments, *keywords, "--no-save-run")
    assert code == 0, err
    assert json.loads(out)["model"] == "vision_knn"
    code, out, err = said(capsys, *arguments, *keywords, "--resize", "64", "64", "--no-save-run")
    assert code == 2 and "image_size in model_kwargs is another name of resize" in err
