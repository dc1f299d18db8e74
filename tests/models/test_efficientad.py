"""EfficientAD against its formulas, worked out by hand, and on small images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from pyimgano.cli.distill_teacher import command
from pyimgano.errors import SavedModelError, UsageError, WeightsError
from pyimgano.models import create_model, load_model
from pyimgano.models.detector import Detector
from pyimgano.models.distillation import Estimate, distill_teacher
from pyimgano.models.efficientad import EfficientAd, _files_read, p_hard_at
from pyimgano.models.efficientad_networks import (
    Autoencoder,
    EfficientAdGraph,
    EfficientAdNetwork,
    Normalization,
    described,
    hard_feature_loss,
    patch_description_network,
)
from pyimgano.models.efficientad_teacher import (
    _WholeFeatures,
    crops,
    jittered,
    read_teacher,
    rise_and_fall,
    whole_features,
)
from pyimgano.models.evenly_spread import EvenlySpread, KeptVectors, evenly
from pyimgano.models.saved_state import SavedState
from pyimgano.models.trained import NetworkTraining, files_sha256
from pyimgano.models.training import KeptImages
from tests.conftest import picture, save

GOOD = [picture(i) for i in range(12)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of few channels, so that training on it is quick."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = patch_description_network("S", 8).state_dict()
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(state, path)
    return path


def cheap(teacher: Path | None, **keywords: object) -> Detector:
    settings = {
        "resize": (64, 64),
        "device": "cpu",
        "engine": "torch",  # nothing to compile for every fit
        "steps": 20,
        "train_batch_size": 4,
        "teacher": None if teacher is None else str(teacher),
        **keywords,
    }
    return create_model("vision_efficientad", **settings)


@pytest.fixture(scope="module")
def fitted(teacher: Path) -> Detector:
    return cheap(teacher, steps=30, learning_rate=3e-3, engine="auto").fit(GOOD)


class TestFormulas:
    def test_hard_feature_loss(self) -> None:
        distances = torch.tensor([3.0, 1.0, 2.0, 10.0, 4.0])
        # the 0.75 quantile is 4: the mean of 4 and 10
        assert float(hard_feature_loss(distances, 0.75)) == pytest.approx(7.0)
        # 0.6 lies at 3.4, between 3 and 4
        assert float(hard_feature_loss(distances, 0.6)) == pytest.approx(7.0)
        assert float(hard_feature_loss(distances, 0.0)) == pytest.approx(4.0)
        many = torch.rand((4, 8, 10, 10), generator=generator())
        exact = many.double().numpy().ravel()
        wanted = exact[exact >= np.quantile(exact, 0.999)].mean()
        assert float(hard_feature_loss(many)) == pytest.approx(wanted, rel=1e-6)
        assert float(hard_feature_loss(torch.full((3, 3), 2.0))) == 2.0

    def test_only_hard_elements_have_a_gradient(self) -> None:
        distances = torch.arange(1000.0).requires_grad_()
        hard_feature_loss(distances).backward()
        assert (distances.grad > 0).nonzero().flatten().tolist() == [999]

    def test_normalisation(self) -> None:
        local, whole = torch.tensor([2.0, 5.0]), torch.tensor([0.5, 0.0])
        found = Normalization([(1.0, 3.0), (0.25, 0.75)])(local, whole)
        paper = 0.5 * (0.1 * (local - 1) / 2 + 0.1 * (whole - 0.25) / 0.5)
        least = 0.5 * (0.1 * (0 - 1) / 2 + 0.1 * (0 - 0.25) / 0.5)
        np.testing.assert_allclose(found, paper - least, rtol=1e-6)
        assert torch.isfinite(Normalization([(1.0, 1.0), (0.0, 0.0)])(local, whole)).all()

    def test_a_student_that_learned_too_little_does_not_drown_the_other(self) -> None:
        # as at 256 x 256 once: errors large and equal everywhere, so that q_b - q_a is tiny
        local, whole = torch.tensor([0.27, 0.30]), torch.tensor([0.05, 0.50])
        found = Normalization([(0.27, 0.288), (0.07, 0.19)])(local, whole)
        wanted = 0.05 * local / 0.27 + 0.05 * whole / 0.12  # the paper's: 0.018, not 0.27
        np.testing.assert_allclose(found, wanted, rtol=1e-6)

    def test_hard_elements_become_fewer(self) -> None:
        assert p_hard_at(0, 300) == 0.0 and p_hard_at(90, 300) == pytest.approx(1 - 0.001**0.5)
        assert p_hard_at(180, 300) == p_hard_at(299, 300) == pytest.approx(0.999)
        distances = torch.tensor([3.0, 1.0, 2.0, 10.0, 4.0])
        assert float(hard_feature_loss(distances, p_hard_at(0, 300))) == pytest.approx(4.0)

    def test_held_out_losses_are_of_one_kind(
        self, teacher: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[bool, float]] = []

        def spy(network: torch.nn.Module, batch: object, penalty: object, p_hard: float) -> object:
            seen.append((network.training, p_hard))
            return next(network.student.parameters()).square().mean()

        monkeypatch.setattr("pyimgano.models.efficientad.efficientad_loss", spy)
        cheap(teacher, steps=2).fit(GOOD)
        assert {p for training, p in seen if not training} == {0.999}
        assert sorted({p for training, p in seen if training}) == [0.0, p_hard_at(1, 2)]

    def test_learning_rate_rises_and_falls(self) -> None:
        factor = rise_and_fall(100)
        assert factor(0) == pytest.approx(1 / 6)
        assert factor(50) == pytest.approx(0.01 + 0.99 * 0.5)
        assert max(map(factor, range(100))) <= 1.0 and 0.01 < factor(99) < 0.011
        assert rise_and_fall(1)(0) == pytest.approx(1 / 1.05)

    def test_jitter_and_crops(self) -> None:
        images = torch.randint(0, 256, (6, 64, 72, 3), generator=generator(), dtype=torch.uint8)
        changed = jittered(images, generator(1))
        assert changed.min() >= 0 and changed.max() <= 255
        share = (changed - images.float()).abs().mean() / images.float().mean()
        assert 0.005 < share < 0.2
        for image, (crop, (row, column)) in zip(images, crops(images, 32, generator(2))):
            assert torch.equal(crop, image[4 * row : 4 * row + 32, 4 * column : 4 * column + 32])


class TestNetworks:
    @pytest.mark.parametrize("size", ["S", "M"])
    def test_a_cell_sees_33_pixels_every_4(self, size: str) -> None:
        network = patch_description_network(size, 2).double()
        assert described((256, 256)) == (56, 56) and described((33, 37)) == (1, 2)
        with torch.no_grad():  # so that no rectifier stops a pixel on its way
            for parameter in network.parameters():
                parameter.abs_()
        x = torch.ones((1, 3, 41, 33), dtype=torch.float64, requires_grad=True)
        found = network(x)
        assert found.shape[2:] == (3, 1)
        (touched,) = torch.autograd.grad(found[0, :, 1].sum(), x)
        rows = touched.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
        assert rows.tolist() == list(range(4, 37))

    def test_a_crop_is_described_as_the_image(self) -> None:
        network = patch_description_network("S", 3)
        x = torch.randn((1, 3, 72, 72), generator=generator())
        part = network(x[:, :, 8:56, 12:60])
        assert torch.allclose(part, network(x)[:, :, 2:6, 3:7][:, :, : part.shape[2]], atol=1e-5)

    @pytest.mark.parametrize("size", [(64, 64), (64, 100), (256, 256)])
    def test_autoencoder_gives_a_description(self, size: tuple[int, int]) -> None:
        network = Autoencoder(5, size)
        with torch.no_grad():
            assert network(torch.zeros(1, 3, *size)).shape == (1, 5, *described(size))
        if size == (256, 256):
            assert network.sizes[0] == [3, 8, 15, 32, 63, 127]  # the paper's

    def test_maps_by_hand(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network = EfficientAdNetwork("S", 4, (64, 64))
        network.mean.fill_(0.1)
        network.std.fill_(0.5)
        pixels = torch.from_numpy(picture(3))[None]
        x = (pixels.numpy()[0] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        x = torch.from_numpy(x.transpose(2, 0, 1)[None]).float()
        with torch.no_grad():
            taught = (network.teacher(x).numpy() - 0.1) / 0.5
            student, rebuilt = network.student(x).numpy(), network.autoencoder(x).numpy()
            local, whole = network(pixels)
            graph = EfficientAdGraph(network, Normalization([(0.0, 1.0), (0.0, 2.0)]), (64, 64))
            score, maps = graph(pixels)
        np.testing.assert_allclose(local[0], ((taught - student[:, :4]) ** 2).mean(1)[0], rtol=1e-4)
        np.testing.assert_allclose(
            whole[0], ((rebuilt - student[:, 4:]) ** 2).mean(1)[0], rtol=1e-4
        )
        combined = 0.05 * local + 0.025 * whole
        assert float(score) == pytest.approx(float(combined.max()), rel=1e-5)
        assert maps.shape == (1, 64, 64)
        # a pixel in the corner has the value of the nearest cell
        assert float(maps[0, 0, 0]) == pytest.approx(float(combined[0, 0, 0]), rel=1e-5)


class TestDetector:
    def test_learns_and_finds_a_planted_defect(self, fitted: Detector) -> None:
        good = [picture(100 + i) for i in range(5)]
        # losses of steps are no measure: fewer and harder elements count in later ones
        with torch.no_grad():
            local, _ = fitted.learned_.network(torch.from_numpy(np.stack(good)))
        assert float(local.mean()) < 0.7  # that of saying the mean is 1
        bad = [picture(200 + i, spot=True) for i in range(5)]
        assert fitted.decision_function(bad).min() > fitted.decision_function(good).max()
        facts = fitted.describe()
        assert facts["teacher"]["source"] == "file" and facts["teacher"]["channels"] == 8
        assert facts["teacher"]["quantiles_from"] == "held-out images"

    def test_quantiles_of_images_not_learned_from(
        self, teacher: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[list[int]] = []
        measure = EfficientAd._quantiles

        def spy(method: EfficientAd, network: Any, training: NetworkTraining) -> Any:
            parts, pixels = training.parts, training.kept.pixels
            assert not set(parts.watch) & (set(parts.learn) | set(parts.calibrate))
            local = [network(torch.from_numpy(pixels[i : i + 1]))[0] for i in parts.watch]
            found = measure(method, network, training)
            wanted = np.quantile(torch.cat(local).double().numpy(), (0.9, 0.995))
            np.testing.assert_allclose(found[0][0], wanted, rtol=1e-4)
            seen.append(list(parts.watch))
            return found

        monkeypatch.setattr(EfficientAd, "_quantiles", spy)
        with torch.no_grad():
            cheap(teacher, steps=1).fit(GOOD)
        assert len(seen) == 1 and len(seen[0]) >= 1

    def test_same_bits_again_and_after_loading(
        self, fitted: Detector, teacher: Path, tmp_path: Path
    ) -> None:
        test = [picture(100), picture(200, spot=True)]
        scores = fitted.decision_function(test)
        loaded = load_model(fitted.save(tmp_path / "model"))
        np.testing.assert_array_equal(loaded.decision_function(test[1:]), scores[1:])
        assert loaded.describe() == fitted.describe()
        one, two = (cheap(teacher, steps=2).fit(GOOD[:4]) for _ in range(2))
        assert one.history_.losses == two.history_.losses
        np.testing.assert_array_equal(one.decision_function(test), two.decision_function(test))

    def test_penalty_images(self, teacher: Path, tmp_path: Path) -> None:
        for i in range(2):
            save(tmp_path / "others" / f"{i}.png", picture(i, 50))
        with_them = cheap(teacher, steps=1, penalty_images=str(tmp_path / "others")).fit(GOOD[:3])
        without = cheap(teacher, steps=1).fit(GOOD[:3])
        assert with_them.history_.losses[0] > without.history_.losses[0]
        with pytest.raises(UsageError, match=r"penalty_images: .* is not a folder"):
            cheap(teacher, penalty_images=str(tmp_path / "none")).prepare()

    @pytest.mark.parametrize("image", [picture(0), np.zeros((64, 64, 3), np.uint8)])
    def test_hardly_anything_to_learn_from(self, teacher: Path, image: np.ndarray) -> None:
        detector = cheap(teacher, steps=1).fit([image])
        assert np.isfinite(detector.decision_function([GOOD[5]])).all()
        assert "in-sample" in detector.calibration_.method

    def test_a_saved_size_that_its_arrays_do_not_have(
        self, fitted: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        method, state = EfficientAd(fitted.params_), fitted.learned_.state()
        blank, built = method._blank, []

        def spy(channels: int) -> Callable[[], torch.nn.Module]:
            return lambda: built.append(blank(channels)()) or built[-1]  # type: ignore[func-returns-value]

        def restore(channels: int) -> None:
            facts = {**state.facts, "channels": channels}
            method.restore(SavedState(state.arrays, facts))

        monkeypatch.setattr(method, "_blank", spy)
        with pytest.raises(SavedModelError, match=r"network\..* wanted float32 of shape \(1, 4096"):
            restore(4096)
        assert {p.device.type for n in built for p in n.parameters()} == {"meta"}
        assert len(built) == 1  # and never in memory
        with pytest.raises(SavedModelError, match=r"state\.channels: .* 4096"):
            restore(4097)

    def test_an_interrupted_fit_knows_the_files_it_read(
        self, teacher: Path, tmp_path: Path
    ) -> None:
        own, others = tmp_path / "t.safetensors", tmp_path / "others"
        own.write_bytes(teacher.read_bytes())
        save(others / "0.png", picture(0))
        params = cheap(own, penalty_images=str(others)).validate_params()

        def hashes() -> dict[str, str]:
            return {name: files_sha256(paths) for name, paths in _files_read(params).items()}

        first = hashes()
        assert hashes() == first and len(first) == 2
        save(others / "0.png", picture(1))
        second = hashes()
        assert second["teacher_sha256"] == first["teacher_sha256"]
        assert second["penalty_sha256"] != first["penalty_sha256"]
        state = load_file(own)
        state["0.bias"] += 1
        save_file(state, own)
        assert hashes()["teacher_sha256"] != first["teacher_sha256"]

    def test_a_teacher_that_learned_nothing(self) -> None:
        detector = cheap(None, steps=1, teacher_steps=1, learning_rate=1e-9).fit(GOOD)
        assert detector.learned_.taught["best_held_out_loss"] >= 0.95
        (note,) = [n for n in detector.calibration_.notes if "teacher" in n]
        assert "raise teacher_steps" in note
        # its channels hardly differ from patch to patch, and that is not made louder
        assert float(detector.learned_.network.std.min()) == pytest.approx(0.3)

    def test_distils_by_itself(self) -> None:
        detector = cheap(None, steps=1, teacher_steps=2).fit(GOOD[:3])
        found = detector.describe()["teacher"]
        assert found["source"] == "distilled" and found["steps"] == 2
        assert found["channels"] == 152  # 40 and 112 of the backbone


class TestSpread:
    def test_evenly(self) -> None:
        numbers = np.arange(100, 110)
        assert evenly(numbers, 5).tolist() == [100, 102, 104, 106, 108]
        assert evenly(numbers, 64).tolist() == numbers.tolist()
        assert evenly(numbers[:0], 64).tolist() == []

    def test_vectors_are_kept_once(self) -> None:
        vectors = torch.rand((10, 3, 2), generator=generator())
        kept = KeptVectors(EvenlySpread(10, 4), vectors[0])
        kept.add(vectors[:4])
        room = kept.all().data_ptr()
        kept.add(vectors[4:8])  # the last two of those announced never came
        assert torch.equal(kept.all(), vectors[[0, 3, 5]]) and kept.all().data_ptr() == room


class Blocks:
    """A backbone whose features are the means of blocks of 8 pixels."""

    def __init__(self) -> None:
        self.calls = 0

    def features(self, images: list[np.ndarray]) -> list[torch.Tensor]:
        self.calls += 1
        x = torch.from_numpy(np.stack(images)).float().permute(0, 3, 1, 2)
        return [torch.nn.functional.avg_pool2d(x, 8).permute(0, 2, 3, 1)]


class TestTeacher:
    def test_features_lie_where_the_patches_are(self) -> None:
        rows, columns = torch.arange(66)[:, None, None], torch.arange(72)[None, :, None]
        pixels = (2 * rows + columns + torch.zeros(3)).to(torch.uint8)[None]
        found = whole_features(Blocks(), pixels)  # type: ignore[arg-type]
        assert found.shape == (1, 3, *described((66, 72)))
        height, width = found.shape[2:]
        # the patch of cell (r, c) starts at pixel (4r, 4c), and its middle is 16 further
        blocks = torch.nn.functional.avg_pool2d(pixels.permute(0, 3, 1, 2).float(), 4)
        wanted = blocks[:, :, 4 : 4 + height, 4 : 4 + width]
        assert torch.allclose(found, wanted, atol=0.5)  # pixels are rounded; a cell is 4 or 8

    def test_features_are_computed_once_as_far_as_there_is_room(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images, backbone = KeptImages(2, (64, 64)), Blocks()
        images.add(GOOD[:2])
        features = _WholeFeatures(backbone, images)  # type: ignore[arg-type]
        first = features.of(0)
        monkeypatch.setattr("pyimgano.models.efficientad_teacher._ROOM", first.numel() * 2)
        assert features.of(0) is first and backbone.calls == 1
        second = features.of(1)
        assert torch.equal(features.of(1), second) and backbone.calls == 3

    def test_command(self, tmp_path: Path) -> None:
        for i in range(3):
            save(tmp_path / "images" / f"{i}.png", GOOD[i])
        output = tmp_path / "t.safetensors"
        given = ["--input", str(tmp_path / "images"), "--output", str(output)]
        given += ["--resize", "64", "64", "--steps", "8"]
        done = CliRunner().invoke(command, given, catch_exceptions=False)
        assert done.exit_code == 0
        facts = json.loads(output.with_suffix(".json").read_text())
        assert facts["channels"] == len(facts["channel_mean"]) == len(facts["channel_std"]) == 152
        assert json.loads(done.stdout)["sha256"] == facts["sha256"]
        assert "distilling: 8 steps of" in done.stderr
        assert facts["training"]["last_loss"] < facts["training"]["first_loss"]
        again = read_teacher(output, "S")
        assert again.channels == 152
        with pytest.raises(WeightsError, match=r"no teacher of size M \(it has no '12\.weight'\)"):
            read_teacher(output, "M")
        with pytest.raises(UsageError, match="exists already"):
            distill_teacher(GOOD[:1], output)

    def test_bad_files(self, teacher: Path, tmp_path: Path) -> None:
        state = load_file(teacher)
        state["0.bias"][0] = torch.nan
        save_file(state, tmp_path / "nan.safetensors")
        with pytest.raises(WeightsError, match=r"nan\.safetensors: 0\.bias holds values"):
            cheap(tmp_path / "nan.safetensors").prepare()
        del state["0.bias"]
        save_file(state, tmp_path / "less.safetensors")
        with pytest.raises(WeightsError, match=r"0\.bias is nothing, wanted \(128,\)"):
            read_teacher(tmp_path / "less.safetensors", "S")
        with pytest.raises(UsageError, match=r"ends in \.safetensors"):
            distill_teacher(GOOD[:1], tmp_path / "t.pth")

    def test_a_file_of_too_many_channels(self, tmp_path: Path) -> None:
        save_file({"12.weight": torch.zeros(5000, 1, 1, 1)}, tmp_path / "wide.safetensors")
        with pytest.raises(WeightsError, match=r"a teacher of 5000 channels, wanted 1 to 4096"):
            read_teacher(tmp_path / "wide.safetensors", "M")

    def test_an_estimate_in_words(self) -> None:
        assert str(Estimate(100, 1.5)).endswith(": 2 min 30 s")
        assert str(Estimate(60_000, 1.0)).endswith(": 16 h 40 min")
