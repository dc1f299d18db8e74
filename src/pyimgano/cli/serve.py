"""`pyimgano serve`: detectors behind HTTP, of the extra `pyimgano[serve]`."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from ..threads import limited_threads
from .caller import current_caller
from .console import ALLOW_WEIGHTS, plain, print_error
from .options import SharedOption, max_pixels_option, num_threads_option

_KEY = "PYIMGANO_API_KEY"
_NEEDS = ("fastapi", "uvicorn", "prometheus_client")
_MIB = 2**20
_MOST = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0, min_open=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME=DIR",
    help="Serve the saved detector in DIR, or that of a run, under this name; repeatable.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Listen on this address of the machine."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Listen on this port; 0 takes a free one.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Ask for one of the API keys in this file, one a line. The environment variable "
    f"{_KEY} gives one key as well.",
)
@click.option(
    "--batch-size",
    type=_MOST,
    default=8,
    show_default=True,
    help="Score up to so many images together, where so many wait.",
)
@click.option(
    "--queue-size",
    type=_MOST,
    default=64,
    show_default=True,
    help="Let so many requests wait for each detector; further ones get the status 429.",
)
@click.option(
    "--timeout",
    type=_SECONDS,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Give a request up after so long. It is answered with an error, never with good.",
)
@click.option(
    "--grace",
    type=_SECONDS,
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="Answer accepted requests for so long after SIGTERM or Ctrl-C.",
)
@click.option(
    "--max-body",
    type=_MOST,
    default=64,
    show_default=True,
    metavar="MIB",
    help="Refuse images of more MiB, as they are sent.",
)
@click.option(
    "--decoded-memory",
    type=_MOST,
    default=512,
    show_default=True,
    metavar="MIB",
    help="Hold decoded images of so many MiB at a time.",
)
@click.option("--device", cls=SharedOption, help="Default the device of the fit.")
@click.option("--allow-outside", is_flag=True, help=ALLOW_WEIGHTS)
@click.option("--log-requests", is_flag=True, help="Write a line on stderr for each request.")
@num_threads_option
@max_pixels_option
def command(**given: Any) -> int:
    """Serve saved detectors over HTTP.

    \b
      pyimgano serve --model lid=models/lid --model cap=models/cap
      curl --data-binary @part.png http://127.0.0.1:8000/v1/models/lid/predict

    Open http://127.0.0.1:8000/ to drop images on a page. /ready says when all detectors are
    warmed up, /metrics is for Prometheus, /openapi.json describes all addresses. SIGHUP reads the
    detectors again; SIGTERM and Ctrl-C end the service once accepted requests are answered.

    Exit status: 0 ended by a signal; 1 it cannot serve; 2 usage; 130 ended at once by a second
    Ctrl-C.
    """
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise click.UsageError(
            f"{', '.join(missing)} is not installed; pip install 'pyimgano[serve]'"
        )
    from ..errors import UsageError
    from ..images import limited_pixels
    from ..service import Settings, create_app
    from ..service.detectors import parse_models
    from ..service.server import is_local, run_service

    try:
        sources = parse_models(
            list(given["models"]), device=given["device"], allow_outside=given["allow_outside"]
        )
        settings = Settings(
            batch_size=given["batch_size"],
            queue_size=given["queue_size"],
            timeout=given["timeout"],
            max_body=given["max_body"] * _MIB,
            decoded_bytes=given["decoded_memory"] * _MIB,
            api_keys=_api_keys(given["api_key_file"]),
        )
    except UsageError as error:
        raise click.UsageError(str(error)) from None
    if not settings.api_keys and not is_local(given["host"]):
        print_error(
            f"warning: listening on {given['host']} without an API key: whoever reaches this "
            f"machine can use the service; give --api-key-file or {_KEY}"
        )
    with limited_threads(given["num_threads"]), limited_pixels(given["max_pixels"]):
        app = create_app(sources, settings)
        with _log_lines(), current_caller().interruption.suspended():
            ended_well = run_service(
                app,
                host=given["host"],
                port=given["port"],
                grace=given["grace"],
                say=print_error,
                access_log=given["log_requests"],
            )
    return 0 if ended_well else 130


def _api_keys(path: Path | None) -> tuple[str, ...]:
    """Return the keys of the file and of the environment.

    Raises
    ------
    click.UsageError
        The file cannot be read, or has no key.
    """
    from ..untrusted_files import read_regular, reason_of_failure

    found = [os.environ[_KEY].strip()] if os.environ.get(_KEY, "").strip() else []
    if path is not None:
        try:
            lines = read_regular(path).decode("ascii").splitlines()
        except UnicodeDecodeError:
            raise click.UsageError(
                f"--api-key-file {path}: has other characters than ASCII"
            ) from None
        except (OSError, ValueError) as error:
            raise click.UsageError(
                f"--api-key-file {path}: cannot be read ({reason_of_failure(error)})"
            ) from None
        keys = [line.strip() for line in lines]
        keys = [key for key in keys if key and not key.startswith("#")]
        if not keys:
            raise click.UsageError(f"--api-key-file {path}: has no key")
        found += keys
    return tuple(found)


class _Lines(logging.Handler):
    """Writes what the service and its server log on stderr, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        print_error(plain(f"{record.levelname.lower()}: {record.getMessage()}"))
        if record.exc_info and record.exc_info[0] is not None:
            for line in logging.Formatter().formatException(record.exc_info).splitlines():
                print_error(line)


@contextlib.contextmanager
def _log_lines() -> Iterator[None]:
    """Within, the loggers of the service and of uvicorn write on stderr."""
    handler = _Lines()
    loggers = [logging.getLogger(name) for name in ("pyimgano.service", "uvicorn")]
    before = [(one.level, one.propagate) for one in loggers]
    for one in loggers:
        one.addHandler(handler)
        one.setLevel(logging.INFO)
        one.propagate = False
    try:
        yield
    finally:
        for one, (level, propagate) in zip(loggers, before):
            one.removeHandler(handler)
            one.setLevel(level)
            one.propagate = propagate
