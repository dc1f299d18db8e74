"""Features kept on disk: a second run extracts nothing, and nothing stale is taken."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyimgano.backbones import backbone, create_backbone, feature_cache
from pyimgano.backbones.feature_cache import FeatureCache
from pyimgano.errors import UsageError
from pyimgano.images import KeyedImage, Signature
from pyimgano.models import create_model
from pyimgano.models.nuisance import drift_copies, everyday_copies
from pyimgano.pipelines import run_benchmark
from tests.conftest import MakeDataset, picture, save


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many images were decoded, and how many went through a network."""
    from pyimgano.backbones import engines
    from pyimgano.images import stream

    counts = {"decoded": 0, "extracted": 0}
    read, run = stream.decode_image, engines.OpenVinoEngine.run

    def reading(*arguments: Any, **keywords: Any) -> Any:
        counts["decoded"] += 1
        return read(*arguments, **keywords)

    def running(self: Any, pixels: Any) -> Any:
        counts["extracted"] += len(pixels)
        return run(self, pixels)

    monkeypatch.setattr(stream, "decode_image", reading)
    monkeypatch.setattr(engines.OpenVinoEngine, "run", running)
    return counts


def test_a_second_run_decodes_and_extracts_nothing(
    make_mvtec: MakeDataset, tmp_path: Path, counted: dict[str, int]
) -> None:
    root = make_mvtec()

    def run(**keywords: Any) -> dict[str, Any]:
        given = {"resize": (64, 64), "save_run": False, **keywords}
        report = run_benchmark(
            dataset="mvtec", root=root, category="nut", cache_dir=tmp_path / "cache", **given
        )
        return {name: report[name] for name in ("results", "calibration", "problems")}

    first = run()
    copies = [*everyday_copies(range(6), 16, 0), *drift_copies(range(6), 0)]
    all_of_them = 12 + len(copies)
    assert counted == {"decoded": all_of_them, "extracted": all_of_them}
    backbone._create.cache_clear()  # as another process would
    assert run() == first
    assert counted == {"decoded": all_of_them, "extracted": all_of_them}
    plain = run_benchmark(
        dataset="mvtec", root=root, category="nut", resize=(64, 64), save_run=False
    )
    assert {name: plain[name] for name in first} == first
    counted.update(decoded=0, extracted=0)
    run(resize=(72, 64))  # another size
    assert counted["extracted"] == all_of_them
    counted.update(decoded=0, extracted=0)
    run(model_kwargs={"layers": ["blocks.4"]})  # other layers
    assert counted["extracted"] == all_of_them
    counted.update(decoded=0, extracted=0)
    path = root / "nut/train/good/000.png"
    image = picture(0)
    image[3, 3, 0] ^= 1
    save(path, image)
    run()
    again = 1 + sum(copy.image == 0 for copy in copies)
    assert counted == {"decoded": again, "extracted": again}
    path.rename(path.with_name("000-renamed.png"))  # names do not count
    counted.update(decoded=0, extracted=0)
    run()
    assert counted == {"decoded": 0, "extracted": 0}


def test_unreadable_images_are_unreadable_still(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.png", picture(i)) for i in range(4)]
    paths[2].write_bytes(b"")
    detector = create_model("vision_patchcore", resize=(64, 64), cache_dir=str(tmp_path / "c"))
    for _ in range(2):
        detector.fit(paths, on_error="skip")
        assert [skipped.path for skipped in detector.skipped_] == [str(paths[2])]
        arrays = detector.decision_function([picture(7)])  # arrays pass the cache by
        assert arrays.shape == (1,)


def keyed(key: str) -> KeyedImage:
    signature = Signature(np.zeros((32, 32), np.float16), 0.0)
    return KeyedImage(key, None, None, (5, 7), "a remark", signature=signature)


def entry(seed: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.random((3, 4, 4), dtype=np.float32)) for _ in range(2)]


def test_damaged_entries_are_misses(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "a")
    cache.store(keyed("ab12"), entry(1))
    found = cache.lookup("ab12")
    assert found is not None and (found.original_size, found.remark) == ((5, 7), "a remark")
    for one, two in zip(found.features, entry(1), strict=True):
        np.testing.assert_array_equal(one, two.numpy())
    assert cache.lookup("ab13") is None and FeatureCache(tmp_path, "b").lookup("ab12") is None
    (path,) = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[position] ^= 8
        path.write_bytes(bytes(broken))
        found = cache.lookup("ab12")
        assert found is None or all(
            np.array_equal(a, b.numpy()) for a, b in zip(found.features, entry(1), strict=True)
        )
    path.write_bytes(whole[: len(whole) // 2])
    assert cache.lookup("ab12") is None


def test_the_folder_is_bounded_and_the_oldest_go(
    tmp_path: Path,
) -> None:
    FeatureCache(tmp_path, "a").store(keyed("ab00"), entry(0))
    size = next(tmp_path.rglob("*.safetensors")).stat().st_size
    other = tmp_path / "facebook" / "dinov2" / "model.safetensors"
    other.parent.mkdir(parents=True)
    other.write_bytes(bytes(50 * size))
    left = tmp_path / "pyimgano-features" / "aa" / "bb" / "x.tmp"
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (0, 0))
    cache = FeatureCache(tmp_path, "a", max_bytes=10 * size)
    for number in range(30):
        cache.store(keyed(f"ab{number:02d}"), entry(number))
        cache.lookup("ab00")  # used again and again
    assert other.exists() and not left.exists()  # what is not the cache's own stays
    other.unlink()
    kept = {path.stem for path in tmp_path.rglob("*.safetensors")}
    assert len(kept) <= 11 and {"ab00", "ab29"} <= kept
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_cache_that_can_only_be_read_hits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(tmp_path, "a")
    cache.store(keyed("ab12"), entry(1))

    def refuse(*arguments: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(feature_cache.os, "utime", refuse)
    assert cache.lookup("ab12") is not None


def test_names_of_cache_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cache_dir must be a folder, got ''"):
        create_backbone(cache_dir="")
    monkeypatch.setenv("HOME", str(tmp_path))
    made = create_backbone(cache_dir="~/features").cache
    assert made is not None and str(made._folder).startswith(str(tmp_path / "features"))


def test_versions_of_decoders_are_part_of_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {text.split()[0] for text in backbone._versions()}
    assert {"torch", "opencv-python-headless", "pillow", "simplejpeg"} <= names

    def space() -> Path:
        backbone._create.cache_clear()
        cache = create_backbone(cache_dir=tmp_path).cache
        assert cache is not None
        return cache._space

    before = space()
    assert space() == before
    monkeypatch.setattr(backbone, "_versions", lambda: ["pillow 0.1"])
    assert space() != before


def test_two_writers_at_once(tmp_path: Path) -> None:
    caches = [FeatureCache(tmp_path, "a") for _ in range(2)]
    wrong: list[str] = []

    def work(cache: FeatureCache) -> None:
        for number in range(60):
            key = f"ab{number % 10:02d}"
            cache.store(keyed(key), entry(number % 10))
            found = cache.lookup(key)
            if found is None or not np.array_equal(found.features[0], entry(number % 10)[0]):
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_folder_that_cannot_be_written_ends_the_caching_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = FeatureCache(tmp_path / "file", "a")
    with pytest.warns(UserWarning, match="nothing more is cached"):
        cache.store(keyed("ab12"), entry(1))
    cache.store(keyed("ab12"), entry(1))  # said once
    assert cache.lookup("ab12") is None
