"""The style encoder at work: a painting's pixels in, the vector of its style out."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from service.errors import ModelRefused, NotReady
from service.images import decode, on_white, open_photo
from service.models.session import DEFAULT_GPU, Gpu, ProviderChoice, Session, StyleRows
from service.models.store import StoredModel, Vector
from service.models.style import Pixels

RETRY_S = 5.0
LONGEST = 4  # times the shorter side: a strip of a frieze is enough of it


class Encoder:
    """A loaded encoder. ``network_sha256`` is that of the card whose vectors it makes, ``sha256`` of its own graph.

    It is tried when it is loaded, and its session opened anew for the first painting, from what ``read`` gives: most
    services never see one, and it takes up to 290 MB (measured: `arbitrary`, with VGG16 in it; `arbitrary_deep` 50).
    """

    def __init__(
        self, stored: StoredModel, open_session: Callable[[StoredModel], Session], read: Callable[[], StoredModel]
    ) -> None:
        """Raises what ``open_session`` does."""
        assert stored.card.vectors_of is not None  # the card's own validation
        self.card = stored.card
        self.sha256 = stored.card.graph_sha256
        self.network_sha256 = stored.card.vectors_of.sha256
        self.model = stored.card.vectors_of.model
        self.side_px = stored.card.vectors_of.painting_side_px
        self._open, self._read, self._opening = open_session, read, threading.Lock()
        self._session: Session | None = None
        tried = open_session(stored)
        tried.settle()
        self.provider = tried.provider

    @property
    def name(self) -> str:
        return self.card.name

    def size(self, width: int, height: int) -> tuple[int, int]:
        """At which (width, height) a painting is to be read."""
        return painting_size(width, height, self.side_px)

    def read(self, content: bytes, max_pixels: int) -> Pixels:
        """A painting (H, W, 3) from an image file; transparency is shown on white. Raises what ``open_photo`` and
        ``decode`` do."""
        photo = open_photo(content, max_pixels)
        return on_white(decode(photo, self.size(photo.width, photo.height)))

    def vector(self, painting: Pixels) -> Vector:
        """The style (D,) of a painting (H, W, 3). Raises OutOfMemory; NotReady where the store has it no more."""
        no_rows: StyleRows = np.empty((1, 0), np.float32)
        return np.asarray(self.wake().run(painting[None], no_rows)[0], np.float32)

    def wake(self) -> Session:
        """Open its session, where that was not done yet. Raises NotReady where the store has it no more."""
        with self._opening:
            self._session = session = self._session or self._opened()
        return session

    def _opened(self) -> Session:
        try:
            stored = self._read()
            if stored.card.graph_sha256 != self.sha256:
                raise ModelRefused(self.card.label, "was replaced by another since it was loaded")
        except ModelRefused as error:
            raise NotReady([str(error)], RETRY_S) from error
        return self._open(stored)


def painting_size(width: int, height: int, side_px: int) -> tuple[int, int]:
    """(width, height) with strokes as large as where the shorter side has ``side_px``; never enlarged."""
    scale = min(1.0, side_px / min(width, height), LONGEST * side_px / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def encoder_of(
    stored: StoredModel,
    provider: ProviderChoice,
    threads: int,
    gpu: Gpu = DEFAULT_GPU,
    read: Callable[[], StoredModel] | None = None,
) -> Encoder:
    """A stored encoder at work; one that can be ``read`` anew is not kept until it is needed. Raises what ``Session``
    does."""

    def open_session(stored: StoredModel) -> Session:
        return Session(stored, provider, threads, gpu)

    return Encoder(stored, open_session, read or (lambda: stored))
