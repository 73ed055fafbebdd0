from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from service.jobs.job import Limits, Order
from service.jobs.queue import EmbeddedQueue
from service.jobs.webhook import UrlRefused, Webhooks, secret_key
from tests.jobs.conftest import parameters

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Receiver(BaseHTTPRequestHandler):
    received: list[tuple[dict[str, str], bytes]]
    statuses: list[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((dict(self.headers), body))
        self.send_response(self.statuses.pop(0))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def receiving(*statuses: int) -> Iterator[tuple[int, list[tuple[dict[str, str], bytes]]]]:
    handler = type("Handler", (Receiver,), {"received": [], "statuses": list(statuses)})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port, handler.received  # type: ignore[attr-defined]
        finally:
            server.shutdown()
            thread.join()


def deliver(queue: EmbeddedQueue, webhooks: Webhooks, until: int) -> None:
    """Run the deliveries until so many tries were made."""

    async def scene() -> None:
        task = asyncio.create_task(webhooks.deliver(queue))
        async with asyncio.timeout(60):
            while queue.tried < until:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
        task.cancel()

    asyncio.run(scene())


class Counting(EmbeddedQueue):
    tried = 0

    def webhook_done(self, job_id: str, delivered: bool) -> None:
        super().webhook_done(job_id, delivered)
        self.tried += 1


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Counting]:
    found = Counting(tmp_path, Limits(), owner=True)
    yield found
    found.close()


def finished(queue: EmbeddedQueue, url: str) -> str:
    job, _ = queue.submit(Order("a", parameters(), {"photo": b""}, webhook_url=url))
    queue.cancel(job.id)
    return job.id


def test_a_finished_job_is_told_of_and_signed(queue: Counting) -> None:
    webhooks = Webhooks(["localhost"], SECRET, lambda job: {"id": job.id}, is_public=lambda address: True)
    with receiving(204) as (port, received):
        id = finished(queue, f"http://localhost:{port}/hook?a=b")
        deliver(queue, webhooks, until=1)
    ((headers, body),) = received
    assert json.loads(body)["type"] == "job.cancelled"
    assert json.loads(body)["data"] == {"id": id}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert queue.due_webhooks() == ([], None)


@pytest.mark.parametrize("status", [500, 302, 404])
def test_what_is_not_taken_is_tried_again_later(queue: Counting, status: int) -> None:
    webhooks = Webhooks(["localhost"], SECRET, lambda job: {}, is_public=lambda address: True)
    with receiving(status) as (port, received):
        finished(queue, f"http://localhost:{port}/")
        deliver(queue, webhooks, until=1)
    assert len(received) == 1
    due, wait_s = queue.due_webhooks()
    assert (due, wait_s is not None) == ([], True)


def test_nothing_is_ever_sent_to_a_private_address(queue: Counting) -> None:
    with receiving(200) as (port, received):
        finished(queue, f"http://localhost:{port}/")
        deliver(queue, Webhooks(["localhost"], SECRET, lambda job: {}), until=1)
    assert received == []
    assert queue.due_webhooks() == ([], None)


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example/",
        "https://hooks.example.elsewhere.example/",
        "https://user@hooks.example/",
        "ftp://hooks.example/",
        "https://hooks.example:99999/",
        "https:///",
        "//hooks.example",
        "http://[::1/",
    ],
)
def test_only_allowed_hosts_are_told(url: str) -> None:
    webhooks = Webhooks(["hooks.example"], SECRET, lambda job: {})
    webhooks.check("https://hooks.example:8443/a?b")
    with pytest.raises(UrlRefused):
        webhooks.check(url)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_????", "whsec_" + base64.b64encode(b"short").decode()])
def test_a_weak_secret_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match=r"bytes|base64"):
        secret_key(secret)
