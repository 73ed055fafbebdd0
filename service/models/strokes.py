"""Strokes larger than a network's own: a large picture that looks like its preview, only sharper.

A network's strokes have a size in pixels, so the larger a picture, the finer they are in it. Here the picture is
painted small, and doubled until it has its size; each time it is painted again, and of that only what is finer than
the picture could be is added. What a preview shows stays as it is, and the strokes get strokes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from service.images import halved_and_back, resized
from service.models.style import STRIP_ROWS, Pixels

MARGIN_ROWS = 16  # around a strip; even, so that pairs of rows are the same ones, and wider than the filters

Paint = Callable[[Pixels], Pixels]  # (H, W, 3) -> (H, W, 3)


def sizes(size: tuple[int, int], stroke: float) -> list[tuple[int, int]]:
    """(width, height) of every time that a picture is painted, small to large; ``stroke`` is over the network's own."""
    found = [size]
    while stroke > 1:
        step = min(2.0, stroke)
        stroke /= step
        width, height = found[0]
        found.insert(0, (max(1, round(width / step)), max(1, round(height / step))))
    return found


def with_strokes(photo: Pixels, stroke: float, paint: Paint) -> Pixels:
    """The photo (H, W, 3), painted with strokes so many times as large as those of ``paint``."""
    height, width = photo.shape[:2]
    smallest, *larger = sizes((width, height), stroke)
    picture = paint(resized(photo, smallest))
    for size in larger:
        enlarged = resized(picture, size)
        picture = _with_detail(enlarged, paint(enlarged))
    return picture


def _with_detail(base: Pixels, detailed: Pixels) -> Pixels:
    """``base`` and what ``detailed`` has that half its size could not have; a strip at a time."""
    result = np.empty_like(base)
    for top in range(0, len(base), STRIP_ROWS):
        first = max(0, top - MARGIN_ROWS)
        strip = detailed[first : top + STRIP_ROWS + MARGIN_ROWS]
        kept = slice(top - first, top - first + STRIP_ROWS)
        change = strip[kept].astype(np.float32) - halved_and_back(strip)[kept]
        change += base[top : top + STRIP_ROWS]
        result[top : top + STRIP_ROWS] = np.clip(np.rint(change, out=change), 0, 255, out=change)
    return result
