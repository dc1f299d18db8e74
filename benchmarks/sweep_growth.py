"""What a cell of a sweep costs besides its work, in each executor, and how far that carries.

    python benchmarks/sweep_growth.py [--cells 1000] [--workers 2] [--executors in-process ...]

Cells do nothing. The first cell of each executor, which waits for processes to begin, is not
counted. With the figures found, 1,000 cells of 2 minutes are simulated on 1, 10 and 100 machines of
one cell each, and on as many more as it takes to stop being faster by a fifth for twice as many.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
import time
from pathlib import Path

from pyimgano.memory import peak_memory
from pyimgano.runs.sweep_schema import CellOutcome, PlannedCell, SweepResources
from pyimgano.sweep.cell import Job, outcome_of
from pyimgano.sweep.executors import Executor, InProcess, Processes
from pyimgano.sweep.executors.ray_cluster import RayCluster

WORK = "benchmarks.sweep_growth:do_nothing"


def do_nothing(job: Job) -> CellOutcome:
    """Return that a cell is complete."""
    return outcome_of(job.cell.name, "complete", None)


def make(kind: str, workers: int, folder: Path) -> Executor:
    """Return an executor whose cells do nothing."""
    if kind == "in-process":
        return InProcess(do_nothing)
    if kind == "processes":
        return Processes(workers, folder / "logs", WORK)
    resources = SweepResources(cpus=1, memory_gib=0.1)
    return RayCluster(resources, folder, workers=None, work=WORK)


def measure(kind: str, cells: int, workers: int) -> dict[str, float]:
    """Return seconds to begin, milliseconds a cell after that, and how memory has grown in MiB."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "logs").mkdir()
        facts = {"dataset": "d", "category": "c", "method": "m", "model": "m", "preset": None}
        jobs = [
            Job(
                cell=PlannedCell(name=f"c{n}", **facts, backbone=None, seed=n, options={}),  # type: ignore[arg-type]
                folder=place,
            )
            for n in range(cells + workers)
        ]
        began = time.perf_counter()
        with make(kind, workers, folder) as executor:
            list(executor.run(jobs[:workers]))
            ready = time.perf_counter()
            middle = 0
            for number, _ in enumerate(executor.run(jobs[workers:])):
                if number == cells // 10:
                    middle = peak_memory() or 0
            ended = time.perf_counter()
        grown = ((peak_memory() or 0) - middle) / 2**20
    return {
        "begin_seconds": ready - began,
        "cell_milliseconds": 1e3 * (ended - ready) / cells,
        "memory_grown_mib": grown,
    }


def simulate(cells: int, seconds: float, machines: int, begin: float, overhead: float) -> float:
    """Return the hours that cells take on machines which one driver serves, one after another.

    Parameters
    ----------
    cells, seconds
        How many, and how long each works.
    machines
        Each does one cell at a time.
    begin
        Seconds until a machine does its first.
    overhead
        Seconds of the driver for each cell; it serves one at a time.
    """
    free = [begin] * machines
    driver = end = 0.0
    for _ in range(cells):
        driver = max(driver, heapq.heappop(free)) + overhead
        heapq.heappush(free, driver + seconds)
        end = max(end, driver + seconds)
    return end / 3600


def main() -> None:
    """Measure, simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--executors", nargs="+", default=["in-process", "processes", "ray"])
    given = parser.parse_args()
    for kind in given.executors:
        found = measure(kind, given.cells, given.workers)
        overhead, begin = found["cell_milliseconds"] / 1e3, found["begin_seconds"]
        hours = {n: round(simulate(1000, 120, n, begin, overhead), 2) for n in (1, 10, 100)}
        machines = 100
        while machines < 1000 and simulate(1000, 120, 2 * machines, begin, overhead) < (
            0.8 * simulate(1000, 120, machines, begin, overhead)
        ):
            machines *= 2
        rounded = {name: round(value, 2) for name, value in found.items()}
        print(json.dumps({"executor": kind, **rounded, "hours": hours, "scales_to": machines}))


if __name__ == "__main__":
    main()
