"""The supervisor: keeps workers at work, replaces the dead, and wakes whoever watches a job.

A worker is started when there is something to do, so that a service nobody asks for a job never loads torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from service.errors import DeadlineExceeded, GatysUnavailable, NotFound, NotReady
from service.jobs.job import UNFINISHED, Event, Job, Lease, Status
from service.jobs.queue import JobQueue, LeaseLost, QueueUnusable
from service.jobs.webhook import Webhooks
from service.metrics import Metrics

log = logging.getLogger(__name__)

CANCEL_GRACE_S = 1.5  # for a worker to notice; then it is killed, for the contract says two seconds
SWEEP_S = 30.0
AWAY_S = 1.0  # before a queue that was away is asked again
FAILED_START_S = 5.0  # before a worker that did not even start is replaced
SURPRISE_S = 1.0  # before a duty that ended by a bug is begun anew
REMEDY = "install the extra 'gatys' (torch and safetensors) and restart the service"

OpenQueue = Callable[[], JobQueue]
Duty = Callable[[], Coroutine[None, None, None]]
End = Literal["done", "died", "cancelled", "time_limit"]


@dataclass(frozen=True)
class Crew:
    """How many workers, with how many threads each; seconds that a job may take, and that its result is kept; where
    data and networks are, and what networks run on."""

    workers: int
    threads: int
    time_limit_s: float
    result_ttl_s: float
    data_dir: Path
    store: Path
    provider: str = "auto"


class Supervisor:
    """Runs the workers of a queue, inside the web process's event loop. ``open_queue`` raises QueueUnusable."""

    def __init__(
        self,
        open_queue: OpenQueue,
        crew: Crew,
        metrics: Metrics,
        webhooks: Webhooks | None,
        ending: asyncio.Event,
    ) -> None:
        """``ending`` is set when the service is about to end."""
        self._open, self._crew, self._metrics, self._webhooks = open_queue, crew, metrics, webhooks
        self._ending = ending
        self._queue: JobQueue | None = None
        self._unusable = "the queue is not open"
        self._tasks: list[asyncio.Task[None]] = []
        self._work = asyncio.Event()
        self._told: dict[str, asyncio.Event] = {}
        self._cancelled: dict[str, asyncio.Event] = {}

    @property
    def queue(self) -> JobQueue:
        """Raises GatysUnavailable saying what to do."""
        if self._queue is None:
            raise GatysUnavailable(self._unusable)
        return self._queue

    @property
    def reasons(self) -> Sequence[str]:
        """Why the service is not ready, as far as jobs go. A folder that cannot be used is none: pictures are made."""
        return ()

    @property
    def troubles(self) -> Sequence[str]:
        """What those who run the service should know of its jobs while it is ready."""
        return () if self._queue else (self._unusable,)

    def check_workers(self) -> None:
        """Whether jobs are taken here. Raises GatysUnavailable saying what to do."""
        if self._crew.workers == 0:
            raise GatysUnavailable("STYLIZE_GATYS_WORKERS is 0: no workers are kept here")
        _ = self.queue

    def check_available(self) -> None:
        """Whether pictures can be optimised here. Raises GatysUnavailable saying what to do."""
        self.check_workers()
        missing = [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]
        if missing:
            raise GatysUnavailable(f"{' and '.join(missing)} cannot be found: {REMEDY}")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work while the block lasts. A job that runs at its end is resumed by the next service."""
        try:
            self._queue = await asyncio.to_thread(self._open)
        except QueueUnusable as error:
            self._unusable = str(error)
            log.error("no jobs: %s", error)
            yield
            return
        self._tasks = [asyncio.create_task(_lasting(duty)) for duty in self._duties()]
        try:
            yield
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._queue.close()

    def _duties(self) -> list[Duty]:
        """What goes on for as long as the service does."""
        duties: list[Duty] = [*[self._slot] * self._crew.workers, self._sweep]
        return [*duties, partial(self._webhooks.deliver, self.queue)] if self._webhooks else duties

    async def submitted(self) -> None:
        """There is something to do."""
        self._work.set()
        await self._count()

    async def cancel(self, job_id: str) -> Status:
        """Cancel a job; the status that it had. Raises NotFound."""
        before = await asyncio.to_thread(self.queue.cancel, job_id)
        if before in UNFINISHED:
            self._metrics.jobs_finished.labels("cancelled").inc()
            if flag := self._cancelled.get(job_id):
                flag.set()
            await self._finished(job_id)
        return before

    async def watch(self, job_id: str, after: int, heartbeat_s: float) -> AsyncIterator[Event | None]:
        """The job's events with an id above ``after``, as they come, to the last, or to the end of the service; None
        where nothing came for ``heartbeat_s``. Any number may watch. Raises NotFound."""
        while not self._ending.is_set():
            told = self._told.setdefault(job_id, asyncio.Event())
            try:
                events = await asyncio.to_thread(self.queue.events, job_id, after)
                job = await asyncio.to_thread(self.queue.get, job_id)
            except NotFound:
                self._tell(job_id)
                raise
            except NotReady:  # it comes back, and nothing that is told meanwhile is lost
                yield None
                await self._wait(told, min(heartbeat_s, AWAY_S))
                continue
            for event in events:
                after = event.id
                yield event
            if job.status not in UNFINISHED:  # read after the events: is the last one among them?
                missed = await asyncio.to_thread(self.queue.events, job_id, after)
                self._tell(job_id)
                if not missed:
                    return
            elif not events and not await self._wait(told, heartbeat_s):
                yield None

    async def _wait(self, told: asyncio.Event, timeout_s: float) -> bool:
        """Whether something came, or the service ends, within the time."""
        waits = [asyncio.create_task(event.wait()) for event in (told, self._ending)]
        try:
            done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return bool(done)
        finally:
            for wait in waits:
                wait.cancel()

    def _tell(self, job_id: str) -> None:
        """Wake whoever waits now; who comes later reads first."""
        if told := self._told.pop(job_id, None):
            told.set()

    async def _slot(self) -> None:
        """One worker's place: it is filled when there is work, and filled anew when its worker dies."""
        worker: _Worker | None = None
        try:
            while True:
                lease = await self._next_lease()
                with self._state("busy"):
                    try:
                        worker = worker or await _Worker.start(self._crew)
                    except (OSError, EOFError) as error:
                        await self._died(lease, f"at its start, {error}")
                        await asyncio.sleep(FAILED_START_S)
                        continue
                    except Exception as error:
                        await self._died(lease, f"at its start, by a bug, {error!r}")
                        raise
                    try:
                        end = await self._do(worker, lease)
                    except Exception as error:  # before another worker may have the job, this one must be gone
                        await worker.kill()
                        self._metrics.worker_restarts.labels("died").inc()
                        await self._died(lease, f"with its supervisor's place, by a bug, {error!r}")
                        raise
                    if end != "done":
                        worker = None
        finally:
            if worker:
                await worker.kill()

    async def _next_lease(self) -> Lease:
        with self._state("idle"):
            while True:
                self._work.clear()
                if lease := await asyncio.to_thread(self.queue.claim):
                    self._work.set()  # there may be more, for another slot
                    return lease
                await self._work.wait()

    async def _do(self, worker: _Worker, lease: Lease) -> End:
        """Have the worker do the job; what it ended in. Whatever it was but ``done``, the worker is dead."""
        job = await asyncio.to_thread(self.queue.get, lease.job_id)
        if lease.attempt == 1 and job.started_at is not None:
            self._metrics.job_wait.observe(max(0.0, job.started_at - job.created_at))
        await self._count()
        cancelled = self._cancelled[lease.job_id] = asyncio.Event()
        try:
            end = await self._followed(worker, lease, cancelled)
        finally:
            del self._cancelled[lease.job_id]
        if end == "done":
            await self._account(lease, job)
            return end
        await worker.kill()
        self._metrics.worker_restarts.labels(end).inc()
        if end == "time_limit":
            await self._overran(lease)
        elif end == "died":
            await self._died(lease, worker.epitaph())
        return end

    async def _followed(self, worker: _Worker, lease: Lease, cancelled: asyncio.Event) -> End:
        done = asyncio.create_task(worker.do(lease, lambda: self._tell(lease.job_id)))
        stop = asyncio.create_task(cancelled.wait())
        try:
            await asyncio.wait({done, stop}, timeout=self._crew.time_limit_s, return_when=asyncio.FIRST_COMPLETED)
            if stop.done() and not done.done():
                await asyncio.wait({done}, timeout=CANCEL_GRACE_S)
            if done.done():
                return "done" if done.result() else "died"
            return "cancelled" if stop.done() else "time_limit"
        finally:
            done.cancel()
            stop.cancel()

    async def _account(self, lease: Lease, before: Job) -> None:
        """The worker said that it is done: whatever the queue now says is what became of it."""
        with contextlib.suppress(NotFound):
            job = await asyncio.to_thread(self.queue.get, lease.job_id)
            self._metrics.job_iterations.inc(max(0, job.iteration - before.iteration))
            if job.status in ("succeeded", "failed"):
                self._metrics.jobs_finished.labels(job.status).inc()
                if job.finished_at is not None and job.started_at is not None:
                    seconds = max(0.0, job.finished_at - job.started_at)
                    self._metrics.job_duration.labels(job.parameters.preset).observe(seconds)
        await self._finished(lease.job_id)

    async def _overran(self, lease: Lease) -> None:
        late = DeadlineExceeded(f"the job took more than {self._crew.time_limit_s:g} s: ask for fewer iterations")
        with contextlib.suppress(LeaseLost):
            await asyncio.to_thread(self.queue.fail, lease, late)
            self._metrics.jobs_finished.labels("failed").inc()
        await self._finished(lease.job_id)

    async def _died(self, lease: Lease, reason: str) -> None:
        log.warning("a worker died of job %s: %s", lease.job_id, reason)
        status = await asyncio.to_thread(self.queue.worker_died, lease, reason)
        if status == "failed":
            self._metrics.jobs_finished.labels("failed").inc()
        self._work.set()
        await self._finished(lease.job_id)

    async def _finished(self, job_id: str) -> None:
        self._tell(job_id)
        if self._webhooks:
            self._webhooks.wake()
        await self._count()

    async def _sweep(self) -> None:
        while True:
            await asyncio.to_thread(self.queue.sweep)
            await self._count()
            await asyncio.sleep(SWEEP_S)

    async def _count(self) -> None:
        for status, count in (await asyncio.to_thread(self.queue.counts)).items():
            self._metrics.jobs.labels(status).set(count)

    @contextlib.contextmanager
    def _state(self, state: Literal["idle", "busy"]) -> Iterator[None]:
        gauge = self._metrics.workers.labels(state)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()


