"""Work waits here for its network: bounded by pixels, batched by shape, first come first served; one run at a time on
every thread, or small ones beside each other, on a thread of the CPU each or all on the GPU.

Pictures of one shape share a run whatever their styles, and come out with the very bits they have alone. They are
never padded to a common shape: instance norm would see the padding.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from service.errors import DeadlineExceeded, OutOfMemory, Saturated, Translation, translating
from service.metrics import Metrics, Stopwatch

log = logging.getLogger(__name__)

IDLE_S = 5.0  # longer than people take from one request to the next: the memory that is given back then is missed by
# the next picture, which took 20 to 70 ms of CPU more where it came after 0.6 s and this was 0.25 s (256 to 1024 px)

Images = npt.NDArray[np.uint8]  # (N, H, W, 3) sRGB
Rows = npt.NDArray[np.float32]  # (N, D)
T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Work(Generic[T]):
    """A picture that is not decoded yet, its ``shape`` (H, W, 3) once it is, and the rows (R, D) to run it on. The file
    has ``source_pixels``, in all of its frames.

    ``decode`` gives its pixels, and what makes the result of the outputs (R, H, W, 3). Both block; ``decode`` is called
    once, the other may be called again where a batch failed; where they are ``quick`` a thread's turn costs more than
    they take.
    """

    shape: tuple[int, ...]
    rows: Rows
    decode: Callable[[], tuple[Images, Callable[[Images], T]]]
    quick: bool
    source_pixels: int = 0

    @property
    def codec_pixels(self) -> int:
        """What is decoded and encoded."""
        return self.source_pixels + self.shape[0] * self.shape[1]


class Run(Protocol):
    """One run of a network, not yet begun. Blocks; raises where it fails or was stopped."""

    def __call__(self, images: Images, rows: Rows) -> Images: ...

    def stop(self) -> None:
        """End it early; from any thread, at any time."""


class Timed(Protocol):
    """A model whose runs' durations are learnt."""

    @property
    def name(self) -> str: ...

    @property
    def provider(self) -> str: ...


class Network(Timed, Protocol):
    """What work waits for. ``settle`` is called, where runs are, once nothing has run for a while."""

    @property
    def lane_pixels(self) -> int:
        """Most pixels of a run that may go beside others; 0 where none may."""
        ...

    @property
    def lanes_first(self) -> bool:
        """Whether a lane is as good as all there is, for one that runs alone: on a GPU, where lanes share it; those of
        a CPU are one thread each."""
        ...

    def begin(self, *, lane: bool = False) -> Run:
        """A run on all there is, or, in a lane, beside others."""
        ...

    def settle(self) -> None: ...


class Latency:
    """How long a run of x megapixels takes: a x + b seconds, learnt from the runs lately.

    Least squares of t/x = a + b/x, so that small pictures count as much as large ones; neither term can be negative.
    While all pictures have one size nothing tells a from b, and b stays as it was.
    """

    MEMORY = 0.95  # of a run's weight is left after the next: half of it after 14
    SMALLEST = 4096  # pixels; below it there is only the constant, and 1/x would drown everything else
    OUTLIER = 4.0  # a run counts as at most so many times as long as expected: a hiccup must not be believed

    def __init__(self) -> None:
        self._a = self._b = 0.0
        self._weight = 0.0
        self._sums = [0.0] * 4  # of 1/x, t/x, (1/x)^2 and (1/x)(t/x)

    @property
    def learnt(self) -> bool:
        """Whether it has ever seen a run."""
        return self._weight > 0

    def predict(self, pixels: int) -> float:
        """Seconds; 0 before anything was learnt."""
        return self._a * max(pixels, self.SMALLEST) / 1e6 + self._b

    def learn(self, pixels: int, duration_s: float) -> None:
        if self._weight > 2:
            duration_s = min(duration_s, self.OUTLIER * self.predict(pixels))
        u = 1e6 / max(pixels, self.SMALLEST)
        r = duration_s * u
        self._weight = self.MEMORY * self._weight + 1
        self._sums = [self.MEMORY * kept + new for kept, new in zip(self._sums, (u, r, u * u, u * r), strict=True)]
        mean_u, mean_r, mean_uu, mean_ur = (kept / self._weight for kept in self._sums)
        variance = mean_uu - mean_u**2
        if variance > 1e-3 * mean_u**2:
            self._b = (mean_ur - mean_u * mean_r) / variance
        self._b = min(max(self._b, 0.0), mean_r / mean_u)
        self._a = mean_r - self._b * mean_u


