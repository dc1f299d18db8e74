"""State dicts of vision transformers, as different programs save them, under our names.

Ours are those of the authors of DINOv2 and DINOv3. The layouts of Hugging Face transformers and of
timm are told by their keys, never by the name of a file, and so is which network it is.
"""

from __future__ import annotations

import re
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from . import dinov2, dinov3

State = dict[str, Tensor]


class WeightsNotFitting(Exception):
    """A state dict is of no vision transformer that is known here, or of another one."""


# What no feature depends on: what only training needs, heads, and constants.
_UNUSED = re.compile(
    r"mask_token|rope_embed\.periods|local_cls_norm\..*|(head|classifier|fc_norm)\..*|"
    r"blocks\.\d+\.attn\.qkv\.bias_mask"
)
# One key after another, the first pattern that is found in a key.
_RENAMED = [
    # Hugging Face transformers
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings(?:\.projection)?\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    # timm
    (r"^reg_token$", "register_tokens"),
]
_RENAMED_IN_A_BLOCK = [
    # Hugging Face transformers
    (r"attention\.attention\.(query|key|value)\.", r"attn.\1."),
    (r"attention\.output\.dense\.", "attn.proj."),
    (r"attention\.q_proj\.", "attn.query."),
    (r"attention\.k_proj\.", "attn.key."),
    (r"attention\.v_proj\.", "attn.value."),
    (r"attention\.o_proj\.", "attn.proj."),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"mlp\.weights_in\.", "mlp.w12."),
    (r"mlp\.weights_out\.", "mlp.w3."),
    (r"mlp\.gate_proj\.", "mlp.w1."),
    # timm
    (r"gamma_([12])$", r"ls\1.gamma"),
    (r"mlp\.fc1_g\.", "mlp.w1."),
    (r"mlp\.fc1_x\.", "mlp.w2."),
]


class Recognised(NamedTuple):
    """What a state dict is of: a `DINOv2` or `DINOv3` network, and how large a one."""

    family: str
    width: int
    depth: int
    registers: int
    gated: bool

    def __str__(self) -> str:
        tokens = f"{self.registers} registers" if self.registers else "no registers"
        gate = ", gated" if self.gated else ""
        return f"{self.family}, {self.width} wide, {self.depth} blocks, {tokens}{gate}"


def of_transformer(state: State, wanted: Recognised, name: str) -> State:
    """Return the state dict of a vision transformer under our names.

    Parameters
    ----------
    state
        As the authors, Hugging Face transformers or timm save it.
    wanted
        The network that it is to fill.
    name
        What that is called, for messages.

    Raises
    ------
    WeightsNotFitting
        It is of no such network, or of another one; says of which.
    """
    found, family = _under_the_authors_names(state)
    depth = 1 + max(int(key.split(".")[1]) for key in found if key.startswith("blocks."))
    gated = any(".mlp.w3." in key for key in found)
    tokens = found.get("storage_tokens" if family == "DINOv3" else "register_tokens")
    registers = 0 if tokens is None else int(tokens.shape[1])
    kind = Recognised(family, int(found["cls_token"].shape[-1]), depth, registers, gated)
    if kind != wanted:
        same = [one for one, of_it in known_transformers().items() if of_it == kind]
        hint = f"; backbone={same[0]!r} is that network" if same else ""
        raise WeightsNotFitting(
            f"weights of another network ({kind}), and {name} is {wanted}{hint}"
        )
    return found


def known_transformers() -> dict[str, Recognised]:
    """Return the networks by name, and how their state dicts are told."""
    known = {}
    for name, size in dinov2.SIZES.items():
        for suffix, registers in (("", 0), ("_reg", 4)):
            kind = Recognised("DINOv2", size.width, size.depth, registers, size.gated)
            known[f"dinov2_{name}{suffix}"] = kind
    for name, large in dinov3.SIZES.items():
        kind = Recognised("DINOv3", large.width, large.depth, 4, large.gated > 0)
        known[f"dinov3_{name}"] = kind
    return known


