"""Around every request: its id, its headers, its metrics, HEAD, and the last resort."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Internal, ServiceError
from service.logs import ACCESS, RequestContext, Trace, current
from service.metrics import Metrics
from service.schemas import problem
from service.tracing import Tracer

log = logging.getLogger(__name__)
access = logging.getLogger(ACCESS)

REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:-]{1,128}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Edge:
    """ASGI middleware, outermost: nothing is answered without it. While ``closing`` no connection is kept alive.

    A request's stages are those of ``state.watch``, where its route has put one.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, closing: Callable[[], bool], tracer: Tracer | None = None
    ) -> None:
        self._app = app
        self._tracer = tracer
        self._closing = closing
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        method = scope["method"]
        headers = dict(scope["headers"])
        body = _Body(receive, headers)
        traceparent = headers.get(b"traceparent", b"").decode("latin-1")
        span = self._tracer.begin(method, traceparent) if self._tracer else None
        trace = span.trace if span else Trace.of(traceparent)
        context = RequestContext(_request_id(headers), trace)
        current.set(context)  # a request has a task of its own
        sent = _Sent(
            send,
            context,
            without_body=method == "HEAD",
            closing=lambda: self._closing() or not body.complete,
        )
        inner = {**scope, "method": "GET" if method == "HEAD" else method}
        inner["state"] = {**scope.get("state", {}), "request_id": context.request_id}
        try:
            await self._app(inner, body, sent)
        except Exception:
            log.exception("a bug: request %s, %s %s", context.request_id, method, scope["path"])
            if sent.status is not None:
                raise
            await problem_response(Internal("please report it, with the request_id"), inner)(inner, body, sent)
        finally:
            route, method = _route(inner), method if method in METHODS else "other"
            code = str(sent.status or 499)  # 499: the client left and was told nothing
            self._metrics.http_requests.labels(route, method, code).inc()
            duration_s = time.perf_counter() - started
            exemplar = {"trace_id": trace.trace_id} if trace else None
            self._metrics.http_request_duration.labels(route, method).observe(duration_s, exemplar)
            if span:
                watch = inner["state"].get("watch")
                span.end(method, route, int(code), watch.intervals if watch else ())
            if access.isEnabledFor(logging.INFO):
                milliseconds = round(1000 * duration_s, 2)
                facts = {"method": method, "route": route, "status": int(code), "duration_ms": milliseconds}
                access.info("%s %s %s", method, scope["path"], code, extra=facts)


class _Body:
    """``receive``, remembering whether the whole body has come: what was not read would be taken for a request."""

    def __init__(self, receive: Receive, headers: Mapping[bytes, bytes]) -> None:
        self._receive = receive
        self.complete = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"

    async def __call__(self) -> Message:
        message = await self._receive()
        self.complete = self.complete or not message.get("more_body", False)
        return message


class _Sent:
    """``send`` with our headers on, remembering the status; without the body where HEAD asked."""

    def __init__(self, send: Send, context: RequestContext, without_body: bool, closing: Callable[[], bool]) -> None:
        self._closing = closing
        self._send = send
        self._without_body = without_body
        self._context = context
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            ours = [(b"x-request-id", self._context.request_id.encode()), (b"x-content-type-options", b"nosniff")]
            if self._context.trace:
                ours.append((b"traceparent", self._context.trace.traceparent.encode()))
            if self._closing():
                ours.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", ()), *ours]}
        elif message["type"] == "http.response.body" and self._without_body:
            message = {**message, "body": b""}
        await self._send(message)


def problem_response(error: ServiceError, scope: Scope) -> JSONResponse:
    """An error as ``application/problem+json``."""
    members = problem(error, scope["path"], scope["state"]["request_id"])
    return JSONResponse(
        members,
        error.status,
        headers={"Cache-Control": "no-store", **error.headers},
        media_type="application/problem+json",
    )


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_urlsafe(16)


def _route(scope: Scope) -> str:
    """The route's own pattern: paths as they come would be an open set of label values."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "other"
