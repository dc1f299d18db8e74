"""`pyimgano-robust-benchmark` for scripts that import it from here (docs/compatibility.md)."""

from __future__ import annotations

from collections.abc import Sequence

from .models.registry import create_model

__all__ = ["create_model", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pyimgano-robust-benchmark` and return its exit status; raises no `SystemExit`.

    Detectors are made by this module's `create_model`, so that another function put in its place
    gives another detector.

    Parameters
    ----------
    argv
        The words after the command's name; by default those of this process.
    """
    from .cli import run_subcommand
    from .cli.caller import Caller

    return run_subcommand("robust-benchmark", argv, caller=Caller(create_model))
