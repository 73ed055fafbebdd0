"""Our service beside others with the same network: one is asked at a time, all of them in turn in every round."""

from __future__ import annotations

import functools
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from bench.load import Plan, fire
from bench.processes import Running, Server, running
from bench.turns import PICTURES, Overhead, overheads
from bench.venvs import CACHE, python_with
from bench.work import MODEL, PATH, SETTINGS, STYLE, in_process, jpeg, rotated, shipped
from service.models.session import cpu_quota

CONCURRENCIES = (1, 4, 16)
OURS = "this service"
ALONE, IN_PROCESS = "`session.run` alone", "decode, run, encode in-process"
OVERHEAD_MS, OVERHEAD_SHARE = 0.5, 0.05  # what the service may cost over in-process work, alone and at 16
CELL_COLUMNS = ("requests/s", "megapixels/s", "p50, ms", "p99, ms", "CPU-s a request")
TURNS = 60  # of a single client's pictures with the work in-process
PLAIN = "bench.peers.plain"
PAUSE_S = 0.3  # between cells: what the last one left behind is done by then


@dataclass(frozen=True)
class Cell:
    """What one server did with one concurrency in one round."""

    duration_s: float
    latencies_s: Sequence[float]
    cpu_s: float = 0.0
    client_cores: float = 0.0
    failed: int = 0

    @property
    def rate(self) -> float:
        return len(self.latencies_s) / self.duration_s


