import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from service import batching
from service.batching import Admission, Batcher, Expected, Latency, Margin, Work
from service.errors import DeadlineExceeded, InvalidImage, OutOfMemory, Saturated
from service.metrics import Metrics, Stopwatch
from service.models.catalog import ServedModel, served
from service.models.session import Session
from service.models.store import ModelStore, StoredModel

STORE = Path(__file__).parents[2] / "model_store"
PATIENCE_S = 30

T = TypeVar("T")


class Network:
    """255 - x + the row's first number; each run lasts until it is let go or stopped. Memory suffices for ``fit``."""

    provider = "cpu"
    lane_pixels = 0
    lanes_first = False
    fit = 4

    def __init__(self, name: str = "toy", fails: Callable[[np.ndarray], bool] = lambda images: False) -> None:
        self.name = name
        self.fails = fails
        self.go = threading.Event()
        self.started = threading.Event()
        self.batches: list[int] = []
        self.lanes: list[bool] = []
        self.running = self.most = self.settled = 0
        self.stopped = False

    def begin(self, *, lane: bool = False) -> "Run":
        self.lanes.append(lane)
        return Run(self)

    def settle(self) -> None:
        self.settled += 1


class Run:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.stopping = threading.Event()

    def __call__(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        network = self.network
        network.running += 1
        network.most = max(network.most, network.running)
        network.batches.append(len(images))
        network.started.set()
        try:
            if network.running > network.fit:
                raise OutOfMemory("no memory")
            give_up = time.monotonic() + PATIENCE_S
            while not network.go.wait(0.005):
                assert time.monotonic() < give_up
                if self.stopping.is_set():
                    raise RuntimeError("stopped")
            if network.fails(images):
                raise ValueError("bad")
            outputs: np.ndarray = (255 - images + rows[:, :1, None, None]).astype(np.uint8)
            return outputs
        finally:
            network.running -= 1

    def stop(self) -> None:
        self.network.stopped = True
        self.stopping.set()


class Bench:
    """A batcher and its surroundings; pictures are told apart by their value."""

    def __init__(self, max_waiting: int = 10_000, max_pixels: int = 100, max_wait_ms: float = 0) -> None:
        self.metrics = Metrics()
        self.admission = Admission(max_waiting, self.metrics, lanes=2)
        run, codec = ThreadPoolExecutor(4, "run"), ThreadPoolExecutor(2, "codec")
        self.batcher = Batcher(self.admission, run, codec, self.metrics, max_pixels, max_wait_ms)
        self.peak = 0

    async def submit(
        self,
        network: Network,
        value: int = 0,
        shape: tuple[int, int] = (2, 5),
        rows: int = 1,
        watch: Stopwatch | None = None,
    ) -> np.ndarray:
        image = np.full((*shape, 3), value, np.uint8)
        with self.admission.admit(network, shape[0] * shape[1] * rows) as place:
            self.peak = max(self.peak, self.admission.waiting_pixels)
            styles = np.arange(rows, dtype=np.float32)[:, None]
            return await self.batcher.submit(network, place, image, styles, watch or Stopwatch())

    async def paint(self, network: Network, work: Work[T], watch: Stopwatch) -> T:
        with self.admission.admit(network, work.shape[0] * work.shape[1]) as place:
            return await self.batcher.paint(network, place, work, watch)

    def task(self, network: Network, **how: object) -> "asyncio.Task[np.ndarray]":
        return asyncio.create_task(self.submit(network, **how))  # type: ignore[arg-type]

    async def occupied(self, network: Network) -> "asyncio.Task[np.ndarray]":
        """A run goes on, of a shape that nothing else has."""
        task = self.task(network, shape=(1, 1))
        assert await asyncio.to_thread(network.started.wait, PATIENCE_S)
        return task

    def value(self, sample: str, **labels: str) -> float | None:
        return self.metrics._registry.get_sample_value(sample, labels)


def play(scene: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * PATIENCE_S):
            await scene

    asyncio.run(bounded())


def test_a_burst_never_waits_above_the_bound_and_runs_one_at_a_time() -> None:
    network, bench = Network(), Bench(max_waiting=50, max_pixels=0)
    bench.admission.learn(network, 10, 4.0)

    async def scene() -> None:
        tasks = [bench.task(network) for _ in range(100)]
        assert await asyncio.to_thread(network.started.wait, PATIENCE_S)
        network.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [result for result in results if isinstance(result, Saturated)]
        assert 0 < len(results) - len(refused) <= 6
        assert all(int(error.headers["Retry-After"]) >= 4 for error in refused)

    play(scene())
    assert bench.peak == 50
    assert network.most == 1
    assert bench.admission.waiting_pixels == 0
    assert bench.admission.waiting_s == pytest.approx(0)


def test_what_came_during_a_run_shares_the_next_as_far_as_the_budget_goes() -> None:
    network, bench = Network(), Bench(max_pixels=40)

    async def scene() -> None:
        first = await bench.occupied(network)
        tasks = [bench.task(network, value=value, rows=rows) for value, rows in enumerate((1, 2, 1, 1, 1))]
        await asyncio.sleep(0)
        assert bench.value("stylize_queue_depth", model="toy") == 5
        network.go.set()
        results = await asyncio.gather(*tasks)
        for value, (result, rows) in enumerate(zip(results, (1, 2, 1, 1, 1), strict=True)):
            assert result.shape == (rows, 2, 5, 3)
            assert [np.unique(row).tolist() for row in result] == [[(255 - value + row) % 256] for row in range(rows)]
        await first

    play(scene())
    assert network.batches == [1, 4, 2]
    assert bench.value("stylize_queue_depth", model="toy") == 0
    assert bench.value("stylize_batch_size_sum", model="toy") == 7


def test_shapes_and_networks_are_not_mixed_and_the_oldest_goes_first() -> None:
    one, other, bench = Network("one"), Network("other"), Bench()

    async def scene() -> None:
        order: list[str] = []
        first = await bench.occupied(one)
        tasks = [
            bench.task(one, shape=(3, 3)),
            bench.task(other, shape=(3, 3)),
            bench.task(one, shape=(4, 3)),
            bench.task(one, shape=(3, 3)),
        ]
        for task, name in zip(tasks, "abca", strict=True):
            task.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
        await asyncio.sleep(0)
        one.go.set()
        other.go.set()
        await asyncio.gather(first, *tasks)
        assert order == ["a", "a", "b", "c"]

    play(scene())
    assert (one.batches, other.batches) == ([1, 2, 1], [1])


def test_an_oversize_picture_runs_alone() -> None:
    network, bench = Network(), Bench(max_pixels=20)

    async def scene() -> None:
        first = await bench.occupied(network)
        tasks = [bench.task(network, shape=(5, 5)) for _ in range(3)]
        await asyncio.sleep(0)
        network.go.set()
        await asyncio.gather(first, *tasks)

    play(scene())
    assert network.batches == [1, 1, 1, 1]


def test_the_clock_starts_with_the_first_item_and_a_full_budget_does_not_wait_for_it() -> None:
    network, bench = Network(), Bench(max_pixels=20, max_wait_ms=600_000)
    network.go.set()

    async def scene() -> None:
        first = bench.task(network)
        await asyncio.sleep(0.05)
        assert not first.done()
        await asyncio.gather(first, bench.task(network))

    play(scene())
    assert network.batches == [2]


def test_the_clock_runs_out() -> None:
    network, bench = Network(), Bench(max_wait_ms=1)
    network.go.set()
    play(bench.submit(network))  # type: ignore[arg-type]
    assert network.batches == [1]


def test_a_waiter_that_is_cancelled_frees_its_place_and_is_never_run() -> None:
    network, bench = Network(), Bench()

    async def scene() -> None:
        first = await bench.occupied(network)
        second = bench.task(network)
        await asyncio.sleep(0)
        assert bench.admission.waiting_pixels == 10
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert bench.admission.waiting_pixels == 0
        assert bench.value("stylize_queue_depth", model="toy") == 0
        network.go.set()
        await first

    play(scene())
    assert network.batches == [1]


def test_a_run_is_stopped_once_nobody_wants_any_of_it_and_the_next_is_served() -> None:
    network, bench = Network(), Bench()

    async def scene() -> None:
        held = await bench.occupied(network)
        tasks = [bench.task(network) for _ in range(2)]
        await asyncio.sleep(0)
        held.cancel()  # stops the first run: the two begin, together
        while network.batches != [1, 2]:
            await asyncio.sleep(0.005)
        network.stopped = False
        watch = Stopwatch()
        following = bench.task(network, shape=(7, 7), watch=watch)
        tasks[0].cancel()
        await asyncio.sleep(0.05)
        assert not network.stopped  # the other still wants it
        assert watch.stage == "queue"
        tasks[1].cancel()
        await asyncio.gather(held, *tasks, return_exceptions=True)
        assert network.stopped
        network.go.set()
        assert (await following).shape == (1, 7, 7, 3)

    play(scene())
    assert network.most == 1
    assert network.batches == [1, 2, 1]


def work(
    value: int, threads: list[str], quick: bool = True, gate: threading.Event | None = None
) -> Work[tuple[int, str]]:
    """Of a picture (2, 5) of one value: what becomes of it, and the thread that encoded it."""
    image = np.full((2, 5, 3), value, np.uint8)

    def decode() -> tuple[np.ndarray, Callable[[np.ndarray], tuple[int, str]]]:
        threads.append(threading.current_thread().name.partition("_")[0])
        if gate:
            assert gate.wait(PATIENCE_S)
        if value == 7:
            raise InvalidImage("bad")
        return image, lambda outputs: (int(outputs.max()), threading.current_thread().name.partition("_")[0])

    return Work(image.shape, np.zeros((1, 1), np.float32), decode, quick)


def test_quick_work_takes_one_turn_of_one_thread_where_nobody_else_waits() -> None:
    network, bench = Network(), Bench()
    network.go.set()
    decoded: list[str] = []

    async def scene() -> None:
        watch = Stopwatch()
        assert await bench.paint(network, work(1, decoded), watch) == (254, "run")
        assert list(watch.durations_s) == ["queue", "decode", "infer", "encode"]
        assert await bench.paint(network, work(1, decoded, quick=False), Stopwatch()) == (254, "codec")
        network.go.clear()
        network.started.clear()
        first = asyncio.create_task(bench.paint(network, work(2, decoded), Stopwatch()))
        assert await asyncio.to_thread(network.started.wait, PATIENCE_S)
        second = asyncio.create_task(bench.paint(network, work(3, decoded), Stopwatch()))
        while len(decoded) < 4:  # while the first runs
            await asyncio.sleep(0.005)
        network.go.set()
        assert (await first, await second) == ((253, "run"), (252, "codec"))

    play(scene())
    assert decoded == ["run", "codec", "run", "codec"]


def test_a_picture_that_cannot_be_decoded_where_it_runs_costs_nobody_else_anything() -> None:
    network, bench = Network(), Bench()
    network.go.set()

    async def scene() -> None:
        bad = asyncio.create_task(bench.paint(network, work(7, []), Stopwatch()))
        good = bench.task(network, value=1)
        with pytest.raises(InvalidImage):
            await bad
        assert np.unique(await good).tolist() == [254]

    play(scene())
    assert bench.admission.waiting_pixels == 0


def test_one_that_leaves_while_it_is_decoded_where_it_runs_is_never_run() -> None:
    network, bench, gate = Network(), Bench(), threading.Event()
    decoded: list[str] = []

    async def scene() -> None:
        watch = Stopwatch()
        leaving = asyncio.create_task(bench.paint(network, work(1, decoded, gate=gate), watch))
        while not decoded:
            await asyncio.sleep(0.005)
        assert watch.stage == "decode"
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert network.stopped  # before its first node
        gate.set()
        network.go.set()
        assert (await bench.submit(network, value=2)).max() == 253

    play(scene())
    assert network.most == 1


def test_small_runs_go_beside_each_other_where_several_wait_and_one_alone_has_every_thread() -> None:
    network, bench = Network(), Bench(max_pixels=0)
    network.lane_pixels = 10

    async def scene() -> None:
        alone = bench.task(network)
        assert await asyncio.to_thread(network.started.wait, PATIENCE_S)
        waiting = [bench.task(network, value=value) for value in range(5)]
        large = bench.task(network, shape=(5, 5))
        after = bench.task(network, value=9)
        await asyncio.sleep(0.05)
        assert network.running == 1  # what has every thread has no company
        network.go.set()
        results = await asyncio.gather(*waiting)
        assert [int(result.max()) for result in results] == [255, 254, 253, 252, 251]
        await asyncio.gather(alone, large, after)

    play(scene())
    assert network.lanes == [False, True, True, True, True, True, False, False]
    assert bench.admission.waiting_s == pytest.approx(0)


def test_where_lanes_come_first_small_runs_go_beside_each_other_from_the_first_on() -> None:
    network, bench = Network(), Bench(max_pixels=0)
    network.lane_pixels, network.lanes_first = 10, True

    async def scene() -> None:
        small = [bench.task(network, value=value) for value in range(3)]
        large = bench.task(network, shape=(5, 5))
        while network.running != 2:
            await asyncio.sleep(0.005)
        assert network.lanes == [True, True]
        network.go.set()
        assert [int(result.max()) for result in await asyncio.gather(*small)] == [255, 254, 253]
        await large

    play(scene())
    assert network.lanes == [True, True, True, False]
    assert network.most == 2


@pytest.mark.parametrize(("fit", "made"), [(1, [255, 254, 253, 252]), (0, [None] * 4)])
def test_what_memory_does_not_suffice_for_in_a_lane_runs_alone_before_it_fails(
    fit: int, made: list[int | None]
) -> None:
    network, bench = Network(), Bench(max_pixels=0)
    network.lane_pixels, network.lanes_first, network.fit = 10, True, fit

    async def scene() -> None:
        tasks = [bench.task(network, value=value) for value in range(4)]
        while network.running != fit or len(network.lanes) < 2:
            await asyncio.sleep(0.005)
        network.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [None if isinstance(result, OutOfMemory) else int(result.max()) for result in results] == made  # type: ignore[union-attr]
        assert bench.value("stylize_queue_depth", model="toy") == 0

    play(scene())
    alone = network.lanes.count(False)
    assert alone == 4 if fit == 0 else alone >= 1
    assert len(network.lanes) == 4 + alone


def test_what_waits_is_shared_among_the_lanes() -> None:
    network, bench = Network(), Bench(max_pixels=100)
    network.lane_pixels = 100

    async def scene() -> None:
        first = await bench.occupied(network)
        waiting = [bench.task(network) for _ in range(5)]
        await asyncio.sleep(0)
        network.go.set()
        await asyncio.gather(first, *waiting)

    play(scene())
    assert network.batches == [1, 3, 1, 1]


def test_one_that_leaves_a_lane_stops_its_own_run_alone() -> None:
    network, bench = Network(), Bench(max_pixels=0)
    network.lane_pixels = 10

    async def scene() -> None:
        first = await bench.occupied(network)
        staying, leaving = bench.task(network, value=1), bench.task(network, value=2)
        await asyncio.sleep(0)
        first.cancel()  # stops it: the two begin, beside each other
        while network.lanes != [False, True, True] or network.running != 2:
            await asyncio.sleep(0.005)
        leaving.cancel()
        while network.running != 1:
            await asyncio.sleep(0.005)
        assert not staying.done()
        network.go.set()
        assert int((await staying).max()) == 254
        assert (await bench.submit(network, value=3)).max() == 252

    play(scene())


def test_one_whose_deadline_passes_as_a_run_ends_leaves_nobody_waiting() -> None:
    """Its result is cancelled at once, but it leaves the line one step later: the loop meets it in between."""
    network, bench = Network(), Bench(max_pixels=0)
    bench.admission._margin.factor = 0.0  # all are admitted
    bench.admission.learn(network, 10, 60.0)

    async def hurried() -> None:
        with bench.admission.admit(network, 10, time.monotonic() + 30) as place:
            image, row = np.zeros((2, 5, 3), np.uint8), np.zeros((1, 1), np.float32)
            await bench.batcher.submit(network, place, image, row, Stopwatch())

    async def scene() -> None:
        first = await bench.occupied(network)
        late = asyncio.create_task(hurried())
        patient = bench.task(network, value=3)
        await asyncio.sleep(0)
        network.go.set()
        time.sleep(0.3)  # the loop is held up: the run's end waits for its turn
        asyncio.get_running_loop().call_soon(late.cancel)
        assert (await patient).max() == 252
        await asyncio.gather(first, late, return_exceptions=True)
        assert late.cancelled()

    play(scene())
    assert bench.admission.waiting_pixels == 0


def test_a_bug_in_the_loop_is_told_to_all_that_wait_and_the_next_is_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    network, bench = Network(), Bench()

    async def scene() -> None:
        first = await bench.occupied(network)
        waiting = [bench.task(network) for _ in range(3)]
        await asyncio.sleep(0)
        with monkeypatch.context() as patch:
            patch.setattr(bench.batcher, "_mates", lambda line: 1 / 0)
            network.go.set()
            results = await asyncio.gather(first, *waiting, return_exceptions=True)
        assert [type(result) for result in results] == [np.ndarray, *[ZeroDivisionError] * 3]
        assert (await bench.submit(network, value=3)).max() == 252

    play(scene())
    assert bench.admission.waiting_pixels == 0
    assert bench.value("stylize_queue_depth", model="toy") == 0


def test_a_file_that_is_damaged_is_read_once_and_fails_though_its_batch_is_tried_again() -> None:
    """As Pillow's, which gives what it has of a picture the second time."""
    network, bench = Network(), Bench()
    network.lane_pixels = 10
    read: list[int] = []

    def damaged() -> tuple[np.ndarray, Callable[[np.ndarray], int]]:
        read.append(1)
        if len(read) == 1:
            raise InvalidImage("damaged")
        return np.zeros((2, 5, 3), np.uint8), lambda outputs: 0

    def whole() -> tuple[np.ndarray, Callable[[np.ndarray], int]]:
        return np.zeros((2, 5, 3), np.uint8), lambda outputs: int(outputs.max())

    async def scene() -> None:
        first = await bench.occupied(network)
        rows = np.zeros((1, 1), np.float32)
        works = [Work((2, 5, 3), rows, decode, quick=True) for decode in (whole, damaged, whole)]
        tasks = [asyncio.create_task(bench.paint(network, work, Stopwatch())) for work in works]
        await asyncio.sleep(0)
        network.go.set()
        await first
        good, bad, also_good = await asyncio.gather(*tasks, return_exceptions=True)
        assert (good, also_good) == (255, 255)
        assert isinstance(bad, InvalidImage)

    play(scene())
    assert len(read) == 1


def test_memory_that_ends_while_pixels_are_put_together_is_told_as_such() -> None:
    network, bench = Network(), Bench()
    network.go.set()

    def too_large() -> tuple[np.ndarray, Callable[[np.ndarray], int]]:
        raise MemoryError

    async def scene() -> None:
        work = Work((2, 5, 3), np.zeros((1, 1), np.float32), too_large, quick=True)
        with pytest.raises(OutOfMemory, match="max_side"):
            await bench.paint(network, work, Stopwatch())

    play(scene())


def test_an_item_that_fails_fails_alone() -> None:
    network, bench = Network(fails=lambda images: bool((images == 7).any())), Bench()

    async def scene() -> None:
        first = await bench.occupied(network)
        tasks = [bench.task(network, value=value) for value in (1, 7, 2)]
        await asyncio.sleep(0)
        network.go.set()
        one, bad, two = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(bad, ValueError)
        assert [np.unique(np.asarray(result)).tolist() for result in (one, two)] == [[254], [253]]
        await first

    play(scene())
    assert network.batches == [1, 3, 1, 1, 1]


def test_what_is_only_counted_costs_nobody_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    network, bench = Network(), Bench()
    network.go.set()

    def broken(*labels: str) -> None:
        raise RuntimeError("no metrics today")

    for metric in (bench.metrics.queue_depth, bench.metrics.batch_size):
        monkeypatch.setattr(metric, "labels", broken)

    async def scene() -> None:
        assert len(await asyncio.gather(*(bench.task(network) for _ in range(3)))) == 3
        await bench.submit(network)

    play(scene())


def test_a_network_settles_once_it_has_been_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "IDLE_S", 0.25)
    network, bench = Network(), Bench()
    network.go.set()

    async def scene() -> None:
        await bench.submit(network)
        while not network.settled:
            await asyncio.sleep(0.02)

    play(scene())
    assert network.settled == 1


