"""`pyimgano weights`: list the published weights of backbones, and fetch them."""

from __future__ import annotations

from pathlib import Path

import click

from .console import Bar, print_document, print_error
from .groups import SuggestingGroup

_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(cls=SuggestingGroup, context_settings=_HELP)
def command() -> None:
    """List the published weights of backbones, and fetch them from their authors.

    \b
      pyimgano weights list
      pyimgano weights fetch dinov2_vits14
    """


@command.command("list", context_settings=_HELP)
def list_weights() -> int:
    """Print which weights are published, where, and under which licence, as JSON.

    \b
      pyimgano weights list
    """
    from ..backbones.published import PUBLISHED, fetched_file

    print_document(
        {
            name: {
                "url": one.url,
                "licence": one.licence,
                "sha256": one.sha256,
                "page": one.page,
                "file": str(fetched_file(name)),
                "fetched": fetched_file(name).is_file(),
            }
            for name, one in PUBLISHED.items()
        }
    )
    return 0


@command.command("fetch", context_settings=_HELP)
@click.argument("name")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write this file instead of the one in the user's cache.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be fetched, and fetch nothing.")
def fetch_weights(name: str, output: Path | None, dry_run: bool) -> int:
    """Fetch the published weights of the backbone NAME.

    \b
      pyimgano weights fetch dinov2_vits14

    Says on stderr what is fetched from where, how large it is, and under which licence, before it
    begins. What comes is kept only if its SHA-256 is the published one. The backbone of that name
    then finds its weights; a machine without internet can be given the file, at the same place or
    with --model-kwargs '{"weights": "FILE"}'. Prints what was fetched as JSON.

    Exit status: 0 done; 1 it cannot be fetched, or is not the published file; 2 usage.
    """
    from ..backbones.published import fetch

    facts: dict[str, object] = {}

    def tell(found: dict[str, object]) -> None:
        facts.update(found)
        size = found["bytes"]
        megabytes = f"{size / 1e6:.1f} MB" if isinstance(size, int) else "size unknown"
        print_error(
            f"{name}: {found['url']} ({megabytes}, licence {found['licence']}, SHA-256 "
            f"{found['sha256']}) to {found['file']}"
        )

    with Bar() as bar:
        fetch(
            name,
            to=output,
            tell=tell,
            progress=lambda done, size: bar.show(name, done, size),
            dry_run=dry_run,
        )
    print_document({**facts, "fetched": not dry_run})
    return 0
