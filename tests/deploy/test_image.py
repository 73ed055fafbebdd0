"""The container image, built and run for real: `make image-test` (it names the tools)."""

from __future__ import annotations

import io
import json
import os
import shlex
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "tests" / "photos" / "coffee.jpg"
BUILD, ENGINE = (shlex.split(os.environ.get(name, "")) for name in ("IMAGE_BUILD", "IMAGE_ENGINE"))
TAG = "stylize:image-test"
BASE = "docker.io/library/python:3.11-slim-bookworm"
MOST_ADDED_BYTES = 320e6
HARDENED = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--tmpfs=/tmp", "--user=12345:12345")
PATIENCE_S = 60.0

pytestmark = pytest.mark.skipif(not (BUILD and ENGINE), reason="`make image-test` builds and runs the image")


def engine(*arguments: str) -> str:
    return subprocess.run([*ENGINE, *arguments], check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


@pytest.fixture(scope="module")
def image() -> str:
    subprocess.run([*BUILD, "--target", "cpu", "-t", TAG, "."], check=True, cwd=ROOT)
    return TAG


class Container:
    """One that listens on the loopback device of this machine."""

    def __init__(self, image: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        listen = ("-e", "STYLIZE_HOST=127.0.0.1", "-e", f"STYLIZE_PORT={port}")
        self.id = engine("run", "--detach", "--network=host", *HARDENED, *listen, image)

    def get(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        headers = {"Content-Type": "image/jpeg"} if body else {}
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


@pytest.fixture
def container(image: str) -> Iterator[Container]:
    running = Container(image)
    try:
        running.wait_until_ready()
        yield running
    finally:
        engine("rm", "--force", running.id)


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
