"""Where the node's log goes and what a line looks like: for people, or one JSON object a line.

Modules log through `logging.getLogger("tilework.…")` with facts in `extra`, never in the text. Keys, passwords and
file contents are never logged.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler

from consensus.errors import Refusal
from node.config import Log

FILE_BYTES = 16 << 20
FILES_KEPT = 3

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has; what is beyond them came in `extra`."""


class LogError(Refusal):
    """The log cannot be written where it should."""


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", …facts, "exception"?}`, one line. Time is UTC, RFC 3339."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update((name, value) for name, value in _facts(record).items() if name not in line)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`time level logger: message (fact=value …)`; an exception follows on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={_short(value)}" for name, value in _facts(record).items())
        name = record.name.removeprefix("tilework.")
        # A peer's words may stand in a fact: a line of the log stays one line.
        message = " ".join(record.getMessage().splitlines())
        text = f"{_time(record)} {record.levelname.lower():<7} {name}: {message}{f' ({facts})' if facts else ''}"
        return text + "\n" + self.formatException(record.exc_info) if record.exc_info else text


def configure(config: Log) -> None:
    """Send everything that is logged in this process to stderr, or to the configured file. Raises `LogError`."""
    handler: logging.Handler
    if config.file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            config.file.parent.mkdir(parents=True, exist_ok=True)
            handler = RotatingFileHandler(
                config.file, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8", errors="backslashreplace"
            )
        except OSError as error:
            message = f"cannot write the log to {config.file}: {error.strerror}"
            raise LogError("log", message, "choose another --log-file") from None
    handler.setFormatter(JsonFormatter() if config.format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=config.level.upper(), force=True)
    for noisy in ("asyncio", "numba"):  # their debug lines are about themselves
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _short(value: object) -> str:
    text = " ".join(str(value).splitlines())
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text
