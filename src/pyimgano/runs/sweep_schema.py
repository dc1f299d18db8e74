"""The documents of a sweep: what is asked for, sweep.json, and how each cell ended."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Strict

from .schema import Model, Number, Plain, Text

_Seed = Annotated[int, Strict(), Field(ge=0, le=2**63 - 1)]
CellStatus = Literal["complete", "failed", "interrupted", "running", "not begun"]


def _named(key: str) -> BeforeValidator:
    """Let a name alone stand for an entry that says nothing else."""
    return BeforeValidator(lambda one: {key: one} if isinstance(one, str) else one)


class SweepDataset(Model):
    """A dataset of a sweep, and which of its categories."""

    dataset: str = Field(description="The layout of the dataset, as for pyimgano benchmark.")
    name: str | None = Field(
        None, description="What tables call the dataset. By default its layout."
    )
    root: str | None = Field(
        None,
        description="Folder of the dataset, which every machine has to see at this path. A "
        "relative path starts at the folder of the sweep file.",
    )
    categories: list[str] | Literal["all"] = Field(
        "all", description="The categories to run, or all."
    )
    split: str | None = Field(None, description="Which of the authors' splits to use.")


class SweepModel(Model):
    """A model of a sweep with its settings."""

    model: str = Field(description="Name of the detector.")
    label: str | None = Field(
        None, description="What tables call it. By default the model with its settings."
    )
    preset: str | None = Field(
        None, description="Preset of this model; the list `presets` then does not apply to it."
    )
    model_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further keywords of the model."
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of pyimgano benchmark for this model alone, such as resize.",
    )


class SweepCell(SweepModel):
    """One cell of a sweep that is a list instead of a grid."""

    dataset: str = Field(description="The layout of the dataset.")
    name: str | None = Field(None, description="What tables call the dataset.")
    root: str | None = Field(None, description="Folder of the dataset.")
    category: str = Field(description="The category.")
    split: str | None = Field(None, description="Which of the authors' splits to use.")
    seed: _Seed = Field(0, description="Seed of the random number generators.")


class SweepResources(Model):
    """What one cell is given; so many cells run at a time as have room."""

    cpus: float = Field(default=1.0, gt=0, description="Cores of a cell.")
    gpus: float = Field(
        default=0.0,
        ge=0,
        description="GPUs of a cell, of which it may have a fraction; Ray alone counts them.",
    )
    memory_gib: float = Field(default=2.0, gt=0, description="Memory that a cell may take, in GiB.")


def _none() -> list[str | None]:
    return [None]


class SweepFile(Model):
    """What a sweep file asks for: every combination of its lists, and single cells besides."""

    datasets: list[Annotated[SweepDataset, _named("dataset")]] = Field(
        default_factory=list, description="Datasets with their categories."
    )
    models: list[Annotated[SweepModel, _named("model")]] = Field(
        default_factory=list, description="Models with their settings."
    )
    presets: list[str | None] = Field(
        default_factory=_none,
        description="Run every model with each of these presets; null is none.",
        min_length=1,
    )
    backbones: list[str | None] = Field(
        default_factory=_none,
        description="Run every model that has a backbone with each of these; null is its default.",
        min_length=1,
    )
    seeds: list[_Seed] = Field(
        default_factory=lambda: [0], description="Run every model with each seed.", min_length=1
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of pyimgano benchmark for all cells, by their names in Python.",
    )
    cells: list[SweepCell] = Field(
        default_factory=list, description="Cells that are listed one by one."
    )
    resources: SweepResources = Field(SweepResources(), description="What one cell is given.")


class PlannedCell(Model):
    """A cell as sweep.json has it: one model on one category with one seed."""

    name: str = Field(description="of its folder in `cells`; the same options give the same name")
    dataset: Text = Field(description="what tables call the dataset")
    category: Text
    method: Text = Field(description="the model with its settings, as tables call it")
    model: str
    preset: str | None
    backbone: str | None
    seed: int
    options: Plain = Field(description="keywords of run_benchmark")


class SweepDocument(Model):
    """sweep.json: the cells of a sweep, as they were planned."""

    schema_version: int = 1
    kind: Literal["sweep"] = "sweep"
    pyimgano_version: str
    started_at: str = Field(description="ISO 8601 with offset")
    resources: SweepResources
    modules: list[str] = Field(description="modules that register further models")
    shard: str | None = Field(None, description="k/n where only these cells are run here")
    cells: list[PlannedCell]
    notes: list[Text] = Field(default_factory=list)


class CellOutcome(Model):
    """outcomes/<cell>.json: how a cell ended, and where."""

    schema_version: int = 1
    cell: str
    status: CellStatus
    why: Text | None = Field(None, description="what went wrong, in one line")
    host: Text | None = Field(None, description="the machine that it ran on")
    pid: int | None = None
    started_at: str | None = Field(None, description="ISO 8601 with offset")
    seconds: Number | None = None
    trouble: Literal["path", "disk"] | None = Field(
        None,
        description="what was wrong with the machine and not with the cell: it did not see a path "
        "that the cell reads, or its disk was full",
    )
    attempts: int = Field(1, description="how often it was begun, after processes that died")


class SweepCellRow(Model):
    """A cell in the table of a sweep."""

    cell: str
    dataset: Text
    category: Text
    method: Text
    model: str
    preset: str | None
    backbone: str | None
    seed: int
    status: CellStatus
    why: Text | None
    host: Text | None
    run_dir: Text | None = Field(description="null where it has left none")
    log: Text | None = Field(description="what it printed")
    unreadable: int = Field(description="test images that could not be read")
    metrics: dict[str, Number | None] = Field(description="null where it is not known")
    costs: dict[str, Number | None] = Field(description="seconds, milliseconds and bytes")


class SweepMethodRow(Model):
    """A method on one category, or on all of a dataset, over its seeds."""

    dataset: Text
    category: Text | None = Field(description="null for the mean over the categories")
    method: Text
    seeds: int = Field(description="how many seeds have results in every category of the row")
    asked: int = Field(description="how many seeds were asked for")
    means: dict[str, Number | None] = Field(description="over the seeds")
    deviations: dict[str, Number | None] = Field(
        description="sample standard deviation over the seeds (n - 1); null for fewer than two"
    )
    rank: Number | None = Field(
        description="1 is the best, ties shared; of all categories the mean of the ranks in each; "
        "null where it lacks a cell"
    )


class SweepTableDocument(Model):
    """table.json: every cell, and means, deviations and ranks."""

    schema_version: int = 1
    kind: Literal["sweep-table"] = "sweep-table"
    metric: str = Field(description="which ranks")
    cells: list[SweepCellRow]
    methods: list[SweepMethodRow]
    notes: list[Text]
