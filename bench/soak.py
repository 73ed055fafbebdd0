"""Hours of use in minutes: random sizes, clients that leave, bad input. Counts the answers, watches the memory."""

from __future__ import annotations

import asyncio
import io
import random
import statistics
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from bench.processes import Running, running
from bench.servers import ours
from bench.work import MODEL, jpeg, shipped

CLIENTS = 8
SIDES = (24, 640)  # pixels, the smallest and largest of a picture's sides
PHOTOS = 40  # different ones
PATIENCE_S = 120.0
SLICES = 10  # of the time; memory is compared between the second and the last: with 10 minutes, minutes
FLAT = 0.05  # the goal: so much of the second slice's memory
FORMATS = ("jpeg", "png", "webp")


@dataclass
class Log:
    """What happened: answers by kind of request, and resident memory in MB by the time in seconds."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    memory: list[tuple[float, float]] = field(default_factory=list)

    def slice_mb(self, number: int, duration_s: float) -> float:
        """The mean of one slice of the time, counted from 0."""
        first, last = duration_s * number / SLICES, duration_s * (number + 1) / SLICES
        return statistics.mean(mb for at, mb in self.memory if first <= at < last)


def soak(minutes: float, picture: Path, seed: int = 0) -> str:
    """A Markdown section; draws the memory into ``picture``."""
    duration_s = 60 * minutes
    with running(ours(), jpeg(64, 64)) as service:
        log = asyncio.run(_soak(service, duration_s, random.Random(seed)))
        left = _left(service)
    second, last = log.slice_mb(1, duration_s), log.slice_mb(SLICES - 1, duration_s)
    wrong = {
        key: count for key, count in log.answers.items() if key[1].startswith("5") and key[1] not in ("503", "504")
    }
    kinds = sorted({kind for kind, _ in log.answers})
    _plot(log, picture)
    return "\n".join(
        [
            f"## Soak: {minutes:g} minutes, {CLIENTS} clients, sides of {SIDES[0]} to {SIDES[1]} px, seed {seed}",
            "",
            "| | answers |",
            "|---|---|",
            *(f"| {kind} | {_counts(log, kind)} |" for kind in kinds),
            "",
            f"* 5xx other than 503 and 504: {sum(wrong.values())} (goal: none).",
            f"* Memory: {second:.0f} MB in the second tenth of the time, {last:.0f} MB in the last, "
            f"{last / second - 1:+.1%} (goal: within {FLAT:.0%}).",
            f"* Unresolved at the end: {left} (goal: none).",
            "",
            f"![Memory]({picture.name})",
        ]
    )


def _counts(log: Log, kind: str) -> str:
    found = sorted((answer, count) for (of, answer), count in log.answers.items() if of == kind)
    return ", ".join(f"{answer}: {count}" for answer, count in found)


async def _soak(service: Running, duration_s: float, chance: random.Random) -> Log:
    styles = sorted(name for name in shipped().vectors if name != "photo")
    photos = [_photo(chance) for _ in range(PHOTOS)]
    acts: list[tuple[str, float, Callable[[Client], Awaitable[str]]]] = [
        ("a picture", 10, Client.ask),
        ("a picture, in a hurry", 2, Client.hurry),
        ("left while waiting", 2, Client.leave),
        ("left during the upload", 1, Client.leave_early),
        ("bytes that are no image", 1, Client.garbage),
        ("a picture cut short", 1, Client.cut_short),
        ("fields that are wrong", 1, Client.wrong_fields),
        ("a body cut off", 1, Client.half_closed),
        ("no HTTP", 0.5, Client.no_http),
    ]
    names, weights, _ = zip(*acts, strict=True)
    log, started = Log(), time.monotonic()
    end = started + duration_s
    do = {name: act for name, _, act in acts}

    async def client() -> None:
        while time.monotonic() < end:
            name = chance.choices(names, weights)[0]
            one = Client(service.port, chance, chance.choice(photos), chance.choice(styles))
            log.answers[name, await one.safely(do[name])] += 1

    async def watch() -> None:
        while time.monotonic() < end:
            log.memory.append((time.monotonic() - started, service.resident_mb()))
            await asyncio.sleep(min(1.0, duration_s / 100))

    await asyncio.gather(watch(), *(client() for _ in range(CLIENTS)))
    return log


@dataclass(frozen=True)
class Client:
    """One request on a connection of its own. Each way of asking gives the status, or ``cut``."""

    port: int
    chance: random.Random
    photo: bytes
    style: str

    async def safely(self, act: Callable[[Client], Awaitable[str]]) -> str:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await act(self)
        except (OSError, asyncio.IncompleteReadError):
            return "cut"
        except TimeoutError:
            return "never answered"

    async def ask(self) -> str:
        return await self._send(self._wire(self.photo, f"&format={self.chance.choice(FORMATS)}"))

    async def hurry(self) -> str:
        return await self._send(self._wire(self.photo, f"&deadline_ms={self.chance.randint(1, 5000)}"))

    async def leave(self) -> str:
        return await self._send(self._wire(self.photo), leave_after_s=self.chance.expovariate(4))

    async def leave_early(self) -> str:
        wire = self._wire(self.photo)
        return await self._send(wire[: self.chance.randrange(len(wire))], leave_after_s=0.05)

    async def garbage(self) -> str:
        return await self._send(self._wire(self.chance.randbytes(self.chance.randrange(1, 5000))))

    async def cut_short(self) -> str:
        return await self._send(self._wire(self.photo[: self.chance.randrange(100, len(self.photo))]))

    async def wrong_fields(self) -> str:
        return await self._send(self._wire(self.photo, self.chance.choice(("&strength=2", "&model=no", "&nothing=1"))))

    async def half_closed(self) -> str:
        return await self._send(self._wire(self.photo)[:-10], half_close=True)

    async def no_http(self) -> str:
        return await self._send(self.chance.randbytes(200) + b"\r\n\r\n")

    def _wire(self, body: bytes, query: str = "") -> bytes:
        head = f"POST /stylize?model={MODEL}&style={self.style}{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        return f"{head}Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    async def _send(self, wire: bytes, leave_after_s: float | None = None, half_close: bool = False) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        try:
            writer.write(wire)
            await writer.drain()
            if half_close:
                writer.write_eof()
            with suppress(TimeoutError):
                async with asyncio.timeout(leave_after_s):
                    return await _status(reader)
            return "left"
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _status(reader: asyncio.StreamReader) -> str:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    await (reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else reader.read())
    return head.split()[1].decode()


def _photo(chance: random.Random) -> bytes:
    """A picture of any shape, in any of the formats."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(jpeg(chance.randint(*SIDES), chance.randint(*SIDES)))) as photo:
        photo.save(file, chance.choice(FORMATS).upper())
    return file.getvalue()


def _left(service: Running) -> str:
    """What is still in the service once nobody asks any more; it gets a while to notice."""
    give_up = time.monotonic() + 30
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/metrics", timeout=PATIENCE_S) as answer:
            lines = [line.split() for line in answer.read().decode().splitlines() if not line.startswith("#")]
        gauges = ("stylize_in_flight", "stylize_queue_depth")
        left = [f"{name} {value}" for name, value in lines if name.startswith(gauges) and float(value)]
        if not left or time.monotonic() > give_up:
            return ", ".join(left) or "nothing"
        time.sleep(0.2)


def _plot(log: Log, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3), layout="constrained")
    axes.plot([at / 60 for at, _ in log.memory], [mb for _, mb in log.memory])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes")
    axes.set_ylabel("resident memory, MB")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
