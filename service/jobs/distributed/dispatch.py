"""A web process's share of jobs that are done elsewhere: it takes them in, watches them, sweeps, and tells of ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

from service.errors import ModelRefused, NotReady, ServiceError
from service.jobs.distributed.queue import DistributedQueue, Misplaced
from service.jobs.distributed.tally import End
from service.jobs.job import FINAL
from service.jobs.supervisor import AWAY_S, Crew, Duty, Supervisor
from service.jobs.webhook import Webhooks
from service.metrics import Metrics

log = logging.getLogger(__name__)

SWEEP_S = 5.0


class Dispatch(Supervisor):
    """In the place of a supervisor. Every web process has one; what must happen once, Redis lets one of them do."""

    def __init__(
        self,
        queue: DistributedQueue,
        crew: Crew,
        metrics: Metrics,
        webhooks: Webhooks | None,
        ending: asyncio.Event,
    ) -> None:
        super().__init__(lambda: queue, crew, metrics, webhooks, ending)
        self._distributed = queue
        self._opened = False
        self._troubles: Sequence[str] = ("the jobs' queue was not reached yet",)

    @property
    def reasons(self) -> Sequence[str]:
        """A queue or a broker that was never reached: nobody should be sent to a process with a wrong URL. One that is
        lost later is a trouble, and no reason to make no pictures any more."""
        return () if self._opened else self._troubles

    @property
    def troubles(self) -> Sequence[str]:
        return self._troubles

    def check_workers(self) -> None:
        """Workers are elsewhere, and may come later: a job waits for them."""
        if not self._opened:
            raise NotReady(self._troubles, AWAY_S)

    def check_available(self) -> None:
        self.check_workers()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        def told(job_id: str, what: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._on_told, job_id, what)

        self._distributed.listen(told)
        async with super().running():
            yield

    def _duties(self) -> list[Duty]:
        return [self._sweep, self._deliver] if self._webhooks else [self._sweep]

    def _on_told(self, job_id: str, what: str) -> None:
        for each in [job_id] if job_id else list(self._told):
            self._tell(each)
        if what in FINAL:
            self._work.set()

    async def _sweep(self) -> None:
        """Now and then, and when a job has ended."""
        while True:
            self._work.clear()
            try:
                await self._round()
            except (ServiceError, ModelRefused, Misplaced) as error:
                self._note([str(error)])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_S):
                    await self._work.wait()

    async def _round(self) -> None:
        queue = self._distributed
        await asyncio.to_thread(queue.open)  # again and again: the store may be another one now, the volume away
        await asyncio.to_thread(queue.sweep)
        self._opened = True
        await self._account_for(queue)
        if self._webhooks:
            self._webhooks.wake()
        await super()._count()
        self._note(await asyncio.to_thread(queue.troubles))

    async def _account_for(self, queue: DistributedQueue) -> None:
        """Every end counts once: on its worker, where that has metrics of its own, or on whichever web process asks
        first."""
        ended = await asyncio.to_thread(queue.ended)
        for kind, count in ended.restarts.items():
            self._metrics.worker_restarts.labels(kind).inc(count)
        for job in ended.jobs:
            End.of(job).count(self._metrics)

    async def submitted(self) -> None:
        """Its ticket is out, and the next sweep counts it."""

    async def _count(self) -> None:
        """The sweep counts; who cancels does not wait for it."""

    def _note(self, troubles: Sequence[str]) -> None:
        for trouble in troubles:
            if trouble not in self._troubles:
                log.error("jobs: %s", trouble)
        self._troubles = troubles

    async def _deliver(self) -> None:
        """Webhooks, whatever becomes of the queue meanwhile."""
        assert self._webhooks is not None
        while True:
            try:
                await self._webhooks.deliver(self._distributed)
            except ServiceError as error:
                log.warning("webhooks wait: %s", error)
                await asyncio.sleep(AWAY_S)
