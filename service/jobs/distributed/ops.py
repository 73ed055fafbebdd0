"""For those who run workers: probes and metrics, on a port of each."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer, ThreadingTCPServer

from service.jobs.distributed.tally import Tally
from service.metrics import WorkerMetrics

log = logging.getLogger(__name__)

JSON = "application/json"


class Ops(ThreadingTCPServer):
    """Answers ``GET /metrics``, ``/livez`` and ``/readyz`` once it was begun, in this process alone: those that it
    forks close what they inherit, or they would hold the port after its end. Raises OSError where it cannot be had."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, host: str, port: int, metrics: WorkerMetrics) -> None:
        super().__init__((host, port), _Answer)
        self.metrics, self.tally = metrics, Tally(metrics)
        self.reasons: Callable[[], Sequence[str]] = lambda: ["the jobs' Redis was not reached yet"]
        os.register_at_fork(after_in_child=self.socket.close)

    def begin(self) -> None:
        self.tally.begin()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def watch(self, places: int, busy: Callable[[], int], reasons: Callable[[], Sequence[str]]) -> None:
        """Tell of a worker with so many ``places``, how many of them are ``busy``, and for which ``reasons`` it takes
        no jobs."""
        self.metrics.workers.labels("busy").set_function(lambda: min(places, busy()))
        self.metrics.workers.labels("idle").set_function(lambda: max(0, places - busy()))
        self.reasons = reasons

    def handle_error(self, request: object, client_address: object) -> None:
        log.debug("%s was not answered", client_address, exc_info=True)


class _Answer(BaseHTTPRequestHandler):
    timeout = 5.0  # for each piece of a request

    def __init__(self, request: object, client_address: object, server: BaseServer) -> None:
        assert isinstance(server, Ops)
        self._ops = server
        super().__init__(request, client_address, server)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(200, *self._ops.metrics.render(self.headers.get("Accept", "")))
            case "/livez":
                self._say(200, {"status": "alive"})
            case "/readyz":
                reasons = list(self._ops.reasons())
                self._say(503 if reasons else 200, {"status": "not ready" if reasons else "ready", "reasons": reasons})
            case path:
                self._say(404, {"detail": f"there is no {path[:200]}; /metrics, /livez and /readyz are what there is"})

    def _say(self, status: int, what: object) -> None:
        self._answer(status, json.dumps(what).encode(), JSON)

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *said: object) -> None:
        """Scrapes and probes come every few seconds: nobody wants a line of each."""
