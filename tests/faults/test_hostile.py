"""Untrusted files run no code, read nothing outside their folder, and make nothing wait."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as save_tensors

import pyimgano
from pyimgano.backbones import create_backbone, feature_cache, programs
from pyimgano.datasets import check_dataset, load_dataset
from pyimgano.errors import DataError, ImageReadError, PyimganoError, UsageError, WeightsError
from pyimgano.images import header, png, read_header, read_image, read_mask, read_roi
from pyimgano.images.jpeg import find_jpeg_parts
from pyimgano.inference.inputs import list_input
from pyimgano.pipelines.export import check_images_of_run
from pyimgano.runs import find_model
from pyimgano.untrusted_files import parse_json, read_regular
from tests.conftest import MakeDataset, picture, save, spot_mask

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """What waits for ever is a failure of its test, not of the session."""

    def bark(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(error: type[PyimganoError], said: str, read: Callable[[], object]) -> None:
    with pytest.raises(error, match=said) as caught:
        read()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


# ---- no code

_FORBIDDEN_MODULES = {
    "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml",
    "subprocess", "pty", "commands", "code", "codeop", "runpy", "xml", "lxml", "tarfile",
}  # fmt: skip
_FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "np.load", "numpy.load",
    "np.loadtxt", "np.genfromtxt", "torch.hub.load", "shutil.unpack_archive", "os.execv",
    "os.spawnv", "os.startfile", "string.Formatter", "csv.writer", "csv.DictWriter",
}  # fmt: skip
# What these may import all the same: a sweep starts this Python itself, and reads YAML with the
# loader that makes plain values alone.
_ALLOWED = {
    "sweep/executors/processes.py": {"subprocess"},
    "sweep/reading.py": {"yaml"},
}


def test_nothing_in_the_source_runs_what_it_reads() -> None:
    """No pickle, shell, evaluation or format string made of data; and CSV, in which a name could
    be a formula, is written in one place."""
    seen = 0
    package = Path(pyimgano.__file__).parent
    program = "program = [sys.executable, '-m', 'pyimgano.sweep.executors.worker']"
    for path in sorted(package.rglob("*.py")):
        if path.name == "processes.py":
            assert program in ast.unparse(ast.parse(path.read_text(encoding="utf-8")))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names]
                if isinstance(node, ast.ImportFrom) and not node.level:
                    names = [node.module or ""]
                # of joblib the part alone that counts cores, and loads nothing
                names = [name for name in names if name != "joblib.externals.loky.backend"]
                if path.name == "plotting.py":  # which refuses it to matplotlib, and calls nothing
                    names = [name for name in names if name != "subprocess"]
                allowed = _ALLOWED.get(path.relative_to(package).as_posix(), set())
                found = {name.split(".")[0] for name in names} & _FORBIDDEN_MODULES
                assert not found - allowed, where
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if path.name == "processes.py" and called == "subprocess.Popen":
                    assert ast.unparse(node.args[0]).startswith("[*program, "), where
                else:
                    assert not called.startswith("subprocess."), where
                given = {one.arg: ast.unparse(one.value) for one in node.keywords}
                # the one place that writes CSV makes formulas harmless
                if called not in ("csv.writer", "io.StringIO") or path.name != "csv_text.py":
                    assert called not in _FORBIDDEN_CALLS, where
                assert given.get("shell", "False") == "False", where
                assert given.get("allow_pickle", "False") == "False", where
                if called == "torch.load":
                    assert given["weights_only"] == "True", where
                    seen += 1
                if called.endswith((".format", ".format_map")):  # only of a text written here
                    assert isinstance(node.func.value, ast.Constant), where  # type: ignore[attr-defined]
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
                assert not isinstance(node.left, (ast.JoinedStr, ast.Constant)), where
    assert seen == 1


class Bomb:
    """Leaves a folder where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def bombs(trace: Path) -> dict[str, bytes]:
    """The same pickle as it is, as torch writes it today and wrote it once, and as numpy does."""
    found = {"plain": pickle.dumps(Bomb(trace))}
    for name, new in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save({"conv1.weight": Bomb(trace)}, buffer, _use_new_zipfile_serialization=new)
        found[name] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(trace)], object), allow_pickle=True)
    found["numpy"] = buffer.getvalue()
    return found


