"""Three times the work that the service can do: what it still finishes, and how late that is."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean

import numpy as np

from bench.load import LOST, Plan, fire
from bench.processes import Running, running
from bench.servers import ours
from bench.work import jpeg

FACTOR = 3.0
CLIENTS = 16  # what capacity is measured with
GOODPUT = 0.95  # of capacity, the goal
TURNS = 4  # of capacity and overload: a shared machine's speed drifts by a tenth within a minute
RAMP_S = 2.0  # of each overload is not counted: the queue fills
LARGE_SIDE = 2048  # pixels: long enough for a thousand refusals
HEAD_START, HURRIED = 0.2, 0.6  # of the time that it takes: when clients begin to be refused beside it, and how long


def overload(duration_s: float, side: int, deadline_ms: int) -> str:
    """A Markdown section. Capacity is measured in closed loop, in turn with the overload, an open loop (Poisson)."""
    photo, turn_s = jpeg(side, side), duration_s / TURNS
    with running(ours(), photo) as service:
        closed = Plan(service.request(photo), turn_s / 2, CLIENTS)
        hurried = service.request(photo, f"&deadline_ms={deadline_ms}")
        rates, outcomes = [_rate(closed)], []
        offered = FACTOR * rates[0]
        for _ in range(TURNS):
            outcomes.append(fire(Plan(hurried, turn_s, rate=offered)))
            rates.append(_rate(closed))
        refusal_s, refusals = _refusal_s(service, photo)
    client = max(outcome.client_cores for outcome in outcomes)
    shots = [shot for outcome in outcomes for shot in outcome.shots]
    counted = [shot for shot in shots if RAMP_S <= shot.answered_s <= turn_s]
    done = [shot.latency_s for shot in counted if shot.status == 200]
    late = [np.inf for shot in counted if shot.status == 504]  # accepted, and not kept to
    statuses = Counter("lost" if shot.status == LOST else str(shot.status) for shot in shots)
    capacity, goodput = fmean(rates), len(done) / TURNS / (turn_s - RAMP_S)
    p50_s, p99_s = np.quantile(done + late, [0.5, 0.99], method="higher") if done else (np.nan, np.nan)
    kept = goodput >= GOODPUT * capacity and 1000 * p99_s <= deadline_ms
    return "\n".join(
        [
            f"## Overload: {FACTOR:g} x capacity for {duration_s:g} s, {side} x {side}, deadline {deadline_ms} ms",
            "",
            f"* Capacity, in turn with it ({CLIENTS} clients): {capacity:.2f} requests/s; offered {offered:.1f}.",
            f"* Goodput {goodput:.2f} requests/s, {goodput / capacity:.1%} of capacity (goal: at least {GOODPUT:.0%}).",
            f"* Of what was accepted: p50 {1000 * p50_s:.0f} ms, p99 {1000 * p99_s:.0f} ms (goal: the deadline);"
            f" late: {len(late)}.",
            f"* Answers by status: {', '.join(f'{status}: {count}' for status, count in sorted(statuses.items()))}.",
            f"* A refusal costs {1000 * refusal_s:.2f} ms: {refusals} of them delay a large picture by so much each.",
            f"* The client took {client:.1%} of a core. Goals {'reached' if kept else 'MISSED'}.",
        ]
    )


def _rate(closed: Plan) -> float:
    """Pictures a second."""
    return len(fire(closed).latencies_s(closed.duration_s)) / closed.duration_s


def _refusal_s(service: Running, photo: bytes) -> tuple[float, int]:
    """Seconds by which a refusal delays the run beside it; and how many were counted.

    A large picture is painted alone, and then beside clients that are refused; the first one grows the arena.
    """
    large = Plan(service.request(jpeg(LARGE_SIDE, LARGE_SIDE)), 0.001)
    alone_s = min(_answered_s(large) for _ in range(3))
    hurried = Plan(service.request(photo, "&deadline_ms=1"), HURRIED * alone_s, CLIENTS)
    with ThreadPoolExecutor(1) as beside:
        painting = beside.submit(_answered_s, large)
        time.sleep(HEAD_START * alone_s)
        refusals = sum(shot.status == 503 for shot in fire(hurried).shots)
        delayed_s = painting.result()
    return max(0.0, delayed_s - alone_s) / max(1, refusals), refusals


def _answered_s(plan: Plan) -> float:
    return max(shot.answered_s for shot in fire(plan).shots)
