"""The training loop.

Everything that is drawn comes from the seed and the number of the step alone, from generators
of its own: a training that goes on from a checkpoint draws what an undisturbed one would, and
torch's global generator is neither read nor changed.

On a CPU a minibatch is cut into shards of a fixed number of images. Each is computed on one
thread, several at a time on as many threads as there are, and gradients are added in the order
of the shards: the result is the same to the bit whatever the number of threads. Batch norm
takes its statistics over a shard, and the running ones are the mean over shards ("ghost batch
norm", Hoffer, Hubara, Soudry, NeurIPS 2017). On a GPU a minibatch is one shard.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...errors import DataError
from ...threads import set_torch_threads, thread_count
from ..training_images import Progress
from .checkpoint import Checkpoint
from .history import History
from .images import KeptImages, Parts

_T = TypeVar("_T")

# Images that are computed together on one thread of a CPU.
_SHARD = 4

_ORDER, _NOISE, _WATCH = range(3)  # what a generator is for


@dataclass(frozen=True)
class Minibatch:
    """What a loss is computed on.

    Attributes
    ----------
    numbers
        (B,) which of the kept images these are.
    pixels
        (B, H, W, 3) uint8, on the device.
    generator
        For all that the loss draws, on the CPU.
    step
        How many steps were made before, 0 or more.
    """

    numbers: npt.NDArray[np.int64]
    pixels: Tensor
    generator: torch.Generator
    step: int

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers of this shape, on the device of the pixels."""
        return torch.randn(shape, generator=self.generator).to(self.pixels.device)

    def own_generator(self) -> torch.Generator:
        """Return a generator on the device of the pixels, seeded by `generator`.

        For draws of so many numbers that it takes too long to copy them to a GPU.
        """
        seed = int(torch.randint(2**62, (), generator=self.generator))
        return torch.Generator(self.pixels.device).manual_seed(seed)


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes
    ----------
    network
        All that learns, on its device; its state is what a training gives. No dropout or
        anything else that draws by itself.
    optimizer
        Over parameters of `network`.
    loss
        Of (network, minibatch): a scalar, the mean over the images. The network is handed in
        because several threads have a copy each, with the same parameters; in training mode
        for steps, in evaluation mode for held-out images.
    learning_rate
        Of the number of steps made: what the optimizer's learning rates are multiplied by.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[nn.Module, Minibatch], Tensor]
    learning_rate: Callable[[int], float] | None = None


@dataclass(frozen=True)
class Plan:
    """How long, on how much at a time.

    Attributes
    ----------
    steps
        At most.
    batch_size
        Images of a step; fewer where there are fewer, but one image twice.
    seed
        Of the order of the images and of what losses draw.
    check_every
        Steps between two looks at the held-out loss; a checkpoint is written as often.
    patience
        Training ends after so many looks without a lower held-out loss.
    """

    steps: int
    batch_size: int
    seed: int
    check_every: int = 25
    patience: int = 8


