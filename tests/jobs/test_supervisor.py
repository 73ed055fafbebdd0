"""Watching jobs; what workers do is tested with the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.errors import GatysUnavailable, NotFound
from service.jobs.job import Lease, Limits, Order
from service.jobs.queue import EmbeddedQueue
from service.jobs.supervisor import Crew, Supervisor, _lasting, _Worker
from service.metrics import Metrics
from tests.jobs.conftest import PATIENCE_S, parameters

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


def test_a_place_for_a_worker_that_ends_by_a_bug_is_told_of_and_goes_on(
    tmp_path: Path, store: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.jobs.supervisor.SURPRISE_S", 0.01)
    asked: list[int] = []
    do = _Worker.do

    async def surprising(self: _Worker, lease: Lease, on_told: Callable[[], None]) -> bool:
        asked.append(self._process.pid)
        if len(asked) == 1:
            raise RuntimeError("nobody thought of this")
        return await do(self, lease, on_told)

    monkeypatch.setattr(_Worker, "do", surprising)
    crew, metrics = Crew(1, 1, 60.0, 60.0, tmp_path, store), Metrics()

    async def scene() -> None:
        queue = EmbeddedQueue(tmp_path, Limits(), owner=True)
        supervisor = Supervisor(lambda: queue, crew, metrics, None, asyncio.Event())
        async with asyncio.timeout(PATIENCE_S), supervisor.running():
            job, _ = queue.submit(ORDER)
            await supervisor.submitted()
            assert "failed" in await _all(supervisor, job.id)  # by its second worker, which cannot read its photo
            assert queue.get(job.id).attempt == 2
            assert not Path(f"/proc/{asked[0]}").exists()

    asyncio.run(scene())
    assert len(set(asked)) == 2
    (told,) = (record for record in caplog.records if record.exc_info)
    assert "nobody thought of this" in str(told.exc_info and told.exc_info[1])
    assert metrics.worker_restarts.labels("died")._value.get() == 1


@pytest.mark.parametrize("surprise", [RuntimeError("bug"), None])
def test_a_duty_lasts_whatever_ends_it(surprise: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs.supervisor.SURPRISE_S", 0)
    begun = 0

    async def duty() -> None:
        nonlocal begun
        begun += 1
        if begun == 3:
            raise asyncio.CancelledError
        if surprise:
            raise surprise

    async def scene() -> None:
        with pytest.raises(asyncio.CancelledError):
            await _lasting(duty)

    asyncio.run(scene())
    assert begun == 3


async def _all(supervisor: Supervisor, id: str, after: int = 0) -> list[str]:
    return [event.type async for event in supervisor.watch(id, after, heartbeat_s=60) if event]
