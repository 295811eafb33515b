"""Structured logs: events with fields, for people on a console or as JSON lines."""

from __future__ import annotations

import sys

import structlog

from motley.errors import MotleyError


def configure_logs(style: str) -> None:
    """Send structlog events to stderr, `console` or `json`; raise MotleyError on another style."""
    if style not in ("console", "json"):
        raise MotleyError(f"--log-format {style!r}: expected console or json")
    renderer: structlog.types.Processor = structlog.processors.JSONRenderer()
    if style == "console":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
