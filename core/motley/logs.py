"""Structured logs of both daemons: events with fields on standard error, for people or as JSON."""

from __future__ import annotations

import logging
import sys
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
