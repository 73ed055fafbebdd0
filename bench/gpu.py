"""The shipped networks and the service on a GPU: precisions, batches, ONNX Runtime's choices, load."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from bench.processes import running
from bench.servers import CELL_COLUMNS, IN_PROCESS, Row, asking, cell_columns, ours, plain_peer, repeat
from bench.settings import table
from bench.work import PHOTO, in_process, jpeg, medians_ms, shipped
from service.models.session import (
    DEFAULT_GPU,
    EXECUTION_PROVIDERS,
    Gpu,
    OrtSession,
    Precision,
    open_session,
    run_session,
)
from service.models.store import StoredModel

NETWORKS = ("multistyle", "fast", "deep")
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16")
SIDES = (256, 512, 1024, 2048)
BATCHES = (1, 8)
CHOICE_SIDES = (512, 1024)
CHOICES: Mapping[str, Mapping[str, str]] = {
    "as shipped: HEURISTIC, kSameAsRequested": {},
    "cudnn_conv_algo_search EXHAUSTIVE": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    "cudnn_conv_algo_search DEFAULT": {"cudnn_conv_algo_search": "DEFAULT"},
    "arena_extend_strategy kNextPowerOfTwo": {"arena_extend_strategy": "kNextPowerOfTwo"},
    "prefer_nhwc": {"prefer_nhwc": "1"},
}
PEERS: Mapping[str, Mapping[str, str]] = {"FastAPI, fp32": {}, "FastAPI, fp32, our codec": {"PEER_CODEC": "simplejpeg"}}
SERVICES: Mapping[str, Mapping[str, str]] = {
    "fp32, one at a time": {"STYLIZE_GPU_LANES": "1"},
    "fp32, 4 at a time": {"STYLIZE_GPU_LANES": "4"},
    "fp32, 8 at a time": {"STYLIZE_GPU_LANES": "8"},
    "fp16, 4 at a time": {"STYLIZE_PRECISION": "fp16", "STYLIZE_GPU_LANES": "4"},
    "fp16, 8 at a time": {"STYLIZE_PRECISION": "fp16", "STYLIZE_GPU_LANES": "8"},
}
PHOTO_SIDE = 512
CLIENTS = (1, 64, 16, 4)  # in the order of what is to be known first
START_S = 15.0  # of a service with its first cells
TOTAL_S = 120.0  # all of it; what does not fit is left out, and said
SHARES = {"precisions": 0.30, "service": 0.9, "choices": 1.0}  # of TOTAL_S: until when a section may begin a cell

Device = Literal["cuda", "cpu"]
T = TypeVar("T")


@dataclass(frozen=True)
class Tried(Gpu):
    """A GPU with other options of the provider."""

    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, str]:
        return {**super().options, **self.others}


class Clock:
    """How much of TOTAL_S is left for a section."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def allows(self, section: str, seconds: float = 0.0) -> bool:
        return time.monotonic() - self._started + seconds < SHARES[section] * TOTAL_S


def measure_gpu(rounds: int, cell_s: float, device: Device = "cuda") -> str:
    """A Markdown section; each part is told on stderr as soon as it is known. ``device`` is another for tests."""
    clock = Clock()
    sections = [f"## {_smi('name')}, driver {_smi('driver_version')}: medians of {rounds} interleaved rounds", ""]
    parts: list[Callable[[], list[str]]] = [
        partial(_precisions, rounds, device, clock),
        partial(_differences, device),
        partial(_service, cell_s, device, clock),
        partial(_choices, rounds, device, clock),
    ]
    for part in parts:
        lines = _tried(part, f"the section {part}") or []
        print("\n".join(lines), file=sys.stderr, flush=True)
        sections += lines
    return "\n".join(sections)


def _precisions(rounds: int, device: Device, clock: Clock) -> list[str]:
    runs: dict[str, Callable[[dict[str, np.ndarray]], object]] = {}
    models = {name: shipped(name) for name in NETWORKS}
    for name, model in models.items():
        for precision in _variants_of(model):
            session = _session(model, device, Gpu(precision=precision))
            runs[f"{name}, {precision}"] = partial(run_session, session)
    cells: dict[str, list[str]] = {name: [] for name in runs}
    shapes = [(batch, side) for side in SIDES for batch in BATCHES]
    for batch, side in shapes:
        feeds = {name: _feed(model, side, batch) for name, model in models.items()}
        acts = {name: partial(run, feeds[name.partition(",")[0]]) for name, run in runs.items()}
        in_time = clock.allows("precisions")
        found = medians_ms(_able(acts), rounds) if in_time else {}
        for name, column in cells.items():
            ms = found.get(name)
            lacking = "failed" if in_time else "no time"
            column.append(f"{ms:.2f} ({batch * side**2 / ms / 1000:.0f})" if ms else lacking)
    columns = [f"{batch} x {side} px" for batch, side in shapes]
    return table("A run, from pixels to pixels: ms (megapixels a second)", columns, cells)


def _differences(device: Device) -> list[str]:
    cells = {}
    for name in NETWORKS:
        model = shipped(name)
        feed = _feed(model, PHOTO_SIDE, 1)
        reference = run_session(open_session(name, model.graph, "cpu", 0), feed).astype(int)
        for precision in _variants_of(model):
            distance = np.abs(reference - run_session(_session(model, device, Gpu(precision=precision)), feed))
            tail = np.quantile(distance, 0.999)
            cells[f"{name}, {precision}"] = [f"{distance.mean():.3f}", f"{tail:g}", str(distance.max())]
    title = f"Levels of 255 that a photo of {PHOTO_SIDE} px differs by from the CPU's"
    return table(title, ["mean", "99.9 % within", "at most"], cells)


