"""Where people read what others said: it is no markup, and commands no terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from motley.logs import in_words


class PlainConsole(Console):
    """Prints strings as they are, cells of tables too, a line each; styles come as `Text` alone.

    Names, reasons and what a device says of itself come from others, and hold what they like:
    square brackets, which rich takes for markup, and a terminal's commands.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "markup": False, "emoji": False})

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return a string as rich prints it: every string comes by here."""
        # A table hands on what its options say of markup; those of this console count.
        return super().render_str(
            str(in_words(text)), **{**settings, "markup": False, "emoji": False}
        )


class WholeTable(Table):
    """A table that cuts nothing off: words fold where a terminal is narrow, ids stay in one line.

    An id is there to be copied into the next command.
    """

    def add_column(self, header: Any = "", *more: Any, **settings: Any) -> None:
        """Add a column, as rich does."""
        whole = {"overflow": "fold", "no_wrap": header == "id"}
        super().add_column(header, *more, **{**whole, **settings})