class Margin:
    """How many times as long as expected answers take, all but one in a hundred; learnt from those that had to wait.

    Without it a full queue is as long as the deadline, and half of what is in it comes just too late. What is late
    is told a whole queue after it was admitted, hence LEAST: a shorter queue costs nothing, a late answer a run. A
    shared machine's speed changes by a fifth from one second to the next (measured: with 1.25 some 2 % were late).
    """

    LEAST = 1.5
    STEP = 1.1  # up after an answer beyond it; down by a 99th of that after one within: so it finds its quantile
    QUANTILE = 0.99
    MOST = 4.0

    def __init__(self) -> None:
        self.factor = self.LEAST

    def learn(self, expected_s: float, took_s: float) -> None:
        late = took_s > self.factor * expected_s
        step = self.STEP if late else self.STEP ** (1 - 1 / self.QUANTILE)
        self.factor = min(max(self.factor * step, self.LEAST), self.MOST)


@dataclass(frozen=True)
class Expected:
    """What a run is expected to take: ``own_s`` from its start to its end, and ``queue_s`` of the time of those behind
    it, which is less where others run beside it."""

    own_s: float
    queue_s: float


class Place:
    """A picture's claim on the queue: it counts as waiting until its run starts or it leaves; and on the codec, until
    it is decoded."""

    def __init__(
        self, admission: Admission, pixels: int, source_pixels: int, expected: Expected, give_up: float | None
    ) -> None:
        self.pixels = pixels
        self._source_pixels = source_pixels
        self._expected = expected
        self._give_up = give_up
        self._admission = admission
        self._waiting = False

    @property
    def is_hopeless(self) -> bool:
        """Whether its deadline would pass during its run, if that began now."""
        return self._give_up is not None and time.monotonic() + self._expected.own_s > self._give_up

    def decoded(self) -> None:
        """The codec is done with it, or never will be. Once is enough, twice does no harm."""
        self._admission.source_pixels -= self._source_pixels
        self._source_pixels = 0

    def enter_queue(self) -> None:
        """It waits: once it is admitted, or again, where its run failed for want of memory."""
        if not self._waiting:
            self._waiting = True
            self._admission.waiting_pixels += self.pixels
            self._admission.waiting_s += self._expected.queue_s

    def leave_queue(self) -> None:
        """The run starts, or nobody wants it any more. Once is enough, twice does no harm."""
        if self._waiting:
            self._waiting = False
            self._admission.waiting_pixels -= self.pixels
            self._admission.waiting_s -= self._expected.queue_s


@dataclass(frozen=True, eq=False)
class _Going:
    """A run that goes on: when it should end by the monotonic clock, beside how many others at most."""

    end: float
    width: int


