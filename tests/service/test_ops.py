import re
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from service.app import create_app
from service.metrics import Metrics
from service.models.store import ModelStore
from service.settings import Settings
from tests.service.conftest import ClientFactory, wait_until_loaded
from tests.service.pictures import encoded, gradient
from tests.service.toy import write_conditional, write_store


def test_livez_answers_and_readyz_does_not_while_models_load(toy_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    load = ModelStore.load
    monkeypatch.setattr(ModelStore, "load", lambda *arguments: (go.wait(10), load(*arguments))[1])
    with TestClient(create_app(Settings(model_store=toy_store))) as client:
        assert client.get("/livez").status_code == 200
        for path in ("/readyz", "/styles"):
            response = client.get(path)
            assert (response.status_code, response.json()["code"]) == (503, "not_ready")
            assert int(response.headers["retry-after"]) >= 1
            assert "loading" in response.json()["reasons"][0]
        go.set()
        assert wait_until_loaded(client).get("/readyz").status_code == 200


def test_a_refused_model_keeps_the_service_unready_and_is_named(tmp_path: Path, start: ClientFactory) -> None:
    write_store(tmp_path)
    (tmp_path / "vgg16/1/vgg16.safetensors").write_bytes(b"spoiled")
    client = start(model_store=tmp_path)
    response = client.get("/readyz")
    assert response.status_code == 503
    assert "vgg16/1: vgg16.safetensors has sha256" in response.json()["reasons"][0]
    assert client.get("/styles").status_code == 200  # what could be verified still answers


@pytest.mark.parametrize("root", ["nowhere", "."])
def test_a_store_without_models_keeps_the_service_unready(tmp_path: Path, start: ClientFactory, root: str) -> None:
    client = start(model_store=tmp_path / root)
    assert str(tmp_path) in client.get("/readyz").json()["detail"]
    assert client.post("/stylize?style=x", content=b"x", headers={"Content-Type": "image/png"}).status_code == 503


def test_styles_are_listed_once_with_the_models_that_have_them(tmp_path: Path, start: ClientFactory) -> None:
    write_conditional(tmp_path, "one")
    write_conditional(tmp_path, "two")
    client = start(model_store=tmp_path)
    styles = client.get("/styles").json()["styles"]
    assert [style["name"] for style in styles] == ["green", "negative", "red"]
    assert styles[2] == client.get("/styles/red").json()
    assert styles[2]["models"] == ["one", "two"]
    assert styles[2].keys() == {
        "name", "title", "artist", "year", "credit", "painting_sha256", "models", "own", "links"
    }  # fmt: skip
    assert client.get(styles[2]["links"]["preview"]).status_code == 200


def test_a_preview_has_a_strong_etag(client: TestClient) -> None:
    first = client.get("/styles/red/preview")
    etag = first.headers["etag"]
    assert first.headers["content-type"] == "image/jpeg"
    assert re.fullmatch(r'"[0-9a-f]{64}"', etag)
    for sent in (etag, f'"other", W/{etag}', "*"):
        again = client.get("/styles/red/preview", headers={"If-None-Match": sent})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert client.get("/styles/red/preview", headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_shipped_painting_is_linked_and_served(tmp_path: Path, start: ClientFactory) -> None:
    painting = encoded(gradient(30, 20))
    write_conditional(tmp_path, "plain")
    write_conditional(tmp_path, "rich", paintings={"red": painting})
    client = start(model_store=tmp_path)
    links = client.get("/styles/red").json()["links"]
    answer = client.get(links["painting"])
    assert (answer.content, answer.headers["content-type"]) == (painting, "image/png")
    assert client.get(links["painting"], headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    assert "painting" not in client.get("/styles/green").json()["links"]
    assert client.get("/styles/green/painting").json()["code"] == "not_found"


@pytest.mark.parametrize(
    "path", ["/styles/nobody", "/styles/nobody/preview", "/styles/nobody/painting", "/styles/photo"]
)
def test_an_unknown_style_is_404(client: TestClient, path: str) -> None:
    assert client.get(path).json()["code"] == "unknown_style"


def test_unknown_paths_and_methods_are_problems(client: TestClient) -> None:
    for path in ("/nothing", "/web/nothing.js", "/web/../app.py"):
        assert client.get(path).json()["code"] == "not_found"
    response = client.delete("/styles")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD"
    assert client.get("/stylize").headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/", "/livez", "/styles", "/styles/red/preview", "/metrics", "/openapi.json"])
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == get.headers["content-length"]


def test_metrics_are_prometheus_text_or_openmetrics(client: TestClient) -> None:
    assert client.get("/metrics").headers["content-type"].startswith("text/plain")
    response = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")
    for name in ("model_info", "model_load_seconds", "build_info"):
        assert f"stylize_{name}{{" in response.text
    assert "process_resident_memory_bytes" in response.text


def test_paths_as_they_come_are_no_label_values(client: TestClient) -> None:
    client.get("/nothing/at/all")
    client.get("/styles/red")
    metrics = client.get("/metrics").text
    assert "at/all" not in metrics
    assert 'route="/styles/{name}"' in metrics
    assert 'route="other"' in metrics


def test_the_schema_tells_of_both_ways_in_and_of_problems(client: TestClient) -> None:
    schema: dict[str, Any] = client.get("/openapi.json").json()
    operation = schema["paths"]["/stylize"]["post"]
    assert operation["requestBody"]["content"].keys() == {
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/gif",
        "video/mp4",
        "multipart/form-data",
    }
    assert {"style", "strength", "deadline_ms"} <= {parameter["name"] for parameter in operation["parameters"]}
    assert "application/problem+json" in operation["responses"]["default"]["content"]
    assert "not_ready" in {problem["code"] for problem in schema["x-problems"]}


def test_pages_load_nothing_from_elsewhere(client: TestClient) -> None:
    seen = {"/", "/docs"}
    for page in ("/", "/docs"):
        response = client.get(page)
        assert "default-src 'self'" in response.headers["content-security-policy"]
        seen |= set(re.findall(r'(?:src|href)="(/[^"#]*)"', response.text))
    assert {"/web/app.js", "/web/docs.js", "/web/style.css"} <= seen
    for path in seen:
        response = client.get(path)
        assert response.status_code == 200, path
        if path != "/openapi.json":
            carried = re.sub(r'url\("data:[^"]*"\)', "", response.text)  # what a page has in itself it need not load
            assert not re.search(r"https?://|@import|url\(", carried), path
    assert client.get("/web/example.jpg").headers["content-type"] == "image/jpeg"


def test_jobs_and_jobs_finished_are_told_apart_in_both_formats() -> None:
    metrics = Metrics()
    metrics.jobs.labels("queued").set(2)
    metrics.jobs_finished.labels("failed").inc()
    text = metrics.render("text/plain")[0].decode()
    assert {"# TYPE stylize_jobs gauge", "# TYPE stylize_jobs_total counter"} <= set(text.splitlines())
    openmetrics = metrics.render("application/openmetrics-text; version=1.0.0")[0].decode()
    families = {family.name: family for family in text_string_to_metric_families(openmetrics)}  # type: ignore[no-untyped-call]
    assert {sample.labels["status"]: sample.value for sample in families["stylize_jobs"].samples} == {"queued": 2}
    finished = {sample.labels["outcome"]: sample.value for sample in families["stylize_jobs_total"].samples}
    assert finished == {"failed": 1, "succeeded": 0, "cancelled": 0}  # known from the start, so that 1 is a rise
