"""`pyimgano doctor`: what this machine has for pyimgano, what is missing, and how quick it is."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import statistics
import tempfile
import time
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import click

from ..errors import PyimganoError
from .console import plain, print_document, print_text

# Instructions that networks are quicker with, as Linux names them, and as people do.
_UNITS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "asimd": "NEON",
    "sve": "SVE",
}
# Photos that a detector learns from for the timing, and repetitions of which the median counts.
_PHOTOS, _REPEATS, _SIDE = 8, 7, 512


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="Leave the timing of an image out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, quick: bool, as_json: bool) -> int:
    """Say what this machine has for pyimgano, and how long one image takes.

    \b
      pyimgano doctor

    Lists the CPU and its vector units, threads, memory, the GPU and whether it is used, the
    engines that run networks, the weights that are at hand, and the optional parts that are
    missing with the command that installs them. Nothing is fetched.

    Exit status: 0 the default model can be used; 1 it cannot, and the last line says why; 2 usage.
    """
    from .. import __version__
    from ..memory import available_bytes

    found: dict[str, Any] = {
        "pyimgano": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "free_memory_bytes": available_bytes(),
        "gpu": _gpu(),
        "engines": _engines(),
        "weights": _weights(),
        "missing_parts": _missing_parts(),
        "cache": _cache(),
    }
    if not quick:
        found["one_image"] = _time_one_image()
    if as_json:
        print_document(found)
    else:
        print_text("\n".join(plain(line) for line in _lines(found)))
    return 0 if found["engines"] and (quick or "error" not in found["one_image"]) else 1


def _cpu() -> dict[str, Any]:
    from ..threads import available_cores, thread_count

    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        text = ""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    known = set(flags[1].split()) if flags else set()
    return {
        "model": model[1].strip() if model else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable": available_cores(),
        "threads": thread_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "units": [name for flag, name in _UNITS.items() if flag in known],
    }


def _gpu() -> dict[str, Any]:
    import torch

    built_for = torch.version.cuda or getattr(torch.version, "hip", None)
    devices = []
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {"torch_built_for": built_for, "devices": devices}


def _engines() -> dict[str, str]:
    """Return the engines that run networks, with their versions, the default one on a CPU first."""
    found = {}
    for name in ("openvino", "torch", "onnxruntime"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _weights() -> dict[str, dict[str, str | None]]:
    from ..backbones import list_backbones, ways_to_weights, weights_at_hand

    return {
        name: {"found": weights_at_hand(name), "how": ways_to_weights(name)}
        for name in list_backbones()
    }


def _missing_parts() -> dict[str, list[str]]:
    """Return the extras of which something is not installed, and what that is."""
    missing: dict[str, list[str]] = {}
    try:
        wanted = requires("pyimgano") or []
    except PackageNotFoundError:  # run from its sources
        return {}
    for one in wanted:
        found = re.fullmatch(r"([\w.-]+)[^;]*;.*extra\s*==\s*['\"]([\w-]+)['\"].*", one)
        if found is None or found[2] == "dev":
            continue
        try:
            version(found[1])
        except PackageNotFoundError:
            missing.setdefault(found[2], []).append(found[1])
    return missing


def _cache() -> dict[str, Any]:
    from platformdirs import user_cache_path

    folder = user_cache_path("pyimgano")
    size = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.stat(os.path.join(where, name)).st_size  # noqa: PTH116, PTH118
            except OSError:
                continue
    above = folder
    while not above.exists() and above != above.parent:
        above = above.parent
    return {"folder": str(folder), "bytes": size, "writable": os.access(above, os.W_OK)}


def _time_one_image() -> dict[str, Any]:
    """Fit the default model on a few drawn photos, and time a further one from file to decision."""
    import cv2
    import numpy as np

    from ..models import create_model

    rng = np.random.default_rng(0)
    try:
        with tempfile.TemporaryDirectory(prefix="pyimgano-doctor-") as folder:
            paths = []
            for number in range(_PHOTOS):
                small = rng.integers(60, 200, (32, 32, 3), np.uint8)
                photo = cv2.resize(small, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
                paths.append(str(Path(folder) / f"{number}.png"))
                if not cv2.imwrite(paths[-1], photo):
                    return {"error": f"{folder}: no image can be written there"}
            began = time.perf_counter()
            detector = create_model("vision_patchcore").fit(paths)
            fit = time.perf_counter() - began
            seconds = []
            for _ in range(_REPEATS):
                began = time.perf_counter()
                detector.decision_function(paths[:1])
                seconds.append(time.perf_counter() - began)
    except (PyimganoError, OSError) as error:
        return {"error": str(error)}
    return {
        "model": "vision_patchcore",
        "photos": _PHOTOS,
        "fit_seconds": round(fit, 2),
        "milliseconds": round(1000 * statistics.median(seconds), 1),
    }


def _lines(found: dict[str, Any]) -> list[str]:
    cpu, gpu, memory = found["cpu"], found["gpu"], found["free_memory_bytes"]
    units = f", with {', '.join(cpu['units'])}" if cpu["units"] else ""
    limit = cpu["omp_num_threads"]
    how = f"OMP_NUM_THREADS={limit}" if limit else "one a core; --num-threads N takes fewer"
    rows = [
        ("pyimgano", f"{found['pyimgano']}, Python {found['python']}"),
        ("CPU", f"{cpu['model']}{units}"),
        (
            "cores",
            f"{cpu['usable']} of {cpu['cores']} may be used; {cpu['threads']} threads ({how})",
        ),
    ]
    if memory is not None:
        rows.append(("memory", f"{memory / 1e9:.1f} GB free"))
    rows += [("GPU", _of_gpu(gpu)), ("engines", _of_engines(found["engines"]))]
    at_hand = [f"{name} ({one['found']})" for name, one in found["weights"].items() if one["found"]]
    rows.append(("weights", ", ".join(at_hand) or "none"))
    ways: dict[str, list[str]] = {}
    for name, one in found["weights"].items():
        if not one["found"]:
            ways.setdefault(one["how"], []).append(name)
    rows += [("", f"not here: {', '.join(names)}; {how}") for how, names in ways.items()]
    for extra, packages in found["missing_parts"].items():
        rows.append(
            (
                f"[{extra}]",
                f"{', '.join(packages)} missing: pip install 'pyimgano[{extra}]'",
            )
        )
    cache = found["cache"]
    state = "can be written" if cache["writable"] else "cannot be written: nothing is kept in it"
    rows.append(("cache", f"{cache['folder']}, {cache['bytes'] / 1e6:.0f} MB, {state}"))
    image = found.get("one_image")
    if image is not None and "error" in image:
        rows.append(("one image", f"could not be timed: {image['error']}"))
    elif image is not None:
        rows.append(
            (
                "one image",
                f"{image['milliseconds']:g} ms from a {_SIDE} x {_SIDE} PNG to the decision, by "
                f"{image['model']} on the CPU, after a fit on {image['photos']} photos "
                f"({image['fit_seconds']:g} s, most of it to load and compile the network)",
            )
        )
    width = max(len(name) for name, _ in rows)
    return [f"{name.ljust(width)}  {text}" for name, text in rows]


def _of_gpu(gpu: dict[str, Any]) -> str:
    if gpu["devices"]:
        return (
            f"{', '.join(gpu['devices'])}: used with --device cuda or auto; the default is the CPU"
        )
    if gpu["torch_built_for"] is None:
        return (
            "not used: this PyTorch is built for the CPU alone; for an NVIDIA GPU install the "
            "build for it (https://pytorch.org/get-started/locally)"
        )
    return f"not used: PyTorch is built for CUDA {gpu['torch_built_for']} and sees no GPU or driver"


def _of_engines(engines: dict[str, str]) -> str:
    if not engines:
        return "none: torch is missing"
    used = "openvino" if importlib.util.find_spec("openvino") else "torch"
    named = [f"{name} {number}" for name, number in engines.items()]
    return f"{', '.join(named)}; on the CPU networks run by {used}, on a GPU by torch"
