"""What the loss did during a training."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

# The loss is still falling if it fell by more than this from one fifth of the steps to the next.
_FALL = 0.01


@dataclass
class History:
    """Losses of a training, plain floats.

    Attributes
    ----------
    losses
        Of each step's minibatch, before the step.
    checks, held_out
        After how many steps the loss was looked at on held-out good images, and what it was.
    best_step
        After how many steps the network had the state that was kept.
    stopped_early
        Whether the held-out loss ended the training before all steps were made.
    """

    losses: list[float] = field(default_factory=list)
    checks: list[int] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    best_step: int = 0
    stopped_early: bool = False

    @property
    def still_falling(self) -> bool:
        """Return whether the last fifth of the losses is over 1 % below the fifth before, in the
        mean.
        """
        part = len(self.losses) // 5
        if part == 0:
            return False
        last = math.fsum(self.losses[-part:]) / part
        before = math.fsum(self.losses[-2 * part : -part]) / part
        return last < before * (1 - _FALL)

    def describe(self) -> dict[str, Any]:
        """Return what a report says of the training; plain JSON values."""
        held_out = min(self.held_out) if self.held_out else None
        return {
            "steps": len(self.losses),
            "best_step": self.best_step,
            "stopped_early": self.stopped_early,
            "first_loss": self.losses[0] if self.losses else None,
            "last_loss": self.losses[-1] if self.losses else None,
            "best_held_out_loss": held_out,
            "loss_was_still_falling": self.still_falling,
        }

    def facts(self) -> dict[str, Any]:
        """Return the attributes as plain JSON values."""
        return asdict(self)

    def require_sound(self) -> None:
        """Raise `ValueError` where numbers do not fit each other or are not finite."""
        if not all(map(math.isfinite, [*self.losses, *self.held_out])):
            raise ValueError("history: a loss is not finite")
        if len(self.checks) != len(self.held_out) or not 0 <= self.best_step <= len(self.losses):
            raise ValueError("history: its lists do not fit each other")
