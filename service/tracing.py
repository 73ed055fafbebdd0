"""OpenTelemetry: a span for every request, one for each of its stages. Nothing of it is imported where the standard
variables (``OTEL_…``) do not ask for it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from service.errors import ConfigurationError
from service.logs import Trace

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

EXPORTER = "OTEL_TRACES_EXPORTER"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}

Interval = tuple[str, float, float]  # a stage, from and until when by time.perf_counter


class Tracer:
    """Begins a span for every request. Sampling and resource are what the ``OTEL_…`` variables say."""

    def __init__(self, processor: SpanProcessor, service_name: str = "stylize") -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider

        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service_name}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("service")

    def begin(self, method: str, traceparent: str) -> RequestSpan:
        """A server's span, the child of the caller's where ``traceparent`` names one."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
        return RequestSpan(self, self._tracer.start_span(method, parent, SpanKind.SERVER))

    def stage(self, parent: Span, interval: Interval) -> None:
        """A span of what lies in the past, under ``parent``."""
        from opentelemetry.trace import set_span_in_context

        stage, first_s, last_s = interval
        epoch_ns = time.time_ns() - time.perf_counter_ns()
        span = self._tracer.start_span(stage, set_span_in_context(parent), start_time=epoch_ns + int(first_s * 1e9))
        span.end(epoch_ns + int(last_s * 1e9))

    def close(self) -> None:
        """Send what is left. Blocks."""
        self._provider.shutdown()


class RequestSpan:
    """A request that goes on."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def trace(self) -> Trace:
        context = self._span.get_span_context()
        return Trace(f"{context.trace_id:032x}", f"{context.span_id:016x}", f"{context.trace_flags:02x}")

    def end(self, method: str, route: str, status: int, stages: Iterable[Interval]) -> None:
        from opentelemetry.trace import StatusCode

        for interval in stages:
            self._tracer.stage(self._span, interval)
        self._span.update_name(f"{method} {route}")
        self._span.set_attributes(
            {"http.request.method": method, "http.route": route, "http.response.status_code": status}
        )
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def from_environment(environ: Mapping[str, str]) -> Tracer | None:
    """None where nothing asks for traces. Raises ConfigurationError where they are asked for and cannot be sent."""
    names = [name for name in (EXPORTER, *ENDPOINTS) if environ.get(name)]
    if not names or environ.get(EXPORTER) == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    asked = f"{names[0]}={environ[names[0]]}"
    wanted = environ.get(EXPORTER) or "otlp"
    if wanted == "otlp":
        protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), "http/protobuf")
        wanted = OTLP.get(protocol, protocol)
    try:
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigurationError(f"{asked}, but OpenTelemetry is not installed: pip install '.[otel]'") from error
    found = [point.load() for point in entry_points(group="opentelemetry_traces_exporter", name=wanted)]
    if not found:
        raise ConfigurationError(f"{asked}, but no exporter {wanted!r} is installed: pip install '.[otel]'")
    return Tracer(BatchSpanProcessor(found[0]()), environ.get("OTEL_SERVICE_NAME", "stylize"))
