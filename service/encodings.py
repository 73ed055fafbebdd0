"""The vectors of uploaded paintings: each is made once, for however many requests, and kept for the next."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

from service.batching import Admission, timed
from service.errors import Saturated
from service.metrics import Metrics
from service.models.encoder import Encoder
from service.models.store import Vector
from service.models.style import Pixels

KEPT = 1024  # vectors: 6.5 MB of the half-width network's
MOST_RUNNING = 16

Key = tuple[str, bytes]  # of the encoder, of the painting's file


@dataclass(eq=False)
class _Making:
    """A vector on its way, and how many wait for it. Once it has ``begun`` it is made to its end, and kept."""

    task: asyncio.Task[Vector]
    begun: asyncio.Event
    wanted: int = 0


class Encodings:
    """A bounded cache by content. ``inference`` must have a single thread: an encoding takes its turn there."""

    def __init__(
        self, codec: Executor, inference: Executor, admission: Admission, metrics: Metrics, max_pixels: int
    ) -> None:
        self._codec = codec
        self._inference = inference
        self._admission = admission
        self._metrics = metrics
        self._max_pixels = max_pixels
        self._kept: OrderedDict[Key, Vector] = OrderedDict()
        self._running: dict[Key, _Making] = {}
        self._turn = asyncio.Lock()  # one at a time is in line for the thread, with the batches in between

    async def vector(self, encoder: Encoder, content: bytes) -> Vector:
        """The style (D,) of an image file. Transparency is shown on white. One client that leaves takes it from nobody
        else; when all have left it is not begun.

        Raises what ``open_photo`` and ``decode`` do, and Saturated where too many others are being made.
        """
        key = encoder.sha256, hashlib.sha256(content).digest()
        if (found := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            self._metrics.encodings.labels("kept").inc()
            return found
        if making := self._running.get(key):
            self._metrics.encodings.labels("shared").inc()
        else:
            if len(self._running) >= MOST_RUNNING:
                raise Saturated(
                    "too many paintings are being read; send the same request again", self._admission.busy_s
                )
            self._metrics.encodings.labels("made").inc()
            begun = asyncio.Event()
            making = self._running[key] = _Making(asyncio.create_task(self._made(encoder, content, begun)), begun)
            making.task.add_done_callback(partial(self._keep, key, making))
        making.wanted += 1
        try:
            return await asyncio.shield(making.task)
        finally:
            making.wanted -= 1
            if not making.wanted and not making.begun.is_set():
                self._forget(key, making)  # who asks from now on is not to wait for what is given up
                making.task.cancel()

    async def _made(self, encoder: Encoder, content: bytes, begun: asyncio.Event) -> Vector:
        loop = asyncio.get_running_loop()
        painting = await loop.run_in_executor(self._codec, encoder.read, content, self._max_pixels)
        pixels = painting.shape[0] * painting.shape[1]
        async with self._turn:
            begun.set()
            with self._admission.running(encoder, pixels, lane=False):
                vector, duration_s = await loop.run_in_executor(self._inference, _encoded, encoder, painting)
        self._admission.learn(encoder, pixels, duration_s)
        return vector

    def _keep(self, key: Key, making: _Making, done: asyncio.Task[Vector]) -> None:
        self._forget(key, making)
        if not done.cancelled() and done.exception() is None:
            self._kept[key] = done.result()
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)

    def _forget(self, key: Key, making: _Making) -> None:
        if self._running.get(key) is making:
            del self._running[key]


def _encoded(encoder: Encoder, painting: Pixels) -> tuple[Vector, float]:
    """Its vector, and how long that took in seconds, once the encoder was there."""
    encoder.wake()
    return timed(encoder.vector, painting)
