"""Structured logs of both daemons: events with fields on standard error, for people or as JSON."""

from __future__ import annotations

import contextlib
import logging
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence, Set
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import structlog


class LogFormat(str, Enum):
    """How events are written."""

    CONSOLE = "console"
    JSON = "json"


def configure(log_format: LogFormat, level: int = logging.INFO) -> None:
    """Write events of a level and above to standard error."""
    import structlog  # here, not above: a command that only asks does without

    renderer: structlog.typing.Processor
    if log_format is LogFormat.JSON:
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = _ForPeople(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


class _ForPeople:
    """Writes an event with its fields as words: no lists, no line breaks but a stack trace's."""

    def __init__(self, renderer: structlog.typing.Processor) -> None:
        self._renderer = renderer

    def __call__(
        self,
        logger: structlog.typing.WrappedLogger,
        method: str,
        fields: structlog.typing.EventDict,
    ) -> structlog.typing.ProcessorReturnValue:
        """Return the line."""
        traces = ("exception", "stack")
        words = {name: v if name in traces else in_words(v) for name, v in fields.items()}
        return self._renderer(logger, method, words)


def in_words(value: object) -> object:
    """Return a field as people read it: `a, b` of a list, `name value` of a mapping, one line.

    >>> in_words({"accuracy": 0.944444, "loss": 0.25})
    'accuracy 0.9444, loss 0.25'
    >>> in_words("not valid:\\n  run.rounds: missing\\n  clients: missing")
    'not valid: run.rounds: missing; clients: missing'
    """
    if isinstance(value, str):
        value = printable(value.replace("\r\n", "\n").replace("\r", "\n"))
        lines = [line.strip() for line in value.splitlines()]
        if len(lines) < 2:
            return value.rstrip("\n")
        return "; ".join(filter(None, lines)).replace(":; ", ": ")
    if isinstance(value, Mapping):
        return ", ".join(f"{in_words(name)} {_word(one)}" for name, one in value.items())
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes):
        return ", ".join(map(_word, value))
    return value


def printable(text: str) -> str:
    """Return a text with its terminal's commands, which others may have sent, written out.

    >>> printable("no [red] here\x1b[2J")
    'no [red] here\\x1b[2J'
    """
    return "".join(c if _is_shown(c) else repr(c)[1:-1] for c in text)


def _is_shown(character: str) -> bool:
    """Tell whether a terminal only shows it: spaces of all kinds too, and what joins emoji."""
    if character.isprintable() or character in "\n\t\u200d":
        return True
    return unicodedata.category(character) == "Zs"


def _word(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(in_words(value))


@contextlib.contextmanager
def listened_to(listener: structlog.typing.Processor) -> Iterator[None]:
    """Hand every event to `listener` too, just before it is written; from any thread."""
    import structlog

    processors = structlog.get_config()["processors"]
    # In place: loggers that were used before hold this very list.
    processors.insert(len(processors) - 1, listener)
    try:
        yield
    finally:
        processors.remove(listener)