def test_latency_is_learnt_and_neither_a_hiccup_nor_one_size_misleads_it() -> None:
    latency = Latency()
    assert latency.predict(10**6) == 0
    noise = np.random.default_rng(0).normal(1, 0.05, 200)
    for pixels, factor in zip([4096, 65_536, 262_144, 10**6] * 50, noise, strict=True):
        latency.learn(pixels, (0.6 * pixels / 1e6 + 0.004) * factor)
    assert latency.predict(2 * 10**6) == pytest.approx(1.2, rel=0.15)
    assert latency.predict(4096) == pytest.approx(0.0065, rel=0.15)
    latency.learn(262_144, 60.0)
    assert latency.predict(10**6) < 1.5
    for _ in range(200):
        latency.learn(262_144, 2 * (0.6 * 0.262144 + 0.004))  # half as fast from now on, one size
    assert latency.predict(262_144) == pytest.approx(0.3226, rel=0.05)
    assert latency.predict(1) >= 0


def test_the_margin_is_what_all_but_one_in_a_hundred_keep() -> None:
    margin, took = Margin(), np.random.default_rng(0).lognormal(0.2, 0.2, 4000)
    late = []
    for ratio in took:
        late.append(ratio > margin.factor)
        margin.learn(1.0, float(ratio))
    assert 0.002 < np.mean(late[1000:]) < 0.025
    assert margin.factor == pytest.approx(np.quantile(took, 0.99), rel=0.25)
    for _ in range(4000):
        margin.learn(1.0, 0.9)
    assert margin.factor == Margin.LEAST
    for _ in range(100):
        margin.learn(1.0, 1000.0)
    assert margin.factor == Margin.MOST


