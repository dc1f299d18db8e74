"""report.html and the page of new images: what they say, show and never do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano.cli import infer, main, run_subcommand
from pyimgano.errors import DataError
from pyimgano.evaluation import compute_aupro
from pyimgano.evaluation.pixel_level import pixel_metrics
from pyimgano.pages import NewImagesPage, PageFacts, new_images, plotting, words, write_report_page
from pyimgano.pages.page_facts import GALLERY_SIZE, map_file
from pyimgano.pages.pictures import MapFacts, draw_map, take_picture
from pyimgano.pages.report_page import CATEGORY_BYTES, RUN_BYTES
from pyimgano.pages.run_files import read_run
from pyimgano.pipelines import run_benchmark, run_robust_benchmark
from pyimgano.runs import InferenceRecord, read_map
from tests.browser import Browser, find_chromium
from tests.conftest import MakeDataset, copy_registry, picture, save, spot_mask
from tests.pixel_detector import plain
from tests.stubs import register

pytestmark = pytest.mark.real_pages

HOSTILE = '"><img src=x onerror=window.hacked=1><script>window.hacked=2<' + "\\script>"


@pytest.fixture(autouse=True)
def darkness(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_registry(monkeypatch)
    register()


@pytest.fixture
def chromium() -> str:
    """A browser, or a reason why there is none; where one is demanded its absence is an error."""
    found = find_chromium()
    if found is None:
        assert "PYIMGANO_BROWSER_TESTS" not in os.environ, "Chromium is not installed"
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    return found


def run(root: Path, tmp_path: Path, **keywords: Any) -> Path:
    """A run of the quick detector; its directory."""
    asked = {"category": "nut", "model": "darkness", "output_dir": tmp_path / "run", **keywords}
    report = run_benchmark(dataset="mvtec", root=root, **asked)
    return Path(report["run_dir"])


class _Elements(HTMLParser):
    """The elements of a page, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._hidden += tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            given
            for name, given in self.found
            if name == tag and all(given.get(k.rstrip("_")) == v for k, v in attributes.items())
        ]


def read(page: Path) -> _Elements:
    return _Elements(page.read_text(encoding="utf-8"))


# ---- what a run keeps for its page


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([None, False, True]), st.integers(0, 6)), min_size=1, max_size=60
    )
)
def test_the_maps_of_the_extremes_are_kept_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, images: list[tuple[bool | None, int]]
) -> None:
    folder = tmp_path_factory.mktemp("category")
    facts = PageFacts(folder)
    for index, (label, score) in enumerate(images):
        facts.add(label, index, float(score), np.full((4, 4), index, np.float32))
    facts.write([1.0], None, threshold=1.0, apart=False, pro_curve=[])
    wanted = set()
    for label, sign in ((True, 1), (True, -1), (False, -1), (None, -1)):
        some = [(sign * s, i) for i, (known, s) in enumerate(images) if known is label]
        wanted |= {index for _, index in sorted(some)[:GALLERY_SIZE]}
    found = {int(path.stem) for path in (folder / "maps").glob("*.tiff")}
    assert found == wanted
    for index in found:
        assert (read_map(map_file(folder, index)) == index).all()


def test_a_map_is_kept_small(tmp_path: Path) -> None:
    facts = PageFacts(tmp_path)
    facts.add(True, 0, 1.0, np.ones((300, 600), np.float32))
    facts.add(False, 1, 1.0, None)  # a method without maps
    facts.add(False, 2, None, None)  # an unreadable image
    facts.write([], None, threshold=1.0, apart=False, pro_curve=[])
    (path,) = (tmp_path / "maps").iterdir()
    assert read_map(path).shape == (64, 128)


