"""From what a user names to image files: files, folders, patterns, lists of paths."""

from __future__ import annotations

import codecs
import fnmatch
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..images import IMAGE_SUFFIXES, UNREAD_IMAGE_SUFFIXES, is_passed_over
from ..runs import safe_name

#: Between the name of a folder and the reason why its files are not known.
UNLISTED = ": cannot be listed "
# So many suffixes of files that are not used are named.
_KINDS = 3
#: Stands for paths on standard input.
STDIN = "-"
#: First part of the place of an image that does not lie below the common folder; no file name
#: can be mistaken for it, since a % in a name is written as %25.
OUTSIDE = "%outside"


@dataclass
class Listing:
    """What an input came to.

    Attributes
    ----------
    paths
        Image files, as they are to be shown; sorted, or in the order of the list.
    roots
        Folders (absolute) below which these lie, for the places of outputs.
    problems
        One line for each thing that is wrong.
    notes
        One line for each folder with files that were passed over because of their suffix.
    """

    paths: list[str] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def list_input(given: str, *, leave_out: Sequence[Path] = ()) -> Listing:
    """List the images that one `--input` names.

    ====================  ================================================================
    ``@list``, ``x.txt``  one path a line, relative to the list's folder; slashes may lean
                          either way; blank lines and lines that begin with # are skipped;
                          UTF-8, or UTF-16 as Windows' programs write it
    a folder              its files with common image suffixes, also in its subfolders
    a file                itself, whatever its suffix
    a pattern             ``*``, ``?``, ``[...]`` and ``**``: files with common image
                          suffixes, or with the suffix that the pattern ends in
    ====================  ================================================================

    What exists under the very name is taken before a list and a pattern. Hidden files and the
    folders that network storage and operating systems make are left out of folders and patterns,
    unless a part of the pattern names them outright, as is what lies in `leave_out`, the folders
    of the outputs.
    """
    if given.startswith("@") and not os.path.lexists(given):
        return _of_list(given[1:])
    if os.path.isdir(given):  # noqa: PTH112 -- a name with a null byte is not a folder, no error
        return _of_folder(given, leave_out)
    if os.path.lexists(given):
        if given.lower().endswith(".txt"):
            return _of_list(given)
        return Listing([given], [os.path.dirname(os.path.abspath(given))])  # noqa: PTH100, PTH120
    if glob.has_magic(given):
        return _of_pattern(given, leave_out)
    return Listing(problems=[f"{given}: no such file or folder"])


def common_root(roots: Iterable[str]) -> str | None:
    """Return the deepest folder that holds all `roots`; None without any, or on several drives."""
    given = list(roots)
    try:
        return os.path.commonpath(given) if given else None
    except ValueError:
        return None


def place_of(path: str, root: str | None) -> tuple[str, ...]:
    """Return where an image's outputs go, as parts of a relative path: a mirror of its own path.

    Two files have different places, whatever they are called, and no place leads out of the
    folder that it is joined to. What does not lie below `root` goes below `%outside`.
    """
    absolute = os.path.abspath(path.replace("\0", "%"))  # noqa: PTH100 -- without following links
    parts = Path(absolute).parts
    above = () if root is None else Path(root).parts
    if above and parts[: len(above)] == above and len(parts) > len(above):
        first: tuple[str, ...] = ()
        parts = parts[len(above) :]
    else:
        first = (OUTSIDE,)
        if parts and not parts[0].strip("/\\"):  # the root; a drive stays
            parts = parts[1:]
    return (*first, *(safe_name(part) for part in parts))


def lines_of(stream: BinaryIO) -> Iterator[str]:
    """Paths from a stream, one a line, each as soon as its line is there.

    Blank lines and lines that begin with # are skipped. Bytes that are no UTF-8 stay what they
    are, as in any file name that the system gives.
    """
    for line in stream:
        path = os.fsdecode(line.rstrip(b"\r\n"))
        if path.strip() and not path.lstrip().startswith("#"):
            yield _as_written_here(path)


