"""The contract of a queue, for every implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import InvalidFields, NotFound, OutOfMemory, Saturated
from service.jobs.distributed.queue import LEASE_S, DistributedQueue
from service.jobs.distributed.state import State
from service.jobs.distributed.volume import Volume
from service.jobs.job import Limits, Loss, Order
from service.jobs.queue import EmbeddedQueue, JobQueue, LeaseLost, QueueUnusable
from tests.jobs.broker import redis, redis_server
from tests.jobs.conftest import parameters

__all__ = ["redis", "redis_server"]

LOSS = Loss(4.0, 1.0, 2.0, 3.0)
Open = Callable[..., JobQueue]


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["embedded", "distributed"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def open_queue(kind: str, request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Open]:
    """Opens a queue on the same data every time, as ``owner`` or as a worker does it."""
    redis = request.getfixturevalue("redis") if kind == "distributed" else None
    with ExitStack() as stack:

        def open_(owner: bool = True, *, max_queued: int = 64, result_ttl_s: float = 100.0) -> JobQueue:
            limits = Limits(max_queued, result_ttl_s)
            queue: JobQueue
            if redis:
                state, volume = State(redis.url, clock=clock), Volume(f"file://{tmp_path}/jobs")
                queue = DistributedQueue(state, volume, None, limits, lambda: "a store")
            else:
                queue = EmbeddedQueue(tmp_path, limits, owner=owner, clock=clock)
            stack.callback(queue.close)
            return queue

        yield open_


@pytest.fixture
def reborn(kind: str, open_queue: Open, clock: Clock) -> Callable[[JobQueue], JobQueue]:
    """Has everything but the data die, and opens the queue again."""

    def reborn(queue: JobQueue) -> JobQueue:
        queue.close()
        again = open_queue()
        if kind == "distributed":  # of other machines it is known only that they keep silent
            again.sweep()
            clock.now += LEASE_S + 1
            again.sweep()
        return again

    return reborn


def order(client: str = "a", key: str | None = None, seed: int = 1) -> Order:
    files = {"photo": b"photo", "painting-0": b"painting"}
    return Order(client, parameters(iterations=10, seed=seed), files, key)


def test_an_order_becomes_a_job_that_is_done_once(open_queue: Open) -> None:
    queue, worker = open_queue(), open_queue(owner=False)
    job, new = queue.submit(order())
    assert (new, job.status, job.position) == (True, "queued", 1)
    lease = worker.claim()
    assert lease is not None
    assert worker.claim() is None
    assert worker.inputs(lease) == {"photo": b"photo", "painting-0": b"painting"}
    assert worker.parameters(lease) == job.parameters
    worker.report(lease, 4, LOSS, 1.5)
    worker.show(lease, 5, b"jpeg")
    assert queue.preview(job.id) == b"jpeg"
    running = queue.get(job.id)
    assert (running.status, running.iteration, running.loss, running.progress) == ("running", 4, LOSS, 0.4)
    worker.succeed(lease, b"result")
    assert queue.result(job.id) == b"result"
    assert [event.type for event in queue.events(job.id, 0)] == ["progress", "preview", "succeeded"]
    assert [event.id for event in queue.events(job.id, 1)] == [2, 3]
    with pytest.raises(LeaseLost):
        worker.succeed(lease, b"twice")
    assert queue.result(job.id) == b"result"
    assert queue.counts()["succeeded"] == 1


def test_clients_take_turns(open_queue: Open) -> None:
    queue = open_queue()
    ids = {queue.submit(order(client, seed=seed))[0].id: f"{client}{seed}" for client in "aaab" for seed in [1]}
    names = {id: name for id, name in zip(ids, ["a1", "a2", "a3", "b1"], strict=True)}
    first = queue.claim()
    assert first is not None
    late = queue.submit(order("c"))[0].id
    names[late] = "c1"
    positions = {names[id]: queue.get(id).position for id in names}
    assert positions == {"a1": None, "b1": 1, "c1": 2, "a2": 3, "a3": 4}
    served = [names[first.job_id]]
    while lease := queue.claim():
        served.append(names[lease.job_id])
    assert served == ["a1", "b1", "c1", "a2", "a3"]


def test_a_full_queue_refuses(open_queue: Open) -> None:
    queue = open_queue(max_queued=2)
    for seed in (1, 2):
        queue.submit(order(seed=seed))
    with pytest.raises(Saturated) as refused:
        queue.submit(order(seed=3))
    assert int(refused.value.headers["Retry-After"]) >= 1
    queue.claim()
    queue.submit(order(seed=3))


def test_a_key_stands_for_one_order(open_queue: Open) -> None:
    queue = open_queue(max_queued=1)
    job, _ = queue.submit(order(key="k"))
    again, new = queue.submit(order(key="k"))
    assert (again.id, new) == (job.id, False)
    with pytest.raises(InvalidFields):
        queue.submit(order(key="k", seed=2))
    with pytest.raises(InvalidFields):
        queue.submit(replace(order(key="k"), files={"photo": b"other"}))
    with pytest.raises(Saturated):
        queue.submit(order("b", key="k"))  # another client's key is another key


def test_a_seed_of_our_own_does_not_make_another_order(open_queue: Open) -> None:
    queue = open_queue()
    job, _ = queue.submit(replace(order(key="k", seed=1), seeded=False))
    assert queue.submit(replace(order(key="k", seed=2), seeded=False))[0].id == job.id


def test_a_cancelled_job_is_lost_to_its_worker(open_queue: Open) -> None:
    queue, worker = open_queue(), open_queue(owner=False)
    job, _ = queue.submit(order())
    lease = worker.claim()
    assert lease is not None
    assert queue.cancel(job.id) == "running"
    for write in (
        lambda: worker.check(lease),
        lambda: worker.inputs(lease),
        lambda: worker.report(lease, 1, LOSS, 0),
        lambda: worker.show(lease, 1, b""),
        lambda: worker.save_checkpoint(lease, b""),
        lambda: worker.succeed(lease, b""),
        lambda: worker.fail(lease, OutOfMemory("no")),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert queue.cancel(job.id) == "cancelled"
    assert [event.type for event in queue.events(job.id, 0)] == ["cancelled"]


def test_a_job_goes_on_from_its_checkpoint_and_fails_after_three_deaths(open_queue: Open) -> None:
    queue = open_queue()
    job, _ = queue.submit(order())
    for attempt in (1, 2, 3):
        lease = queue.claim()
        assert lease is not None
        assert lease.attempt == attempt
        assert queue.checkpoint(lease) == (b"checkpoint" if attempt > 1 else None)
        queue.save_checkpoint(lease, b"checkpoint")
        assert queue.worker_died(lease, "by signal 9") == ("queued" if attempt < 3 else "failed")
        with pytest.raises(LeaseLost):
            queue.check(lease)
    failed = queue.get(job.id)
    assert failed.error is not None
    assert failed.error["code"] == "worker_lost"
    assert queue.claim() is None


def test_after_a_crash_running_jobs_wait_again_and_old_leases_are_void(
    open_queue: Open, reborn: Callable[[JobQueue], JobQueue]
) -> None:
    queue, worker = open_queue(), open_queue(owner=False)
    job, _ = queue.submit(order())
    lease = worker.claim()
    assert lease is not None
    worker.save_checkpoint(lease, b"checkpoint")
    other = reborn(queue)
    assert other.get(job.id).status == "queued"
    with pytest.raises(LeaseLost):
        worker.check(lease)
    again = other.claim()
    assert again is not None
    assert (again.attempt, other.checkpoint(again)) == (2, b"checkpoint")
    with pytest.raises(LeaseLost):
        worker.succeed(lease, b"late")
    other.succeed(again, b"result")
    assert other.result(job.id) == b"result"


def test_after_a_crash_what_no_job_owns_is_removed(tmp_path: Path) -> None:
    queue = EmbeddedQueue(tmp_path, Limits(), owner=True)
    job, _ = queue.submit(order())
    (tmp_path / "jobs" / "nobody's").mkdir()
    (tmp_path / "jobs" / job.id / ".result.partial").touch()
    queue.close()  # what the kernel does to a process that is killed
    EmbeddedQueue(tmp_path, Limits(), owner=True).close()
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [job.id]
    assert not (tmp_path / "jobs" / job.id / ".result.partial").exists()


def test_a_finished_job_expires_and_is_forgotten_later(open_queue: Open, clock: Clock) -> None:
    queue = open_queue()
    job, _ = queue.submit(order())
    lease = queue.claim()
    assert lease is not None
    queue.succeed(lease, b"result")
    clock.now += 99
    assert queue.get(job.id).status == "succeeded"
    clock.now += 1
    assert queue.get(job.id).status == "expired"
    assert queue.result(job.id) is None
    clock.now += 100
    queue.sweep()
    with pytest.raises(NotFound):
        queue.get(job.id)


def test_webhooks_are_due_until_delivered_or_given_up(open_queue: Open, clock: Clock) -> None:
    queue = open_queue(result_ttl_s=1e6)
    job, _ = queue.submit(replace(order(), webhook_url="https://example.org/hook"))
    assert queue.due_webhooks() == ([], None)
    queue.cancel(job.id)
    tries = 0
    while True:
        due, wait_s = queue.due_webhooks()
        if not due:
            break
        tries += 1
        queue.webhook_done(due[0].id, delivered=False)
        assert queue.due_webhooks()[0] == []
        clock.now += queue.due_webhooks()[1] or 0
    assert (tries, wait_s) == (6, None)


def test_an_unknown_job_is_not_found(open_queue: Open) -> None:
    queue = open_queue()
    for ask in (queue.get, queue.cancel, queue.preview, queue.result, lambda id: queue.events(id, 0)):
        with pytest.raises(NotFound):
            ask("nothing")


def test_a_folder_belongs_to_one_service(tmp_path: Path) -> None:
    first = EmbeddedQueue(tmp_path, Limits(), owner=True)
    with pytest.raises(QueueUnusable, match="another service"):
        EmbeddedQueue(tmp_path, Limits(), owner=True)
    first.close()
    EmbeddedQueue(tmp_path, Limits(), owner=True).close()
