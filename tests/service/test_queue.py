"""Many requests at a time: batches, a bounded queue, time that is over, errors of one of many."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pyimgano.errors import DataError
from pyimgano.service import batching
from pyimgano.service.batching import Budget
from pyimgano.service.refusals import Refusal
from pyimgano.threads import thread_count
from tests.conftest import copy_registry, picture
from tests.pixel_detector import plain
from tests.stubs import register

from .serving import BAD, GOOD, PREDICT, Gate, metric, png, save_detector, served, until

QUEUE = 'pyimgano_queue_length{model="nut"}'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_registry(monkeypatch)
    register()
    return save_detector(tmp_path / "nut")


def test_what_waits_is_scored_together(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(folder, batch_size=4) as client, ThreadPoolExecutor(8) as pool:
        gate = Gate(monkeypatch)
        images = [plain(200 + i) for i in range(7)]
        first = pool.submit(client.post, PREDICT, content=png(images[0]))
        assert gate.reached.acquire(timeout=60)  # it is being scored; the others wait
        others = [pool.submit(client.post, PREDICT, content=png(one)) for one in images[1:]]
        until(lambda: metric(client, QUEUE) == 7)
        gate.opened.set()
        scores = [one.result().json()["score"] for one in (first, *others)]
    assert scores == [255.0 - (200 + i) for i in range(7)]  # each its own
    assert gate.batches[0] == 1 and sum(gate.batches) == 7
    assert max(gate.batches) <= 4 and len(gate.batches) < 7


def test_a_full_queue_says_so_and_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(folder, queue_size=3, batch_size=1) as client, ThreadPoolExecutor(8) as pool:
        gate = Gate(monkeypatch)
        accepted = [pool.submit(client.post, PREDICT, content=png(BAD)) for _ in range(3)]
        until(lambda: metric(client, QUEUE) == 3)
        for _ in range(4):
            refused = client.post(PREDICT, content=png(GOOD))
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert refused.json()["error"] == "3 requests wait already, as many as may"
        gate.opened.set()
        assert [one.result().json()["decision"] for one in accepted] == ["defective"] * 3
        assert client.post(PREDICT, content=png(GOOD)).status_code == 200
        assert metric(client, 'pyimgano_errors_total{kind="full",model="nut"}') == 4
        assert metric(client, QUEUE) == 0


def test_one_place_serves_one_client_after_another(folder: Path) -> None:
    """The place is free again before the answer is sent, or the next request would be refused."""
    with served(folder, queue_size=1) as client:
        for _ in range(50):
            assert client.post(PREDICT, content=png(GOOD)).status_code == 200


def test_no_request_leaves_a_thread_behind_or_needs_a_new_one(folder: Path) -> None:
    """What OpenCV keeps of each thread would otherwise be a gigabyte after a month."""
    with served(folder) as client:
        known: set[threading.Thread] = set()
        for _ in range(30):
            assert client.post(PREDICT, content=png(GOOD)).status_code == 200
            known |= {one for one in threading.enumerate() if one.name.startswith("decode")}
        assert 1 <= len(known) <= thread_count()
    assert not any(one.is_alive() for one in known)


def test_a_decision_that_takes_too_long_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(folder, timeout=0.2, batch_size=1) as client:
        gate = Gate(monkeypatch)
        answers = [client.post(PREDICT, content=png(GOOD)) for _ in range(3)]
        for answer in answers:
            assert answer.status_code == 503
            assert answer.json()["error"] == "no decision within 0.2 s, so there is none"
        assert metric(client, QUEUE) == 3  # their places are taken until their turn comes
        gate.opened.set()
        until(lambda: metric(client, QUEUE) == 0)
    assert gate.batches == [1]  # nobody waits for the others: they are not scored


def test_an_image_that_cannot_be_scored_costs_no_other_its_decision(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(folder, batch_size=4) as client, ThreadPoolExecutor(8) as pool:
        gate = Gate(monkeypatch)
        scored = gate._infer

        def fails(detector: Any, images: list[Any], **keywords: Any) -> Any:
            results = scored(detector, images, **keywords)
            if any(image[0, 0, 0] == 7 for image in images):
                raise DataError("this image is cursed")
            if any(image[0, 0, 0] == 8 for image in images):
                raise RuntimeError("a secret")
            return results

        monkeypatch.setattr(batching, "infer", fails)
        first = pool.submit(client.post, PREDICT, content=png(GOOD))
        assert gate.reached.acquire(timeout=60)
        bodies = [png(one) for one in (GOOD, plain(7), BAD, plain(8))]
        others = [pool.submit(client.post, PREDICT, content=body) for body in bodies]
        until(lambda: metric(client, QUEUE) == 5)
        gate.opened.set()
        assert first.result().json()["decision"] == "good"
        answers = [one.result() for one in others]
        assert [one.status_code for one in answers] == [200, 500, 200, 500]
        assert answers[1].json()["error"] == "no decision: this image is cursed"
        assert "secret" not in answers[3].text
        assert client.get("/health").status_code == 200
        assert metric(client, QUEUE) == 0


def test_an_overlay_that_cannot_be_drawn_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise MemoryError

    with served(folder) as client:
        monkeypatch.setattr(batching, "draw_pictures", fails)
        answer = client.post(PREDICT, params={"overlay": True}, content=png(BAD))
        assert answer.status_code == 500 and "no decision" in answer.json()["error"]
        assert client.post(PREDICT, content=png(BAD)).status_code == 200
        assert metric(client, QUEUE) == 0


def test_decoded_images_share_a_budget(folder: Path) -> None:
    """Of 64 x 64 x 3 bytes one image fits at a time; a larger one than the budget goes alone."""
    with served(folder, decoded_bytes=12_288) as client, ThreadPoolExecutor(8) as pool:
        query = {"overlay": True}
        some = [
            pool.submit(client.post, PREDICT, params=query, content=png(picture(i, size)))
            for i, size in enumerate([64, 128, 64, 200] * 4)
        ]
        assert {one.result().status_code for one in some} == {200}


def in_thread(call: Callable[[], Any]) -> Future[Any]:
    found: Future[Any] = Future()
    threading.Thread(target=lambda: found.set_result(call())).start()
    return found


def test_the_budget_is_never_exceeded() -> None:
    budget = Budget(10)
    assert budget.take(4) == 4
    waiting = in_thread(lambda: budget.take(25))
    assert budget.take(6) == 6
    assert not waiting.done()
    budget.give_back(6)
    assert not waiting.done()
    budget.give_back(4)
    assert waiting.result(60) == 10
    budget.give_back(10)


def test_eight_clients_get_the_bits_that_one_gets(folder: Path) -> None:
    images = [picture(seed, 64, spot=seed % 3 == 0) for seed in range(12)]
    with served(folder, batch_size=3) as client, ThreadPoolExecutor(8) as pool:

        def ask(image: Any) -> tuple[Any, ...]:
            found = client.post(PREDICT, content=png(image)).json()
            return found["score"], found["decision"], found["p_value"], str(found["regions"])

        alone = [ask(image) for image in images]
        assert list(pool.map(ask, images * 8)) == alone * 8


def test_an_ended_queue_takes_nothing(folder: Path) -> None:
    with served(folder) as client:
        queue = client.app.state.service.served["nut"].queue  # type: ignore[attr-defined]
    with pytest.raises(Refusal, match="the service is ending"):
        queue.admit()
