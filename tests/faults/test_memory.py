"""Memory that runs out: smaller pieces with the same results, then a line that helps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pyimgano import memory
from pyimgano.backbones import engines
from pyimgano.cli import benchmark as benchmark_command
from pyimgano.errors import NotEnoughMemoryError
from pyimgano.memory import available_bytes, in_blocks, in_words, is_out_of_memory
from pyimgano.models import create_model, register_model
from pyimgano.models.neighbors import (
    ExhaustiveSearch,
    MemoryBank,
    StreamedCoreset,
    greedy_coreset,
    out_of_memory,
    rounded_distances,
)
from pyimgano.models.neighbors import coreset as coreset_module
from pyimgano.models.neighbors import search as search_module
from tests.conftest import MakeDataset, copy_registry, picture
from tests.faults.faults import watchdog
from tests.pixel_detector import Darkness, DarknessMethod, LearnedDarkness, fitted, plain

#: What torch says on a CPU.
CPU = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 42949672960 bytes. Error code 12 (Cannot allocate memory)"
)
ERRORS = [
    MemoryError(),
    RuntimeError(CPU),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    np._core._exceptions._ArrayMemoryError((1,), np.dtype("u1")),
]


@pytest.fixture(autouse=True)
def guarded() -> Iterator[None]:
    with watchdog():
        yield


def only_up_to(
    fits: int, size: Callable[..., int], work: Callable[..., Any], error: Exception
) -> Callable[..., Any]:
    """`work` on a machine where no more than so much fits."""

    def limited(*given: Any, **keywords: Any) -> Any:
        if size(*given) > fits:
            raise error
        return work(*given, **keywords)

    return limited


def insufficient() -> cv2.error:
    error = cv2.error("OpenCV(4.9) alloc.cpp: error: (-4:Insufficient memory)")
    error.code = -4
    return error


def test_which_errors_say_that_memory_ran_out() -> None:
    for error in (*ERRORS, insufficient(), RuntimeError("std::bad_alloc")):
        assert is_out_of_memory(error)
    for other in (
        RuntimeError("shapes differ"),
        ValueError("not enough memory"),
        cv2.error("no"),
        OSError(28, "No space left on device"),
        NotEnoughMemoryError("said already: not enough memory"),
    ):
        assert not is_out_of_memory(other)


def test_blocks_halve_down_to_the_least() -> None:
    tried: list[tuple[int, int]] = []

    def work(start: int, stop: int) -> list[int]:
        tried.append((start, stop))
        if stop - start > 3:
            raise MemoryError
        return list(range(start, stop))

    parts = in_blocks(work, 20, 16, 1)
    assert [one for part in parts for one in part] == list(range(20))
    assert tried[:4] == [(0, 16), (0, 8), (0, 4), (0, 2)] and len(tried) == 13
    tried.clear()
    with pytest.raises(MemoryError):
        in_blocks(work, 20, 16, 4)
    assert tried == [(0, 16), (0, 8), (0, 4)]
    with pytest.raises(ZeroDivisionError):
        in_blocks(lambda i, j: i // 0, 2, 2, 1)
    assert in_blocks(work, 0, 16, 1) == []


def test_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = available_bytes()
    assert free is None or free > 0
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTROL_GROUP", tmp_path)
    assert available_bytes() is None
    (tmp_path / "meminfo").write_text(
        "MemTotal: 100 kB\nMemAvailable:   60 kB\nSwapFree:       4 kB\nHugePages_Total:  0\n"
    )
    assert available_bytes() == 64 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() == 64 * 1024
    (tmp_path / "memory.max").write_text("50000\n")
    (tmp_path / "memory.current").write_text("40000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 2000\nactive_file 3000\n")
    assert available_bytes() == 15000
    assert in_words(1.9 * 2**30) == "1.9 GiB" and in_words(340 * 2**20) == "340 MiB"


# ---- the bank


@pytest.fixture(scope="module")
def bank() -> tuple[MemoryBank, torch.Tensor, torch.Tensor]:
    """A bank, queries that clump as patches do, and the queries' images."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 4, (40, 24))
    points = centres[rng.integers(40, size=7000)] + rng.normal(0, 1, (7000, 24))
    features = torch.from_numpy(points[:2000].astype(np.float32))
    queries = torch.from_numpy(points[2000:].astype(np.float32))
    images = torch.arange(len(queries)) // 500
    return MemoryBank(features, torch.arange(2000) // 200), queries, images


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("fits", [4900, 2500, 300])
def test_searches_find_the_same_in_smaller_parts(
    bank: Any, monkeypatch: pytest.MonkeyPatch, fits: int, error: Exception
) -> None:
    """To the bit, whichever of the ways to search the number of queries leads to."""
    searched, queries, images = bank
    for masked in (None, images):
        whole = searched.search(queries, masked)
        with monkeypatch.context() as patched:
            limited = only_up_to(fits, lambda self, some, own: len(some), MemoryBank._search, error)
            patched.setattr(MemoryBank, "_search", limited)
            parts = searched.search(queries, masked)
        assert torch.equal(parts[0], whole[0]) and torch.equal(parts[1], whole[1])


def test_neighbourhoods_are_the_same_in_smaller_parts(
    bank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = bank[0]
    rows = torch.arange(0, 2000, 7)
    for masked in (None, rows // 200):
        whole = searched.neighbourhood(rows, 9, masked)
        with monkeypatch.context() as patched:
            patched.setattr(
                MemoryBank,
                "_neighbourhood",
                only_up_to(
                    20, lambda self, some, *_: len(some), MemoryBank._neighbourhood, ERRORS[1]
                ),
            )
            parts = searched.neighbourhood(rows, 9, masked)
        assert torch.equal(parts[0], whole[0]) and torch.equal(parts[1], whole[1])


def test_a_coreset_is_the_same_in_smaller_parts(bank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    points = bank[1]
    whole = greedy_coreset(points, 400)
    limited = only_up_to(300, lambda self, some, *_: len(some), ExhaustiveSearch.update, ERRORS[1])
    tried: list[int] = []

    def update(self: ExhaustiveSearch, queries: torch.Tensor, *more: Any) -> None:
        tried.append(len(queries))
        limited(self, queries, *more)

    monkeypatch.setattr(ExhaustiveSearch, "update", update)
    assert torch.equal(greedy_coreset(points, 400), whole)
    assert sum(size > 300 for size in tried) > 2


def test_where_no_part_fits_the_line_says_how_large_a_bank_does(
    bank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched, queries, _ = bank
    row = out_of_memory.row_bytes(24)
    monkeypatch.setattr(out_of_memory, "available_bytes", lambda device: 400 * row)
    said = (
        f"not enough memory on cpu for a memory bank of 2000 features of 24 numbers, which takes "
        f"{in_words(2000 * row)}: {in_words(400 * row)} are free, in which about 300 fit; "
        "lower max_bank_size, coreset_sampling_ratio or resize"
    )

    def nothing(*given: Any, **keywords: Any) -> Any:
        raise ERRORS[1]

    with monkeypatch.context() as patched:
        patched.setattr(ExhaustiveSearch, "update", nothing)
        with pytest.raises(NotEnoughMemoryError) as raised:
            searched.search(queries)
        assert str(raised.value) == said and raised.value.__cause__ is None
    with monkeypatch.context() as patched:
        patched.setattr(MemoryBank, "_neighbourhood", nothing)
        with pytest.raises(NotEnoughMemoryError, match="about 300 fit"):
            searched.neighbourhood(torch.arange(100), 3)
    with monkeypatch.context() as patched:
        patched.setattr(search_module, "RoundedRows", nothing)
        with pytest.raises(NotEnoughMemoryError, match="about 300 fit"):
            MemoryBank(searched.features, searched.image)
        # an estimate that says it fits, though it did not, is not advice
        patched.setattr(out_of_memory, "available_bytes", lambda device: 2**40)
        with pytest.raises(NotEnoughMemoryError, match="about 1000 fit"):
            MemoryBank(searched.features, searched.image)
        patched.setattr(out_of_memory, "available_bytes", lambda device: None)
        with pytest.raises(NotEnoughMemoryError, match="MiB; lower max_bank_size"):
            MemoryBank(searched.features, searched.image)


def gather(points: torch.Tensor) -> StreamedCoreset:
    found = StreamedCoreset(
        expected=len(points), ratio=0.1, max_rows=1000, projection_dim=None, seed=0
    )
    found.add(points)
    return found


def test_patches_that_do_not_fit(bank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    points = bank[1]
    said = "not enough memory on cpu to select a memory bank from 5000 patches of 24 numbers"

    def nothing(*given: Any, **keywords: Any) -> Any:
        raise ERRORS[1]

    with monkeypatch.context() as patched:
        patched.setattr(coreset_module, "_select", nothing)
        with pytest.raises(NotEnoughMemoryError, match=said) as raised:
            gather(points).finish()
        assert "lower resize, feature_projection_dim or coreset_sampling_ratio" in str(raised.value)
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "new_empty", nothing)
        with pytest.raises(NotEnoughMemoryError, match=said):
            gather(points)
    # Linux would give the memory, and kill the process when it is used
    monkeypatch.setattr(out_of_memory, "available_bytes", lambda device: 4 * 5000 * 24 - 1)
    with pytest.raises(NotEnoughMemoryError, match="are free, in which about 1874 fit"):
        gather(points)
    monkeypatch.setattr(out_of_memory, "available_bytes", lambda device: 4 * 5000 * 24)
    gather(points)


def test_other_errors_are_what_they_are(bank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    searched, queries, _ = bank

    def wrong(*given: Any, **keywords: Any) -> Any:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(ExhaustiveSearch, "update", wrong)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        searched.search(queries)
    monkeypatch.setattr(rounded_distances, "round_vectors", wrong)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        greedy_coreset(queries, 300)


# ---- batches


def small_patchcore() -> Any:
    return create_model(
        "vision_patchcore",
        backbone="resnet18",
        pretrained=False,
        engine="torch",
        device="cpu",
        resize=(32, 32),
    )


def test_batches_halve_where_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning and scoring, with a network: within rounding of it, which batch sizes change."""
    train = [picture(i, 32) for i in range(9)]
    test = [picture(50 + i, 32, spot=i % 2 == 1) for i in range(9)]
    detector = small_patchcore().fit(train)
    scores, maps = detector.decision_function(test), detector.predict_anomaly_map(test)

    sizes: list[int] = []
    run = engines.TorchEngine.run

    def limited(self: Any, pixels: np.ndarray) -> Any:
        sizes.append(len(pixels))
        if len(pixels) > 3:
            raise ERRORS[2]
        return run(self, pixels)

    monkeypatch.setattr(engines.TorchEngine, "run", limited)
    again = small_patchcore().fit(train)
    np.testing.assert_allclose(again.threshold_, detector.threshold_, rtol=1e-4)
    np.testing.assert_allclose(again.decision_function(test), scores, rtol=1e-4)
    np.testing.assert_allclose(again.predict_anomaly_map(test), maps, rtol=1e-3, atol=1e-4)
    # 8, then 4, then 2; and what did not fit once is not tried again
    assert sizes[:3] == [8, 4, 2] and set(sizes[3:]) <= {1, 2}
    again.backbone_._at_once = None

    def nothing(self: Any, pixels: np.ndarray) -> Any:
        raise ERRORS[2]

    monkeypatch.setattr(engines.TorchEngine, "run", nothing)
    with pytest.raises(NotEnoughMemoryError) as raised:
        again.decision_function(test)
    assert str(raised.value) == (
        "not enough memory on cpu to run resnet18 on one image of 32 x 32 pixels; lower resize"
    )


def test_any_method_scores_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = fitted()
    images = [plain(190 + i) for i in range(11)]
    whole = list(detector.score_images(images))
    score = LearnedDarkness.score
    monkeypatch.setattr(
        LearnedDarkness,
        "score",
        only_up_to(1, lambda self, some, maps: len(some), score, MemoryError()),
    )
    parts = list(detector.score_images(images))
    assert [one.score for one in parts] == [one.score for one in whole]
    for one, other in zip(parts, whole, strict=True):
        assert np.array_equal(one.anomaly_map, other.anomaly_map)
    assert detector.decision_function(images).tolist() == [one.score for one in whole]
    monkeypatch.setattr(
        LearnedDarkness, "score", only_up_to(0, lambda self, some, maps: 1, score, MemoryError())
    )
    with pytest.raises(NotEnoughMemoryError, match="to score one image of 64 x 64 pixels; lower"):
        list(detector.score_images(images))


def test_a_run_says_it_in_one_line(
    make_mvtec: MakeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy_registry(monkeypatch)
    register_model("darkness")(Darkness)
    root = make_mvtec(("a", "b"))
    given = ["--dataset", "mvtec", "--root", str(root), "--model", "darkness"]
    given += ["--resize", "64", "64", "--runs-dir", str(tmp_path / "runs")]

    def nothing(*arguments: Any, **keywords: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(LearnedDarkness, "score", nothing)
        with pytest.raises(SystemExit) as left:
            benchmark_command(given)
    captured = capsys.readouterr()
    said = "not enough memory to score one image of 64 x 64 pixels; lower resize"
    # beside the progress of the run, and the table at its end
    failures = [line for line in captured.err.splitlines() if line.startswith(("a: ", "b: "))]
    assert left.value.code == 1 and failures == [f"a: {said}", f"b: {said}"]
    assert "Traceback" not in captured.err
    assert json.loads(captured.out)["status"] == "failed"
    # and where nobody has caught it
    monkeypatch.setattr(DarknessMethod, "learn", nothing)
    with pytest.raises(SystemExit) as left:
        benchmark_command([*given, "--category", "a"])
    captured = capsys.readouterr()
    assert left.value.code == 1 and captured.out == ""
    assert captured.err == (
        "pyimgano-benchmark: error: not enough memory to fit the detector (MemoryError); lower "
        "resize, or fit on fewer images\n"
    )
    monkeypatch.setattr("pyimgano.pipelines.run_benchmark", nothing)
    with pytest.raises(SystemExit) as left:
        benchmark_command([*given, "--category", "a"])
    assert left.value.code == 1
    assert capsys.readouterr().err == "pyimgano-benchmark: error: not enough memory (MemoryError)\n"
