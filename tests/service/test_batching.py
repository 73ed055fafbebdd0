import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service.batching import Admission, Batcher
from service.errors import Saturated
from service.metrics import Metrics, Stopwatch

IMAGE = np.zeros((2, 5, 3), np.uint8)
ROWS = np.zeros((1, 0), np.float32)


class Network:
    """A run that lasts until it is let go, and counts how many go on at once."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.started = threading.Event()
        self.running = self.most = self.runs = 0

    def run(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        self.running += 1
        self.runs += 1
        self.most = max(self.most, self.running)
        self.started.set()
        self.go.wait(10)
        self.running -= 1
        return images


def make(run: Callable[[np.ndarray, np.ndarray], np.ndarray], max_pixels: int) -> tuple[Admission, Batcher]:
    metrics = Metrics()
    admission = Admission(max_pixels, metrics)
    executor = ThreadPoolExecutor(4)
    return admission, Batcher("toy", "cpu", run, lambda: None, admission, executor, metrics)


async def submit(admission: Admission, batcher: Batcher) -> np.ndarray:
    with admission.admit(10) as place:
        return await batcher.submit(place, IMAGE, ROWS, Stopwatch())


def test_a_burst_never_waits_above_the_bound_and_runs_one_at_a_time() -> None:
    network = Network()
    admission, batcher = make(network.run, max_pixels=50)
    admission.learn(10, 4.0)

    async def burst() -> list[np.ndarray | BaseException]:
        tasks = [asyncio.create_task(submit(admission, batcher)) for _ in range(100)]
        await asyncio.to_thread(network.started.wait, 10)
        assert admission.waiting_pixels <= 50
        network.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(burst())
    refused = [result for result in results if isinstance(result, Saturated)]
    assert 0 < len(results) - len(refused) <= 6
    assert all(int(error.headers["Retry-After"]) >= 4 for error in refused)
    assert network.most == 1
    assert admission.waiting_pixels == 0


def test_a_waiter_that_is_cancelled_frees_its_place_and_is_never_run() -> None:
    network = Network()
    admission, batcher = make(network.run, max_pixels=1000)

    async def scene() -> None:
        first = asyncio.create_task(submit(admission, batcher))
        await asyncio.to_thread(network.started.wait, 10)
        second = asyncio.create_task(submit(admission, batcher))
        await asyncio.sleep(0)
        assert admission.waiting_pixels == 10
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert admission.waiting_pixels == 0
        network.go.set()
        await first

    asyncio.run(scene())
    assert network.runs == 1


def test_a_run_that_is_abandoned_still_keeps_the_next_one_waiting() -> None:
    network = Network()
    admission, batcher = make(network.run, max_pixels=1000)

    async def scene() -> None:
        first = asyncio.create_task(submit(admission, batcher))
        await asyncio.to_thread(network.started.wait, 10)
        first.cancel()
        second = asyncio.create_task(submit(admission, batcher))
        await asyncio.sleep(0.05)
        assert network.runs == 1
        network.go.set()
        assert (await second).shape == (1, 2, 5, 3)

    asyncio.run(scene())
    assert network.most == 1


def test_a_run_that_fails_fails_alone() -> None:
    outcomes = iter([ValueError("bad"), None])

    def run(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if error := next(outcomes):
            raise error
        return images

    admission, batcher = make(run, max_pixels=1000)

    async def scene() -> None:
        with pytest.raises(ValueError, match="bad"):
            await submit(admission, batcher)
        await submit(admission, batcher)

    asyncio.run(scene())
