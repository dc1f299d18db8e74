"""`pyimgano-datasets`: what datasets there are, and whether one is as it should be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import Bar, plain, print_document, print_error, print_text
from .groups import SuggestingGroup
from .options import SharedOption, bit_depth_option, max_pixels_option

if TYPE_CHECKING:
    from ..datasets import CategoryCheck, DatasetCheck, Finding

#: Findings of one category that are listed; --json has all of them.
_LISTED = 50


@click.group(cls=SuggestingGroup, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Look datasets over before anything is fitted on them.

    \b
      pyimgano datasets list
      pyimgano datasets check --dataset custom --root photos
    """


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_command(*, as_json: bool) -> int:
    """Print the names that --dataset takes.

    \b
      pyimgano datasets list
    """
    from ..datasets import list_datasets

    names = list_datasets()
    if as_json:
        print_document(names)
    else:
        print_text("\n".join(plain(name) for name in names))
    return 0


@command.command("check")
@click.option("--dataset", cls=SharedOption, required=True)
@click.option("--root", cls=SharedOption, type=click.Path(path_type=Path))
@click.option("--category", default="all", show_default=True, help="Check one category, or all.")
@click.option("--split", help="Which of the authors' splits to check, as for pyimgano benchmark.")
@click.option("--allow-outside", cls=SharedOption, is_flag=True)
@click.option(
    "--deep/--quick",
    default=True,
    show_default=True,
    help="Decode every image, which finds damage inside files, images that are copies of others "
    "without being the same file, and test images of another format, camera or colour than the "
    "training images; or read headers alone.",
)
@bit_depth_option
@max_pixels_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all findings.")
def check_command(
    *,
    dataset: str,
    root: Path | None,
    category: str,
    split: str | None,
    allow_outside: bool,
    deep: bool,
    bit_depth: int | None,
    max_pixels: int | None,
    as_json: bool,
) -> int:
    """Count what a dataset holds, and list what is wrong with it, file by file.

    \b
      pyimgano datasets check --dataset custom --root photos
      pyimgano datasets check --dataset mvtec --root /data/mvtec --category bottle

    Errors are files that are missing, unreadable or empty, masks that do not go with their image,
    images that are in train and in test alike, and images that lie where the dataset is not read
    from. Remarks are what is worth knowing: what was taken for what in folders of your own,
    copies, and test images that were made in another way than the training images.

    Exit status: 0 no errors; 1 there are some; 2 usage.
    """
    from ..datasets import check_dataset
    from ..images import limited_pixels

    with limited_pixels(max_pixels), Bar() as bar:
        checked = check_dataset(
            dataset,
            root,
            category=category,
            split=split,
            allow_outside=allow_outside,
            deep=deep,
            bit_depth=bit_depth,
            progress=bar.show,
        )
    if as_json:
        print_document({**checked.model_dump(), "errors": checked.errors})
    else:
        print_text("\n".join([_table(checked), *_findings(checked)]))
    if checked.errors:
        print_error(f"{checked.errors} error{'s' * (checked.errors > 1)} found")
    return 1 if checked.errors else 0


def _table(checked: DatasetCheck) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    counts = ("train", "validation", "good", "defective", "unlabelled", "masks")
    shown = [name for name in counts if any(getattr(one, name) for one in checked.categories)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("category", no_wrap=True)
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("sizes", "modes", "errors"):
        table.add_column(name, justify="right" if name == "errors" else "left", no_wrap=True)
    for one in checked.categories:
        table.add_row(
            Text(plain(one.name)),
            *(str(getattr(one, name)) for name in shown),
            _sizes(one),
            ", ".join(f"{mode} {count}" for mode, count in one.modes.items()),
            str(sum(found.error for found in one.findings)),
        )
    # as wide as it needs: a table cut to the terminal's width would hide what it is for
    console = Console(width=max(250, Console().width))
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def _sizes(one: CategoryCheck) -> str:
    sizes = list(one.sizes)
    if len(sizes) <= 3:
        return ", ".join(sizes)
    area = {size: int(size.split("x")[0]) * int(size.split("x")[1]) for size in sizes}
    ordered = sorted(sizes, key=lambda size: area[size])
    return f"{len(sizes)} sizes, {ordered[0]} to {ordered[-1]}"


def _findings(checked: DatasetCheck) -> list[str]:
    lines = [plain(_finding(found)) for found in checked.findings]
    for one in checked.categories:
        lines += [plain(f"{one.name}: {_finding(found)}") for found in one.findings[:_LISTED]]
        if len(one.findings) > _LISTED:
            rest = len(one.findings) - _LISTED
            lines.append(plain(f"{one.name}: and {rest} more; --json has all of them"))
    return lines


def _finding(found: Finding) -> str:
    level = "error" if found.error else "remark"
    return f"{level}: {found.kind}: {found.path}: {found.message}"