def test_where_answers_came_late_less_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    network, admission = Network(), Admission(10**6, Metrics())
    admission.learn(network, 10_000, 1.0)

    def promised(deadline_s: float) -> bool:
        try:
            with admission.admit(network, 10_000, now[0] + deadline_s):
                return True
        except Saturated:
            return False

    with admission.admit(network, 10_000):  # a second of work is ahead of everybody else
        assert promised(3)
        assert not promised(1.5)
        for _ in range(10):
            with admission.admit(network, 10_000):
                now[0] += 6
        assert not promised(3)
        assert promised(8)
        for _ in range(5000):
            assert promised(8)  # answered at once
        assert promised(3)
    assert promised(0.5)  # an idle service tries


def test_a_deadline_that_cannot_be_met_is_refused_at_once_and_an_idle_service_tries() -> None:
    network, admission, now = Network(), Admission(10**6, Metrics()), time.monotonic()
    for pixels in (10_000, 1_000_000):
        admission.learn(network, pixels, pixels / 1e6 * 100)  # 100 s a megapixel
    with admission.admit(network, 10_000, now + 0.01):  # idle: it may be wrong
        with pytest.raises(Saturated, match="deadline") as refused, admission.admit(network, 10_000, now + 1.5):
            pass
        assert refused.value.retry_after_s == 1
        with admission.admit(network, 10_000, now + 60):
            pass
    assert admission.waiting_pixels == 0


