"""Brokers from Debian's packages, each on a free port of 127.0.0.1 and in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.jobs.conftest import PATIENCE_S, wait_for


class RabbitServer:
    """With a name service of its own, so that it meets no other."""

    BINARY = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

    def __init__(self, folder: Path) -> None:
        port, distribution, names = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        self._environ = os.environ | {
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(names),
            "RABBITMQ_NODENAME": f"stylize-{port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        }
        self._port = port
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [str(self.BINARY)], env=self._environ, stdout=subprocess.DEVNULL, start_new_session=True
        )
        wait_for(lambda: _listens(self._port))

    def kill(self) -> None:
        """As the kernel does it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(PATIENCE_S)

    def stop(self) -> None:
        self.kill()
        wait_for(self._names_ended)

    def _names_ended(self) -> bool:
        """The name service ends once it has seen that its last server is gone."""
        said = subprocess.run(["epmd", "-kill"], env=self._environ, capture_output=True, text=True, timeout=PATIENCE_S)
        return "living nodes" not in said.stdout + said.stderr


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class RedisServer:
    """It writes everything down before it answers; killed without warning, and started again, as a test likes."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = Redis.from_url(self.url, decode_responses=True)
        binary = shutil.which("redis-server")
        assert binary
        kept = ["--dir", str(folder), "--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self._command = [binary, "--bind", "127.0.0.1", "--port", str(self.port), *kept, *options]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_for(self._answers)

    def kill(self) -> None:
        """As the kernel does it."""
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def _answers(self) -> bool:
        assert self._process.poll() is None, "redis-server ended"
        try:
            return bool(self.client.ping())
        except RedisError:
            return False


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server: apt-get install redis-server")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.client.close()
    server.kill()


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    """Empty."""
    redis_server.client.flushall()
    return redis_server


@pytest.fixture
def rabbit(tmp_path: Path) -> Iterator[RabbitServer]:
    if not RabbitServer.BINARY.exists():
        pytest.skip("there is no rabbitmq-server: apt-get install rabbitmq-server")
    server = RabbitServer(tmp_path)
    yield server
    server.stop()
