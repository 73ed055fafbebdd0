"""Servers as processes of this machine: started, asked until they answer, weighed with all their children, stopped."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import Plan, Request, fire

START_S = 90.0  # the longest that a server may take to its first picture
STOP_S = 30.0


@dataclass(frozen=True)
class Server:
    """How a server is started (``{port}`` in the command stands for its port), and asked for a picture."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    path: str
    multipart: bool = False

    def request(self, port: int, photo: bytes, query: str = "") -> Request:
        """``query`` goes on the path as it is."""
        path = self.path + query
        if not self.multipart:
            return Request.of(port, path, "image/jpeg", photo)
        head = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="photo.jpg"\r\n'
        body = head + b"Content-Type: image/jpeg\r\n\r\n" + photo + b"\r\n--b--\r\n"
        return Request.of(port, path, "multipart/form-data; boundary=b", body)


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    server: Server
    port: int
    pid: int
    ready_s: float  # from the start of its process to its first picture

    def request(self, photo: bytes, query: str = "") -> Request:
        return self.server.request(self.port, photo, query)

    def cpu_s(self) -> float:
        """What the process and its children have computed so far, in CPU-seconds."""
        ticks = sum(sum(map(int, _stat(pid)[11:15])) for pid in _tree(self.pid))
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        """Resident memory now, of all its processes."""
        return sum(status_kb(pid, "VmRSS") for pid in _tree(self.pid)) / 1000

    def peak_mb(self) -> float:
        """The most resident memory that each of its processes ever had, added up."""
        return sum(status_kb(pid, "VmHWM") for pid in _tree(self.pid)) / 1000


@contextmanager
def running(server: Server, photo: bytes) -> Iterator[Running]:
    """Start a server on a free port of loopback; it is stopped, children and all, at the end. Raises RuntimeError where
    it does not come to answer with a picture."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [part.replace("{port}", str(port)) for part in server.command]
    told = {name: value.replace("{port}", str(port)) for name, value in server.environment.items()}
    environment = {**os.environ, **told}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            while fire(Plan(server.request(port, photo), duration_s=0.001)).shots[0].status != 200:
                if process.poll() is not None or time.perf_counter() - started > START_S:
                    log.seek(0)
                    raise RuntimeError(f"{server.name} did not come to answer with a picture:\n{log.read()[-3000:]}")
                time.sleep(0.2)
            yield Running(server, port, process.pid, time.perf_counter() - started)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    family = _tree(process.pid)
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
    _end(family)


def _end(pids: Sequence[int]) -> None:
    """Children that outlived their parent."""
    for pid in pids:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue


def _tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (stat := _stat(int(folder.name))):
            parents[int(folder.name)] = int(stat[1])
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return [member for member in family if member in parents]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third on; none where it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def status_kb(pid: int, name: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0.0)
