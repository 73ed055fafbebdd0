"""The vectors of uploaded paintings: each is made once, for however many requests, and kept for the next."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import Executor

from service.errors import Saturated
from service.metrics import Metrics
from service.models.encoder import Encoder
from service.models.store import Vector

KEPT = 1024  # vectors: 6.5 MB of the half-width network's
MOST_RUNNING = 16
BUSY_S = 2.0

Key = tuple[str, bytes]  # of the encoder, of the painting's file


class Encodings:
    """A bounded cache by content. ``inference`` must have a single thread: an encoding takes its turn there."""

    def __init__(self, codec: Executor, inference: Executor, metrics: Metrics, max_pixels: int) -> None:
        self._codec = codec
        self._inference = inference
        self._metrics = metrics
        self._max_pixels = max_pixels
        self._kept: OrderedDict[Key, Vector] = OrderedDict()
        self._running: dict[Key, asyncio.Task[Vector]] = {}

    async def vector(self, encoder: Encoder, content: bytes) -> Vector:
        """The style (D,) of an image file. Transparency is shown on white.

        Raises what ``open_photo`` and ``decode`` do, and Saturated where too many others are being made.
        """
        key = encoder.sha256, hashlib.sha256(content).digest()
        if (found := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            self._metrics.encodings.labels("kept").inc()
            return found
        if (task := self._running.get(key)) is None:
            if len(self._running) >= MOST_RUNNING:
                raise Saturated("too many paintings are being read; send the same request again", BUSY_S)
            self._metrics.encodings.labels("made").inc()
            task = self._running[key] = asyncio.create_task(self._made(encoder, content))
            task.add_done_callback(lambda done: self._keep(key, done))
        else:
            self._metrics.encodings.labels("shared").inc()
        return await asyncio.shield(task)  # one client that leaves takes it from nobody else

    async def _made(self, encoder: Encoder, content: bytes) -> Vector:
        loop = asyncio.get_running_loop()
        painting = await loop.run_in_executor(self._codec, encoder.read, content, self._max_pixels)
        return await loop.run_in_executor(self._inference, encoder.vector, painting)

    def _keep(self, key: Key, done: asyncio.Task[Vector]) -> None:
        del self._running[key]
        if not done.cancelled() and done.exception() is None:
            self._kept[key] = done.result()
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
