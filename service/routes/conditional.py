"""Conditional requests (RFC 9110, 13)."""

from __future__ import annotations


def matches(if_none_match: str, etag: str) -> bool:
    """Whether the client has it already: weak comparison (13.1.2)."""
    candidates = [candidate.strip().removeprefix("W/") for candidate in if_none_match.split(",")]
    return "*" in candidates or etag in candidates
