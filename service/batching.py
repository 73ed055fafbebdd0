"""Work waits here for its network: bounded by pixels, first come first served, one run at a time.

One picture a run for now: the batcher proper takes this module's place behind ``Admission.admit`` and
``Batcher.submit``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from service.errors import Saturated
from service.metrics import Metrics, Stopwatch

IDLE_S = 0.25  # longer than a client takes from one request to the next

Run = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.float32]], npt.NDArray[np.uint8]]
"""(images (N, H, W, 3), rows (N, D)) -> images (N, H, W, 3); blocks."""


class Place:
    """A picture's claim on the queue: its pixels count as waiting until its run starts or it leaves."""

    def __init__(self, admission: Admission, pixels: int) -> None:
        self.pixels = pixels
        self._admission = admission
        self._waiting = True

    def leave_queue(self) -> None:
        """The run starts, or nobody wants it any more. Once is enough, twice does no harm."""
        if self._waiting:
            self._waiting = False
            self._admission.waiting_pixels -= self.pixels


class Admission:
    """The bound on waiting work, in pixels, over all models. To be used from the event loop alone, hence exact.

    ``turn`` is whose run it is: a run takes every core, so there is one at a time, over all models. It is fair: first
    come, first served; a waiter that is cancelled leaves the line.
    """

    def __init__(self, max_pixels: int, metrics: Metrics) -> None:
        self._max_pixels = max_pixels
        self._metrics = metrics
        self.turn = asyncio.Lock()
        self.waiting_pixels = 0
        self.seconds_per_pixel = 0.0  # of the runs lately; 0 until there was one

    @contextmanager
    def admit(self, pixels: int) -> Iterator[Place]:
        """Take a place for ``pixels`` (every row counted). Raises Saturated where they do not fit."""
        excess = self.waiting_pixels + pixels - self._max_pixels
        if excess > 0:
            wait_s = excess * self.seconds_per_pixel
            raise Saturated(f"too much work is waiting; there should be room in {wait_s:.0f} s", wait_s)
        self.waiting_pixels += pixels
        place = Place(self, pixels)
        try:
            with self._metrics.in_flight.track_inprogress():
                yield place
        finally:
            place.leave_queue()

    def learn(self, pixels: int, duration_s: float) -> None:
        """A run of ``pixels`` took ``duration_s``; the moving average forgets half in about five runs."""
        rate = duration_s / pixels
        self.seconds_per_pixel += (0.13 if self.seconds_per_pixel else 1.0) * (rate - self.seconds_per_pixel)


class Batcher:
    """One network's queue. ``executor`` is where it runs, and where ``settle`` does once it has been idle a while."""

    def __init__(
        self,
        model: str,
        provider: str,
        run: Run,
        settle: Callable[[], None],
        admission: Admission,
        executor: Executor,
        metrics: Metrics,
    ) -> None:
        self._run = run
        self._settle = settle
        self._settling: asyncio.TimerHandle | None = None
        self._admission = admission
        self._executor = executor
        self._depth = metrics.queue_depth.labels(model)
        self._rows = metrics.batch_size.labels(model)
        self._duration = metrics.inference_duration.labels(model, provider)

    async def submit(
        self, place: Place, image: npt.NDArray[np.uint8], rows: npt.NDArray[np.float32], watch: Stopwatch
    ) -> npt.NDArray[np.uint8]:
        """Run the network on ``image`` (H, W, 3) once for each of ``rows`` (R, D); gives (R, H, W, 3).

        Cancelled while it waits, it leaves the queue; cancelled while it runs, the run still keeps the next one
        waiting until it has ended. Raises whatever ``run`` raises.
        """
        with watch.time("queue"), self._depth.track_inprogress():
            await self._admission.turn.acquire()
        place.leave_queue()
        if self._settling:
            self._settling.cancel()
        with watch.time("infer"):
            running = asyncio.get_running_loop().run_in_executor(self._executor, self._timed, image, rows)
            running.add_done_callback(self._ended)
            return await asyncio.shield(running)

    def _timed(self, image: npt.NDArray[np.uint8], rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        images = np.repeat(image[None], len(rows), axis=0) if len(rows) > 1 else image[None]
        started = time.perf_counter()
        stylized = self._run(images, rows)
        duration_s = time.perf_counter() - started
        self._rows.observe(len(rows))
        self._duration.observe(duration_s)
        self._admission.learn(images.size // 3, duration_s)
        return stylized

    def _ended(self, running: asyncio.Future[npt.NDArray[np.uint8]]) -> None:
        self._admission.turn.release()
        loop = running.get_loop()
        self._settling = loop.call_later(IDLE_S, loop.run_in_executor, self._executor, self._settle)
        if not running.cancelled():
            running.exception()  # seen, even where nobody is left to be told
