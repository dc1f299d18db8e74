"""Greedy k-centre selection, exact and lazy.

The textbook loop (Sener & Savarese, ICLR 2018; PatchCore, Roth et al. 2022, section 3.2) picks,
again and again, the point that is farthest from all points picked so far, and after each pick
updates every point's distance. Two observations give the very same picks for a fraction of the
work.

1. Distances only shrink. So as long as the farthest point of a small *pool*, whose distances are
   kept up to date, is farther than every other point was at the last full update, it is the
   farthest point of all. Full updates then come for many picks at once, as matrix products.
2. Full updates compare a point only with those new picks that the triangle inequality does not
   rule out (`GroupedPoints`, around the first picks, which lie far apart by construction).

The distances that decide are sums of squared differences, whose value depends on the two points
alone, so that the picks depend neither on the pool nor on how the work was cut up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...errors import UsageError
from ...memory import is_out_of_memory, release_memory
from ...precision import full_precision
from ...threads import single_torch_thread
from .grouped_points import GroupedPoints
from .out_of_memory import patches_do_not_fit

#: Is called with (picked, to pick) now and then.
Progress = Callable[[int, int], None]

# Points whose distances are kept up to date between full updates.
_POOL = 2048
# Numbers in a pool up to which one thread updates it as quickly as several.
_SMALL = 2**18
# Points are grouped around so many first picks, fewer where there are few points.
_PIVOTS = 128
_POINTS_PER_PIVOT = 64


def random_projection(features: Tensor, dim: int | None, seed: int) -> Tensor:
    """Project features (N, D) to (N, dim) by a Gaussian matrix (Johnson & Lindenstrauss, 1984).

    Distances are kept in expectation. With `dim` None or no smaller than D the features are
    returned as they are.
    """
    width = features.shape[1]
    if dim is None or dim >= width:
        return features
    matrix = np.random.default_rng(seed).standard_normal((width, dim), dtype=np.float32)
    return features @ torch.from_numpy(matrix / np.sqrt(dim, dtype=np.float32)).to(features)


def greedy_coreset(
    features: Tensor,
    count: int,
    *,
    start: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Return the indices that the greedy k-centre loop picks, in the order of picking.

    Parameters
    ----------
    features
        (N, D) float32, finite.
    count
        How many to pick, 1 to N.
    start
        The first pick.
    progress
        Called with (picked, count) now and then.

    Returns
    -------
    torch.Tensor
        (count,) int64, on the device of `features`. No index occurs twice. Among points
        equally far, the one with the lowest index is picked.

    Raises
    ------
    UsageError
        `count` or `start` is out of range.
    """
    total = len(features)
    if not 1 <= count <= total:
        raise UsageError(f"a coreset of {total} points has 1 to {total} points, got {count}")
    if not 0 <= start < total:
        raise UsageError(f"start must lie in 0..{total - 1}, got {start}")
    with torch.inference_mode(), full_precision(features.device):
        return _select(features, count, start, progress)


def projected_coreset(
    features: Tensor,
    count: int,
    *,
    start: int,
    projection_dim: int | None,
    seed: int,
    progress: Progress | None,
) -> Tensor:
    """Return the picks of `greedy_coreset`, made in a random projection of the features.

    Raises
    ------
    NotEnoughMemoryError
        What the selection takes does not fit.
    """
    try:
        projected = random_projection(features, projection_dim, seed)
        return greedy_coreset(projected, count, start=start, progress=progress)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    release_memory()  # here, where what the failed try held is gone with its error
    raise patches_do_not_fit(len(features), features.shape[1], features.device)


def _select(points: Tensor, count: int, start: int, progress: Progress | None) -> Tensor:
    total = len(points)
    nearest = points.new_full((total,), torch.inf)  # (N,) squared distance to the picks
    picked = torch.empty(count, dtype=torch.int64, device=points.device)
    picked[0] = start
    done, updated = 1, 0  # picks made, and picks that `nearest` knows of
    groups, pivots = GroupedPoints(points, points[picked[:1]]), total // _POINTS_PER_PIVOT
    while done < count:
        if len(groups) == 1 and done >= min(_PIVOTS, pivots) > 1:
            groups = GroupedPoints(points, points[picked[: min(_PIVOTS, pivots)]])
        groups.update(nearest, points[picked[updated:done]])
        nearest[picked[:done]] = -1.0  # never picked again, not even among equal points
        updated = done

        first = int(nearest.argmax())
        if float(nearest[first]) <= 0.0:
            # only copies of picks are left: the loop would take them one by one, in order
            rest = (nearest == 0.0).nonzero().squeeze(1)
            picked[done:] = rest[: count - done]
            break
        pool_size = min(_POOL, total - done)
        pool = nearest.topk(min(pool_size + 1, total - done)).indices
        # what lies outside the pool is at most this far
        outside = float(nearest[pool[-1]]) if len(pool) > pool_size else -torch.inf
        pool = pool[:pool_size].sort().values  # in order, so that argmax takes the lowest index
        small = points.device.type == "cpu" and pool.numel() * points.shape[1] <= _SMALL
        with single_torch_thread(small):
            done = _pick(picked, done, first, points, pool, nearest[pool], outside)
        if progress is not None:
            progress(done, count)
    if progress is not None:
        progress(count, count)
    return picked


def _pick(
    picked: Tensor,
    done: int,
    pick: int,
    points: Tensor,
    pool: Tensor,
    nearest: Tensor,
    outside: float,
) -> int:
    """Pick `pick` and then the farthest of the `pool` (P,), while that is farther than `outside`.

    `nearest` (P,) are the pool's squared distances to the picks so far. The picks are written to
    `picked` from `done` on, and their new number is returned.
    """
    candidates = points[pool]  # (P, D)
    while True:
        picked[done] = pick
        done += 1
        if done == len(picked):
            return done
        away = (candidates - points[pick]).square_().sum(dim=1)  # (P,)
        torch.minimum(nearest, away, out=nearest)
        nearest.masked_fill_(pool == pick, -1.0)
        best = int(nearest.argmax())
        if float(nearest[best]) <= outside:
            return done
        pick = int(pool[best])
