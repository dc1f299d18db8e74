"""Maps of unlabelled images, for the evaluation server of a dataset's authors.

They lie under `submission` in the run directory, named as the server expects them; the
categories of a run share the folder, so that it can be packed as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..datasets import Layout, Sample
from ..models import Detector, ImageScore
from ..runs import RunDirectory, write_map, write_mask


class Submission:
    """The server's maps of one category.

    Attributes
    ----------
    wanted
        Whether maps are to be saved: the images are for a server, and the run is saved.
    """

    def __init__(
        self, layout: Layout, root: Path, directory: RunDirectory | None, test: Sequence[Sample]
    ) -> None:
        self._layout = layout
        self._root = root
        self._run = None if directory is None else directory.path
        self._for_server = any(layout.server_path(root, sample) for sample in test)
        self.wanted = self._for_server and self._run is not None

    def notes(self, detector: Detector) -> list[str]:
        """What a user should know of it."""
        if self._for_server and not detector.has_maps:
            return ["the method has no anomaly maps, so there is nothing for the server"]
        if self.wanted:
            return ["maps for the evaluation server are under submission in the run directory"]
        return []

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
        place = self._layout.server_path(self._root, sample) if self.wanted else None
        pixels = detector.pixel_calibration_
        if place is None or result.anomaly_map is None or pixels is None:
            return None
        assert result.original_size is not None and self._run is not None
        height, width = result.original_size
        whole = cv2.resize(result.anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR)
        scores = np.asarray(whole, dtype=np.float32)  # (H, W) of the image file
        file = Path("submission") / "anomaly_images" / f"{place}.tiff"
        write_map(self._run / file, scores)
        thresholded = Path("submission") / "anomaly_images_thresholded" / f"{place}.png"
        write_mask(self._run / thresholded, scores >= pixels.threshold)
        return file.as_posix()