class Admission:
    """The bound on waiting work, over all models: ``max_pixels`` wait for networks, and photos of all in all
    ``max_source_pixels``, by their headers, to be decoded on ``codec_threads``. Small runs go in ``lanes`` beside each
    other. To be used from the event loop alone, hence exact."""

    def __init__(
        self,
        max_pixels: int,
        metrics: Metrics,
        lanes: int = 1,
        *,
        max_source_pixels: float = math.inf,
        codec_threads: int = 1,
    ) -> None:
        self.lanes = lanes
        self._max_pixels, self._max_source_pixels = max_pixels, max_source_pixels
        self._codec_threads = codec_threads
        self._metrics = metrics
        metrics.capacity.set(max_pixels)
        self._runs: defaultdict[tuple[str, str, bool], Latency] = defaultdict(Latency)  # by model, provider, in a lane
        self._going: set[_Going] = set()
        self._margin = Margin()
        self.codec = Latency()  # decoding and encoding, by the pixels of the photo and of the result
        self.waiting_pixels = 0
        self.source_pixels = 0  # of photos that are not decoded yet
        self.waiting_s = 0.0  # how long the waiting are expected to keep the next one waiting

    @contextmanager
    def admit(
        self, network: Network, pixels: int, give_up: float | None = None, source_pixels: int = 0
    ) -> Iterator[Place]:
        """Take a place for ``pixels`` (every row counted), to be made of a photo of ``source_pixels``. ``give_up`` is
        the deadline by the monotonic clock, if any.

        Raises Saturated where they do not fit, or cannot be done in time.
        """
        expected = self.expected(network, pixels)
        self._check_room(pixels, source_pixels)
        ahead_s, own_s = self._ahead_s(), expected.own_s + self.codec.predict(source_pixels + pixels)
        admitted = time.monotonic()
        if give_up is not None:
            self._check_time(ahead_s, own_s, give_up - admitted)
        self._metrics.in_flight.inc(pixels)
        place = Place(self, pixels, source_pixels, expected, give_up)
        self.source_pixels += source_pixels
        place.enter_queue()
        took_s: float | None = None  # of those that left, nothing is known
        try:
            yield place
            took_s = time.monotonic() - admitted
        except DeadlineExceeded:
            took_s = math.inf
            raise
        finally:
            self._metrics.in_flight.dec(pixels)
            place.leave_queue()
            place.decoded()
            if give_up is not None and time.monotonic() >= give_up:
                took_s = math.inf
            if ahead_s > 0 and took_s is not None:
                self._margin.learn(ahead_s + own_s, took_s)

    def check(self, give_up: float | None) -> None:
        """To be asked before anything of a request is read: under load most of the work would be refusing.

        Raises Saturated where not even the smallest picture would be admitted.
        """
        self._check_room(1, 0)
        if give_up is not None:
            self._check_time(self._ahead_s(), 0.0, give_up - time.monotonic())

    def expected(self, network: Network, pixels: int) -> Expected:
        """Of a picture that has to wait: a small one goes in a lane then. A full queue goes by as many at a time as
        there are lanes, but each of them takes its own time."""
        lane = pixels <= network.lane_pixels
        own_s = self._run_s(network, pixels, lane)
        return Expected(own_s, own_s / self.lanes if lane else own_s)

    def learn(self, network: Timed, pixels: int, duration_s: float, *, lane: bool = False) -> None:
        """A run took so long, with all that its thread did for it. Its pixels are those of every row."""
        self._latency(network, lane).learn(pixels, duration_s)

    @contextmanager
    def running(self, network: Timed, pixels: int, *, lane: bool) -> Iterator[None]:
        """Such a run goes on, or is the next to, while the block lasts."""
        end = time.monotonic() + self._run_s(network, pixels, lane)
        going = _Going(end, self.lanes if lane else 1)
        self._going.add(going)
        try:
            yield
        finally:
            self._going.remove(going)

    def _check_room(self, pixels: int, source_pixels: int) -> None:
        excess = self.source_pixels + source_pixels - self._max_source_pixels
        if excess > 0 and self.source_pixels:
            wait_s = min(1.0, excess / self.source_pixels) * self._decoding_s()
            raise Saturated(f"too many pixels wait to be decoded; there should be room in {wait_s:.1f} s", wait_s)
        excess = self.waiting_pixels + pixels - self._max_pixels
        if excess > 0:
            share = min(1.0, excess / self.waiting_pixels) if self.waiting_pixels else 0.0
            wait_s = self.busy_s + share * self.waiting_s
            raise Saturated(f"too much work is waiting; there should be room in {wait_s:.1f} s", wait_s)

    def _check_time(self, ahead_s: float, own_s: float, left_s: float) -> None:
        """An idle service tries whatever it expects: a run is how it learns that it was wrong."""
        needed_s = self._margin.factor * (ahead_s + own_s)
        if ahead_s > 0 and needed_s > left_s:
            picture = f"the picture takes {own_s:.1f} s, " if own_s else ""
            raise Saturated(
                f"the deadline cannot be met: {left_s:.1f} s are left, {ahead_s:.1f} s of work are ahead, {picture}"
                f"and what was expected has lately taken up to {self._margin.factor:.1f} times as long; "
                "allow for more time or come back later",
                min(ahead_s, needed_s - left_s),
            )

    def _ahead_s(self) -> float:
        """How long a picture that comes now is expected to wait: it is decoded while others run."""
        return max(self.busy_s + self.waiting_s, self._decoding_s())

    def _decoding_s(self) -> float:
        return self.codec.predict(self.source_pixels) / self._codec_threads if self.source_pixels else 0.0

    @property
    def busy_s(self) -> float:
        """How long what runs now is expected to keep the next one waiting."""
        now = time.monotonic()
        return sum(max(0.0, going.end - now) / going.width for going in self._going)

    def _run_s(self, network: Timed, pixels: int, lane: bool) -> float:
        """A run's expected duration; all lanes together do as much as one run alone, until one was measured."""
        latency = self._latency(network, lane)
        if lane and not latency.learnt:
            return self.lanes * self._run_s(network, pixels, False)
        return latency.predict(pixels)

    def _latency(self, network: Timed, lane: bool) -> Latency:
        return self._runs[network.name, network.provider, lane]


