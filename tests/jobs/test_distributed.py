"""Jobs on many machines: a real broker, web processes and workers as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.jobs.broker import RedisServer, redis, redis_server
from tests.jobs.conftest import PATIENCE_S, ROOT, Service, wait_for
from tests.jobs.test_service import events
from tests.service.pictures import pixels

__all__ = ["redis", "redis_server"]


class Worker:
    """``python -m service.jobs.distributed``."""

    def __init__(self, log: Path, variables: dict[str, str], before: tuple[str, ...] = ()) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("STYLIZE_")}
        with log.open("a") as file:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", "service.jobs.distributed"],
                cwd=ROOT,
                env=environ | variables,
                stdout=file,
                stderr=file,
            )
        self.log = log

    def hands(self) -> list[int]:
        """Its processes that do jobs."""
        with suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return []

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


class Cluster:
    def __init__(self, stack: ExitStack, store: Path, folder: Path, jobs_url: str, **variables: str) -> None:
        self._stack, self._store, self._folder = stack, store, folder
        self.variables = {
            "STYLIZE_JOBS_URL": jobs_url,
            "STYLIZE_PICTURES_URL": f"file://{folder}/pictures",
            "STYLIZE_DATA_DIR": str(folder / "data"),
            **variables,
        }

    def web(self, **variables: str) -> Service:
        service = Service(self._store, self._folder / "data", **self.variables | variables)
        self._stack.callback(service.stop)
        return service

    def worker(self, *before: str, **variables: str) -> Worker:
        settings = {"STYLIZE_MODEL_STORE": str(self._store), "STYLIZE_PROVIDER": "cpu"}
        worker = Worker(self._folder / "workers.log", settings | self.variables | variables, before)
        self._stack.callback(worker.end)
        return worker

    def files(self) -> list[str]:
        """Of the volume, beside results and previews."""
        found = [path.name for path in (self._folder / "pictures").rglob("*") if path.is_file()]
        return [name for name in found if not name.startswith(("result-", "preview-")) and len(name) != 16]

    def log(self) -> str:
        return (self._folder / "workers.log").read_text()


@pytest.fixture
def cluster(store: Path, tmp_path: Path, redis: RedisServer) -> Iterator[Callable[..., Cluster]]:
    with ExitStack() as stack:
        yield lambda jobs_url=redis.url, **variables: Cluster(stack, store, tmp_path, jobs_url, **variables)


def test_a_job_from_its_order_to_its_result_on_another_machine(cluster: Callable[..., Cluster]) -> None:
    machines = cluster()
    first, second = machines.web(), machines.web()
    job = first.submit(iterations=12)
    assert (job["status"], job["position"]) == ("queued", 1)
    worker = machines.worker()
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
    wait_for(lambda: sum(web.metric('stylize_jobs_total{outcome="succeeded"}') for web in (first, second)) == 1)


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
