"""Intervals of metrics, and of their differences, by resampling images.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993: percentile intervals. Good and
defective images are resampled apart, so that every sample has as many of each as the test set.
Where several runs have scored the same images, all of them are measured on the same samples: the
difference between two runs then varies much less than either of them (paired bootstrap; Koehn,
"Statistical significance tests for machine translation evaluation", EMNLP 2004).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Metrics that follow from the scores and decisions of images.
IMAGE_METRICS = ("auroc", "average_precision", "recall", "false_alarm_rate")
RESAMPLES = 2000
CONFIDENCE = 0.95
# Of samples measured at a time, images times samples: a weight takes 8 bytes.
_BLOCK_WEIGHTS = 2**20


def replicates(
    labels: npt.NDArray[np.bool_],
    runs: Sequence[tuple[Floats, npt.NDArray[np.bool_]]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[dict[str, Floats]]:
    """Return the metrics of each run on resampled images, the same samples for every run.

    Parameters
    ----------
    labels
        (N,) whether an image is defective.
    runs
        Scores (N,) and decisions (N,) of each run on the same images.
    resamples
        B, how many samples are drawn.
    seed
        Of the random numbers.

    Returns
    -------
    list of dict
        For each run the (B,) values of every metric in `IMAGE_METRICS`; a metric that wants images
        of a kind that is not there is left out.
    """
    generator = np.random.default_rng(seed)
    good, bad = np.flatnonzero(~labels), np.flatnonzero(labels)
    found: list[dict[str, list[Floats]]] = [{} for _ in runs]
    block = max(1, _BLOCK_WEIGHTS // max(1, len(labels)))
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        of_good, of_bad = (
            _weights(generator, len(good), count),
            _weights(generator, len(bad), count),
        )
        for values, (scores, called) in zip(found, runs, strict=True):
            if len(bad):
                values.setdefault("recall", []).append(of_bad @ called[bad] / len(bad))
            if len(good):
                rate = of_good @ called[good] / len(good)
                values.setdefault("false_alarm_rate", []).append(rate)
            if len(good) and len(bad):
                auroc, precision = _areas(scores[bad], scores[good], of_bad, of_good)
                values.setdefault("auroc", []).append(auroc)
                values.setdefault("average_precision", []).append(precision)
    return [{name: np.concatenate(parts) for name, parts in values.items()} for values in found]


def interval(values: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the percentile interval of replicates (B,)."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)


def _weights(generator: np.random.Generator, images: int, samples: int) -> Floats:
    """Return (samples, images): how often each image was drawn, with replacement."""
    if images == 0:
        return np.zeros((samples, 0))
    drawn = generator.multinomial(images, np.full(images, 1.0 / images), size=samples)
    return drawn.astype(np.float64)


def _areas(bad: Floats, good: Floats, of_bad: Floats, of_good: Floats) -> tuple[Floats, Floats]:
    """Return (B,) AUROCs and (B,) average precisions on weighted images, ties counted half.

    The average precision is the sum over thresholds of precision times the recall gained.
    """
    scores = np.concatenate([bad, good])
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])  # ties are called together
    none_bad, none_good = np.zeros_like(of_bad), np.zeros_like(of_good)
    true = np.concatenate([of_bad, none_good], axis=1)[:, order].cumsum(axis=1)[:, ends]
    false = np.concatenate([none_bad, of_good], axis=1)[:, order].cumsum(axis=1)[:, ends]
    gained = np.diff(true, axis=1, prepend=0.0)
    tied = np.diff(false, axis=1, prepend=0.0)
    below = len(good) - false + 0.5 * tied
    auroc = (gained * below).sum(axis=1) / (len(good) * len(bad))
    called = true + false
    precision = np.divide(true, called, out=np.zeros_like(true), where=called > 0)
    return auroc, (precision * gained).sum(axis=1) / len(bad)