def _as_written_here(path: str) -> str:
    """Return a path of a list that was written on Windows with this system's separators.

    A backslash can be part of a name here: only what there is no file for as it is written, and
    one with the other separators, is changed.
    """
    if os.sep == "\\" or "\\" not in path or "\0" in path or os.path.lexists(path):
        return path
    changed = path.replace("\\", "/")
    return changed if os.path.isfile(changed) else path  # noqa: PTH113


def walk_images(
    folder: str,
    leave_out: Sequence[Path],
    problems: list[str],
    other_suffixes: Counter[str] | None = None,
) -> Iterator[os.DirEntry[str]]:
    """Yield image files in a folder and its subfolders, in no order; links are followed.

    What cannot be listed goes to `problems`, one line each; a folder that holds itself is
    entered once. The suffixes of files that are not images are counted in `other_suffixes`.
    """
    avoided = {os.path.realpath(one) for one in leave_out}
    entered: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            state = os.stat(current)  # noqa: PTH116
            if (state.st_dev, state.st_ino) in entered and state.st_ino:
                continue
            entered.add((state.st_dev, state.st_ino))
            if avoided and os.path.realpath(current) in avoided:
                continue
            with os.scandir(current) as entries:
                for entry in entries:
                    if is_passed_over(entry.name):
                        continue
                    if _is_folder(entry):
                        waiting.append(entry.path)
                        continue
                    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                    if suffix in IMAGE_SUFFIXES:
                        yield entry
                    elif other_suffixes is not None:
                        other_suffixes[suffix or "none"] += 1
        except OSError as error:
            problems.append(f"{current}{UNLISTED}({error.strerror})")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: not a folder, and no reason to give up the others
        return False


def _of_folder(folder: str, leave_out: Sequence[Path]) -> Listing:
    found = Listing(roots=[os.path.abspath(folder)])  # noqa: PTH100
    others: Counter[str] = Counter()
    entries = walk_images(folder, leave_out, found.problems, others)
    found.paths = sorted((entry.path for entry in entries), key=lambda path: Path(path).parts)
    if not found.paths and not found.problems:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        found.problems.append(f"{folder}: holds no images ({suffixes})")
    unread = Counter({one: n for one, n in others.items() if one in UNREAD_IMAGE_SUFFIXES})
    what = "the format is not read ({}); convert to PNG, TIFF or JPEG"
    _note_unused(found, folder, "image", unread, what)
    what = "the suffix is not that of an image ({})"
    _note_unused(found, folder, "file", others - unread, what)
    return found


def _note_unused(found: Listing, folder: str, noun: str, suffixes: Counter[str], why: str) -> None:
    number = suffixes.total()
    if not number:
        return
    kinds = [f"{suffix} {count}" for suffix, count in suffixes.most_common(_KINDS + 1)]
    if len(kinds) > _KINDS:
        kinds[_KINDS:] = ["..."]
    what = f"1 {noun} is" if number == 1 else f"{number} {noun}s are"
    found.notes.append(f"{folder}: {what} not used: {why.replace('{}', ', '.join(kinds))}")


def _of_pattern(pattern: str, leave_out: Sequence[Path]) -> Listing:
    suffix = Path(pattern).suffix
    own = bool(suffix) and not glob.has_magic(suffix)
    avoided = [os.path.realpath(one) + os.sep for one in leave_out]
    paths = []
    for path in _matching(pattern):
        if not own and Path(path).suffix.lower() not in IMAGE_SUFFIXES:
            continue
        real = os.path.realpath(path)
        if not os.path.isdir(path) and not any(real.startswith(one) for one in avoided):  # noqa: PTH112
            paths.append(path)
    if not paths:
        return Listing(problems=[f"{pattern}: the pattern matches no image"])
    fixed = []
    for part in Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    root = os.path.abspath(os.path.join(*fixed) if fixed else ".")  # noqa: PTH100, PTH118
    return Listing(sorted(set(paths), key=lambda path: Path(path).parts), [root])


