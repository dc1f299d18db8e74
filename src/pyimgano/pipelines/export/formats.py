"""The formats of an export: writing a graph, and opening what was written to check it.

Each traces the graph (`Detector.export_graph`) once and keeps float32. The number of images is
free, their size is not: padding and the patch grid depend on it.
"""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ...errors import DataError, UsageError, unknown_name

if TYPE_CHECKING:
    from torch import nn

INPUT = "image"
OUTPUTS = ("score", "anomaly_map", "label")
_ONNX_OPSET = 17

#: Takes (N, H, W, 3) uint8 and gives score, map and label, in the order of `OUTPUTS`.
Program: TypeAlias = "Callable[[npt.NDArray[np.uint8]], list[npt.NDArray[Any]]]"


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes
    ----------
    name
        As `--format` has it.
    files
        What is written.
    needs
        Modules, each with what installs it; of a tuple of modules one is enough.
    settings
        What the engine has to be told when it loads the model.
    write
        Writes a graph for images of (height, width) into a folder.
    open
        The program in a folder, and the engine that runs it with its version.
    """

    name: str
    files: tuple[str, ...]
    needs: tuple[tuple[tuple[str, ...], str], ...]
    write: Callable[[nn.Module, tuple[int, int], Path], None]
    open: Callable[[Path], tuple[Program, str]]
    settings: Mapping[str, str] = field(default_factory=dict)

    def require(self) -> None:
        """Raise `UsageError`, with what to install, if the format cannot be written here."""
        for modules, install in self.needs:
            if not any(_installed(module) for module in modules):
                wanted = " or ".join(modules)
                raise UsageError(
                    f"format {self.name!r} needs {wanted}, not installed here; {install}"
                )


def find_format(name: str) -> Format:
    """Find a format by its name.

    Raises
    ------
    UsageError
        An unknown name, with the near ones, or a format that needs what is not installed.
    """
    if name not in FORMATS:
        raise UsageError(unknown_name("format", str(name), FORMATS))
    FORMATS[name].require()
    return FORMATS[name]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # present, but without a specification
        return True


def _trace(graph: nn.Module, size: tuple[int, int]) -> Any:
    import torch

    one = torch.zeros((1, *size, 3), dtype=torch.uint8)
    # that shapes become constants is what is wanted, and tracing is deprecated in favour of a
    # format whose reader falls back on unpickling
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(graph.eval(), one, check_trace=False)


# ---- OpenVINO

# On CPUs with bfloat16 units OpenVINO would otherwise use them unasked, at a cost of some
# percent of the score and more of the map.
_OPENVINO_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}


def _write_openvino(graph: nn.Module, size: tuple[int, int], folder: Path) -> None:
    import torch

    from ...backbones.without_telemetry import import_openvino

    openvino = import_openvino()
    one = torch.zeros((1, *size, 3), dtype=torch.uint8)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shape = openvino.PartialShape([-1, *size, 3])
        model = openvino.convert_model(_trace(graph, size), example_input=one, input=[shape])
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, OUTPUTS):
        output.get_tensor().set_names({name})
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


def _open_openvino(folder: Path) -> tuple[Program, str]:
    return _through_openvino(folder / "model.xml")


def _through_openvino(path: Path) -> tuple[Program, str]:
    from ...backbones.without_telemetry import import_openvino

    openvino = import_openvino()
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # the folder is renamed while this is open
    compiled = core.compile_model(path, "CPU", _OPENVINO_SETTINGS)

    def run(pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        results = compiled({INPUT: pixels})
        return [np.array(results[name]) for name in OUTPUTS]

    return run, f"openvino {version('openvino')}"


# ---- ONNX


def _write_onnx(graph: nn.Module, size: tuple[int, int], folder: Path) -> None:
    import onnx
    import torch

    one = torch.zeros((1, *size, 3), dtype=torch.uint8)
    options: dict[str, Any] = {}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False  # the other exporter needs more packages
    path = folder / "model.onnx"
    traced = _trace(graph, size)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            traced,
            (one,),
            str(path),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "N"} for name in (INPUT, *OUTPUTS)},
            opset_version=_ONNX_OPSET,
            **options,
        )
    onnx.checker.check_model(str(path))


def _open_onnx(folder: Path) -> tuple[Program, str]:
    path = folder / "model.onnx"
    if not _installed("onnxruntime"):
        return _through_openvino(path)
    from ...backbones.without_telemetry import import_onnxruntime

    onnxruntime = import_onnxruntime()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        results: list[npt.NDArray[Any]] = session.run(list(OUTPUTS), {INPUT: pixels})
        return results

    return run, f"onnxruntime {onnxruntime.__version__}"


# ---- TorchScript


def _write_torch(graph: nn.Module, size: tuple[int, int], folder: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # frozen: without the layers that nothing taps
        torch.jit.save(torch.jit.freeze(_trace(graph, size)), str(folder / "model.pt"))


def _open_torch(folder: Path) -> tuple[Program, str]:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.load(str(folder / "model.pt"), map_location="cpu")

    def run(pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
        with torch.inference_mode():
            return [output.numpy() for output in model(torch.from_numpy(pixels))]

    return run, f"torch {torch.__version__}"


FORMATS = {
    "openvino": Format(
        "openvino",
        ("model.xml", "model.bin"),
        ((("openvino",), "pip install openvino"),),
        _write_openvino,
        _open_openvino,
        _OPENVINO_SETTINGS,
    ),
    "onnx": Format(
        "onnx",
        ("model.onnx",),
        (
            (("onnx",), "pip install 'pyimgano[export]'"),
            (("onnxruntime", "openvino"), "pip install 'pyimgano[export]'"),
        ),
        _write_onnx,
        _open_onnx,
    ),
    "torch": Format("torch", ("model.pt",), (), _write_torch, _open_torch),
}


def write_model(form: Format, graph: nn.Module, size: tuple[int, int], folder: Path) -> None:
    """Write a graph; whatever the format's tools raise becomes one line, a `DataError`."""
    try:
        form.write(graph, size, folder)
    except Exception as error:
        raise DataError(f"the {form.name} model could not be written: {_first(error)}") from error


def open_model(form: Format, folder: Path) -> tuple[Program, str]:
    """Open what was written; raises `DataError` as `write_model` does."""
    try:
        return form.open(folder)
    except Exception as error:
        raise DataError(f"the {form.name} model cannot be loaded: {_first(error)}") from error


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
