"""Jobs on many machines: a real broker, web processes and workers as processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from service.errors import ConfigurationError, NotReady
from service.jobs.distributed.dispatch import Dispatch
from service.jobs.distributed.queue import DistributedQueue, Misplaced
from service.jobs.distributed.state import State
from service.jobs.distributed.tickets import TASK, celery_app
from service.jobs.distributed.volume import Volume
from service.jobs.job import Limits
from service.jobs.supervisor import Crew
from service.jobs.webhook import Webhooks
from service.metrics import Metrics
from service.settings import Settings
from tests.jobs.broker import RabbitServer, RedisServer, free_port, rabbit, redis, redis_server
from tests.jobs.conftest import PAINTING, PATIENCE_S, PHOTO, ROOT, wait_for
from tests.jobs.machines import Cluster, cluster, stack
from tests.jobs.test_queue import order
from tests.jobs.test_service import events
from tests.jobs.test_webhook import SECRET, receiving
from tests.service.live import sample, start
from tests.service.pictures import encoded, gradient, pixels
from tests.service.toy import VECTORS, toy_stylized, write_store

__all__ = ["cluster", "rabbit", "redis", "redis_server", "stack"]
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
PNG = {"Content-Type": "image/png"}
LONG = {"iterations": 5000, "preset": "keras"}


def test_a_job_from_its_order_to_its_result_on_another_machine(cluster: Callable[..., Cluster]) -> None:
    machines = cluster(STYLIZE_SYNC_MAX_PIXELS="1000")
    first, second = machines.web(), machines.web()
    job = first.submit(iterations=12)
    assert (job["status"], job["position"]) == ("queued", 1)
    worker = machines.worker(both_cores=True)
    told = events(second, job["id"])
    assert [id for id, _ in told] == list(range(1, len(told) + 1))
    assert {"progress", "preview"} <= {type for _, type in told}
    assert told[-1][1] == "succeeded"
    assert events(first, job["id"], after=2) == told[2:]
    done = second.job(job["id"])
    assert (done["status"], done["progress"], done["attempt"]) == ("succeeded", 1.0, 1)
    result = second.http.get(f"/jobs/{job['id']}/result")
    assert pixels(result.content).shape == (48, 64, 3)
    assert second.http.get(f"/jobs/{job['id']}/preview").headers["content-type"] == "image/jpeg"
    assert machines.files() == []
    assert "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text()
    assert "onnxruntime" not in Path(f"/proc/{worker.pid}/maps").read_text()
    assert any("libtorch" in Path(f"/proc/{hand}/maps").read_text() for hand in worker.hands())
    large = first.http.post("/stylize?style=red&format=png", content=PHOTO, headers=PNG)
    assert large.status_code == 202
    second.wait(large.json()["id"])
    found = second.http.get(large.json()["links"]["result"]).content
    assert np.array_equal(pixels(found), toy_stylized(gradient(64, 48), VECTORS["red"]))
    wait_for(lambda: sum(web.metric('stylize_jobs_total{outcome="succeeded"}') for web in (first, second)) == 2)


def test_a_running_job_is_cancelled_from_any_web_process(cluster: Callable[..., Cluster]) -> None:
    machines = cluster()
    first, second = machines.web(), machines.web()
    machines.worker()
    long = first.submit(iterations=5000, preset="keras")
    waiting = first.submit()
    wait_for(lambda: second.job(long["id"])["iteration"] > 0)
    assert second.job(waiting["id"])["position"] == 1
    assert second.http.delete(f"/jobs/{long['id']}").status_code == 202
    assert events(first, long["id"])[-1][1] == "cancelled"
    first.wait(waiting["id"])
    assert machines.files() == []


def test_a_step_that_takes_too_long_to_be_cancelled_is_killed(cluster: Callable[..., Cluster]) -> None:
    machines = cluster(STYLIZE_MAX_SIDE="2000")
    web, worker = machines.web(), machines.worker()
    side = 1800  # px: an evaluation takes several times the two seconds even where bf16 has units of its own
    photo = encoded(gradient(side, side))
    web.wait(web.submit(iterations=1, preset="keras")["id"])  # torch and its network are loaded
    # One evaluation, of that size: until its end nothing asks whether anybody still wants it. After a smaller one, the
    # checkpoint would.
    job = web.submit(files={"image": ("a.png", photo)}, max_side=side, iterations=1, preset="keras")
    (hand,) = worker.hands()
    before_s = worker.cpu_s(hand)
    web.wait(job["id"], "running")
    wait_for(lambda: worker.cpu_s(hand) > before_s + 1)
    asked = time.monotonic()
    assert web.http.delete(f"/jobs/{job['id']}").status_code == 202
    wait_for(lambda: hand not in worker.hands())
    assert time.monotonic() - asked < 10  # two seconds, on a machine five times slower
    assert web.wait(web.submit()["id"])["attempt"] == 1
    wait_for(lambda: web.metric('stylize_worker_restarts_total{reason="cancelled"}') == 1)
    assert machines.files() == []


def test_a_killed_process_is_replaced_and_a_worker_that_ends_gives_its_job_back(
    cluster: Callable[..., Cluster],
) -> None:
    machines = cluster()
    web, worker = machines.web(), machines.worker()
    job = web.submit(**LONG)
    wait_for(lambda: _checkpoints(machines))
    reached = web.job(job["id"])["iteration"]
    os.kill(worker.hands()[0], signal.SIGKILL)
    wait_for(lambda: web.job(job["id"])["attempt"] == 2)
    wait_for(lambda: web.job(job["id"])["iteration"] > reached)
    wait_for(lambda: web.metric('stylize_worker_restarts_total{reason="died"}') == 1)
    other = machines.worker()
    assert worker.end(signal.SIGTERM) == 0
    wait_for(lambda: web.job(job["id"])["attempt"] == 3)  # of which only one was a death
    wait_for(lambda: web.job(job["id"])["iteration"] > reached)
    os.kill(other.hands()[0], signal.SIGKILL)
    wait_for(lambda: web.job(job["id"])["attempt"] == 4)
    os.kill(other.hands()[0], signal.SIGKILL)
    failed = web.wait(job["id"], "failed")
    assert failed["error"]["code"] == "worker_lost"
    assert "signal 9" in failed["error"]["detail"]
    assert events(web, job["id"])[-1][1] == "failed"


def _checkpoints(machines: Cluster) -> list[str]:
    return [name for name in machines.files() if name.startswith("checkpoint")]


def test_tickets_that_are_handed_out_twice_or_lost_change_nothing(
    cluster: Callable[..., Cluster], redis: RedisServer
) -> None:
    machines = cluster(STYLIZE_GATYS_WORKERS="2")
    web = machines.web()
    ids = [web.submit(seed=seed)["id"] for seed in range(4)]
    assert redis.client.llen("stylize") == 4
    redis.client.delete("stylize")  # all of them
    app = celery_app(redis.url)
    for _ in range(5):
        app.send_task(TASK, task_id="the very same")
    app.close()
    machines.worker()
    for id in ids:
        assert web.wait(id)["attempt"] == 1
        assert [type for _, type in events(web, id)].count("succeeded") == 1
    wait_for(lambda: redis.client.llen("stylize") == 0 and redis.client.hlen("unacked") == 0)


def test_whatever_is_killed_twenty_jobs_have_twenty_results(
    cluster: Callable[..., Cluster], redis: RedisServer
) -> None:
    """Two web processes and three workers; each kind is killed, and the broker is killed in the middle."""
    machines = cluster()
    first, second = machines.web(), machines.web()
    workers = [machines.worker() for _ in range(3)]
    ids = [(first, second)[seed % 2].submit(iterations=20, preset="keras", seed=seed)["id"] for seed in range(20)]

    def done() -> int:
        return int(redis.client.hget("{stylize}:counts", "succeeded") or 0)

    def kill_worker() -> None:
        workers.pop(0).end()
        workers.append(machines.worker())

    def kill_web() -> None:
        first.kill()
        first.start()

    def kill_broker() -> None:
        redis.kill()
        time.sleep(1)  # in which every process misses it
        redis.start()

    def kill_hand() -> None:
        os.kill(next(hand for worker in workers for hand in worker.hands()), signal.SIGKILL)

    for at, kill in ((1, kill_hand), (3, kill_worker), (6, kill_broker), (10, kill_web), (13, kill_worker)):
        wait_for(lambda at=at: done() >= at)  # type: ignore[misc]
        kill()
    assert done() < 20, "all were done before the last was killed"
    wait_for(lambda: second.http.get("/readyz").json()["troubles"] == [])
    for id in ids:
        second.wait(id)
        assert [type for _, type in events(first, id)].count("succeeded") == 1
        assert second.http.get(f"/jobs/{id}/result").status_code == 200
    wait_for(lambda: machines.files() == [])
    assert done() == 20


def test_a_broker_that_is_away_is_told_of_and_jobs_wait_for_it(
    cluster: Callable[..., Cluster], redis: RedisServer, stack: ExitStack
) -> None:
    redis.kill()
    try:
        machines = cluster()
        web = machines.web(ready=False)
        wait_for(lambda: "Redis" in web.http.get("/readyz").json().get("detail", ""))
        assert web.http.get("/readyz").status_code == 503
        refused = web.http.post("/gatys", files={"image": PHOTO, "style_image": PAINTING})
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert "Redis" in refused.json()["detail"]
        worker = machines.worker()
    finally:
        redis.start()
    wait_for(lambda: web.http.get("/readyz").status_code == 200)
    running, waiting = web.submit(**LONG), web.submit()
    wait_for(lambda: web.job(running["id"])["iteration"] > 0)
    stream = stack.enter_context(web.http.stream("GET", f"/jobs/{running['id']}/events"))
    assert stream.status_code == 200
    redis.kill()
    try:
        wait_for(lambda: any("Redis" in said for said in web.http.get("/readyz").json()["troubles"]))
        assert web.http.post("/stylize?style=red", content=PHOTO, headers=PNG).status_code == 200
        assert web.http.get(f"/jobs/{waiting['id']}").json()["code"] == "not_ready"
    finally:
        redis.start()
    wait_for(lambda: web.http.get("/readyz").json()["troubles"] == [])
    reached = web.job(running["id"])["iteration"]
    wait_for(lambda: web.job(running["id"])["iteration"] > reached)
    assert web.job(running["id"])["attempt"] == 1  # the very same process goes on
    assert worker.hands()
    web.http.delete(f"/jobs/{running['id']}")
    web.wait(waiting["id"])
    told = [line for line in stream.iter_lines() if line.startswith(("id", "event"))]  # one stream, over it all
    assert [int(id.removeprefix("id: ")) for id in told[::2]] == list(range(1, len(told) // 2 + 1))
    assert told[-1] == "event: cancelled"


def test_a_worker_with_another_store_or_volume_is_refused(cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    machines = cluster()
    web = machines.web()
    job = web.submit()
    other = write_store(tmp_path / "other")
    for variables, said in (
        ({"STYLIZE_MODEL_STORE": str(other)}, "STYLIZE_MODEL_STORE"),
        ({"STYLIZE_PICTURES_URL": f"file://{tmp_path}/elsewhere"}, "STYLIZE_PICTURES_URL"),
    ):
        worker = machines.worker(variables=variables)
        assert worker.process.wait(PATIENCE_S) == 3
        assert said in machines.log()
        wait_for(lambda said=said: any(said in trouble for trouble in web.http.get("/readyz").json()["troubles"]))  # type: ignore[misc]
    assert web.job(job["id"])["status"] == "queued"


@pytest.fixture
def open_queue(stack: ExitStack, redis: RedisServer, tmp_path: Path) -> Callable[..., DistributedQueue]:
    def open_queue(store: str = "a store") -> DistributedQueue:
        volume = Volume(f"file://{tmp_path}/pictures")
        queue = DistributedQueue(State(redis.url), volume, None, Limits(), lambda: store)
        stack.callback(queue.close)
        return queue

    return open_queue


def test_a_worker_whose_store_is_not_the_services_any_more_is_given_no_job(
    open_queue: Callable[..., DistributedQueue],
) -> None:
    old, new = open_queue("old"), open_queue("new")
    old.open()
    old.submit(order())
    new.open()
    with pytest.raises(Misplaced, match=r"another model store than the service's new"):
        old.claim()
    assert any("another model store" in trouble for trouble in new.troubles())
    assert new.counts()["queued"] == 1
    assert new.claim() is not None


def test_many_at_once_make_one_job_of_one_key_and_give_each_job_to_one_worker(
    open_queue: Callable[..., DistributedQueue], tmp_path: Path
) -> None:
    queues = [open_queue() for _ in range(4)]
    with ThreadPoolExecutor(16) as pool:
        jobs = list(pool.map(lambda nth: queues[nth % 4].submit(order(key="k")), range(32)))
        assert len({job.id for job, _ in jobs}) == 1
        assert [new for _, new in jobs].count(True) == 1
        assert len(list((tmp_path / "pictures").iterdir())) == 1
        for seed in range(19):
            queues[0].submit(order(seed=seed))
        leases = [lease for lease in pool.map(lambda nth: queues[nth % 4].claim(f"worker {nth}"), range(40)) if lease]
    assert len({lease.job_id for lease in leases}) == len(leases) == 20


def test_an_order_whose_answer_is_lost_keeps_its_pictures(open_queue: Callable[..., DistributedQueue]) -> None:
    queue = open_queue()
    state = queue._state
    call = state.call

    def answer_lost(command: str, **ask: object) -> object:
        answer = call(command, **ask)
        if command == "submit":
            raise NotReady(["the answer is lost"], 1)
        return answer

    state.call = answer_lost  # type: ignore[method-assign]
    with pytest.raises(NotReady):
        queue.submit(order(key="k"))
    state.call = call  # type: ignore[method-assign]
    job, new = queue.submit(order(key="k"))
    assert not new
    lease = queue.claim()
    assert lease is not None
    assert lease.job_id == job.id
    assert queue.inputs(lease)["photo"] == b"photo"


def test_an_answer_that_was_lost_is_given_again_and_nothing_happens_twice(
    open_queue: Callable[..., DistributedQueue],
) -> None:
    queue = open_queue()
    job, _ = queue.submit(order())
    lease = queue.claim("worker")
    assert lease is not None
    assert queue.claim("worker") == queue.held("worker") == lease
    queue.succeed(lease, b"result")
    assert queue.held("worker") is None
    assert queue.get(job.id).attempt == 1


def test_each_end_and_each_webhook_is_one_web_processes(open_queue: Callable[..., DistributedQueue]) -> None:
    first, second = open_queue(), open_queue()
    job, _ = first.submit(replace(order(), webhook_url="https://example.org/hook"))
    lease = first.claim()
    assert lease is not None
    first.succeed(lease, b"result")
    first.restarted("died")
    assert ([each.id for each in first.due_webhooks()[0]], second.due_webhooks()[0]) == ([job.id], [])
    ended = first.ended()
    assert ([each.id for each in ended.jobs], ended.restarts) == ([job.id], {"died": 1})
    assert (second.ended().jobs, second.ended().restarts) == ([], {})
    first.webhook_done(job.id, delivered=True)
    assert second.due_webhooks() == ([], None)


def test_of_several_web_processes_one_tells_of_an_end(
    open_queue: Callable[..., DistributedQueue], tmp_path: Path
) -> None:
    async def scene(port: int, received: Sequence[object]) -> list[float]:
        webhooks = [Webhooks(["localhost"], SECRET, lambda job: {}, is_public=lambda address: True) for _ in range(3)]
        metrics = [Metrics() for _ in webhooks]
        crew, ending = Crew(0, 1, 60.0, 60.0, tmp_path, tmp_path), asyncio.Event()
        async with asyncio.timeout(PATIENCE_S), AsyncExitStack() as running:
            first, *_ = [
                await _entered(running, Dispatch(open_queue(), crew, each, tells, ending))
                for each, tells in zip(metrics, webhooks, strict=True)
            ]
            for _ in range(5):
                first.queue.submit(replace(order(), webhook_url=f"http://localhost:{port}/"))
            while lease := first.queue.claim():
                first.queue.succeed(lease, b"result")
            job, _ = first.queue.submit(replace(order(), webhook_url=f"http://localhost:{port}/"))
            await first.cancel(job.id)
            while len(received) < 6 or sum(_ended(each, "succeeded") for each in metrics) < 5:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)  # for one too many
        return [sum(_ended(each, outcome) for each in metrics) for outcome in ("succeeded", "cancelled")]

    with receiving(*[204] * 6) as (port, received):
        assert asyncio.run(scene(port, received)) == [5, 1]
    assert len({headers["webhook-id"] for headers, _ in received}) == len(received) == 6


async def _entered(running: AsyncExitStack, dispatch: Dispatch) -> Dispatch:
    await running.enter_async_context(dispatch.running())
    return dispatch


def _ended(metrics: Metrics, outcome: str) -> float:
    return sample(metrics.render("text/plain")[0].decode(), f'stylize_jobs_total{{outcome="{outcome}"}}')


def test_a_redis_that_may_forget_is_told_of(redis: RedisServer, open_queue: Callable[..., DistributedQueue]) -> None:
    assert open_queue().troubles() == []
    redis.client.config_set("appendonly", "no")
    redis.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert ["appendonly" in said or "noeviction" in said for said in open_queue().troubles()] == [True, True]
    finally:
        redis.client.config_set("maxmemory-policy", "noeviction")
        redis.client.config_set("appendonly", "yes")


def test_a_visibility_timeout_runs_nothing_twice(cluster: Callable[..., Cluster], redis: RedisServer) -> None:
    machines = cluster()
    web = machines.web()
    machines.worker()
    long = web.submit(**LONG)
    wait_for(lambda: web.job(long["id"])["iteration"] > 0)
    (tag,) = redis.client.zrange("unacked_index", 0, -1)
    redis.client.zadd("unacked_index", {str(tag): 1})  # when it was taken: long ago
    machines.worker()  # Celery hands it the ticket, for the first worker seems to be dead
    wait_for(lambda: redis.client.hlen("unacked") == 0 and redis.client.llen("stylize") == 0)
    quick = web.wait(web.submit()["id"])
    assert (quick["attempt"], web.job(long["id"])["attempt"], web.job(long["id"])["status"]) == (1, 1, "running")
    assert web.http.delete(f"/jobs/{long['id']}").status_code == 202


def test_a_full_volume_refuses_orders_and_has_jobs_wait(cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(pictures)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here: that takes root")
    try:
        machines = cluster()
        web = machines.web()
        job = web.submit()
        filler = pictures / "filler"
        _fill(filler)
        refused = web.http.post("/gatys", files={"image": PHOTO, "style_image": PAINTING})
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert "No space left" in refused.json()["detail"]
        worker = machines.worker()
        wait_for(lambda: any("waits for the volume" in said for said in web.http.get("/readyz").json()["troubles"]))
        assert web.job(job["id"])["status"] == "running"
        filler.unlink()
        assert web.wait(job["id"])["attempt"] == 1
        assert web.http.get(f"/jobs/{job['id']}/result").status_code == 200
        worker.end()
        web.stop()
    finally:
        subprocess.run(["umount", "-l", str(pictures)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.skipif(not FAKETIME.exists(), reason="there is no libfaketime: apt-get install faketime")
def test_hosts_whose_clocks_are_an_hour_apart_agree(cluster: Callable[..., Cluster]) -> None:
    machines = cluster(STYLIZE_RESULT_TTL_S="1800")
    web = machines.web()
    fake = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    late = machines.web(variables={**fake, "FAKETIME": "-1h"})
    machines.worker(variables={**fake, "FAKETIME": "+1h"})
    done = web.wait(late.submit()["id"])
    assert late.job(done["id"]) == done
    times = [datetime.fromisoformat(done[name]) for name in ("created_at", "started_at", "finished_at", "expires_at")]
    assert times == sorted(times)
    assert times[2] - times[0] < timedelta(seconds=2 * PATIENCE_S)
    for each in (web, late):
        assert each.http.get(f"/jobs/{done['id']}/result").status_code == 200
        assert each.http.get("/readyz").json()["troubles"] == []


def test_a_job_that_takes_too_long_fails(cluster: Callable[..., Cluster]) -> None:
    machines = cluster(STYLIZE_JOB_TIMEOUT_S="3")
    web = machines.web()
    machines.worker()
    assert web.wait(web.submit(**LONG)["id"], "failed")["error"]["code"] == "deadline_exceeded"


def test_amqp_brings_the_tickets_and_redis_keeps_the_state(
    cluster: Callable[..., Cluster], rabbit: RabbitServer, redis: RedisServer
) -> None:
    machines = cluster(rabbit.url, STYLIZE_JOBS_STATE_URL=redis.url)
    web = machines.web()
    ids = [web.submit(seed=seed)["id"] for seed in range(3)]
    worker = machines.worker()
    wait_for(lambda: web.job(ids[0])["status"] != "queued")
    os.kill(worker.hands()[0], signal.SIGKILL)
    web.wait(ids[0])
    rabbit.kill()
    late = web.submit(seed=9)["id"]  # its ticket comes when there is a broker again
    wait_for(lambda: any("broker" in said for said in web.http.get("/readyz").json()["troubles"]))
    rabbit.start()
    for id in (*ids, late):
        web.wait(id)


def test_a_broker_that_refuses_or_is_none_is_told_of(
    cluster: Callable[..., Cluster], rabbit: RabbitServer, redis: RedisServer
) -> None:
    right = urlsplit(rabbit.url)
    nobody = free_port()
    for wrong, said in (
        (f"amqp://guest:hush@127.0.0.1:{right.port}//", "ACCESS_REFUSED"),
        (f"amqp://guest:guest@127.0.0.1:{right.port}/nowhere", "nowhere"),
        (f"amqp://127.0.0.1:{nobody}//", "refused"),
        (f"amqp://127.0.0.1:{redis.port}//", "broker"),
    ):
        web = cluster(wrong, STYLIZE_JOBS_STATE_URL=redis.url).web(ready=False)
        wait_for(lambda said=said, web=web: said in web.http.get("/readyz").json().get("detail", ""))  # type: ignore[misc]
        assert "hush" not in web.http.get("/readyz").text
        refused = web.http.post("/gatys", files={"image": PHOTO, "style_image": PAINTING})
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        web.stop()
    assert redis.client.hget("{stylize}:counts", "queued") is None


@pytest.mark.parametrize(
    "variables",
    [
        {"STYLIZE_JOBS_URL": "http://:hush@host/0"},
        {"STYLIZE_JOBS_URL": "redis://"},
        {"STYLIZE_JOBS_URL": "redis://:hush@host:99999"},
        {"STYLIZE_JOBS_URL": "redis://host/zero"},
        {"STYLIZE_JOBS_URL": "amqp://host", "STYLIZE_JOBS_STATE_URL": "amqp://:hush@host"},
        {"STYLIZE_JOBS_URL": "redis://host", "STYLIZE_PICTURES_URL": "gopher://host"},
    ],
    ids=str,
)
def test_a_wrong_url_stops_the_start(variables: dict[str, str]) -> None:
    *_, wrong = variables
    with start(subprocess.PIPE, **variables) as process:
        assert process.stderr
        said = process.stderr.read()
        assert process.wait(PATIENCE_S) == 2
    assert wrong in said
    assert "hush" not in said


def test_amqp_without_a_state_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="STYLIZE_JOBS_STATE_URL"):
        Settings.from_env({"STYLIZE_JOBS_URL": "amqp://host"})


def test_celery_is_imported_only_where_it_is_asked_for() -> None:
    code = "import sys, service.app; print([n for n in ('celery', 'redis', 'fsspec', 'kombu') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert found.stdout.strip() == "[]", found.stderr
