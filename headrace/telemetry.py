"""Logs of the processes: one line per event on standard error, as `key=value` fields."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

__all__ = ["configure_logging", "get_logger"]


def configure_logging(process: str, level: int = logging.INFO) -> None:
    """Send this process's logs to standard error: coloured in a terminal, logfmt elsewhere."""
    terminal = sys.stderr.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if terminal
        else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "process", "event"])
    )
    plain: list[Any] = [] if terminal else [structlog.processors.format_exc_info, _one_line]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *plain,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(process=process)
    root = logging.getLogger()
    if not any(isinstance(handler, _Forward) for handler in root.handlers):
        root.addHandler(_Forward(logging.WARNING))


class _Forward(logging.Handler):
    """What libraries log through the standard library, as lines like our own."""

    def emit(self, record: logging.LogRecord) -> None:
        trace = {"exc_info": record.exc_info} if record.exc_info else {}
        get_logger().log(record.levelno, record.getMessage(), logger=record.name, **trace)


def get_logger() -> Any:
    """A logger: `log.info("what happened", field=value)`."""
    return structlog.get_logger()


def _one_line(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Fields without line breaks, so that a line is one event."""
    return {key: value.replace("\n", "\\n") if isinstance(value, str) else value for key, value in event.items()}
