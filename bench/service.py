"""The running service by itself: time to readiness, memory, and how soon a run is stopped."""

from __future__ import annotations

import time

from bench.load import Plan, fire
from bench.processes import running
from bench.servers import ours
from bench.stopping import measure_stops
from bench.work import jpeg
from service.batching import IDLE_S

MANY_S = 30.0
SETTLED_S = IDLE_S + 2
STOPS = 9


def measure_service(duration_s: float = MANY_S) -> str:
    """A Markdown section on readiness, on memory after large pictures, and on runs that are stopped."""
    large = jpeg(1184, 888)  # 1.05 megapixels
    with running(ours(), jpeg(64, 64)) as service:
        answered = len(fire(Plan(service.request(large), duration_s)).shots)
        resident = service.resident_mb()
        time.sleep(SETTLED_S)
        settled = service.resident_mb()
    return "\n".join(
        [
            "## Service",
            "",
            f"* First picture {service.ready_s:.1f} s after the start of the process, with the shipped store.",
            f"* Resident memory right after {answered} requests of 1 megapixel: {resident:.0f} MB; {SETTLED_S:g} s "
            f"later {settled:.0f} MB.",
            measure_stops(STOPS),
        ]
    )