def test_photos_that_wait_to_be_decoded_are_bounded_whatever_becomes_of_them() -> None:
    network = Network()
    admission = Admission(10**6, Metrics(), max_source_pixels=100, codec_threads=2)
    admission.codec.learn(10**6, 8.0)
    with admission.admit(network, 1, source_pixels=10**6):  # a single one may be as large as photos are
        with pytest.raises(Saturated, match="decoded") as refused, admission.admit(network, 1, source_pixels=1):
            pass
        assert refused.value.retry_after_s == 4  # on two threads
        with pytest.raises(Saturated):
            admission.check(None)
    with admission.admit(network, 1, source_pixels=60) as place:
        admission.check(None)
        with pytest.raises(Saturated), admission.admit(network, 1, source_pixels=60):
            pass
        place.decoded()
        place.decoded()
        with admission.admit(network, 1, source_pixels=60):
            assert admission.source_pixels == 60
    assert (admission.source_pixels, admission.waiting_pixels) == (0, 0)


def test_a_deadline_reckons_with_the_photos_that_are_decoded_before() -> None:
    network, admission = Network(), Admission(10**6, Metrics(), codec_threads=2)
    admission.codec.learn(10**6, 1.0)
    with admission.admit(network, 1, source_pixels=8 * 10**6):
        with pytest.raises(Saturated, match="cannot be met"):
            admission.check(time.monotonic() + 4)
        admission.check(time.monotonic() + 60)
    admission.check(time.monotonic() + 4)


