"""The manifests as the cluster would see them: rendered by kubectl, checked against Kubernetes' own schemas."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from bench.fleet import Autoscaler
from service.settings import Settings

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir())
# what is no kind of Kubernetes' own: schemas of ours, checked against the CRDs that their comments name
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "schemas").iterdir()}

WORKERS_JOB = "stylize-gatys"  # as the rules and the dashboard know it
REFERENCES = {"configMapRef": "ConfigMap", "secretRef": "Secret"}

Object = dict[str, Any]

needs_workers = pytest.mark.skipif(
    importlib.util.find_spec("service.jobs.distributed") is None,
    reason="jobs on many machines (service.jobs.distributed) are not there yet: their manifests are not tried",
)

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed: no manifest is checked"
)


def rendered(overlay: str) -> str:
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / "overlays" / overlay)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def objects(overlay: str) -> list[Object]:
    return list(yaml.safe_load_all(rendered(overlay)))


def one(found: list[Object], kind: str, name: str = "stylize") -> Object:
    (match,) = (each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return match


def pods(found: list[Object]) -> list[Object]:
    return [each["spec"]["template"]["spec"] for each in found if each["kind"] == "Deployment"]


def valid(path: Path) -> bool:
    """Kubernetes' own kinds by their schemas, the others by ours."""
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    unknown = [line for line in (done.stdout + done.stderr).splitlines() if "Couldn't find schema" in line]
    custom = [each for each in yaml.safe_load_all(path.read_text()) if each["kind"] in SCHEMAS]
    assert len(unknown) == len(custom), unknown
    return done.returncode == 0 and all(
        jsonschema.Draft202012Validator(SCHEMAS[each["kind"]]).is_valid(each) for each in custom
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_cluster_would_accept_every_object(overlay: str, tmp_path: Path) -> None:
    text = rendered(overlay)
    (tmp_path / "good.yaml").write_text(text)
    (tmp_path / "misspelt.yaml").write_text(text.replace("readinessProbe", "readynessProbe"))
    assert valid(tmp_path / "good.yaml")
    assert not valid(tmp_path / "misspelt.yaml")


@pytest.mark.parametrize(
    ("field", "misspelt"),
    [
        ("minReplicaCount:", "minReplicas:"),
        ("runbook_url: docs/runbook.md#stylizedown", "runbook_url: [1]"),
        ("serverAddress:", "address:"),
        ("interval: 15s", "interval: 15"),
        ("interval: 15s", "interval: 15s1m"),
        ("relabelings:", "relabeling:"),
        ("maxReplicaCount: 20", "maxReplicaCount: 0"),
    ],
)
def test_custom_objects_are_checked_too(field: str, misspelt: str, tmp_path: Path) -> None:
    text = rendered("cluster")
    assert field in text
    (tmp_path / "misspelt.yaml").write_text(text.replace(field, misspelt))
    assert not valid(tmp_path / "misspelt.yaml")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted_spread_and_denied_what_they_do_not_need(overlay: str) -> None:
    found = objects(overlay)
    restricted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for pod in pods(found):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == restricted
        assert pod["topologySpreadConstraints"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {"memory"} <= container["resources"]["limits"].keys()
    deny = one(found, "NetworkPolicy", "stylize-nothing")["spec"]
    assert (deny["policyTypes"], deny.keys() & {"ingress", "egress"}) == (["Ingress", "Egress"], set())
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in found if each["kind"] == "Deployment"]
    assert all(deny["podSelector"]["matchLabels"].items() <= each.items() for each in labels)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_web_pods_are_probed_and_have_the_time_to_drain(overlay: str) -> None:
    found = objects(overlay)
    pod = one(found, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = [container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")]
    assert paths == ["/readyz", "/readyz", "/livez"]
    settings = Settings.from_env(environment(found, pod, "configMapRef"))
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    full_queue_s = settings.max_queue_pixels / 2e6  # two cores make some 2 megapixels a second
    needed_s = pause_s + settings.drain_delay_s + full_queue_s + settings.send_timeout_s
    assert pod["terminationGracePeriodSeconds"] > needed_s


@pytest.mark.parametrize(
    "overlay", [pytest.param(each, marks=needs_workers if each == "cluster" else ()) for each in OVERLAYS]
)
def test_service_would_start_with_the_configuration(overlay: str) -> None:
    found = objects(overlay)
    pod = one(found, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings = Settings.from_env(environment(found, pod))
    assert settings.host == "0.0.0.0"
    assert settings.provider == ("cuda" if overlay == "gpu" else "auto")
    assert container["image"] == ("stylize:gpu" if overlay == "gpu" else "stylize:cpu")
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (overlay == "gpu")
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(settings.data_dir) in mounts
    assert (str(settings.model_store) in mounts) == (overlay == "model-volume")
    assert settings.gatys_workers == (overlay == "dev")


@needs_workers
def test_workers_share_broker_and_pictures_with_the_web_tier() -> None:
    found = objects("cluster")
    web, worker = (one(found, "Deployment", name)["spec"]["template"]["spec"] for name in ("stylize", "stylize-gatys"))
    given = [environment(found, pod) for pod in (web, worker)]
    assert given[0]["STYLIZE_JOBS_URL"] == given[1]["STYLIZE_JOBS_URL"]
    assert [Settings.from_env(each).gatys_workers for each in given] == [0, 1]
    claims = [{volume["name"]: volume for volume in pod["volumes"]}["data"] for pod in (web, worker)]
    assert claims[0] == claims[1]
    (container,) = worker["containers"]
    assert importlib.util.find_spec(container["command"][-1]) is not None


@needs_workers
def test_workers_are_probed_and_watched_and_answer_nobody_else() -> None:
    found = objects("cluster")
    deployment = one(found, "Deployment", "stylize-gatys")["spec"]["template"]
    (container,) = deployment["spec"]["containers"]
    settings = Settings.from_env(environment(found, deployment["spec"]))
    assert (settings.host, container["ports"]) == (
        "0.0.0.0",
        [{"name": "metrics", "containerPort": settings.metrics_port}],
    )
    probes = [container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "readiness", "liveness")]
    assert [probe["path"] for probe in probes] == ["/livez", "/readyz", "/livez"]
    assert {probe["port"] for probe in probes} == {"metrics"}
    monitor = one(found, "PodMonitor", "stylize-gatys")["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": WORKERS_JOB}]
    policy = one(found, "NetworkPolicy", "stylize-gatys")["spec"]
    for selector in (monitor["selector"], policy["podSelector"]):
        assert selector["matchLabels"].items() <= deployment["metadata"]["labels"].items()
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": "metrics"}]]


def test_autoscalers_name_what_there_is() -> None:
    found = objects("cluster")
    hpa = one(found, "HorizontalPodAutoscaler")["spec"]
    web = one(found, "Deployment")
    assert hpa["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": web["metadata"]["name"]}
    assert "replicas" not in web["spec"]
    (rule,) = yaml.safe_load((ROOT / "k8s/components/autoscaling/prometheus-adapter.yaml").read_text())["rules"]
    assert hpa["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
    scaled = one(found, "ScaledObject", "stylize-gatys")["spec"]["scaleTargetRef"]["name"]
    assert one(found, "Deployment", scaled)["spec"].get("replicas") is None


def test_the_autoscaler_is_the_one_that_was_simulated() -> None:
    hpa = one(objects("cluster"), "HorizontalPodAutoscaler")["spec"]
    (policy,) = hpa["behavior"]["scaleUp"]["policies"]
    simulated = Autoscaler(least=hpa["minReplicas"], most=hpa["maxReplicas"], start_s=0)
    assert hpa["metrics"][0]["pods"]["target"]["averageValue"] == f"{1000 * simulated.target:g}m"
    assert (policy["type"], 1 + policy["value"] / 100) == ("Percent", simulated.scale_up)
    assert policy["periodSeconds"] == simulated.scale_up_s
    assert hpa["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == simulated.stabilisation_s


def environment(found: list[Object], pod: Object, *kinds: str) -> dict[str, str]:
    """Of a pod's container: ConfigMaps, Secrets (or only some of the two) and variables, the later the stronger. An
    optional Secret is not there."""
    (container,) = pod["containers"]
    merged: dict[str, str] = {}
    for source in container["envFrom"]:
        ((reference, target),) = source.items()
        if not target.get("optional") and reference in (kinds or REFERENCES):
            data = one(found, REFERENCES[reference], target["name"])["data"]
            merged |= (
                {name: b64decode(value).decode() for name, value in data.items()} if "secret" in reference else data
            )
    return merged | {entry["name"]: entry["value"] for entry in container["env"]}
