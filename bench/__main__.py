"""python -m bench: measures the shipped models and the running service, and writes bench/results/<machine>.md."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.networks import compare_networks
from bench.service import measure_service
from service.models.session import cpu_quota

RESULTS = Path(__file__).parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every measurement once; nothing else should be running meanwhile."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="interleaved rounds; medians are reported")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{platform.machine()}_{cpu_quota()}_cores.md")
    options = parser.parse_args(arguments)
    parts = [f"# Measured on {machine()}", compare_networks(options.rounds), measure_service(options.rounds)]
    text = "\n\n".join(parts) + "\n"
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    return 0


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
