"""StableAdamW: AdamW whose step is shortened where gradients are larger than they were.

Wortsman, Dettmers, Zettlemoyer, Morcos, Farhadi, Schmidt, "Stable and low-precision training for
large-scale vision-language models", NeurIPS 2023 (arXiv 2304.13013), algorithm 2; the largest of
all second moments so far is that of Reddi, Kale, Kumar, "On the Convergence of Adam and Beyond",
ICLR 2018 (AMSGrad).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor


class StableAdamW(torch.optim.Optimizer):
    """For a parameter p with the gradient g, at its step t counted from 1:

        b_i = beta_i (1 - beta_i^(t - 1)) / (1 - beta_i^t)      so that no moment starts too small
        m = b_1 m + (1 - b_1) g
        v = b_2 v + (1 - b_2) g^2
        r = lr / max(1, root of the mean over p of g^2 / max(v, eps^2))
        p = p - r weight_decay p - r m / (root of V + eps)

    with V the largest v so far, element by element.

    Parameters
    ----------
    params
        The parameters that learn.
    lr
        The learning rate, above 0.
    betas, eps, weight_decay
        As above; 0 <= beta < 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step by the gradients that the parameters have."""
        if closure is not None:
            raise NotImplementedError("gradients are computed before, not by a closure")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return None

    def _update(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        state, eps = self.state[p], group["eps"]
        if not state:
            state["step"] = torch.zeros(())
            state.update({name: torch.zeros_like(p) for name in ("m", "v", "largest_v")})
        state["step"] += 1
        t = int(state["step"])
        b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in group["betas"])
        m, v, largest = state["m"], state["v"], state["largest_v"]
        m.lerp_(g, 1 - b1)
        v.lerp_(g.square(), 1 - b2)
        torch.maximum(largest, v, out=largest)
        surprise = (g.square() / v.clamp(min=eps**2)).mean().sqrt()
        rate = group["lr"] / surprise.clamp(min=1.0)  # (), on the device
        p.mul_(1 - rate * group["weight_decay"])
        p.sub_(rate * m / (largest.sqrt() + eps))
