"""The container image, built and run for real: `make image-test` (it names the tools)."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "tests" / "photos" / "coffee.jpg"
BUILD, ENGINE = (shlex.split(os.environ.get(name, "")) for name in ("IMAGE_BUILD", "IMAGE_ENGINE"))
TAG, GATYS_TAG, GPU_TAG = "stylize:image-test", "stylize:image-test-gatys", "stylize:image-test-gpu"
BASE = "docker.io/library/python:3.11-slim-bookworm"
MOST_ADDED_BYTES = 320e6
HARDENED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--tmpfs=/tmp", "--user=12345:12345")
PATIENCE_S = 60.0
READY_WITHIN_S = 5.0

pytestmark = pytest.mark.skipif(not (BUILD and ENGINE), reason="`make image-test` builds and runs the image")


def engine(*arguments: str, stdin: str | None = None) -> str:
    done = subprocess.run([*ENGINE, *arguments], input=stdin, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image() -> str:
    return built("cpu", TAG)


@pytest.fixture(scope="module")
def gatys_image() -> str:
    return built("gatys", GATYS_TAG)


@pytest.fixture(scope="module")
def gpu_image() -> str:
    if not os.environ.get("IMAGE_GPU"):
        pytest.skip("IMAGE_GPU=1 builds the target gpu too, which downloads 1.6 GB")
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a GPU: what happens without one is not tried")
    return built("gpu", GPU_TAG)


def built(target: str, tag: str) -> str:
    subprocess.run([*BUILD, "--target", target, "-t", tag, "."], check=True, cwd=ROOT)
    return tag


class Container:
    """One that listens on the loopback device of this machine."""

    def __init__(self, id: str, port: int) -> None:
        self.id, self.url = id, f"http://127.0.0.1:{port}"

    @classmethod
    def run(cls, image: str, *command: str, options: tuple[str, ...] = ()) -> Container:
        port = free_port()
        listen = ("-e", "STYLIZE_HOST=127.0.0.1", "-e", f"STYLIZE_PORT={port}")
        return cls(engine("run", "--detach", "--network=host", *HARDENED, *listen, *options, image, *command), port)

    def get(self, path: str, body: bytes | None = None, content_type: str = "image/jpeg") -> tuple[int, bytes]:
        headers = {"Content-Type": content_type} if body else {}
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, body, headers), timeout=PATIENCE_S
        ) as answer:
            return answer.status, answer.read()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                self.get("/readyz")
                return
            except OSError:  # not listening yet, or 503
                time.sleep(0.1)
        raise AssertionError(f"not ready after {PATIENCE_S} s: {engine('logs', self.id)}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def container(image: str) -> Iterator[Container]:
    running = Container.run(image)
    try:
        running.wait_until_ready()
        yield running
    finally:
        engine("rm", "--force", running.id)


def test_container_is_ready_soon(image: str) -> None:
    running = Container.run(image)
    begun = time.monotonic()
    try:
        running.wait_until_ready()
        assert time.monotonic() - begun < READY_WITHIN_S
    finally:
        engine("rm", "--force", running.id)


def test_workers_image_optimises_with_the_shipped_features(gatys_image: str) -> None:
    """As the service that does its jobs itself: so a job comes in without a broker."""
    inspected = json.loads(engine("image", "inspect", gatys_image))[0]["Config"]
    assert inspected["Entrypoint"][-1] == "service.jobs.distributed"
    running = Container.run(
        gatys_image, "-m", "service", options=("--entrypoint=python", "-e", "STYLIZE_DATA_DIR=/tmp")
    )
    try:
        running.wait_until_ready()
        fields = {"style_image": small_photo(), "image": small_photo()}
        body, boundary = multipart(fields, iterations="3", preset="balanced")
        job = json.loads(running.get("/gatys", body, f"multipart/form-data; boundary={boundary}")[1])
        assert b"event: succeeded" in running.get(f"/jobs/{job['id']}/events")[1]
    finally:
        engine("rm", "--force", running.id)


def test_gpu_image_paints_without_a_gpu_and_says_so(gpu_image: str) -> None:
    running = Container.run(gpu_image)
    try:
        running.wait_until_ready()
        assert running.get("/stylize?style=starry_night&max_side=320", PHOTO.read_bytes())[0] == 200
        assert b'provider="cpu"' in running.get("/metrics")[1]
        said = subprocess.run([*ENGINE, "logs", running.id], capture_output=True, text=True)
        log = said.stdout + said.stderr
        assert "CUDA is installed but cannot be used" in log
        assert "libcuda.so.1" in log  # all but the driver's library is there
        assert not re.search(r"lib(cu(blas|blasLt|dnn|fft|dart|rand)|nvrtc)\.so", log)
    finally:
        engine("rm", "--force", running.id)


def test_gpu_image_does_not_start_without_a_gpu_that_is_demanded(gpu_image: str) -> None:
    running = Container.run(gpu_image, options=("-e", "STYLIZE_PROVIDER=cuda"))
    try:
        assert engine("wait", running.id) == "2"
        said = subprocess.run([*ENGINE, "logs", running.id], capture_output=True, text=True)
        assert "cannot start: STYLIZE_PROVIDER=cuda" in said.stdout + said.stderr
    finally:
        engine("rm", "--force", running.id)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: no pod is made of the manifests")
def test_overlays_pod_runs_and_stylises(image: str) -> None:
    """`podman play kube` of the overlay cpu's Deployment; only the address that it listens on is the test's own."""
    if "podman" not in " ".join(ENGINE):
        pytest.skip(f"{ENGINE} has no `play kube`")
    port = free_port()
    manifest, pod = played(image, port)
    try:
        engine("play", "kube", "--network=host", "-", stdin=manifest)
        (container,) = engine("ps", "--quiet", "--filter", f"name={pod}-pod.*-stylize").split()
        running = Container(container, port)
        running.wait_until_ready()
        assert running.get("/stylize?style=starry_night&max_side=320", PHOTO.read_bytes())[0] == 200
        made = json.loads(engine("container", "inspect", container))[0]
        assert made["HostConfig"]["ReadonlyRootfs"]
        assert made["Config"]["User"].startswith("65532")
        assert not made["EffectiveCaps"]
    finally:
        subprocess.run([*ENGINE, "play", "kube", "--down", "-"], input=manifest, text=True, cwd=ROOT)


def played(image: str, port: int) -> tuple[str, str]:
    """The ConfigMaps and the Deployment of the overlay, and how the pod will be called."""
    text = subprocess.run(
        ["kubectl", "kustomize", "k8s/overlays/cpu"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    objects = [each for each in yaml.safe_load_all(text) if each["kind"] in ("ConfigMap", "Deployment")]
    (deployment,) = (each for each in objects if each["kind"] == "Deployment")
    deployment["spec"]["replicas"] = 1
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container |= {"image": image, "imagePullPolicy": "Never"}
    del container["ports"]  # the host's network has no mappings
    for probe in ("startup", "readiness", "liveness"):
        container[f"{probe}Probe"]["httpGet"]["port"] = port
    container["env"] = [{"name": "STYLIZE_HOST", "value": "127.0.0.1"}, {"name": "STYLIZE_PORT", "value": str(port)}]
    return yaml.safe_dump_all(objects), deployment["metadata"]["name"]


def test_image_is_small_and_has_what_it_needs_alone(image: str) -> None:
    size, base = (int(engine("image", "inspect", "--format", "{{.Size}}", name)) for name in (image, BASE))
    assert size - base < MOST_ADDED_BYTES
    code = "import importlib.util as u; print(*(n for n in ('onnxruntime', 'torch', 'pip') if u.find_spec(n)))"
    assert engine("run", "--rm", "--network=host", "--entrypoint=python", image, "-c", code) == "onnxruntime"


def test_hardened_container_stylises_a_photo_and_is_healthy(container: Container) -> None:
    status, body = container.get("/stylize?style=starry_night&max_side=320", PHOTO.read_bytes())
    assert status == 200
    with Image.open(io.BytesIO(body)) as stylised:
        assert max(stylised.size) == 320
    health = json.loads(engine("inspect", "--format", "{{json .Config.Healthcheck.Test}}", container.id))
    engine("exec", container.id, *health[1:])


def test_stopping_answers_what_was_accepted(container: Container) -> None:
    answers: list[int] = []
    large = threading.Thread(
        target=lambda: answers.append(container.get("/stylize?style=great_wave&max_side=2000", large_photo())[0])
    )
    large.start()
    deadline = time.monotonic() + PATIENCE_S
    while b"\nstylize_in_flight 0.0\n" in container.get("/metrics")[1]:
        assert time.monotonic() < deadline
    engine("stop", "--time=30", container.id)
    large.join(PATIENCE_S)
    assert answers == [200]
    assert engine("inspect", "--format", "{{.State.Running}}", container.id) == "false"


def large_photo() -> bytes:
    with Image.open(PHOTO) as photo:
        enlarged = io.BytesIO()
        photo.resize((2000, 1500)).save(enlarged, "JPEG")
        return enlarged.getvalue()


def small_photo() -> bytes:
    with Image.open(PHOTO) as photo:
        shrunk = io.BytesIO()
        photo.resize((96, 64)).save(shrunk, "PNG")
        return shrunk.getvalue()


def multipart(files: dict[str, bytes], **fields: str) -> tuple[bytes, str]:
    """A form and the boundary of its parts."""
    boundary = "a-boundary"
    disposition = f'--{boundary}\r\nContent-Disposition: form-data; name="'
    parts = [f'{disposition}{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    parts += [f'{disposition}{name}"; filename="a"\r\n\r\n'.encode() + file + b"\r\n" for name, file in files.items()]
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), boundary
