"""Log lines that machines read, and what is told of them to people."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from lasro.service.child_process import last_log_line
from lasro.service.logs import JsonFormatter, set_request_id


def test_a_record_is_one_json_object_on_one_line() -> None:
    """Bug: a message with a line break, or an exception, falls apart into lines that no feedback can parse."""
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("lasro", logging.ERROR, "f.py", 1, "a %s", ("b\nc",), sys.exc_info())
    record.status = 500
    text = JsonFormatter().format(record)
    line = json.loads(text)
    assert "\n" not in text
    assert (line["message"], line["level"], line["status"]) == ("a b\nc", "error", 500)
    assert line["exception"].endswith("ValueError: two\nlines")


def test_the_request_id_is_there_where_there_is_one() -> None:
    """Bug: lines outside a request carry an empty or a stale id."""
    record = logging.makeLogRecord({"msg": "m"})
    set_request_id("")
    assert "request_id" not in json.loads(JsonFormatter().format(record))
    set_request_id("abc")
    assert json.loads(JsonFormatter().format(record))["request_id"] == "abc"
    set_request_id("")


def test_the_reason_of_a_death_is_told_without_json(tmp_path: Path) -> None:
    """Bug: `lasro up` reports a service that dies with a line of JSON, or with the wrong half of a traceback."""
    log = tmp_path / "log"
    for line, told in (
        ("plain text", "plain text"),
        ('{"message": "cannot bind", "level": "error"}', "cannot bind"),
        ('{"message": "failed", "exception": "Traceback\\nValueError: why"}', "ValueError: why"),
        ("[1, 2]", "[1, 2]"),
        ('{"other": 1}', '{"other": 1}'),
    ):
        log.write_text(f"first\n{line}\n\n")
        assert last_log_line(log) == told