def test_in_lanes_a_queue_goes_by_faster_than_a_run_does(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    network, admission = Network(), Admission(10**6, Metrics(), lanes=2)
    network.lane_pixels = 10_000
    admission.learn(network, 10_000, 1.5)  # on every thread
    assert admission.expected(network, 10_000) == Expected(own_s=3.0, queue_s=1.5)  # as slow as a thread can be
    admission.learn(network, 10_000, 2.0, lane=True)
    assert admission.expected(network, 10_000) == Expected(own_s=2.0, queue_s=1.0)
    assert admission.expected(network, 20_000) == Expected(own_s=3.0, queue_s=3.0)  # too large for a lane

    def promised(deadline_s: float) -> bool:
        try:
            with admission.admit(network, 10_000, now[0] + deadline_s):
                return True
        except Saturated:
            return False

    with ExitStack() as queue:
        for _ in range(2):
            queue.enter_context(admission.running(network, 10_000, lane=True))
        for _ in range(4):
            queue.enter_context(admission.admit(network, 10_000))
        assert not promised(Margin.LEAST * 7.9)  # six runs ahead, two at a time, and its own
        assert promised(Margin.LEAST * 8.1)
        now[0] = 1.0  # half of what runs is done
        assert not promised(Margin.LEAST * 6.9)
        assert promised(Margin.LEAST * 7.1)
    with admission.running(network, 20_000, lane=False):
        assert not promised(Margin.LEAST * 4.9)
        assert promised(Margin.LEAST * 5.1)


def test_what_is_learnt_of_a_run_beside_another_is_its_whole_time() -> None:
    network, bench = Network(), Bench(max_pixels=0)
    network.lane_pixels = 10

    async def scene() -> None:
        first = await bench.occupied(network)
        waiting = [bench.task(network) for _ in range(2)]
        await asyncio.sleep(0)
        first.cancel()  # stops it: the two begin, beside each other
        while network.running != 2 or len(network.lanes) < 3:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.2)
        network.go.set()
        await asyncio.gather(*waiting)
        await asyncio.sleep(0)

    play(scene())
    expected = bench.admission.expected(network, 10)
    assert expected.own_s >= 0.2
    assert expected.queue_s == expected.own_s / 2


