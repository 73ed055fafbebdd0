"""What the processes of a worker did, counted in the one that forked them: it is the one that tells Prometheus."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import asdict, dataclass
from typing import Self

from service.jobs.job import Job
from service.metrics import WorkerMetrics


@dataclass(frozen=True)
class End:
    """Of a job that succeeded or failed, as metrics have it."""

    outcome: str
    preset: str
    iterations: int
    wait_s: float
    duration_s: float

    @classmethod
    def of(cls, job: Job) -> Self:
        started_at = job.started_at if job.started_at is not None else job.created_at
        finished_at = job.finished_at if job.finished_at is not None else started_at
        wait_s, duration_s = max(0.0, started_at - job.created_at), max(0.0, finished_at - started_at)
        return cls(job.status, job.parameters.preset, job.iteration, wait_s, duration_s)

    def count(self, metrics: WorkerMetrics) -> None:
        metrics.jobs_finished.labels(self.outcome).inc()
        metrics.job_iterations.inc(self.iterations)
        metrics.job_wait.observe(self.wait_s)
        metrics.job_duration.labels(self.preset).observe(self.duration_s)


class Tally:
    """A pipe: any of the processes writes a line, which is too short to be torn, and the first one counts it. A pipe
    that is full loses a count, for no job waits for its metrics."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def begin(self) -> None:
        """Count, in this process, from a thread."""
        threading.Thread(target=self._count, daemon=True).start()

    def ended(self, job: Job) -> None:
        self._tell(asdict(End.of(job)))

    def restarted(self, kind: str) -> None:
        self._tell({"restarted": kind})

    def _tell(self, what: dict[str, object]) -> None:
        with contextlib.suppress(OSError):
            os.write(self._write, f"{json.dumps(what)}\n".encode())

    def _count(self) -> None:
        with open(self._read, closefd=False) as lines:
            for line in lines:
                what = json.loads(line)
                if "restarted" in what:
                    self._metrics.worker_restarts.labels(what["restarted"]).inc()
                else:
                    End(**what).count(self._metrics)
