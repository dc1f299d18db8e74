"""The trackers: each writes a run into a folder, in its library's own local form."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np

from .run_record import RunRecord, as_text

#: The experiment of MLflow and the project of Weights & Biases that runs stand in.
_PROJECT = "pyimgano"
# MLflow takes no more in one request, and no longer parameter.
_MOST_METRICS, _MOST_PARAMETERS, _LONGEST_PARAMETER = 1000, 100, 6000


def _log_to_mlflow(record: RunRecord, folder: Path) -> None:
    """Log to an SQLite store: `mlflow.db` in the folder, with the files in `artifacts` beside it.

    MLflow's store of plain files is no longer kept up by its makers, who refuse it by default.
    """
    silent = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with ExitStack() as stack:
        stack.enter_context(_environment(silent))
        mlflow = import_module("mlflow")  # which sets its loggers up
        entities = import_module("mlflow.entities")
        stack.enter_context(_quiet("mlflow", "alembic"))
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').as_posix()}")
        experiment = client.get_experiment_by_name(_PROJECT)
        number = (
            client.create_experiment(_PROJECT, (folder / "artifacts").as_uri())
            if experiment is None
            else experiment.experiment_id
        )
        began, ended = _milliseconds(record.started_at), _milliseconds(record.finished_at)
        run = client.create_run(
            number, start_time=began, tags={"status": record.status}, run_name=record.name
        )
        key = run.info.run_id
        parameters = [
            entities.Param(name, _cut(as_text(value))) for name, value in record.parameters.items()
        ]
        for start in range(0, len(parameters), _MOST_PARAMETERS):
            client.log_batch(key, params=parameters[start : start + _MOST_PARAMETERS])
        metrics = [entities.Metric(name, value, ended, 0) for name, value in record.metrics.items()]
        for start in range(0, len(metrics), _MOST_METRICS):
            client.log_batch(key, metrics=metrics[start : start + _MOST_METRICS])
        for path in record.files:
            client.log_artifact(key, str(path))
        status = "FINISHED" if record.status == "complete" else "FAILED"
        client.set_terminated(key, status, ended)


def _log_to_tensorboard(record: RunRecord, folder: Path) -> None:
    """Write an event file into a new folder `<run>` of the folder, with the run's files beside it.

    Metrics are scalars, parameters stand under HPARAMS, pictures of the page under IMAGES, and
    report.json under TEXT.
    """
    tensorboard = import_module("torch.utils.tensorboard")
    summary = import_module("torch.utils.tensorboard.summary")
    target, number = folder / record.name, 2
    while target.exists():  # of another run of this name, or of this one logged before
        target, number = folder / f"{record.name}_{number}", number + 1
    with tensorboard.SummaryWriter(str(target)) as writer:
        for name, value in record.metrics.items():
            writer.add_scalar(name, value, 0)
        parameters = {
            name: value if isinstance(value, (bool, int, float)) else as_text(value)
            for name, value in record.parameters.items()
        }
        means = {name: v for name, v in record.metrics.items() if name.startswith("mean_metrics/")}
        # SummaryWriter.add_hparams would put them into a run of their own
        for one in summary.hparams(parameters, means or record.metrics):
            writer.file_writer.add_summary(one)
        writer.add_text("status", record.status)
        for name, data in record.pictures():
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            writer.add_image(f"pictures/{name}", image, dataformats="HWC")
        for path in record.files:
            shutil.copy(path, target / path.name)
            if path.suffix == ".json":
                text = path.read_text(encoding="utf-8")
                writer.add_text(path.name, f"```\n{text}\n```")


def _log_to_wandb(record: RunRecord, folder: Path) -> None:
    """Write an offline run below `wandb` in the folder, for `wandb sync` to send if it is called.

    Nothing is sent here, whatever the environment says. Its makers' caches, settings and logs,
    which would lie in the home folder, lie below the folder too.
    """
    own = folder / "wandb-cache"
    places = ("CACHE", "CONFIG", "DATA", "ARTIFACT")
    silent = {f"WANDB_{place}_DIR": str(own / place.lower()) for place in places}
    silent |= {"WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "offline"}
    there = "wandb" in sys.modules
    with _environment(silent), _quiet("wandb"):
        wandb = import_module("wandb")
        try:
            settings = wandb.Settings(
                console="off",
                silent=True,
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            )
            run = wandb.init(
                project=_PROJECT,
                name=record.name,
                dir=str(folder),
                mode="offline",
                config=record.parameters,
                reinit="create_new",  # one that the program has begun itself goes on
                settings=settings,
            )
            try:
                run.log(record.metrics)
                run.summary["status"] = record.status
                for path in record.files:
                    if path.suffix == ".html":
                        run.log({path.stem: wandb.Html(str(path), inject=False)})
                        continue
                    kept = Path(run.dir) / path.name  # save() would only link to the run's file
                    shutil.copy(path, kept)
                    run.save(str(kept), base_path=run.dir, policy="now")
            finally:
                run.finish(exit_code=0 if record.status == "complete" else 1)
        finally:
            if not there:  # the process that writes is of no further use
                wandb.teardown()


#: What logs a run into a folder, by the name of the tracker, its library and its extra.
TRACKERS: dict[str, Callable[[RunRecord, Path], None]] = {
    "mlflow": _log_to_mlflow,
    "tensorboard": _log_to_tensorboard,
    "wandb": _log_to_wandb,
}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for a while: the libraries read them when imported."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Let these loggers report nothing below warnings for a while."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def _milliseconds(moment: str | None) -> int:
    """Return a time of ISO 8601 in milliseconds since 1970; now, where it is not known."""
    when = datetime.now() if moment is None else datetime.fromisoformat(moment)
    return int(1000 * when.timestamp())


def _cut(text: str) -> str:
    """Return a parameter that MLflow takes; config.json, which is logged too, has all of it."""
    return text if len(text) <= _LONGEST_PARAMETER else f"{text[: _LONGEST_PARAMETER - 3]}..."
