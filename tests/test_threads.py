"""Threads: how many there are, who is told, and that results do not depend on them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pyimgano import run_benchmark, set_num_threads, threads
from pyimgano.errors import UsageError
from pyimgano.models import create_model
from pyimgano.threads import available_cores, limited_threads, thread_count

from .conftest import MakeDataset, picture


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    numbers = torch.get_num_threads(), cv2.getNumThreads()
    yield
    set_num_threads(None)
    torch.set_num_threads(numbers[0])
    cv2.setNumThreads(numbers[1])


@pytest.mark.parametrize(
    "set_to, number", [("1", 1), ("1,4", 1), ("9999", None), ("", None), ("0", None), ("two", None)]
)
def test_the_environment_says_how_many(
    monkeypatch: pytest.MonkeyPatch, set_to: str, number: int | None
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", set_to)
    assert thread_count() == (number or available_cores())


def test_what_is_set_beats_the_environment_and_never_exceeds_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "available_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with limited_threads(4):
        assert thread_count() == 4
    with limited_threads(40):
        assert thread_count() == 6
    with limited_threads(None):
        assert thread_count() == 2


@pytest.mark.parametrize(
    "limit, cores", [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 8), ("", 8)]
)
def test_the_share_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(threads, "_CONTROL_GROUP", tmp_path / "cpu.max")
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert available_cores() == cores


def test_libraries_are_told_and_get_their_own_back() -> None:
    torch.set_num_threads(2)
    cv2.setNumThreads(2)
    with limited_threads(1):
        assert (torch.get_num_threads(), cv2.getNumThreads()) == (1, 1)
    assert (torch.get_num_threads(), cv2.getNumThreads()) == (2, 2)


def test_small_work_is_for_one_thread_of_torch_and_others_come_back() -> None:
    torch.set_num_threads(2)
    with threads.single_torch_thread(wanted=False):
        assert torch.get_num_threads() == 2
    with pytest.raises(ValueError), threads.single_torch_thread():
        assert torch.get_num_threads() == 1
        raise ValueError
    assert torch.get_num_threads() == 2


def overlapping(context: Callable[[], AbstractContextManager[None]]) -> None:
    """One thread enters, another too, the first leaves, then the second."""
    entered, left = threading.Event(), threading.Event()

    def second() -> None:
        with context():
            entered.set()
            assert left.wait(10)

    other = threading.Thread(target=second)
    with context():
        other.start()
        assert entered.wait(10)
    left.set()
    other.join()


def test_threads_that_overlap_leave_torch_its_number() -> None:
    torch.set_num_threads(2)
    overlapping(threads.single_torch_thread)
    assert torch.get_num_threads() == 2
    seen: list[int] = []
    late = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    late.start()
    late.join()
    assert seen == [2]


def test_blas_has_one_thread_for_a_while() -> None:
    libraries = threads._blas()

    def numbers() -> list[int]:
        return [one["num_threads"] for one in libraries.info() if one["user_api"] == "blas"]

    def in_threads(count: int, work: Callable[[], object]) -> None:
        others = [threading.Thread(target=work) for _ in range(count)]
        for other in others:
            other.start()
        for other in others:
            other.join()

    inside: list[list[int]] = []

    def limited() -> None:
        with threads.single_blas_thread(), threads.single_blas_thread():
            inside.append(numbers())
            time.sleep(0.05)
            inside.append(numbers())

    before = numbers()
    # by a thread that ends: while one lives that has set a number, others cannot
    in_threads(1, lambda: libraries.limit(limits=2, user_api="blas"))
    try:
        wide = numbers()
        assert max(wide) == 2
        in_threads(4, limited)
        assert numbers() == wide
    finally:
        in_threads(1, lambda: libraries.limit(limits=before[0], user_api="blas"))
    assert len(inside) == 8 and {n for found in inside for n in found} == {1}


def test_a_program_that_uses_fewer_keeps_them() -> None:
    torch.set_num_threads(1)
    threads.apply_thread_count()
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "two"])
def test_numbers_that_are_none(count: object) -> None:
    with pytest.raises(UsageError, match="num_threads must be"):
        set_num_threads(count)  # type: ignore[arg-type]


def test_results_do_not_depend_on_the_number_of_threads(
    make_mvtec: MakeDataset, tmp_path: Path
) -> None:
    root = make_mvtec(train=6, good=3, bad=4)
    lines = []
    for count in (1, 2):
        report = run_benchmark(
            dataset="mvtec",
            root=root,
            category="nut",
            resize=(160, 160),
            runs_dir=tmp_path,
            num_threads=count,
        )
        folder = Path(report["run_dir"]) / "categories" / "nut"
        lines.append((folder / "per_image.jsonl").read_bytes())
    assert lines[0] == lines[1]
    assert thread_count() == available_cores()  # as before


def test_results_do_not_depend_on_the_size_of_batches() -> None:
    train = [picture(seed) for seed in range(7)]
    test = [picture(100 + seed, spot=seed % 2 == 0) for seed in range(5)]
    found = []
    for size in (1, 3, 8):
        detector = create_model("vision_patchcore", resize=(96, 96))
        detector.batch_size = size  # type: ignore[misc]
        detector.fit(train)
        results = list(detector.score_images(test))
        maps = np.stack([result.anomaly_map for result in results])
        found.append((detector.threshold_, [result.score for result in results], maps))
    for threshold, scores, maps in found[1:]:
        assert threshold == found[0][0]
        assert scores == found[0][1]
        np.testing.assert_array_equal(maps, found[0][2])


def waiting(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import os; {code}; print(os.environ.get('GOMP_SPINCOUNT'))"],
        env={"PATH": "", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_torchs_threads_do_not_wait_busily_unless_the_user_says_so() -> None:
    assert waiting("import pyimgano.backbones") == "5000"
    assert waiting("import pyimgano.backbones", GOMP_SPINCOUNT="7") == "7"
    assert waiting("import pyimgano.backbones", OMP_WAIT_POLICY="active") == "None"
    assert waiting("import torch, pyimgano.backbones") == "None"
    assert waiting("import pyimgano.models.patchcore") == "None"  # it has no need of it yet


def test_none_gives_libraries_their_own_back() -> None:
    torch.set_num_threads(2)
    set_num_threads(1)
    assert torch.get_num_threads() == 1
    set_num_threads(None)
    assert torch.get_num_threads() == 2
