"""The fleet that ``bench.fleet`` simulates, fed with what was measured: a day, a burst, a hundred thousand requests a
second; and beside what was measured of one replica."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.fleet import Autoscaler, Moment, Replica, Totals, Traffic, by_minute, simulate
from bench.overload import GOODPUT
from bench.work import SETTINGS, in_process, jpeg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDES = (256, 512, 1024)
SHARES = (0.5, 0.35, 0.15)
DEADLINE_S = 10.0
PULL_S = 30.0  # assumed: a node with room has the image, or pulls 320 MB
READY_S = 0.7  # measured: bench/results/…_service.md
SEED = 1
DAY_S, DAY_PEAK = 86_400.0, 30.0  # requests a second: a day of more is more requests than can be simulated in minutes
BURST_S, BURST_PEAK, BURST = 900.0, 4500.0, 5.0  # the most for which a thousand replicas like this one are 60 % busy
TARGETS = (0.1, Autoscaler.target)  # of the capacity in flight: what the manifest said before, and what it says
MANY, MANY_REPLICAS, MANY_S = 100_000.0, 1000, 5.0


@dataclass(frozen=True)
class Scene:
    """One simulated load."""

    title: str
    totals: Totals
    traffic: Traffic


def simulation(results: Path, prefix: str, picture: Path) -> str:
    """A Markdown section, from what ``bench capacity``, ``overload`` and ``redis`` left in ``results``; plots to
    ``picture``. Raises FileNotFoundError where one of them has not been measured."""
    overload = (results / f"{prefix}_overload.md").read_text()
    replica = measured_replica((results / f"{prefix}_capacity.md").read_text(), overload)
    jobs = measured_jobs((results / f"{prefix}_redis.md").read_text())
    beside = validated(overload)
    scenes = {target: [_day(replica, target), _burst(replica, target)] for target in TARGETS}
    plot([scene for pair in scenes.values() for scene in pair], beside, picture)
    mix = ", ".join(f"{share:.0%} of {side} px" for side, share in zip(SIDES, SHARES, strict=True))
    lines = [
        "## Simulation",
        "",
        f"A picture of x megapixels takes a replica {1000 * replica.a_s:.0f} x + {1000 * replica.b_s:.0f} ms "
        f"(measured), a refusal {1000 * replica.refusal_s:.2f} ms of that (measured). Pictures: {mix}; deadline "
        f"{DEADLINE_S:g} s; refused clients come back twice. A replica answers "
        f"{PULL_S + READY_S:g} s after it was wanted (assumed but for {READY_S:g} s). Seed {SEED}.",
        "",
        *beside.report(),
        "",
        "### Scaled by the HPA",
        "",
        *_table([_row(scene) for pair in scenes.values() for scene in pair]),
        "",
        f"![Rates, tails and replicas]({picture.name})",
        "",
        *_many(replica),
        "",
        *_network(),
        jobs,
    ]
    return "\n".join(lines)


def measured_replica(capacity: str, overload: str) -> Replica:
    """From the words of ``bench capacity`` and ``bench overload``. Raises ValueError where they are missing."""
    found = re.search(r"takes ([\d.]+) x \+ ([\d.]+) ms", capacity)
    if not found:
        raise ValueError("the measured capacity does not say what a picture takes; run python -m bench capacity")
    a_s, b_s = (float(ms) / 1000 for ms in found.groups())
    return Replica(a_s, b_s, SETTINGS.max_queue_pixels, SETTINGS.max_batch_pixels, measured_refusal_s(overload))


def measured_refusal_s(overload: str) -> float:
    """From the words of ``bench overload``. Raises ValueError where they are missing."""
    found = re.search(r"A refusal costs ([\d.]+) ms", overload)
    if not found:
        raise ValueError("the measured overload does not say what a refusal costs; run python -m bench overload")
    return float(found[1]) / 1000


def measured_jobs(redis: str) -> str:
    """From the words of ``bench redis``. Raises ValueError where they are missing."""
    found = re.search(r"A job of (\d+) evaluations in ([\d.]+) s .*?: ([\d,]+) jobs/s, what ([\d,]+) workers do", redis)
    if not found:
        raise ValueError("the measured Redis cannot be read; run python -m bench redis")
    evaluations, seconds, rate, workers = found.groups()
    return (
        f"* Jobs share one Redis: its one thread does {rate} jobs/s of {evaluations} evaluations (measured), what "
        f"{workers} workers do in {seconds} s each. Beyond it each group of workers has a Redis of its own, with the "
        "web processes that give them their jobs."
    )


@dataclass(frozen=True)
class Overloaded:
    """What became of one replica's overload: the share of its capacity that was answered in time, in %, the answers'
    quantiles in ms, and how many were late."""

    share: float
    p50_ms: float
    p99_ms: float
    late: int

    def row(self, name: str) -> str:
        return f"| {name} | {self.share:.1f} % | {self.p50_ms:.0f} | {self.p99_ms:.0f} | {self.late} |"


@dataclass(frozen=True)
class Validation:
    """The same load, measured and simulated."""

    offered: float
    duration_s: int
    measured: Overloaded
    simulated: Overloaded

    def report(self) -> list[str]:
        return [
            f"### One replica, offered {self.offered:g} requests/s for {self.duration_s} s: is the simulation true?",
            "",
            "| | of its capacity answered in time | p50 in ms | p99 in ms | late |",
            "|---|---|---|---|---|",
            self.measured.row("measured"),
            self.simulated.row("simulated"),
            "",
            "Runs take as long as expected, which real ones do not; what else differs is not known.",
        ]


def validated(overload: str) -> Validation:
    """One replica, simulated with the capacity and load that ``bench overload`` measured, beside what came of it."""
    head = re.search(r"capacity for (\d+) s, (\d+) x \d+, deadline (\d+) ms", overload)
    rates = re.search(r"\): ([\d.]+) requests/s; offered (\d+\.?\d*)\.\s", overload)
    share = re.search(r"requests/s, ([\d.]+)% of capacity", overload)
    tails = re.search(r"p50 (\d+) ms, p99 (\d+) ms", overload)
    if not (head and rates and share and tails):
        raise ValueError("the measured overload cannot be read; run python -m bench overload")
    duration_s, side, deadline_ms = map(int, head.groups())
    capacity, offered = map(float, rates.groups())
    run_s, refusal_s = 1 / capacity, measured_refusal_s(overload)
    replica = Replica(0.0, run_s, SETTINGS.max_queue_pixels, side**2, refusal_s)  # one by one: batches gain nothing
    traffic = Traffic(lambda _: offered, offered, duration_s, (side,), (1.0,), deadline_ms / 1000, 0)
    totals = simulate(replica, traffic, 1, SEED)
    late = int(found.group(1)) if (found := re.search(r"504: (\d+)", overload)) else 0
    simulated = totals.answered / (duration_s + deadline_ms / 1000) / capacity
    return Validation(
        offered,
        duration_s,
        Overloaded(float(share[1]), float(tails[1]), float(tails[2]), late),
        Overloaded(100 * simulated, 1000 * totals.quantile_s(0.5), 1000 * totals.quantile_s(0.99), totals.late),
    )


def day(rate: float, of_s: float) -> float:
    """A day's curve: least at four in the morning, a fifth of the most, which is at four in the afternoon."""
    return rate * (0.6 - 0.4 * math.cos(2 * math.pi * (of_s / 86_400 - 4 / 24)))


