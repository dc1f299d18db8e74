"""Which layers of a network a method taps where the user names none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .network import TappedNetwork


class LayerChoice(Protocol):
    """Names layers of a network; equal choices are equal objects, and can be hashed."""

    def __call__(self, network: TappedNetwork) -> tuple[str, ...]: ...

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class LastOfStrides:
    """The last layer of each of `strides`, in their order.

    Strides that the network does not have are left out; with fewer than `least` layers left, or
    where it is no pyramid, it is the network's own default.
    """

    strides: tuple[int, ...]
    least: int = 1

    def __call__(self, network: TappedNetwork) -> tuple[str, ...]:
        if not network.pyramid:
            return network.default_layers
        last = {stride: name for name, (_, stride) in network.layer_kinds().items()}
        found = tuple(last[stride] for stride in self.strides if stride in last)
        return found if len(found) >= self.least else network.default_layers


@dataclass(frozen=True)
class WithContext:
    """The network's own default and, of a pyramid, the last layer of the stage that follows."""

    def __call__(self, network: TappedNetwork) -> tuple[str, ...]:
        own = network.default_layers
        if not network.pyramid:
            return own
        names = list(network.layer_kinds())
        last = max(names.index(name) for name in own)
        after = [name for name in LastOfStages()(network) if names.index(name) > last]
        return (*own, *after[:1])


@dataclass(frozen=True)
class LastOfStages:
    """The last layer of every stage: of each run of layers of one width and stride.

    Where the network is no pyramid, its own default.
    """

    def __call__(self, network: TappedNetwork) -> tuple[str, ...]:
        if not network.pyramid:
            return network.default_layers
        kinds = list(network.layer_kinds().items())
        ends = zip(kinds, [*kinds[1:], (None, None)])
        return tuple(name for (name, kind), (_, after) in ends if kind != after)