def test_one_whose_deadline_would_pass_during_its_run_gives_way_and_one_alone_is_tried() -> None:
    network, bench = Network(), Bench(max_pixels=0)
    bench.admission.learn(network, 10, 5.0)

    async def submit(value: int, deadline_s: float) -> np.ndarray:
        image, row = np.full((2, 5, 3), value, np.uint8), np.zeros((1, 1), np.float32)
        with bench.admission.admit(network, 10, time.monotonic() + deadline_s) as place:
            return await bench.batcher.submit(network, place, image, row, Stopwatch())

    async def scene() -> None:
        alone = asyncio.create_task(submit(1, 2.0))  # hopeless, but nobody else would gain
        assert await asyncio.to_thread(network.started.wait, PATIENCE_S)
        bench.admission._margin.factor = 0.0  # let anything in
        hopeless, hopeful = (asyncio.create_task(submit(value, deadline_s)) for value, deadline_s in ((2, 4), (3, 60)))
        await asyncio.sleep(0)
        network.go.set()
        assert (await alone).max() == 254
        with pytest.raises(DeadlineExceeded):
            await hopeless
        assert (await hopeful).max() == 252

    play(scene())
    assert network.batches == [1, 1]
    assert bench.admission.waiting_pixels == 0
    assert bench.admission._margin.factor > 0  # it has learnt of it


