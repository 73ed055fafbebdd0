"""The rules, the dashboard and the service, before a real Prometheus (Debian's package)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml

from service.metrics import Metrics
from tests.deploy.test_k8s import WORKERS_JOB
from tests.jobs.broker import RedisServer, free_port, redis_server
from tests.jobs.conftest import Service, store, wait_for
from tests.jobs.machines import Cluster as Machines
from tests.jobs.machines import Worker
from tests.service.live import Live, live, request
from tests.service.pictures import encoded, gradient
from tests.service.toy import write_store

__all__ = ["redis_server", "store"]
ROOT = Path(__file__).parents[2]
COMPONENTS = ROOT / "k8s" / "components"
MONITORING = COMPONENTS / "monitoring"
RULES = yaml.safe_load((MONITORING / "prometheus-rule.yaml").read_text())["spec"]
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
RULES_TEST = Path(__file__).parent / "rules_test.yaml"
PANELS = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
PATIENCE_S = 120.0
PNG = {"Content-Type": "image/png"}
SMALL, LARGE = encoded(gradient(48, 32)), encoded(gradient(96, 64))

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus is not installed: its rules, the dashboard and /metrics are not tried",
)


def test_every_alert_is_tested_and_has_its_section_in_the_runbook() -> None:
    cases = [
        case for test in yaml.safe_load(RULES_TEST.read_text())["tests"] for case in test.get("alert_rule_test", [])
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == ALERTS.keys()
    sections = re.findall(r"^## (\w+)\n\n\S", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    assert sorted(sections) == sorted(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_dashboard_has_every_metric() -> None:
    exposed = re.findall(r"^# TYPE (stylize_\w+)", Metrics().render("text/plain")[0].decode(), re.MULTILINE)
    shown = " ".join(expression for _, expression in QUERIES) + " ".join(str(rule["expr"]) for rule in rules())
    assert [name for name in exposed if not name.endswith("_created") and name not in shown] == []


def rules() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


@needs_prometheus
def test_rules_do_what_their_tests_say(tmp_path: Path) -> None:
    write_rules(tmp_path)
    shutil.copy(RULES_TEST, tmp_path)
    for command in (
        ["promtool", "check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"],
        ["promtool", "test", "rules", RULES_TEST.name],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def write_rules(folder: Path) -> None:
    (folder / "rules.yaml").write_text(yaml.safe_dump(RULES))


@dataclass(frozen=True)
class Prometheus:
    url: str

    def query(self, expression: str) -> list[float]:
        """The values that it gives, those that are numbers."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", answer
        values = [float(series["value"][1]) for series in answer["data"]["result"]]
        return [value for value in values if value == value]

    def alerts(self, state: str = "firing", **labels: str) -> set[str]:
        """The names of those with that state and those labels."""
        alerts = httpx.get(f"{self.url}/api/v1/alerts").json()["data"]["alerts"]
        found = [alert["labels"] for alert in alerts if alert["state"] == state]
        return {alert["alertname"] for alert in found if labels.items() <= alert.items()}

    def wait_for_alert(self, name: str, state: str = "firing", **labels: str) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while name not in self.alerts(state, **labels):
            assert time.monotonic() < give_up, f"{name} is not {state}"
            time.sleep(0.2)

    def wait_for(self, expression: str) -> list[float]:
        """What it gives, once that is anything."""
        give_up = time.monotonic() + PATIENCE_S
        while not (values := self.query(expression)):
            assert time.monotonic() < give_up, f"no data: {expression}"
            time.sleep(0.2)
        return values


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Small pictures are answered, those of more than 4,096 pixels are jobs."""
    folder = tmp_path_factory.mktemp("service")
    variables = {"STYLIZE_MODEL_STORE": str(write_store(folder / "store")), "STYLIZE_DATA_DIR": str(folder / "data")}
    with live(None, STYLIZE_SYNC_MAX_PIXELS="4096", **variables) as running:
        yield running


@dataclass(frozen=True)
class Cluster:
    """A web process, and a worker elsewhere with metrics of its own."""

    web: Service
    worker: Worker
    workers_address: str


@pytest.fixture(scope="module")
def elsewhere(redis_server: RedisServer, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    redis_server.client.flushall()
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("cluster")
        machines = Machines(stack, store, folder, redis_server.url)
        port = free_port()
        worker = machines.worker(variables={"STYLIZE_METRICS_PORT": str(port)})
        yield Cluster(machines.web(), worker, f"127.0.0.1:{port}")


@pytest.fixture(scope="module")
def prometheus(service: Live, elsewhere: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """With the real rules; only how often it looks is the test's own."""
    folder = tmp_path_factory.mktemp("prometheus")
    write_rules(folder)
    web = str(elsewhere.web.http.base_url).rstrip("/")
    targets = [
        job("stylize", pod(service.url, "default", "web-0"), pod(web, "cluster", "web-1")),
        job(WORKERS_JOB, pod(elsewhere.workers_address, "cluster", "gatys-0")),
    ]
    often = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config = {"global": often, "rule_files": ["rules.yaml"], "scrape_configs": targets}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        "--config.file=prometheus.yaml",
        "--storage.tsdb.path=data",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process:
        try:
            wait_until_ready(f"http://{address}", folder / "log")
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()


