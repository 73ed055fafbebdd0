"""Spans, with the SDK's own exporters."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.app import create_app
from service.errors import ConfigurationError
from service.settings import Settings
from service.tracing import Tracer, from_environment
from tests.service.conftest import wait_until_loaded
from tests.service.live import PATIENCE_S, live
from tests.service.pictures import encoded, gradient

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLOCKS_NS = 20 * 10**6  # two clocks are read one after the other: what may come in between
PNG = encoded(gradient(20, 10))
HEADERS = {"Content-Type": "image/png", "traceparent": f"00-{TRACE}-{CALLER}-01"}


def test_a_request_is_a_span_under_its_caller_s_and_its_stages_are_under_it(toy_store: Path) -> None:
    kept = InMemorySpanExporter()
    settings = Settings(model_store=toy_store, provider="cpu")
    with TestClient(create_app(settings, Tracer(SimpleSpanProcessor(kept)))) as client:
        wait_until_loaded(client)
        kept.clear()
        answer = client.post("/stylize?style=red", content=PNG, headers=HEADERS)
        assert answer.status_code == 200
        spans = {span.name: span for span in kept.get_finished_spans()}
        assert client.post("/stylize?style=none", content=PNG, headers=HEADERS).status_code == 404
        refused = kept.get_finished_spans()[-1]
    assert set(spans) == {"POST /stylize", "decode", "queue", "infer", "encode"}
    request = spans["POST /stylize"]
    assert request.parent is not None
    assert (f"{request.parent.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, CALLER)
    assert answer.headers["traceparent"] == f"00-{TRACE}-{_id(request)}-01"
    for stage in ("decode", "queue", "infer", "encode"):
        span = spans[stage]
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == _id(request)
        assert request.start_time <= span.start_time + CLOCKS_NS  # type: ignore[operator]
        assert span.start_time <= span.end_time <= request.end_time + CLOCKS_NS  # type: ignore[operator]
    assert request.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert refused.attributes is not None
    assert refused.attributes["http.response.status_code"] == 404


def _id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def test_the_standard_variables_choose_the_exporter_and_what_is_left_is_sent_at_the_end(toy_store: Path) -> None:
    variables = {"STYLIZE_MODEL_STORE": str(toy_store), "OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "mine"}
    with live(**variables) as service:
        assert httpx.get(f"{service.url}/livez", headers=HEADERS).status_code == 200
        service.process.send_signal(signal.SIGTERM)
        assert service.process.stdout
        written = service.process.stdout.read()
        assert service.process.wait(PATIENCE_S) == 0
    decoder, spans = json.JSONDecoder(), []
    for start in re.finditer(r"^\{$", written, re.MULTILINE):
        spans.append(decoder.raw_decode(written, start.start())[0])
    (span,) = [span for span in spans if span["name"] == "GET /livez"]
    assert span["parent_id"] == f"0x{CALLER}"
    assert span["resource"]["attributes"]["service.name"] == "mine"


def test_nothing_of_it_is_imported_where_nothing_asks_for_it() -> None:
    code = (
        "import sys, service.__main__; from service.tracing import from_environment as f; assert f({}) is None;"
        "sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize("environ", [{"OTEL_TRACES_EXPORTER": "none"}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}])
def test_it_can_be_left_off(environ: dict[str, str]) -> None:
    assert from_environment(environ) is None


def test_an_exporter_that_is_not_installed_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match="OTEL_TRACES_EXPORTER=pigeon"):
        from_environment({"OTEL_TRACES_EXPORTER": "pigeon"})
