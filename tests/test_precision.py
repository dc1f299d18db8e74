"""What a GPU may round; the options can be looked at without one."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pyimgano.precision import full_precision

_LOOK = """
import torch
from pyimgano.precision import full_precision
matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
{before}
def seen():
    return (
        matmul.fp32_precision, conv.fp32_precision, matmul.allow_bf16_reduced_precision_reduction
    )
outside = seen()
with full_precision(torch.device("cuda")):
    inside = seen()
print(inside, seen() == outside)
"""


@pytest.mark.parametrize(
    "before",
    [
        "",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.set_float32_matmul_precision('high')",
        "torch.backends.fp32_precision = 'tf32'",
        "conv.fp32_precision = 'tf32'; matmul.allow_bf16_reduced_precision_reduction = False",
    ],
)
def test_nothing_is_rounded_whatever_a_program_asked_for_and_all_comes_back(before: str) -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("torch before 2.9 has other options")
    found = subprocess.run(
        [sys.executable, "-c", _LOOK.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split("\n")[0] == "('ieee', 'ieee', False) True"


def test_the_older_options_are_set_where_there_are_no_newer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Matmul:
        allow_tf32 = True
        allow_bf16_reduced_precision_reduction = True

    class Cudnn:
        allow_tf32 = True

    monkeypatch.setattr(torch.backends.cuda, "matmul", Matmul)
    monkeypatch.setattr(torch.backends, "cudnn", Cudnn)
    with full_precision(torch.device("cuda")):
        options = Matmul.allow_tf32, Matmul.allow_bf16_reduced_precision_reduction
        assert (*options, Cudnn.allow_tf32) == (False, False, False)
    assert Matmul.allow_tf32 and Matmul.allow_bf16_reduced_precision_reduction and Cudnn.allow_tf32


def test_a_processor_is_left_alone() -> None:
    before = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    with full_precision(torch.device("cpu")):
        assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction == before
