"""A process of its own with the shipped models, and requests over sockets that are the test's own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx2 as httpx

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60


def start(stderr: IO[str] | int | None = None, /, **variables: str) -> subprocess.Popen[str]:
    """``python -m service`` on a free port, its greeting on stdout; its settings are ``variables`` alone."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STYLIZE_")}
    environ |= {"STYLIZE_PORT": "0", "STYLIZE_DRAIN_DELAY_S": "0"} | variables
    command = [sys.executable, "-m", "service"]
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=stderr, text=True)


def sample(metrics: str, name: str) -> float:
    """The value of a sample as it stands in the text of /metrics, 0 where it does not."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


@dataclass(frozen=True)
class Live:
    process: subprocess.Popen[str]
    url: str

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def metric(self, name: str) -> float:
        return sample(httpx.get(f"{self.url}/metrics").text, name)

    def wait_for(self, name: str, value: float | None) -> None:
        """Until the sample has that value; None is any but 0."""
        give_up = time.monotonic() + PATIENCE_S
        while (found := self.metric(name)) != value and not (value is None and found):
            assert time.monotonic() < give_up, f"{name} is {found}, not {value}"
            time.sleep(0.02)


@contextmanager
def live(stderr: IO[str] | None = None, /, **variables: str) -> Iterator[Live]:
    """``python -m service``, ready."""
    with start(stderr or subprocess.DEVNULL, **{"STYLIZE_PROVIDER": "cpu"} | variables) as process:
        assert process.stdout
        try:
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found
            running = Live(process, found[0])
            give_up = time.monotonic() + PATIENCE_S
            while httpx.get(f"{running.url}/readyz").status_code != 200:
                assert time.monotonic() < give_up, "never ready"
                time.sleep(0.05)
            yield running
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def request(body: bytes, query: str = "style=kiss", content_type: str = "image/png") -> bytes:
    """The bytes of a POST /stylize."""
    head = f"POST /stylize?{query} HTTP/1.1\r\nHost: here\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body. Raises IncompleteReadError where they do not all come."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))
