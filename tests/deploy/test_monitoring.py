"""Rules, alerts and dashboard, by Prometheus' own tools and by a real Prometheus that scrapes a real service."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml

from tests.jobs.conftest import PHOTO, Service, _serving, store, wait_for  # noqa: F401  (the fixture `store`)

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "k8s" / "components" / "monitoring"
ADAPTER = ROOT / "k8s" / "components" / "autoscaling" / "prometheus-adapter.yaml"
RULES = yaml.safe_load((MONITORING / "prometheus-rule.yaml").read_text())["spec"]
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
UNIT_TESTS = Path(__file__).parent / "rules_test.yaml"
PATIENCE_S = 120.0

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="Prometheus is not installed (apt-get install prometheus): rules, alerts and dashboard are not checked",
)


def promtool(*arguments: str, given: str | None = None, folder: Path = ROOT) -> None:
    found = subprocess.run(["promtool", *arguments], input=given, capture_output=True, text=True, cwd=folder)
    assert found.returncode == 0, found.stdout + found.stderr
    assert not found.stderr, found.stderr  # where it lints


def test_promtool_finds_the_rules_right_and_they_do_what_is_said(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))
    shutil.copy(UNIT_TESTS, tmp_path)
    promtool("check", "rules", "rules.yaml", folder=tmp_path)
    promtool("test", "rules", UNIT_TESTS.name, folder=tmp_path)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_every_alert_is_tested_and_has_its_page_in_the_runbook(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    file, anchor = alert["annotations"]["runbook_url"].split("#")
    headings = re.findall(r"^## (.+)$", (ROOT / file).read_text(), re.MULTILINE)
    assert (name, anchor) in [(heading, heading.lower()) for heading in headings]
    fired = [
        test
        for case in yaml.safe_load(UNIT_TESTS.read_text())["tests"]
        for test in case.get("alert_rule_test", ())
        if test["alertname"] == name and test["exp_alerts"]
    ]
    assert fired


@dataclass(frozen=True)
class Prometheus:
    url: str

    def ask(self, query: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", f"{query}: {answer}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def firing(self) -> set[str]:
        alerts = httpx.get(f"{self.url}/api/v1/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}


@contextmanager
def scraping(target: str, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with our rules, every second."""
    folder.mkdir()
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    labels = {"namespace": "default", "pod": "stylize-0"}  # as the operator gives them
    job = {"job_name": "stylize", "static_configs": [{"targets": [target], "labels": labels}]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(RULES))
    configuration = {"global": every, "rule_files": ["rules.yaml"], "scrape_configs": [job]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            running = Prometheus(f"http://{address}")
            wait_for(lambda: answers(f"{running.url}/-/ready"), (folder / "log").read_text)
            yield running
        finally:
            process.send_signal(signal.SIGTERM)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def service(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:  # noqa: F811
    with _serving(store, tmp_path_factory.mktemp("monitored") / "data") as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has seen answers, refusals, jobs, and a worker's death."""
    folder = tmp_path_factory.mktemp("prometheus") / "run"
    with scraping(str(service.http.base_url).removeprefix("http://"), folder) as running:
        wait_for(lambda: running.ask('up{job="stylize"} == 1'))
        assert "StylizeWorkerDied" not in running.firing()
        use(service, running)
        yield running


def use(service: Service, prometheus: Prometheus) -> None:
    for _ in range(2):  # a rate needs two values of a series
        for style, status in (("red", 200), ("nobody", 404)):
            answer = service.http.post("/stylize", files={"image": PHOTO}, data={"style": style})
            assert answer.status_code == status
        job = service.submit()
        service.wait(job["id"])
        scraped(prometheus)
    long = service.submit(preset="keras", iterations=5000)
    wait_for(lambda: service.job(long["id"])["iteration"] > 0)
    for worker in service.workers():
        os.kill(worker, signal.SIGKILL)
    wait_for(lambda: service.job(long["id"])["attempt"] == 2)
    service.http.delete(f"/jobs/{long['id']}")
    scraped(prometheus)


def scraped(prometheus: Prometheus) -> None:
    """Wait for two more scrapes."""
    count: Callable[[], float] = lambda: float(prometheus.ask("count_over_time(up[1h])")[0]["value"][1])  # noqa: E731
    before = count()
    wait_for(lambda: count() >= before + 2)


def test_the_alert_for_a_dead_worker_fires(prometheus: Prometheus) -> None:
    wait_for(lambda: "StylizeWorkerDied" in prometheus.firing(), lambda: str(prometheus.firing()))
    assert not prometheus.firing() & {"StylizeDown", "StylizeModelMissing", "StylizeErrorsBurnFast"}


def test_every_query_of_the_dashboard_has_an_answer(prometheus: Prometheus) -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 20
    for query in queries:
        ready = query.replace("$__rate_interval", "5m")
        wait_for(lambda query=ready: prometheus.ask(query), lambda query=ready: query)  # type: ignore[misc]
        values = [sample["value"][1] for sample in prometheus.ask(ready)]
        assert any(value not in ("NaN", "+Inf") for value in values), query


def test_the_adapters_query_has_an_answer_for_the_pod(prometheus: Prometheus) -> None:
    (rule,) = yaml.safe_load(ADAPTER.read_text())["rules"]
    assert prometheus.ask(rule["seriesQuery"])
    query = rule["metricsQuery"].replace("<<.GroupBy>>", "pod")
    (found,) = prometheus.ask(query.replace("<<.LabelMatchers>>", 'namespace="default", pod=~"stylize-0"'))
    assert found["metric"] == {"pod": "stylize-0"}
    assert 0 <= float(found["value"][1]) < 1


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text"])
def test_promtool_finds_the_metrics_clean(service: Service, accept: str) -> None:
    answer = service.http.get("/metrics", headers={"Accept": accept})
    if accept == "text/plain":
        promtool("check", "metrics", given=answer.text)
    families = re.findall(r"^# TYPE (\S+)", answer.text, re.MULTILINE)
    assert len(families) == len(set(families))
