"""What workers tell of themselves: metrics and probes of their own."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx

from service.jobs.distributed.tickets import QUEUE, celery_app
from tests.jobs.broker import RabbitServer, RedisServer, free_port, rabbit, redis, redis_server
from tests.jobs.conftest import PATIENCE_S, wait_for
from tests.jobs.machines import Cluster, Worker, cluster, stack
from tests.service.live import sample

__all__ = ["cluster", "rabbit", "redis", "redis_server", "stack"]
LONG = {"iterations": 5000, "preset": "keras"}


class Watched:
    """A worker with a port of its own."""

    def __init__(self, machines: Cluster, **variables: str) -> None:
        port = free_port()
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.worker: Worker = machines.worker(variables={"STYLIZE_METRICS_PORT": str(port), **variables})
        wait_for(lambda: self.answers("/livez"))

    def answers(self, path: str) -> bool:
        try:
            return httpx.get(self.url + path).status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str) -> float:
        return sample(httpx.get(f"{self.url}/metrics").text, name)


def test_a_worker_tells_of_itself_and_every_end_is_counted_once(cluster: Callable[..., Cluster]) -> None:
    machines = cluster(STYLIZE_COMMIT="c0ffee")
    web = machines.web()
    watched = Watched(machines)
    wait_for(lambda: watched.answers("/readyz"))
    assert places(watched) == (1, 0)
    web.wait(web.submit(iterations=12)["id"])
    wait_for(lambda: watched.metric('stylize_jobs_total{outcome="succeeded"}') == 1)
    assert watched.metric("stylize_job_iterations_total") == 12
    assert watched.metric("stylize_job_wait_seconds_count") == 1
    assert watched.metric('stylize_job_duration_seconds_count{preset="balanced"}') == 1
    text = httpx.get(f"{watched.url}/metrics").text
    assert 'stylize_build_info{commit="c0ffee",version=' in text
    assert "process_resident_memory_bytes" in text
    assert "stylize_capacity" not in text  # which is of web processes alone
    long = web.submit(**LONG)["id"]
    wait_for(lambda: web.job(long)["iteration"] > 0)
    assert places(watched) == (0, 1)
    os.kill(watched.worker.hands()[0], signal.SIGKILL)
    wait_for(lambda: watched.metric('stylize_worker_restarts_total{reason="died"}') == 1)
    wait_for(lambda: web.job(long)["attempt"] == 2)
    web.http.delete(f"/jobs/{long}")
    wait_for(lambda: places(watched) == (1, 0))
    unwatched = machines.worker()
    watched.worker.end(signal.SIGTERM)
    web.wait(web.submit(iterations=5)["id"])
    wait_for(lambda: web.metric('stylize_jobs_total{outcome="succeeded"}') == 1)  # and not two
    assert web.metric("stylize_job_iterations_total") == 5
    assert web.metric('stylize_worker_restarts_total{reason="died"}') == 0
    assert unwatched.hands()


def places(watched: Watched) -> tuple[float, float]:
    """Idle and busy ones."""
    idle, busy = (watched.metric(f'stylize_workers{{state="{state}"}}') for state in ("idle", "busy"))
    return idle, busy


def test_a_job_that_takes_too_long_is_counted_by_its_worker(cluster: Callable[..., Cluster]) -> None:
    machines = cluster(STYLIZE_JOB_TIMEOUT_S="3")
    web = machines.web()
    watched = Watched(machines)
    web.wait(web.submit(**LONG)["id"], "failed")
    wait_for(lambda: watched.metric('stylize_worker_restarts_total{reason="time_limit"}') == 1)
    wait_for(lambda: watched.metric('stylize_jobs_total{outcome="failed"}') == 1)
    assert web.metric('stylize_jobs_total{outcome="failed"}') == 0


def test_a_worker_that_is_gone_is_counted_by_the_web_tier(cluster: Callable[..., Cluster]) -> None:
    machines = cluster()
    web = machines.web()
    watched = Watched(machines)
    long = web.submit(**LONG)["id"]
    wait_for(lambda: web.job(long)["iteration"] > 0)
    hands = watched.worker.hands()
    watched.worker.end()
    for hand in hands:
        os.kill(hand, signal.SIGKILL)
    wait_for(lambda: web.metric('stylize_worker_restarts_total{reason="died"}') == 1)
    web.wait(long, "queued")


def test_probes_say_whether_a_worker_takes_jobs(cluster: Callable[..., Cluster], redis: RedisServer) -> None:
    machines = cluster()
    web = machines.web()
    redis.kill()
    try:
        watched = Watched(machines)
        assert "Redis" in readiness(watched, 503)
    finally:
        redis.start()
    wait_for(lambda: watched.answers("/readyz"))
    # Celery may stay deaf where it loses Redis again before it has heard of it (celery/celery#8030)
    web.wait(web.submit()["id"])
    redis.kill()
    try:
        wait_for(lambda: not watched.answers("/readyz"))
        assert "broker" in readiness(watched, 503)
        assert watched.answers("/livez")
        assert watched.answers("/metrics")
    finally:
        redis.start()
    wait_for(lambda: watched.answers("/readyz"))
    wait_for(lambda: web.http.get("/readyz").json()["troubles"] == [])
    web.wait(web.submit()["id"])
    assert httpx.get(f"{watched.url}/elsewhere").status_code == 404


def test_a_worker_that_hears_of_no_tickets_any_more_ends_with_1(cluster: Callable[..., Cluster]) -> None:
    machines = cluster()
    web = machines.web()
    worker = machines.worker()
    web.wait(web.submit()["id"])
    control = celery_app(machines.variables["STYLIZE_JOBS_URL"]).control
    assert control.cancel_consumer(QUEUE, reply=True, timeout=PATIENCE_S, limit=1)
    job = web.submit()["id"]
    assert worker.process.wait(PATIENCE_S) == 1
    assert "hears of none" in machines.log()
    machines.worker()
    web.wait(job)


def readiness(watched: Watched, status: int) -> str:
    answer = httpx.get(f"{watched.url}/readyz")
    assert answer.status_code == status
    return answer.text


def test_only_the_first_process_of_a_worker_holds_its_port(cluster: Callable[..., Cluster]) -> None:
    machines = cluster(STYLIZE_GATYS_WORKERS="2")
    web = machines.web()
    watched = Watched(machines)
    wait_for(lambda: len(watched.worker.hands()) == 2)
    wait_for(lambda: watched.answers("/readyz"))
    holders = [pid for pid in (watched.worker.pid, *watched.worker.hands()) if listens(pid, watched.port)]
    assert holders == [watched.worker.pid]
    long = web.submit(**LONG)["id"]
    wait_for(lambda: web.job(long)["iteration"] > 0)
    hands = watched.worker.hands()
    watched.worker.end()
    socket.create_server(("127.0.0.1", watched.port)).close()  # while those that it forked may go on
    for hand in hands:
        if Path(f"/proc/{hand}").exists():
            os.kill(hand, signal.SIGKILL)


def listens(pid: int, port: int | None = None) -> bool:
    """Whether the process has the socket that listens there, or any that listens."""
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [row for row in table if row[3] == "0A" and (port is None or row[1].endswith(f":{port:04X}"))]
    return bool({f"socket:[{row[9]}]" for row in listening} & set(open_files(pid)))


def open_files(pid: int) -> Iterator[str]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            yield os.readlink(link)


def test_a_port_that_is_taken_stops_the_start(cluster: Callable[..., Cluster]) -> None:
    machines = cluster()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        worker = machines.worker(variables={"STYLIZE_METRICS_PORT": str(taken.getsockname()[1])})
        assert worker.process.wait(PATIENCE_S) == 2
    assert "STYLIZE_METRICS_PORT" in machines.log()
    assert "in use" in machines.log()


def test_without_a_port_a_worker_listens_nowhere(cluster: Callable[..., Cluster]) -> None:
    machines = cluster()
    web = machines.web()
    worker = machines.worker()
    web.wait(web.submit()["id"])
    assert not listens(worker.pid)


def test_a_worker_that_its_broker_refuses_ends_and_says_so(
    cluster: Callable[..., Cluster], rabbit: RabbitServer, redis: RedisServer
) -> None:
    machines = cluster(rabbit.url.replace("guest:guest", "guest:hush"), STYLIZE_JOBS_STATE_URL=redis.url)
    assert machines.worker().process.wait(PATIENCE_S) == 1
    assert "ACCESS_REFUSED" in machines.log()
    assert "hush" not in machines.log()