@dataclass(eq=False)
class _Item:
    """A picture in line. Its result is cancelled where nobody wants it any more. One that is ``whole`` is decoded and
    encoded where it runs, between a run and the next; one that is ``alone`` runs with nothing beside it."""

    network: Network
    place: Place
    work: Work[Any]
    whole: bool
    watch: Stopwatch
    result: asyncio.Future[Any]
    arrived: float = field(default_factory=time.perf_counter)
    alone: bool = False
    codec_s: float = 0.0  # spent on its decoding and encoding where it runs
    _decoded: tuple[Images, Callable[[Images], object]] | Exception | None = None

    @property
    def key(self) -> Hashable:
        """Equal keys may share a run."""
        return self.network, self.work.shape, self.alone

    @property
    def fits_lane(self) -> bool:
        return not self.alone and self.place.pixels <= self.network.lane_pixels

    def start(self) -> None:
        """Its run begins: no longer in the queue."""
        self.place.leave_queue()
        if not self.whole:
            self.watch.enter("infer")

    @property
    def is_broken(self) -> bool:
        """Whether it could not be decoded."""
        return isinstance(self._decoded, Exception)

    def decode(self) -> tuple[Images, Callable[[Images], object]]:
        """As its work's, in the run's thread. Asked again it says the same: a broken file may seem whole the second
        time it is read."""
        found = self._decoded
        if found is None:
            if self.whole:
                self.watch.enter("decode")
            try:
                decoded, duration_s = timed(self.work.decode)
                found, self.codec_s = decoded, self.codec_s + duration_s
            except Exception as error:
                found = error
            self._decoded = found
        if isinstance(found, Exception):
            raise found
        if self.whole:
            self.watch.enter("infer")
        return found

    def encoded(self, encode: Callable[[Images], object], outputs: Images) -> object:
        """Its result, in the run's thread."""
        if not self.whole:
            return encode(outputs)
        with self.watch.time("encode"):
            result, duration_s = timed(encode, outputs)
        self.codec_s += duration_s
        return result

    def fail(self, error: Exception) -> None:
        """Its client is told, if it still is there: a deadline may have passed just now."""
        if not self.result.done():
            self.result.set_exception(error)


@dataclass(frozen=True, eq=False)
class _Running:
    batch: list[_Item]
    run: Run


