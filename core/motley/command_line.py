"""What the command lines of both programs have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

F = TypeVar("F", bound=Callable[..., Any])


class _PlainFlags:
    """Shows options that take no value as such: typer may write `<bool>` behind them."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return arguments and options, --help among them."""
        found: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for option in found:
            if getattr(option, "is_flag", False):
                option.metavar = ""
        return found


class _Command(_PlainFlags, TyperCommand):
    pass


class _Group(_PlainFlags, TyperGroup):
    pass


class Program(typer.Typer):
    """A command line, or a group of its commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=_Group, **settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[F], F]:
        """Return a decorator that adds a command."""
        return super().command(name, cls=_Command, **settings)