def _under_the_authors_names(state: State) -> tuple[State, str]:
    """Return the state dict, and which family it is of."""
    found = {}
    for key, value in _without_prefix(state).items():
        renamed = _renamed(key)
        if not _UNUSED.fullmatch(renamed):
            found[renamed] = value
    if not any(key.startswith("blocks.") for key in found):
        raise WeightsNotFitting("weights of another network (it has no blocks of a transformer)")
    family = "DINOv2" if "pos_embed" in found else "DINOv3"
    if family == "DINOv3" and "register_tokens" in found:
        found["storage_tokens"] = found.pop("register_tokens")
    if family == "DINOv2" and isqrt(places := int(found["pos_embed"].shape[1])) ** 2 == places:
        # timm adds the position of the class token to that token and keeps those of patches alone
        nothing = torch.zeros_like(found["pos_embed"][:, :1])
        found["pos_embed"] = torch.cat([nothing, found["pos_embed"]], dim=1)
    blocks = sorted({key.split(".")[1] for key in found if key.startswith("blocks.")})
    for number in blocks:
        _join_attention(found, f"blocks.{number}.attn.", family)
        _join_mlp(found, f"blocks.{number}.mlp.", family)
    return found, family


def _without_prefix(state: State) -> State:
    """Return what belongs to the network that the class token is of, without the rest.

    Checkpoints of a larger program have a prefix (`backbone.`, `dinov2.`, `module.`), and other
    parts beside the network.
    """
    tokens = [key for key in state if key == "cls_token" or key.endswith(".cls_token")]
    if len(tokens) != 1:
        many = "several class tokens" if tokens else "no class token"
        raise WeightsNotFitting(f"weights of another network (it has {many})")
    prefix = tokens[0].removesuffix("cls_token").removesuffix("embeddings.")
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def _renamed(key: str) -> str:
    in_block = re.fullmatch(r"(?:blocks|(?:encoder\.|model\.)?layer)\.(\d+)\.(.+)", key)
    for pattern, name in _RENAMED_IN_A_BLOCK if in_block else _RENAMED:
        renamed, count = re.subn(pattern, name, in_block[2] if in_block else key)
        if count:
            return f"blocks.{in_block[1]}.{renamed}" if in_block else renamed
    return f"blocks.{in_block[1]}.{in_block[2]}" if in_block else key


def _join_attention(found: State, at: str, family: str) -> None:
    """Query, key and value as one map; keys of DINOv3 have no bias, which stands as zeros."""
    if f"{at}query.weight" in found:
        parts = [found.pop(f"{at}{part}.weight") for part in ("query", "key", "value")]
        found[f"{at}qkv.weight"] = torch.cat(parts)
    biases = [found.pop(f"{at}{part}.bias", None) for part in ("query", "key", "value")]
    if f"{at}q_bias" in found:
        biases = [found.pop(f"{at}q_bias"), None, found.pop(f"{at}v_bias", None)]
    given = [one for one in biases if one is not None]
    if given:
        found[f"{at}qkv.bias"] = torch.cat(
            [torch.zeros_like(given[0]) if one is None else one for one in biases]
        )
    if family == "DINOv3" and f"{at}qkv.weight" in found:
        rows = found[f"{at}qkv.weight"].shape[0]
        if rows not in _ROWS_WITHOUT_BIAS:  # timm leaves out biases that are all 0
            bias = found.get(f"{at}qkv.bias")
            bias = found[f"{at}qkv.weight"].new_zeros(rows) if bias is None else bias.clone()
            bias[rows // 3 : 2 * rows // 3] = 0.0
            found[f"{at}qkv.bias"] = bias


# Of `qkv`, of the networks that have no bias there.
_ROWS_WITHOUT_BIAS = {3 * size.width for size in dinov3.SIZES.values() if not size.qkv_bias}


def _join_mlp(found: State, at: str, family: str) -> None:
    """Return the names of a gated layer, joined where the authors join them."""

    def move(old: str, new: str) -> None:
        for leaf in ("weight", "bias"):
            if f"{at}{old}.{leaf}" in found:
                found[f"{at}{new}.{leaf}"] = found.pop(f"{at}{old}.{leaf}")

    gated = f"{at}w1.weight" in found
    if f"{at}up_proj.weight" in found:  # of Hugging Face transformers
        move("up_proj", "w2" if gated else "fc1")
        move("down_proj", "w3" if gated else "fc2")
    elif gated:
        move("fc2", "w3")
    elif _is_gated_of_timm(found.get(f"{at}fc1.weight"), found.get(f"{at}fc2.weight")):
        move("fc1", "w12")
        move("fc2", "w3")
    if gated and family == "DINOv2":
        for leaf in ("weight", "bias"):
            first, second = (found.pop(f"{at}{part}.{leaf}", None) for part in ("w1", "w2"))
            if first is not None and second is not None:
                found[f"{at}w12.{leaf}"] = torch.cat([first, second])


def _is_gated_of_timm(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether the layers of an MLP are those of a gated one: twice as many rows as it
    takes.
    """
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]
