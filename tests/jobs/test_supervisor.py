"""Watching jobs; what workers do is tested with the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.errors import GatysUnavailable, NotFound
from service.jobs.job import Limits, Order
from service.jobs.queue import EmbeddedQueue
from service.jobs.supervisor import Crew, Supervisor
from service.metrics import Metrics
from tests.jobs.conftest import parameters

ORDER = Order("a", parameters(), {"photo": b""})


@asynccontextmanager
async def supervising(root: Path, ending: asyncio.Event | None = None) -> AsyncIterator[Supervisor]:
    """Without workers: jobs stay queued."""
    crew = Crew(0, 1, 60.0, 60.0, root, root)
    supervisor = Supervisor(
        lambda: EmbeddedQueue(root, Limits(), owner=True), crew, Metrics(), None, ending or asyncio.Event()
    )
    async with asyncio.timeout(60), supervisor.running():
        yield supervisor


def test_a_silent_job_has_heartbeats_and_every_watcher_is_told_of_its_end(tmp_path: Path) -> None:
    async def scene() -> None:
        async with supervising(tmp_path) as supervisor:
            job, _ = supervisor.queue.submit(ORDER)
            silent = supervisor.watch(job.id, 0, heartbeat_s=0.01)
            assert [await anext(silent), await anext(silent)] == [None, None]
            watchers = [asyncio.create_task(_all(supervisor, job.id)) for _ in range(50)]
            await asyncio.sleep(0)
            assert await supervisor.cancel(job.id) == "queued"
            assert await asyncio.gather(*watchers) == [["cancelled"]] * 50
            assert await _all(supervisor, job.id) == ["cancelled"]
            assert await _all(supervisor, job.id, after=1) == []

    asyncio.run(scene())


def test_streams_end_when_the_service_is_about_to(tmp_path: Path) -> None:
    async def scene() -> None:
        ending = asyncio.Event()
        async with supervising(tmp_path, ending) as supervisor:
            job, _ = supervisor.queue.submit(ORDER)
            watcher = asyncio.create_task(_all(supervisor, job.id))
            await asyncio.sleep(0)
            ending.set()
            assert await watcher == []

    asyncio.run(scene())


def test_a_job_that_is_not_there_cannot_be_watched(tmp_path: Path) -> None:
    async def scene() -> None:
        async with supervising(tmp_path) as supervisor:
            with pytest.raises(NotFound):
                await _all(supervisor, "nothing")

    asyncio.run(scene())


def test_a_folder_in_use_leaves_the_rest_of_the_service_alone(tmp_path: Path) -> None:
    async def scene() -> None:
        async with supervising(tmp_path), supervising(tmp_path) as second:
            with pytest.raises(GatysUnavailable, match="another service"):
                _ = second.queue

    asyncio.run(scene())


async def _all(supervisor: Supervisor, id: str, after: int = 0) -> list[str]:
    return [event.type async for event in supervisor.watch(id, after, heartbeat_s=60) if event]
