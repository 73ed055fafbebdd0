"""Large pictures in tiles, without seams, in bounded memory.

Instance norm sees the whole picture, so tiles that normalise themselves do not fit together. Here a thumbnail gives
the statistics, which become part of the style; with them in it nothing in the network looks farther than its radius,
so tiles that overlap by twice as much are, cut to their cores, the very pixels of the whole picture. The statistics of
a thumbnail are also why a preview looks like its large version.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from service.images import shrunk
from service.models.session import (
    Images,
    OrtSession,
    Provider,
    RunOptions,
    StyleRows,
    run_session,
    shrinking,
)
from service.models.store import StoredModel
from service.models.style import Pixels

THUMBNAIL_SIDE = 1024  # pixels, the longer side: what the statistics are taken from
TILE_SIDE = 1024  # pixels, the overlap included; a run takes 430 MB for a megapixel (half-width network, measured)
STRIDE = 8  # pixels: tiles begin at multiples of it, as every network's coarsest places do

Observe = Callable[[], None]  # a tile is done; what it raises ends the run


@dataclass(frozen=True)
class Span:
    """Along one axis: what a tile is run on, and the core of it that is kept; in pixels of the picture."""

    start: int
    stop: int
    core_start: int
    core_stop: int

    @property
    def core(self) -> slice:
        return slice(self.core_start, self.core_stop)

    @property
    def core_in_tile(self) -> slice:
        return slice(self.core_start - self.start, self.core_stop - self.start)


def spans(length: int, side: int, halo: int) -> list[Span]:
    """Tiles of at most ``side`` pixels along an axis: their cores cover it once, and a halo is around each of them but
    at the picture's own border."""
    step = side - 2 * halo
    return [
        Span(max(0, core - halo), min(length, core + step + halo), core, min(length, core + step))
        for core in range(0, length, step)
    ]


def halo_of(radius: int) -> int:
    """The radius, rounded up to where a tile may begin."""
    return -(-radius // STRIDE) * STRIDE


class TiledNetwork:
    """A network that takes a picture in tiles. Its sessions are opened when first used: most services never see a
    picture that is so large."""

    def __init__(self, model: StoredModel, open_graph: Callable[[bytes], OrtSession]) -> None:
        """``model`` must have a ``tiling``; ``open_graph`` makes a session of an ONNX file's bytes."""
        assert model.card.tiling is not None
        self._dimension, self._open = model.card.dimension, open_graph
        self._freezing, self._frozen = model.freezing, model.frozen
        self._halo = halo_of(model.card.tiling.radius_px)
        self._sessions: tuple[OrtSession, OrtSession] | None = None
        self._opening = threading.Lock()

    def tiles(self, size: tuple[int, int]) -> int:
        """How many tiles a picture of (width, height) pixels has."""
        width, height = (len(spans(length, TILE_SIDE, self._halo)) for length in size)
        return width * height

    def freeze(self, images: Images, rows: StyleRows, options: RunOptions | None = None) -> StyleRows:
        """Styles (N, D) with the statistics of images (N, H, W, 3) in them: (N, D'). Raises OutOfMemory."""
        freezing, _ = self._opened()
        frozen: StyleRows = run_session(freezing, {"image": images, "style": rows}, options)
        return frozen

    def run_frozen(self, images: Images, frozen: StyleRows, options: RunOptions | None = None) -> Images:
        """Images (N, H, W, 3) with the styles (N, D') that ``freeze`` gave, not cut. Raises OutOfMemory."""
        _, session = self._opened()
        stylized: Images = run_session(session, {"image": images, "style": frozen}, options)
        return stylized

    def run(
        self,
        image: Pixels,
        row: StyleRows,
        options: RunOptions | None = None,
        observe: Observe = lambda: None,
    ) -> Pixels:
        """An image (H, W, 3) in the style of a row (D,). Raises OutOfMemory, and ONNX Runtime's error if stopped."""
        result = np.empty_like(image)
        frozen = self.freeze(shrunk(image, THUMBNAIL_SIDE)[None], row[None], options)
        height, width = image.shape[:2]
        for down, across in product(self._spans(height), self._spans(width)):
            tile = np.ascontiguousarray(image[down.start : down.stop, across.start : across.stop])[None]
            stylized = self.run_frozen(tile, frozen, options)[0]
            result[down.core, across.core] = stylized[down.core_in_tile, across.core_in_tile]
            observe()
        return result

    def settle(self, provider: Provider) -> None:
        """Give back the memory that tiles took."""
        if self._sessions is None:
            return
        freezing, session = self._sessions
        image = np.zeros((1, 2 * STRIDE, 2 * STRIDE, 3), np.uint8)
        row = np.zeros((1, self._dimension), np.float32)
        frozen = run_session(freezing, {"image": image, "style": row}, shrinking(provider))
        run_session(session, {"image": image, "style": frozen}, shrinking(provider))

    def _spans(self, length: int) -> list[Span]:
        return spans(length, TILE_SIDE, self._halo)

    def _opened(self) -> tuple[OrtSession, OrtSession]:
        with self._opening:
            if self._sessions is None:
                self._sessions = self._open(self._freezing), self._open(self._frozen)
            return self._sessions
