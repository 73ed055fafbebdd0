"""How `python -m bench peers` finds what a server costs a single client."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench.load import Request
from bench.processes import Running, Server
from bench.turns import Caller, overheads

SLOWER_S = 0.02


class _Handler(BaseHTTPRequestHandler):
    """Takes a while and answers in pieces, or not as it should."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(SLOWER_S)
        self.send_response(503 if self.path == "/refused" else 200)
        self.send_header("Content-Length", "2000")
        self.end_headers()
        self.wfile.write(b"a" * 1000)
        if self.path == "/cut":
            self.close_connection = True
            return
        time.sleep(0.001)
        self.wfile.write(b"b" * 1000)

    def log_message(self, format: str, *arguments: object) -> None: ...


@contextmanager
def served() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_overhead_is_what_the_server_takes_beyond_the_work() -> None:
    with served() as port:
        server = Running(Server("slow", [], {}, "/stylize"), port, 0, 0.0)
        (found,) = overheads([server], b"photo", lambda: time.sleep(SLOWER_S / 2), turns=5)
    assert found.name == "slow"
    assert SLOWER_S / 2 * 1000 < found.median_ms < 20 * SLOWER_S * 1000
    assert found.low_ms <= found.median_ms <= found.high_ms


@pytest.mark.parametrize(("path", "said"), [("/refused", "503"), ("/cut", "hung up")])
def test_what_is_no_picture_is_no_measurement(path: str, said: str) -> None:
    with served() as port:
        caller = Caller(Request.of(port, path, "image/jpeg", b"photo"))
        with pytest.raises(RuntimeError, match=said):
            caller()
        caller.close()
