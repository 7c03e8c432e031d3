"""Logs as one JSON object a line, each with the id of the request that it belongs to."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Literal

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
REQUEST_ID_HEADER = "X-Request-ID"
_request_id: ContextVar[str] = ContextVar("lasro_request_id", default="")
_KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_encoded = json.JSONEncoder(ensure_ascii=False, default=str).encode


def request_id() -> str:
    """The id of the request that this task answers; empty outside a request."""
    return _request_id.get()


def set_request_id(value: str) -> None:
    """Set the request id for this task and for tasks started from it."""
    _request_id.set(value)


def new_request_id() -> str:
    return secrets.token_hex(16)


class JsonFormatter(logging.Formatter):
    """`time` (UTC), `level`, `logger`, `message`, then `request_id`, `exception` and what came as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03d}+00:00",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identity := request_id():
            line["request_id"] = identity
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        about = vars(record)
        line |= {key: about[key] for key in sorted(about.keys() - _KNOWN)}
        return _encoded(line)


@lru_cache(2)
def _second(timestamp: int) -> str:
    """The time in UTC, formatted once a second: formatting takes as long as encoding a line."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def set_up_logs(level: str, form: Literal["json", "text"]) -> None:
    """Send the logs of this process to stderr, those of other libraries included."""
    # No format here shows these, nor the line that logs, and to find them out costs half of what a line costs.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # pyright: ignore[reportAttributeAccessIssue] - the way that logging's HOWTO names
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(form))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name in ("httpx", "httpcore"):  # they log every request with its URL and headers
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def logs_in_file(path: Path, names: Sequence[str], level: str, form: Literal["json", "text"]) -> Iterator[None]:
    """Send what these loggers get to a file while inside, and nowhere else: of a service that is a thread."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(_formatter(form))
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level.upper())
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (old_level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = propagate
        handler.close()


def _formatter(form: Literal["json", "text"]) -> logging.Formatter:
    return JsonFormatter() if form == "json" else logging.Formatter(TEXT_FORMAT)
