"""Content negotiation (RFC 9110, 12.5.1): which format the answer has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

from service.errors import NotAcceptable
from service.images import FORMATS, AnyFormat, media_type

F = TypeVar("F", bound=AnyFormat)


def negotiate(accept: str | None, own: F, formats: Sequence[AnyFormat] = FORMATS) -> F:
    """The one of ``formats`` that ``accept`` likes best; the photo's ``own`` where it has no preference.

    Raises NotAcceptable.
    """
    if accept is None or not accept.strip():
        return own
    ranges = _ranges(accept)
    qualities = {format: _quality(format, ranges) for format in formats}
    best = max(formats, key=lambda format: (qualities[format], format == own))
    if qualities[best] == 0:
        raise NotAcceptable(f"Accept: {accept[:100]} leaves none of {', '.join(media_type(f) for f in formats)}")
    return cast(F, best)


def _ranges(accept: str) -> dict[str, float]:
    ranges = {}
    for item in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        ranges[media_range] = _number(quality)
    return ranges


def _number(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0


def _quality(format: AnyFormat, ranges: dict[str, float]) -> float:
    """The most specific range decides."""
    exact = media_type(format)
    for media_range in (exact, f"{exact.partition('/')[0]}/*", "*/*"):
        if media_range in ranges:
            return ranges[media_range]
    return 0.0
