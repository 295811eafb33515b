"""Structured logs of both daemons: events with fields on standard error, for people or as JSON."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from enum import Enum

import structlog


class LogFormat(str, Enum):
    """How events are written."""

    CONSOLE = "console"
    JSON = "json"


def configure(log_format: LogFormat, level: int = logging.INFO) -> None:
    """Write events of a level and above to standard error."""
    renderer: structlog.typing.Processor
    if log_format is LogFormat.JSON:
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
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


@contextlib.contextmanager
def listened_to(listener: structlog.typing.Processor) -> Iterator[None]:
    """Hand every event to `listener` too, just before it is written; from any thread."""
    processors = structlog.get_config()["processors"]
    # In place: loggers that were used before hold this very list.
    processors.insert(len(processors) - 1, listener)
    try:
        yield
    finally:
        processors.remove(listener)
