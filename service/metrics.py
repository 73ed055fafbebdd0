"""Every metric, by name. Label values come from closed sets: routes, models, styles, stages, reasons, codes."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

Stage = Literal["decode", "queue", "infer", "encode"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)
JOB_SECONDS = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class WorkerMetrics:
    """What becomes of jobs and of those who do them. A registry of its own, and two in a process share no counts."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self.build_info = Gauge("stylize_build_info", "1 for this build.", ["version", "commit"], registry=registry)
        # The library calls the family stylize_jobs, as the gauge is, and would refuse it: it has none to tell of names.
        self.jobs_finished = Counter(
            "stylize_jobs", "Jobs finished: succeeded, failed, cancelled.", ["outcome"], registry=None
        )
        registry.register(_Nameless(self.jobs_finished))
        self.job_duration = Histogram(
            "stylize_job_duration_seconds",
            "From a job's first start to its end.",
            ["preset"],
            buckets=JOB_SECONDS,
            registry=registry,
        )
        self.job_wait = Histogram(
            "stylize_job_wait_seconds", "From a job's acceptance to its start.", buckets=JOB_SECONDS, registry=registry
        )
        self.job_iterations = Counter("stylize_job_iterations", "Evaluations reported by jobs.", registry=registry)
        self.workers = Gauge("stylize_workers", "Places for workers, by state.", ["state"], registry=registry)
        self.worker_restarts = Counter(
            "stylize_worker_restarts", "Workers that ended early, by reason.", ["reason"], registry=registry
        )
        # From 0: what first shows up as 1 has not risen, and no alert would tell of the first worker that died.
        for outcome in ("succeeded", "failed", "cancelled"):
            self.jobs_finished.labels(outcome)
        for reason in ("died", "cancelled", "time_limit"):
            self.worker_restarts.labels(reason)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The body and its content type: OpenMetrics where ``accept`` asks for it, else Prometheus text."""
        encoder, content_type = choose_encoder(accept)
        openmetrics = content_type.startswith("application/openmetrics-text")
        return encoder(_Untyped(self._registry) if openmetrics else self._registry), content_type


class Metrics(WorkerMetrics):
    """Those of a web process, which may have workers of its own."""

    def __init__(self) -> None:
        super().__init__()
        registry = self._registry
        self.jobs = Gauge("stylize_jobs", "Jobs kept, by status.", ["status"], registry=registry)
        self.http_requests = Counter(
            "stylize_http_requests", "Requests answered.", ["route", "method", "code"], registry=registry
        )
        self.http_request_duration = Histogram(
            "stylize_http_request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            ["route", "method"],
            buckets=SECONDS,
            registry=registry,
        )
        self.stage_duration = Histogram(
            "stylize_stage_duration_seconds",
            "Parts of answering /stylize: decode, queue, infer, encode.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.inference_duration = Histogram(
            "stylize_inference_duration_seconds",
            "One run of a network.",
            ["model", "provider"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "stylize_batch_size", "Rows in one run.", ["model"], buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.queue_depth = Gauge("stylize_queue_depth", "Pictures waiting for a run.", ["model"], registry=registry)
        self.capacity = Gauge("stylize_capacity", "Most pixels that may wait for a run.", registry=registry)
        self.in_flight = Gauge("stylize_in_flight", "Pixels admitted and not yet answered.", registry=registry)
        self.rejected = Counter(
            "stylize_rejected", "Requests turned away unserved, by the problem's code.", ["reason"], registry=registry
        )
        self.pixels = Counter(
            "stylize_pixels", "Pixels stylised; a mix counts by its weights.", ["style"], registry=registry
        )
        self.abandoned = Counter(
            "stylize_abandoned", "Requests given up at a deadline or by their client, by stage.", ["stage"],
            registry=registry,
        )  # fmt: skip
        self.encodings = Counter(
            "stylize_encodings", "Vectors of uploaded paintings: made, shared, or kept.", ["source"], registry=registry
        )
        for source in ("made", "shared", "kept"):
            self.encodings.labels(source)
        self.model_info = Gauge(
            "stylize_model_info", "1 for every model served.", ["model", "version", "sha256", "provider"],
            registry=registry,
        )  # fmt: skip
        self.model_load = Gauge(
            "stylize_model_load_seconds", "Verifying, loading and warming a model.", ["model"], registry=registry
        )
        # A request asks for eleven; the library checks the labels anew each time, which costs ten times as much.
        for often in (
            self.http_requests,
            self.http_request_duration,
            self.stage_duration,
            self.inference_duration,
            self.batch_size,
            self.queue_depth,
            self.pixels,
        ):
            often.labels = functools.cache(often.labels)  # type: ignore[assignment]


class _Nameless(Collector):
    """A collector that the registry asks for no names."""

    def __init__(self, inner: Collector) -> None:
        self._inner = inner

    def collect(self) -> Iterable[Metric]:
        return self._inner.collect()


class _Untyped(Collector):
    """For OpenMetrics, which has a counter's family without the ``_total`` of its samples: two would be called
    stylize_jobs. The counter's goes by its samples' full name, and for that without a type."""

    def __init__(self, inner: Collector) -> None:
        self._inner = inner

    def collect(self) -> Iterator[Metric]:
        for family in self._inner.collect():
            if (family.name, family.type) != ("stylize_jobs", "counter"):
                yield family
                continue
            untyped = Metric("stylize_jobs_total", family.documentation, "unknown")
            untyped.samples = [sample for sample in family.samples if sample.name == untyped.name]
            yield untyped


class Stopwatch:
    """One request's way through its stages. ``stage`` is the one that it is in, or was in last.

    To be told by one thread at a time; a request that is given up may be told by two, and counts for nothing then.
    """

    def __init__(self) -> None:
        self.stage: Stage | Literal["upload"] = "upload"
        self.durations_s: dict[Stage, float] = {}
        self.intervals: list[tuple[str, float, float]] = []  # a stage, from and until when by time.perf_counter
        self._entered: tuple[float, Stage] | None = None

    @contextmanager
    def time(self, stage: Stage) -> Iterator[None]:
        self.enter(stage)
        try:
            yield
        finally:
            self.leave()

    def enter(self, stage: Stage) -> None:
        """Leave the stage that it is in, and be in this one."""
        self.leave()
        self.stage = stage
        self._entered = time.perf_counter(), stage

    def leave(self) -> None:
        entered, self._entered = self._entered, None
        if entered:
            since, stage = entered
            left = time.perf_counter()
            self.durations_s[stage] = self.durations_s.get(stage, 0.0) + left - since
            self.intervals.append((stage, since, left))

    def header(self) -> str:
        """The value of ``Server-Timing``, in ms."""
        return ", ".join(f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in self.durations_s.items())