@pytest.mark.parametrize("kind", ["plain", "zip", "legacy", "numpy"])
def test_a_pickle_under_any_name(tmp_path: Path, kind: str) -> None:
    trace = tmp_path / "trace"
    data = bombs(trace)[kind]
    for suffix in (".pth", ".pt", ".bin", ".safetensors", ".npy", ".ckpt"):
        path = tmp_path / f"net{suffix}"
        path.write_bytes(data)
        refused(
            WeightsError,
            f"net{suffix}: not a readable weights file",
            lambda path=path: create_backbone("resnet18", weights=path),  # type: ignore[misc]
        )
    for suffix in (".png", ".npy", ".tif"):
        path = tmp_path / f"image{suffix}"
        path.write_bytes(data)
        for read in (read_image, read_mask, read_header):
            refused(ImageReadError, "not an image", lambda: read(path))  # noqa: B023
        refused(DataError, "not an image", lambda: read_roi(path))  # noqa: B023
    path = tmp_path / "roi.json"
    path.write_bytes(data)
    refused(DataError, "is not JSON", lambda: read_roi(path))
    assert not trace.exists()
    if kind == "plain":  # it would have gone off
        pickle.loads(data)
        assert trace.exists()


def test_a_pickle_in_a_cache(tmp_path: Path) -> None:
    """Caches are looked into at every run, and others may be able to write there."""
    import openvino

    trace = tmp_path / "trace"
    cache = feature_cache.FeatureCache(tmp_path / "features", "a")
    entry = cache._path("ab12")
    entry.parent.mkdir(parents=True)
    store, core = programs.ProgramStore(tmp_path / "programs", "a"), openvino.Core()
    stem = store._stem((8, 8))
    stem.parent.mkdir()
    for data in bombs(trace).values():
        entry.write_bytes(data)
        assert cache.lookup("ab12") is None
        hashes = {}
        for suffix in (".xml", ".bin"):
            stem.with_suffix(suffix).write_bytes(data)
            hashes[suffix] = programs._digest(stem.with_suffix(suffix))
        stem.with_suffix(".json").write_bytes(data)
        assert store.load(core, (8, 8)) is None
        stem.with_suffix(".json").write_text(json.dumps(hashes))  # who plants it can vouch for it
        assert store.load(core, (8, 8)) is None
    for path in (entry, stem.with_suffix(".json"), stem.with_suffix(".xml")):
        path.unlink()
        os.mkfifo(path)  # reading it would wait for ever
    assert cache.lookup("ab12") is None and store.load(core, (8, 8)) is None
    assert not trace.exists()


