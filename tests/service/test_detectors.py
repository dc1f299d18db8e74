"""Detectors by name: at the start, listed, and replaced while requests are under way."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyimgano.errors import SavedModelError, UsageError
from pyimgano.service import Settings, create_app
from pyimgano.service.detectors import DetectorSource, NamedDetector, parse_models
from pyimgano.service.state import Service
from tests.conftest import copy_registry
from tests.pixel_detector import plain
from tests.stubs import register

from .serving import BAD, GOOD, PREDICT, Gate, metric, png, save_detector, served, until

RELOAD = "/v1/models/nut/reload"


@pytest.fixture(autouse=True)
def darkness(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_registry(monkeypatch)
    register()


def test_several_detectors_decide_by_their_own_thresholds(tmp_path: Path) -> None:
    nut, bolt = save_detector(tmp_path / "nut"), save_detector(tmp_path / "bolt", 150)
    grey = png(plain(170))
    with served(nut, bolt) as client:
        assert client.post(PREDICT, content=grey).json()["decision"] == "defective"
        other = client.post("/v1/models/bolt/predict", content=grey).json()
        assert other["decision"] == "good" and other["detector"] == "bolt"
        listed = {one["name"]: one for one in client.get("/v1/models").json()}
        assert listed["nut"]["model"] == "darkness" and listed["nut"]["ready"] is True
        assert listed["nut"]["threshold"] == client.post(PREDICT, content=grey).json()["threshold"]
        assert listed["bolt"]["version"] == other["version"]
        assert listed["bolt"]["fingerprint"].startswith(other["version"])
        assert listed["nut"]["fingerprint"] != listed["bolt"]["fingerprint"]


def test_a_request_is_decided_by_the_detector_that_accepted_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_detector(tmp_path / "nut")
    grey = png(plain(170))
    with served(folder, batch_size=8) as client, ThreadPoolExecutor(8) as pool:
        before = client.get("/v1/models").json()[0]["version"]
        gate = Gate(monkeypatch)
        early = [pool.submit(client.post, PREDICT, content=grey) for _ in range(4)]
        until(lambda: metric(client, 'pyimgano_queue_length{model="nut"}') == 4)
        save_detector(folder, 150)
        monkeypatch.undo()  # the new one is warmed up by the true function
        copy_registry(monkeypatch)
        register()
        done = client.post(RELOAD).json()
        late = [pool.submit(client.post, PREDICT, content=grey) for _ in range(4)]
        gate.opened.set()
        first, second = ([one.result().json() for one in some] for some in (early, late))
    assert done["earlier"] == before and done["version"] != before
    assert {(one["decision"], one["version"]) for one in first} == {("defective", before)}
    assert {(one["decision"], one["version"]) for one in second} == {("good", done["version"])}


def test_reloading_under_load_loses_no_request(tmp_path: Path) -> None:
    folder = save_detector(tmp_path / "nut")
    with served(folder) as client, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.post, PREDICT, content=png(BAD)) for _ in range(60)]
        for least in (150, 160, 170):
            save_detector(folder, least)
            assert client.post(RELOAD).status_code == 200
        answers = [one.result() for one in asked]
        assert {one.status_code for one in answers} == {200}
        assert {one.json()["decision"] for one in answers} == {"defective"}
        last = client.get("/v1/models").json()[0]["version"]
        text = client.get("/metrics").text
    info = [line for line in text.splitlines() if line.startswith("pyimgano_detector_info")]
    assert info == [f'pyimgano_detector_info{{model="nut",version="{last}"}} 1.0']


def test_a_detector_that_cannot_be_loaded_leaves_the_earlier_one(tmp_path: Path) -> None:
    folder = save_detector(tmp_path / "nut")
    with served(folder) as client:
        before = client.get("/v1/models").json()
        (folder / "detector.json").write_text("{}")
        refused = client.post(RELOAD)
        assert refused.status_code == 409
        assert refused.json()["error"].startswith("the earlier detector stays: ")
        shutil.rmtree(folder)
        assert client.post(RELOAD).status_code == 409
        assert client.get("/v1/models").json() == before
        assert client.post(PREDICT, content=png(GOOD)).json()["decision"] == "good"
        assert metric(client, 'pyimgano_reloads_total{model="nut",outcome="failed"}') == 2


def test_nothing_is_decided_before_the_detector_is_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_detector(tmp_path / "nut")
    gate = Gate(monkeypatch)
    monkeypatch.setattr("pyimgano.service.detectors.infer", gate._infer)
    from fastapi.testclient import TestClient

    with TestClient(create_app([DetectorSource("nut", folder)])) as client:
        assert gate.reached.acquire(timeout=60)  # it is being warmed up
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/ready").status_code == 503
        assert client.get("/ready").json() == {"ready": False, "detectors": {"nut": False}}
        assert client.get("/v1/models").json()[0]["version"] is None
        early = client.post(PREDICT, content=png(GOOD))
        assert early.status_code == 503 and early.headers["Retry-After"] == "1"
        gate.opened.set()
        until(lambda: client.get("/ready").status_code == 200)
        assert client.post(PREDICT, content=png(GOOD)).status_code == 200
    assert sorted(gate.batches[:2]) == [1, 8]  # one image, and a whole batch


def test_a_detector_that_cannot_score_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = DetectorSource("nut", save_detector(tmp_path / "nut"))

    def broken(_: object, images: list[object], **__: object) -> object:
        raise SavedModelError("the network is damaged")

    monkeypatch.setattr("pyimgano.service.detectors.infer", broken)
    named = NamedDetector(source, 8)
    with pytest.raises(SavedModelError, match="damaged"):
        named.load()
    assert named.current is None


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyimgano.service import detectors

    folder = save_detector(tmp_path / "nut")
    opened: list[int] = []
    true = detectors.open_detector

    def replaced(**keywords: object) -> object:
        found = true(**keywords)  # type: ignore[arg-type]
        if not opened:
            save_detector(folder, 150)
        opened.append(1)
        return found

    monkeypatch.setattr(detectors, "open_detector", replaced)
    loaded = DetectorSource("nut", folder).load()
    assert len(opened) == 2
    assert loaded.detector.threshold_ == loaded.document.threshold


def test_folders_that_hold_no_detector_are_found_out_at_once(tmp_path: Path) -> None:
    with pytest.raises(SavedModelError, match="no such folder"):
        create_app([DetectorSource("nut", tmp_path / "nowhere")])
    with pytest.raises(SavedModelError, match="no saved detector"):
        create_app([DetectorSource("nut", tmp_path)])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "--model is missing"),
        (["models/lid"], "give NAME=DIR"),
        (["lid="], "give NAME=DIR"),
        (["a/b=dir"], "a name has at most 64"),
        (["=dir"], "a name has at most 64"),
        (["lid=a", "lid=b"], "the name 'lid' stands twice"),
    ],
)
def test_names_of_detectors(given: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_models(given, device=None, allow_outside=False)


def test_folders_may_have_an_equals_sign() -> None:
    (found,) = parse_models(["lid=a=b"], device="cpu", allow_outside=True)
    assert found == DetectorSource("lid", Path("a=b"), "cpu", True)


def test_the_detector_of_a_run(tmp_path: Path) -> None:
    folder = save_detector(tmp_path / "run" / "categories" / "nut" / "model")
    assert DetectorSource("nut", tmp_path / "run").saved() == folder
    assert DetectorSource("nut", folder).saved() == folder


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"queue_size": 0}, {"timeout": 0.0}, {"max_body": 0}, {"api_keys": ("",)}],
)
def test_settings_that_let_nothing_through(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)  # type: ignore[arg-type]


def test_health_says_when_a_thread_has_ended(tmp_path: Path) -> None:
    with served(save_detector(tmp_path / "nut")) as client:
        service: Service = client.app.state.service  # type: ignore[attr-defined]
        service.served["nut"].queue.__exit__()
        assert client.get("/health").status_code == 503
