"""The manifests as the cluster would see them: rendered by kubectl, checked against Kubernetes' own schemas."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parents[2]
OVERLAYS = sorted(path.name for path in (ROOT / "k8s" / "overlays").iterdir())

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed: no manifest is checked"
)


def rendered(overlay: str) -> str:
    command = ["kubectl", "kustomize", str(ROOT / "k8s" / "overlays" / overlay)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def objects(overlay: str) -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(rendered(overlay))}


def valid(path: Path) -> bool:
    command = [sys.executable, "-m", "kubernetes_validate", "--strict", str(path)]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_cluster_would_accept_every_object(overlay: str, tmp_path: Path) -> None:
    text = rendered(overlay)
    (tmp_path / "good.yaml").write_text(text)
    (tmp_path / "misspelt.yaml").write_text(text.replace("readinessProbe", "readynessProbe"))
    assert valid(tmp_path / "good.yaml")
    assert not valid(tmp_path / "misspelt.yaml")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted_and_probed(overlay: str) -> None:
    pod = objects(overlay)["Deployment"]["spec"]["template"]["spec"]
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
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    environment = found["ConfigMap"]["data"] | {entry["name"]: entry["value"] for entry in container["env"]}
    settings = Settings.from_env(environment)
    assert settings.host == "0.0.0.0"
    assert settings.provider == ("cuda" if overlay == "gpu" else "auto")
    assert container["image"] == ("stylize:gpu" if overlay == "gpu" else "stylize:cpu")
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (overlay == "gpu")
