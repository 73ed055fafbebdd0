"""Webhooks: telling a client's server that its job is finished, signed as Standard Webhooks has it.

Off unless the configuration allows the host. An allowed name that resolves to a private address is refused too, and
the connection goes to the very address that was checked.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import http.client
import ipaddress
import json
import logging
import socket
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from service.jobs.job import Job
from service.jobs.queue import JobQueue

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
SECRET_PREFIX = "whsec_"
PORTS = {"https": 443, "http": 80}


class UrlRefused(ValueError):
    """The address may not be told; the message says why."""


class Undelivered(Exception):
    """The other side did not take it; the message says why."""


class Webhooks:
    """Tells of finished jobs. ``describe`` gives a job's JSON; ``secret`` is ``whsec_`` and base64."""

    def __init__(
        self,
        hosts: Collection[str],
        secret: str,
        describe: Callable[[Job], Mapping[str, Any]],
        *,
        is_public: Callable[[str], bool] = lambda address: ipaddress.ip_address(address).is_global,
    ) -> None:
        self._hosts, self._key, self._describe = frozenset(hosts), secret_key(secret), describe
        self._is_public = is_public
        self._finished = asyncio.Event()

    def check(self, url: str) -> None:
        """Raises UrlRefused where the URL is not allowed."""
        self._split(url)

    def wake(self) -> None:
        """A job may have finished."""
        self._finished.set()

    async def deliver(self, queue: JobQueue) -> None:
        """Deliver what is due, and what was left by an earlier service, for ever."""
        while True:
            self._finished.clear()
            due, wait_s = await asyncio.to_thread(queue.due_webhooks)
            for job in due:
                delivered = await asyncio.to_thread(self._deliver, job)
                await asyncio.to_thread(queue.webhook_done, job.id, delivered)
            if due:
                continue
            try:
                async with asyncio.timeout(wait_s):
                    await self._finished.wait()
            except TimeoutError:
                continue

    def _deliver(self, job: Job) -> bool:
        """Whether there is nothing left to do."""
        assert job.webhook_url is not None
        body = json.dumps(
            {"type": f"job.{job.status}", "timestamp": _rfc3339(job.finished_at), "data": self._describe(job)}
        ).encode()
        try:
            self._post(job.webhook_url, f"msg_{job.id}", body)
        except UrlRefused as error:
            log.warning("the webhook of job %s is given up: %s", job.id, error)
        except (Undelivered, OSError, http.client.HTTPException) as error:
            log.info("the webhook of job %s was not delivered: %s", job.id, error)
            return False
        return True

    def _post(self, url: str, message_id: str, body: bytes) -> None:
        parts = self._split(url)
        port = parts.port or PORTS[parts.scheme]
        assert parts.hostname is not None
        address = self._address(parts.hostname, port)
        connection = _Pinned(parts.hostname, port, address, parts.scheme == "https")
        timestamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": signature(self._key, message_id, timestamp, body),
        }
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", target, body, headers)
            status = connection.getresponse().status
        finally:
            connection.close()
        if not 200 <= status < 300:  # a redirection could lead anywhere: it is not followed
            raise Undelivered(f"answered {status}")

    def _split(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UrlRefused(f"not a URL: {error}") from error
        if parts.scheme not in PORTS or not parts.hostname or port == 0 or parts.username is not None:
            raise UrlRefused("must be an http or https URL without credentials")
        if parts.hostname not in self._hosts:
            raise UrlRefused(f"the host {parts.hostname[:100]!r} is not in STYLIZE_WEBHOOK_HOSTS")
        return parts

    def _address(self, host: str, port: int) -> str:
        """One of the host's addresses, all of them public. Raises UrlRefused, or OSError where there is none."""
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        if private := [address for address in found if not self._is_public(address)]:
            raise UrlRefused(f"{host} is {private[0]}, which is not a public address")
        return found[0]


def secret_key(secret: str) -> bytes:
    """The bytes of a secret as Standard Webhooks writes it. Raises ValueError."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("must be whsec_ and base64") from error
    if not 24 <= len(key) <= 64:
        raise ValueError(f"has {len(key)} bytes; Standard Webhooks wants 24 to 64")
    return key


def signature(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """``v1,`` and the base64 of HMAC-SHA256 over id, timestamp and body."""
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


class _Pinned(http.client.HTTPConnection):
    """Connects to an address that was checked, while host name and certificate stay the name's."""

    def __init__(self, host: str, port: int, address: str, is_tls: bool) -> None:
        super().__init__(host, port, timeout=TIMEOUT_S)
        self.default_port = PORTS["https" if is_tls else "http"]
        self._address, self._is_tls = address, is_tls

    def connect(self) -> None:
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._is_tls:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _rfc3339(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
