"""`pyimgano-infer` for scripts that import it from here (docs/compatibility.md)."""

from __future__ import annotations

from collections.abc import Sequence

from .models.registry import create_model

__all__ = ["create_model", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pyimgano-infer` and return its exit status; raises no `SystemExit`.

    The detector is made by this module's `create_model`, so that another function put in its place
    gives another detector. Maps are saved as .npy unless `--map-format` says otherwise.

    Parameters
    ----------
    argv
        The words after the command's name; by default those of this process.
    """
    from .cli import run_subcommand
    from .cli.caller import Caller

    return run_subcommand("infer", argv, caller=Caller(create_model, map_format="npy"))
