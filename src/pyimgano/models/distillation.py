"""A teacher for EfficientAD, distilled on the user's own images and written to a file."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DataError, UsageError
from ..images import ImageSource, as_sources, stream_images

if TYPE_CHECKING:
    from .training_images import Progress

# Steps that are timed before it is said how long all of them take: the first ones make ready.
_FIRST, _TIMED = 2, 6


@dataclass(frozen=True)
class Estimate:
    """How long a training will take, measured on its first steps.

    Attributes
    ----------
    steps, seconds_a_step
        All steps, and what one took.
    """

    steps: int
    seconds_a_step: float

    @property
    def seconds(self) -> float:
        """Return the time of all steps; fewer are made where the held-out loss no longer falls."""
        return self.steps * self.seconds_a_step

    def __str__(self) -> str:
        whole = math.ceil(self.seconds)
        hours, minutes, seconds = whole // 3600, whole % 3600 // 60, whole % 60
        shown = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
        each = f"{self.seconds_a_step:.2f} s each"
        return f"{self.steps} steps of {each}, measured on the first: {shown}"


def distill_teacher(
    images: Sequence[ImageSource],
    output: str | Path,
    *,
    model_size: Literal["S", "M"] = "S",
    backbone: str = "efficientnet_lite0",
    layers: Sequence[str] | None = None,
    pretrained: bool = True,
    weights: str | None = None,
    resize: tuple[int, int] = (128, 128),
    steps: int = 2000,
    learning_rate: float = 1e-3,
    patience: int = 8,
    device: str = "auto",
    engine: str = "auto",
    random_seed: int = 0,
    overwrite: bool = False,
    estimated: Callable[[Estimate], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Distil a patch description network from a backbone, for `vision_efficientad(teacher=)`.

    Parameters
    ----------
    images
        Images of the kind to be inspected, good or not, and others: paths, or (H, W, 3) uint8.
        The more they differ, the better; up to 1 GiB of pixels at `resize` are kept.
    output
        The file to write, `.safetensors`; what is known of it goes beside, to the same name
        with `.json`: model size, backbone, steps, losses, mean and deviation of its channels.
    model_size, backbone, layers, pretrained, weights, resize, device, engine, random_seed
        As the keywords of `vision_efficientad`.
    steps
        At most, of 8 crops each.
    learning_rate
        Of Adam at its highest, in (0, 1]; it rises at first and falls as a half cosine.
    patience
        Training ends after so many looks, one every 25 steps, without a lower held-out loss.
    overwrite
        Whether a file that is there may be replaced.
    estimated
        Told once, after the first steps, how long all will take.
    progress
        Called with (stage, done, total).

    Returns
    -------
    dict
        The facts that are in the .json.

    Raises
    ------
    UsageError
        A value out of range, no images, or a file that is there.
    ImageReadError
        An image cannot be read.
    DataError
        The files cannot be written, or the training failed.
    """
    from safetensors.torch import save

    from ..backbones import create_backbone
    from .efficientad import VisionEfficientAd
    from .efficientad_teacher import distill
    from .training import KeptImages, Plan, divide

    output = Path(output)
    if output.suffix != ".safetensors":
        raise UsageError(f"output: give a file that ends in .safetensors, got {str(output)!r}")
    facts_file = output.with_suffix(".json")
    for path in (output, facts_file):
        if path.exists() and not overwrite:
            raise UsageError(f"{path}: exists already; overwrite=True (--overwrite) replaces it")
    params = VisionEfficientAd(
        model_size=model_size,
        backbone=backbone,
        layers=layers,
        pretrained=pretrained,
        weights=weights,
        resize=resize,
        teacher_steps=steps,
        learning_rate=learning_rate,
        patience=patience,
        device=device,
        engine=engine,
        random_seed=random_seed,
    ).validate_params()
    sources = as_sources(images, name="images")
    if len(sources) == 0:
        raise UsageError("images is empty: a teacher is distilled on at least one image")
    network = create_backbone(
        params.backbone,
        layers=params.layers,
        pretrained=params.pretrained,
        weights=params.weights,
        device=params.device,
        engine=params.engine,
        seed=params.random_seed,
        patches="fine",
    )
    kept = KeptImages(len(sources), params.resize)
    with stream_images(sources, params.resize) as stream:
        for loaded in stream:
            if loaded.error is not None:
                raise loaded.error
            assert loaded.pixels is not None
            kept.add([loaded.pixels])
            if progress is not None:
                progress("images", loaded.index + 1, len(sources))
    parts = divide(len(kept), calibrate=False)
    plan = Plan(steps=steps, batch_size=8, seed=params.random_seed, patience=patience)
    watched = _timed(progress, estimated)
    began = time.monotonic()
    teacher = distill(
        network,
        kept,
        parts,
        model_size=model_size,
        plan=plan,
        learning_rate=learning_rate,
        progress=watched,
    )
    assert teacher.mean is not None and teacher.std is not None and teacher.history is not None
    data = save({k: v.contiguous() for k, v in teacher.network.state_dict().items()})
    facts = {
        "model_size": model_size,
        "channels": teacher.channels,
        "backbone": network.describe(),
        "images": len(kept),
        "resize": list(params.resize),
        "training": teacher.history.describe(),
        "seconds": round(time.monotonic() - began, 3),
        "channel_mean": teacher.mean.tolist(),
        "channel_std": teacher.std.tolist(),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    _write(output, data)
    _write(facts_file, (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode())
    return facts


def _timed(progress: Progress | None, estimated: Callable[[Estimate], None] | None) -> Progress:
    """Call `progress`, time the first steps, and tell `estimated`."""
    began = 0.0

    def tell(stage: str, done: int, total: int) -> None:
        nonlocal began
        if progress is not None:
            progress(stage, done, total)
        if done == min(_FIRST, total):
            began = time.monotonic()
        elif done == min(_FIRST + _TIMED, total) and estimated is not None:
            estimated(Estimate(total, (time.monotonic() - began) / (done - _FIRST)))

    return tell


def _write(path: Path, data: bytes) -> None:
    from .training.checkpoint import replace_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error
