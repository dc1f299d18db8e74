"""A training kept on disk as it goes, so that an interrupted one goes on where it stopped.

A folder holds `training.json` and the file of tensors that it names, `<step>.safetensors`.
Both are written beside and renamed, the tensors first: whatever happens, training.json names
tensors that are whole. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ...errors import DataError
from .history import History

_DOCUMENT = "training.json"
_TENSORS = re.compile(r"\d{9}\.safetensors")
_SCHEMA_VERSION = 1
_LARGEST = 2**26  # bytes of a training.json


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _History(_Model):
    losses: list[float]
    checks: list[int]
    held_out: list[float]
    best_step: int
    stopped_early: bool


class _Document(_Model):
    schema_version: int
    identity: dict[str, str]
    tensors: str
    sha256: str
    history: _History


class Checkpoint:
    """The place of a training's checkpoint.

    Parameters
    ----------
    folder
        Made if need be.
    identity
        What the training depends on, in words, by name: a checkpoint with another is refused.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self._folder = folder
        self._identity = dict(identity)

    def read(
        self, network: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[History, dict[str, Tensor]] | None:
        """Set both to what was kept, and return the history and the best state so far.

        None if nothing was kept.

        Raises
        ------
        DataError
            What was kept is of another training, or damaged.
        """
        path = self._folder / _DOCUMENT
        try:
            if path.stat().st_size > _LARGEST:
                raise DataError(f"{path}: is not a checkpoint, it is too large")
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            document = _Document.model_validate_json(text)
            history = History(**document.history.model_dump())
            history.require_sound()
        except (ValidationError, ValueError, RecursionError) as error:
            raise self._damaged("is not a checkpoint") from error
        if document.schema_version != _SCHEMA_VERSION:
            raise self._damaged(f"has schema version {document.schema_version}")
        for name in sorted({*document.identity, *self._identity}):
            kept, now = document.identity.get(name), self._identity.get(name)
            if kept != now:
                raise self._damaged(
                    f"is of another training ({name} was {_short(kept)}, now {_short(now)})"
                )
        if not _TENSORS.fullmatch(document.tensors):
            raise self._damaged("names no file of tensors")
        try:
            data = (self._folder / document.tensors).read_bytes()
            if hashlib.sha256(data).hexdigest() != document.sha256:
                raise self._damaged(f"and {document.tensors} do not belong together")
            tensors = load(data)
            best = _part(tensors, "best.")
            network.load_state_dict(_part(tensors, "network."))
            _fill_optimizer(optimizer, _part(tensors, "optimizer."))
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            raise DataError(f"{self._folder / document.tensors}: {reason}") from error
        except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
            raise self._damaged("does not fit this network") from error
        device = next(network.parameters()).device
        return history, {name: value.to(device) for name, value in best.items()}

    def write(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        history: History,
        best: Mapping[str, Tensor],
    ) -> None:
        """Keep the state; raises `DataError` where it cannot be written."""
        tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in best.items()}
        for number, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if value is not None:
                    tensors[f"optimizer.{number}.{name}"] = torch.as_tensor(value)
        data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
        name = f"{len(history.losses):09d}.safetensors"
        document = {
            "schema_version": _SCHEMA_VERSION,
            "identity": self._identity,
            "tensors": name,
            "sha256": hashlib.sha256(data).hexdigest(),
            "history": history.facts(),
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._folder / name, data)
            replace_file(self._folder / _DOCUMENT, json.dumps(document, allow_nan=False).encode())
        except OSError as error:
            raise DataError(
                f"{self._folder}: the checkpoint cannot be written ({error.strerror})"
            ) from error
        self._forget(besides=name)

    def remove(self) -> None:
        """Once the training is of no more use: the files, and the folder if nothing else is in."""
        with contextlib.suppress(OSError):
            (self._folder / _DOCUMENT).unlink()
            self._forget(besides=None)
            self._folder.rmdir()

    def _forget(self, besides: str | None) -> None:
        for path in self._folder.glob("*.safetensors"):
            if _TENSORS.fullmatch(path.name) and path.name != besides:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _damaged(self, what: str) -> DataError:
        return DataError(
            f"{self._folder / _DOCUMENT}: {what}; give another checkpoint_dir, or remove this one"
        )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    known = {number for group in groups for number in group["params"]}
    if not set(state) <= known:
        raise ValueError("it has states of parameters that do not exist")
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def replace_file(path: Path, data: bytes) -> None:
    """Write beside, flush to the disk, rename; raises `OSError`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _short(value: str | None) -> str:
    if value is None:
        return "not there"
    return value if len(value) <= 60 else f"{value[:60]}..."
