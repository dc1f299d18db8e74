"""Runs cells as tasks of a Ray cluster: one that runs already, or one made on this machine.

Ray's usage statistics are off by our setting, in this process and in the tasks. A task whose
process dies is begun again by Ray. A node that does not see a path which a cell reads is not given
such cells any more, and one whose own disk is full is given none. Where a node sees the directory
of the sweep, its cells are written there; else they are sent back through Ray's object store.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError, UsageError
from ...memory import one_line
from ...runs import write_bytes
from ...runs.sweep_schema import CellOutcome, SweepResources
from ...threads import available_cores
from ...untrusted_files import parse_json, read_regular
from ..cell import Job, is_full, outcome_of
from ..folder import SweepFolder
from .executor import ATTEMPTS, RUN_CELL, attempt, find_work

if TYPE_CHECKING:
    from typing_extensions import Self

# Tasks that Ray is given at a time; more would only lie in this process's memory.
_WINDOW = 1000
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0"}


class RayCluster:
    """Runs cells as tasks of a Ray cluster.

    Parameters
    ----------
    resources
        What each task is given.
    folder
        The directory of the sweep.
    address
        Of a cluster; by default one is started on this machine, and ended with the `with` block.
    workers
        How many cells run at a time; by default as many as the cluster has room for.
    dashboard
        Whether a cluster that is started here has its dashboard.
    work
        What the tasks do, as `module:function`.
    """

    def __init__(
        self,
        resources: SweepResources,
        folder: Path,
        *,
        address: str | None = None,
        workers: int | None = None,
        dashboard: bool = False,
        work: str = RUN_CELL,
    ) -> None:
        self._resources, self._folder = resources, SweepFolder(folder.absolute())
        self._address, self._workers, self._dashboard = address, workers, dashboard
        self._work = work
        # a node that sees this file writes into the sweep's own directory
        self._sign = self._folder.path / f".seen-by-all.{secrets.token_hex(8)}"
        # nodes that do not see a dataset, by its root; under None those whose own disk is full
        self._unfit: dict[str | None, set[str]] = {None: set()}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        os.environ.update(_SETTINGS)  # before Ray is imported, which reads it then
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                f"the executor ray needs Ray (pip install 'pyimgano[ray]'): {error}"
            ) from error
        self._ray: Any = ray
        with contextlib.ExitStack() as opening:
            # Ray prints what happened to processes on stdout, where results belong
            opening.enter_context(contextlib.redirect_stdout(sys.stderr))
            opening.callback(self._remove_sign)
            self._sign.touch()
            if not ray.is_initialized():
                opening.callback(ray.shutdown)
                self._begin()
            self._require_room()
            self._open = opening.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _remove_sign(self) -> None:
        with contextlib.suppress(OSError):
            self._sign.unlink(missing_ok=True)

    def run(self, jobs: Iterable[Job]) -> Iterator[CellOutcome]:
        """Yield the outcome of each job, once, as they end."""
        ray = self._ray
        remote = ray.remote(_on_node)
        waiting = iter(jobs)
        window = _WINDOW if self._workers is None else self._workers
        running: dict[Any, Job] = {}
        again: list[Job] = []
        while True:
            for job in [*again, *islice(waiting, max(0, window - len(running) - len(again)))]:
                running[self._submit(remote, job)] = job
            again = []
            if not running:
                return
            (done,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(done)
            try:
                outcome, node, sent = ray.get(done)
            except ray.exceptions.RayError as error:  # its process or its node died, too often
                why = f"its task died, {ATTEMPTS} times ({one_line(error)})"
                yield outcome_of(job.cell.name, "failed", why, host=None, attempts=ATTEMPTS)
                continue
            found = CellOutcome.model_validate_json(outcome)
            if sent:
                self._unpack(job.cell.name, sent)
            if found.trouble == "path" or (found.trouble == "disk" and sent is not None):
                key = self._root(job) if found.trouble == "path" else None
                self._unfit.setdefault(key, set()).add(node)
                if any(one["NodeID"] not in self._unfit_for(job) for one in self._nodes()):
                    warnings.warn(f"{found.why}; other nodes take its cells", stacklevel=2)
                    again.append(job)
                    continue
            yield found

    def _submit(self, remote: Any, job: Job) -> Any:
        options: dict[str, Any] = {
            "name": job.cell.name,  # by which the dashboard and `ray list tasks` show it
            "num_cpus": self._resources.cpus,
            "num_gpus": self._resources.gpus,
            "memory": int(self._resources.memory_gib * 2**30),
            "max_retries": ATTEMPTS - 1,
            "runtime_env": {"env_vars": _SETTINGS},
        }
        unfit = self._unfit_for(job)
        if unfit:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(unfit))})"}
        threads = max(1, int(self._resources.cpus))
        sent = job.model_copy(update={"threads": threads})
        task = remote.options(**options)
        return task.remote(sent.model_dump_json(), self._work, str(self._sign))

    def _begin(self) -> None:
        """Connect to the cluster, or start one; handlers of signals stay as they are."""
        ray = self._ray
        how: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if self._address is None:
            how |= {"include_dashboard": self._dashboard, "num_cpus": available_cores()}
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM) if main else None
        try:
            # "local", or Ray would join whatever cluster was last begun on this machine
            context = ray.init(self._address or "local", **how)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = self._address or "on this machine"
            raise DataError(f"Ray cluster {where}: cannot be used ({one_line(error)})") from error
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)
        facts = context.address_info if hasattr(context, "address_info") else {}
        session = facts.get("session_dir")
        said = [f"address: {facts.get('address') or self._address}"]
        said += [f"logs of Ray: {session}/logs"] if session else []
        url = getattr(context, "dashboard_url", None)
        said += [f"dashboard: http://{url}"] if url else []
        (self._folder.path / "logs" / "ray.txt").write_text("\n".join(said) + "\n")

    def _nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that could hold a cell if nothing else ran there."""
        wanted = self._resources
        return [
            one
            for one in self._ray.nodes()
            if one["Alive"]
            and one["Resources"].get("CPU", 0) >= wanted.cpus
            and one["Resources"].get("GPU", 0) >= wanted.gpus
            and one["Resources"].get("memory", 0) >= wanted.memory_gib * 2**30
        ]

    def _root(self, job: Job) -> str:
        return str(job.cell.options.get("root"))

    def _unfit_for(self, job: Job) -> set[str]:
        """Return the nodes that a job is not given to."""
        return self._unfit.get(self._root(job), set()) | self._unfit[None]

    def _require_room(self) -> None:
        if self._nodes():
            return
        wanted = self._resources
        said = (
            f"a cell is to have {wanted.cpus:g} CPUs, {wanted.gpus:g} GPUs and "
            f"{wanted.memory_gib:g} GiB (resources), and no node of the Ray cluster has as much"
        )
        if self._address is None:
            raise UsageError(said)
        warnings.warn(f"{said}; cells wait for one that has", stacklevel=3)

    def _unpack(self, cell: str, data: bytes) -> None:
        """Put what a node has sent of a cell where the cell belongs."""
        folder = self._folder
        beside = folder.path / f".{cell}.{secrets.token_hex(4)}.tmp"
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                archive.extractall(beside)  # which leads no name out of the folder
            if (beside / "log").exists():
                (beside / "log").replace(folder.log(cell))
            if (beside / "run").exists():
                folder.clear(cell)
                _say_where(beside / "run" / "report.json", folder.run_dir(cell))
                (beside / "run").replace(folder.run_dir(cell))
        except OSError as error:
            raise DataError(f"{folder.path}: cannot be written ({error.strerror})") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def _on_node(plain: str, work: str, sign: str) -> tuple[str, str, bytes | None]:
    """Do a job on a node; return its outcome, the node, and its files where they are to be sent."""
    import ray

    context = ray.get_runtime_context()
    node = context.get_node_id()
    place = f"Ray node {node}, worker {context.get_worker_id()}, task {context.get_task_id()}"
    job = Job.model_validate_json(plain).model_copy(update={"place": place})
    done = find_work(work)
    if Path(sign).exists():
        return attempt(done, job).model_dump_json(), node, None
    try:
        with tempfile.TemporaryDirectory(prefix="pyimgano-sweep-") as local:
            folder = SweepFolder(local)
            folder.make()
            outcome = attempt(done, job.model_copy(update={"folder": local}))
            return outcome.model_dump_json(), node, _packed(job.cell.name, folder)
    except (OSError, DataError) as error:  # a disk that is full
        why = f"{platform.node()}: {error}"
        trouble = "disk" if is_full(error) else None
        failed = outcome_of(job.cell.name, "failed", why, trouble=trouble)
        return failed.model_dump_json(), node, b""


def _packed(cell: str, folder: SweepFolder) -> bytes:
    """Return the run directory and the log of a cell as a zip archive."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if folder.log(cell).exists():
            archive.write(folder.log(cell), "log")
        run = folder.run_dir(cell)
        for path in sorted(run.rglob("*")):  # folders too, also those that are empty
            archive.write(path, Path("run") / path.relative_to(run))
    return data.getvalue()


def _say_where(report: Path, run_dir: Path) -> None:
    """Let a report that was written elsewhere name the run directory that it lies in now."""
    try:
        document = parse_json(read_regular(report))
    except (OSError, ValueError):  # a cell that failed before it had one
        return
    document["run_dir"] = str(run_dir)
    write_bytes(report, (json.dumps(document, indent=2) + "\n").encode())
