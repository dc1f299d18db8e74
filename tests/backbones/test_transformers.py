"""DINOv2 and DINOv3: every block against a plain forward pass and against other programs."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pyimgano.backbones import ENGINE_TOLERANCE, backbone, create_backbone, dinov2, dinov3
from pyimgano.backbones.dinov2 import DinoV2, cubic_resize
from pyimgano.backbones.dinov3 import DinoV3
from pyimgano.backbones.layouts import known_transformers, of_transformer
from pyimgano.backbones.network import initialise
from pyimgano.backbones.transformer import VisionTransformer, round_to_multiple
from pyimgano.errors import UsageError, WeightsError
from pyimgano.images import resize_image
from pyimgano.models import create_model, load_model
from pyimgano.pipelines import export_detector
from pyimgano.pipelines.export import formats

DEPTH = 3
TINY = {
    "dinov2_tiny": DinoV2(dinov2.Size(32, DEPTH, 2)),
    "dinov2_tiny_reg": DinoV2(dinov2.Size(32, DEPTH, 2), registers=4),
    "dinov2_gated": DinoV2(dinov2.Size(32, DEPTH, 2, gated=True)),
    "dinov3_tiny": DinoV3(dinov3.Size(32, DEPTH, 2)),
    "dinov3_gated": DinoV3(dinov3.Size(32, DEPTH, 2, ratio=6, gated=8)),
}
# grids of rows and columns: square, oblong, both ways from the native one, which comes last
GRIDS = [(3, 3), (4, 7), (9, 2), (37, 37)]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small networks by name, beside the published ones."""
    monkeypatch.setitem(dinov2.SIZES, "tiny", dinov2.Size(32, DEPTH, 2))
    monkeypatch.setitem(dinov2.SIZES, "gated", dinov2.Size(32, DEPTH, 2, gated=True))
    monkeypatch.setitem(dinov3.SIZES, "tiny", dinov3.Size(32, DEPTH, 2))
    monkeypatch.setitem(dinov3.SIZES, "gated", dinov3.Size(32, DEPTH, 2, ratio=6, gated=8))
    recipes = {**backbone._RECIPES, **backbone._transformers()}
    monkeypatch.setattr(backbone, "_RECIPES", recipes)
    backbone._create.cache_clear()
    yield
    backbone._create.cache_clear()


def network_of(name: str, seed: int = 0) -> VisionTransformer:
    """A tiny network with random weights in everything, scales and norms too."""
    network = TINY[name]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in network.named_parameters():
            fan_in = value[0].numel() if value.dim() == 2 else value.shape[-1]
            value.normal_(0.0, fan_in**-0.5, generator=generator)
            if key.endswith(("gamma", "norm.weight", "norm1.weight", "norm2.weight")):
                value.add_(1.0)
            if name.startswith("dinov3") and key.endswith("qkv.bias"):
                value[32:64] = 0.0  # keys of DINOv3 have no bias
    return network.eval()


def pixels(grid: tuple[int, int], patch: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, 3, grid[0] * patch, grid[1] * patch), generator=generator)


def every_layer(network: VisionTransformer, x: torch.Tensor) -> list[np.ndarray]:
    """(hw, C) of the patches after each block, unnormed and normed, and tokens of the last."""
    last = f"block{DEPTH - 1}"
    names = [*network.layer_names, f"{last}.class", f"{last}.normed.class"]
    names += [f"{last}.registers"] if network.registers else []
    with torch.inference_mode():
        return [one[0].flatten(1).T.numpy() for one in network.tapped(x, names)]


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# ---- a forward pass written out in numpy, from the authors' keys and formulas


