"""One detector for many products: a detector of each, all on one frozen network.

Each product has a detector of its own, fitted on its images alone: its memory, its threshold and
its calibration are those of a single detector on the same images, to the bit. What they share is
the network. Where an image is given with the name of its product, that product's detector judges
it. Where not, the features of the one pass through the network tell the product
(`pyimgano.models.product_recognition`), and are then what the product's detector works on.

An image of an unknown product gets no decision. One that is farther from its product's good images
than these are from each other is called good by nobody: it is defective if the product's detector
says so, and else of an unknown product.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import (
    DataError,
    NotFittedError,
    UnknownProductError,
    UsageError,
    during,
    unknown_name,
)
from ..images import (
    CopyGroups,
    ImageSource,
    KeyedImage,
    LoadedImage,
    Signature,
    as_sources,
    stream_images,
)
from .detector import Detector
from .evenly_spread import evenly
from .image_score import ImageScore
from .on_backbone import features_of
from .product_recognition import (
    MOST_IMAGES,
    Product,
    ProductImages,
    Recogniser,
    require_alike,
)
from .registry import create_model, model_entry
from .saved import require_place, write_folder
from .saved_products import product_files
from .saving import require_saveable
from .training_images import OnError, Progress

#: The product of all images, that of each in their order, or what tells it of an image; None where
#: it is to be recognised.
Naming: TypeAlias = "str | Sequence[str | None] | Callable[[ImageSource], str | None] | None"

#: What `predict` says of an image whose product is unknown.
NO_DECISION = -1

_NAME_LENGTH = 200


class ManyProducts:
    """Detectors of several products that share one network.

    Parameters
    ----------
    model
        A registered name of a method on a frozen backbone; one that trains a network would share
        nothing and is refused.
    preset
        A preset of the model.
    unknown_rate
        The share of a product's good images that may be taken for no image of the product, in
        (0, 0.5]. Fewer than 1 / `unknown_rate` images cannot promise it; then the largest of their
        distances is the threshold.
    keywords
        Those of the model, the same for all products.

    Attributes
    ----------
    products_
        The fitted detectors by the names of their products. They are ordinary detectors: their
        thresholds may be moved (`products_["lid"].recalibrate(quantile=0.98)`).
    recogniser_
        What tells the products apart (`pyimgano.models.product_recognition.Recogniser`).
    recognition_size_
        (height, width) that images are resized to for that: of the products' sizes the one of the
        fewest pixels. An image of a product of another size needs a second pass through the
        network; where the keyword `resize` is given there is one size, and one pass.

    Raises
    ------
    UsageError
        An unknown model or keyword, a value out of range, or a model without a frozen backbone.

    Examples
    --------
    >>> from pyimgano.models import ManyProducts
    >>> many = ManyProducts("vision_patchcore", resize=(256, 256))
    >>> many.fit({"lid": lid_paths, "nut": nut_paths})  # doctest: +SKIP
    >>> many.predict(paths, product="lid")  # doctest: +SKIP
    >>> many.predict(paths)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str = "vision_patchcore",
        *,
        preset: str | None = None,
        unknown_rate: float = 0.001,
        **keywords: Any,
    ) -> None:
        if isinstance(unknown_rate, bool) or not 0 < unknown_rate <= 0.5:
            raise UsageError(f"unknown_rate must lie in (0, 0.5], got {unknown_rate!r}")
        self.unknown_rate = float(unknown_rate)
        self.detector = create_model(model, preset=preset, **keywords)
        require_shareable(self.detector)
        self.has_maps = self.detector.has_maps
        self.batch_size = self.detector.batch_size
        self._naming: Naming = None

    products_: dict[str, Detector]
    recogniser_: Recogniser
    recognition_size_: tuple[int, int]

    # ---- fit

    def fit(
        self,
        X: Mapping[str, Iterable[ImageSource]],
        y: Any = None,
        *,
        calibration_images: Mapping[str, Iterable[ImageSource]] | None = None,
        on_error: OnError = "raise",
        exclude_suspects: bool = False,
        progress: Progress | None = None,
    ) -> ManyProducts:
        """Fit a detector of each product, and learn to tell the products apart.

        Parameters
        ----------
        X
            The good images of each product, by its name.
        y
            Ignored.
        calibration_images
            By product, further good images for its threshold; products may be missing.
        on_error, exclude_suspects, progress
            As `Detector.fit`.

        Raises
        ------
        UsageError
            `X` is no mapping, has fewer than two products, or a name that will not do.
        DataError, ImageReadError
            As `Detector.fit`; or fewer than two images of a product are distinct.
        """
        if not isinstance(X, Mapping):
            raise UsageError(
                "X must give the good images of each product by its name, "
                f"as {{'lid': paths, 'nut': paths}}; got {type(X).__name__}"
            )
        images = {name: as_sources(some, learning=True) for name, some in X.items()}
        held_out = dict(calibration_images or {})
        for name in held_out:
            if name not in images:
                raise UsageError(unknown_name("product in calibration_images", name, images))
        require_names(images)
        self._forget()
        found: dict[str, Detector] = {}
        for name, some in images.items():
            found[name] = copy.deepcopy(self.detector).fit(
                some,
                calibration_images=held_out.get(name),
                on_error=on_error,
                exclude_suspects=exclude_suspects,
                progress=progress,
            )
        self._take(found, images, on_error, progress)
        return self

    @classmethod
    def of(
        cls,
        detectors: Mapping[str, Detector],
        images: Mapping[str, Sequence[ImageSource]],
        *,
        unknown_rate: float = 0.001,
        on_error: OnError = "raise",
        progress: Progress | None = None,
    ) -> ManyProducts:
        """Make one of detectors that are fitted already, with the same model and keywords.

        `images` are those that each was fitted on; they are read once more, to tell the products
        apart. Errors are those of `fit`.
        """
        require_names(detectors)
        first = next(iter(detectors.values()))
        name = type(first).registered_name
        many = cls(name, unknown_rate=unknown_rate, **first.get_params())
        sources = {name: as_sources(images[name], learning=True) for name in detectors}
        many._take(dict(detectors), sources, on_error, progress)
        return many

    def _forget(self) -> None:
        for name in ("products_", "recogniser_", "recognition_size_"):
            vars(self).pop(name, None)

    def _take(
        self,
        detectors: dict[str, Detector],
        images: Mapping[str, Sequence[ImageSource]],
        on_error: OnError,
        progress: Progress | None,
    ) -> None:
        size = require_alike(detectors)
        products = {}
        for name, detector in detectors.items():
            with during("recognition"):
                products[name] = _recognised_by(
                    name, detector, images[name], size, on_error, progress
                )
        self._become(detectors, Recogniser(products, self.unknown_rate), size)

    def _become(
        self, detectors: dict[str, Detector], recogniser: Recogniser, size: tuple[int, int]
    ) -> None:
        """Judge with these from now on; in one step, for threads that score meanwhile."""
        new = {
            "products_": detectors,
            "recogniser_": recogniser,
            "recognition_size_": size,
            "has_maps": next(iter(detectors.values())).has_maps,
        }
        self.__dict__ = {**vars(self), **new}

    # ---- the products

    def product(self, name: str) -> Detector:
        """Return the detector of a product, an ordinary one.

        Raises
        ------
        NotFittedError, UsageError
            Nothing was fitted yet, or there is no such product.
        """
        self._check_fitted()
        if name not in self.products_:
            raise UsageError(unknown_name("product", str(name), self.products_))
        return self.products_[name]

    def as_fitted(self) -> ManyProducts:
        """Return the detector as it is now, as `Detector.as_fitted` does."""
        fitted = copy.copy(self)
        fitted._check_fitted()
        fitted.products_ = {name: one.as_fitted() for name, one in fitted.products_.items()}
        for one in fitted.products_.values():
            vars(one)["batch_size"] = self.batch_size
        return fitted

    def naming(self, product: Naming) -> ManyProducts:
        """Return the same detector, sharing all that it learned, that names images so.

        Raises
        ------
        UsageError
            `product` is a name, and there is no such product.
        """
        if isinstance(product, str):
            self.product(product)
        view = copy.copy(self)
        view._naming = product
        return view

    def bits_read(self) -> int | None:
        """Return how many bits count in images with 16 bits a sample, as `Detector.bits_read`."""
        return next(iter(self.products_.values())).bits_read()

    def describe(self) -> dict[str, Any]:
        """Return what can be said of it, as plain JSON values."""
        self._check_fitted()
        recogniser = self.recogniser_
        return {
            "model": type(next(iter(self.products_.values()))).registered_name,
            "unknown_rate": self.unknown_rate,
            "recognition_size": list(self.recognition_size_),
            "products": {
                name: {
                    "threshold": one.threshold_,
                    "n_train": one.n_train_,
                    "recognised_by": len(recogniser.products[name].vectors),
                    "promised_unknown_rate": recogniser.calibrations[
                        name
                    ].promised_false_alarm_rate,
                }
                for name, one in self.products_.items()
            },
        }

    def __repr__(self) -> str:
        known = ", ".join(map(repr, vars(self).get("products_", {}))) or "not fitted"
        return f"ManyProducts({type(self.detector).__name__}: {known})"

    # ---- score

    def score_images(
        self,
        X: Iterable[ImageSource],
        *,
        product: Naming = None,
        maps: bool = True,
        on_error: Literal["raise", "record"] = "raise",
    ) -> Iterator[ImageScore]:
        """Score images one after another, each by the detector of its product.

        Parameters
        ----------
        X, maps, on_error
            As `Detector.score_images`.
        product
            The name of the product of all images; the names of each, or a function that returns the
            name of the product of an image. Where there is none (None), it is recognised.

        Yields
        ------
        ImageScore
            One for each image, in order, whose `product` says what it was taken for. Of an unknown
            product it has an `error`, an `UnknownProductError`, and no score, also with
            `on_error="raise"`, which is for images that cannot be read.

        Raises
        ------
        UsageError
            There is no product of that name.
        """
        fitted = self.as_fitted()
        naming = fitted._naming if product is None else product
        if isinstance(naming, str):
            named = Product(naming, "named")
            for one in fitted.product(naming).score_images(X, maps=maps, on_error=on_error):
                yield replace(one, product=named)
            return
        if naming is not None and not callable(naming):
            sources = as_sources(X)
            if len(naming) != len(sources):
                raise UsageError(
                    f"product has {len(naming)} names for {len(sources)} images; give one for each"
                )
            names = iter(naming)
            yield from fitted._score_stream(sources, lambda _: next(names), maps, on_error)
            return
        yield from fitted._score_stream(X, naming, maps, on_error)

    def _score_stream(
        self,
        X: Iterable[ImageSource],
        name_of: Callable[[ImageSource], str | None] | None,
        maps: bool,
        on_error: str,
    ) -> Iterator[ImageScore]:
        detector = next(iter(self.products_.values()))
        assert detector.backbone_ is not None
        given: dict[int, tuple[ImageSource, str | None]] = {}

        def noted() -> Iterator[ImageSource]:
            for index, source in enumerate(X):
                given[index] = source, None if name_of is None else name_of(source)
                yield source

        waiting: list[LoadedImage] = []
        with stream_images(
            noted(),
            self.recognition_size_,
            recall=detector.backbone_.cache,
            roi=detector.roi_,
            bit_depth=detector.bits_read(),
        ) as stream:
            for loaded in stream:
                if loaded.error is not None and on_error == "raise":
                    raise loaded.error
                waiting.append(loaded)
                if len(waiting) == self.batch_size:
                    yield from self._score_loaded(waiting, given, maps, on_error)
                    waiting = []
            yield from self._score_loaded(waiting, given, maps, on_error)

    def _score_loaded(
        self,
        loaded: list[LoadedImage],
        given: dict[int, tuple[ImageSource, str | None]],
        maps: bool,
        on_error: str,
    ) -> Iterator[ImageScore]:
        """Yield the scores of a batch, after one pass through the network for all of it."""
        named = {one.index: given.pop(one.index) for one in loaded}
        known = self._known_products(loaded, named)
        found: dict[int, ImageScore] = {}
        for name, detector in self.products_.items():
            own = [
                _with_features(one, known[one.index][1])
                for one in loaded
                if one.pixels is not None and known[one.index][0].name == name
            ]
            if own and self._sees_another_size(detector):
                own = [_read_again(detector, one, named[one.index][0]) for one in own]
            for score in detector._score_loaded(own, maps, on_error) if own else ():
                found[score.index] = self._judged(score, known[score.index][0], named)
        for one in loaded:
            if one.pixels is None:
                yield ImageScore(one.index, None, None, None, one.error)
            elif one.index in found:
                yield found.pop(one.index)
            else:
                yield _unknown(one.index, one.name, known[one.index][0], named[one.index][1])

    def _known_products(
        self,
        loaded: list[LoadedImage],
        named: Mapping[int, tuple[ImageSource, str | None]],
    ) -> dict[int, tuple[Product, list[Any] | None]]:
        """Return the product of each image that could be read, and the features of one pass.

        Features are missing of an image whose product is named and sees images at another size.
        """
        first = next(iter(self.products_.values()))
        assert first.backbone_ is not None
        found: dict[int, tuple[Product, list[Any] | None]] = {}
        seen: list[LoadedImage] = []
        for one in loaded:
            name = named[one.index][1]
            if one.pixels is None:
                continue
            if name is not None:
                known = name in self.products_
                found[one.index] = (
                    (Product(name, "named") if known else Product(None, "unknown", as_good=False)),
                    None,
                )
                if not known or self._sees_another_size(self.products_[name]):
                    continue
            seen.append(one)
        if not seen:
            return found
        pixels = [one.pixels for one in seen if one.pixels is not None]
        layers = features_of(first.backbone_, pixels)
        pooled: npt.NDArray[np.float32] | None = None
        for position, one in enumerate(seen):
            own = [layer[position] for layer in layers]
            if one.index in found:
                found[one.index] = found[one.index][0], own
                continue
            if pooled is None:
                pooled = first.backbone_.pooled(layers)
            found[one.index] = self.recogniser_.recognise(pooled[position]), own
        return found

    def _sees_another_size(self, detector: Detector) -> bool:
        return tuple(detector.params_.resize) != self.recognition_size_

    def _judged(
        self,
        score: ImageScore,
        product: Product,
        named: Mapping[int, tuple[ImageSource, str | None]],
    ) -> ImageScore:
        """Return a score with its product; without one if it would call good what is doubtful."""
        if score.score is None:
            return replace(score, product=product)
        assert product.name is not None
        if not product.as_good and score.score < self.products_[product.name].threshold_:
            source, name = named[score.index]
            doubtful = replace(product, name=None, known_by="unknown")
            text = f"image {score.index}" if isinstance(source, np.ndarray) else str(source)
            return _unknown(score.index, text, doubtful, name)
        return replace(score, product=product)

    def recognise(self, X: Iterable[ImageSource]) -> list[Product]:
        """Return the product of each of N images, and score none.

        Raises
        ------
        ImageReadError
            An image cannot be read.
        """
        fitted = self.as_fitted()
        return [fitted.recogniser_.recognise(one) for one in fitted.pooled_features(X)]

    def pooled_features(self, X: Iterable[ImageSource]) -> npt.NDArray[np.float32]:
        """Return the pooled features (N, D) float32 of N images, by which they are recognised.

        Raises
        ------
        ImageReadError
            An image cannot be read.
        """
        return self._pooled(X, "raise")[0]

    def pooled_readable(
        self, X: Iterable[ImageSource]
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """Return pooled features (n, D) float32 of the images that can be read, and which they are.

        The latter are positions among the images.
        """
        return self._pooled(X, "skip")

    def _pooled(
        self, X: Iterable[ImageSource], on_error: OnError
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        self._check_fitted()
        detector = next(iter(self.products_.values()))
        found = _pooled(detector, as_sources(X), self.recognition_size_, on_error, None)
        return found.vectors, found.positions

    def decision_function(
        self, X: Iterable[ImageSource], product: Naming = None
    ) -> npt.NDArray[np.float64]:
        """Return the scores (N,) of N images, each by its product's detector.

        Scores of different products have different thresholds. An image of an unknown product has
        infinity, so that nothing that compares it calls it good.
        """
        scores = [
            np.inf if one.score is None else one.score
            for one in self.score_images(as_sources(X), product=product, maps=False)
        ]
        return np.asarray(scores, dtype=np.float64)

    def predict(self, X: Iterable[ImageSource], product: Naming = None) -> npt.NDArray[np.int64]:
        """Return (N,) of 0 (good), 1 (defective) and -1 (no decision: the product is unknown)."""
        fitted = self.as_fitted()
        labels = []
        for one in fitted.score_images(as_sources(X), product=product, maps=False):
            if one.score is None or one.product is None or one.product.name is None:
                labels.append(NO_DECISION)
            else:
                labels.append(int(one.score >= fitted.products_[one.product.name].threshold_))
        return np.asarray(labels, dtype=np.int64)

    def predict_anomaly_map(
        self, X: Iterable[ImageSource], product: Naming = None
    ) -> list[npt.NDArray[np.float32] | None]:
        """Return the anomaly map (H, W) float32 of each of N images; None of unknown products.

        Raises
        ------
        UsageError
            The method has no maps.
        """
        if not self.has_maps:
            raise UsageError(f"{type(self.detector).__name__} has no anomaly maps")
        return [one.anomaly_map for one in self.score_images(as_sources(X), product=product)]

    # ---- keep and copy

    def save(
        self, folder: str | Path, *, include_backbone: bool = False, overwrite: bool = False
    ) -> Path:
        """Save all products in one folder; `pyimgano.load_model` brings it back.

        Arguments and errors are those of `Detector.save`. The weights of the network, if they are
        included, lie there once.
        """
        fitted = self.as_fitted()
        for one in fitted.products_.values():
            require_saveable(one)
        place = require_place(Path(folder), overwrite)
        return write_folder(place, product_files(fitted, include_backbone), overwrite)

    @classmethod
    def restored(
        cls,
        detectors: dict[str, Detector],
        recogniser: Recogniser,
        size: tuple[int, int],
    ) -> ManyProducts:
        """Return what was saved; what it consists of is checked by whoever restores it."""
        first = next(iter(detectors.values()))
        many = cls.__new__(cls)
        many.unknown_rate = recogniser.unknown_rate
        many.detector = type(first)(**first.get_params())
        many.batch_size = first.batch_size
        many._naming = None
        many._become(detectors, recogniser, size)
        return many

    def export_graph(self, original_size: tuple[int, int] | None = None) -> Any:
        """Raises `UsageError`: an exported program is of one product."""
        raise UsageError(
            "a detector of many products is exported one product at a time; name it (--product): "
            f"{', '.join(self.products_)}"
        )

    def _check_fitted(self) -> None:
        if "products_" not in vars(self):
            raise NotFittedError("this ManyProducts is not fitted yet; call fit first")


def require_shareable(detector: Detector) -> None:
    """Raise `UsageError` where the detector has no frozen network that products could share."""
    name = vars(type(detector)).get("registered_name") or type(detector).__name__
    if "registered_name" in vars(type(detector)) and "trained" in model_entry(name).tags:
        raise UsageError(
            f"{name} trains a network of its own for each product, so that nothing would be "
            "shared; take a method on a frozen backbone, such as vision_patchcore, or fit a "
            "detector for each product"
        )
    if detector.prepare() is None:
        raise UsageError(
            f"{name} has no network that products could share; take a method on a frozen "
            "backbone, such as vision_patchcore"
        )


def require_names(names: Iterable[str]) -> None:
    """Raise `UsageError` for fewer than two products, or a name that is no name."""
    known = list(names)
    if len(known) < 2:
        raise UsageError(
            f"a detector of many products needs at least two, got {len(known)}; a single one is "
            "what create_model makes"
        )
    for name in known:
        if not isinstance(name, str) or not 0 < len(name) <= _NAME_LENGTH:
            raise UsageError(
                f"a product's name must be text of 1 to {_NAME_LENGTH} letters, got {name!r}"
            )


def _recognised_by(
    name: str,
    detector: Detector,
    images: Sequence[ImageSource],
    size: tuple[int, int],
    on_error: OnError,
    progress: Progress | None,
) -> ProductImages:
    """Return what a product is recognised by: its images, at most 2,000, evenly spread."""
    left_out = {one.index for one in detector.excluded_ if one.role == "train"}
    kept = np.array([i for i in range(len(images)) if i not in left_out])
    chosen = [images[int(i)] for i in evenly(kept, MOST_IMAGES)]
    found = _pooled(detector, chosen, size, on_error, progress)
    if not found.positions:
        raise DataError(f"product {name!r}: none of its images can be read")
    return ProductImages.of(found.vectors, CopyGroups.of(found.signatures).group, name)


class _Pooled(NamedTuple):
    """Pooled features (n, D) of images, their signatures, and their positions among all."""

    vectors: npt.NDArray[np.float32]
    signatures: list[Signature]
    positions: list[int]


def _pooled(
    detector: Detector,
    images: Sequence[ImageSource],
    size: tuple[int, int],
    on_error: OnError,
    progress: Progress | None,
) -> _Pooled:
    """Return the pooled features of the images that can be read."""
    backbone = detector.backbone_
    assert backbone is not None
    found: list[npt.NDArray[np.float32]] = []
    signatures: list[Signature] = []
    positions: list[int] = []
    batch: list[Any] = []

    def pool() -> None:
        if batch:
            found.append(backbone.pooled(features_of(backbone, batch)))
            batch.clear()

    with stream_images(
        images,
        size,
        recall=backbone.cache,
        roi=detector.roi_,
        bit_depth=detector.bits_read(),
    ) as stream:
        for loaded in stream:
            if progress is not None:
                progress("images to recognise the product by", loaded.index + 1, len(images))
            if loaded.error is not None:
                if on_error == "raise":
                    raise loaded.error
                continue
            assert loaded.signature is not None
            batch.append(loaded.pixels)
            signatures.append(loaded.signature)
            positions.append(loaded.index)
            if len(batch) == detector.batch_size:
                pool()
        pool()
    vectors = np.concatenate(found) if found else np.zeros((0, 0), np.float32)
    return _Pooled(vectors, signatures, positions)


def _with_features(loaded: LoadedImage, features: list[Any] | None) -> LoadedImage:
    """Return a loaded image with the features of its pass in place of its pixels."""
    if features is None:
        return loaded
    assert loaded.original_size is not None
    keyed = KeyedImage("", None, features, loaded.original_size, loaded.remark)
    return replace(loaded, pixels=keyed)


def _read_again(detector: Detector, loaded: LoadedImage, source: ImageSource) -> LoadedImage:
    """Return an image as the detector of its product sees it, at another size."""
    backbone = detector.backbone_
    with stream_images(
        [source],
        detector.region_cells.size,
        threads=1,
        recall=None if backbone is None else backbone.cache,
        roi=detector.roi_,
        bit_depth=detector.bits_read(),
    ) as stream:
        return replace(next(stream), index=loaded.index, name=loaded.name)


def _unknown(index: int, path: str, product: Product, named: str | None) -> ImageScore:
    """Return the score of an image that no detector judges."""
    reason = f"unknown product: {named!r} is none of those known"
    if product.nearest is not None:
        reason = (
            f"unknown product: the nearest is {product.nearest!r}, of whose good images "
            f"p = {product.p_value:.2g} are as far from the others"
        )
    return ImageScore(index, None, None, None, UnknownProductError(path, reason), product=product)