def test_the_scores_behind_the_threshold_have_their_images(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(train=5)
    folder = run(root, tmp_path) / "categories" / "nut"
    lines = [json.loads(line) for line in (folder / "training_scores.jsonl").open()]
    paths = sorted((root / "nut" / "train" / "good").iterdir())
    assert [Path(line["input"]) for line in lines] == paths
    threshold = json.loads((folder / "report.json").read_text())["threshold"]
    for line, path in zip(lines, paths, strict=True):
        darkest = 255 - np.asarray(__import__("PIL.Image").Image.open(path))[:, :, 0].min()
        assert line["score"] == pytest.approx(darkest)
        assert line["score_ratio"] == pytest.approx(line["score"] / threshold)
        assert line["role"] == "train"


def test_a_map_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tiff").write_bytes(b"no tiff")
    with pytest.raises(DataError, match=r"a\.tiff"):
        read_map(tmp_path / "a.tiff")


# ---- curves


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=30),
    st.lists(st.integers(-3, 3), min_size=1, max_size=30),
)
def test_decisions_are_counted_at_every_threshold(good: list[int], bad: list[int]) -> None:
    found = plotting.Decisions(np.asarray(good, np.float64), np.asarray(bad, np.float64))
    steps = [np.inf, *sorted({*good, *bad}, reverse=True)]
    assert found.false_alarms.tolist() == [sum(s >= t for s in good) for t in steps]
    assert found.found.tolist() == [sum(s >= t for s in bad) for t in steps]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=40),
    st.lists(st.integers(-5, 5), min_size=1, max_size=40),
    st.sampled_from([0.2, 0.55, 1.0]),
)
def test_a_staircase_is_drawn_by_its_corners(good: list[int], bad: list[int], end: float) -> None:
    found = plotting.Decisions(np.asarray(good, np.float64), np.asarray(bad, np.float64))
    rates = found.false_alarms / len(good)
    kept = plotting._corners(rates, found.found, end)

    def height(x: Any, y: Any, at: float) -> Any:
        return y[np.searchsorted(x, at, side="right") - 1]

    for at in [*rates[rates <= end], end]:
        whole = height(rates, found.found, at)
        assert height(rates[kept], found.found[kept], at) == whole


def test_the_points_of_the_pro_curve_have_the_area_of_aupro() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 40, 40), np.uint8)
    masks[:3, 5:12, 5:12] = 1
    masks[1, 25:30, 20:38] = 1
    maps = rng.normal(size=masks.shape).astype(np.float32) + 1.5 * masks
    points: list[list[float]] = []
    table = pixel_metrics(masks, maps, integration_limit=0.3, pro_curve=points)
    rates, overlap = points
    assert rates[0] == 0.0 and rates[-1] == 0.3 and len(rates) == len(overlap) == 200
    # between the points the curve of so few pixels has steps that they do not show
    assert np.trapezoid(overlap, rates) / 0.3 == pytest.approx(table.values["aupro"], abs=5e-3)
    assert table.values["aupro"] == compute_aupro(masks, maps, 0.3)
    # by its definition, at the threshold that one of the points stands for
    normal = np.sort(maps[masks == 0])[::-1]
    at = 120
    limit = normal[round(rates[at] * len(normal)) - 1]
    regions = [(0, np.s_[5:12, 5:12]), (1, np.s_[5:12, 5:12]), (2, np.s_[5:12, 5:12])]
    regions.append((1, np.s_[25:30, 20:38]))
    plainly = np.mean([(maps[i][where] >= limit).mean() for i, where in regions])
    assert overlap[at] == pytest.approx(plainly, abs=0.01)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0, 1e-9, 30.0]), max_size=8),
        min_size=1,
        max_size=3,
    ).filter(any),
    st.sampled_from([1.0, 0.0, None]),
)
def test_any_scores_can_be_drawn(groups: list[list[float]], threshold: float | None) -> None:
    kinds = ["train", "good", "bad"]
    given_ = [(k, k, np.asarray(one, np.float64)) for k, one in zip(kinds, groups, strict=False)]
    drawn = plotting.histogram("x", given_, threshold=threshold, unit="score")
    assert drawn.startswith("<svg") and drawn.rstrip().endswith("</svg>")


def test_every_score_is_in_the_histogram() -> None:
    """Also one far beyond the others: the bars hold as many images as there are."""
    scores = np.asarray([0.5, 0.9, 1.0, 7.0, 500.0])
    edges, said = plotting._bars(scores, "score", multiples=True)
    counts, _ = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)
    assert counts.sum() == 5 and "20 and more" in said


