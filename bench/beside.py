"""What a job on the same machine does to the latency of ``/stylize``."""

from __future__ import annotations

import tempfile
import time

import numpy as np

from bench.load import Plan, fire
from bench.processes import running
from bench.servers import ours
from bench.work import PHOTO, jpeg
from service.client import Client, GatysOrder

RATE_SHARE = 0.3  # of what the service can do alone: neither idle nor a queue of its own
GOAL = 1.5  # times the p99 without a job
JOB_SIDE = 512


def beside_a_job(rounds: int, duration_s: float, side: int) -> str:
    """A Markdown section: ``rounds`` of ``duration_s`` seconds each, without and with a job in turn, open loop."""
    photo = jpeg(side, side)
    order = GatysOrder(jpeg(JOB_SIDE, JOB_SIDE), PHOTO.with_name("mariachi.jpg").read_bytes(), preset="best", seed=1)
    latencies: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory() as data:
        settings = {"STYLIZE_DATA_DIR": data, "STYLIZE_GATYS_WORKERS": "1"}
        with running(ours(**settings), photo) as service, Client(f"http://127.0.0.1:{service.port}") as client:
            request = service.request(photo)
            rate = RATE_SHARE * len(fire(Plan(request, duration_s)).latencies_s(duration_s)) / duration_s
            for _ in range(rounds):
                for with_job in latencies:
                    job = client.submit(order) if with_job else None
                    if job:
                        _wait_until_running(client, job.id)
                    shots = fire(Plan(request, duration_s, rate=rate)).shots
                    latencies[with_job] += [shot.latency_s for shot in shots if shot.status == 200]
                    if job:
                        client.cancel(job.id)
    rows, tails = [], []
    for with_job, found in latencies.items():
        p50_s, p99_s = np.quantile(found, [0.5, 0.99])
        tails.append(p99_s)
        rows.append(f"| {'with' if with_job else 'without'} | {len(found)} | {1000 * p50_s:.0f} | {1000 * p99_s:.0f} |")
    ratio = tails[1] / tails[0]
    return "\n".join(
        [
            f"## Beside a job: {side} x {side}, {rate:.1f} requests/s at random, {rounds} x {duration_s:g} s in turn",
            "",
            "| a job | requests | p50, ms | p99, ms |",
            "|---|---|---|---|",
            *rows,
            "",
            f"p99 with a job is {ratio:.2f} times that without (goal: at most {GOAL:g}). "
            f"Goal {'reached' if ratio <= GOAL else 'MISSED'}.",
        ]
    )


def _wait_until_running(client: Client, id: str) -> None:
    while client.job(id).iteration == 0:
        time.sleep(0.2)
