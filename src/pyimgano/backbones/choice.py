"""Which layers of a network a method taps where the user names none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..errors import UsageError
from .network import TappedNetwork
from .transformer import VisionTransformer


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


@dataclass(frozen=True)
class LastBlock:
    """The last block of a vision transformer, normed; of another network its own default."""

    def __call__(self, network: TappedNetwork) -> tuple[str, ...]:
        return network.default_layers if network.pyramid else network.layer_names[-1:]


@dataclass(frozen=True)
class Depths:
    """Blocks of a vision transformer at shares of its depth; of another network its own default.

    Blocks are counted from 0: at 0.25, 0.5, 0.75 and 1 of 12 they are 3, 6, 9 and 11.
    """

    shares: tuple[float, ...]
    normed: bool = True

    def __call__(self, network: TappedNetwork) -> tuple[str, ...]:
        if network.pyramid:
            return network.default_layers
        depth = len({name.removesuffix(".normed") for name in network.layer_names})
        numbers = sorted({min(round(share * depth), depth - 1) for share in self.shares})
        return tuple(f"block{number}{'.normed' * self.normed}" for number in numbers)


@dataclass(frozen=True)
class MiddleBlocks:
    """All blocks of a vision transformer from half to three quarters of its depth, unnormed.

    Of 24 blocks those are 7, counted from 0 the 12th to the 18th. Of another network its own
    default.
    """

    def __call__(self, network: TappedNetwork) -> tuple[str, ...]:
        if network.pyramid:
            return network.default_layers
        depth = len({name.removesuffix(".normed") for name in network.layer_names})
        first, last = (min(round(share * depth), depth - 1) for share in (0.5, 0.75))
        return tuple(f"block{number}" for number in range(first, last + 1))


@dataclass(frozen=True)
class WithClassToken:
    """Blocks of a vision transformer at `shares` of its depth, or those named, and its class token.

    The class token is that of the last block, normed, and comes last. Of another network the call
    raises `UsageError`.
    """

    shares: tuple[float, ...]
    named: tuple[str, ...] | None = None

    def __call__(self, network: TappedNetwork) -> tuple[str, ...]:
        if network.pyramid or not getattr(network, "has_class", False):
            raise UsageError("the backbone has to be a vision transformer with a class token")
        blocks = Depths(self.shares)(network) if self.named is None else self.named
        return (*blocks, f"{network.layer_names[-1]}.class")


@dataclass(frozen=True)
class WithTokens:
    """Blocks of a vision transformer that `blocks` chooses, or those named, and their other tokens.

    After the patches of all blocks come the class tokens of all, then the registers, of networks
    that have them. Of another network, and where what is named are no patches, the call raises
    `UsageError`.
    """

    blocks: LayerChoice
    named: tuple[str, ...] | None = None

    def __call__(self, network: TappedNetwork) -> tuple[str, ...]:
        if not isinstance(network, VisionTransformer):
            raise UsageError("the backbone has to be a vision transformer")
        named = self.blocks(network) if self.named is None else self.named
        patches = [network.parse_layer(layer) for layer in named]
        if any(one.part != "patches" or one.unit for one in patches):
            raise UsageError(f"layers must be whole blocks here, got {', '.join(named)}")
        found = [str(one) for one in patches]
        if network.has_class:
            found += [str(one._replace(part="class")) for one in patches]
        if network.registers:
            found += [str(one._replace(part="registers")) for one in patches]
        return tuple(found)
