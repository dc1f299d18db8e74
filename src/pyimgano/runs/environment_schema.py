"""environment.json and files.json: what a run was made with, and of what."""

from __future__ import annotations

from pydantic import Field

from .schema import SCHEMA_VERSION, Model, Plain, Text


class Cpu(Model):
    """The processor, and how much of it was used."""

    model: str
    cores: int | None = Field(description="logical ones of the machine")
    usable: int = Field(description="that the process may use")
    threads: int = Field(description="used; results do not depend on it")


class ResumedSession(Model):
    """One time that a run was taken up again."""

    at: str = Field(description="ISO 8601 with offset")
    command_line: list[Text] | None
    differs: list[Text] = Field(description="from before, passed over with --force")


class EnvironmentDocument(Model):
    """environment.json: all that results depend on besides config.json, and where it ran.

    Of the process that began the run. Environment variables are not in it.
    """

    schema_version: int = SCHEMA_VERSION
    started_at: str = Field(description="ISO 8601 with offset")
    pyimgano_version: str
    code_sha256: str = Field(description="of the package's own source files")
    git_commit: str | None = Field(
        description="of the working tree that the package lies in; null for an installed one"
    )
    python: str
    packages: dict[str, str] = Field(description="versions, by the names of PyPI")
    system: str
    machine: str
    cpu: Cpu
    device: str = Field(description="where it ran, which `auto` does not tell")
    engine: str | None = Field(description="that runs the network; null if there is none")
    backbone: Plain | None
    weights_sha256: str | None = Field(
        description="of the backbone's weights file; of random weights and timm's, of the numbers"
    )
    roi_sha256: str | None = Field(description="of the region of interest")
    files_sha256: dict[str, str] = Field(
        default={}, description="of other files and folders that the detector's keywords name"
    )
    working_folder: Text
    command_line: list[Text] | None = Field(description="null unless it is a command of pyimgano")
    dataset_fingerprints: dict[Text, str] = Field(
        description="by category, as in its files.json; of those that were begun"
    )
    resumed: list[ResumedSession]


class UsedFile(Model):
    """One file of the dataset that a category was measured on."""

    path: Text = Field(description="from the dataset's root, with /")
    use: Text = Field(description="train, validation, mask, or test with its label and defect")
    size: int | None = Field(description="bytes; null if it could not be read")
    mtime_ns: int | None = Field(description="no part of the fingerprint")
    sha256: str | None


class FilesDocument(Model):
    """files.json: the files that a category was measured on."""

    schema_version: int = SCHEMA_VERSION
    fingerprint: str = Field(description="SHA-256 over path, use, size and sha256 of every file")
    files: list[UsedFile] = Field(description="sorted by path")