def burst(rate: float, of_s: float) -> float:
    """A fifth of the most; from the second minute to the third up to it, there for eight, and back."""
    return rate * (1 / BURST + (1 - 1 / BURST) * min(max((of_s - 60) / 60, 0), 1, max((660 - of_s) / 60, 0)))


def _day(replica: Replica, target: float) -> Scene:
    traffic = Traffic(lambda time: day(DAY_PEAK, time), DAY_PEAK, DAY_S, SIDES, SHARES, DEADLINE_S)
    hpa = Autoscaler(2, 50, PULL_S + READY_S, target)
    return Scene(f"a day, target {target:g}", *_scaled(replica, traffic, hpa))


def _burst(replica: Replica, target: float) -> Scene:
    traffic = Traffic(lambda time: burst(BURST_PEAK, time), BURST_PEAK, BURST_S, SIDES, SHARES, DEADLINE_S)
    hpa = Autoscaler(2, MANY_REPLICAS, PULL_S + READY_S, target)
    return Scene(f"x {BURST:g} in a minute, target {target:g}", *_scaled(replica, traffic, hpa))


def _scaled(replica: Replica, traffic: Traffic, hpa: Autoscaler) -> tuple[Totals, Traffic]:
    """It begins with as many replicas as are 60 % busy."""
    first = max(hpa.least, math.ceil(traffic.rate(0) * mean_run_s(replica) / 0.6))
    return simulate(replica, traffic, first, SEED, hpa), traffic