def test_plots_have_only_colours_of_the_page() -> None:
    scores = np.linspace(0.2, 3, 30)
    decisions = plotting.Decisions(scores, scores + 0.5)
    for drawn in (
        plotting.histogram("a", [("t", "train", scores)], threshold=1.0, unit="score"),
        plotting.trade_off("b", decisions, [], (2, 20), 0.01),
        plotting.roc("c", decisions, 0.9),
        plotting.precision_recall("d", decisions, 0.9),
        plotting.pro("e", [0.0, 0.3], [0.1, 0.9], 0.3, 0.8),
        plotting.drift("f", [("blur", [(0, 0.9), (1, None), (2, 0.5)])], "Recall"),
    ):
        assert "#" not in drawn.replace("url(#", "").replace('href="#', ""), drawn[:3000]
        assert "var(--" in drawn and "http" not in drawn.replace("http://www.w3.org", "")


def test_matplotlib_finds_its_settings_as_they_were() -> None:
    program = (
        "import os, sys\n"
        "import pyimgano.pipelines, pyimgano.pages\n"
        "assert 'matplotlib' not in sys.modules and 'jinja2' not in sys.modules\n"
        "from pyimgano.pages import plotting\n"
        "import numpy as np\n"
        "before = dict(os.environ)\n"
        "plotting.roc('a', plotting.Decisions(np.zeros(3), np.ones(3)), 1.0)\n"
        "assert dict(os.environ) == before\n"
        "import matplotlib\n"
        "assert matplotlib.rcParams['svg.fonttype'] == 'path'\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ---- pictures


def test_a_picture_is_bounded_whatever_the_image(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 700, 3), np.uint8)
    path = save(tmp_path / "noise.png", noise)
    for most in (60_000, 25_000, 12_000):
        taken = take_picture(path, None, None, most_bytes=most)
        assert taken.image is not None and len(taken.image) <= most
        assert taken.overlay is None and (taken.height, taken.width) == (448, 348)


def test_a_picture_shows_map_regions_and_truth(tmp_path: Path) -> None:
    path = save(tmp_path / "part.png", plain(128, 100, 100))
    mask = save(tmp_path / "mask.png", spot_mask(100))
    scores = np.zeros((50, 50), np.float32)
    scores[10:20, 10:20] = 9.0
    facts = MapFacts(9.0, 3.0, 0.5, 3.0)
    taken = take_picture(path, scores, facts, [mask], most_bytes=60_000)
    assert taken.has_map and taken.has_truth and taken.regions == 1 and taken.overlay
    assert take_picture(path, None, None, [mask], most_bytes=60_000).has_truth
    drawn, regions = draw_map(plain(128, 50, 50), scores, facts)
    assert regions == 1 and (drawn[40, 40] == 128).all() and (drawn[15, 15] != 128).any()
    gone = take_picture(tmp_path / "gone.png", scores, facts, most_bytes=60_000)
    assert gone.image is None and gone.missing


# ---- the page of a run


