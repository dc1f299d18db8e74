"""The training loop, on a small network whose loss is plain arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyimgano.errors import DataError
from pyimgano.models.training import (
    Checkpoint,
    KeptImages,
    Minibatch,
    Plan,
    Task,
    divide,
    drawn,
    train,
)
from pyimgano.models.training.loop import _batch
from pyimgano.threads import limited_threads
from tests.conftest import picture

IMAGES = KeptImages(20, (16, 16))
IMAGES.add([picture(i, 16) for i in range(20)])
PARTS = divide(20, calibrate=True)


class Small(nn.Module):
    """Two convolutions with batch norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 3, 3, padding=1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.layers(pixels.permute(0, 3, 1, 2) / 255.0)
        return x


def loss(network: nn.Module, batch: Minibatch) -> Tensor:
    """Denoising: draws noise, so that generators count too."""
    wanted = batch.pixels.permute(0, 3, 1, 2) / 255.0
    noise = 0.01 * batch.normal(*wanted.shape)
    found: Tensor = (network(batch.pixels) - wanted - noise).square().mean()
    return found


def task(rate: float = 0.01, loss=loss) -> Task:  # type: ignore[no-untyped-def]
    network = drawn(Small, 3)
    return Task(network, torch.optim.Adam(network.parameters(), rate), loss)


def weights(one: Task) -> dict[str, np.ndarray]:
    return {k: v.numpy().copy() for k, v in one.network.state_dict().items()}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


PLAN = Plan(steps=24, batch_size=8, seed=5, check_every=6)


@pytest.fixture(scope="module")
def whole() -> tuple[Task, list[float]]:
    one = task()
    return one, train(one, IMAGES, PARTS, PLAN).losses


def test_the_loss_falls_and_is_kept(whole: tuple[Task, list[float]]) -> None:
    _, losses = whole
    assert len(losses) == 24 and all(isinstance(one, float) for one in losses)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_a_bit(whole: tuple[Task, list[float]], threads: int) -> None:
    again = task()
    before = torch.get_num_threads()
    with limited_threads(threads):
        history = train(again, IMAGES, PARTS, PLAN)
    assert history.losses == whole[1]
    assert_same(weights(again), weights(whole[0]))
    assert torch.get_num_threads() == before


def test_the_seed_alone_counts_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one = train(task(), IMAGES, PARTS, Plan(4, 8, 5)).losses
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert train(task(), IMAGES, PARTS, Plan(4, 8, 5)).losses == one
    assert train(task(), IMAGES, PARTS, Plan(4, 8, 6)).losses != one


def test_gradients_of_shards_are_those_of_the_minibatch() -> None:
    """Without batch norm, cutting a minibatch makes no difference but rounding."""
    network = drawn(lambda: nn.Conv2d(3, 3, 3), 0).double()

    def mean(net: nn.Module, batch: Minibatch) -> Tensor:
        found: Tensor = net(batch.pixels.permute(0, 3, 1, 2).double() / 255.0).square().mean()
        return found

    twin = drawn(lambda: nn.Conv2d(3, 3, 3), 0).double()
    one = Task(network, torch.optim.SGD(network.parameters(), 0.1), mean)
    parts = divide(9, calibrate=False)  # all of nine learned from: shards of 5 and 4
    history = train(one, IMAGES, parts, Plan(1, 9, 0))
    value = mean(twin, Minibatch(parts.learn, torch.from_numpy(IMAGES.pixels[:9]), None, 0))  # type: ignore[arg-type]
    value.backward()
    assert history.losses[0] == pytest.approx(value.item(), rel=1e-12)
    for ours, plain in zip(network.parameters(), twin.parameters()):
        torch.testing.assert_close(ours, plain - 0.1 * plain.grad, rtol=1e-12, atol=0)


def test_every_pass_sees_every_image_once() -> None:
    numbers = np.array([3, 5, 8, 9, 12, 13, 20])
    row = np.concatenate([_batch(numbers, step, 3, 1) for step in range(14)])
    for start in range(0, 42, 7):
        assert sorted(row[start : start + 7]) == numbers.tolist()
    assert row[:7].tolist() != row[7:14].tolist()
    assert sorted(_batch(numbers, 4, 99, 1)) == numbers.tolist()


def test_parts_share_no_image() -> None:
    for count in (1, 2, 3, 9, 10, 30, 209, 6000):
        for calibrate in (True, False):
            parts = divide(count, calibrate=calibrate)
            everything = np.concatenate([parts.learn, parts.watch, parts.calibrate])
            assert sorted(everything) == list(range(count))
            assert len(parts.learn) >= 1
            assert (len(parts.calibrate) > 0) == (calibrate and count > 1)
    parts = divide(209, calibrate=True)
    assert (len(parts.calibrate), len(parts.watch)) == (21, 20)


def test_images_beyond_the_bound_are_left_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyimgano.models.training.images._BYTES", 5 * 3 * 16 * 16)
    kept = KeptImages(20, (16, 16))
    kept.add([picture(i, 16) for i in range(20)])
    assert len(kept) == 5 and kept.seen == 20
    for place, number in enumerate(range(0, 20, 4)):
        np.testing.assert_array_equal(kept.pixels[place], picture(number, 16))


