"""Who may ask; what is described; what the page and the metrics are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from pyimgano.service.answers import Answer, Problem
from tests.conftest import copy_registry
from tests.stubs import register

from .serving import GOOD, PREDICT, png, save_detector, served

GUARDED = [("POST", PREDICT), ("POST", "/v1/models/nut/reload"), ("GET", "/v1/models")]
GUARDED += [("GET", "/metrics")]
KEYS = ("a-long-key", "another-key")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        copy_registry(patch)
        register()
        with served(save_detector(tmp_path_factory.mktemp("m") / "nut"), api_keys=KEYS) as client:
            yield client


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_a_key_is_wanted_where_something_is_told_or_done(
    client: TestClient, method: str, path: str
) -> None:
    def ask(**headers: str) -> int:
        return client.request(method, path, headers=headers, content=png(GOOD)).status_code

    assert ask() == ask(**{"X-API-Key": "a-long-kez"}) == ask(**{"X-API-Key": ""}) == 401
    assert ask(Authorization="Bearer a-long-ke") == ask(Authorization="Basic a-long-key") == 401
    for key in KEYS:
        assert ask(**{"X-API-Key": key}) == ask(Authorization=f"Bearer {key}") == 200
    answer = client.request(method, path, headers={"X-API-Key": "ключ".encode()})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert set(answer.json()) == {"error", "request_id"}


def test_what_needs_no_key(client: TestClient) -> None:
    for path in ("/", "/health", "/ready", "/openapi.json"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert not any(key in answer.text for key in KEYS)


def test_pages_of_other_sites_may_not_ask(client: TestClient) -> None:
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200)):
        headers = {"X-API-Key": KEYS[0], "Sec-Fetch-Site": site}
        assert client.post(PREDICT, content=png(GOOD), headers=headers).status_code == status


def test_openapi_describes_each_address_with_examples(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        *("/health", "/ready", "/metrics", "/v1/models"),
        *("/v1/models/{name}/predict", "/v1/models/{name}/reload"),
    }
    predict = described["paths"]["/v1/models/{name}/predict"]["post"]
    assert {"image/jpeg", "image/png", "image/tiff"} <= set(predict["requestBody"]["content"])
    assert {"200", "400", "401", "404", "413", "415", "422", "429", "503"} <= set(
        predict["responses"]
    )
    assert all("description" in one for one in predict["parameters"] if one["in"] == "query")
    schemas = described["components"]["schemas"]
    for model in (Answer, Problem):
        (example,) = schemas[model.__name__]["examples"]
        assert json.loads(model.model_validate(example).model_dump_json()) == example
    # the pages of FastAPI load their scripts from elsewhere
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def test_an_answer_is_as_it_is_described(client: TestClient) -> None:
    headers = {"X-API-Key": KEYS[0]}
    query = {"map": True, "overlay": True}
    answer = client.post(PREDICT, content=png(GOOD), headers=headers, params=query)
    assert Answer.model_validate(answer.json()).detector == "nut"


def test_prometheus_can_read_the_metrics(client: TestClient) -> None:
    answer = client.get("/metrics", headers={"X-API-Key": KEYS[0]})
    assert answer.headers["content-type"].startswith("text/plain")
    families = {one.name: one for one in text_string_to_metric_families(answer.text)}
    assert families["pyimgano_request_seconds"].type == "histogram"
    assert families["pyimgano_queue_length"].type == "gauge"
    assert {"pyimgano_decisions", "pyimgano_errors", "process_resident_memory_bytes"} <= set(
        families
    )


def test_the_page_asks_for_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/")
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", answer.text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', answer.text)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1] and "connect-src &#39;self&#39;" in policy[1]
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert "<option>nut</option>" in answer.text and 'id="key"' in answer.text


def test_without_keys_the_page_asks_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_registry(monkeypatch)
    register()
    with served(save_detector(tmp_path / "nut")) as client:
        assert 'id="key"' not in client.get("/").text
        assert client.post(PREDICT, content=png(GOOD)).status_code == 200
