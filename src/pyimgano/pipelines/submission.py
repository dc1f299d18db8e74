"""Maps of unlabelled images, for the evaluation server of a dataset's authors.

They lie under `submission` in the run directory, named as the server expects them; the
categories of a run share the folder, so that it can be packed as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

from ..datasets import Layout, Sample
from ..errors import DataError
from ..models import Detector, ImageScore
from ..runs import RunDirectory, flush_to_disk, write_map, write_mask


class Submission:
    """The server's maps of one category.

    Attributes
    ----------
    wanted
        Whether maps are to be saved: the images are for a server, the detector has maps, and
        the run is saved.

    Raises
    ------
    DataError
        Two images would have the same map.
    """

    def __init__(
        self,
        layout: Layout,
        root: Path,
        directory: RunDirectory | None,
        test: Sequence[Sample],
        detector: Detector,
    ) -> None:
        self._run = None if directory is None else directory.path
        self._has_maps = detector.has_maps
        self._places: dict[Path, PurePosixPath] = {}
        taken: dict[PurePosixPath, Path] = {}
        for sample in test:
            place = layout.server_path(root, sample)
            if place is None:
                continue
            if place in taken:
                raise DataError(
                    f"{sample.path}: has the stem of {taken[place].name}, so that both would "
                    "have the same map for the evaluation server"
                )
            taken[place] = sample.path
            self._places[sample.path] = place
        self.wanted = bool(self._places) and self._has_maps and self._run is not None
        self._saved = self._thresholded = 0
        self._unflushed: list[Path] = []

    def notes(self) -> list[str]:
        """Return what became of it, once all images were scored."""
        if not self._places:
            return []
        if not self._has_maps:
            return ["the method has no anomaly maps, so there is nothing for the server"]
        if self._run is None:
            return ["the run is not saved, and so no maps for the evaluation server"]
        said = [
            f"{self._saved} of {len(self._places)} maps for the evaluation server are under "
            "submission in the run directory"
        ]
        if self._thresholded < self._saved:
            said.append("there is no threshold for pixels, so the server gets no thresholded maps")
        return said

    def flush(self) -> None:
        """Flush the maps to the disk, before a report calls the category complete."""
        while self._unflushed:
            flush_to_disk(self._unflushed.pop())

    def save(self, detector: Detector, sample: Sample, result: ImageScore) -> str | None:
        """Save a map at its image's own size, as it is and thresholded.

        Returns
        -------
        str or None
            The map's file, relative to the run; None if there is nothing to save.

        Raises
        ------
        DataError
            A file cannot be written.
        """
        place = self._places.get(sample.path) if self.wanted else None
        if place is None or result.anomaly_map is None:
            return None
        assert result.original_size is not None and self._run is not None
        height, width = result.original_size
        whole = cv2.resize(result.anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR)
        scores = np.asarray(whole, dtype=np.float32)  # (H, W) of the image file
        file = Path("submission") / "anomaly_images" / f"{place}.tiff"
        if detector.roi_ is not None:  # enlarging mixes pixels too
            scores[~detector.roi_.at((height, width))] = 0.0
        write_map(self._run / file, scores)
        self._unflushed.append(self._run / file)
        self._saved += 1
        if detector.pixel_calibration_ is not None:
            # not rounded to the precision of the scores
            threshold = np.float64(detector.pixel_calibration_.threshold)
            thresholded = Path("submission") / "anomaly_images_thresholded" / f"{place}.png"
            write_mask(self._run / thresholded, np.asarray(scores >= threshold))
            self._unflushed.append(self._run / thresholded)
            self._thresholded += 1
        return file.as_posix()
