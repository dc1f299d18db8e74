"""`pyimgano serve` as a process of its own: signals, sockets, a browser, what it says."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

from pyimgano.cli import main
from pyimgano.service.server import is_local
from tests.browser import Browser, find_chromium
from tests.conftest import copy_registry, save
from tests.pixel_detector import plain
from tests.stubs import register

from .serving import BAD, GOOD, PREDICT, Process, metric, png, save_detector, until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of another kind")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_registry(monkeypatch)
    register()
    return save_detector(tmp_path / "nut")


def test_a_service_from_its_start_to_its_end(folder: Path) -> None:
    """One process for what needs one: it answers, drops who is gone, reloads, and ends."""
    with Process("--model", f"nut={folder}") as process:
        assert process.said[0].startswith("listening on http://127.0.0.1:"), process.said
        with httpx.Client(base_url=process.address) as client:
            found = client.post(PREDICT, content=png(plain(170))).json()
            assert found["decision"] == "defective"

            # a client that sends half of its image and goes away
            host, port = process.address.removeprefix("http://").split(":")
            body = png(GOOD)
            head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(head.encode() + body[:50])
                until(lambda: metric(client, 'pyimgano_queue_length{model="nut"}') == 1)
            gone = 'pyimgano_errors_total{kind="client_gone",model="nut"}'
            until(lambda: metric(client, gone) == 1)
            assert metric(client, 'pyimgano_queue_length{model="nut"}') == 0

            # SIGHUP reads the detectors again
            save_detector(folder, 150)
            process.process.send_signal(signal.SIGHUP)
            until(lambda: client.get("/v1/models").json()[0]["version"] != found["version"])
            assert client.post(PREDICT, content=png(plain(170))).json()["decision"] == "good"

            # one half is sent before SIGTERM, the other after it, and the request is answered
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(head.encode() + body[:50])
                until(lambda: metric(client, 'pyimgano_queue_length{model="nut"}') == 1)
                process.process.send_signal(signal.SIGTERM)
                until(lambda: refuses((host, int(port))))
                connection.sendall(body[50:])
                connection.settimeout(60)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))
            assert answer.startswith(b"HTTP/1.1 200") and b'"decision":"good"' in answer
        assert process.process.wait(60) == 0
    assert process.process.stdout is not None
    assert "Traceback" not in "\n".join(process.said)


def refuses(where: tuple[str, int]) -> bool:
    try:
        socket.create_connection(where).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("second", [False, True])
def test_ctrl_c_gives_accepted_requests_the_time_that_is_stated(folder: Path, second: bool) -> None:
    """A client that never sends the rest of its image holds the service up so long and no longer;
    a second Ctrl-C ends it at once."""
    grace = "600" if second else "1"
    with Process("--model", f"nut={folder}", "--grace", grace, "--timeout", "900") as process:
        host, port = process.address.removeprefix("http://").split(":")
        where = (host, int(port))
        with socket.create_connection(where) as connection:
            head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nx"
            connection.sendall(head.encode())
            with httpx.Client(base_url=process.address) as client:
                until(lambda: metric(client, 'pyimgano_queue_length{model="nut"}') == 1)
            if second:
                process.process.send_signal(signal.SIGINT)
                until(lambda: refuses(where))
            assert process.end_by(signal.SIGINT) == (130 if second else 0), process.said


def test_what_cannot_be_served(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str | Path) -> tuple[int, str]:
        status = main(["serve", *map(str, words)])
        out, err = capsys.readouterr()
        assert out == "" and "Traceback" not in err
        return status, err

    assert said()[0] == 2
    assert said("--model", "nut")[0] == 2
    status, err = said("--model", "nut=/nowhere")
    assert status == 1 and "/nowhere: no such folder" in err
    empty = tmp_path / "keys"
    empty.write_text("# none\n\n")
    model = ("--model", f"nut={folder}")
    status, err = said(*model, "--api-key-file", empty)
    assert status == 2 and "has no key" in err
    assert said(*model, "--api-key-file", tmp_path / "none")[0] == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, err = said(*model, "--port", str(taken.getsockname()[1]))
    assert status == 1 and "cannot be listened on" in err
    # one that is found out only when it is loaded
    (folder / "arrays.safetensors").write_bytes(b"damaged")
    status, err = said(*model, "--port", "0", "--host", "0.0.0.0")
    assert status == 1 and "warning: listening on 0.0.0.0 without an API key" in err
    assert "arrays.safetensors" in err.splitlines()[-1]


def test_a_missing_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pyimgano.cli.serve.find_spec", lambda name: None)
    assert main(["serve", "--model", "a=b"]) == 2
    assert "pip install 'pyimgano[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)],
)
def test_addresses_that_only_this_machine_reaches(host: str, local: bool) -> None:
    assert is_local(host) is local


# ---- in a browser


@pytest.fixture
def chromium() -> str:
    """A browser, or a reason why there is none; where one is demanded its absence is an error."""
    found = find_chromium()
    if found is None:
        assert "PYIMGANO_BROWSER_TESTS" not in os.environ, "Chromium is not installed"
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    return found


def test_a_person_drops_images_on_the_page(folder: Path, tmp_path: Path, chromium: str) -> None:
    files = [
        str(save(tmp_path / "good <b>.png", GOOD)),
        str(save(tmp_path / "bad.tiff", BAD)),
        str(save(tmp_path / "none.png", GOOD)),
    ]
    Path(files[2]).write_bytes(b"no image")
    key = tmp_path / "keys"
    key.write_text("# of the line\nsecret-key\n")
    words = ("--model", f"nut={folder}", "--api-key-file", key)
    with Process(*words) as process, Browser(tmp_path / "browser") as browser:
        browser.open_address(process.address + "/")
        assert browser.evaluate("document.querySelectorAll('.answer').length") == 0
        choose(browser, files[:1])
        shown = "[...document.querySelectorAll('.answer')].map((one) => one.dataset.decision)"
        until(lambda: browser.evaluate(shown) == ["none"])
        assert "API key is wanted" in browser.evaluate(
            "document.querySelector('.problem').textContent"
        )
        browser.evaluate("document.getElementById('key').value = 'secret-key'")
        choose(browser, files)
        until(lambda: browser.evaluate(shown) == ["none", "defective", "good", "none"])
        texts = browser.evaluate(
            "[...document.querySelectorAll('.answer')].map((o) => o.innerText)"
        )
        assert "not an image in a known format" in texts[0] and "good" not in texts[0]
        assert "defective" in texts[1] and "good <b>.png" in texts[2]
        with httpx.Client(base_url=process.address, headers={"X-API-Key": "secret-key"}) as client:
            score = client.post(PREDICT, content=png(BAD)).json()["score"]
        found = "Number(document.querySelector('.is-defective').dataset.score)"
        assert browser.evaluate(found) == score
        # pictures are whole: of the PNG its own and the overlay, of the TIFF the overlay alone
        whole = (
            "Promise.all([...document.querySelectorAll('.overlay')].map((i) => i.decode()))"
            ".then((all) => all.length)"
        )
        assert browser.evaluate(whole) == 2
        own = "document.querySelectorAll('.is-good .answer-pictures img')[0].naturalWidth"
        until(lambda: browser.evaluate(own) == 64)
        pictures = "document.querySelectorAll('.is-defective .answer-pictures img').length"
        until(lambda: browser.evaluate(pictures) == 1)
        expected = process.address
        assert all(one.startswith((expected, f"blob:{expected}")) for one in browser.requests)
        # the browser itself notes the answers that are no decisions, and nothing else
        assert all("status of 4" in one for one in browser.complaints), browser.complaints


def choose(browser: Browser, files: list[str]) -> None:
    """Choose files as a person does in the dialog of the field."""
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.call("DOM.setFileInputFiles", files=files, nodeId=node)
