"""The command `pyimgano`, and the dashed names that are its subcommands.

A subcommand's module is imported when it is called, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from .. import __version__
from ..errors import PyimganoError
from ..memory import is_out_of_memory, one_line
from .console import complain, warn
from .interruption import INTERRUPTED, ended_cleanly_by_signals

#: Subcommand to the module that holds it and the line that `--help` shows.
_COMMANDS = {
    "benchmark": ("benchmark", "Run a detector over a dataset and leave a run directory."),
    "robust-benchmark": (
        "robust_benchmark",
        "Find out what drift on the line does to a detector.",
    ),
    "datasets": ("datasets", "List datasets, and look one over for what is wrong with it."),
    "distill-teacher": (
        "distill_teacher",
        "Distil a teacher for vision_efficientad on your own images.",
    ),
    "export": ("export", "Write a detector as a folder that runs without pyimgano."),
    "infer": ("infer", "Score new images with a fitted detector."),
    "threshold": ("threshold", "Move the threshold of a saved detector, without a refit."),
}


class _LazyGroup(click.Group):
    """Knows its subcommands by name, and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f".{_COMMANDS[cmd_name][0]}", __name__)
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in sorted(_COMMANDS.items())])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pyimgano")
def group() -> None:
    """Visual anomaly detection for industrial inspection."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano`."""
    _run(group, "pyimgano", arguments)


def benchmark(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-benchmark`, the same as `pyimgano benchmark`."""
    from .benchmark import command

    _run(command, "pyimgano-benchmark", arguments)


def datasets(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-datasets`, the same as `pyimgano datasets`."""
    from .datasets import command

    _run(command, "pyimgano-datasets", arguments)


def distill_teacher(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-distill-teacher`, the same as `pyimgano distill-teacher`."""
    from .distill_teacher import command

    _run(command, "pyimgano-distill-teacher", arguments)


def export(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-export`, the same as `pyimgano export`."""
    from .export import command

    _run(command, "pyimgano-export", arguments)


def robust_benchmark(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-robust-benchmark`, the same as `pyimgano robust-benchmark`."""
    from .robust_benchmark import command

    _run(command, "pyimgano-robust-benchmark", arguments)


def threshold(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-threshold`, the same as `pyimgano threshold`."""
    from .threshold import command

    _run(command, "pyimgano-threshold", arguments)


def infer(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-infer`, the same as `pyimgano infer`."""
    from .infer import command

    _run(command, "pyimgano-infer", arguments)


def _run(command: click.Command, name: str, arguments: Sequence[str] | None) -> NoReturn:
    """Run a command and exit: 0, 1 for an error of the run, 2 for one of usage.

    What went wrong is one line on stderr. A traceback is a bug of ours.
    """
    # what stops services stops a run as Ctrl-C does: its reports say so
    with ended_cleanly_by_signals(f"{name}: error: interrupted"):
        try:
            with warnings.catch_warnings():
                warnings.showwarning = warn
                status = command.main(arguments, prog_name=name, standalone_mode=False)
            sys.exit(status if isinstance(status, int) else 0)
        except click.ClickException as error:
            complain(f"{name}: error: {' '.join(error.format_message().split())}")
            sys.exit(error.exit_code)
        except PyimganoError as error:
            complain(f"{name}: error: {error}")
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            complain(f"{name}: error: interrupted")
            sys.exit(INTERRUPTED)
        except BrokenPipeError:  # the reader of our output went away
            os._exit(1)  # without a second complaint when the interpreter flushes stdout
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            complain(f"{name}: error: not enough memory ({one_line(error)})")
            sys.exit(1)
