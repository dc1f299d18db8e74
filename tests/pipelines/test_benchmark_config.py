"""What a benchmark refuses because it would do not apply to the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyimgano.errors import UsageError
from pyimgano.models import registry
from pyimgano.models.detector import Detector
from pyimgano.pipelines import run_benchmark
from tests.conftest import copy_registry
from tests.pixel_detector import DarknessMethod


class Plain(Detector):
    """A method without a network, weights or a cache."""

    method = DarknessMethod


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cache_dir": "kept"}, "cache_dir does not apply to model 'plain'"),
        ({"pretrained": False}, "pretrained=False does not apply to model 'plain'"),
    ],
)
def test_arguments_that_mean_nothing_to_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict, said: str
) -> None:
    copy_registry(monkeypatch)
    registry.register_model("plain")(Plain)
    with pytest.raises(UsageError, match=said):
        run_benchmark(dataset="mvtec", root=tmp_path, model="plain", **given)
