"""What a job costs the one thread of a Redis: the real queue against a real Redis, a job's calls without its work."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from service.jobs.distributed.queue import DistributedQueue, Place
from service.jobs.distributed.tickets import QUEUE, celery_app
from service.jobs.distributed.worker import BEAT_S
from service.jobs.job import Lease, Limits, Loss, Order
from service.jobs.parameters import Parameters
from service.jobs.worker import CHECKPOINT_S, REPORT_S

JOBS = 40
WAITING = 10  # in line while the others are done
START_S = 10.0
PREVIEWS = (5, 10, 20, 40)  # evaluations that a picture is shown at
FILE = bytes(20_000)  # of pictures and checkpoints Redis only has the names
LOSS = Loss(0.1, 0.1, 0.1, 0.1)


@dataclass(frozen=True)
class Bill:
    """Of one job, to Redis."""

    cpu_ms: float
    commands: float

    @property
    def jobs_per_s(self) -> float:
        """Of a Redis that does nothing else."""
        return 1000 / self.cpu_ms


def measure_redis(seconds: float, iterations: int) -> str:
    """A Markdown section. A job lasts ``seconds``, has so many evaluations and one watcher."""
    with tempfile.TemporaryDirectory() as folder, _redis(Path(folder)) as url:
        place = Place(url, url, f"file://{folder}/pictures")
        limits = Limits(max_queued=JOBS + WAITING)
        with closing(place.queue(limits, lambda: "a store", patience_s=1.0, issues=True)) as queue:
            queue.open()
            for index in range(WAITING):
                queue.submit(_order(index, iterations))
            _job(queue, url, WAITING, seconds, iterations)
            with closing(Redis.from_url(url, decode_responses=True)) as client:
                before = _spent(client)
                for index in range(JOBS):
                    _job(queue, url, WAITING + 1 + index, seconds, iterations)
                cpu_s, commands = (now - then for now, then in zip(_spent(client), before, strict=True))
    bill = Bill(1000 * cpu_s / JOBS, commands / JOBS)
    return "\n".join(
        [
            "## One Redis (queue, state and broker; appendonly, fsync every second)",
            "",
            f"* A job of {iterations} evaluations in {seconds:g} s with one watcher costs its thread "
            f"{bill.cpu_ms:.1f} ms ({bill.commands:.0f} commands, in scripts and out): {bill.jobs_per_s:.0f} jobs/s, "
            f"what {bill.jobs_per_s * seconds:,.0f} workers do.",
        ]
    )


def _job(queue: DistributedQueue, url: str, index: int, seconds: float, iterations: int) -> None:
    """All that web processes, Celery and a worker ask for a job, one after another and without waiting."""
    queue.submit(_order(index, iterations))
    _take_ticket(url)
    lease = queue.claim(f"bench/{index}")
    assert lease is not None
    queue.parameters(lease)
    queue.inputs(lease)
    queue.checkpoint(lease)
    reports, beats, saves = (int(seconds / each) for each in (REPORT_S, BEAT_S, CHECKPOINT_S))
    told = 0
    for _ in range(iterations + beats):
        queue.check(lease)
    for nth in range(reports):
        queue.report(lease, nth, LOSS, 1.0)
        told = _watch(queue, lease, told)
    for iteration in (each for each in PREVIEWS if each <= iterations):
        queue.show(lease, iteration, FILE)
        told = _watch(queue, lease, told)
        queue.preview(lease.job_id)
    for _ in range(saves):
        queue.save_checkpoint(lease, FILE)
    queue.succeed(lease, FILE)
    _watch(queue, lease, told)
    queue.result(lease.job_id)
    queue.sweep()
    queue.ended()


def _watch(queue: DistributedQueue, lease: Lease, told: int) -> int:
    """As who follows the events does, after each; the last one's number."""
    queue.get(lease.job_id)
    return max((event.id for event in queue.events(lease.job_id, told)), default=told)


def _take_ticket(url: str) -> None:
    with celery_app(url).connection() as connection, closing(connection.SimpleQueue(QUEUE)) as tickets:
        tickets.get(timeout=START_S).ack()


def _order(index: int, iterations: int) -> Order:
    asked = Parameters.of("fast", {"painting": 1.0}, seed=index)
    parameters = replace(asked, iterations=iterations, format="jpeg")
    return Order(client=f"client {index % 7}", parameters=parameters, files={"photo": FILE, "painting-0": FILE})


def _spent(client: Redis) -> tuple[float, int]:
    """CPU seconds of Redis' main thread, and commands, since its start."""
    cpu, stats = client.info("cpu"), client.info("commandstats")
    cpu_s = cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"]
    return cpu_s, sum(command["calls"] for command in stats.values())


@contextmanager
def _redis(folder: Path) -> Iterator[str]:
    """Its URL. Raises FileNotFoundError where none is installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise FileNotFoundError("there is no redis-server: make system-packages")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    kept = ["--dir", str(folder), "--save", "", "--appendonly", "yes"]
    command = [binary, "--bind", "127.0.0.1", "--port", str(port), *kept]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with closing(Redis(port=port)) as client:
            _wait_for(client)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(START_S)


def _wait_for(client: Redis) -> None:
    give_up = time.monotonic() + START_S
    while True:
        try:
            client.ping()
            return
        except RedisError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)
