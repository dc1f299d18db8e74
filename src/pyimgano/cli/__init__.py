"""The command `pyimgano`, and the dashed names that are its subcommands.

A subcommand's module is imported when it is called, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import NoReturn

import click

from .. import __version__
from ..errors import PyimganoError
from ..memory import is_out_of_memory, one_line
from ..models.registry import create_model
from .caller import Caller
from .console import print_error, warn
from .groups import SuggestingGroup
from .interruption import INTERRUPTED, ended_cleanly_by_signals, how_to_go_on

#: Subcommand to the module that holds it and the line that `--help` shows, by what they are for.
_SECTIONS = {
    "To begin with": {
        "check": ("check", "Learn from photos of good parts and judge new ones."),
        "doctor": ("doctor", "Say what this machine has and lacks, and time one image."),
    },
    "To measure detectors": {
        "datasets": ("datasets", "List datasets, and look one over for what is wrong with it."),
        "benchmark": ("benchmark", "Run a detector over a dataset and leave a run directory."),
        "robust-benchmark": (
            "robust_benchmark",
            "Find out what drift on the line does to a detector.",
        ),
        "sweep": ("sweep", "Run models on datasets with several seeds, here or on a cluster."),
        "merge": ("merge", "Join the shards of a sweep to one table."),
        "compare": ("compare", "Put runs side by side, with the decisions that changed."),
        "leaderboard": ("leaderboard", "Make a leaderboard of runs, to paste into a paper."),
        "report": ("report", "Make the page of a run, report.html, from its directory."),
    },
    "To use one on the line": {
        "infer": ("infer", "Score new images with a fitted detector."),
        "serve": ("serve", "Serve detectors over HTTP, with a page to drop images on."),
        "threshold": ("threshold", "Move the threshold of a saved detector, without a refit."),
        "export": ("export", "Write a detector as a folder that runs without pyimgano."),
    },
    "To get weights": {
        "weights": ("weights", "List published weights of backbones, and fetch them."),
        "distill-teacher": (
            "distill_teacher",
            "Distil a teacher for vision_efficientad on your own images.",
        ),
    },
}
_COMMANDS = {name: one for some in _SECTIONS.values() for name, one in some.items()}


#: Options of `pyimgano` itself.
_OF_THE_GROUP = ("-h", "--help", "--version")


class _LazyGroup(SuggestingGroup):
    """Knows its subcommands by name, and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        return _command(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, _COMMANDS))
        for title, some in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), line) for name, (_, line) in some.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pyimgano")
def group() -> None:
    """Find defective parts with photos of good ones alone.

    \b
      pyimgano check photos/good photos/new
      pyimgano benchmark --dataset demo
      pyimgano COMMAND --help
    """


def _command(subcommand: str) -> click.Command:
    """Import a subcommand; each knows --version too, since it also has a name of its own."""
    module = import_module(f".{_COMMANDS[subcommand][0]}", __name__)
    command: click.Command = module.command
    if all(one.name != "version" for one in command.params):
        click.version_option(__version__, prog_name="pyimgano")(command)
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pyimgano` and return its exit status; raises no `SystemExit`.

    The first word is a subcommand. Where it is an option instead, all words are options of
    `pyimgano-benchmark`. Detectors are made by this module's `create_model`, so that another
    function put in its place gives another detector.

    Parameters
    ----------
    argv
        The words after the command's name; by default those of this process.

    Returns
    -------
    int
        0 done; 1 an error of the run; 2 one of usage; 130 interrupted.
    """
    words = [str(one) for one in (sys.argv[1:] if argv is None else argv)]
    if words and words[0].startswith("-") and words[0] not in _OF_THE_GROUP:
        return run_subcommand("benchmark", words, name="pyimgano", caller=Caller(create_model))
    return _run(group, "pyimgano", words, Caller(create_model))


def run_subcommand(
    subcommand: str,
    argv: Sequence[str] | None,
    *,
    name: str | None = None,
    caller: Caller | None = None,
) -> int:
    """Run one subcommand and return its exit status, as `main` does.

    Parameters
    ----------
    subcommand
        A key of `_COMMANDS`.
    argv
        The words after the command's name; by default those of this process.
    name
        What messages call the command; by default its dashed name.
    caller
        What the command is to take from whoever calls it.
    """
    words = None if argv is None else [str(one) for one in argv]
    return _run(_command(subcommand), name or f"pyimgano-{subcommand}", words, caller)


def benchmark(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-benchmark`, the same as `pyimgano benchmark`."""
    sys.exit(run_subcommand("benchmark", arguments))


def compare(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-compare`, the same as `pyimgano compare`."""
    sys.exit(run_subcommand("compare", arguments))


def leaderboard(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-leaderboard`, the same as `pyimgano leaderboard`."""
    sys.exit(run_subcommand("leaderboard", arguments))


def datasets(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-datasets`, the same as `pyimgano datasets`."""
    sys.exit(run_subcommand("datasets", arguments))


def distill_teacher(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-distill-teacher`, the same as `pyimgano distill-teacher`."""
    sys.exit(run_subcommand("distill-teacher", arguments))


def export(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-export`, the same as `pyimgano export`."""
    sys.exit(run_subcommand("export", arguments))


def robust_benchmark(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-robust-benchmark`, the same as `pyimgano robust-benchmark`."""
    sys.exit(run_subcommand("robust-benchmark", arguments))


def report(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-report`, the same as `pyimgano report`."""
    sys.exit(run_subcommand("report", arguments))


def threshold(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-threshold`, the same as `pyimgano threshold`."""
    sys.exit(run_subcommand("threshold", arguments))


def infer(arguments: Sequence[str] | None = None) -> NoReturn:
    """`pyimgano-infer`, the same as `pyimgano infer`."""
    sys.exit(run_subcommand("infer", arguments))


def _run(
    command: click.Command,
    name: str,
    arguments: Sequence[str] | None,
    caller: Caller | None = None,
) -> int:
    """Run a command and return its exit status: 0, 1 for an error of the run, 2 for one of usage.

    What went wrong is one line on stderr. A traceback is a bug of ours.
    """
    streams = sys.stdout, sys.stderr
    # what stops services stops a run as Ctrl-C does: its reports say so
    with ended_cleanly_by_signals(f"{name}: error: interrupted") as interruption:
        caller = replace(caller or Caller(), interruption=interruption)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = warn
                status = command.main(arguments, prog_name=name, standalone_mode=False, obj=caller)
            return status if isinstance(status, int) else 0
        except click.ClickException as error:
            print_error(f"{name}: error: {' '.join(error.format_message().split())}")
            return error.exit_code
        except PyimganoError as error:
            print_error(f"{name}: error: {error}")
            return error.exit_code
        except (click.Abort, KeyboardInterrupt):
            print_error(f"{name}: error: interrupted")
            if (line := how_to_go_on(interruption.run)) is not None:
                print_error(line)
            return INTERRUPTED
        except SystemExit as left:  # by click, which has put its own streams in the way of ours
            sys.stdout, sys.stderr = streams
            _let_go_of_stdout()  # its reader went away
            return left.code if isinstance(left.code, int) else 1
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            print_error(f"{name}: error: not enough memory ({one_line(error)})")
            return 1


def _let_go_of_stdout() -> None:
    """What is left in stdout's buffer goes nowhere, or Python would complain of it at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, sys.stdout.fileno())
        finally:
            os.close(nowhere)
