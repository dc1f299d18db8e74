"""Groups of subcommands that help: alone with their help, and on a typing error with near names."""

from __future__ import annotations

import click

from ..errors import unknown_name


class SuggestingGroup(click.Group):
    """A group whose error for an unknown subcommand names the near ones, or all.

    Without any word it shows its help, and `help NAME` shows that of a subcommand.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        asks_for_help = args[:1] == ["help"] and self.get_command(ctx, "help") is None
        words = [*args[1:], "--help"] if asks_for_help else args
        return super().parse_args(ctx, words or ["--help"])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise click.UsageError(unknown_name("command", name, self.list_commands(ctx)), ctx)
        return super().resolve_command(ctx, args)