def plain_forward(network: VisionTransformer, x: np.ndarray) -> list[np.ndarray]:
    """As `every_layer`, in double precision."""
    p = {key: value.numpy().astype(np.float64) for key, value in network.state_dict().items()}
    heads, width, patch = 2, 32, network.multiple
    rows, columns = x.shape[1] // patch, x.shape[2] // patch
    kernel, bias = p["patch_embed.proj.weight"].reshape(width, -1), p["patch_embed.proj.bias"]
    patches = np.stack(
        [
            kernel @ x[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].ravel() + bias
            for r in range(rows)
            for c in range(columns)
        ]
    )
    token, turn, eps = p["cls_token"][0], None, 1e-6
    if isinstance(network, DinoV2):
        token = token + p["pos_embed"][0, :1]
        registers = p["register_tokens"][0] if network.registers else np.zeros((0, width))
        patches = patches + plain_positions(
            p["pos_embed"][0, 1:].reshape(37, 37, width), (rows, columns), network.registers > 0
        )
    else:
        registers, eps = p["storage_tokens"][0], 1e-5
        turn = plain_angles(rows, columns, width // heads)
    before = 1 + len(registers)
    t = np.concatenate([token, registers, patches])

    def norm(y: np.ndarray, key: str) -> np.ndarray:
        centred = y - y.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
        return scaled * p[f"{key}.weight"] + p[f"{key}.bias"]

    def linear(y: np.ndarray, key: str) -> np.ndarray:
        return y @ p[f"{key}.weight"].T + p[f"{key}.bias"]

    found = []
    for number in range(DEPTH):
        block = f"blocks.{number}"
        qkv = linear(norm(t, f"{block}.norm1"), f"{block}.attn.qkv")
        joined = []
        for head in range(heads):
            at = slice(head * width // heads, (head + 1) * width // heads)
            q, k, v = (qkv[:, i * width : (i + 1) * width][:, at] for i in range(3))
            if turn is not None:
                q, k = (np.concatenate([y[:before], turned_by(y[before:], turn)]) for y in (q, k))
            weights = np.exp(q @ k.T / np.sqrt(width / heads))
            joined.append(weights / weights.sum(axis=1, keepdims=True) @ v)
        y = linear(np.concatenate(joined, axis=1), f"{block}.attn.proj")
        t = t + y * p[f"{block}.ls1.gamma"]
        y = norm(t, f"{block}.norm2")
        mlp = f"{block}.mlp"
        if f"{mlp}.w12.weight" in p:
            first, second = np.split(linear(y, f"{mlp}.w12"), 2, axis=1)
            y = linear(first / (1 + np.exp(-first)) * second, f"{mlp}.w3")
        elif f"{mlp}.w1.weight" in p:
            first = linear(y, f"{mlp}.w1")
            y = linear(first / (1 + np.exp(-first)) * linear(y, f"{mlp}.w2"), f"{mlp}.w3")
        else:
            from scipy.special import erf

            y = linear(y, f"{mlp}.fc1")
            y = linear(0.5 * y * (1 + erf(y / np.sqrt(2))), f"{mlp}.fc2")
        t = t + y * p[f"{block}.ls2.gamma"]
        found += [t[before:], norm(t, "norm")[before:]]
    found += [t[:1], norm(t, "norm")[:1]]
    return [*found, t[1:before]] if before > 1 else found


def plain_positions(own: np.ndarray, grid: tuple[int, int], registers: bool) -> np.ndarray:
    """Positions (hw, C) by torch's interpolation, called as the authors' program calls it."""
    if grid == (37, 37):
        return own.reshape(-1, own.shape[2])
    how: dict[str, Any] = {"size": grid, "antialias": True}
    if not registers:
        how = {"scale_factor": tuple((side + 0.1) / 37 for side in grid)}
    given = torch.from_numpy(own).permute(2, 0, 1)[None]
    found = torch.nn.functional.interpolate(given, mode="bicubic", **how)
    assert found.shape[2:] == grid
    return found[0].flatten(1).T.numpy()


def plain_angles(rows: int, columns: int, head: int) -> np.ndarray:
    """(hw, head / 2) angles: a quarter of the channels by the row, a quarter by the column."""
    angles = []
    for r in range(rows):
        for c in range(columns):
            places = [2 * (r + 0.5) / rows - 1, 2 * (c + 0.5) / columns - 1]
            periods = [100 ** (2 * i / (head / 2)) for i in range(head // 4)]
            angles.append([2 * np.pi * place / period for place in places for period in periods])
    return np.array(angles)


def turned_by(y: np.ndarray, angles: np.ndarray) -> np.ndarray:
    half = y.shape[1] // 2
    a, b = y[:, :half], y[:, half:]
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=1)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("grid", GRIDS[:3])
def test_every_block_is_that_of_a_plain_forward_pass(name: str, grid: tuple[int, int]) -> None:
    network = network_of(name)
    x = pixels(grid, network.multiple)
    plain = plain_forward(network, x[0].numpy().astype(np.float64))
    ours = every_layer(network, x)
    assert len(ours) == len(plain)
    for one, other in zip(ours, plain):
        assert one.shape == other.shape
        assert largest_difference(one, other) < 1e-5


# ---- Hugging Face transformers, where it is installed


def hugging_face(name: str) -> Any:
    """The same network of Hugging Face transformers, with random weights of its own."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    shared = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 2}
    torch.manual_seed(3)
    if name.startswith("dinov2"):
        config = transformers.Dinov2Config(
            **shared, image_size=518, patch_size=14, use_swiglu_ffn="gated" in name
        )
        model: Any = transformers.Dinov2Model
        if name.endswith("_reg"):
            config = transformers.Dinov2WithRegistersConfig(
                **shared, image_size=518, patch_size=14, num_register_tokens=4
            )
            model = transformers.Dinov2WithRegistersModel
    else:
        config = transformers.DINOv3ViTConfig(
            **shared,
            intermediate_size=128,  # 4 times 32, or two thirds of 6 times 32
            hidden_act="silu" if "gated" in name else "gelu",
            patch_size=16,
            num_register_tokens=4,
            use_gated_mlp="gated" in name,
        )
        model = transformers.DINOv3ViTModel
    made = model(config).eval()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return made


@pytest.mark.parametrize("name", TINY)
def test_every_block_is_that_of_hugging_face(name: str, tmp_path: Path) -> None:
    """Its random weights, saved as it saves them, and loaded by the name of a backbone."""
    model = hugging_face(name)
    model.save_pretrained(tmp_path)
    made = create_backbone(name, weights=tmp_path, engine="torch", device="cpu")
    state = of_transformer(
        dict(_read(tmp_path / "model.safetensors")), known_transformers()[name], name
    )
    network = TINY[name]
    network.load_state_dict(state)
    if isinstance(network, DinoV2):  # it scales by the sizes, without the authors' 0.1
        network.offset = 0.0
    try:
        for grid in GRIDS:
            x = pixels(grid, network.multiple, seed=1)
            with torch.inference_mode():
                theirs = model(x, output_hidden_states=True)
                normed = model.layernorm if name.startswith("dinov2") else model.norm
                before = 1 + network.registers
                hidden = [one[0] for one in theirs.hidden_states[1:]]
                wanted = [y[before:] for one in hidden for y in (one, normed(one))]
                wanted += [hidden[-1][:1], normed(hidden[-1])[:1]]
                wanted += [hidden[-1][1:before]] if network.registers else []
                last = theirs.last_hidden_state[0]
            ours = every_layer(network, x)
            assert len(ours) == len(wanted)
            for one, other in zip(ours, wanted):
                assert largest_difference(one, other.numpy()) < 1e-5
            assert largest_difference(ours[2 * DEPTH - 1], last[before:].numpy()) < 1e-5
    finally:
        if isinstance(network, DinoV2):
            network.offset = 0.0 if network.registers else 0.1
    own = made.network.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], state[key]) for key in own)


def _read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


# ---- one network in the layouts of three programs


def as_hugging_face(state: dict[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    """The layout of the files that Hugging Face transformers writes."""
    found = {"embeddings.mask_token": torch.zeros(1, 32)}
    for key, value in state.items():
        if key.startswith("blocks."):
            _, number, rest = key.split(".", 2)
            layer = f"encoder.layer.{number}" if family == "dinov2" else f"layer.{number}"
            leaf = rest.rsplit(".", 1)[1]
            if rest.startswith("attn.qkv"):
                names = ["attention.attention." + n for n in ("query", "key", "value")]
                if family == "dinov3":
                    names = [f"attention.{letter}_proj" for letter in "qkv"]
                for n, part in zip(names, value.chunk(3)):
                    if not (family == "dinov3" and n.endswith("k_proj") and leaf == "bias"):
                        found[f"{layer}.{n}.{leaf}"] = part
                continue
            for ours, theirs in {
                "attn.proj": "attention.output.dense" if family == "dinov2" else "attention.o_proj",
                "ls1.gamma": "layer_scale1.lambda1",
                "ls2.gamma": "layer_scale2.lambda1",
                "mlp.w12": "mlp.weights_in",
                "mlp.w1": "mlp.gate_proj",
                "mlp.w2": "mlp.up_proj",
                "mlp.w3": "mlp.weights_out" if family == "dinov2" else "mlp.down_proj",
                "mlp.fc1": "mlp.fc1" if family == "dinov2" else "mlp.up_proj",
                "mlp.fc2": "mlp.fc2" if family == "dinov2" else "mlp.down_proj",
            }.items():
                if rest == ours or rest.startswith(f"{ours}."):
                    rest = theirs + rest.removeprefix(ours)
                    break
            found[f"{layer}.{rest}"] = value
        elif key.startswith("patch_embed"):
            middle = "patch_embeddings.projection" if family == "dinov2" else "patch_embeddings"
            found[f"embeddings.{middle}.{key.rsplit('.', 1)[1]}"] = value
        elif key.startswith("norm."):
            found[("layer" if family == "dinov2" else "") + key] = value
        else:
            names = {"pos_embed": "position_embeddings", "storage_tokens": "register_tokens"}
            found[f"embeddings.{names.get(key, key)}"] = value
    return found


def as_timm(state: dict[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    """The layout of timm's `vit_*_patch14_dinov2` and `vit_*_patch16_dinov3_qkvb`."""
    found = {}
    for key, value in state.items():
        name = key.replace("storage_tokens", "reg_token").replace("register_tokens", "reg_token")
        if family == "dinov3":
            name = name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
            if name.endswith("attn.qkv.bias"):
                q, _, v = value.chunk(3)
                found[name.replace("qkv.bias", "q_bias")] = q
                found[name.replace("qkv.bias", "v_bias")] = v
                continue
            name = name.replace("mlp.w1.", "mlp.fc1_g.").replace("mlp.w2.", "mlp.fc1_x.")
        name = name.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2.")
        found[name] = value
    if "register_tokens" in state:
        found["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        found["pos_embed"] = state["pos_embed"][:, 1:]
    return found


def as_authors(state: dict[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    """The layout of the authors' files, with what only training needs."""
    found = {**state, "mask_token": torch.zeros(1, 32)}
    if family == "dinov3":
        found["rope_embed.periods"] = torch.ones(4)
        for number in range(DEPTH):
            bias = f"blocks.{number}.attn.qkv.bias"
            mask = torch.ones(96)
            mask[32:64] = 0.0
            found[f"{bias}_mask"] = mask
            found[bias] = state[bias] + (1 - mask)  # what is masked is of no account
    return found


@pytest.mark.parametrize("name", TINY)
def test_a_network_is_the_same_from_every_layout(name: str, tmp_path: Path) -> None:
    family = name.split("_", maxsplit=1)[0]
    network = network_of(name, seed=5)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    picture = np.random.default_rng(0).integers(0, 256, (5 * 16, 4 * 16, 3), np.uint8)
    size = (3 * network.multiple, 4 * network.multiple)
    picture = np.ascontiguousarray(picture[: size[0], : size[1]])
    layers = ["block1", "block2.normed"]
    made = {}
    for layout, function in {
        "authors": as_authors,
        "hugging_face": as_hugging_face,
        "timm": as_timm,
    }.items():
        file = tmp_path / (f"{layout}.pth" if layout == "authors" else f"{layout}.safetensors")
        given = {key: value.contiguous() for key, value in function(state, family).items()}
        if layout == "authors":
            torch.save(given, file)
        else:
            save_file(given, file)
        made[layout] = create_backbone(
            name, weights=file, layers=layers, engine="torch", device="cpu"
        )
        assert made[layout].weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert made[layout].describe()["weights"]["sha256"] == made[layout].weights.sha256
    first, *others = (one.features([picture]) for one in made.values())
    for other in others:
        for one, two in zip(first, other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    file = tmp_path / "own.safetensors"  # as a saved detector keeps it
    save_file(
        {key: torch.from_numpy(value) for key, value in made["authors"].state().items()}, file
    )
    again = create_backbone(name, weights=file, layers=layers, engine="torch", device="cpu")
    assert again.state_sha256 == made["authors"].state_sha256


def test_parts_of_a_larger_program_and_of_a_folder(tmp_path: Path) -> None:
    network = network_of("dinov2_tiny", seed=5)
    state = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    state["head.weight"] = torch.zeros(3)
    torch.save({"teacher": state, "iteration": 7}, tmp_path / "checkpoint.pth")
    given = {"engine": "torch", "device": "cpu"}
    wanted = create_backbone("dinov2_tiny", weights=tmp_path / "checkpoint.pth", **given)
    folder = tmp_path / "parts"
    folder.mkdir()
    keys = list(network.state_dict())
    hashes = []
    for number, some in enumerate((keys[:9], keys[9:])):
        part = folder / f"model-0000{number + 1}-of-00002.safetensors"
        save_file({key: network.state_dict()[key].contiguous() for key in some}, part)
        hashes.append(hashlib.sha256(part.read_bytes()).hexdigest())
    with pytest.raises(WeightsError, match="parts: holds several weights files"):
        create_backbone("dinov2_tiny", weights=folder, **given)
    index = {
        "weight_map": {
            key: f"model-0000{1 + (key not in keys[:9])}-of-00002.safetensors" for key in keys
        }
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = create_backbone("dinov2_tiny", weights=folder, **given)
    assert found.state_sha256 == wanted.state_sha256
    assert found.weights.sha256 == hashlib.sha256("".join(hashes).encode()).hexdigest()
    index["weight_map"]["cls_token"] = "../checkpoint.pth"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="is not an index of weights files"):
        create_backbone("dinov2_tiny", weights=folder, **given)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WeightsError, match="empty: holds no weights file"):
        create_backbone("dinov2_tiny", weights=empty, **given)


def test_what_does_not_fit_is_one_clear_line(tmp_path: Path) -> None:
    state = dict(network_of("dinov2_tiny_reg").state_dict())

    def said(name: str, given: dict[str, torch.Tensor]) -> str:
        torch.save(given, tmp_path / "w.pth")
        with pytest.raises(WeightsError) as raised:
            create_backbone(name, weights=tmp_path / "w.pth", engine="torch", device="cpu")
        line = str(raised.value)
        assert line.startswith(str(tmp_path / "w.pth")) and "\n" not in line
        return line.removeprefix(f"{tmp_path / 'w.pth'}: ")

    assert said("dinov2_tiny", state) == (
        "weights of another network (DINOv2, 32 wide, 3 blocks, 4 registers), and dinov2_tiny is "
        "DINOv2, 32 wide, 3 blocks, no registers; backbone='dinov2_tiny_reg' is that network"
    )
    assert "DINOv3, 32 wide" in said("dinov2_tiny", dict(network_of("dinov3_tiny").state_dict()))
    assert "gated), and dinov3_tiny is" in said(
        "dinov3_tiny", dict(network_of("dinov3_gated").state_dict())
    )
    assert "it has no class token" in said("dinov2_tiny", {"conv1.weight": torch.zeros(1)})
    assert "it has no blocks of a transformer" in said(
        "dinov2_tiny", {"cls_token": torch.zeros(1, 1, 32)}
    )
    lacking = {key: value for key, value in state.items() if key != "blocks.1.norm2.weight"}
    assert "lacks 'blocks.1.norm2.weight'" in said("dinov2_tiny_reg", lacking)
    more = {**state, "blocks.1.attn.q_norm.weight": torch.zeros(1)}
    assert "has 'blocks.1.attn.q_norm.weight'" in said("dinov2_tiny_reg", more)
    other = {**state, "pos_embed": torch.zeros(1, 257, 32)}
    assert "pos_embed is (1, 257, 32), wanted (1, 1370, 32)" in said("dinov2_tiny_reg", other)
    bad = {**state, "norm.bias": torch.full((32,), torch.nan)}
    assert "norm.bias holds values that are not finite" in said("dinov2_tiny_reg", bad)


# ---- sizes, layers, engines


@pytest.mark.parametrize("scale", [None, 0.1])
@pytest.mark.parametrize("wanted", [1, 16, 37, 41, 90])
def test_resizing_positions_is_torchs_bicubic(wanted: int, scale: float | None) -> None:
    x = torch.randn((1, 2, 37, 37), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    interpolate = torch.nn.functional.interpolate
    if scale is None:
        for smooth in (False, True):
            m = torch.from_numpy(cubic_resize(37, wanted, wanted / 37, smooth)).double()
            theirs = interpolate(x, (wanted, wanted), mode="bicubic", antialias=smooth)
            assert (m @ (x @ m.T) - theirs).abs().max() < 1e-5
    else:
        m = torch.from_numpy(cubic_resize(37, wanted, (wanted + scale) / 37, False)).double()
        factor = (wanted + scale) / 37
        theirs = interpolate(x, scale_factor=(factor, factor), mode="bicubic")
        assert (m @ (x @ m.T) - theirs).abs().max() < 1e-5


def test_layers_are_blocks_by_number_or_depth() -> None:
    layers = ["0.34", "block1.normed", "1", "block2.normed.class", "block2.unit", "0.67.registers"]
    made = create_backbone(
        "dinov3_tiny", layers=layers, pretrained=False, engine="torch", device="cpu"
    )
    assert made.layers == (
        "block0",
        "block1.normed",
        "block2",
        "block2.normed.class",
        "block2.unit",
        "block1.registers",
    )
    found = made.features([np.zeros((32, 48, 3), np.uint8)])
    shapes = [tuple(one.shape) for one in found]
    assert shapes == [(1, 32, 2, 3)] * 3 + [(1, 32, 1, 1), (1, 32, 2, 3), (1, 32, 1, 4)]
    torch.testing.assert_close(found[4], found[2] / found[2].norm(dim=1, keepdim=True))
    for layer, said in {
        "block3": r"layer 'block3' is not there: dinov3_tiny has the blocks block0 to block2",
        "layer1": r"unknown layer of dinov3_tiny 'layer1'",
        "1.5": "a share of the depth such as 0.5",
    }.items():
        with pytest.raises(UsageError, match=said):
            create_backbone("dinov3_tiny", layers=[layer], pretrained=False)
    with pytest.raises(UsageError, match="dinov2_tiny has no registers"):
        create_backbone("dinov2_tiny", layers=["block1.registers"], pretrained=False)
    with pytest.raises(UsageError, match="must differ"):
        create_backbone("dinov2_tiny", layers=["block2", "1.0"], pretrained=False)
    with pytest.raises(UsageError, match=r"'block1.class' is not a grid of patches"):
        create_backbone(
            "dinov2_tiny",
            layers=["block1.class"],
            patches="fine",
            context_above=16,
            pretrained=False,
        )


def test_other_sizes_are_rounded_and_it_is_said() -> None:
    assert [round_to_multiple(side, 14) for side in (1, 6, 14, 20, 21, 256)] == [
        14,
        14,
        14,
        14,
        28,
        252,
    ]
    made = create_backbone("dinov2_tiny", pretrained=False, engine="torch", device="cpu")
    with pytest.warns(UserWarning, match="images of 30 x 42 are resized to 28 x 42") as said:
        found = made.features([np.zeros((30, 42, 3), np.uint8)])
        made.features([np.zeros((30, 42, 3), np.uint8)])  # it is said once
    assert len(said) == 1
    assert tuple(found[0].shape) == (1, 32, 2, 3)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("patches", [False, "fine"])
def test_engines_agree(name: str, patches: Any) -> None:
    pytest.importorskip("openvino")
    images = [np.random.default_rng(i).integers(0, 256, (112, 224, 3), np.uint8) for i in range(2)]
    found = [
        create_backbone(
            name, pretrained=False, engine=engine, device="cpu", patches=patches
        ).features(images)
        for engine in ("openvino", "torch")
    ]
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= ENGINE_TOLERANCE * theirs.abs().max()


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_half_precision_is_near(engine: str) -> None:
    given: dict[str, Any] = {"pretrained": False, "device": "cpu", "engine": engine}
    image = [np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)]
    plain = create_backbone("dinov2_tiny", **given).features(image)
    half = create_backbone("dinov2_tiny", precision="bfloat16", **given).features(image)
    for one, other in zip(half, plain, strict=True):
        assert one.dtype == torch.float32 and float((one - other).norm() / other.norm()) < 0.03


def test_shapes_are_known_without_running(monkeypatch: pytest.MonkeyPatch) -> None:
    made = create_backbone("dinov3_tiny", pretrained=False, engine="torch", device="cpu")
    small = made.shapes((64, 96))
    monkeypatch.setattr(backbone, "_SMALL", 0)
    assert made.shapes((64, 96)) == small == [(1, 32, 4, 6)]


def test_random_weights_are_the_seeds_alone() -> None:
    first, second = DinoV3(dinov3.Size(32, 1, 2)), DinoV3(dinov3.Size(32, 1, 2))
    initialise(first, 4)
    torch.manual_seed(99)
    initialise(second, 4)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])
        assert value.isfinite().all()
    initialise(second, 5)
    assert not torch.equal(first.cls_token, second.cls_token)


@pytest.mark.parametrize(
    ("name", "millions"),
    # parameters in millions, as the authors' tables give them
    [
        ("dinov2_vits14", 22),
        ("dinov2_vitb14", 86),
        ("dinov2_vitl14", 304),
        ("dinov2_vitg14", 1136),
        ("dinov3_vits16", 21),
        ("dinov3_vits16plus", 29),
        ("dinov3_vitb16", 86),
        ("dinov3_vitl16", 300),
        ("dinov3_vith16plus", 840),
        ("dinov3_vit7b16", 6716),
    ],
)
def test_networks_have_their_published_sizes(name: str, millions: int) -> None:
    family, short = name.split("_")
    with torch.device("meta"):
        if family == "dinov2":
            network: VisionTransformer = DinoV2(dinov2.SIZES[short])
        else:
            network = DinoV3(dinov3.SIZES[short])
    count = sum(value.numel() for value in network.parameters()) / 1e6
    assert abs(count - millions) < 0.03 * millions


# ---- methods on them


def textures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    base = rng.integers(60, 200, (84, 112, 3))
    found = (base + rng.integers(-15, 16, base.shape) for _ in range(count))
    return [np.clip(one, 0, 255).astype(np.uint8) for one in found]


def spoilt(image: np.ndarray) -> np.ndarray:
    image = image.copy()
    image[30:54, 40:70] = (255, 0, 0)
    return image


@pytest.mark.parametrize(
    ("model", "keywords"),
    [
        ("vision_patchcore", {}),
        ("vision_patchcore", {"layers": ["0.5.normed.unit", "1.normed.unit"]}),  # cosine
        ("vision_patchcore", {"recipe": "whitened"}),
        ("vision_softpatch", {}),
        ("vision_padim", {"d_reduced": 20}),
        ("vision_dfm", {}),
        ("vision_knn", {}),
        ("vision_mahalanobis", {}),
        ("vision_spade", {"matching_level": 1}),
    ],
)
def test_methods_take_transformers(model: str, keywords: dict[str, Any], tmp_path: Path) -> None:
    images = textures(6)
    detector = create_model(
        model, backbone="dinov3_tiny", pretrained=False, device="cpu", resize=(84, 112), **keywords
    )
    with pytest.warns(UserWarning, match="images are resized to 80 x 112 instead of 84 x 112"):
        detector.fit(images)
    assert detector.params_.resize == (80, 112)
    assert any("multiples of 16 pixels" in note for note in detector.reading_notes_)
    good, bad = detector.decision_function([images[0], spoilt(images[0])])
    assert bad > good
    if detector.has_maps:
        found = detector.get_anomaly_map(spoilt(images[0]))
        assert found.shape == (80, 112)
        row, column = np.unravel_index(found.argmax(), found.shape)
        assert 16 < row < 64 and 24 < column < 88
    detector.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    np.testing.assert_array_equal(again.decision_function([images[0]]), [good])


@pytest.mark.parametrize("form", ["openvino", "onnx", "torch"])
@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov3_gated"])
def test_exports_do_as_the_detector(name: str, form: str, tmp_path: Path) -> None:
    for module in {"onnx": ("onnx", "onnxruntime")}.get(form, ()):
        pytest.importorskip(module)
    images = textures(4)
    size = (5 * 14, 8 * 14) if name.startswith("dinov2") else (80, 112)
    detector = create_model(
        "vision_patchcore", backbone=name, pretrained=False, device="cpu", resize=size
    ).fit(images)
    shown = [images[0], spoilt(images[1])]
    metadata = export_detector(detector, tmp_path / "out", format=form, check_images=shown)
    assert metadata.check.images == 2 and metadata.check.labels_differ == 0
    assert metadata.check.score.relative < 1e-5 and metadata.check.anomaly_map.relative < 1e-5
    program, _ = formats.FORMATS[form].open(tmp_path / "out")
    for count in (1, 2):  # the number of images is free
        batch = np.stack([resize_image(image, size) for image in shown[:count]])
        score, _, _ = program(batch)
        np.testing.assert_allclose(score, detector.decision_function(shown[:count]), rtol=1e-5)


# ---- timm


class TimmViT(torch.nn.Module):
    """What timm's vision transformers have, as far as it is used, of no computation to speak of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim, self.num_prefix_tokens, self.no_embed_class = 6, 1, False
        self.dynamic_img_size = True
        self.patch_embed = torch.nn.Conv2d(3, 6, 16, stride=16)
        self.patch_embed.patch_size, self.patch_embed.grid_size = (16, 16), (4, 4)
        self.patch_embed.forward = lambda x: torch.nn.functional.conv2d(  # (N, h, w, C)
            x, self.patch_embed.weight, self.patch_embed.bias, stride=16
        ).permute(0, 2, 3, 1)
        self.cls_token = torch.nn.Parameter(torch.randn(1, 1, 6))
        self.reg_token, self.norm_pre = None, torch.nn.Identity()
        self.pos_embed = torch.nn.Parameter(torch.randn(1, 17, 6))
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(4))
        self.norm = torch.nn.LayerNorm(6)
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

    def forward_intermediates(self, x: torch.Tensor, **options: Any) -> None:
        raise AssertionError("Input height (48) doesn't match model (64).")


def stand_in_for_timm(monkeypatch: pytest.MonkeyPatch, dynamic: bool) -> None:
    made = TimmViT()
    made.dynamic_img_size = dynamic

    def create_model(name: str, *, pretrained: bool, **options: Any) -> Any:
        if options.get("features_only"):
            info = types.SimpleNamespace(reduction=lambda: [16, 16, 16])
            return types.SimpleNamespace(model=made, feature_info=info)
        if options.get("dynamic_img_size") and not dynamic:
            raise TypeError("unexpected keyword argument 'dynamic_img_size'")
        return made

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))


def test_timm_transformers_have_the_same_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in, which is written out here; real ones are compared where timm is."""
    stand_in_for_timm(monkeypatch, dynamic=True)
    layers = ["blocks.1", "0.75.normed", "block3.class"]
    found = {}
    picture = np.random.default_rng(0).integers(0, 256, (48, 90, 3), np.uint8)
    for engine in ("torch", "openvino"):
        made = create_backbone(
            "timm:vit", layers=layers, pretrained=False, engine=engine, device="cpu"
        )
        assert made.layers == ("block1", "block2.normed", "block3.class")
        with pytest.warns(UserWarning, match="48 x 90 are resized to 48 x 96"):
            found[engine] = made.features([picture])
    for one, other in zip(found["torch"], found["openvino"], strict=True):
        assert (one - other).abs().max() <= ENGINE_TOLERANCE * other.abs().max()
    model: Any = made.network.model
    with torch.inference_mode():
        x = (torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1).float()
        x = torch.nn.functional.interpolate(x, (48, 96), mode="bilinear")
        square = model.pos_embed[:, 1:].reshape(1, 4, 4, 6).permute(0, 3, 1, 2)
        places = torch.nn.functional.interpolate(square, (3, 6), mode="bicubic", antialias=True)
        t = model.patch_embed.forward(x).flatten(1, 2) + places.flatten(2).transpose(1, 2)
        t = torch.cat([model.cls_token + model.pos_embed[:, :1], t], dim=1)
        after = []
        for block in model.blocks:
            t = block(t)
            after.append(t)
        grid = (1, 6, 3, 6)
        wanted = [
            after[1][:, 1:].transpose(1, 2).reshape(grid),
            model.norm(after[2])[:, 1:].transpose(1, 2).reshape(grid),
            after[3][:, :1].transpose(1, 2).reshape(1, 6, 1, 1),
        ]
    for one, other in zip(found["torch"], wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_size_that_a_timm_transformer_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_timm(monkeypatch, dynamic=False)
    made = create_backbone("timm:vit", pretrained=False, engine="openvino", device="cpu")
    assert made.engine == "torch"  # OpenVINO resizes positions in another way
    with pytest.raises(UsageError, match=r"'timm:vit' does not take images of 48 x 48 pixels"):
        made.features([np.zeros((48, 48, 3), np.uint8)])
    monkeypatch.setitem(sys.modules, "timm", None)
    backbone._create.cache_clear()
    with pytest.raises(UsageError, match=r"needs timm, which cannot be imported here") as raised:
        create_model("vision_patchcore", backbone="timm:vit_small_patch14_dinov2").prepare()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_a_timm_transformer_computes_what_timm_computes(name: str) -> None:
    try:
        import timm
    except Exception as error:  # also beside a build of torch that torchvision does not match
        pytest.skip(f"timm cannot be imported: {error}")
    layers = ["block3", "block11.normed"]
    made = create_backbone(
        f"timm:{name}", layers=layers, pretrained=False, engine="torch", device="cpu"
    )
    theirs = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    state = {key.removeprefix("model."): value for key, value in made.network.state_dict().items()}
    theirs.load_state_dict(state)
    x = torch.randn(1, 3, 224, 112)
    with torch.inference_mode():
        found = made.network.tapped(x, layers)
        for one, (block, norm) in zip(found, ((3, False), (11, True)), strict=True):
            (other,) = theirs.forward_intermediates(
                x, indices=[block], norm=norm, intermediates_only=True
            )
            assert largest_difference(one.numpy(), other.numpy()) < 1e-5
