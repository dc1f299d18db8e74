"""Which cells a shard takes: a rule that follows from the plan alone, so no shard asks another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from ..errors import UsageError

_T = TypeVar("_T")


class Shard(NamedTuple):
    """The `number`-th of `of` shards, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def take(self, cells: Sequence[_T]) -> list[_T]:
        """Return the cells of this shard: one run of neighbours out of `of` of equal length.

        Neighbours in a plan are on the same images, so that they can share features. Lengths differ
        by at most one, and the shards together hold each cell once.
        """
        first = (self.number - 1) * len(cells) // self.of
        last = self.number * len(cells) // self.of
        return list(cells[first:last])


def parse_shard(text: str | None) -> Shard | None:
    """Return the shard that `k/n` names; None for None.

    Raises
    ------
    UsageError
        It is no such text, or k is not from 1 to n.
    """
    if text is None:
        return None
    number, slash, count = text.partition("/")
    if not (slash and number.strip().isdecimal() and count.strip().isdecimal()):
        raise UsageError(f"shard must be k/n, such as 3/40, got {text!r}")
    shard = Shard(int(number), int(count))
    if not 1 <= shard.number <= shard.of:
        raise UsageError(f"shard {text!r}: shards are counted from 1 to {shard.of}")
    return shard
