"""Log lines, for people and for programs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.config import Log
from node.log import JsonFormatter, LogError, TextFormatter, configure


@pytest.fixture
def root() -> Iterator[None]:
    """The root logger as it was."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    logger.handlers.clear()
    yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.level = handlers, level


def record(message: str, **facts: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "tilework.chain", "levelno": 20, "levelname": "INFO", "msg": message, "created": 0.5, **facts}
    )


def test_text_has_facts_and_stays_on_its_line() -> None:
    line = TextFormatter().format(record("reorganised", fork=7, why="a\nb c"))
    assert line == '1970-01-01T00:00:00.500Z info    chain: reorganised (fork=7 why="a b c")'
    assert "\n" not in TextFormatter().format(record("a peer's words:\n2026 ERROR forged"))


def test_json_is_one_object_a_line() -> None:
    try:
        raise ValueError("boom")
    except ValueError as error:
        info = (ValueError, error, error.__traceback__)
    text = JsonFormatter().format(record("failed\nbadly", height=7, path=Path("/x"), level="forged", exc_info=info))
    assert "\n" not in text
    line = json.loads(text)
    assert {name: line[name] for name in ("time", "level", "logger", "message", "height", "path")} == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "info",
        "logger": "tilework.chain",
        "message": "failed\nbadly",
        "height": 7,
        "path": "/x",
    }
    assert "ValueError: boom" in line["exception"]


@pytest.mark.usefixtures("root")
def test_it_goes_to_the_file_from_the_configured_level_on(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "node.log"
    configure(Log(level="warning", format="json", file=path))
    logger = logging.getLogger("tilework.test")
    logger.info("quiet")
    logger.warning("loud", extra={"bytes": b"\x00"})
    logger.warning("surrogate \udcff")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["message"] for line in lines][:1] == ["loud"]
    assert len(lines) == 2


@pytest.mark.usefixtures("root")
def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match="cannot write the log"):
        configure(Log(file=tmp_path / "file" / "node.log"))
