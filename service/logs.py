"""Logging: text for people, or one JSON object a line for machines, each with its request and trace."""

from __future__ import annotations

import json
import logging
import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Self

ACCESS = "service.access"
TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


@dataclass(frozen=True)
class Trace:
    """A request's place in its caller's trace (W3C Trace Context)."""

    trace_id: str
    span_id: str  # ours
    flags: str

    @classmethod
    def of(cls, traceparent: str) -> Self | None:
        """None where the header is missing or malformed: no trace is begun here."""
        found = TRACEPARENT.fullmatch(traceparent)
        return cls(found[1], secrets.token_hex(8), found[2]) if found else None

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


@dataclass(frozen=True)
class RequestContext:
    request_id: str
    trace: Trace | None


current: ContextVar[RequestContext | None] = ContextVar("current", default=None)
"""The request that what is logged now belongs to."""


class JsonFormatter(logging.Formatter):
    """``time`` (RFC 3339), ``level``, ``logger``, ``message``, the request's ids, and whatever ``extra`` holds."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if context := current.get():
            line["request_id"] = context.request_id
            if context.trace:
                line |= {"trace_id": context.trace.trace_id, "span_id": context.trace.span_id}
        line |= {name: value for name, value in vars(record).items() if name not in STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(format: Literal["text", "json"]) -> None:
    """Log to stderr. Text leaves out the line for every request: it is for a person at a terminal."""
    handler = logging.StreamHandler()
    if format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s: %(name)s: %(message)s"))
        logging.getLogger(ACCESS).setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