def test_a_run_has_its_page_and_the_page_follows_from_the_run(
    make_mvtec: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(make_mvtec(), tmp_path)
    page = folder / "report.html"
    first = page.read_bytes()
    report = json.loads((folder / "report.json").read_text())
    found = read(page)
    (auroc,) = found.all("dd", data_metric="auroc", data_category="nut") or [
        one
        for one in found.all("dd")
        if one.get("data-metric") == "auroc" and one.get("data-category") == "nut"
    ]
    assert float(auroc["data-value"] or "nan") == report["results"]["auroc"]
    counts = report["results"]["metrics"]
    assert f"inds {counts['tp']} of {counts['tp'] + counts['fn']} defects" in found.text
    assert len(found.all("svg")) == 5
    assert all(one.get("alt") for one in found.all("img"))
    assert all((one.get("src") or "").startswith("data:") for one in found.all("img"))
    page.unlink()
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_bytes() == first


def test_without_a_page_nothing_is_kept_for_it(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    folder = run(make_mvtec(), tmp_path, html=False)
    assert not (folder / "report.html").exists()
    category = folder / "categories" / "nut"
    left = {path.name for path in category.iterdir()}
    assert left == {"report.json", "per_image.jsonl", "files.json"}
    write_report_page(folder)  # and it can be made afterwards
    text = read(folder / "report.html").text
    assert "does not hold the scores of its training images" in text
    assert "no map in the run" in text


def test_the_option_leaves_the_page_out(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    words_ = ["--dataset", "mvtec", "--root", str(root), "--category", "nut", "--model", "darkness"]
    out = tmp_path / "out"
    assert run_subcommand("benchmark", [*words_, "--no-html", "--output-dir", str(out)]) == 0
    assert not (out / "report.html").exists()


def test_what_is_wrong_comes_first(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec(("nut", "bolt"))
    (root / "nut" / "test" / "good" / "000.png").write_bytes(b"broken")
    for path in (root / "bolt" / "train" / "good").iterdir():
        path.write_bytes(b"broken too")
    folder = run(root, tmp_path, category="all")
    text = read(folder / "report.html").text
    wrong = text.rindex("What is wrong")
    assert wrong < text.index("It failed (reading)") < text.index("1 test image could not be read")
    assert text.index("1 test image could not be read") < text.index("What was run")
    assert "1 category failed" in text[:wrong]
    assert "This category failed" in text and "nut/test/good/000.png" in text


def test_images_that_are_gone_are_said_to_be(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    folder = run(root, tmp_path)
    shutil.rmtree(root)
    write_report_page(folder)
    found = read(folder / "report.html")
    assert found.all("p", class_="no-picture") and len(found.all("svg")) == 5


def test_hostile_names_stay_text(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec((HOSTILE, "nut"))
    shutil.move(root / HOSTILE / "test" / "spot", root / HOSTILE / "test" / HOSTILE)
    shutil.move(root / HOSTILE / "ground_truth" / "spot", root / HOSTILE / "ground_truth" / HOSTILE)
    broken = root / HOSTILE / "test" / "good" / f"{HOSTILE}.png"
    broken.write_bytes(b"broken")
    folder = run(root, tmp_path, category="all")
    found = read(folder / "report.html")
    assert not any("onerror" in given for _, given in found.found)
    assert len(found.all("script")) == 1 and HOSTILE in found.text
    (policy,) = (
        one["content"]
        for one in found.all("meta", http_equiv="x") or found.all("meta")
        if one.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in (policy or "")


def test_a_category_and_a_run_are_bounded(tmp_path: Path) -> None:
    """Of images that no encoder makes small, as many as the galleries take."""
    root = tmp_path / "noise"
    rng = np.random.default_rng(0)

    def noise(place: str, count: int) -> None:
        for i in range(count):
            image = rng.integers(0, 256, (460, 460, 3), np.uint8)
            save(root / "nut" / place / f"{i}.jpg", image, quality=95)

    noise("train/good", 10)
    noise("test/good", 10)
    noise("test/hole", 20)
    folder = run(root, tmp_path, pixel=False, calibration_quantile=0.5)
    size = (folder / "report.html").stat().st_size
    assert 1_000_000 < size < 3_000_000
    assert CATEGORY_BYTES < 3_000_000 and RUN_BYTES < 40_000_000
    assert RUN_BYTES // 15 + 400_000 < 40_000_000 / 15


def test_a_threshold_of_zero_and_images_without_labels(tmp_path: Path) -> None:
    root = tmp_path / "plain"
    for i in range(4):
        save(root / "nut" / "train" / "good" / f"{i}.png", plain(255))
    save(root / "nut" / "test" / "good" / "0.png", plain(255))
    save(root / "nut" / "test" / "spot" / "0.png", picture(1, spot=True))
    folder = run(root, tmp_path, pixel=False)
    assert read(folder / "report.html").all("svg")


def test_a_robustness_run_has_a_page_too(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    report = run_robust_benchmark(
        dataset="mvtec",
        root=make_mvtec(),
        category="nut",
        model="darkness",
        corruptions=["lighting"],
        severities=[1, 5],
        output_dir=tmp_path / "run",
    )
    found = read(Path(report["run_dir"]) / "report.html")
    assert "Under drift" in found.text and "lighting" in found.text
    assert len(found.all("svg")) == 7 and found.all("button", class_="pictures")


def test_a_page_that_cannot_be_made_does_not_cost_the_run(
    make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Path) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("pyimgano.pipelines.run.write_report_page", fail)
    with pytest.warns(UserWarning, match=r"report\.html could not be written .*no ink"):
        folder = run(make_mvtec(), tmp_path)
    assert json.loads((folder / "report.json").read_text())["status"] == "complete"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("report.json", None, "no report yet"),
        ("report.json", b"{", "is not JSON"),
        ("report.json", b'{"kind": "tea"}', "not a report of a run"),
        ("config.json", None, "not a run directory"),
        ("categories/nut/per_image.jsonl", b"tea\n", "line 1 is not a record"),
        ("categories/nut/curves.json", b"[]", "not a document of a run"),
    ],
)
def test_a_damaged_run_is_one_line(
    make_mvtec: MakeDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: bytes | None,
    said: str,
) -> None:
    folder = run(make_mvtec(), tmp_path, html=False)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    assert main(["report", str(folder)]) == 1
    error = capsys.readouterr().err
    assert said in error and str(folder / file) in error and error.count("\n") == 1


def test_a_record_that_a_crash_has_cut_is_left_out(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    folder = run(make_mvtec(), tmp_path, html=False)
    path = folder / "categories" / "nut" / "per_image.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    (category,) = read_run(folder).categories
    assert len(category.images) == whole.count(b"\n") - 1


def test_a_link_in_a_run_is_not_written_through(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    folder = run(make_mvtec(), tmp_path, html=False)
    precious = save(tmp_path / "precious.png", plain())
    before = precious.read_bytes()
    (folder / "report.html").symlink_to(precious)
    write_report_page(folder)
    assert precious.read_bytes() == before and not (folder / "report.html").is_symlink()


def test_what_the_map_does_not_show_is_said(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with NewImagesPage(page, detector="x") as pages:
        pages.add(record(0, 2.0), None, 0.25)
        pages.add(record(1, 1.5), None, 0.0)
    text = read(page).text
    assert text.count("of the score is context") == 1
    assert "25 % of the score is context, which the map does not show" in text


def test_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_a_resumed_run_leaves_no_map_of_before(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    root = make_mvtec()
    folder = run(root, tmp_path)
    category = folder / "categories" / "nut"
    stray = category / "maps" / "000099.tiff"
    shutil.copy(next((category / "maps").iterdir()), stray)
    for path in (folder, category):
        report = json.loads((path / "report.json").read_text())
        report["status"] = "interrupted"
        (path / "report.json").write_text(json.dumps(report))
    run_benchmark(resume=folder)
    assert not stray.exists() and (folder / "report.html").exists()


def test_resuming_a_complete_run_makes_the_page_that_a_kill_left_out(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    folder = run(make_mvtec(), tmp_path)
    page = folder / "report.html"
    page.unlink()
    run_benchmark(resume=folder)
    assert page.exists()
    page.write_text("mine")
    run_benchmark(resume=folder)
    assert page.read_text() == "mine"  # what is there stays


# ---- words


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(0.5, "0.50"), (1.0, "1.00"), (0.994, "0.99"), (0.99999999, "0.99"), (None, "\u2013")],
)
def test_a_multiple_is_never_rounded_across_the_threshold(ratio: float | None, text: str) -> None:
    assert words.multiple(ratio) == text


def test_the_headline_counts_all_categories(make_mvtec: MakeDataset, tmp_path: Path) -> None:
    folder = run(make_mvtec(("nut", "bolt"), good=4, bad=5), tmp_path, category="all")
    files = read_run(folder)
    said = words.headline(files.report, [one.report for one in files.categories])
    assert said.startswith("In 2 categories it finds ") and "of 10 defects" in said
    assert "of 8 good parts defective" in said


# ---- the page of new images


def record(index: int, score: float | None, **fields: Any) -> InferenceRecord:
    given_: dict[str, Any] = {
        "index": index,
        "input": f"/nowhere/{index}.png",
        "score": score,
        "threshold": 1.0,
        "calibration": "x",
        "pred": None if score is None else int(score >= 1),
        "score_ratio": score,
        "error": None,
        "remark": None,
        "original_size": None,
        **fields,
    }
    return InferenceRecord(**given_)


def test_the_worst_come_first_and_no_more_than_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(new_images, "MOST_IMAGES", 3)
    page = tmp_path / "page.html"
    with NewImagesPage(page, detector="x") as pages:
        for index, score in enumerate([0.2, 3.0, 0.1, 2.0, 2.5, None, 0.3]):
            error = "broken" if score is None else None
            pages.add(record(index, score, error=error), None)
    found = read(page)
    places = [found.text.index(one) for one in ("3.00", "2.50", "2.00")]
    assert places == sorted(places) and "0.30" not in found.text
    assert "7 images: 3 called defective, 1 could not be read." in found.text
    assert "/nowhere/5.png: broken" in found.text
    assert "the 3 highest of 6 images" in found.text


def test_a_page_that_is_watched_is_written_as_images_come(tmp_path: Path) -> None:
    now = [0.0]
    page = tmp_path / "page.html"
    pages = NewImagesPage(page, detector="x", watching=True, clock=lambda: now[0])

    def total() -> str | None:
        return read(page).all("h1")[0]["data-total"]

    with pages:
        assert total() == "0" and read(page).all("html")[0].get("data-reload")
        pages.add(record(0, 0.5), None)
        assert total() == "0"  # not after every image
        now[0] += 10
        pages.add(record(1, 1.5), None)
        assert total() == "2"
        pages.add(record(2, 1.5), None)
    assert total() == "3" and not read(page).all("html")[0].get("data-reload")


def test_infer_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        save(tmp_path / "good" / f"{i}.png", picture(i))
    save(tmp_path / "new" / "bad.png", picture(9, spot=True))
    save(tmp_path / "new" / "fine.png", picture(3))
    (tmp_path / "new" / "broken.png").write_bytes(b"broken")
    page = tmp_path / "page.html"
    call = ["--train-dir", str(tmp_path / "good"), "--model", "darkness", "--quiet"]
    with pytest.raises(SystemExit) as end:
        infer([*call, "--html", str(page), "--input", str(tmp_path / "new")])
    assert end.value.code == 1  # for the broken one
    found = read(page)
    assert found.text.index("new/bad.png") < found.text.index("new/fine.png")
    assert "1 could not be read" in found.text
    # what is called defective shows where, and what is called good has no outline
    assert "region" in found.text and found.text.count("no region") == 1
    assert len(found.all("button", class_="pictures")) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        infer([*call, "--html", str(tmp_path / "no" / "page.html"), "--input", str(tmp_path)])
    assert end.value.code == 2 and "--html" in capsys.readouterr().err


def test_a_watched_folder_has_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        save(tmp_path / "good" / f"{i}.png", picture(i))
    save(tmp_path / "line" / "bad.png", picture(9, spot=True))
    page = tmp_path / "page.html"
    call = ["--train-dir", str(tmp_path / "good"), "--model", "darkness", "--quiet"]
    call += ["--watch", str(tmp_path / "line"), "--settle", "0", "--stop-when-idle", "0.1"]
    with pytest.raises(SystemExit) as end:
        infer([*call, "--watch-interval", "0.05", "--html", str(page)])
    assert end.value.code in (0, None), capsys.readouterr().err
    found = read(page)
    assert "1 image: 1 called defective." in found.text
    assert not found.all("html")[0].get("data-reload")


# ---- in a browser


def test_a_browser_shows_the_page(make_mvtec: MakeDataset, tmp_path: Path, chromium: str) -> None:
    root = make_mvtec((HOSTILE, "nut", "bolt"))
    shutil.move(root / HOSTILE / "test" / "spot", root / HOSTILE / "test" / HOSTILE)
    shutil.move(root / HOSTILE / "ground_truth" / "spot", root / HOSTILE / "ground_truth" / HOSTILE)
    (root / "nut" / "test" / "good" / f"{HOSTILE}.png").write_bytes(b"broken")
    for path in (root / "bolt" / "train" / "good").iterdir():
        path.write_bytes(b"broken too")
    folder = run(root, tmp_path, category="all")
    report = json.loads((folder / "report.json").read_text())
    page = folder / "report.html"
    with Browser(tmp_path / "browser") as browser:
        browser.open(page)
        assert browser.evaluate("window.hacked") is None
        # a figure of the page is that of the report
        said = 'document.querySelector(\'[data-category="nut"][data-metric="auroc"]\')'
        value = report["per_category"]["nut"]["results"]["auroc"]
        assert browser.evaluate(f"Number({said}.dataset.value)") == value
        assert browser.evaluate(f"{said}.textContent") == words.percent(value)
        mean = "document.querySelector('[data-mean=auroc]').dataset.value"
        assert browser.evaluate(f"Number({mean})") == report["mean_metrics"]["auroc"]
        # all pictures are decoded
        whole = (
            "Promise.all([...document.images].map((i) => { i.loading = 'eager'; "
            "return i.decode(); })).then(() => true)"
        )
        assert browser.evaluate(whole) is True
        # a click enlarges, keys go on and back, Escape closes
        opened = "document.getElementById('viewer').open"
        path = "document.getElementById('viewer-path').textContent"
        assert browser.evaluate(opened) is False
        browser.click("button.pictures")
        assert browser.evaluate(opened) is True
        first = browser.evaluate("document.querySelector('button.pictures').dataset.path")
        assert browser.evaluate(path) == first
        widths = "[...document.querySelectorAll('#viewer-images img')].map((i) => i.clientWidth)"
        small = browser.evaluate("document.querySelector('button.pictures img').clientWidth")
        assert all(width > 2 * small for width in browser.evaluate(widths))
        browser.press("ArrowRight")
        assert browser.evaluate(path) != first
        browser.press("ArrowLeft")
        assert browser.evaluate(path) == first
        browser.press("Escape")
        assert browser.evaluate(opened) is False
        # the theme is the reader's, until the button says otherwise
        colour = "getComputedStyle(document.body).backgroundColor"
        browser.prefer("light")
        light = browser.evaluate(colour)
        browser.prefer("dark")
        dark = browser.evaluate(colour)
        assert light != dark
        browser.click("#theme")
        assert browser.evaluate(colour) == light
        assert browser.complaints == []
        assert browser.requests == [page.as_uri()]


def test_text_has_contrast_in_both_themes(
    make_mvtec: MakeDataset, tmp_path: Path, chromium: str
) -> None:
    """At least 4.5 to 1, as WCAG 2 wants it at level AA, measured on what the browser computes."""
    page = run(make_mvtec(), tmp_path) / "report.html"
    measure = """(() => {
      const light = (colour) => {
        const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map((v) => {
          const s = Number(v) / 255;
          return s <= 0.03928 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const behind = (element) => {
        for (let e = element; e; e = e.parentElement) {
          const colour = getComputedStyle(e).backgroundColor;
          if (!colour.endsWith(", 0)") && colour !== "transparent") return colour;
        }
        return "rgb(255, 255, 255)";
      };
      const found = [];
      for (const e of document.querySelectorAll("main *, header *, footer")) {
        const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
        if (!own || e.tagName === "STYLE" || e.tagName === "SCRIPT") continue;
        const style = getComputedStyle(e);
        const colour = e instanceof SVGElement ? style.fill : style.color;
        if (!colour.startsWith("rgb")) continue;
        const [a, b] = [light(colour), light(behind(e))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) found.push([e.className.baseVal ?? e.className, e.textContent, ratio]);
      }
      return found;
    })()"""
    with Browser(tmp_path / "browser") as browser:
        browser.open(page)
        for scheme in ("light", "dark"):
            browser.prefer(scheme)
            assert browser.evaluate(measure) == [], scheme
