"""Two memories of good patches: of what lies at a place, and of what lies around it.

What a network's deepest layers see around a patch finds what is wrong as a whole, and blurs what
is wrong at one place. So each has a memory of its own, on a grid of its own: maps come from the
near one alone, scores from both (`power_means`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import SavedModelError
from .patch_summary import OWN, PatchSummary
from .saved_state import SavedState

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from .neighbors import MemoryBank, PatchMemory

#: Part of the near memory's bound that the other has: its grid has a quarter of the cells or less.
CONTEXT_SHARE = 0.4


@dataclass
class NearAndContext:
    """The memories, and how large their distances are.

    Attributes
    ----------
    near, context
        `context` is None where no layer sees as wide.
    near_unit, context_unit
        What the power mean of the distances in a good image is in the middle, or what `summary`
        makes of them: all are divided by it.
    power_means
        Whether scores are power means of distances; not in detectors that were saved before.
    summary
        What of an image's distances takes the place of the power means, if anything does.
    """

    near: PatchMemory
    context: PatchMemory | None
    near_unit: float = 1.0
    context_unit: float = 1.0
    power_means: bool = True
    summary: PatchSummary = OWN

    def distances(self, patches: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the distances (B, k) and (B, l) of patches (B, k, D) and (B, l, E) in these
        units.
        """
        near = self.near.distances(patches[0]) / self.near_unit
        if self.context is None:
            return near, None
        return near, self.context.distances(patches[1]) / self.context_unit

    @property
    def means_of(self) -> Callable[[Sequence[Tensor]], list[Tensor]] | None:
        """Return what makes one number of an image's distances; None before there was such."""
        return self.summary.of if self.power_means else None

    def memories(self) -> Iterator[tuple[str, PatchMemory, float]]:
        """Return each memory with a prefix for the names of what is saved, and its unit."""
        yield "", self.near, self.near_unit
        if self.context is not None:
            yield "context_", self.context, self.context_unit

    # ---- saving

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all but the near memory's features and indices, which a bank saves anyway."""
        found = {}
        for prefix, memory, _ in self.memories():
            parts = {
                "centre": memory.whitening.centre,
                "whitening": memory.whitening.matrix,
                "scale": memory.scale,
                "border": memory.border,
            }
            if prefix:
                parts["features"] = memory.bank.features
            found.update({prefix + name: part.cpu().numpy() for name, part in parts.items()})
        return found

    def facts(self) -> dict[str, float | str]:
        found: dict[str, float | str] = {"score": "power means"} if self.power_means else {}
        for prefix, memory, unit in self.memories():
            found[prefix + "unit"] = unit
            if memory.strength is not None:
                found[prefix + "nuisance_strength"] = memory.strength
        return found

    @classmethod
    def restored(
        cls, saved: SavedState, bank: MemoryBank, cells: Sequence[int], width: int
    ) -> NearAndContext:
        """Restore from what `arrays` and `facts` gave, and the near memory's bank.

        `cells` says how many count on the near grid and on the other, if there is one; `width` is
        that of the other's features.
        """
        import torch

        from .neighbors import MemoryBank

        device = bank.features.device
        power_means = saved.has_fact("score")
        if power_means:
            saved.fact("score", Literal["power means"])
        near = _memory(saved, "", bank, cells[0])
        if len(cells) == 1:
            return cls(near, None, _unit(saved, ""), power_means=power_means)
        features = saved.array("context_features", "float32", (None, width))
        image = torch.zeros(len(features), dtype=torch.int64, device=device)  # of no account now
        around = MemoryBank(torch.from_numpy(features).to(device), image)
        context = _memory(saved, "context_", around, cells[1])
        return cls(near, context, _unit(saved, ""), _unit(saved, "context_"), power_means)


def _memory(saved: SavedState, prefix: str, bank: MemoryBank, cells: int) -> PatchMemory:
    import torch

    from .neighbors import PatchMemory, Whitening
    from .neighbors.patch_memory import LARGEST_SCALE, LEAST_SCALE

    def part(name: str, *shape: int) -> Tensor:
        found = saved.array(prefix + name, "float32", shape)
        return torch.from_numpy(found).to(bank.features.device)

    width = bank.features.shape[1]
    whitening = Whitening(part("centre", width), part("whitening", width, width))
    scale, border = part("scale", len(bank)), part("border", cells)
    for name, found, least in (("scale", scale, LEAST_SCALE), ("border", border, 1.0)):
        if not bool(((found >= least) & (found <= LARGEST_SCALE)).all()):
            raise SavedModelError(
                f"the array {prefix + name!r} has numbers outside {least:g} to {LARGEST_SCALE:g}"
            )
    return PatchMemory(bank, whitening, scale, border, None, _strength(saved, prefix))


def _unit(saved: SavedState, prefix: str) -> float:
    unit = float(saved.fact(prefix + "unit", float))
    if not (np.isfinite(unit) and unit > 0):
        raise SavedModelError(f"state.{prefix}unit: must be a number above 0")
    return unit


def _strength(saved: SavedState, prefix: str) -> float | None:
    """Return what nuisance counted; None of a detector from before it did."""
    name = prefix + "nuisance_strength"
    if not saved.has_fact(name):
        return None
    strength = float(saved.fact(name, float))
    if not (np.isfinite(strength) and strength >= 0):
        raise SavedModelError(f"state.{name}: must be a number of at least 0")
    return strength
