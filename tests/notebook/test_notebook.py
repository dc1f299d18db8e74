"""What a notebook shows, figures and frames."""

from __future__ import annotations

import builtins
import json
import pickle
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from matplotlib.figure import Figure

from pyimgano import create_model, load_dataset, run_benchmark
from pyimgano.errors import UsageError
from pyimgano.inference import infer, results_to_frame
from pyimgano.models.tiled import TiledDetector
from tests.conftest import MakeDataset, save
from tests.pixel_detector import fitted, plain


class Pieces(HTMLParser):
    """The tags and the text of HTML; fails where tags are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag != "img":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def spotted(value: int = 220) -> np.ndarray:
    image = plain(value)
    image[10:20, 30:50] = 5
    return image


def test_a_detector() -> None:
    new = create_model("vision_patchcore", device="<cpu>")
    assert "fitted" in Pieces(new._repr_html_()).text and "<cpu>" in Pieces(new._repr_html_()).text
    detector = fitted()
    text = Pieces(detector._repr_html_()).text
    assert f"{detector.threshold_:.6g}" in text and "2 scores of good images" in text
    assert repr(detector).startswith("Darkness(") and len(repr(detector)) < 300
    tiled = TiledDetector(fitted(), tile_size=32)
    assert "TiledDetector" in Pieces(tiled._repr_html_()).text


def test_a_dataset(make_mvtec: MakeDataset) -> None:
    root = make_mvtec(("<i>nut",), train=4, good=2, bad=3)
    dataset = load_dataset("mvtec", root)
    assert repr(dataset) == (
        "<Dataset 'mvtec', category '<i>nut': 4 training images, 5 test images (2 good, "
        "3 defective)>"
    )
    pieces = Pieces(dataset._repr_html_())
    assert "<i>nut" in pieces.text and "i" not in pieces.tags
    assert pieces.tags.count("img") == 4 and "spot (3)" in pieces.text
    (root / "<i>nut" / "train" / "good" / "000.png").write_bytes(b"")
    assert Pieces(dataset._repr_html_()).tags.count("img") == 3  # what cannot be read is not shown


def test_a_result(tmp_path: Path) -> None:
    path = save(tmp_path / "a<b.png", spotted())
    bad, good, array = infer(
        fitted(), [path, save(tmp_path / "g.png", plain(220)), spotted()], include_maps=True,
        regions=True,
    )  # fmt: skip
    assert "defective, score 250" in repr(bad) and "map of 64 x 64 pixels; 1 regions" in repr(bad)
    assert len(repr(bad)) < 300
    pieces = Pieces(bad._repr_html_())
    assert pieces.tags.count("img") == 2 and "a<b.png" in pieces.text
    assert Pieces(array._repr_html_()).tags.count("img") == 0
    figure = bad.show()
    assert isinstance(figure, Figure) and len(figure.axes) == 2
    drawn = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    np.testing.assert_array_equal(drawn[0], spotted())
    assert (drawn[1][9:21, 29:51] != drawn[0][9:21, 29:51]).any()  # colours, and an outline
    calm = [np.asarray(axes.images[0].get_array()) for axes in good.show().axes]
    np.testing.assert_array_equal(calm[0], calm[1])
    with pytest.raises(UsageError, match=r"image 2: the image cannot be read .* give it as image="):
        array.show()
    assert len(array.show(spotted()).axes) == 2
    (unread,) = infer(fitted(), [tmp_path / "none.png"])
    assert "not read: no such file" in repr(unread) and "no such file" in unread._repr_html_()
    with pytest.raises(UsageError, match="nothing to show"):
        unread.show()
    assert bad.show().savefig(tmp_path / "f.png") is None and (tmp_path / "f.png").stat().st_size


def test_results_as_a_frame(tmp_path: Path) -> None:
    results = infer(fitted(), [plain(220), spotted(), tmp_path / "none.png"], regions=True)
    frame = results_to_frame(results)
    assert isinstance(frame, pandas.DataFrame) and list(frame.index) == [0, 1, 2]
    assert list(frame.score[:2]) == [35.0, 250.0] and frame.regions[1] == 1
    assert frame.error[2] == "no such file" and "anomaly_map" not in frame.columns
    assert len(results_to_frame([])) == 0


@pytest.fixture(scope="module")
def run_options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "dataset": "demo",
        "category": "washer",
        "model": "vision_patchcore",
        "resize": (64, 64),
        "pixel": False,
        "html": False,
        "limit_train": 6,
        "limit_test": 12,
    }


def test_a_report(run_options: dict[str, Any], tmp_path: Path) -> None:
    report = run_benchmark(**run_options, output_dir=tmp_path / "r")
    stored = json.loads((tmp_path / "r" / "report.json").read_text())
    assert json.loads(json.dumps(report)) == stored == report
    assert pickle.loads(pickle.dumps(report)) == report and isinstance(report, dict)
    assert "vision_patchcore on demo" in repr(report) and len(repr(report)) < 300
    (name,) = report.categories
    assert name in Pieces(report._repr_html_()).text
    frame = report.to_frame()
    assert frame.loc[name, "auroc"] == report["results"]["auroc"]
    assert frame.loc[name, "recall"] == report["results"]["metrics"]["recall"]
    images = report.images_to_frame()
    assert len(images) == 12 and set(images.columns) >= {"score", "pred", "y_true"}
    scores = report.plot_scores()
    assert isinstance(scores, Figure)
    shown = {text.get_text() for text in scores.axes[0].get_legend().get_texts()}
    good = report["counts"]["test_good"]
    assert f"good ({good})" in shown and f"defective ({12 - good})" in shown
    # the curve of the figure has the area of the report
    line = report.plot_roc().axes[0].lines[0]
    area = np.trapezoid(line.get_ydata(), line.get_xdata())
    assert area == pytest.approx(report["results"]["auroc"])
    curve = report.plot_precision_recall().axes[0].lines[0]
    recall, precision = curve.get_xdata(), curve.get_ydata()
    assert float(np.sum(np.diff(recall) * precision[1:])) == pytest.approx(
        report["results"]["average_precision"]
    )
    with pytest.raises(UsageError, match="category"):
        report.plot_roc("none")


def test_a_report_without_a_run(run_options: dict[str, Any]) -> None:
    report = run_benchmark(**run_options, save_run=False)
    assert report._repr_html_()
    with pytest.raises(UsageError, match="the run was not saved"):
        report.plot_scores()


@pytest.mark.parametrize("name", ["pandas", "matplotlib"])
def test_what_is_not_installed_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = builtins.__import__

    def missing(wanted: str, *more: Any) -> Any:
        if wanted.split(".", maxsplit=1)[0] == name:
            raise ImportError(wanted)
        return real(wanted, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    (result,) = infer(fitted(), [spotted()], include_maps=True)
    with pytest.raises(UsageError, match=f"{name}, which is not installed; pip install {name}"):
        results_to_frame([result]) if name == "pandas" else result.show(spotted())
