"""A manifest: a CSV or JSONL file that lists images, wherever they lie.

Columns (CSV) or keys (JSONL):

==========  =====================================================================================
path        of the image, relative to the manifest's folder, or absolute and in it
split       `train`, `validation` (`val`) or `test`
label       good or defective, as 0 or 1, false or true, or a word of `words.py` such as OK, NG,
            pass and fail; empty means good in train and validation, and not known in test
mask        of a defective test image, relative to the manifest's folder; in JSONL also a list
category    by default the manifest's name without its suffix
defect      kind of defect; by default `anomaly`
==========  =====================================================================================

`path` and `split` must be there. Names of columns, splits and labels may be in any case. A label
that one person may read as good and another as defective (yes, -1) is refused. A good image's mask
is passed over. CSV may be written as spreadsheets do it; see `read_csv`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..untrusted_files import parse_json, quoted, read_regular, reason_of_failure
from .layout import Category, Sample
from .tables import Line, decode_text, listed_path, read_csv, refuse_near_misses
from .words import meaning_of_label

SUFFIXES = (".csv", ".jsonl")

_REQUIRED = ("path", "split")
_OPTIONAL = ("label", "mask", "category", "defect")
_SPLITS = ("train", "validation", "test")
_OTHER_NAMES = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}


def read_manifest(path: Path, *, allow_outside: bool = False) -> dict[str, Category]:
    """Return the categories of a manifest, by name.

    Parameters
    ----------
    path
        A .csv or .jsonl file.
    allow_outside
        Whether paths may lead out of the manifest's folder.

    Raises
    ------
    DataError
        The file cannot be read, or a line will not do: the message names file and line.
    """
    lines = _read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_rows(path)
    found: dict[str, dict[str, list[Sample]]] = {}
    seen: dict[tuple[str, Path], str] = {}
    for line, masks in lines:
        split, sample = _sample(path.parent, line, masks, allow_outside)
        name = line.fields["category"].strip() or path.stem
        earlier = seen.setdefault((name, sample.path), line.where)
        if earlier is not line.where:
            raise DataError(
                f"{line.where}: {quoted(line.fields['path'])} stands there already ({earlier})"
            )
        found.setdefault(name, {split: [] for split in _SPLITS})[split].append(sample)
    if not found:
        raise DataError(f"{path}: lists no image")
    return {
        name: Category(
            name,
            tuple(splits["train"]),
            tuple(splits["test"]),
            validation=tuple(splits["validation"]),
        )
        for name, splits in sorted(found.items())
    }


def _read_rows(path: Path) -> Iterator[tuple[Line, list[str]]]:
    for line in read_csv(path, _REQUIRED, _OPTIONAL):
        mask = line.fields["mask"].strip()
        yield line, [mask] if mask else []


def _read_jsonl(path: Path) -> Iterator[tuple[Line, list[str]]]:
    try:
        lines = decode_text(read_regular(path)).split("\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of_failure(error)})") from error
    for number, text in enumerate(lines, start=1):
        if text.strip():
            yield _json_line(f"{path}: line {number}", text)


def _json_line(where: str, text: str) -> tuple[Line, list[str]]:
    try:
        pairs: Any = parse_json(text, pairs=_Pairs)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON ({reason_of_failure(error)})") from None
    if not isinstance(pairs, _Pairs):
        raise DataError(f"{where}: must be a JSON object, got {quoted(text.strip())}")
    known = (*_REQUIRED, *_OPTIONAL)
    record = {key.lower() if key.lower() in known else key: value for key, value in pairs}
    if len(record) < len(pairs):
        raise DataError(f"{where}: has a key twice")
    for name in _REQUIRED:
        if name not in record:
            raise DataError(f"{where}: lacks {name!r}")
    refuse_near_misses(where, list(record), known)
    masks = record.pop("mask", None)
    masks = [] if masks in (None, "") else [masks] if isinstance(masks, str) else masks
    if (
        not isinstance(masks, list)
        or isinstance(masks, _Pairs)
        or not all(isinstance(mask, str) and mask.strip() for mask in masks)
    ):
        raise DataError(f"{where}: mask must be a path or a list of paths, got {quoted(masks)}")
    fields = dict.fromkeys(known, "")
    for name in fields:
        value = record.get(name)
        if name == "label" and isinstance(value, (int, float)):  # a bool is a number
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {name} must be text, got {quoted(value)}")
        fields[name] = value or ""
    return Line(where, fields), masks


class _Pairs(list[tuple[str, Any]]):
    """The keys and values of a JSON object, doubled ones too."""


def _sample(folder: Path, line: Line, masks: list[str], allow_outside: bool) -> tuple[str, Sample]:
    """Return the split, and the sample."""
    fields = {name: value.strip() for name, value in line.fields.items()}
    # a path keeps its blanks: files with a blank at the end exist
    if not fields["path"]:
        raise DataError(f"{line.where}: names no image")
    split, word = fields["split"].lower(), fields["label"]
    split = _OTHER_NAMES.get(split, split)
    if split not in _SPLITS:
        raise DataError(
            f"{line.where}: split must be train, validation or test, got {quoted(fields['split'])}"
        )
    label = meaning_of_label(word) if word else (None if split == "test" else 0)
    if word and label is None:
        raise DataError(
            f"{line.where}: label must be one of 0 good ok normal pass or 1 bad anomaly ng fail, "
            f"or the like; got {quoted(word)}"
        )
    if label and split != "test":
        raise DataError(
            f"{line.where}: a {split} image must be good, got label {fields['label']!r}"
        )

    def path_of(name: str) -> Path:
        return listed_path(folder, line.where, name, allow_outside=allow_outside)

    defect = {0: "good", 1: fields["defect"] or "anomaly", None: "unlabelled"}[label]
    found = tuple(path_of(mask) for mask in masks) if label else ()
    return split, Sample(path_of(line.fields["path"]), label, defect, found)