def _matching(pattern: str) -> Iterator[str]:
    """Files and folders, as `glob` finds them, but below `**` each folder is entered once: two
    links to a folder above them would otherwise be followed in all ways, 2^40 of them."""
    drive, rest = os.path.splitdrive(pattern)
    parts = re.split(r"[/\\]" if os.sep == "\\" else "/", rest)
    if "**" not in parts:
        for path in glob.iglob(pattern):  # noqa: PTH207 -- shown as it was given
            if _names_outright(path, pattern):
                yield path
        return
    first = parts.index("**")
    above = drive + "/".join(parts[:first]) + ("/" if first else "")
    wanted = [part for part in parts[first:] if part]
    for start in sorted(glob.glob(above)) if above else [""]:  # noqa: PTH207
        entered: set[tuple[int, int]] = set()
        waiting: list[tuple[str, ...]] = [()]
        while waiting:
            names = waiting.pop(0)
            try:
                with os.scandir(os.path.join(start, *names) or ".") as found:  # noqa: PTH118
                    state = os.stat(os.path.join(start, *names) or ".")  # noqa: PTH116, PTH118
                    if (state.st_dev, state.st_ino) in entered and state.st_ino:
                        continue
                    entered.add((state.st_dev, state.st_ino))
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError:  # glob passes over what cannot be listed, too
                continue
            for entry in entries:
                inside = (*names, entry.name)
                if _fits(inside, wanted):
                    yield os.path.join(start, *inside)  # noqa: PTH118
                if not is_passed_over(entry.name) and _is_folder(entry):
                    waiting.append(inside)


def _fits(names: Sequence[str], wanted: Sequence[str]) -> bool:
    """Return whether the parts of a path are those of a pattern; `**` is any number of them."""
    if not wanted:
        return not names
    if wanted[0] == "**":
        more = bool(names) and not is_passed_over(names[0]) and _fits(names[1:], wanted)
        return more or _fits(names, wanted[1:])
    return bool(names) and _part_fits(names[0], wanted[0]) and _fits(names[1:], wanted[1:])


def _part_fits(name: str, wanted: str) -> bool:
    if name.startswith("."):
        return wanted.startswith(".") and fnmatch.fnmatch(name, wanted)
    if is_passed_over(name) and glob.has_magic(wanted):
        return False
    return fnmatch.fnmatch(name, wanted)


def _names_outright(path: str, pattern: str) -> bool:
    """Return whether no part of a path that `glob` found is a system folder that a wildcard stands
    for.
    """
    found, wanted = Path(path).parts, Path(pattern).parts
    if len(found) != len(wanted):
        return True
    return not any(
        glob.has_magic(part) and is_passed_over(name) and not name.startswith(".")
        for name, part in zip(found, wanted, strict=True)
    )


def _of_list(name: str) -> Listing:
    try:
        data = Path(name).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return Listing(problems=[f"{name}: the list cannot be read ({reason})"])
    folder = os.path.dirname(name)  # noqa: PTH120
    found = Listing()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # of PowerShell, for one
        try:
            data = data.decode("utf-16").encode()
        except UnicodeError as error:
            return Listing(problems=[f"{name}: begins as UTF-16 and is none ({error})"])
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            path = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            found.problems.append(
                f"{name}: line {number}: is not UTF-8 (byte {error.start + 1} of the line is "
                f"0x{line[error.start]:02X})"
            )
            continue
        if "\0" in path:
            found.problems.append(f"{name}: line {number}: holds a null byte; is this a text file?")
        elif path and not path.startswith("#"):
            found.paths.append(_as_written_here(os.path.join(folder, path)))  # noqa: PTH118
    if not found.paths and not found.problems:
        found.problems.append(f"{name}: the list names no image")
    own = os.path.abspath(folder or ".")  # noqa: PTH100
    folders = {os.path.dirname(os.path.abspath(path)) for path in found.paths}  # noqa: PTH100, PTH120
    shared = common_root(folders)
    below = all(one == own or one.startswith(own.rstrip(os.sep) + os.sep) for one in folders)
    if found.paths and (below or shared is not None):
        found.roots.append(own if below or shared is None else shared)
    return found
