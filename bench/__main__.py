"""python -m bench: measures the shipped models and the running service, alone, beside others and under stress, and
writes bench/results/<machine>….md. Nothing else should be running meanwhile."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.arbitrary import compare_encoders
from bench.beside import beside_a_job
from bench.capacity import Load, capacity
from bench.excess import compare_excesses
from bench.gpu import measure_gpu
from bench.networks import compare_networks
from bench.overload import overload
from bench.page import measure_page, take_pictures
from bench.redis import measure_redis
from bench.rival import compare_with_rival
from bench.servers import compare_servers, plot, report
from bench.service import measure_service
from bench.settings import settings
from bench.simulation import simulation
from bench.soak import soak
from service.jobs.parameters import PRESETS
from service.models.session import cpu_quota, cuda_works

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
PARTS = (
    "all",
    "networks",
    "openvino",
    "service",
    "peers",
    "overload",
    "soak",
    "settings",
    "capacity",
    "redis",
    "simulate",
    "page",
    "pictures",
    "arbitrary",
    "excess",
    "beside",
    "gpu",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """One of the parts, or, where none is named, networks, service and peers together."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("part", nargs="?", default="all", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are reported")
    parser.add_argument("--cell", type=float, default=3.0, help="seconds a server, number of clients and round")
    parser.add_argument("--side", type=int, default=256, help="of the pictures that servers are sent, in pixels")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--deadline-ms", type=int, default=2000, help="of every request of the overload")
    parser.add_argument("--minutes", type=float, default=10.0, help="of soak")
    parser.add_argument("--requests-per-s", type=float, default=10.0, help="of the load to plan for")
    parser.add_argument("--megapixels", type=float, default=0.8, help="of a picture of the load to plan for")
    parser.add_argument("--jobs-per-min", type=float, default=1.0, help="of the load to plan for")
    parser.add_argument("--job-s", type=float, default=20.0, help="redis: seconds that a job takes a worker")
    parser.add_argument("--cost", type=float, default=0.1, help="of a machine like this one, an hour, in any currency")
    parser.add_argument("--corpus", type=Path, help="arbitrary, excess: folder of the paintings that were held out")
    parser.add_argument("--steps", type=int, default=200, help="excess: of refinement")
    parser.add_argument("--sheet", type=Path, help="excess: draw all pictures here, and the optima")
    parser.add_argument("--no-peers", action="store_true", help="measure our own service alone: installs nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    if options.part == "gpu" and not cuda_works():
        print("SKIPPED: this ONNX Runtime has no CUDA that works here; nothing was measured", file=sys.stderr)
        return 1
    found = [f"# Measured on {machine()}"]
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"{platform.machine()}_{cpu_quota()}_cores" + ("" if options.part == "all" else f"_{options.part}")
    if options.part in ("all", "networks"):
        found.append(compare_networks(options.rounds))
    if options.part == "openvino":
        from bench.runtimes import compare_runtimes  # needs an extra

        found.append(compare_runtimes(options.rounds))
    if options.part in ("all", "service"):
        found.append(measure_service())
    if options.part in ("all", "peers"):
        found += _peers(options, options.out / f"{name}.png")
    if options.part == "overload":
        found.append(overload(options.seconds, options.side, options.deadline_ms))
    if options.part == "soak":
        found.append(soak(options.minutes, options.out / f"{name}.png"))
    if options.part == "capacity":
        load = Load(options.requests_per_s, options.megapixels, options.jobs_per_min)
        found.append(capacity(options.cell, load, options.cost))
    if options.part == "redis":
        found.append(measure_redis(options.job_s, PRESETS["fast"].iterations))
    if options.part == "beside":
        found.append(beside_a_job(options.rounds, options.cell, options.side))
    if options.part == "simulate":
        prefix = f"{platform.machine()}_{cpu_quota()}_cores"
        found = [simulation(RESULTS, prefix, options.out / f"{name}.png")]
    if options.part == "page":
        found.append(measure_page(options.rounds))
    if options.part == "pictures":
        print(take_pictures(DOCS))
        return 0
    if options.part in ("arbitrary", "excess") and not options.corpus:
        parser.error(f"{options.part} needs --corpus")
    if options.part == "arbitrary":
        found.append(compare_encoders(options.corpus, options.rounds))
    if options.part == "excess":
        found.append(compare_excesses(options.corpus, options.sheet, options.steps))
    if options.part == "gpu":
        found.append(measure_gpu(options.rounds, options.cell))
    if options.part == "settings":
        found.append(settings(options.rounds, options.cell))
    text = "\n\n".join(found) + "\n"
    print(text)
    (options.out / f"{name}.md").write_text(text)
    return 0


def _peers(options: argparse.Namespace, picture: Path) -> list[str]:
    comparison = compare_servers(options.rounds, options.cell, options.side, peers=not options.no_peers)
    plot(comparison, picture)
    section = f"{report(comparison, options.rounds, options.cell)}\n\n![Rates and tails]({picture.name})"
    return [section] if options.no_peers else [section, compare_with_rival(options.rounds)]


def machine() -> str:
    """The processor's name, its cores that this process may use, and the load that the measurement met."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return (
        f"{names[0] if names else platform.processor()}, {cpu_quota()} cores (load {os.getloadavg()[0]:.1f} at start)"
    )


if __name__ == "__main__":
    sys.exit(main())
