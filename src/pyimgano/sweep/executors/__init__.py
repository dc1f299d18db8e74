"""Where the cells of a sweep run: in this process, in processes here, or on a Ray cluster."""

from .executor import RUN_CELL, DoJob, Executor, find_work, places
from .in_process import InProcess
from .processes import Processes

__all__ = ["RUN_CELL", "Executor", "InProcess", "Processes", "DoJob", "find_work", "places"]
