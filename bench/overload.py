"""Three times the work that the service can do: what it still finishes, and how late that is."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bench.load import LOST, Plan, fire
from bench.processes import running
from bench.servers import ours
from bench.work import jpeg

FACTOR = 3.0
CLIENTS = 16  # what capacity is measured with
GOODPUT = 0.95  # of capacity, the goal
RAMP_S = 2.0  # of the overload is not counted: the queue fills


def overload(duration_s: float, side: int, deadline_ms: int) -> str:
    """A Markdown section. Capacity is measured just before, closed loop; the overload is open loop (Poisson)."""
    photo = jpeg(side, side)
    with running(ours(), photo) as service:
        request = service.request(photo)
        before_s = min(10.0, duration_s)
        capacity = len(fire(Plan(request, before_s, CLIENTS)).latencies_s(before_s)) / before_s
        hurried = service.request(photo, f"&deadline_ms={deadline_ms}")
        outcome = fire(Plan(hurried, duration_s, rate=FACTOR * capacity))
    counted = [shot for shot in outcome.shots if RAMP_S <= shot.answered_s <= duration_s]
    done = [shot for shot in counted if shot.status == 200]
    statuses = Counter("lost" if shot.status == LOST else str(shot.status) for shot in outcome.shots)
    goodput = len(done) / (duration_s - RAMP_S)
    p50_s, p99_s = np.quantile([shot.latency_s for shot in done], [0.5, 0.99]) if done else (np.nan, np.nan)
    kept = goodput >= GOODPUT * capacity and 1000 * p99_s <= deadline_ms
    return "\n".join(
        [
            f"## Overload: {FACTOR:g} x capacity for {duration_s:g} s, {side} x {side}, deadline {deadline_ms} ms",
            "",
            f"* Capacity just before ({CLIENTS} clients): {capacity:.2f} requests/s; offered {FACTOR * capacity:.1f}.",
            f"* Goodput {goodput:.2f} requests/s, {goodput / capacity:.1%} of capacity (goal: at least {GOODPUT:.0%}).",
            f"* Answered with a picture: p50 {1000 * p50_s:.0f} ms, p99 {1000 * p99_s:.0f} ms (goal: the deadline).",
            f"* Answers by status: {', '.join(f'{status}: {count}' for status, count in sorted(statuses.items()))}.",
            f"* The client took {outcome.client_cores:.1%} of a core. Goals {'reached' if kept else 'MISSED'}.",
        ]
    )
