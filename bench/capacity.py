"""What one replica and one worker of this machine do, and how many of them a load takes."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.load import Plan, fire
from bench.processes import Running, running
from bench.servers import ours
from bench.work import PHOTO, jpeg
from service.client import Client, GatysOrder

SIDES = (256, 512, 1024, 1536)
CLIENTS = 4  # so that a run is always waiting for the one before
JOBS = 2
JOB_SIDE = 320
UTILISATION = 0.6  # at random arrivals a picture then waits for 0.75 of a run on average (M/D/1), at 0.9 for 4.5


@dataclass(frozen=True)
class Load:
    """To be borne: requests a second of so many megapixels each, jobs a minute."""

    requests_per_s: float
    megapixels: float
    jobs_per_min: float


@dataclass(frozen=True)
class Capacity:
    """A picture of x megapixels takes ``a_s`` x + ``b_s`` seconds of a replica, a job ``job_s`` of a worker."""

    a_s: float
    b_s: float
    job_s: float
    web_mb: float
    worker_mb: float  # with the web process whose jobs it does, which made small pictures only

    def replicas(self, load: Load) -> int:
        picture_s = self.a_s * load.megapixels + self.b_s
        return max(1, math.ceil(load.requests_per_s * picture_s / UTILISATION))

    def workers(self, load: Load) -> int:
        return math.ceil(load.jobs_per_min / 60 * self.job_s / UTILISATION)


def capacity(duration_s: float, load: Load, cost_per_hour: float) -> str:
    """A Markdown section. ``duration_s`` of each size; ``cost_per_hour`` is a machine's such as this one, in whatever
    currency."""
    pictures, web_mb = _pictures(duration_s)
    job_s, worker_mb = _jobs()
    found = Capacity(*fit(pictures), job_s, web_mb, worker_mb)
    replicas, workers = found.replicas(load), found.workers(load)
    sizes = [
        f"| {side} x {side} | {1000 * seconds:.0f} | {side**2 / 1e6 / seconds:.2f} |" for side, seconds in pictures
    ]
    return "\n".join(
        [
            f"## Capacity: {CLIENTS} clients, {duration_s:g} s a size",
            "",
            "| picture | ms of the replica | megapixels/s |",
            "|---|---|---|",
            *sizes,
            "",
            f"* A picture of x megapixels takes {1000 * found.a_s:.0f} x + {1000 * found.b_s:.0f} ms.",
            f"* A job (`fast`, {JOB_SIDE} px) takes {job_s:.1f} s: {60 / job_s:.2f} jobs/min of one worker.",
            f"* Memory at most: {web_mb:.0f} MB after these pictures; with a worker {worker_mb:.0f} MB.",
            f"* {load.requests_per_s:g} requests/s of {load.megapixels:g} megapixels, {load.jobs_per_min:g} jobs/min, "
            f"each machine {UTILISATION:.0%} busy: **{replicas} replicas, {workers} workers**, "
            f"{(replicas + workers) * cost_per_hour:g} an hour at {cost_per_hour:g} a machine.",
        ]
    )


def fit(pictures: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Seconds a megapixel, and seconds beside: least squares of relative errors, neither of them negative. ``pictures``
    are sides, in pixels, and seconds."""
    x = np.array([side**2 / 1e6 for side, _ in pictures])
    t = np.array([seconds for _, seconds in pictures])
    a, b = np.linalg.lstsq(np.stack([x / t, 1 / t], axis=1), np.ones_like(t), rcond=None)[0]
    if b < 0:
        return float((x / t).sum() / ((x / t) ** 2).sum()), 0.0
    return (float(a), float(b)) if a > 0 else (0.0, float((1 / t).sum() / ((1 / t) ** 2).sum()))


def _pictures(duration_s: float) -> tuple[list[tuple[int, float]], float]:
    """Seconds a picture of each side at full load, and the most memory, in MB."""
    with running(ours(), jpeg(64, 64)) as service:
        return [(side, _picture_s(service, side, duration_s)) for side in SIDES], service.peak_mb()


def _picture_s(service: Running, side: int, duration_s: float) -> float:
    """All that was begun is answered and counted: however slow, there is a number."""
    shots = fire(Plan(service.request(jpeg(side, side)), duration_s, CLIENTS)).shots
    if failed := [shot.status for shot in shots if shot.status != 200]:
        raise RuntimeError(f"{side} x {side}: not every picture was answered, but {failed[0]}")
    return max(shot.answered_s for shot in shots) / len(shots)


def _jobs() -> tuple[float, float]:
    """Seconds a job, without the first, which starts the worker; and the most memory, in MB."""
    painting = PHOTO.with_name("mariachi.jpg").read_bytes()  # any other picture takes as long
    order = GatysOrder(jpeg(JOB_SIDE, JOB_SIDE), painting, preset="fast", seed=1)
    with tempfile.TemporaryDirectory() as data:
        settings = {"STYLIZE_DATA_DIR": data, "STYLIZE_GATYS_WORKERS": "1"}
        with running(ours(**settings), jpeg(64, 64)) as service, Client(f"http://127.0.0.1:{service.port}") as client:
            client.wait(client.submit(order))
            begun = time.perf_counter()
            for job in [client.submit(order) for _ in range(JOBS)]:
                client.wait(job)
            return (time.perf_counter() - begun) / JOBS, service.peak_mb()
