"""Published weights are fetched whole, from where and under what is said, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from pyimgano import cli
from pyimgano.backbones import backbone, create_backbone, dinov2, published
from pyimgano.backbones.dinov2 import DinoV2
from pyimgano.backbones.published import PUBLISHED, Published, fetched_file
from pyimgano.errors import WeightsError

SIZE = dinov2.Size(32, 1, 2)


def weights() -> bytes:
    network = DinoV2(SIZE)
    state = {key: torch.full_like(value, 0.1) for key, value in network.state_dict().items()}
    written = io.BytesIO()
    torch.save({**state, "mask_token": torch.zeros(1, 32)}, written)
    return written.getvalue()


class _Handler(BaseHTTPRequestHandler):
    body = weights()

    def do_GET(self) -> None:
        if self.path == "/missing.pth":
            self.send_error(404)
            return
        body = self.body[: len(self.body) // 2] if "short" in self.path else self.body
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who only asks for the size goes away
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A server of the weights of `dinov2_tiny`, which is published there."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(published, "user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.setitem(dinov2.SIZES, "tiny", SIZE)
    recipes = {**backbone._RECIPES, **backbone._transformers()}
    monkeypatch.setattr(backbone, "_RECIPES", recipes)
    with HTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        root = f"http://127.0.0.1:{httpd.server_address[1]}"
        digest = hashlib.sha256(_Handler.body).hexdigest()
        one = Published(f"{root}/tiny.pth", "Apache-2.0", digest, "https://example.org")
        monkeypatch.setitem(PUBLISHED, "dinov2_tiny", one)
        yield root
        httpd.shutdown()
        thread.join()


def run(*words: str) -> int:
    return cli.main(["weights", *words])


def test_what_is_fetched_is_found_by_its_name(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"engine": "torch", "device": "cpu"}
    with pytest.raises(WeightsError, match="run `pyimgano weights fetch dinov2_tiny`, or give"):
        create_backbone("dinov2_tiny", **given)
    assert run("fetch", "dinov2_tiny", "--dry-run") == 0
    said = capsys.readouterr()
    digest = hashlib.sha256(_Handler.body).hexdigest()
    for fact in (f"{server}/tiny.pth", "MB, licence Apache-2.0", digest):
        assert fact in said.err
    assert json.loads(said.out)["fetched"] is False and not fetched_file("dinov2_tiny").exists()
    assert run("fetch", "dinov2_tiny") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {
        "name": "dinov2_tiny",
        "url": f"{server}/tiny.pth",
        "bytes": len(_Handler.body),
        "licence": "Apache-2.0",
        "sha256": digest,
        "file": str(fetched_file("dinov2_tiny")),
        "fetched": True,
    }
    made = create_backbone("dinov2_tiny", **given)
    assert made.describe()["weights"] == {
        "source": "fetched",
        "detail": "dinov2_tiny",
        "sha256": digest,
    }
    fetched_file("dinov2_tiny").write_bytes(_Handler.body + b"\0")
    with pytest.raises(WeightsError, match="is not the published file"):
        create_backbone("dinov2_tiny", **given)
    assert run("fetch", "dinov2_tiny") == 0  # it is not the published one, and fetched anew
    assert fetched_file("dinov2_tiny").read_bytes() == _Handler.body
    assert [one.name for one in fetched_file("dinov2_tiny").parent.iterdir()] == ["dinov2_tiny.pth"]


def test_what_is_there_is_not_fetched_again(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run("fetch", "dinov2_tiny", "--output", str(tmp_path / "a" / "w.pth")) == 0
    assert not fetched_file("dinov2_tiny").exists()
    gone = replace(PUBLISHED["dinov2_tiny"], url=f"{server}/missing.pth")
    monkeypatch.setitem(PUBLISHED, "dinov2_tiny", gone)
    assert run("fetch", "dinov2_tiny", "--output", str(tmp_path / "a" / "w.pth")) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"url": "{server}/missing.pth"}, "missing.pth: cannot be fetched (Not Found)"),
        ({"url": "{server}/short.pth"}, " bytes came; fetch it again"),
        ({"sha256": "0" * 64}, "it is not the published file, and is not kept"),
        ({"url": "http://127.0.0.1:1/w.pth"}, "on a machine without internet put the file at"),
    ],
)
def test_a_file_that_is_not_whole_is_not_kept(
    server: str,
    change: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {key: value.replace("{server}", server) for key, value in change.items()}
    monkeypatch.setitem(PUBLISHED, "dinov2_tiny", replace(PUBLISHED["dinov2_tiny"], **given))
    assert run("fetch", "dinov2_tiny") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("pyimgano: error: ") and said in line
    folder = fetched_file("dinov2_tiny").parent
    assert not folder.exists() or not list(folder.iterdir())


def test_what_everybody_has_to_ask_for_is_not_fetched(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fetch", "dinov3_vits16") == 2
    said = capsys.readouterr().err
    assert "DINOv3 License" in said and "weights=" in said and "https://ai.meta.com" in said
    assert run("fetch", "dinov2_vitx") == 2
    assert "did you mean dinov2_vits14" in capsys.readouterr().err
    assert run("list") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["dinov2_vits14"]["sha256"].startswith("b938bf1b")
    assert listed["dinov3_vits16"]["url"] is None
    with pytest.raises(WeightsError, match="those who accept its licence at https://ai"):
        create_backbone("dinov3_vits16")


def test_every_transformer_says_where_its_weights_are() -> None:
    names = {name for name in backbone._RECIPES if name.startswith("dino")}
    assert names == set(PUBLISHED)
    for one in PUBLISHED.values():
        assert one.page.startswith("https://") and one.licence
        assert (one.url is None) == (one.sha256 is None)
        assert one.sha256 is None or len(one.sha256) == 64
