"""Each setting of the service's that was chosen by a measurement, beside what else it could be."""

from __future__ import annotations

import io
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import onnxruntime as ort  # type: ignore[import-untyped]
from PIL import Image

from bench.load import Plan, fire
from bench.processes import running
from bench.servers import ours
from bench.work import PHOTO, STYLE, jpeg, medians_ms, shipped
from service.images import Picture, decode, open_photo
from service.models.session import cpu_quota

BATCH_PIXELS = {"0, none": 0, "2^16, shipped": 2**16, "2^18": 2**18, "2^20": 2**20}
BATCH_SIDES = (128, 256, 512)
CLIENTS = 16
RUN_SIDES = (256, 512)
LARGE = (4000, 3000)  # a photo of a phone's
SMALL = (512, 384)  # what it is shrunk to
NO_SPINNING = {"intra_op.allow_spinning": "0"}
SPINNING = {
    "spinning": {"intra_op.allow_spinning": "1"},
    "spinning for 0.2 ms, in a run": {
        "intra_op.allow_spinning": "1",
        "intra_op.spin_duration_us": "200",
        "force_spinning_stop": "1",
    },
}
BUSY = "import time\nend = time.monotonic() + 300\nwhile time.monotonic() < end: pass"


def settings(rounds: int, cell_s: float) -> str:
    """A Markdown section: every choice in turn in each of the rounds, medians."""
    head = ["## Settings, and what they were chosen by", "", f"Medians of {rounds} interleaved rounds.", ""]
    return "\n".join([*head, *_batches(rounds, cell_s), *_threads(rounds), *_codecs(rounds)])


def _batches(rounds: int, cell_s: float) -> list[str]:
    photos = {side: jpeg(side, side) for side in BATCH_SIDES}
    found: dict[tuple[str, int], list[list[float]]] = {}
    with ExitStack() as stack:
        live = {
            name: stack.enter_context(running(ours(STYLIZE_MAX_BATCH_PIXELS=str(pixels)), photos[128]))
            for name, pixels in BATCH_PIXELS.items()
        }
        for _ in range(rounds):
            for side, photo in photos.items():
                for name, service in live.items():
                    latencies_s = fire(Plan(service.request(photo), cell_s, CLIENTS)).latencies_s(cell_s)
                    found.setdefault((name, side), []).append(latencies_s)
    cells = {name: [_rate(found[name, side], cell_s) for side in BATCH_SIDES] for name in BATCH_PIXELS}
    title = f"`STYLIZE_MAX_BATCH_PIXELS`: requests/s (p99 in ms), {CLIENTS} clients"
    return table(title, [f"{side} x {side}" for side in BATCH_SIDES], cells)


def _rate(rounds: Sequence[Sequence[float]], cell_s: float) -> str:
    together = [latency for latencies in rounds for latency in latencies]
    p99 = f"{1000 * np.quantile(together, 0.99):.0f}" if together else "none answered"
    return f"{statistics.median(len(latencies) for latencies in rounds) / cell_s:.2f} ({p99})"


def _threads(rounds: int) -> list[str]:
    quota = cpu_quota()
    sessions = {f"{threads}, no spinning": _session(threads, NO_SPINNING) for threads in sorted({1, quota, 2 * quota})}
    sessions |= {f"{quota}, {name}": _session(quota, entries) for name, entries in SPINNING.items()}
    row = shipped().vectors[STYLE][None]
    cells: dict[str, list[str]] = {name: [] for name in sessions}
    for side in RUN_SIDES:
        image = np.random.default_rng(side).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
        works = {name: partial(session.run, None, {"image": image, "style": row}) for name, session in sessions.items()}
        alone = medians_ms(works, rounds)
        with _a_busy_neighbour():
            shared = medians_ms(works, rounds)
        for name in sessions:
            cells[name].append(f"{alone[name]:.0f} / {shared[name]:.0f}")
    title = f"Threads of ONNX Runtime (shipped: {quota}, no spinning): ms alone / beside a process that wants a core"
    return table(title, [f"{side} x {side}" for side in RUN_SIDES], cells)


def _session(threads: int, entries: Mapping[str, str]) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    for key, value in entries.items():
        options.add_session_config_entry(f"session.{key}", value)
    return ort.InferenceSession(shipped().graph, options, providers=["CPUExecutionProvider"])


@contextmanager
def _a_busy_neighbour() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", BUSY]) as neighbour:
        try:
            yield
        finally:
            neighbour.kill()


def _codecs(rounds: int) -> list[str]:
    with Image.open(PHOTO) as photo:
        picture, large = photo.convert("RGB").resize((1024, 1024)), photo.convert("RGB").resize(LARGE)
    works: dict[str, Callable[[], int]] = {
        **{f"PNG, level {level}": partial(_encoded, picture, "PNG", compress_level=level) for level in (0, 1, 3, 6)},
        **{
            f"WebP, method {method}": partial(_encoded, picture, "WEBP", quality=90, method=method)
            for method in (0, 2, 4)
        },
    }
    ms = medians_ms(works, rounds)
    shipped = ("PNG, level 1", "WebP, method 0")
    cells = {
        name + (", shipped" if name in shipped else ""): [f"{ms[name]:.0f}", f"{work() / 1000:.0f}"]
        for name, work in works.items()
    }
    file = io.BytesIO()
    large.save(file, "JPEG", quality=90)
    decoding: dict[str, Callable[[], object]] = {
        "Pillow, in full": partial(_decoded, file.getvalue(), False),
        "Pillow, at reduced scale (draft)": partial(_decoded, file.getvalue(), True),
        "as shipped": partial(_shrunk, file.getvalue()),
    }
    lines = table("Encoding a 1024 x 1024 painting", ["ms", "KB"], cells)
    title = f"A {LARGE[0]} x {LARGE[1]} JPEG to {SMALL[0]} x {SMALL[1]}"
    return lines + table(title, ["ms"], {name: [f"{ms:.0f}"] for name, ms in medians_ms(decoding, rounds).items()})


def _encoded(picture: Image.Image, format: str, **options: int) -> int:
    """Bytes."""
    file = io.BytesIO()
    picture.save(file, format, **options)
    return len(file.getvalue())


def _decoded(content: bytes, draft: bool) -> Image.Image:
    with Image.open(io.BytesIO(content)) as photo:
        if draft:
            photo.draft(None, SMALL)
        return photo.resize(SMALL, Image.Resampling.LANCZOS)


def _shrunk(content: bytes) -> Picture:
    return decode(open_photo(content, LARGE[0] * LARGE[1]), SMALL)


def table(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    lines = [f"### {title}", "", f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()), ""]
