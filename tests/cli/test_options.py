"""The options of a benchmark are said once, and everything else about them is made from that."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest
from pydantic import BaseModel

from pyimgano import run_benchmark, run_robust_benchmark
from pyimgano.cli import group
from pyimgano.cli.options import SharedOption
from pyimgano.images import MAX_BIT_DEPTH, MIN_BIT_DEPTH
from pyimgano.pipelines.config import (
    BenchmarkConfig,
    Execution,
    RobustnessConfig,
    options_of,
)

BOTH = [
    (run_benchmark, BenchmarkConfig, "benchmark"),
    (run_robust_benchmark, RobustnessConfig, "robust-benchmark"),
]


def wide(command: str) -> click.Context:
    """Return a context in which the help of a subcommand has no broken lines."""
    found = group.get_command(click.Context(group), command)
    assert found is not None
    return click.Context(found, info_name="x", terminal_width=10_000, max_content_width=10_000)


@pytest.mark.parametrize(("function", "options", "command"), BOTH)
def test_the_signature_is_that_of_the_options(
    function: Callable[..., Any], options: type[BaseModel], command: str
) -> None:
    parameters = dict(inspect.signature(function).parameters)
    del parameters["listener"], parameters["create"]
    known = options_of(options, Execution)
    assert parameters.keys() == known.keys()
    for name, one in parameters.items():
        field = known[name][0]
        absent = name in ("dataset", "model_kwargs")  # None, and then it is missing or empty
        assert one.default == (None if absent else field.default), name


@pytest.mark.parametrize(("function", "options", "command"), BOTH)
def test_the_docstring_and_the_help_explain_every_option(
    function: Callable[..., Any], options: type[BaseModel], command: str
) -> None:
    context = wide(command)
    shown = context.get_help()
    told = " ".join((function.__doc__ or "").split())
    flags = {flag for one in context.command.get_params(context) for flag in one.opts}
    for name, (field, how) in options_of(options, Execution).items():
        meaning = field.description
        assert meaning and meaning[0].isupper() and meaning.endswith("."), name
        assert f"{name} {meaning}" in told
        assert f"--{name.replace('_', '-')}" in flags
        assert meaning in shown or name == "pixel_postprocess", name
        assert f"{how.section} options:" in shown


def test_other_commands_explain_an_option_in_the_same_words() -> None:
    context = wide("infer")
    shared = [one for one in context.command.params if isinstance(one, SharedOption)]
    assert {"bit_depth", "roi", "num_threads"} <= {one.name for one in shared}
    shown = context.get_help()
    for one in shared:
        description = options_of(BenchmarkConfig)[str(one.name)][0].description
        assert description and description in shown


def test_bits_are_those_of_the_images() -> None:
    for bits, good in ((MIN_BIT_DEPTH, True), (MAX_BIT_DEPTH, True), (8, False), (17, False)):
        try:
            BenchmarkConfig.check(dataset="demo", bit_depth=bits)
        except ValueError:
            assert not good
        else:
            assert good


def test_the_list_of_models_waits_for_no_option() -> None:
    code = (
        "import sys; from pyimgano.cli import main\n"
        "assert not main(['benchmark', '--list-models', '--tags=deep', '--json'])\n"
        "assert not {'pydantic', 'numpy', 'torch'} & set(sys.modules)\n"
        "assert not main(['benchmark', '--list-models', '--dataset', 'demo'])\n"
        "assert not main(['benchmark', '--help'])\n"
        "assert not {'numpy', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_meaning_of_keywords_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    from pyimgano.cli import main

    assert main(["benchmark", "--model-info", "vision_padim"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:1] == ["d_reduced"])
    assert "the joined channels are kept" in lines[at + 1]
    assert main(["benchmark", "--model-info", "vision_padim", "--json"]) == 0
    json.loads(capsys.readouterr().out)
