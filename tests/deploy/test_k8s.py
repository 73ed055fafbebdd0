"""The manifests as the cluster would see them: rendered by kubectl, checked against Kubernetes' own schemas."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from service.settings import Settings

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(__file__).parent / "schemas"
OVERLAYS = sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir())

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed: no manifest is checked"
)


def rendered(overlay: str) -> str:
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / "overlays" / overlay)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def objects(overlay: str) -> dict[str, Any]:
    """Everything by kind and name, without kustomize's hash."""
    found = list(yaml.safe_load_all(rendered(overlay)))
    return {f"{each['kind']}/{re.sub('-[a-z0-9]{10}$', '', each['metadata']['name'])}": each for each in found}


def invalid(objects: Iterable[Any], folder: Path) -> list[str]:
    """The kinds that a cluster would refuse: Kubernetes' own by its schemas, the operators' by those in schemas/."""
    found = []
    for each in objects:
        schema = SCHEMAS / f"{each['kind']}.json"
        if schema.exists():
            fits = Draft202012Validator(json.loads(schema.read_text())).is_valid(each)
        else:
            (folder / "object.yaml").write_text(yaml.safe_dump(each))
            command = [sys.executable, "-m", "kubernetes_validate", "--strict", str(folder / "object.yaml")]
            fits = subprocess.run(command, capture_output=True).returncode == 0
        found += [] if fits else [each["kind"]]
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_cluster_would_accept_every_object(overlay: str, tmp_path: Path) -> None:
    assert invalid(yaml.safe_load_all(rendered(overlay)), tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "right", "misspelt"),
    [
        ("Deployment", "readinessProbe", "readynessProbe"),
        ("HorizontalPodAutoscaler", "averageValue", "averagevalue"),
        ("ServiceMonitor", "interval", "intervall"),
        ("PrometheusRule", "expr", "expression"),
    ],
)
def test_a_misspelt_field_is_noticed(kind: str, right: str, misspelt: str, tmp_path: Path) -> None:
    text = rendered("cpu").replace(f"{right}:", f"{misspelt}:")
    assert kind in invalid(yaml.safe_load_all(text), tmp_path)


def test_the_autoscaler_asks_for_what_the_adapter_makes() -> None:
    (rule,) = yaml.safe_load((ROOT / "k8s" / "components" / "autoscaling" / "prometheus-adapter.yaml").read_text())[
        "rules"
    ]
    (metric,) = objects("cpu")["HorizontalPodAutoscaler/stylize"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert "replicas" not in objects("cpu")["Deployment/stylize"]["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted_and_probed(overlay: str) -> None:
    pod = objects(overlay)["Deployment/stylize"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    restricted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert container["securityContext"] == restricted
    paths = [container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")]
    assert paths == ["/readyz", "/readyz", "/livez"]
    assert pod["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_service_would_start_with_the_configuration(overlay: str) -> None:
    found = objects(overlay)
    (container,) = found["Deployment/stylize"]["spec"]["template"]["spec"]["containers"]
    environment = found["ConfigMap/stylize"]["data"] | {entry["name"]: entry["value"] for entry in container["env"]}
    settings = Settings.from_env(environment)
    assert settings.host == "0.0.0.0"
    assert settings.provider == ("cuda" if overlay == "gpu" else "auto")
    assert container["image"] == ("stylize:gpu" if overlay == "gpu" else "stylize:cpu")
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (overlay == "gpu")
