"""The programs that run a frozen network: OpenVINO on a CPU, torch on a CPU or a GPU.

Both run the same graph (`network.FeatureGraph`, or a `PatchGraph` around it), by default in
float32, and then agree to within `ENGINE_TOLERANCE` of the largest absolute feature of a layer;
they sum in different orders, so they do not agree to the bit.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..precision import full_precision
from ..threads import ForkSafeLock, forked_with_torch, single_torch_thread
from .programs import ProgramStore
from .without_telemetry import import_openvino

#: Largest difference between the engines' features, relative to a layer's largest value.
ENGINE_TOLERANCE = 1e-4

ENGINES = ("auto", "openvino", "torch")
#: What networks are computed in. Their features are float32 in either case.
PRECISIONS = ("float32", "bfloat16")


class Engine(Protocol):
    """Runs a feature graph on batches of pixels."""

    name: str
    precision: str

    def run(self, pixels: npt.NDArray[np.uint8]) -> list[Tensor]:
        """Run images (N, H, W, 3) uint8; returns one (N, C_l, H_l, W_l) float32 tensor a layer."""
        ...


class TorchEngine:
    """Eager torch on `device`; features stay on that device."""

    name = "torch"

    def __init__(self, graph: nn.Module, device: torch.device, precision: str = "float32") -> None:
        self._graph = graph.to(device).eval()
        self._device = device
        self.precision = precision

    def run(self, pixels: npt.NDArray[np.uint8]) -> list[Tensor]:
        if self._device.type == "cuda" and forked_with_torch():
            raise UsageError(
                f"device '{self._device}' cannot be used in a forked process; load the detector "
                "in the process that scores, or start processes with spawn"
            )
        with (
            torch.inference_mode(),
            full_precision(self._device),
            torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
        ):
            batch = torch.from_numpy(pixels)  # (N, H, W, 3)
            if self._device.type == "cuda":
                # from memory that stays where it is, so that it is copied while the GPU computes
                batch = batch.pin_memory()
            batch = batch.to(self._device, non_blocking=True)
            return [features.float() for features in self._graph(batch)]


class OpenVinoEngine:
    """OpenVINO on the CPU.

    A program is compiled for each size of image, and takes one image at a time: that is
    quickest, also for many images, and keeps an image's features the same whatever company
    it is in.
    """

    name = "openvino"

    def __init__(
        self,
        graph: nn.Module,
        *,
        threads: int,
        store: ProgramStore | None,
        precision: str = "float32",
    ) -> None:
        openvino = import_openvino()

        self._graph = graph.eval()
        self._core = openvino.Core()
        self._store = store
        #: What it really computes in: without units for bfloat16 that is float32.
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = precision if "BF16" in able else "float32"
        self._settings: dict[str, Any] = {
            # On CPUs with bfloat16 units OpenVINO would otherwise use them unasked.
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        self._compiled: dict[tuple[int, int], Any] = {}
        self._lock = ForkSafeLock()  # detectors share backbones, and may run in threads

    def run(self, pixels: npt.NDArray[np.uint8]) -> list[Tensor]:
        with self._lock:
            return self._run(pixels)

    def _run(self, pixels: npt.NDArray[np.uint8]) -> list[Tensor]:
        count, height, width, _ = pixels.shape
        program = self._program(height, width)
        layers: list[npt.NDArray[np.float32]] = []
        for index in range(count):
            results = program(pixels[index : index + 1])
            if not layers:
                shapes = [results[i].shape[1:] for i in range(len(results))]
                layers = [np.empty((count, *shape), np.float32) for shape in shapes]
            for number, layer in enumerate(layers):
                # The results live in buffers that the next image overwrites. Copied by numpy:
                # torch would wake its threads, which then get in the way of the next image.
                layer[index] = results[number][0]
        return [torch.from_numpy(layer) for layer in layers]

    def _program(self, height: int, width: int) -> Any:
        if (height, width) not in self._compiled:
            model = None
            if self._store is not None:
                model = self._store.load(self._core, (height, width))
            if model is None:
                model = self._convert(height, width)
                if self._store is not None:
                    self._store.save(model, (height, width))
            self._compiled[height, width] = self._core.compile_model(model, "CPU", self._settings)
        return self._compiled[height, width]

    def _convert(self, height: int, width: int) -> Any:
        openvino = import_openvino()

        # Traced by hand: openvino's own tracing runs the network several times.
        one = torch.zeros((1, height, width, 3), dtype=torch.uint8)
        # By one thread: those of torch wait for each other, and images are being decoded already.
        with torch.inference_mode(), single_torch_thread(), warnings.catch_warnings():
            # that padding depends on the shape, which is fixed for this program
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(self._graph, one, check_trace=False)
            shape = openvino.PartialShape([1, height, width, 3])
            return openvino.convert_model(traced, example_input=one, input=[shape])


def resolve_device(device: str) -> torch.device:
    """Return `auto`, `cpu`, `cuda` or `cuda:N` as a torch device that exists here.

    Raises
    ------
    UsageError
        Another word, or a GPU that torch does not see.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = device.partition(":")
    if kind == "cpu" and not number:
        return torch.device("cpu")
    if kind != "cuda" or (":" in device and not number.isdecimal()):
        raise UsageError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        seen = f"torch sees {count} GPU{'s' * (count != 1)}"
        raise UsageError(f"device {device!r} is not there: {seen}; use device 'cpu' or 'auto'")
    return torch.device(device)


def resolve_engine(engine: str, device: torch.device) -> str:
    """Choose which engine runs: OpenVINO on a CPU where it is installed, else torch.

    Raises
    ------
    UsageError
        An unknown engine, or one that is not installed or not for this device.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    installed = importlib.util.find_spec("openvino") is not None
    if engine == "openvino":
        if not installed:
            raise UsageError("engine 'openvino' is not installed; pip install openvino")
        if device.type != "cpu":
            raise UsageError(f"engine 'openvino' runs on the CPU, not on device '{device}'")
    if engine != "auto":
        return engine
    return "openvino" if device.type == "cpu" and installed else "torch"


def as_batch(images: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Return images of one size as (N, H, W, 3) uint8."""
    return np.ascontiguousarray(np.stack(images))
