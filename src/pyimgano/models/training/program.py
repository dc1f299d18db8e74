"""What runs a trained network on images: the engine of the backbone that it goes with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...backbones import Backbone
from ...backbones.engines import Engine, OpenVinoEngine, TorchEngine, as_batch
from ...images import KeyedImage, NetworkInput
from ...threads import thread_count


class Program:
    """A graph that does not change any more, on the engine and the device of a backbone.

    Parameters
    ----------
    graph
        Takes (N, H, W, 3) uint8 and gives a tuple of float32 tensors, N first in each.
    backbone
        Whose engine and device are used.

    Notes
    -----
    On a CPU it takes one image at a time, so that an image's results are the same to the bit
    in whatever company it is.
    """

    def __init__(self, graph: nn.Module, backbone: Backbone) -> None:
        self.graph = graph.eval().requires_grad_(False)
        self._alone = backbone.device.type == "cpu"
        self._engine: Engine
        if backbone.engine == "openvino":
            self._engine = OpenVinoEngine(graph, threads=thread_count(), store=None)
        else:
            self._engine = TorchEngine(graph, backbone.device)

    def run(self, images: Sequence[NetworkInput]) -> list[Tensor]:
        """Return the graph's results for images (H, W, 3) uint8."""
        plain: list[npt.NDArray[np.uint8]] = []
        for image in images:
            pixels = image.pixels if isinstance(image, KeyedImage) else image
            assert pixels is not None  # features of a trained network are not recalled
            plain.append(pixels)
        batch = as_batch(plain)
        if not self._alone:
            return self._engine.run(batch)
        each = [self._engine.run(batch[i : i + 1]) for i in range(len(batch))]
        return [torch.cat(results) for results in zip(*each)]

    def __copy__(self) -> Program:
        return self  # it never changes, and programs cannot be copied

    def __deepcopy__(self, memo: dict[int, object]) -> Program:
        return self
