"""The one place through which this package imports what reports to its makers: without telemetry.

When `openvino` is imported, and again at every conversion, it reports to an analytics host
through the package `openvino-telemetry` unless the user has opted out: each message starts a
process, and an identifier is kept in `~/intel`. OpenVINO takes a stub of its own where that
package is missing, so it is made to look missing here.

ONNX Runtime's official builds, since they have their own uploader, keep an identifier and a
database below `~/.cache/Microsoft` from the import on, and send events from machine code, unless
a variable of the environment forbids it before.

timm fetches weights through huggingface_hub, which tells its host what asks for them unless a
variable forbids that.
"""

from __future__ import annotations

import os
import sys
import threading
from importlib import import_module
from typing import Any

_TELEMETRY = "openvino_telemetry"
#: The part of OpenVINO that reports; each of its modules holds the reporter as `tm`.
_REPORTING = "openvino.tools.ovc"

_lock = threading.Lock()


def import_openvino() -> Any:
    """Import OpenVINO such that it sends nothing, writes no file and starts no process.

    It works too where the program has imported OpenVINO before: from then on its conversions
    report nothing either. Where the program itself has imported `openvino_telemetry`, that
    module stays as it is for those who hold it.

    Returns
    -------
    module
        The module `openvino`.

    Raises
    ------
    ImportError
        OpenVINO is not installed.
    """
    with _lock:
        there = sys.modules.get(_TELEMETRY)
        # With None in its place an import fails with ImportError, as if it were not installed.
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
        try:
            openvino = import_module("openvino")
            _silence_what_is_loaded()
        finally:
            if there is not None:
                sys.modules[_TELEMETRY] = there
        return openvino


def _silence_what_is_loaded() -> None:
    """Give the stub to the modules that bound the real reporter when they were imported."""
    for name, module in list(sys.modules.items()):
        bound = getattr(module, "tm", None) if name.startswith(_REPORTING) else None
        if getattr(bound, "__name__", "").split(".")[0] == _TELEMETRY:
            module.tm = import_module(f"{_REPORTING}.telemetry_stub")  # type: ignore[attr-defined]


def import_onnxruntime() -> Any:
    """Import ONNX Runtime such that it sends nothing and keeps no identifier.

    Where the program has imported it before, what it has begun stays, and only further events
    are switched off.

    Returns
    -------
    module
        The module `onnxruntime`.

    Raises
    ------
    ImportError
        ONNX Runtime is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    onnxruntime = import_module("onnxruntime")
    onnxruntime.disable_telemetry_events()  # for builds that obey no variable
    return onnxruntime


def import_timm() -> Any:
    """Import timm such that what it fetches is all that its host learns of.

    Returns
    -------
    module
        The module `timm`.

    Raises
    ------
    ImportError
        timm is not installed; where torchvision does not match torch, other errors too.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return import_module("timm")
