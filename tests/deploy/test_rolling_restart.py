"""Two web processes behind a real proxy, replaced one after the other under load: nobody notices."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.jobs.conftest import wait_for
from tests.service.live import start
from tests.service.pictures import encoded, gradient
from tests.service.toy import write_store

REQUESTS = 2000
CLIENTS = 6
PHOTO = encoded(gradient(64, 48))
PROXY = """
global
  maxconn 200
defaults
  mode http
  timeout connect 5s
  timeout check 10s
  timeout client 60s
  timeout server 60s
  retries 3
  option redispatch
frontend web
  bind 127.0.0.1:{port}
  default_backend stylize
backend stylize
  option httpchk GET /readyz
  default-server check inter 200ms fall 1 rise 1
  server a 127.0.0.1:{a}
  server b 127.0.0.1:{b}
"""

pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed (apt-get install haproxy): no rolling restart"
)


@contextmanager
def proxied(configuration: str, folder: Path) -> Iterator[None]:
    (folder / "haproxy.cfg").write_text(configuration)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")], stdout=log, stderr=log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Web:
    """A web process at a port that stays its own from one process to the next."""

    def __init__(self, store: Path, data: Path, port: int) -> None:
        self._variables = {
            "STYLIZE_PROVIDER": "cpu",
            "STYLIZE_MODEL_STORE": str(store),
            "STYLIZE_DATA_DIR": str(data),
            "STYLIZE_GATYS_WORKERS": "0",
            "STYLIZE_PORT": str(port),
            "STYLIZE_DRAIN_DELAY_S": "2",  # ten of the proxy's checks
        }
        self._url = f"http://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        self.process = start(subprocess.DEVNULL, **self._variables)
        wait_for(lambda: is_ready(self._url))

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        assert self.process.stdout
        self.process.stdout.close()


class Load:
    """Clients that send one photo after the other."""

    def __init__(self, url: str) -> None:
        self.answers: Counter[str] = Counter()
        self._url, self._enough = url, threading.Event()
        self._clients = [threading.Thread(target=self._send) for _ in range(CLIENTS)]

    def _send(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._enough.is_set() or self.answers.total() < REQUESTS:
                try:
                    headers = {"Content-Type": "image/png"}
                    answer = client.post(f"{self._url}/stylize?style=red", content=PHOTO, headers=headers)
                    self.answers[str(answer.status_code)] += 1
                except httpx.TransportError as error:
                    self.answers[repr(error)] += 1

    def __enter__(self) -> Load:
        for client in self._clients:
            client.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._enough.set()
        for client in self._clients:
            client.join()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_a_rolling_restart_fails_no_request(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    front, *ports = free_ports(3)
    webs = [Web(store, tmp_path / str(port), port) for port in ports]
    url = f"http://127.0.0.1:{front}"
    try:
        with proxied(PROXY.format(port=front, a=ports[0], b=ports[1]), tmp_path):
            wait_for(lambda: is_ready(url))
            with Load(url) as load:
                for web in webs:
                    web.stop()
                    web.start()
                    seen = load.answers.total()
                    wait_for(lambda seen=seen: load.answers.total() > seen + 100)  # type: ignore[misc]
    finally:
        for web in webs:
            web.stop()
    assert set(load.answers) == {"200"}, load.answers
    assert load.answers.total() >= REQUESTS
