"""``python -m service.jobs.distributed``: a worker, for the service with the same ``STYLIZE_JOBS_URL``.

It takes the settings of the service; ``STYLIZE_GATYS_WORKERS`` is how many jobs it does at once.
"""

from __future__ import annotations

import importlib.util
import os
import sys

# What goes on is given back at SIGTERM, not finished: it may take an hour. Celery reads this when it is imported.
os.environ.setdefault("REMAP_SIGTERM", "SIGQUIT")

from service import __version__
from service.errors import ConfigurationError, ModelRefused
from service.jobs.distributed.ops import Ops
from service.jobs.distributed.queue import Misplaced, Place
from service.jobs.distributed.volume import VolumeUnusable
from service.jobs.distributed.worker import Bench, work
from service.jobs.job import Limits
from service.logs import configure
from service.metrics import WorkerMetrics
from service.settings import Settings


def main() -> int:
    """0 when told to stop, 2 where the configuration is wrong or the port is taken, 3 where the store or the volume is
    not the service's."""
    try:
        settings = Settings.from_env(os.environ)
        configure(settings.log)
        return work(_bench(settings))
    except (ConfigurationError, ModelRefused) as error:
        print(f"cannot start: {error}", file=sys.stderr)
        return 2
    except (Misplaced, VolumeUnusable) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 3


def _bench(settings: Settings) -> Bench:
    if settings.jobs_place is None:
        raise ConfigurationError("STYLIZE_JOBS_URL: a worker needs the URL of the service's broker")
    if settings.gatys_workers == 0:
        raise ConfigurationError("STYLIZE_GATYS_WORKERS is 0: a worker does at least one job at once")
    if missing := [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]:
        raise ConfigurationError(f"{' and '.join(missing)} cannot be found: install the extra 'gatys'")
    return Bench(
        Place(*settings.jobs_place),
        Limits(max_queued=settings.max_jobs, result_ttl_s=settings.result_ttl_s),
        settings.gatys_workers,
        settings.job_timeout_s,
        settings.model_store.absolute(),
        settings.provider,
        _ops(settings),
    )


def _ops(settings: Settings) -> Ops | None:
    if settings.metrics_port is None:
        return None
    metrics = WorkerMetrics()
    metrics.build_info.labels(__version__, settings.commit).set(1)
    try:
        return Ops(settings.host, settings.metrics_port, metrics)
    except OSError as error:
        wanted = f"STYLIZE_METRICS_PORT={settings.metrics_port} on STYLIZE_HOST={settings.host}"
        raise ConfigurationError(f"{wanted} cannot be listened on: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