def _choices(rounds: int, device: Device, clock: Clock) -> list[str]:
    model = shipped()
    feeds = [_feed(model, side, 1) for side in CHOICE_SIDES]
    sessions, cells = {}, {}
    precisions = [precision for precision in _variants_of(model) if precision != "tf32"]
    for precision in precisions:
        for choice, others in CHOICES.items():
            if clock.allows("choices"):
                name, before_mb = f"{precision}, {choice}", _used_mb()
                gpu = Tried(precision=precision, others=others)
                if session := _tried(partial(_session, model, device, gpu), name):
                    sessions[name] = session
                    firsts = [_tried(partial(_ms, partial(run_session, session, feed)), name) for feed in feeds]
                    times = [f"{ms:.0f}" if ms else "failed" for ms in firsts]
                    cells[name] = [*times, f"{_used_mb() - before_mb:.0f}"]
    for feed in feeds:
        found = medians_ms(_able({name: partial(run_session, sessions[name], feed) for name in sessions}), rounds)
        for name, column in cells.items():
            column.append(f"{found[name]:.2f}" if name in found else "failed")
    left_out = len(CHOICES) * len(precisions) - len(cells)
    columns = [f"the first of {side} px" for side in CHOICE_SIDES] + ["MB taken"] + [f"{s} px" for s in CHOICE_SIDES]
    title = f"{model.card.name}, a run by what ONNX Runtime's provider is told, ms ({left_out} left out for time)"
    return table(title, columns, cells)


def _service(cell_s: float, device: Device, clock: Clock) -> list[str]:
    photo = jpeg(PHOTO_SIDE, PHOTO_SIDE)
    rows, ready, left_out = [], {}, 0
    precisions = [precision for precision in _variants_of(shipped()) if precision != "tf32"]
    for precision in precisions:
        stylize = in_process(photo, device, Gpu(precision=precision)).stylize
        rows.append(Row(f"{IN_PROCESS}, {precision}", 1, [repeat(stylize, cell_s)]))
    with ExitStack() as stack:
        provider = json.dumps([EXECUTION_PROVIDERS[device], DEFAULT_GPU.options if device == "cuda" else {}])
        servers = {
            f"the service, {name}": ours(STYLIZE_PROVIDER=device, **settings)
            for name, settings in SERVICES.items()
            if settings.get("STYLIZE_PRECISION", "fp32") in precisions
        } | {name: plain_peer(PEER_PROVIDER=provider, **variables) for name, variables in PEERS.items()}
        live = {}
        for name, server in servers.items():
            if not clock.allows("service", START_S):
                left_out += len(CLIENTS)
                continue
            if service := _tried(partial(stack.enter_context, running(server, photo)), name):
                live[name] = service
                ready[name] = f"{service.ready_s:.1f} s ({name})"
        for clients in CLIENTS:
            for name, service in live.items():
                if not clock.allows("service", cell_s):
                    left_out += 1
                    continue
                if cell := _tried(asking(service, photo, clients, cell_s), f"{clients} clients of {name}"):
                    rows.append(Row(name, clients, [cell]))
    rows.sort(key=lambda row: row.concurrency)
    failed = sum(cell.failed for row in rows for cell in row.cells)
    client = max(cell.client_cores for row in rows for cell in row.cells)
    cells = {f"{row.name}, {row.concurrency}": cell_columns(row, PHOTO_SIDE) for row in rows}
    title = f"A JPEG of {PHOTO_SIDE} px in, a JPEG out, over loopback: by precision and number of clients"
    return [
        *table(title, CELL_COLUMNS, cells),
        f"First picture after the start of the process: {', '.join(ready.values())}.",
        f"Not answered with a picture: {failed}. The client took at most {client:.0%} of a core. Left out for time: "
        f"{left_out} cells.",
        "",
    ]


def _variants_of(model: StoredModel) -> list[Precision]:
    """Every precision that a network can have here."""
    return [precision for precision in PRECISIONS if precision != "fp16" or model.fp16]


def _session(model: StoredModel, device: Device, gpu: Gpu) -> OrtSession:
    graph = (model.halved() if gpu.precision == "fp16" else model).graph
    return open_session(model.card.label, graph, device, 1, gpu)


def _feed(model: StoredModel, side: int, batch: int) -> dict[str, np.ndarray]:
    with Image.open(PHOTO) as photo:
        pixels = np.asarray(photo.convert("RGB").resize((side, side)))[None].repeat(batch, 0)
    row = next(iter(model.vectors.values()))
    return dict(zip((spec.name for spec in model.card.inputs), (pixels, row[None].repeat(batch, 0)), strict=True))


def _able(acts: Mapping[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """Those that do not fail: a GPU's memory may be too small, a provider may refuse what it is told."""
    return {name: act for name, act in acts.items() if _tried(act, name) is not None}


def _tried(act: Callable[[], T], name: str) -> T | None:
    """None where it fails, which must not cost what else is measured; why is told on stderr."""
    try:
        return act()
    except Exception as error:
        print(f"FAILED: {name}: {error}", file=sys.stderr, flush=True)
        return None


def _ms(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - started)


def _used_mb() -> float:
    """Of the GPU's memory, by all processes."""
    used = _smi("memory.used")
    return float(used) if used.isdigit() else 0.0


def _smi(what: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"
