"""Any bytes are a manifest whose paths stay in its folder, or a `DataError` of one line.

The first byte chooses the reader: CSV, JSONL, the table of VisA, the configuration of LOCO, or
the polygons of a region of interest.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pyimgano", "csv", "json"]):
    from pyimgano.datasets.manifest import read_manifest
    from pyimgano.datasets.mvtec_loco import MVTecLOCOLayout
    from pyimgano.datasets.visa import VisALayout
    from pyimgano.errors import DataError
    from pyimgano.images import read_roi
    from pyimgano.runs.directory import safe_name

_ROOT = Path(tempfile.mkdtemp())
_READERS = ("list.csv", "list.jsonl", "split_csv/1cls.csv", "part/defects_config.json", "roi.json")

for _folder in ("split_csv", "part/train/good", "part/Data/Images/Normal", "part/test/good"):
    (_ROOT / _folder).mkdir(parents=True)
(_ROOT / "part/train/good/0.png").touch()
(_ROOT / "outside").symlink_to("/")


def check(data: bytes) -> None:
    """Read it; anything but a result or the documented error is raised."""
    name = _READERS[data[0] % len(_READERS)] if data else _READERS[0]
    path = _ROOT / name
    path.write_bytes(data[1:])
    try:
        if name == "roi.json":
            counted = read_roi(path).counted((9, 7))
            assert counted.shape == (9, 7)
        elif name.startswith("list"):
            _inside(read_manifest(path).values())
        elif name.startswith("split_csv"):
            _inside([VisALayout().load(_ROOT, "part")])
        else:
            MVTecLOCOLayout().load(_ROOT, "part")
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, str(error)[:3000]
    finally:
        path.unlink()


def _inside(categories) -> None:  # type: ignore[no-untyped-def]
    for category in categories:
        name = safe_name(category.name)
        assert name not in ("", ".", "..") and "/" not in name and len(name.encode()) <= 240
        for sample in (*category.train, *category.validation, *category.test):
            for path in (sample.path, *sample.mask_paths):
                assert os.path.realpath(path).startswith(os.path.realpath(_ROOT))


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
