"""The running service against the same work in-process: overhead, time to readiness, memory."""

from __future__ import annotations

import http.client
import io
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from service.images import Picture, decode, encode, open_photo
from service.models.session import Session, cpu_quota
from service.models.store import ModelStore
from service.settings import Settings

STYLE = "starry_night"
PHOTO = Path(__file__).parents[1] / "tests" / "photos" / "picos_de_europa.jpg"
MANY = 100
PAUSE_S = 0.05  # lets the other side's idle threads stop spinning


@dataclass(frozen=True)
class RunningService:
    """A service of this machine's own; `ready_s` is the time from process start to the first 200 of /readyz."""

    port: int
    pid: int
    ready_s: float

    def stylize(self, photo: bytes) -> bytes:
        """One POST on a fresh connection, as `curl` does it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", f"/stylize?style={STYLE}", photo, {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise RuntimeError(f"/stylize answered {answer.status}: {content[:300]!r}")
        return content

    def resident_mb(self) -> float:
        """Resident memory of the web process now."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure_service(rounds: int) -> str:
    """A Markdown section on overhead at 512 x 512, readiness and memory."""
    small, large = _photo(512, 512), _photo(1184, 888)  # 0.26 and 1.05 megapixels
    with running_service() as service:
        in_process = _in_process()
        pairs = []
        for _ in range(rounds + 1):
            pairs.append((_seconds(lambda: in_process(small)), _seconds(lambda: service.stylize(small))))
        for _ in range(MANY):
            service.stylize(large)
        resident = service.resident_mb()
    alone, served = (statistics.median(column) * 1000 for column in zip(*pairs[1:], strict=True))
    return "\n".join(
        [
            "## Service",
            "",
            f"* `/stylize` of a 512 x 512 JPEG over loopback: {served:.1f} ms. Decode, `session.run` and encode in-",
            f"  process: {alone:.1f} ms. Overhead {served / alone - 1:.1%} (medians of {rounds} interleaved rounds).",
            f"* Ready {service.ready_s:.1f} s after the start of the process, with the shipped store.",
            f"* Resident memory after {MANY} requests of 1 megapixel: {resident:.0f} MB.",
        ]
    )


@contextmanager
def running_service() -> Iterator[RunningService]:
    """`python -m service` on a free port of loopback, stopped at the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    started = time.perf_counter()
    environment = {**os.environ, "STYLIZE_PORT": str(port), "STYLIZE_DRAIN_DELAY_S": "0"}
    with subprocess.Popen([sys.executable, "-m", "service"], env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            while not _ready(port):
                if process.poll() is not None or time.perf_counter() - started > 60:
                    raise RuntimeError("the service did not become ready within 60 s")
                time.sleep(0.02)
            yield RunningService(port, process.pid, time.perf_counter() - started)
        finally:
            process.terminate()


def _ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _in_process() -> Callable[[bytes], bytes]:
    settings = Settings.from_env({})
    store = ModelStore(settings.model_store)
    model = next(m for m in map(store.load, store.folders()) if STYLE in m.vectors)
    session = Session(model, "cpu", cpu_quota())
    row = model.vectors[STYLE][None]

    def stylize(photo: bytes) -> bytes:
        opened = open_photo(photo, settings.max_pixels)
        picture = decode(opened, opened.size_within(settings.max_side))
        return encode(Picture(session.run(picture.rgb[None], row)[0]), "jpeg", 90)

    return stylize


def _photo(width: int, height: int) -> bytes:
    file = io.BytesIO()
    with Image.open(PHOTO) as photo:
        photo.resize((width, height)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _seconds(work: Callable[[], bytes]) -> float:
    time.sleep(PAUSE_S)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
