"""POST /v1/models/NAME/predict: the detector's decisions, whatever the image comes as."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pyimgano import load_model
from pyimgano.inference import infer
from pyimgano.service.bodies import RawFormat, decode, decoded_size
from pyimgano.service.refusals import Refusal
from tests.conftest import copy_registry
from tests.stubs import register

from .serving import BAD, GOOD, PREDICT, metric, png, save_detector, served


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        copy_registry(patch)
        register()
        folder = save_detector(tmp_path_factory.mktemp("models") / "nut")
        with served(folder, max_body=100_000, batch_size=4) as client:
            client.folder = folder  # type: ignore[attr-defined]
            yield client


def test_the_answer_is_what_infer_says(client: TestClient) -> None:
    detector = load_model(client.folder)  # type: ignore[attr-defined]
    for image, decision in ((GOOD, "good"), (BAD, "defective")):
        body = png(image)
        answer = client.post(PREDICT, content=body, headers={"X-Request-ID": "part-17"})
        assert answer.status_code == 200 and answer.headers["X-Request-ID"] == "part-17"
        found = answer.json()
        (expected,) = infer(detector, [image], regions=True)
        for name in ("score", "threshold", "score_ratio", "p_value", "context_share", "remark"):
            assert found[name] == getattr(expected, name), name
        assert found["decision"] == decision
        assert found["original_size"] == list(image.shape[:2])
        boxes = [tuple(one["box"]) for one in found["regions"]]
        assert boxes == [one.box for one in expected.regions or ()]
        assert found["request_id"] == "part-17"
        assert found["image_sha256"] == hashlib.sha256(body).hexdigest()
        assert found["map"] is None and found["overlay_png"] is None
    assert boxes == [(30, 10, 20, 10)]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM"])
def test_files_of_all_kinds(client: TestClient, kind: str) -> None:
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    for image, decision in ((GOOD, "good"), (BAD, "defective")):
        found = client.post(PREDICT, content=png(image, kind, **options)).json()
        assert found["decision"] == decision


def test_raw_pixels_are_scored_as_the_file_is(client: TestClient) -> None:
    image = BAD.copy()
    image[..., 0] -= 5
    image[..., 2] += 9
    as_file = client.post(PREDICT, content=png(image)).json()
    forms = [
        ({"shape": "64,64,3"}, image),
        ({"shape": "64x64x3", "order": "bgr"}, image[..., ::-1]),
        ({"shape": "64,64,3", "dtype": "uint16"}, (image.astype("<u2") * 257)),
    ]
    for query, array in forms:
        body = np.ascontiguousarray(array).tobytes()
        found = client.post(PREDICT, params=query, content=body).json()
        assert (found["score"], found["regions"]) == (as_file["score"], as_file["regions"]), query
    grey = client.post(PREDICT, params={"shape": "64,64"}, content=BAD[..., 0].tobytes()).json()
    assert grey["score"] == client.post(PREDICT, content=png(BAD[..., 0])).json()["score"]


def test_map_and_overlay(client: TestClient) -> None:
    detector = load_model(client.folder)  # type: ignore[attr-defined]
    (expected,) = infer(detector, [BAD], include_maps=True)
    query = {"map": True, "overlay": True, "regions": False}
    found = client.post(PREDICT, params=query, content=png(BAD)).json()
    assert found["regions"] is None
    kept = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["map"]["png"]))))
    low, high = found["map"]["low"], found["map"]["high"]
    restored = low + (high - low) * kept.astype(np.float64) / 65535
    np.testing.assert_allclose(restored, expected.anomaly_map, atol=(high - low) / 131070 + 1e-6)
    assert expected.map_scale is not None
    assert (found["map"]["normal"], found["map"]["line"]) == (
        expected.map_scale.normal,
        expected.map_scale.line,
    )
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["overlay_png"]))))
    assert drawn.shape == (64, 64, 3)
    red, _, blue = drawn[15, 40].astype(int)  # in the middle of the defect
    assert red > blue + 20
    np.testing.assert_array_equal(drawn[50:, :20], BAD[50:, :20])  # nothing is drawn on good parts


WRONG = [
    (png(BAD)[:-40], {}, 422, "cannot be read"),
    (b"no image at all", {}, 422, "not an image in a known format"),
    (b"", {}, 400, "the body is empty"),
    (b"x" * 100_001, {}, 413, "more than the 100000 bytes"),
    (b"x" * 11, {"shape": "2,2,3"}, 422, "has 11 bytes, and uint8 of shape 2,2,3 has 12"),
    (b"x" * 12, {"shape": "2,2,4"}, 400, "shape must be"),
    (b"x" * 12, {"shape": "0,4"}, 400, "shape must be"),
    (b"x" * 12, {"shape": "two"}, 400, "shape must be"),
    (b"x" * 12, {"dtype": "uint16"}, 400, "need shape"),
    (b"x" * 12, {"shape": "3,4", "order": "bgr"}, 400, "no effect on a grey image"),
    (b"x" * 12, {"shape": "3,4", "dtype": "float32"}, 400, "dtype: input should be"),
    (b"x" * 12, {"shape": "9999999,9999999"}, 422, "declares 9999999 x 9999999 pixels"),
    (png(BAD), {"regions": "perhaps"}, 400, "regions: input should be"),
]


@pytest.mark.parametrize(("body", "query", "status", "said"), WRONG)
def test_what_is_no_image_has_no_decision(
    client: TestClient, body: bytes, query: dict[str, str], status: int, said: str
) -> None:
    answer = client.post(PREDICT, params=query, content=body)
    found = answer.json()
    assert answer.status_code == status and set(found) == {"error", "request_id"}
    assert said in found["error"] and "\n" not in found["error"]
    assert metric(client, 'pyimgano_queue_length{model="nut"}') == 0


def test_a_body_without_a_length_is_bounded_too(client: TestClient) -> None:
    answer = client.post(PREDICT, content=(b"x" * 1000 for _ in range(200)))
    assert answer.status_code == 413
    answer = client.post(PREDICT, content=iter([png(BAD)[:100], png(BAD)[100:]]))
    assert answer.json()["decision"] == "defective"


def test_forms_and_unknown_detectors(client: TestClient) -> None:
    answer = client.post(PREDICT, files={"file": png(GOOD)})
    assert answer.status_code == 415 and "--data-binary" in answer.json()["error"]
    answer = client.post("/v1/models/nuts/predict", content=png(GOOD))
    assert answer.status_code == 404
    assert answer.json()["error"] == "unknown detector 'nuts'; did you mean nut?"
    assert client.get(PREDICT).status_code == 405


def test_an_odd_request_id_is_replaced(client: TestClient) -> None:
    answer = client.post(PREDICT, content=png(GOOD), headers={"X-Request-ID": "a b\x7f"})
    assert len(answer.json()["request_id"]) == 32


def test_errors_and_decisions_are_counted(client: TestClient) -> None:
    names = (
        'pyimgano_decisions_total{decision="good",model="nut"}',
        'pyimgano_decisions_total{decision="defective",model="nut"}',
        'pyimgano_errors_total{kind="unreadable",model="nut"}',
        'pyimgano_request_seconds_count{model="nut"}',
        'pyimgano_batch_images_sum{model="nut"}',
    )
    before = [metric(client, name) for name in names]
    for body in (png(GOOD), png(BAD), png(BAD), b"none"):
        client.post(PREDICT, content=body)
    after = [metric(client, name) for name in names]
    assert [b - a for a, b in zip(before, after)] == [1, 2, 1, 3, 3]


def test_a_detector_with_a_bit_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that the detector's bit depth does not allow is no good part."""
    copy_registry(monkeypatch)
    register()
    image = np.full((64, 64), 3200, np.uint16)
    image[0, 0] = 4096
    raw = RawFormat.parse("64,64", "uint16", None)
    with pytest.raises(Refusal, match="holds the value 4096") as found:
        decode(image.astype("<u2").tobytes(), raw, 12)
    assert found.value.status == 422
    image[0, 0] = 4095
    pixels, _ = decode(image.astype("<u2").tobytes(), raw, 12)
    assert pixels.shape == (64, 64, 3) and pixels[0, 0, 0] == 255 and pixels[1, 1, 0] == 199


@given(st.binary(max_size=300), st.sampled_from([None, "4,5", "4,5,3"]))
def test_bodies_are_images_or_refusals(body: bytes, shape: str | None) -> None:
    raw = RawFormat.parse(shape, None, None)
    try:
        pixels, _ = decode(body, raw, None)
    except Refusal as refusal:
        assert refusal.status == 422 and "\n" not in refusal.line
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3
        assert pixels.nbytes <= decoded_size(body, raw)


@given(st.text(max_size=20))
def test_shapes_are_shapes_or_refusals(text: str) -> None:
    try:
        found = RawFormat.parse(text, None, None)
    except Refusal as refusal:
        assert refusal.status == 400
    else:
        assert found is not None and len(found.shape) in (2, 3) and min(found.shape) > 0