class Batcher:
    """The queue of every network. ``executor`` is where they run, and ``settle`` once nothing has run for a while;
    ``codec`` is where pictures are decoded and encoded meanwhile.

    A batch has at most ``max_pixels``, every row counted; a picture beyond that runs alone. The oldest picture in line
    goes next, after ``max_wait_ms`` at most for others to join it; at 0 a batch is what came during the run before.

    Where several small batches wait they run beside each other in lanes, a thread each: a run on every thread leaves
    them idle at each node's end. On a GPU small ones always do: it has nothing to do between a run's end and the next
    one's pixels. What memory does not suffice for beside others is tried again with nothing beside it. One whose
    deadline would pass during its run gives way to those behind it.
    """

    def __init__(
        self,
        admission: Admission,
        executor: Executor,
        codec: Executor,
        metrics: Metrics,
        max_pixels: int,
        max_wait_ms: float,
    ) -> None:
        self._admission = admission
        self._executor = executor
        self._codec = codec
        self._metrics = metrics
        self._max_pixels = max_pixels
        self._max_wait_s = max_wait_ms / 1000
        self._lines: dict[Hashable, list[_Item]] = {}  # never empty ones; each in the order of arrival
        self._change = asyncio.Event()  # something has come, or a lane is free
        self._running: list[_Running] = []
        self._lanes = admission.lanes
        self._lane_threads = ThreadPoolExecutor(self._lanes, "lane")
        self._in_lanes: set[asyncio.Task[None]] = set()
        self._worker: asyncio.Task[None] | None = None
        self._unsettled: set[Network] = set()
        self._settling: asyncio.TimerHandle | None = None

    async def paint(self, network: Network, place: Place, work: Work[T], watch: Stopwatch) -> T:
        """Decode, run ``network``, encode; all in one turn of one thread where that keeps no other thread idle.

        Cancelled while it waits, it leaves the queue; while it runs, the run is stopped once nobody wants any of it.
        Raises whatever the run raises on this picture alone, and what decoding it raises.
        """
        if work.quick and (self._idle or place.pixels <= network.lane_pixels):
            return await self._finished(network, place, work, True, watch)
        loop = asyncio.get_running_loop()
        with watch.time("decode"):
            (image, encode), decode_s = await loop.run_in_executor(self._codec, timed, work.decode)
        place.decoded()
        outputs = await self.submit(network, place, image, work.rows, watch)
        with watch.time("encode"):
            result, encode_s = await loop.run_in_executor(self._codec, timed, encode, outputs)
        loop.call_soon(self._admission.codec.learn, work.codec_pixels, decode_s + encode_s)
        return result

    async def submit(self, network: Network, place: Place, image: Images, rows: Rows, watch: Stopwatch) -> Images:
        """As ``paint``, from pixels to pixels: (R, H, W, 3) from ``image`` (H, W, 3) and ``rows`` (R, D)."""
        decoded = Work(image.shape, rows, lambda: (image, lambda outputs: outputs), quick=False)
        return await self._finished(network, place, decoded, False, watch)

    async def _finished(self, network: Network, place: Place, work: Work[T], whole: bool, watch: Stopwatch) -> T:
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        item = _Item(network, place, work, whole, watch, result)
        self._join(item)
        try:
            return await result
        finally:
            watch.leave()
            if not result.done() or result.cancelled():
                result.cancel()
                self._leave(item)

    @property
    def _idle(self) -> bool:
        return not self._lines and (self._worker is None or self._worker.done())

    def close(self) -> None:
        """Nothing is to run or to settle any more."""
        if self._settling:
            self._settling.cancel()
        self._lane_threads.shutdown(cancel_futures=True)

    def _join(self, item: _Item) -> None:
        item.watch.enter("queue")
        self._lines.setdefault(item.key, []).append(item)
        with _never_fatal():
            self._metrics.queue_depth.labels(item.network.name).inc()
        self._change.set()
        if self._settling:
            self._settling.cancel()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    def _leave(self, item: _Item) -> None:
        if item in self._lines.get(item.key, []):
            self._take(item)
        for running in self._running:
            if item in running.batch and all(other.result.cancelled() for other in running.batch):
                running.run.stop()

    def _take(self, item: _Item) -> _Item:
        line = self._lines[item.key]
        line.remove(item)
        if not line:
            del self._lines[item.key]
        with _never_fatal():
            self._metrics.queue_depth.labels(item.network.name).dec()
        return item

    async def _work(self) -> None:
        """Lives while there is work; every item that it takes is resolved, whatever happens."""
        batch: list[_Item] = []
        try:
            while self._lines or self._in_lanes:
                if not self._may_begin():
                    self._change.clear()
                    await self._change.wait()
                elif batch := await self._next_batch():
                    await self._dispatch(batch)
                    batch = []
        except Exception as error:  # nobody is to wait for a worker that is no more
            log.exception("a bug: what waits for a network is given up")
            waiting = [item for line in self._lines.values() for item in line]
            for item in [*batch, *map(self._take, waiting)]:
                item.fail(error)
        self._settling = asyncio.get_running_loop().call_later(IDLE_S, self._settle)

    def _may_begin(self) -> bool:
        """Whether the oldest item in line may: where lanes are taken, in one of them alone."""
        if not self._in_lanes:
            return True
        return bool(self._lines) and len(self._in_lanes) < self._lanes and self._oldest.fits_lane

    async def _dispatch(self, batch: list[_Item]) -> None:
        """Begin in a lane where another runs in one, or could, and where that is as good; else run on every thread,
        once the lanes are empty."""
        network = batch[0].network
        fits = batch[0].fits_lane and sum(item.place.pixels for item in batch) <= network.lane_pixels
        if fits and (network.lanes_first or self._in_lanes or any(line[0].fits_lane for line in self._lines.values())):
            task = asyncio.create_task(self._serve(batch, lane=True))
            self._in_lanes.add(task)
            task.add_done_callback(self._lane_is_free)
            return
        if self._in_lanes:
            await asyncio.wait(self._in_lanes)
        await self._serve(batch, lane=False)

    def _lane_is_free(self, task: asyncio.Task[None]) -> None:
        self._in_lanes.discard(task)
        self._change.set()

    @property
    def _oldest(self) -> _Item:
        return min((line[0] for line in self._lines.values()), key=lambda item: item.arrived)

    async def _next_batch(self) -> list[_Item]:
        """The oldest item and those that may share its run; none where all have left."""
        while self._lines:
            oldest = self._oldest
            if oldest.place.is_hopeless and self._has_company(oldest):
                late = DeadlineExceeded("the deadline would pass during the run; allow for more time")
                self._take(oldest).fail(late)
                continue
            mates = self._mates(self._lines[oldest.key])
            left_s = oldest.arrived + self._max_wait_s - time.perf_counter()
            if left_s <= 0 or sum(item.place.pixels for item in mates) >= self._max_pixels:
                return [self._take(item) for item in mates]
            self._change.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._change.wait()
            except TimeoutError:
                pass
        return []

    def _has_company(self, item: _Item) -> bool:
        """Whether others wait too: an item alone is tried whatever is expected, for that may be wrong."""
        return len(self._lines) > 1 or len(self._lines[item.key]) > 1

    def _mates(self, line: list[_Item]) -> list[_Item]:
        """What shares a run with the first in line: within the budget, and leaving as much to every other lane."""
        first = line[0]
        if first.alone:
            return line[:1]
        mates, pixels, most = line[:1], first.place.pixels, self._max_pixels
        if first.network.lanes_first and first.fits_lane:
            most = min(most, first.network.lane_pixels)  # or it would wait until the lanes are empty
        share = math.ceil(len(line) / self._lanes) if first.network.lane_pixels else len(line)
        for item in line[1:share]:
            pixels += item.place.pixels
            if pixels > most:
                break
            mates.append(item)
        return mates

    async def _serve(self, batch: list[_Item], lane: bool) -> None:
        """Run a batch; where that fails, each of its items alone, so that the one to blame fails alone. What memory did
        not suffice for in a lane waits again, for a run with no other beside it."""
        batch = [item for item in batch if not item.result.done()]
        if not batch:
            return
        try:
            await self._run_batch(batch, lane)
        except Exception as error:
            if lane and isinstance(error, OutOfMemory):
                for item in batch:
                    if item.is_broken:
                        item.fail(error)
                    elif not item.result.done():
                        item.alone = True
                        item.place.enter_queue()
                        self._join(item)
                return
            if len(batch) == 1:
                batch[0].fail(error)
                return
            for item in batch:
                await self._serve([item], lane)

    async def _run_batch(self, batch: list[_Item], lane: bool) -> None:
        network = batch[0].network
        self._unsettled.add(network)
        running = _Running(batch, network.begin(lane=lane))
        pixels = sum(item.place.pixels for item in batch)
        for item in batch:
            item.start()
        loop = asyncio.get_running_loop()
        self._running.append(running)
        try:
            threads = self._lane_threads if lane else self._executor
            with self._admission.running(network, pixels, lane=lane), translating(_COMPUTING):
                (results, duration_s), turn_s = await loop.run_in_executor(
                    threads, timed, _carried_out, running.run, batch
                )
        finally:
            self._running.remove(running)
        for item, result in zip(batch, results, strict=True):
            if not item.result.done():
                item.result.set_result(result)
        loop.call_soon(self._record, batch, pixels, duration_s, turn_s, lane)  # after the answers' next step

    def _record(self, batch: Sequence[_Item], pixels: int, duration_s: float, turn_s: float, lane: bool) -> None:
        """``turn_s`` is what a queue goes by: the run, and what was decoded and encoded with it."""
        network = batch[0].network
        with _never_fatal():
            self._admission.learn(network, pixels, turn_s, lane=lane)
            for item in batch:
                if item.whole:
                    self._admission.codec.learn(item.work.codec_pixels, item.codec_s)
            self._metrics.batch_size.labels(network.name).observe(sum(len(item.work.rows) for item in batch))
            self._metrics.inference_duration.labels(network.name, network.provider).observe(duration_s)

    def _settle(self) -> None:
        loop = asyncio.get_running_loop()
        for network in self._unsettled:
            loop.run_in_executor(self._executor, network.settle)
        self._unsettled = set()