def test_a_picture_is_not_handed_to_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would give EPS, whatever the file is called, to Ghostscript."""
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    path = tmp_path / "0.png"
    for kind in ("EPS", "PDF", "ICO", "TGA", "IM", "PCX", "SGI", "JPEG2000"):
        Image.fromarray(picture(0, 16)).save(path, format=kind)
        for read in (read_image, read_mask, read_header):
            refused(ImageReadError, "not an image in a known format", lambda: read(path))  # noqa: B023


def test_weights_that_unpack_to_more_than_they_are(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(20_000_000))
    assert path.stat().st_size < 100_000
    refused(WeightsError, "unpacks to 200", lambda: create_backbone("resnet18", weights=path))


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
        {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 2**64]}},
        {
            "a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
        },
        {"a": {"dtype": "PICKLE", "shape": [4], "data_offsets": [0, 16]}},
        {"a": "[" * 900},
    ],
)
def test_headers_of_tensors_that_lie(tmp_path: Path, tensors: dict[str, Any]) -> None:
    text = json.dumps(tensors).encode()
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    refused(
        WeightsError, "not a readable weights", lambda: create_backbone("resnet18", weights=path)
    )
    path.write_bytes(struct.pack("<Q", 2**63) + text)
    refused(
        WeightsError, "not a readable weights", lambda: create_backbone("resnet18", weights=path)
    )


def test_tensors_that_take_no_space_in_their_file(tmp_path: Path) -> None:
    """A view of one number, as large as it likes, is compared with the network by shape alone."""
    path = tmp_path / "net.pt"
    state = create_backbone("resnet18", pretrained=False).state()
    name = next(iter(state))
    torch.save({"conv1.weight": torch.zeros(1).expand(10**6, 10**6)}, path)
    refused(
        WeightsError,
        "weights of another network",
        lambda: create_backbone("resnet18", weights=path),
    )
    path = tmp_path / "net.safetensors"
    path.write_bytes(save_tensors({name: torch.zeros(0, 2**40)}))
    refused(
        WeightsError,
        "weights of another network",
        lambda: create_backbone("resnet18", weights=path),
    )


# ---- nothing beyond the folder

LINKS = {
    "image": "nut/train/good/000.png",
    "test image": "nut/test/spot/000.png",
    "mask": "nut/ground_truth/spot/000_mask.png",
    "mask of no image": "nut/ground_truth/spot/stray.png",
    "folder of images": "nut/train/good",
    "folder of masks": "nut/ground_truth/spot",
    "category": "nut",
}


@pytest.mark.parametrize("place", LINKS.values(), ids=LINKS.keys())
def test_links_out_of_the_dataset(make_mvtec: MakeDataset, tmp_path: Path, place: str) -> None:
    root = make_mvtec(train=1, good=1, bad=1)
    link, outside = root / place, tmp_path / "outside"
    if link.exists():
        link.rename(outside)
    else:
        save(outside.with_suffix(".png"), spot_mask()).rename(outside)
    link.symlink_to(outside)
    said = "lies outside the dataset's folder by way of a link; --allow-outside"
    refused(DataError, said, lambda: load_dataset("mvtec", root))
    (checked,) = check_dataset("mvtec", root).categories
    assert [found.kind for found in checked.findings] == ["category_unusable"]
    loaded = load_dataset("mvtec", root, allow_outside=True)
    assert loaded.get_train_data().shape[0] == 1
    inside = root / "elsewhere"
    outside.rename(inside)
    link.unlink()
    link.symlink_to(inside)
    assert load_dataset("mvtec", root).get_test_data()[0].shape[0] == 2


def test_tables_that_are_links(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("path,split\na.png,train\n")
    root = tmp_path / "set"
    root.mkdir()
    save(root / "a.png", picture(0))
    (root / "manifest.csv").symlink_to(secret)
    refused(DataError, "outside the dataset's folder", lambda: load_dataset("custom", root))
    assert len(load_dataset("custom", root, allow_outside=True).get_train_paths()) == 1
    (root / "part/train/good").mkdir(parents=True)
    (root / "part/Data/Images").mkdir(parents=True)
    save(root / "part/train/good/0.png", picture(0))
    (root / "part/defects_config.json").symlink_to(secret)
    refused(DataError, "outside the dataset's folder", lambda: load_dataset("mvtec_loco", root))
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").symlink_to(secret)
    refused(DataError, "outside the dataset's folder", lambda: load_dataset("visa", root))


def test_a_run_whose_model_is_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "detector.json").touch()
    part = tmp_path / "run/categories/nut"
    part.mkdir(parents=True)
    (part / "model").symlink_to(outside)
    refused(DataError, "lies outside the run", lambda: find_model(tmp_path / "run"))


# ---- nothing waits, nothing is endless


def special(path: Path) -> dict[str, Callable[[], object]]:
    return {
        "pipe": lambda: os.mkfifo(path),
        "socket": lambda: _socket(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path),
        "broken link": lambda: path.symlink_to("nowhere"),
        "sparse": lambda: _sparse(path),
    }


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**42)  # takes no space


KINDS = list(special(Path()))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_among_images(make_mvtec: MakeDataset, kind: str) -> None:
    root = make_mvtec(train=1, good=1, bad=1)
    path = root / "nut/test/good/x.png"
    special(path)[kind]()
    for read in (read_image, read_mask, read_header):
        refused(ImageReadError, r"x\.png: ", lambda: read(path))  # noqa: B023
    (checked,) = check_dataset("mvtec", root, allow_outside=True, deep=True).categories
    assert len(checked.findings) == (0 if kind == "folder" else 1)
    listing = list_input(str(root / "nut/test"))
    assert len(listing.paths) == (2 if kind == "folder" else 3) and not listing.problems


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_in_the_place_of_text(tmp_path: Path, kind: str) -> None:
    save(tmp_path / "part/train/good/0.png", picture(0))
    (tmp_path / "part/Data/Images").mkdir(parents=True)
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "run/categories/nut").mkdir(parents=True)
    readers: dict[str, Callable[[], object]] = {
        "split_csv/1cls.csv": lambda: load_dataset("visa", tmp_path, allow_outside=True),
        "part/defects_config.json": lambda: load_dataset(
            "mvtec_loco", tmp_path, allow_outside=True
        ),
        "roi.json": lambda: read_roi(tmp_path / "roi.json"),
        "list.csv": lambda: load_dataset("custom", tmp_path / "list.csv"),
        "net.pt": lambda: create_backbone("resnet18", weights=tmp_path / "net.pt"),
    }
    if kind != "broken link":
        readers["run/categories/nut/per_image.jsonl"] = lambda: check_images_of_run(
            tmp_path / "run"
        )
    for name, read in readers.items():
        if (name.endswith("config.json") and kind == "broken link") or (
            name == "net.pt" and kind == "sparse"
        ):
            continue  # as if there were none; a file that torch maps without reading it
        special(tmp_path / name)[kind]()
        with pytest.raises((DataError, UsageError)) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_links_in_circles_do_not_multiply(tmp_path: Path) -> None:
    """Two links to a folder above them lead 2^40 ways."""
    save(tmp_path / "a/b/0.png", picture(0, 8))
    for name in ("x", "y", "z"):
        (tmp_path / "a/b" / name).symlink_to(tmp_path)
    for pattern in ("**/*.png", "a/**", "**/b/**/*", "**/*"):
        assert list_input(f"{tmp_path}/{pattern}").paths == [str(tmp_path / "a/b/0.png")]
    assert list_input(str(tmp_path)).paths == [str(tmp_path / "a/b/0.png")]


# ---- text and headers beyond reason


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested deeper than 64 levels"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested deeper than 64 levels"),
        ('{"a": 1, "a": 2}', "a name stands twice"),
        ("[NaN]", "NaN is not a JSON number"),
        ("[-Infinity]", "-Infinity is not a JSON number"),
        ("9" * 5000, "Exceeds the limit"),
        (b"\xff\xfe[\x00]\x00", "codec can't decode"),
        ('"' + "[" * 1000, "Unterminated string"),
    ],
)
def test_json_that_is_none(text: str | bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(text)


def test_json_that_is_some() -> None:
    deep: Any = "[" * 64 + "]" * 64
    assert parse_json(deep) is not None
    brackets = '["' + "[{" * 500 + '\\"[", 1]'
    assert parse_json(brackets) == json.loads(brackets)
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


def test_lists_beyond_reason_are_refused_quickly(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    read = lambda: load_dataset("custom", path)  # noqa: E731
    path.write_text(",".join(f"c{i}" for i in range(300_000)) + ",path,split\n")
    refused(DataError, "columns, at most 1000 are read", read)
    path.write_text("path,split\n" + "x" * 200_000 + ",train\n")
    refused(DataError, "field larger than field limit", read)
    path.write_text("path,split\n" + "../" * 30_000 + ",train\n")
    refused(DataError, "leads out of the dataset's folder", read)
    path = tmp_path / "list.jsonl"
    record = {"path": "a", "split": "x" * 10**6}
    path.write_text(json.dumps(record) + "\n")
    refused(DataError, "split must be train, validation or test, got 'xxx", read)
    path.write_text(json.dumps({**record, "mask": [[1] * 10**5]}) + "\n")
    refused(DataError, "mask must be a path or a list of paths", read)
    path.write_text(json.dumps({f"k{i}": 1 for i in range(2000)} | record) + "\n")
    refused(DataError, "columns, at most 1000 are read", read)
    with path.open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="has 1099511627776 bytes, at most 268435456 are read"):
        read_regular(path)


def test_a_jpeg_that_states_two_sizes(tmp_path: Path) -> None:
    """The one that is held to the limit of pixels must be the one that is decoded."""
    path = save(tmp_path / "0.jpg", picture(0, 16))
    data = path.read_bytes()
    start = data.index(b"\xff\xc0")
    (length,) = struct.unpack_from(">H", data, start + 2)
    frame = bytearray(data[start : start + 2 + length])
    struct.pack_into(">HH", frame, 5, 60_000, 60_000)
    for forged in (
        data[:start] + frame + data[start:],
        data[: start + 2 + length] + frame + data[start + 2 + length :],
    ):
        path.write_bytes(forged)
        refused(ImageReadError, r"0\.jpg: ", lambda: read_image(path))
    filled = data[:2] + b"\xff" * 200_000 + data[2:]  # each of these bytes was looked at alone
    path.write_bytes(filled)
    looked: list[int] = []

    class Counted(io.BytesIO):
        def seek(self, *where: int) -> int:
            looked.append(where[0])
            return super().seek(*where)

    file = Counted(filled)
    parts = find_jpeg_parts(file)
    assert header._jpeg_reaches_its_end(file, len(filled), parts) and len(looked) < 20_000
    assert read_header(path).size == (16, 16)


def test_a_png_in_too_many_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "0.png", picture(0, 16))
    data = path.read_bytes()
    empty = struct.pack(">I4sI", 0, b"tEXt", zlib.crc32(b"tEXt"))
    path.write_bytes(data[:33] + 200 * empty + data[33:])
    assert read_image(path).shape == (16, 16, 3)
    for module in (png, header):
        monkeypatch.setattr(module, "MAX_CHUNKS", 100)
    refused(ImageReadError, "more than 100 chunks", lambda: read_image(path))
    refused(ImageReadError, "more than 100 chunks", lambda: read_header(path))
