import json
import re
from pathlib import Path

import httpx2 as httpx
from fastapi.testclient import TestClient

from service.logs import Trace
from tests.service.live import live

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_every_line_of_the_json_log_is_an_object_and_a_request_has_its_ids(toy_store: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as log:
        with live(log, STYLIZE_MODEL_STORE=str(toy_store), STYLIZE_LOG="json") as service:
            headers = {"X-Request-ID": "mine-1", "traceparent": PARENT}
            answer = httpx.get(f"{service.url}/styles/nobody", headers=headers)
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    (line,) = [line for line in lines if line.get("request_id") == "mine-1"]
    assert line["message"] == "GET /styles/nobody 404"
    assert (line["method"], line["route"], line["status"]) == ("GET", "/styles/{name}", 404)
    assert line["duration_ms"] >= 0
    assert line["trace_id"] == PARENT.split("-")[1]
    assert answer.headers["traceparent"] == f"00-{line['trace_id']}-{line['span_id']}-01"


def test_a_trace_is_the_exemplar_of_its_request_in_openmetrics_only(client: TestClient) -> None:
    client.get("/livez", headers={"traceparent": PARENT})
    text = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}).text
    assert re.search(r'duration_seconds_bucket\{.*/livez.*# \{trace_id="0af7651916cd43dd8448eb211c80319c"\}', text)
    assert "trace_id" not in client.get("/metrics").text


def test_a_malformed_traceparent_is_passed_over(client: TestClient) -> None:
    for malformed in ("", "01" + PARENT[2:], PARENT.upper(), PARENT.replace("b7ad6b7169203331", "0" * 16)):
        assert Trace.of(malformed) is None
        assert "traceparent" not in client.get("/livez", headers={"traceparent": malformed}).headers
