"""A rolling restart under load: two web processes behind HAProxy (Debian's package), drained and replaced in turn."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.service.live import sample, start
from tests.service.pictures import encoded, gradient
from tests.service.toy import write_store

REQUESTS = 2000
CLIENTS = 8
PATIENCE_S = 300.0
PHOTO = encoded(gradient(48, 32))
# One that is not ready gets no new requests; nothing is tried again, for that would hide what the service loses.
PROXY = """
defaults
  mode http
  retries 0
  timeout connect 10s
  timeout client 120s
  timeout server 120s
  timeout check 10s
frontend web
  bind 127.0.0.1:{port}
  default_backend services
backend services
  balance roundrobin
  option httpchk GET /readyz
  default-server check inter 100ms fall 1 rise 1
"""

pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed: no rolling restart is tried"
)


class Replica:
    """A place for a web process: the next takes the port of the one before."""

    def __init__(self, **variables: str) -> None:
        self.port = free_port()
        self._variables = variables | {"STYLIZE_PORT": str(self.port), "STYLIZE_DRAIN_DELAY_S": "2"}
        self._begin()

    def replace(self) -> None:
        """The old one answers everything it was given and ends; the new one is asked again before this returns."""
        self.stop()
        self._begin()
        wait_for(lambda: self._answered() > 0)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(PATIENCE_S) == 0
        assert self._process.stdout
        self._process.stdout.close()

    def _begin(self) -> None:
        self._process = start(subprocess.DEVNULL, **self._variables)
        wait_for(lambda: httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200)

    def _answered(self) -> float:
        name = 'stylize_http_requests_total{code="200",method="POST",route="/stylize"}'
        return sample(httpx.get(f"http://127.0.0.1:{self.port}/metrics").text, name)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while True:
        with suppress(httpx.TransportError):  # it does not listen yet
            if condition():
                return
        assert time.monotonic() < give_up
        time.sleep(0.05)


@contextmanager
def proxy(replicas: list[Replica], folder: Path) -> Iterator[str]:
    port = free_port()
    servers = [f"  server web-{index} 127.0.0.1:{replica.port}\n" for index, replica in enumerate(replicas)]
    (folder / "haproxy.cfg").write_text(PROXY.format(port=port) + "".join(servers))
    with subprocess.Popen(["haproxy", "-db", "-q", "-f", "haproxy.cfg"], cwd=folder) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(lambda: httpx.get(f"{url}/readyz").status_code == 200)
            yield url
        finally:
            process.terminate()


class Clients:
    """They ask, one after the other each, until they are told that it is enough."""

    def __init__(self, url: str) -> None:
        self._url, self._enough = url, threading.Event()
        self.answers: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, headers={"Content-Type": "image/png"}, timeout=PATIENCE_S) as http:
            while not self._enough.is_set():
                try:
                    outcome = str(http.post("/stylize?style=red", content=PHOTO).status_code)
                except httpx.TransportError as error:
                    outcome = repr(error)
                self.answers[outcome] += 1


def test_no_request_fails_while_replicas_are_replaced_one_by_one(tmp_path: Path) -> None:
    store = str(write_store(tmp_path / "store"))
    with ExitStack() as stack:
        replicas = []
        for name in ("a", "b"):
            variables = {"STYLIZE_MODEL_STORE": store, "STYLIZE_DATA_DIR": str(tmp_path / name)}
            replicas.append(Replica(**variables, STYLIZE_PROVIDER="cpu"))
            stack.callback(replicas[-1].stop)
        clients = Clients(stack.enter_context(proxy(replicas, tmp_path)))
        stack.callback(clients.stop)
        for replica in replicas:
            replica.replace()
        wait_for(lambda: clients.answers.total() >= REQUESTS)
        clients.stop()
        assert clients.answers.keys() == {"200"}, clients.answers