def train(
    task: Task,
    images: KeptImages,
    parts: Parts,
    plan: Plan,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> History:
    """Train `task.network`, which is left in evaluation mode in its best state.

    That is the one with the lowest loss on the images to watch, or the last one where there
    are none. `progress` is told ("training steps", done, total).

    Raises
    ------
    DataError
        The loss is not finite, or a checkpoint cannot be written or is of another training.
    """
    history, begun = History(), 0
    best: dict[str, Tensor] = {}
    rates = [group["lr"] for group in task.optimizer.param_groups]
    if (
        checkpoint is not None
        and (found := checkpoint.read(task.network, task.optimizer)) is not None
    ):
        history, best = found
        begun = len(history.losses)
    device = next(task.network.parameters()).device
    if device.type == "cpu":
        # a fifth to a quarter less time for a step of both kinds of networks here
        task.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ended = history.stopped_early
    with _Shards(task, images, device) as shards:
        for step in range(begun, plan.steps):
            if ended:
                break
            for group, rate in zip(task.optimizer.param_groups, rates):
                factor = 1.0 if task.learning_rate is None else task.learning_rate(step)
                group["lr"] = rate * factor
            numbers = _batch(parts.learn, step, plan.batch_size, plan.seed)
            loss = shards.gradients(numbers, step, plan.seed)
            if not math.isfinite(loss):
                raise DataError(
                    f"training failed: the loss is {loss} at step {step + 1} of {plan.steps}; "
                    "look for images unlike the others, or change random_seed"
                )
            task.optimizer.step()
            history.losses.append(loss)
            done = step + 1
            if done % plan.check_every == 0 or done == plan.steps:
                ended = _look(task, shards, parts, plan, history, best)
                if checkpoint is not None:
                    checkpoint.write(task.network, task.optimizer, history, best)
            if progress is not None:
                progress("training steps", done, plan.steps)
    if best:
        task.network.load_state_dict(best)
    else:
        history.best_step = len(history.losses)
    for group, rate in zip(task.optimizer.param_groups, rates):
        group["lr"] = rate
    task.network.eval()
    _require_finite(task.network)
    return history


def _look(
    task: Task,
    shards: _Shards,
    parts: Parts,
    plan: Plan,
    history: History,
    best: dict[str, Tensor],
) -> bool:
    """Note the held-out loss, keep the best state, and say whether training ends."""
    if not len(parts.watch):
        return False
    done = len(history.losses)
    loss = shards.held_out_loss(parts.watch, plan.seed)
    if not math.isfinite(loss):
        raise DataError(f"training failed: the held-out loss is {loss} after step {done}")
    if not history.held_out or loss < min(history.held_out):
        history.best_step = done
        best.update({k: v.detach().clone() for k, v in task.network.state_dict().items()})
    history.checks.append(done)
    history.held_out.append(loss)
    since = len(history.held_out) - 1 - history.checks.index(history.best_step)
    history.stopped_early = since >= plan.patience and done < plan.steps
    return history.stopped_early


def _require_finite(network: nn.Module) -> None:
    for name, value in network.state_dict().items():
        if not torch.isfinite(value).all():
            raise DataError(f"training failed: {name} holds values that are not finite")


def _batch(
    numbers: npt.NDArray[np.int64], step: int, size: int, seed: int
) -> npt.NDArray[np.int64]:
    """Return the images of a step: the next of an endless row of shuffled passes over all of
    them.
    """
    count = len(numbers)
    size = min(size, max(2, count))  # batch norm has nothing to go by with one
    first = step * size
    chosen = []
    for number in range(first // count, (first + size - 1) // count + 1):
        order = torch.randperm(count, generator=_generator(seed, _ORDER, number)).numpy()
        lower = max(0, first - number * count)
        chosen.append(order[lower : first + size - number * count])
    images: npt.NDArray[np.int64] = numbers[np.concatenate(chosen)]
    return images


def _generator(seed: int, *numbers: int) -> torch.Generator:
    """Return a generator for these numbers, independent of that for others."""
    (state,) = np.random.SeedSequence([seed, *numbers]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


class _Shards:
    """Losses and gradients of a network, shard by shard."""

    def __init__(self, task: Task, images: KeptImages, device: torch.device) -> None:
        self._task = task
        self._pixels = images.pixels
        self._device = device
        self._parameters = [p for p in task.network.parameters() if p.requires_grad]
        self._copies: list[nn.Module] = []
        self._pool: ThreadPoolExecutor | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Shards:
        if self._device.type == "cpu":
            self._stack.enter_context(_one_thread())
            if thread_count() > 1:
                pool = ThreadPoolExecutor(
                    thread_count(), "training", initializer=torch.set_num_threads, initargs=(1,)
                )
                self._pool = self._stack.enter_context(pool)
        else:
            flags = torch.backends.cudnn.flags(
                enabled=True, benchmark=False, deterministic=True, allow_tf32=False
            )
            self._stack.enter_context(flags)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def gradients(self, numbers: npt.NDArray[np.int64], step: int, seed: int) -> float:
        """Set the gradients of the loss on these images, and return it."""
        parts = self._cut(numbers)
        self._task.network.train()
        self._copy(len(parts))

        def one(place: int) -> tuple[float, Sequence[Tensor | None]]:
            batch = self._minibatch(parts[place], step, _generator(seed, _NOISE, step, place))
            with torch.enable_grad():
                loss = self._task.loss(self._copies[place], batch)
                found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            return float(loss.detach()), found

        shares = [len(part) / len(numbers) for part in parts]
        total = 0.0
        sums: list[Tensor | None] = [None] * len(self._parameters)
        for share, (loss, found) in zip(shares, self._each(one, len(parts))):
            total += share * loss
            for place, gradient in enumerate(found):
                if gradient is not None:
                    before = sums[place]
                    if before is None:
                        sums[place] = gradient * share
                    else:
                        before.add_(gradient, alpha=share)
        for parameter, gradient in zip(self._parameters, sums):
            parameter.grad = gradient
        self._merge_statistics(shares)
        return total

    def held_out_loss(self, numbers: npt.NDArray[np.int64], seed: int) -> float:
        """Return the loss on these images in evaluation mode, with the same draws every time."""
        parts = self._cut(numbers)
        self._task.network.eval()

        def one(place: int) -> float:
            batch = self._minibatch(parts[place], 0, _generator(seed, _WATCH, place))
            with torch.no_grad():
                return float(self._task.loss(self._task.network, batch))

        losses = self._each(one, len(parts))
        found = math.fsum(loss * len(part) for loss, part in zip(losses, parts)) / len(numbers)
        self._task.network.train()
        return found

    def _each(self, function: Callable[[int], _T], count: int) -> Iterator[_T]:
        if self._pool is None:
            return map(function, range(count))
        return self._pool.map(function, range(count))

    def _cut(self, numbers: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        if self._device.type != "cpu":
            return [numbers]
        return np.array_split(numbers, max(1, len(numbers) // _SHARD))

    def _minibatch(
        self, numbers: npt.NDArray[np.int64], step: int, generator: torch.Generator
    ) -> Minibatch:
        pixels = torch.from_numpy(self._pixels[numbers]).to(self._device)
        return Minibatch(numbers, pixels, generator, step)

    def _copy(self, count: int) -> None:
        """Make `count` copies of the network, with the same parameters and statistics of their
        own.
        """
        network = self._task.network
        while len(self._copies) < count:
            memo = {id(parameter): parameter for parameter in network.parameters()}
            self._copies.append(copy.deepcopy(network, memo))
        for one in self._copies:
            one.train()

    def _merge_statistics(self, shares: Sequence[float]) -> None:
        """Running statistics become the mean of the copies', and theirs with it.

        All other buffers are taken to be constants.
        """
        copies = [dict(one.named_buffers()) for one in self._copies]
        with torch.no_grad():
            for name, buffer in self._task.network.named_buffers():
                if not name.endswith(("running_mean", "running_var")):
                    continue
                merged = torch.zeros_like(buffer)
                for share, found in zip(shares, copies):
                    merged.add_(found[name], alpha=share)
                buffer.copy_(merged)
                for found in copies:
                    found[name].copy_(merged)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        set_torch_threads(before)
