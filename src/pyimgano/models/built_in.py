"""The built-in detectors: where each is, and what a list of them says.

It stands here once more, beside what the modules register, so that listing them imports neither
those nor numpy; a test holds the two to each other.
"""

from __future__ import annotations

from typing import NamedTuple


class BuiltIn(NamedTuple):
    """`module` is relative to this package; `summary` the first line of the docstring."""

    module: str
    year: int
    tags: tuple[str, ...]
    summary: str


_HEAD = ("classical", "image-level", "deep-features")

BUILT_IN = {
    "vision_patchcore": BuiltIn(
        "patchcore",
        2022,
        ("memory-bank", "pixel-map", "deep-features"),
        "PatchCore on any backbone: nearest-neighbour distances to a coreset of good patches.",
    ),
    "vision_softpatch": BuiltIn(
        "softpatch",
        2022,
        ("memory-bank", "pixel-map", "deep-features", "noisy-training"),
        "SoftPatch on any backbone: a coreset without the noisiest patches, with soft weights.",
    ),
    "vision_spade": BuiltIn(
        "spade",
        2020,
        ("memory-bank", "nearest-neighbours", "pixel-map", "deep-features"),
        "SPADE on any backbone: distances to the K most similar good images, and to their parts.",
    ),
    "vision_padim": BuiltIn(
        "padim",
        2020,
        ("gaussian", "pixel-map", "deep-features"),
        "PaDiM on any backbone: one Gaussian a position, Mahalanobis distances as the map.",
    ),
    "vision_mahalanobis": BuiltIn(
        "mahalanobis",
        2021,
        ("gaussian", "image-level", "deep-features"),
        "Gaussians of globally pooled features, one a level; no maps.",
    ),
    "vision_dfm": BuiltIn(
        "dfm",
        2019,
        ("subspace", "pixel-map", "deep-features"),
        "DFM: error of reconstructing features from a PCA that keeps 97 % of their variance.",
    ),
    "vision_anomalydino": BuiltIn(
        "anomalydino",
        2024,
        ("memory-bank", "few-shot", "pixel-map", "deep-features"),
        "AnomalyDINO: patches of few good images and their turned copies, cosine distances.",
    ),
    "vision_subspace": BuiltIn(
        "subspace",
        2026,
        ("subspace", "few-shot", "pixel-map", "deep-features"),
        "SubspaceAD: squared error of rebuilding patches from a PCA of few turned good images.",
    ),
    "vision_rad": BuiltIn(
        "rad",
        2026,
        ("memory-bank", "nearest-neighbours", "pixel-map", "deep-features"),
        "RAD: distances to the same place in the most similar good images, at several depths.",
    ),
    "vision_stfpm": BuiltIn(
        "stfpm",
        2021,
        ("student-teacher", "trained", "pixel-map", "deep-features"),
        "STFPM: where a student's pyramid of features differs from its teacher's.",
    ),
    "vision_reverse_distillation": BuiltIn(
        "reverse_distillation",
        2022,
        ("student-teacher", "trained", "pixel-map", "deep-features"),
        "Reverse distillation: what a decoder cannot give back of an encoder's features.",
    ),
    "vision_dinomaly": BuiltIn(
        "dinomaly",
        2025,
        ("reconstruction", "trained", "pixel-map", "deep-features"),
        "Dinomaly: what a decoder with a noisy bottleneck cannot give back of a vision "
        "transformer.",
    ),
    "vision_supersimplenet": BuiltIn(
        "supersimplenet",
        2024,
        ("discriminative", "synthetic-anomalies", "pixel-map", "deep-features", "trained"),
        "SuperSimpleNet: heads that learn to see noise in good features, of any backbone.",
    ),
    "vision_efficientad": BuiltIn(
        "efficientad",
        2024,
        ("student-teacher", "autoencoder", "pixel-map", "trained"),
        "EfficientAD: where a student cannot follow its teacher, or an autoencoder the image.",
    ),
    "vision_knn": BuiltIn(
        "classical.neighbours",
        2000,
        (*_HEAD, "neighbours"),
        "Distance of an image's embedding to its k-th nearest among those of good images.",
    ),
    "vision_lof": BuiltIn(
        "classical.neighbours",
        2000,
        (*_HEAD, "neighbours"),
        "How much thinner good images lie around an image than around its neighbours.",
    ),
    "vision_ocsvm": BuiltIn(
        "classical.boundaries",
        2001,
        (*_HEAD, "boundary"),
        "How far outside the support of good images' embeddings a one-class SVM sees an image.",
    ),
    "vision_iforest": BuiltIn(
        "classical.boundaries",
        2008,
        (*_HEAD, "trees"),
        "How few random cuts set an image's embedding apart from those of good images.",
    ),
    "vision_pca": BuiltIn(
        "classical.densities",
        2003,
        (*_HEAD, "subspace"),
        "How far an embedding lies along, and off, the principal components of good images.",
    ),
    "vision_kde": BuiltIn(
        "classical.densities",
        1962,
        (*_HEAD, "density"),
        "Negative log-density of an embedding under Gaussian kernels on those of good images.",
    ),
    "vision_gmm": BuiltIn(
        "classical.densities",
        2000,
        (*_HEAD, "density", "gaussian"),
        "Negative log-likelihood of an embedding under a mixture of Gaussians.",
    ),
    "vision_ecod": BuiltIn(
        "classical.distributions",
        2022,
        (*_HEAD, "distribution"),
        "How rare a value each channel has among good images, summed over the channels.",
    ),
    "vision_copod": BuiltIn(
        "classical.distributions",
        2020,
        (*_HEAD, "distribution"),
        "How rare a value each channel has under the empirical copula of good images.",
    ),
    "vision_hbos": BuiltIn(
        "classical.distributions",
        2012,
        (*_HEAD, "distribution"),
        "How low the histograms of good images are where an image's channels lie, summed.",
    ),
}