@dataclass(frozen=True)
class Row:
    """A server at one concurrency: a cell for every round."""

    name: str
    concurrency: int
    cells: list[Cell] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Requests a second, the median of the rounds."""
        return statistics.median(cell.rate for cell in self.cells)

    @property
    def p50_s(self) -> float:
        return statistics.median(statistics.median(cell.latencies_s) for cell in self.cells)

    @property
    def p99_s(self) -> float:
        """Of all rounds together: one has too few requests to have a hundredth."""
        return float(np.quantile([latency for cell in self.cells for latency in cell.latencies_s], 0.99))

    @property
    def cpu_s(self) -> float:
        """CPU-seconds a request."""
        return statistics.median(cell.cpu_s / len(cell.latencies_s) for cell in self.cells)


@dataclass(frozen=True)
class Comparison:
    """Every row, what each server cost a single client, the peak memory of each in MB, and how much of a core all of
    them took while none was asked."""

    side: int
    rows: list[Row]
    overheads: list[Overhead]
    peak_mb: Mapping[str, float]
    idle_cores: float

    def row(self, name: str, concurrency: int) -> Row:
        return next(row for row in self.rows if (row.name, row.concurrency) == (name, concurrency))


def compare_servers(rounds: int, cell_s: float, side: int, peers: bool = True) -> Comparison:
    """Measure ``side`` x ``side`` JPEGs for ``cell_s`` seconds a server, concurrency and round."""
    photo = jpeg(side, side)
    alone = in_process(photo)
    servers = [ours(), *(known_peers() if peers else [])]
    with ExitStack() as stack:
        live = [stack.enter_context(running(server, photo)) for server in servers]
        idle_cores = _idle_cores(live)
        ask: dict[tuple[str, int], Callable[[], Cell]] = {
            (ALONE, 1): lambda: repeat(alone.run, cell_s / 2),
            (IN_PROCESS, 1): lambda: repeat(alone.stylize, cell_s),
        }
        for server in live:
            for concurrency in CONCURRENCIES:
                ask[server.server.name, concurrency] = asking(server, photo, concurrency, cell_s)
        rows = {key: Row(*key) for key in ask}
        keys = sorted(ask, key=lambda key: key[1])
        for number in range(rounds):
            for key in rotated(keys, number):
                rows[key].cells.append(ask[key]())
        cost = overheads(live, photo, alone.stylize, TURNS)
        return Comparison(side, list(rows.values()), cost, {s.server.name: s.peak_mb() for s in live}, idle_cores)


def ours(**settings: str) -> Server:
    """This service as it is shipped, but for ``settings`` by the names of their variables."""
    variables = {"STYLIZE_PORT": "{port}", "STYLIZE_DRAIN_DELAY_S": "0", "STYLIZE_GATYS_WORKERS": "0"} | settings
    return Server(OURS, [sys.executable, "-m", "service"], variables, PATH)


def known_peers() -> list[Server]:
    """The same graph in other servers, one process of the network each, as they do it by default, with Pillow; and the
    simplest of them with our codec."""
    form, web = (f"{name}=={version(name.partition('[')[0])}" for name in ("python-multipart", "uvicorn[standard]"))
    fastapi, codec = f"fastapi=={version('fastapi')}", f"simplejpeg=={version('simplejpeg')}"
    peers = {
        "FastAPI": ([fastapi, web, codec], PLAIN),
        "FastAPI, our codec": ([fastapi, web, codec], PLAIN),
        "LitServe": (["litserve==0.2.19", form], "bench.peers.lit"),
        "BentoML": (["bentoml==1.4.39"], "bentoml serve bench.peers.bento:Stylize --host 127.0.0.1 --port {port}"),
        "mosec": (["mosec==0.9.8"], "bench.peers.mosec_server --address 127.0.0.1 --port {port} --timeout 300000"),
    }
    found = []
    for name, (packages, module) in peers.items():
        folder, _, with_codec = name.lower().partition(", ")
        command = [str(python_with(folder, packages)), "-m", *module.split()]
        environment = _painter() | ({"PEER_CODEC": "simplejpeg"} if with_codec else {})
        found.append(Server(name, command, environment, "/stylize", multipart=name == "LitServe"))
    return found


def plain_peer(**variables: str) -> Server:
    """FastAPI without anything else, of this very environment, with those ``variables`` of a ``Painter``."""
    return Server("FastAPI", [sys.executable, "-m", PLAIN], _painter() | variables, "/stylize")


@functools.cache
def _painter() -> dict[str, str]:
    """The environment of ``bench.peers.painter.Painter``; the store is read for it."""
    model = shipped()
    vector = CACHE / f"{STYLE}.npy"
    CACHE.mkdir(exist_ok=True)
    np.save(vector, model.vectors[STYLE])
    return {
        "PEER_PORT": "{port}",
        "PEER_GRAPH": str(SETTINGS.model_store / MODEL / str(model.card.version) / str(model.card.graph)),
        "PEER_VECTOR": str(vector),
        "PEER_THREADS": str(cpu_quota()),
        "PYTHONPATH": os.getcwd(),
        "BENTOML_DO_NOT_TRACK": "true",
    }


def asking(server: Running, photo: bytes, concurrency: int, cell_s: float) -> Callable[[], Cell]:
    plan = Plan(server.request(photo), cell_s, concurrency)

    def ask() -> Cell:
        time.sleep(PAUSE_S)
        before = server.cpu_s()
        outcome = fire(plan)
        answered = len(outcome.shots)
        latencies_s = outcome.latencies_s(cell_s)
        # what was answered after the end cost as much as what was answered before it
        cpu_s = (server.cpu_s() - before) * len(latencies_s) / answered
        failed = sum(shot.status != 200 for shot in outcome.shots)
        if not latencies_s:
            raise RuntimeError(f"{server.server.name} answered nothing within {cell_s:g} s: make the cells longer")
        return Cell(cell_s, latencies_s, cpu_s, outcome.client_cores, failed)

    return ask


def repeat(work: Callable[[], object], cell_s: float) -> Cell:
    time.sleep(PAUSE_S)
    latencies_s, cpu, started = [], time.process_time(), time.perf_counter()
    while (now := time.perf_counter()) < started + cell_s:
        work()
        latencies_s.append(time.perf_counter() - now)
    return Cell(time.perf_counter() - started, latencies_s, time.process_time() - cpu)


def _idle_cores(live: Sequence[Running]) -> float:
    """How many cores all servers take together while nobody asks."""
    time.sleep(PAUSE_S)
    before, started = sum(server.cpu_s() for server in live), time.perf_counter()
    time.sleep(2)
    return (sum(server.cpu_s() for server in live) - before) / (time.perf_counter() - started)


def cell_columns(row: Row, side: int) -> list[str]:
    """What a row says under CELL_COLUMNS."""
    times = (
        f"{row.rate:.2f}",
        f"{row.rate * side * side / 1e6:.2f}",
        f"{row.p50_s * 1000:.1f}",
        f"{row.p99_s * 1000:.1f}",
    )
    return [*times, f"{row.cpu_s:.4f}"]


def report(comparison: Comparison, rounds: int, cell_s: float) -> str:
    """A Markdown section: the table, and what of our goals was reached."""
    side = comparison.side
    lines = [
        f"## Servers: a {side} x {side} JPEG in, a JPEG out, over loopback",
        "",
        f"One server is asked at a time, all in turn in each of {rounds} rounds, {cell_s:g} s a cell. Medians of the",
        "rounds, but p99 over all of them together; CPU and memory of all processes of a server. Every one has the",
        f"same ONNX file and settings of ONNX Runtime ({cpu_quota()} threads, no spinning), and one process for the",
        "network; JPEGs are Pillow's, those of this service, in-process and with our codec simplejpeg's.",
        "",
        f"| | clients | {' | '.join(CELL_COLUMNS)} | peak memory, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in comparison.rows:
        peak = comparison.peak_mb.get(row.name)
        cells = " | ".join(cell_columns(row, side))
        lines.append(f"| {row.name} | {row.concurrency} | {cells} | {f'{peak:.0f}' if peak else ''} |")
    client = max(cell.client_cores for row in comparison.rows for cell in row.cells)
    failed = {row.name: sum(cell.failed for cell in row.cells) for row in comparison.rows}
    lost = ", ".join(f"{name} {count}" for name, count in failed.items() if count) or "none"
    lines += [
        "",
        f"The client took at most {client:.1%} of a core; idle, all servers together {comparison.idle_cores:.1%}.",
    ]
    return "\n".join([*lines, f"Requests not answered with a picture: {lost}.", "", *_verdicts(comparison)])


def _verdicts(comparison: Comparison) -> list[str]:
    most = CONCURRENCIES[-1]
    share = comparison.row(IN_PROCESS, 1).rate / comparison.row(OURS, most).rate - 1
    lines = [
        f"* A single client waits longer than for the work in-process by, in ms (goal: at most {OVERHEAD_MS}):",
        f"  {'; '.join(map(str, comparison.overheads))}. Medians of {TURNS} turns of {PICTURES} pictures each,",
        "  in brackets where 90 % of resampled medians lie.",
        f"* Time a picture with {most} clients over the work in-process: {share:+.1%} (at most {OVERHEAD_SHARE:.0%}).",
    ]
    peers = {row.name for row in comparison.rows} - {OURS, ALONE, IN_PROCESS}
    behind = []
    for concurrency in CONCURRENCIES if peers else ():
        mine = comparison.row(OURS, concurrency)
        for peer in (comparison.row(name, concurrency) for name in sorted(peers)):
            if peer.rate >= mine.rate:
                behind.append(f"{peer.name} answers {peer.rate / mine.rate - 1:.1%} more with {concurrency} clients")
            if peer.p99_s <= mine.p99_s:
                behind.append(f"{peer.name}'s p99 is {1 - peer.p99_s / mine.p99_s:.1%} lower with {concurrency}")
    if peers:
        lines.append(
            "* More requests/s and a lower p99 than every peer: "
            + (f"no: {'; '.join(behind)}" if behind else "yes")
            + "."
        )
    return lines


def plot(comparison: Comparison, path: Path) -> None:
    """Requests a second and p99 of every server, by the number of clients."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (rates, tails) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    names = [row.name for row in comparison.rows if row.concurrency == CONCURRENCIES[-1]]
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        rows = [comparison.row(name, concurrency) for concurrency in CONCURRENCIES]
        places = [place + (index - (len(names) - 1) / 2) * width for place in range(len(rows))]
        rates.bar(places, [row.rate for row in rows], width, label=name)
        tails.bar(places, [row.p99_s * 1000 for row in rows], width, label=name)
    rates.axhline(comparison.row(IN_PROCESS, 1).rate, color="black", linewidth=0.8, linestyle="--", label="in-process")
    rates.set_ylabel("requests a second (more is better)")
    tails.set_ylabel("p99 in ms (less is better)")
    tails.set_yscale("log")
    for axes in (rates, tails):
        axes.set_xticks(range(len(CONCURRENCIES)), [str(concurrency) for concurrency in CONCURRENCIES])
        axes.set_xlabel(f"clients at once, {comparison.side} x {comparison.side} px")
    figure.legend(*rates.get_legend_handles_labels(), loc="outside upper center", ncols=len(names) + 1)  # hides no bar
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