_COMPUTING: Translation = {
    MemoryError: lambda error: OutOfMemory("the picture does not fit into the memory left: ask for a smaller max_side"),
}


@contextmanager
def _never_fatal() -> Iterator[None]:
    """What is only counted here must not cost anybody a picture."""
    try:
        yield
    except Exception:
        log.exception("a bug: a run could not be counted")


def timed(step: Callable[P, T], *arguments: P.args, **more: P.kwargs) -> tuple[T, float]:
    """What a step gives, and how long it took in seconds."""
    started = time.perf_counter()
    return step(*arguments, **more), time.perf_counter() - started


def _carried_out(run: Run, batch: Sequence[_Item]) -> tuple[list[object], float]:
    """The result of every item, and how long the run itself took in seconds."""
    decoded = [item.decode() for item in batch]
    outputs, duration_s = timed(run, *_stacked([image for image, _ in decoded], [item.work.rows for item in batch]))
    results, first = [], 0
    for item, (_, encode) in zip(batch, decoded, strict=True):
        results.append(item.encoded(encode, outputs[first : first + len(item.work.rows)]))
        first += len(item.work.rows)
    return results, duration_s


def _stacked(images: Sequence[Images], rows: Sequence[Rows]) -> tuple[Images, Rows]:
    """Every image (H, W, 3) once for each of its rows (R, D): (N, H, W, 3) and (N, D)."""
    if len(images) == 1 and len(rows[0]) == 1:
        return images[0][None], rows[0]
    repeated = [np.broadcast_to(image, (len(its), *image.shape)) for image, its in zip(images, rows, strict=True)]
    return np.concatenate(repeated), np.concatenate(rows)
