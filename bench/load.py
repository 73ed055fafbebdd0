"""A client in a process of its own, on the standard library alone: ``python -m bench.load`` reads a plan as JSON from
stdin and writes what came of it to stdout."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass

PATIENCE_S = 120.0  # for one answer
LOST = 0  # the status of a request that was not answered


@dataclass(frozen=True)
class Request:
    """A POST to this machine, the same again and again. ``body_base64`` because plans are JSON."""

    port: int
    path: str
    content_type: str
    body_base64: str

    @classmethod
    def of(cls, port: int, path: str, content_type: str, body: bytes) -> Request:
        return cls(port, path, content_type, base64.b64encode(body).decode())

    def wire(self) -> bytes:
        body = base64.b64decode(self.body_base64)
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {self.content_type}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True)
class Plan:
    """Closed loop: ``concurrency`` clients, each asking again once it is answered. Open loop, where ``rate`` requests a
    second are given: they come at random (Poisson), whatever became of those before, and ``concurrency`` is unused."""

    request: Request
    duration_s: float
    concurrency: int = 1
    rate: float | None = None


@dataclass(frozen=True)
class Shot:
    """One request: when it was sent, seconds after the start; until when it was answered; how."""

    sent_s: float
    answered_s: float
    status: int

    @property
    def latency_s(self) -> float:
        return self.answered_s - self.sent_s


@dataclass(frozen=True)
class Outcome:
    """Every request of a plan, and the share of a core that the client took."""

    shots: list[Shot]
    client_cores: float

    def latencies_s(self, duration_s: float) -> list[float]:
        """Of what was answered with a picture within ``duration_s``."""
        return [shot.latency_s for shot in self.shots if shot.status == 200 and shot.answered_s <= duration_s]


def fire(plan: Plan) -> Outcome:
    """Carry a plan out in a process of its own. Blocks until its last request is answered."""
    command = [sys.executable, "-m", "bench.load"]
    text = json.dumps(dataclasses.asdict(plan))
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    return Outcome([Shot(*shot) for shot in found["shots"]], found["client_cores"])


class _Connection:
    """Kept alive, and made anew where the server closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, wire: bytes) -> int:
        """The status of the answer, all of which was read; LOST where there was none."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                if self._streams is None or self._streams[0].at_eof():  # the server hung up while nobody asked
                    self.close()
                    self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
                reader, writer = self._streams
                writer.write(wire)
                return await self._answer(reader)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            self.close()
            return LOST

    async def _answer(self, reader: asyncio.StreamReader) -> int:
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        headers = {name: value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        if headers.get(b"transfer-encoding") == b"chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                await reader.readexactly(size + 2)
            await reader.readexactly(2)
        else:
            await reader.readexactly(int(headers[b"content-length"]))
        if headers.get(b"connection") == b"close":
            self.close()
        return int(lines[0].split()[1])

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
        self._streams = None


async def _closed(plan: Plan, started: float) -> list[Shot]:
    wire, shots = plan.request.wire(), []

    async def client() -> None:
        connection = _Connection(plan.request.port)
        answered = 0.0
        while not answered or answered < plan.duration_s:
            sent = time.perf_counter() - started
            status = await connection.ask(wire)
            answered = time.perf_counter() - started
            shots.append(Shot(sent, answered, status))
        connection.close()

    await asyncio.gather(*(client() for _ in range(plan.concurrency)))
    return shots


async def _open(plan: Plan, rate: float, started: float) -> list[Shot]:
    wire, shots = plan.request.wire(), []
    idle: list[_Connection] = []

    async def one(sent: float) -> None:
        connection = idle.pop() if idle else _Connection(plan.request.port)
        status = await connection.ask(wire)
        shots.append(Shot(sent, time.perf_counter() - started, status))
        idle.append(connection)

    arrivals = random.Random(0)
    due = 0.0
    async with asyncio.TaskGroup() as requests:
        while due < plan.duration_s:
            await asyncio.sleep(started + due - time.perf_counter())
            requests.create_task(one(due))  # measured from when it was due: a slow client must not flatter the server
            due += arrivals.expovariate(rate)
    return shots


def main() -> None:
    given = json.load(sys.stdin)
    plan = Plan(**given | {"request": Request(**given["request"])})
    started, cpu = time.perf_counter(), time.process_time()
    work = _closed(plan, started) if plan.rate is None else _open(plan, plan.rate, started)
    shots = asyncio.run(work)
    cores = (time.process_time() - cpu) / (time.perf_counter() - started)
    json.dump({"shots": [dataclasses.astuple(shot) for shot in shots], "client_cores": cores}, sys.stdout)


if __name__ == "__main__":
    main()
