"""What a server costs a single client beyond the work itself: a few pictures from each in turn with the same work in
this process, again and again, so that a machine whose speed drifts by a tenth drifts under all of them alike."""

from __future__ import annotations

import select
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from bench.load import Request
from bench.processes import Running
from bench.work import rotated

PICTURES = 5  # one after another in a turn, after one that is not measured: it finds cold caches
RESAMPLED = 1000
LIKELY = (0.05, 0.95)  # quantiles of the medians of what was resampled
RECEIVED_BYTES = 2**18  # at a time


@dataclass(frozen=True)
class Overhead:
    """Over the work in-process, milliseconds a picture: the median over the turns, and where it lies with 90 %."""

    name: str
    median_ms: float
    low_ms: float
    high_ms: float

    def __str__(self) -> str:
        return f"{self.name} {self.median_ms:+.1f} ({self.low_ms:+.1f} to {self.high_ms:+.1f})"


class Caller:
    """A client that waits for its answer, on a connection that is kept alive, and made anew where the server hung up
    between two turns: uvicorn does after 5 s."""

    def __init__(self, request: Request) -> None:
        self._port = request.port
        self._wire = request.wire()
        self._connect()

    def __call__(self) -> None:
        """One picture. Raises RuntimeError where the answer is none."""
        hung_up, _, _ = select.select([self._socket], [], [], 0)  # nothing else is to be read before a request
        if hung_up:
            self.close()
            self._connect()
        self._socket.sendall(self._wire)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._received()
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *lines = head.lower().split(b"\r\n")
        if status.split()[1] != b"200":
            raise RuntimeError(f"not a picture: {status.decode()}")
        length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
        left = length - len(body)
        while left > 0:
            left -= len(self._received())

    def _connect(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        self._socket.close()

    def _received(self) -> bytes:
        if piece := self._socket.recv(RECEIVED_BYTES):
            return piece
        raise RuntimeError("hung up in the middle of an answer")


def overheads(servers: Sequence[Running], photo: bytes, in_process: Callable[[], object], turns: int) -> list[Overhead]:
    """Of every server, for `turns` turns of PICTURES pictures each."""
    with ExitStack() as stack:
        acts: dict[str, Callable[[], object]] = {"": in_process}
        for server in servers:
            caller = acts[server.server.name] = Caller(server.request(photo))
            stack.callback(caller.close)
        medians_s = _in_turn(acts, turns)
    alone = np.array(medians_s.pop(""))
    return [_overhead(name, 1000 * (np.array(found) - alone)) for name, found in medians_s.items()]


def _in_turn(acts: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """The median of each act in each turn, seconds."""
    medians_s: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(turns):
        for name in rotated(list(acts), turn):
            acts[name]()
            durations_s = []
            for _ in range(PICTURES):
                started = time.perf_counter()
                acts[name]()
                durations_s.append(time.perf_counter() - started)
            medians_s[name].append(statistics.median(durations_s))
    return medians_s


def _overhead(name: str, differences_ms: np.ndarray) -> Overhead:
    drawn = np.random.default_rng(0).choice(differences_ms, (RESAMPLED, len(differences_ms)))
    low_ms, high_ms = np.quantile(np.median(drawn, axis=1), LIKELY)
    return Overhead(name, float(np.median(differences_ms)), float(low_ms), float(high_ms))