def shipped(name: str) -> StoredModel:
    return next(model for model in ModelStore(STORE).networks() if model.card.name == name)


@pytest.mark.parametrize("size", [(64, 64), (65, 47), (33, 120)])
@pytest.mark.parametrize("name", ["deep", "multistyle", "fast"])
def test_batches_of_a_shipped_network_have_the_very_bits_of_single_runs(name: str, size: tuple[int, int]) -> None:
    """Through the batcher, so that stacking and splitting are part of it."""
    stored = shipped(name)
    model = ServedModel(stored, Session(stored, "cpu", 2))
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (*size, 3), np.uint8) for _ in range(4)]
    vectors = [stored.vectors[name] for name in ("starry_night", "great_wave", "photo", "kiss")]
    rows = [vectors[0][None], np.stack(vectors[1:3]), vectors[3][None], vectors[1][None]]
    alone = [
        np.concatenate([model.begin()(image[None], row[None]) for row in its])
        for image, its in zip(images, rows, strict=True)
    ]

    async def scene() -> None:
        for count in range(1, 5):
            metrics = Metrics()
            admission = Admission(10**6, metrics, lanes=2)
            batcher = Batcher(admission, ThreadPoolExecutor(1), ThreadPoolExecutor(1), metrics, 10**6, 600_000)
            batcher._max_pixels = sum(len(its) for its in rows[:count]) * size[0] * size[1]  # full: it waits no more

            async def submit(index: int, admission: Admission = admission, batcher: Batcher = batcher) -> np.ndarray:
                with admission.admit(model, len(rows[index]) * size[0] * size[1]) as place:
                    return await batcher.submit(model, place, images[index], rows[index], Stopwatch())

            results = await asyncio.gather(*(submit(index) for index in range(count)))
            assert all(np.array_equal(mine, theirs) for mine, theirs in zip(results, alone, strict=False))
            sample = metrics._registry.get_sample_value("stylize_batch_size_sum", {"model": name})
            assert sample == sum(len(its) for its in rows[:count])

    play(scene())


@pytest.mark.parametrize("size", [(64, 64), (257, 301), (512, 512)])
@pytest.mark.parametrize("name", ["deep", "multistyle", "fast"])
def test_a_run_in_a_lane_has_the_very_bits_of_one_on_every_thread(name: str, size: tuple[int, int]) -> None:
    stored = shipped(name)
    model = served(stored, "cpu", 2, lanes=True)
    assert model.lane_pixels >= size[0] * size[1]
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    row = stored.vectors["kiss"][None]
    assert np.array_equal(model.begin(lane=True)(image, row), model.begin()(image, row))