def mean_run_s(replica: Replica) -> float:
    """Of the pictures simulated, in seconds."""
    return sum(share * replica.run_s(side**2) for side, share in zip(SIDES, SHARES, strict=True))


def _row(scene: Scene) -> str:
    totals = scene.totals
    counts = [moment.replicas for moment in totals.moments]
    return (
        f"| {scene.title} (at most {scene.traffic.peak:,.0f}/s) | {totals.offered:,} | "
        f"{totals.quantile_s(0.5):.2f} | {totals.quantile_s(0.99):.2f} | {totals.refused / totals.offered:.2%} | "
        f"{(totals.given_up + totals.late) / totals.offered:.2%} | "
        f"{totals.busy_s / totals.replica_s:.0%} | {min(counts)} to {max(counts)} |"
    )


def _table(rows: list[str]) -> list[str]:
    return [
        "| load | requests | p50 in s | p99 in s | refusals a request | never answered | busy | replicas |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def _many(replica: Replica) -> list[str]:
    """A hundred thousand requests a second on a thousand replicas, which therefore must be faster."""
    traffic = Traffic(lambda _: MANY, MANY, MANY_S, SIDES, SHARES, DEADLINE_S)
    needed = math.ceil(MANY * mean_run_s(replica) / 0.6)
    rows = []
    for busy in (0.6, 0.9):
        speed = MANY * mean_run_s(replica) / busy / MANY_REPLICAS
        fast = dataclasses.replace(replica, a_s=replica.a_s / speed, b_s=replica.b_s / speed)
        for choices, name in ((1, "any replica"), (2, "the emptier of two")):
            totals = simulate(fast, traffic, MANY_REPLICAS, SEED, choices=choices)
            rows.append(
                f"| {speed:.1f} | {busy:.0%} | {name} | {totals.offered:,} | {1000 * totals.quantile_s(0.5):.0f} | "
                f"{1000 * totals.quantile_s(0.99):.0f} | {totals.refused:,} |"
            )
    return [
        f"### {MANY:,.0f} requests/s",
        "",
        f"Replicas like this one: **{needed:,}** at 60 %. On {MANY_REPLICAS:,} they have to be faster, as on a GPU; "
        f"simulated for {MANY_S:g} s, every request:",
        "",
        "| times as fast | busy | the balancer takes | requests | p50 in ms | p99 in ms | refused |",
        "|---|---|---|---|---|---|---|",
        *rows,
    ]


def _network() -> list[str]:
    """Bytes of the pictures simulated, in and out: photos of tests/ and what the shipped network makes of them."""
    bytes_in = np.array([len(jpeg(side, side)) for side in SIDES])
    bytes_out = np.array([len(in_process(jpeg(side, side)).stylize()) for side in SIDES])
    in_kb, out_kb = float(bytes_in @ SHARES) / 1000, float(bytes_out @ SHARES) / 1000
    gbit = [kb * 1000 * MANY * 8 / 1e9 for kb in (in_kb, out_kb)]
    return [
        "### Where the next bottleneck is",
        "",
        f"* Network: a request brings {in_kb:.0f} KB and takes {out_kb:.0f} KB (measured, JPEG 90): at {MANY:,.0f}/s "
        f"{gbit[0]:.0f} Gbit/s in and {gbit[1]:.0f} Gbit/s out. A balancer behind one 100 Gbit/s port ends at "
        f"{MANY * 100 / max(gbit):,.0f} requests/s: more of them behind DNS or anycast, or one that only places "
        "connections and lets replicas answer past it.",
        "* Stylising itself shares nothing: no broker, no store; the models are in the image.",
    ]


def plot(scenes: list[Scene], beside: Validation, path: Path) -> None:
    """One replica's overload, measured and simulated; rates, tails and replicas by the minute, a column a scene."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    widths = [0.6, *[1.0] * len(scenes)]
    size = (5.5 * sum(widths), 8.0)
    figure, rows = pyplot.subplots(
        3, len(widths), figsize=size, layout="constrained", squeeze=False, sharex="col", width_ratios=widths
    )
    _plot_beside([row[0] for row in rows], beside)
    for column, scene in enumerate(scenes, 1):
        rates, tails, replicas = (row[column] for row in rows)
        minutes = [_Minute.of(minute, moments) for minute, moments in by_minute(scene.totals.moments)]
        hours = scene.traffic.duration_s > 7200
        at = [minute.at / 60 if hours else minute.at for minute in minutes]
        for name in ("offered", "answered", "refused"):
            rates.plot(at, [getattr(minute, name) for minute in minutes], label=name)
        tails.plot(at, [minute.p50_s for minute in minutes], label="p50")
        tails.plot(at, [minute.p99_s for minute in minutes], label="p99")
        replicas.plot(at, [minute.replicas for minute in minutes], color="black")
        busy = replicas.twinx()
        busy.plot(at, [100 * minute.utilisation for minute in minutes], color="tab:orange", linewidth=0.8)
        busy.set_ylim(0, 105)
        busy.set_ylabel("busy, % (orange)")
        rates.set_title(scene.title)
        rates.set_ylabel("requests a second")
        tails.set_ylabel("seconds")
        replicas.set_ylabel("replicas")
        replicas.set_xlabel("hour" if hours else "minute")
        rates.legend(fontsize="small")
        tails.legend(fontsize="small")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _plot_beside(column: Sequence[Axes], beside: Validation) -> None:
    names, both = ["measured", "simulated"], [beside.measured, beside.simulated]
    share, tails, late = column
    share.set_title(f"one replica, {beside.offered:g}/s")
    share.bar(names, [one.share for one in both])
    share.axhline(100 * GOODPUT, color="black", linewidth=0.8, linestyle="--")
    share.set_ylabel("% of capacity, in time")
    tails.bar([-0.2, 0.8], [one.p50_ms / 1000 for one in both], 0.4, label="p50")
    tails.bar([0.2, 1.2], [one.p99_ms / 1000 for one in both], 0.4, label="p99")
    tails.margins(y=0.25)  # room for the legend
    tails.legend(fontsize="small", loc="upper center", ncols=2)
    tails.set_ylabel("seconds")
    late.bar(names, [one.late for one in both])
    late.set_ylim(0, max(1, *(1.05 * one.late for one in both)))
    late.set_ylabel("late")


@dataclass(frozen=True)
class _Minute:
    """Rates a second; the worst p99 and the median p50 of its intervals."""

    at: int
    offered: float
    answered: float
    refused: float
    p50_s: float
    p99_s: float
    utilisation: float
    replicas: int

    @classmethod
    def of(cls, minute: int, moments: list[Moment]) -> _Minute:
        seconds = 60.0 if len(moments) > 1 else 15.0
        return cls(
            minute,
            sum(moment.offered for moment in moments) / seconds,
            sum(moment.answered for moment in moments) / seconds,
            sum(moment.refused for moment in moments) / seconds,
            float(np.median([moment.p50_s for moment in moments])),
            max(moment.p99_s for moment in moments),
            float(np.mean([moment.utilisation for moment in moments])),
            moments[-1].replicas,
        )