def job(name: str, *pods: object) -> dict[str, object]:
    return {"job_name": name, "static_configs": list(pods)}


def pod(url: str, namespace: str, name: str) -> dict[str, object]:
    return {"targets": [url.removeprefix("http://")], "labels": {"namespace": namespace, "pod": name}}


def wait_until_ready(url: str, log: Path) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        try:
            if httpx.get(f"{url}/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def use(service: Live) -> None:
    """One of everything that is counted."""
    with httpx.Client(base_url=service.url, headers=PNG, timeout=PATIENCE_S) as http:
        assert http.post("/stylize?style=red", content=SMALL).status_code == 200
        assert http.post("/stylize?style=nobody", content=SMALL).status_code == 404
    with socket.create_connection(service.address) as leaving:
        leaving.sendall(request(SMALL, "style=red")[:-10])
    run_job(service)


def run_job(service: Live) -> None:
    """A picture in tiles, to its end."""
    with httpx.Client(base_url=service.url, timeout=PATIENCE_S) as http:
        accepted = http.post("/stylize?style=red", content=LARGE, headers=PNG)
        assert accepted.status_code == 202, accepted.text
        events = http.get(f"{accepted.headers['location']}/events").text  # ends when the job does
        assert "event: succeeded" in events


@needs_prometheus
def test_metrics_are_as_prometheus_wants_them(service: Live, elsewhere: Cluster) -> None:
    use(service)
    for url in (service.url, f"http://{elsewhere.workers_address}"):
        text = httpx.get(f"{url}/metrics").content
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_every_query_of_the_dashboard_finds_data(service: Live, prometheus: Prometheus) -> None:
    give_up = time.monotonic() + PATIENCE_S
    left = QUERIES
    while left:
        use(service)  # again: a rate is of what rises while Prometheus looks
        left = [
            (title, query) for title, query in left if not prometheus.query(query.replace("$__rate_interval", "1m"))
        ]
        assert time.monotonic() < give_up, left


@needs_prometheus
def test_autoscalers_find_their_numbers(prometheus: Prometheus) -> None:
    (rule,) = yaml.safe_load((COMPONENTS / "autoscaling" / "prometheus-adapter.yaml").read_text())["rules"]
    series = re.search(r'__name__="([^"]+)"', rule["seriesQuery"])
    assert series
    prometheus.wait_for(rule["seriesQuery"])
    query = rule["metricsQuery"].replace("<<.Series>>", series[1]).replace("<<.GroupBy>>", "pod")
    (saturation,) = prometheus.query(query.replace("<<.LabelMatchers>>", 'namespace="default",pod=~"web-0"'))
    assert 0 <= saturation < 1
    scaled = yaml.safe_load((COMPONENTS / "workers" / "scaled-object.yaml").read_text())
    (jobs,) = prometheus.wait_for(scaled["spec"]["triggers"][0]["metadata"]["query"])
    assert jobs in (0, 1)  # those of other tests have ended, if perhaps since it last looked


@needs_prometheus
def test_alert_fires_for_a_worker_that_died(service: Live, prometheus: Prometheus) -> None:
    run_job(service)
    prometheus.wait_for('stylize_worker_restarts_total{reason="died"} == 0')
    assert "StylizeWorkerDied" not in prometheus.alerts()
    (worker,) = workers(service)
    os.kill(worker, signal.SIGKILL)
    run_job(service)  # by another one
    assert workers(service) != [worker]
    prometheus.wait_for_alert("StylizeWorkerDied")
    assert "StylizeWorkersDie" not in prometheus.alerts()


def workers(service: Live) -> list[int]:
    pid = service.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@needs_prometheus
def test_alerts_tell_of_a_worker_elsewhere(elsewhere: Cluster, prometheus: Prometheus) -> None:
    """Of one of its processes that dies at work, and of the whole of it."""
    prometheus.wait_for('stylize_workers{job="stylize-gatys",state="idle"} == 1')
    long = elsewhere.web.submit(iterations=5000, preset="keras")["id"]
    wait_for(lambda: elsewhere.web.job(long)["iteration"] > 0)
    prometheus.wait_for('sum by (state) (stylize_workers{state="busy"}) == 1')
    prometheus.wait_for('stylize_worker_restarts_total{job="stylize-gatys",reason="died"} == 0')
    of_it = {"namespace": "cluster", "job": WORKERS_JOB, "instance": elsewhere.workers_address}
    assert prometheus.alerts(**of_it) == set()
    os.kill(elsewhere.worker.hands()[0], signal.SIGKILL)
    prometheus.wait_for_alert("StylizeWorkerDied", **of_it)
    assert prometheus.query('sum(stylize_worker_restarts_total{namespace="cluster",reason="died"})') == [1]  # not twice
    elsewhere.web.http.delete(f"/jobs/{long}")
    done = elsewhere.web.submit(iterations=5)["id"]
    elsewhere.web.wait(done)
    prometheus.wait_for('stylize_jobs_total{job="stylize-gatys",outcome="succeeded"} == 1')
    assert prometheus.query('sum(stylize_jobs_total{namespace="cluster",outcome="succeeded"})') == [1]
    elsewhere.worker.end()
    prometheus.wait_for_alert("StylizeDown", "pending", **of_it)
    assert "StylizeDown" not in prometheus.alerts("pending", job="stylize")
