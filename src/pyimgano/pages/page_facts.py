"""What the page of a run needs of a category and no other file of the run holds.

While a category is tested, the maps of the images that its galleries may show are kept in memory,
a bounded number of them; when it is done they are written into the run, with the scores that the
threshold comes from. The page itself is made afterwards, from the files alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from ..calibration import score_ratio
from ..runs import (
    CurvesDocument,
    RecordWriter,
    TrainingScoreRecord,
    shown,
    write_document,
    write_map,
)

#: Images of one gallery, at most.
GALLERY_SIZE = 9

# The longer side of a map that is kept, in pixels.
_LONGEST_SIDE = 128

_Map = npt.NDArray[np.float32]
# The lists that maps are kept for: the label of their images, and whether high scores are wanted.
_LISTS: tuple[tuple[bool | None, bool], ...] = (
    (True, False),  # missed, or nearly
    (True, True),  # surely found
    (False, True),  # false alarms, or nearly
    (None, True),  # without a label
)


class PageFacts:
    """Keeps what the page of a run needs of one category.

    Parameters
    ----------
    folder
        Of the category in the run directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[tuple[bool | None, bool], list[tuple[float, int, _Map]]] = {
            one: [] for one in _LISTS
        }

    def add(
        self, label: bool | int | None, index: int, score: float | None, anomaly_map: _Map | None
    ) -> None:
        """Look at a scored test image, and keep its map while no gallery is full of better ones.

        Parameters
        ----------
        label
            Whether it is defective; None where that is not known.
        index
            Its position in per_image.jsonl.
        score, anomaly_map
            As the detector gave them; None where there is none.
        """
        if score is None or anomaly_map is None:
            return
        truth = None if label is None else bool(label)
        for known, high in _LISTS:
            if known is not truth:
                continue
            kept = self._kept[known, high]
            # the first image of a tie is shown first, as the galleries are sorted
            rank = (score if high else -score, -index)
            if len(kept) < GALLERY_SIZE:
                heapq.heappush(kept, (*rank, _small(anomaly_map)))
            elif rank > kept[0][:2]:
                heapq.heapreplace(kept, (*rank, _small(anomaly_map)))

    def write(
        self,
        scores: Iterable[float],
        images: Sequence[str] | None,
        *,
        threshold: float,
        apart: bool,
        pro_curve: Sequence[Sequence[float]],
    ) -> None:
        """Write all of it into the run.

        Parameters
        ----------
        scores
            Of the good images that the threshold comes from.
        images
            Their paths; None where that is not known.
        threshold
            Of the category.
        apart
            Whether these are other images than those that were learned from.
        pro_curve
            Rates and overlaps of the points of the curve of AUPRO; empty without it.

        Raises
        ------
        DataError
            Something cannot be written.
        """
        with RecordWriter(self._folder / "training_scores.jsonl") as writer:
            for index, score in enumerate(scores):
                writer.write(
                    TrainingScoreRecord(
                        index=index,
                        input=None if images is None else images[index],
                        role="calibration" if apart else "train",
                        score=score,
                        score_ratio=score_ratio(score, threshold),
                    )
                )
        if pro_curve:
            rates, overlaps = (list(one) for one in pro_curve)
            document = CurvesDocument(pro_false_positive_rate=rates, pro_overlap=overlaps)
            write_document(self._folder / "curves.json", document)
        for index, anomaly_map in self._maps().items():
            write_map(map_file(self._folder, index), anomaly_map)

    def _maps(self) -> dict[int, _Map]:
        return {-negative: one for kept in self._kept.values() for _, negative, one in kept}


def _small(anomaly_map: _Map) -> _Map:
    """Return a map as it is kept: smooth as maps are, a picture of it needs no more pixels."""
    height, width = anomaly_map.shape
    share = _LONGEST_SIDE / max(height, width)
    if share >= 1.0:
        return anomaly_map.copy()
    size = max(1, round(share * width)), max(1, round(share * height))
    return np.asarray(cv2.resize(anomaly_map, size, interpolation=cv2.INTER_AREA), np.float32)


def map_file(folder: Path, index: int) -> Path:
    """Return where the map of a test image lies in the folder of its category."""
    return folder / "maps" / f"{index:06d}.tiff"


def same_path(path: str | Path) -> str:
    """Return a path as it stands in the records of a run."""
    return shown(str(path))