async def _lasting(duty: Duty) -> None:
    """A duty for as long as the service lasts: whatever nobody thought of is told, and it is begun anew."""
    while True:
        try:
            await duty()
        except Exception:
            log.exception("a bug: one of the jobs' duties ended, and is begun anew in %g s", SURPRISE_S)
        await asyncio.sleep(SURPRISE_S)


class _Worker:
    """The process, seen from here."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, crew: Crew) -> _Worker:
        """Raises EOFError where it ends before it is ready."""
        threads = str(crew.threads)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "service.jobs.worker",
            str(crew.data_dir),
            str(crew.store),
            threads,
            str(crew.result_ttl_s),
            crew.provider,
            stdin=PIPE,
            stdout=PIPE,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OMP_NUM_THREADS": threads},
        )
        worker = cls(process)
        try:
            if await worker._line() != "ready":
                await process.wait()
                raise EOFError(worker.epitaph())
        except BaseException:
            await worker.kill()
            raise
        return worker

    async def do(self, lease: Lease, on_told: Callable[[], None]) -> bool:
        """Whether it was still alive when it was done with the job."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{lease.job_id} {lease.attempt}\n".encode())
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError, RuntimeError):  # the last is uvloop's, of a pipe that is closed
            return False
        while line := await self._line():
            if line == "done":
                return True
            on_told()
        await self._process.wait()
        return False

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def epitaph(self) -> str:
        code = self._process.returncode
        return f"by signal {-code}" if code is not None and code < 0 else f"with status {code}"

    async def _line(self) -> str:
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().strip()
