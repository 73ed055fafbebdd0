"""How soon a run that nobody wants any more has ended."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bench.work import STYLE, shipped
from service.models.catalog import ServedModel, StoppableRun
from service.models.session import Session, cpu_quota

LEAST_S = 1.2  # that the run takes which is stopped
GOAL_S = 0.3
AT = 0.25  # of it was done when it was stopped
WIDTH = 512  # pixels


class Stopping:
    """The shipped network, and a picture that takes it at least LEAST_S."""

    def __init__(self, threads: int) -> None:
        stored = shipped()
        self._model = ServedModel(stored, Session(stored, "cpu", threads))
        self._row = stored.vectors[STYLE][None]
        height, self.whole_s = WIDTH, 0.0
        while self.whole_s < LEAST_S:
            height = int(height * min(4.0, max(1.1, 1.1 * LEAST_S / self.whole_s))) if self.whole_s else height
            self._image = np.zeros((1, height, WIDTH, 3), np.uint8)
            self._run(self._model.begin())  # the first one of a size grows the arena
            self.whole_s = self._run(self._model.begin())

    def stop(self) -> float | None:
        """Seconds from the stop of a run to its end; None where it had come to its end before."""
        run = self._model.begin()
        with ThreadPoolExecutor(1) as thread:
            going = thread.submit(self._run, run)
            time.sleep(AT * self.whole_s)
            stopped = time.perf_counter()
            run.stop()
            error = going.exception()
            return time.perf_counter() - stopped if error and "terminate" in str(error) else None

    def paint(self, image: np.ndarray) -> np.ndarray:
        """(1, H, W, 3), by the same session."""
        return self._model.begin()(image, self._row)

    def _run(self, run: StoppableRun) -> float:
        """Seconds that it takes."""
        started = time.perf_counter()
        run(self._image, self._row)
        return time.perf_counter() - started


def measure_stops(rounds: int) -> str:
    """A line of Markdown."""
    stopping = Stopping(cpu_quota())
    found = [stopped_s for _ in range(rounds) if (stopped_s := stopping.stop()) is not None]
    if not found:
        return "* Every run came to its end before it was stopped: this machine is not idle."
    kept = "" if max(found) <= GOAL_S else ", MISSED"
    return (
        f"* A run of {stopping.whole_s:.1f} s that nobody wants any more ends {1000 * float(np.median(found)):.0f} ms "
        f"after it was stopped (median; at most {1000 * max(found):.0f}; goal: {1000 * GOAL_S:.0f}{kept})."
    )
