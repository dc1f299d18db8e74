"""The example of CONTRIBUTING.md is a detector that works."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from pyimgano.models import create_model, load_model, model_info
from tests.conftest import copy_registry

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")


def test_the_example_of_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_registry(monkeypatch)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    module = types.ModuleType("mean_image")
    monkeypatch.setitem(sys.modules, "mean_image", module)
    exec(compile(code, "CONTRIBUTING.md", "exec"), vars(module))
    good = [np.full((32, 32, 3), 100 + i, np.uint8) for i in range(4)]
    bad = good[0].copy()
    bad[8:12, 20:24] = 200
    left = [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]
    for keywords in ({}, {"roi": left}, {"power": 2.0}):
        detector = create_model("vision_mean_image", resize=(32, 32), **keywords).fit(good)
        assert detector.predict([good[1], bad]).tolist() == [0, int("roi" not in keywords)]
        loaded = load_model(detector.save(tmp_path / "saved", overwrite=True))
        np.testing.assert_array_equal(
            loaded.predict_anomaly_map([bad]), detector.predict_anomaly_map([bad])
        )
    meaning = model_info("vision_mean_image")["parameters"]["power"]["description"]
    assert meaning == "The power that differences are raised to."
