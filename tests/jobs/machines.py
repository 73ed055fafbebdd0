"""Web processes and workers of one service, as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.jobs.broker import RedisServer
from tests.jobs.conftest import PATIENCE_S, ROOT, Service

NOTHING: Mapping[str, str] = MappingProxyType({})


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

    def cpu_s(self, hand: int) -> float:
        """How long one of them has computed."""
        user, system = Path(f"/proc/{hand}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @property
    def pid(self) -> int:
        return self.process.pid

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


class Cluster:
    def __init__(self, stack: ExitStack, store: Path, folder: Path, jobs_url: str, **variables: str) -> None:
        self._stack, self.store, self._folder = stack, store, folder
        self.variables = {
            "STYLIZE_JOBS_URL": jobs_url,
            "STYLIZE_PICTURES_URL": f"file://{folder}/pictures",
            "STYLIZE_DATA_DIR": str(folder / "data"),
            **variables,
        }

    def web(self, ready: bool = True, variables: Mapping[str, str] = NOTHING) -> Service:
        service = Service(self.store, self._folder / "data", ready, **{**self.variables, **variables})
        self._stack.callback(service.stop)
        return service

    def worker(self, *before: str, both_cores: bool = False, variables: Mapping[str, str] = NOTHING) -> Worker:
        settings = {"STYLIZE_MODEL_STORE": str(self.store), "STYLIZE_PROVIDER": "cpu"}
        alone = () if both_cores else ("taskset", "-c", "0")  # threads beyond the cores would wait for one another
        worker = Worker(self._folder / "workers.log", {**settings, **self.variables, **variables}, (*alone, *before))
        self._stack.callback(worker.end)
        return worker

    def files(self) -> list[str]:
        """Of the volume, beside results and previews."""
        found = [path.name for path in (self._folder / "pictures").rglob("*") if path.is_file()]
        return [name for name in found if not name.startswith(("result-", "preview-")) and len(name) != 16]

    def log(self) -> str:
        return (self._folder / "workers.log").read_text()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def cluster(stack: ExitStack, store: Path, tmp_path: Path, redis: RedisServer) -> Callable[..., Cluster]:
    return lambda jobs_url=redis.url, **variables: Cluster(stack, store, tmp_path, jobs_url, **variables)