class TestEarlyStopping:
    def test_ends_and_restores_the_best_state(self) -> None:
        plan = Plan(steps=60, batch_size=8, seed=5, check_every=2, patience=3)

        def rising(network: nn.Module, batch: Minibatch) -> Tensor:
            if network.training:
                return -1e-2 * loss(network, batch)  # makes things worse
            return loss(network, batch)

        one = task(loss=rising)
        history = train(one, IMAGES, PARTS, plan)
        assert history.stopped_early and len(history.losses) < 60
        lowest = history.held_out.index(min(history.held_out))
        assert history.best_step == history.checks[lowest]
        assert len(history.held_out) - 1 - lowest == 3
        short = task(loss=rising)
        train(short, IMAGES, PARTS, Plan(history.best_step, 8, 5, check_every=2, patience=3))
        assert_same(weights(one), weights(short))

    def test_without_images_to_watch_all_steps_are_made(self) -> None:
        history = train(task(), IMAGES, divide(6, calibrate=False), Plan(7, 8, 5, patience=1))
        assert len(history.losses) == history.best_step == 7 and not history.stopped_early


class TestCheckpoint:
    IDENTITY = {"images": "abc", "steps": "24"}  # noqa: RUF012

    def interrupted(self, folder: Path, after: int = 15) -> None:
        def progress(stage: str, done: int, total: int) -> None:
            assert (stage, total) == ("training steps", 24)
            if done == after:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(
                task(), IMAGES, PARTS, PLAN, checkpoint=Checkpoint(folder, self.IDENTITY),
                progress=progress,
            )  # fmt: skip

    def test_goes_on_to_the_same_bits(
        self, whole: tuple[Task, list[float]], tmp_path: Path
    ) -> None:
        folder = tmp_path / "a" / "b"
        self.interrupted(folder)
        assert sorted(p.name for p in folder.iterdir()) == [
            "000000012.safetensors", "training.json",
        ]  # fmt: skip
        one, steps = task(), []
        history = train(
            one, IMAGES, PARTS, PLAN, checkpoint=Checkpoint(folder, self.IDENTITY),
            progress=lambda stage, done, total: steps.append(done),
        )  # fmt: skip
        assert steps == list(range(13, 25))
        assert history.losses == whole[1]
        assert_same(weights(one), weights(whole[0]))
        again = task()
        done = Checkpoint(folder, self.IDENTITY)
        assert train(again, IMAGES, PARTS, PLAN, checkpoint=done).losses == whole[1]
        assert_same(weights(again), weights(whole[0]))
        done.remove()
        assert not folder.exists()

    def test_another_training_is_refused(self, tmp_path: Path) -> None:
        self.interrupted(tmp_path)
        other = Checkpoint(tmp_path, {**self.IDENTITY, "images": "abd"})
        with pytest.raises(DataError, match=r"training\.json: is of another training \(images was"):
            train(task(), IMAGES, PARTS, PLAN, checkpoint=other)

    @pytest.mark.parametrize("what", ["cut", "text", "tensors", "name", "schema"])
    def test_damage_is_refused(self, what: str, tmp_path: Path) -> None:
        self.interrupted(tmp_path)
        path = tmp_path / "training.json"
        document = json.loads(path.read_text())
        if what == "cut":
            path.write_text(path.read_text()[:50])
        elif what == "text":
            path.write_text("no JSON")
        elif what == "tensors":
            tensors = tmp_path / document["tensors"]
            tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
        elif what == "name":
            path.write_text(json.dumps({**document, "tensors": "../x.safetensors"}))
        else:
            path.write_text(json.dumps({**document, "schema_version": 99}))
        with pytest.raises(DataError, match=r"training\.json: .*checkpoint_dir"):
            train(task(), IMAGES, PARTS, PLAN, checkpoint=Checkpoint(tmp_path, self.IDENTITY))

    def test_a_folder_that_cannot_be_made_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        place = Checkpoint(tmp_path / "file" / "below", self.IDENTITY)
        with pytest.raises(DataError, match="below"):
            train(task(), IMAGES, PARTS, PLAN, checkpoint=place)


def test_a_loss_that_is_not_finite_is_one_line() -> None:
    def broken(network: nn.Module, batch: Minibatch) -> Tensor:
        return loss(network, batch) * (torch.nan if batch.step == 2 else 1.0)

    with pytest.raises(DataError, match="the loss is nan at step 3 of 24"):
        train(task(loss=broken), IMAGES, PARTS, PLAN)


def test_learning_rates_follow_the_schedule() -> None:
    one = task()
    still = Task(one.network, one.optimizer, loss, learning_rate=lambda step: 0.0)
    before = one.network.layers[0].weight.detach().clone()  # type: ignore[index,union-attr]
    train(still, IMAGES, PARTS, Plan(3, 8, 5))
    assert torch.equal(one.network.layers[0].weight, before)  # type: ignore[index,union-attr]
    assert one.optimizer.param_groups[0]["lr"] == 0.01
