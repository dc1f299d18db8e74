"""Many benchmarks at once: categories times models times seeds, on one machine or on many."""

from .merge import merge_sweeps
from .plan import Plan, make_plan
from .report import SweepReport
from .sweep import run_sweep
from .table import SweepTable, make_table
from .table_forms import write_table
from .work import expected_work

__all__ = [
    "Plan",
    "SweepReport",
    "SweepTable",
    "expected_work",
    "make_plan",
    "make_table",
    "merge_sweeps",
    "run_sweep",
    "write_table",
]
