"""The real thing: its own process, over loopback."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest
from PIL import Image

from tests.service.live import start

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def serving(**variables: str) -> Iterator[tuple[str, str]]:
    """Start ``python -m service`` and give its URL and its greeting."""
    process = start(subprocess.DEVNULL, **variables)
    assert process.stdout
    with process, process.stdout:
        try:
            greeting = "".join(process.stdout.readline() for _ in range(4))
            yield greeting.split()[3], greeting
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def wait_until_ready(url: str) -> None:
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("never ready")


def test_the_process_serves_and_its_curl_line_works(toy_store: Path, tmp_path: Path) -> None:
    with serving(STYLIZE_MODEL_STORE=str(toy_store)) as (url, greeting):
        wait_until_ready(url)
        assert f"{url}/" in greeting
        command = greeting.split("try", 1)[1].strip()
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, capture_output=True)
        example = re.search(r"@(\S+)", command)
        assert example
        with Image.open(tmp_path / "out.jpg") as result, Image.open(shlex.split(example[1])[0]) as photo:
            assert (result.format, result.size) == ("JPEG", photo.size)


def test_a_slow_upload_is_408_and_one_that_is_too_large_413(toy_store: Path) -> None:
    limits = {"STYLIZE_UPLOAD_TIMEOUT_S": "0.3", "STYLIZE_MAX_UPLOAD_BYTES": "1000"}
    with serving(STYLIZE_MODEL_STORE=str(toy_store), **limits) as (url, _):
        wait_until_ready(url)
        assert b" 408 " in _send(url, length=500, body=b"a few bytes and then nothing")
        assert b" 413 " in _send(url, length=5000, body=b"")


def _send(url: str, length: int, body: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    head = (
        f"POST /stylize?style=red HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode() + b"\r\n" + body)
        answer = b""
        while chunk := connection.recv(65536):  # until the service closes, as it must
            answer += chunk
    return answer


@pytest.mark.parametrize("variable", ["STYLIZE_NONSENSE", "STYLIZE_PORT"])
def test_a_wrong_setting_stops_the_start_with_its_name(variable: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service"], cwd=ROOT, env=os.environ | {variable: "x"}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert variable in done.stderr
    assert "Traceback" not in done.stderr


def test_the_fast_path_never_imports_torch() -> None:
    check = (
        "import sys; import service.app, service.__main__; "
        "heavy = {'torch', 'onnx', 'export', 'service.gatys'} & set(sys.modules); sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
