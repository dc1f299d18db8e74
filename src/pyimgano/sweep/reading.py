"""Reads a sweep file, YAML or JSON, as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import DataError
from ..untrusted_files import parse_json, read_regular, reason_of_failure

# Nobody writes more by hand; a list of a million cells would be no sweep.
_MOST_BYTES = 16 * 2**20
_YAML = (".yaml", ".yml")


def read_plain(path: Path) -> Any:
    """Return the value that a .yaml, .yml or .json file holds.

    Raises
    ------
    DataError
        The file cannot be read, is neither, or gives a name twice in one object.
    """
    try:
        data = read_regular(path, _MOST_BYTES)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of_failure(error)})") from error
    if path.suffix.lower() == ".json":
        try:
            return parse_json(data)
        except ValueError as error:
            raise DataError(f"{path}: is not JSON ({reason_of_failure(error)})") from None
    if path.suffix.lower() not in _YAML:
        raise DataError(f"{path}: is no sweep file; give one ending in .yaml, .yml or .json")
    return _parse_yaml(path, data)


def _parse_yaml(path: Path, data: bytes) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Reads plain values, and refuses what a person would not mean."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):  # a few of them can stand for gigabytes
                mark = self.peek_event().start_mark
                raise yaml.MarkedYAMLError(None, None, "aliases (*name) are not read", mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.value in seen:  # the first would be dropped in silence
                    mark = key.start_mark
                    raise yaml.MarkedYAMLError(None, None, f"{key.value!r} stands twice", mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(data, Loader)  # a SafeLoader: nothing but plain values
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f", line {mark.line + 1}"
        raise DataError(f"{path}{where}: {error.problem or 'is not YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: is not YAML ({reason})") from None
