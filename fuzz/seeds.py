"""Writes the files that fuzzing begins with: `python fuzz/seeds.py FOLDER`.

`FOLDER/image`, `FOLDER/manifest` and `FOLDER/saved_detector` are for the programs beside.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_MANIFESTS = {
    "csv": b"\0path,split,label,mask,category,defect\na.png,train,,,nut,\n"
    b'"b,.png",test,1,m/b.png,nut,"{0.__class__}%s"\n',
    "csv_tabs": b"\0\xef\xbb\xbfpath\tsplit\ta\n../a.png\ttrain\t\n",
    "csv_outside": b"\0path;split\noutside/etc/passwd;train\n",
    "jsonl": b'\1{"path": "a.png", "split": "train", "category": "\\u0000[red]\\u001b[2J"}\n'
    b'{"path": "b.png", "split": "test", "label": 1, "mask": ["m.png", "n.png"]}\n',
    "jsonl_deep": b"\1" + b"[" * 2000 + b"\n",
    "jsonl_numbers": b'\1{"path": "a", "split": "train", "label": 1e999, "x": NaN}\n',
    "visa": b"\2object,split,label,image,mask\npart,train,normal,part/a.JPG,\n"
    b"part,test,anomaly,part/b.JPG,part/b.png\n",
    "loco": b'\3[{"defect_name": "x", "pixel_value": 255, "saturation_threshold": 0.5,'
    b' "relative_saturation": true}]',
    "polygon": b"\4[[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]",
    "polygons": b"\4[[[0, 0], [1, 0], [1, 1]], [[0.2, 0.3], [1e-300, 1], [0, 1]]]",
}


def write_images(folder: Path) -> None:
    """One small file of each kind that is read, and of some that are not."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 255, (11, 13), np.uint8)
    colour = rng.integers(0, 255, (11, 13, 3), np.uint8)
    kinds = {
        "grey": Image.fromarray(grey),
        "rgb": Image.fromarray(colour),
        "bit": Image.fromarray(grey > 99),
        "palette": Image.fromarray(colour).quantize(9),
        "rgba": Image.fromarray(colour).convert("RGBA"),
        "deep": Image.fromarray(grey.astype(np.uint16) * 257),
        "float": Image.fromarray(grey.astype(np.float32)),
        "cmyk": Image.fromarray(colour).convert("CMYK"),
    }
    turned = Image.Exif()
    turned[0x0112] = 6
    ranges = ImageFileDirectory_v2()
    ranges[340], ranges[341] = 0.0, 255.0
    for name, image in kinds.items():
        for suffix in ("png", "jpg", "bmp", "tiff", "webp", "gif", "ppm", "eps", "ico"):
            path = folder / f"{name}.{suffix}"
            options = {"exif": turned} if suffix in ("png", "jpg", "webp") and name == "rgb" else {}
            if suffix == "tiff" and name == "float":
                options = {"tiffinfo": ranges}
            try:
                image.save(path, **options)
            except (OSError, ValueError, KeyError):  # not every format has every kind
                path.unlink(missing_ok=True)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4", "zstd"):
        image = kinds["bit" if compression == "group4" else "rgb"]
        image.save(folder / f"{compression}.tiff", compression=compression)
    pages = [kinds["rgb"], kinds["rgb"].rotate(180)]
    for suffix in ("tiff", "gif", "webp", "png"):
        pages[0].save(folder / f"pages.{suffix}", save_all=True, append_images=pages[1:])
    kinds["rgb"].save(folder / "progressive.jpg", progressive=True)
    whole = (folder / "grey.jpg").read_bytes()
    place = whole.index(b"\xff\xdb")
    (folder / "stray.jpg").write_bytes(
        whole[:place] + b"\x2a" + whole[place:-2] + bytes(9) + whole[-2:]
    )
    wide = grey.astype(">u2") * 16
    (folder / "wide.pgm").write_bytes(b"P5\n# 12 bits\n13 11\n4095\n" + wide.tobytes())
    planes = rng.integers(0, 65535, (3, 11, 13)).astype(np.uint16)
    for name, more in (
        ("planar", {}),
        ("planar_tiles", {"tile": (16, 16), "compression": "zlib", "predictor": True}),
        ("planar_big", {"bigtiff": True, "byteorder": ">"}),
    ):
        options = {"photometric": "rgb", "metadata": None, **more}
        try:
            tifffile.imwrite(folder / f"{name}.tiff", planes, **options)
        except KeyError:  # a predictor takes the package imagecodecs
            options.pop("predictor")
            tifffile.imwrite(folder / f"{name}.tiff", planes, **options)
    stated = [(340, "d", 1, 0.0, True), (341, "d", 1, 1.0, True)]
    halves = rng.random((11, 13)).astype(np.float16)
    tifffile.imwrite(folder / "halves.tiff", halves, extratags=stated, metadata=None)


def write_manifests(folder: Path) -> None:
    for name, text in _MANIFESTS.items():
        (folder / name).write_bytes(text)


def write_saved_detectors(folder: Path) -> None:
    """The files of a small saved detector, each after the byte that chooses it."""
    from targets import saved_files

    document, arrays = saved_files(folder)
    (folder / "document").write_bytes(b"\0" + json.dumps(json.loads(document)).encode())
    (folder / "arrays").write_bytes(b"\1" + arrays)
    (folder / "vouched").write_bytes(b"\2" + arrays)
    for number, value in enumerate((b"null", b"[[[1]]]", b'{"a": 1e999}', b'"/dev/zero"', b"-1")):
        (folder / f"value_{number}").write_bytes(b"\3" + bytes([0, 7 * number]) + value)


def main(target: Path) -> None:
    for name, write in (
        ("image", write_images),
        ("manifest", write_manifests),
        ("saved_detector", write_saved_detectors),
    ):
        folder = target / name
        folder.mkdir(parents=True, exist_ok=True)
        write(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
