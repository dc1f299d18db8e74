"""Fitted in one process, used in those that are forked from it, as some servers do it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyimgano import threads
from pyimgano.models import create_model, list_models
from pyimgano.threads import ForkSafeLock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

#: Seconds after which a child is stuck; it then says where.
LONG = 100

# Scores differ in their last digits: torch adds in another order with one thread.
PROGRAM = """
import faulthandler, os, sys, traceback, warnings
warnings.simplefilter("ignore")  # Python 3.12 and later warn of every fork with threads
import numpy as np
sys.path.insert(0, {folder!r})
from pyimgano import set_num_threads
from pyimgano.models import create_model
from tests.conftest import picture
from tests.models.test_models import CHEAP

images = [picture(i) for i in range(6)]
# others: the distance of a training image to itself is 0 but for rounding
test = [picture(50 + i, spot=True) for i in range(3)]
import torch
torch.set_num_threads(2)
torch.randn(400, 400) @ torch.randn(400, 400)
torch.randn(2**20).exp()  # its OpenMP threads are there

def in_child(work):
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later({long}, exit=True)
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitpid(pid, 0)[1]

def score():
    found = detector.decision_function(test)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    assert torch.get_num_threads() == 1
    set_num_threads(2)  # is for all but torch
    assert torch.get_num_threads() == 1
    np.testing.assert_allclose(detector.decision_function(test), wanted, rtol=1e-3, atol=1e-5)

def fit():
    detector.fit(images)

for name, engine in {cases!r}:
    cheap = {{**CHEAP.get(name, {{}}), "engine": engine}}
    detector = create_model(name, resize=(64, 64), device="cpu", **cheap)
    detector.fit(images)
    wanted = detector.decision_function(test)
    print(name, engine, in_child(score), flush=True)
print("fit", in_child(fit), flush=True)
"""


#: The models on the embedding of an image share one backbone, here that of OpenVINO. The others
#: run it with torch, whose threads are gone in the child; two of them with OpenVINO too.
ON_EMBEDDING = [
    name
    for name in list_models()
    if type(create_model(name)).__module__.startswith("pyimgano.models.classical")
]
EMBEDDING = [(name, "openvino") for name in ON_EMBEDDING]
PATCHES = [
    *((name, "torch") for name in list_models() if name not in ON_EMBEDDING),
    ("vision_padim", "openvino"),
    ("vision_patchcore", "openvino"),
    ("vision_knn", "torch"),
]


@pytest.mark.parametrize("cases", [EMBEDDING, *(PATCHES[first::2] for first in range(2))])
def test_every_model_scores_in_a_forked_process(cases: list[tuple[str, str]]) -> None:
    program = PROGRAM.format(cases=cases, long=LONG, folder=str(Path(__file__).parents[2]))
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=280
    )
    wanted = [f"{name} {engine} 0" for name, engine in cases] + ["fit 0"]
    assert done.stdout.splitlines() == wanted, done.stderr[-3000:]


def test_a_pool_of_forked_processes() -> None:
    program = f"""
import multiprocessing, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pyimgano.models import create_model
from tests.conftest import picture
images = [picture(i) for i in range(6)]
detector = create_model("vision_padim", resize=(64, 64), d_reduced=24).fit(images)
def score(number):
    return float(detector.decision_function([images[number]])[0])
wanted = [score(i) for i in range(6)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map_async(score, range(6)).get({LONG})
assert max(abs(a - b) for a, b in zip(found, wanted)) < 1e-3 * max(wanted), (found, wanted)
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=280
    )
    assert done.stdout == "done\n", done.stderr[-3000:]


def test_a_lock_that_another_thread_held_is_free_after_a_fork() -> None:
    lock, mine = ForkSafeLock(), ForkSafeLock(reentrant=True)
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            free.wait(LONG)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(LONG)
    try:
        with mine:
            pid = os.fork()
            if pid == 0:
                with lock:
                    pass
                # that of the thread that forked stays its own
                os._exit(0 if mine._holder == threading.get_ident() else 1)
    finally:
        free.set()
        thread.join()
    assert os.waitpid(pid, 0)[1] == 0
    with lock, mine, mine:
        assert mine._depth == 2


def test_without_torch_nothing_is_limited_after_a_fork() -> None:
    program = (
        "import os, pyimgano.threads as threads\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    import torch\n"
        "    torch.set_num_threads(3)\n"
        "    threads.set_torch_threads(2)\n"
        "    os._exit(0 if torch.get_num_threads() == 2 else 1)\n"
        "print(os.waitpid(pid, 0)[1])\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LONG)
    assert done.stdout == "0\n", done.stderr


def test_a_gpu_is_refused_in_a_forked_process(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pyimgano.backbones import engines
    from pyimgano.errors import UsageError

    engine = engines.TorchEngine.__new__(engines.TorchEngine)
    engine._device = torch.device("cuda:0")
    monkeypatch.setattr(threads, "_forked_with_torch", True)
    with pytest.raises(UsageError, match="cannot be used in a forked process; load the detector"):
        engine.run(None)  # type: ignore[arg-type]
