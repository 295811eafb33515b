"""Reading the record beside the engine: whoever looks at runs never makes a round wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from fedserver.rounds.engine import Engine
from fedserver.storage.database import DatabaseThread, open_reader

P = ParamSpec("P")
T = TypeVar("T")


class Reader:
    """Runs questions of `view.py` and its like on a thread and a connection of its own."""

    def __init__(self, root: Path, engine: Engine) -> None:
        """Make a reader of a data directory whose database is open; `engine` is the one at work."""
        self._live, self._sql = engine, open_reader(root)
        self._thread = DatabaseThread("reader")
        self._view = Engine(
            self._sql,
            engine.presence,
            payload_path=engine.payload_path,
            mappings={},
            clock=engine.clock,
        )

    async def __call__(
        self, question: Callable[Concatenate[Engine, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what `question(engine, ...)` returns."""
        # What the engine at work keeps in memory alone.
        self._view.deadlines = dict(self._live.deadlines)
        self._view.trouble = self._live.trouble
        return await self._thread(question, self._view, *args, **kwargs)

    def close(self) -> None:
        """Finish what was asked and close the connection."""
        self._thread.close()
        self._sql.dispose()
