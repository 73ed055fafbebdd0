"""Hostile and broken clients, over sockets of their own: answered or cut, and the service goes on."""

from __future__ import annotations

import re
import select
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from tests.service.live import PATIENCE_S, Live, live, request
from tests.service.pictures import encoded, gradient

PNG = encoded(gradient(20, 10))
CHUNKED = b"Host: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def service(toy_store: Path) -> Iterator[Live]:
    limits = {"STYLIZE_UPLOAD_TIMEOUT_S": "1.5", "STYLIZE_MAX_UPLOAD_BYTES": "600000"}
    with live(STYLIZE_MODEL_STORE=str(toy_store), **limits) as running:
        yield running


@pytest.fixture(autouse=True)
def _neighbours_are_served(service: Live) -> Iterator[None]:
    yield
    url = f"{service.url}/stylize?style=red"
    assert httpx.post(url, content=PNG, headers={"Content-Type": "image/png"}, timeout=PATIENCE_S).status_code == 200
    service.wait_for("stylize_in_flight", 0)


def connect(service: Live) -> closing[socket.socket]:
    return closing(socket.create_connection(service.address, timeout=PATIENCE_S))


def rest(connection: socket.socket) -> bytes:
    """What comes until the service closes, as it must."""
    connection.settimeout(PATIENCE_S)  # of a drip it is shorter
    answer = b""
    try:
        while chunk := connection.recv(65536):
            answer += chunk
    except ConnectionResetError:
        pass
    return answer


def drip(connection: socket.socket, piece: bytes, every_s: float) -> bytes:
    """Send ``piece`` again and again until an answer comes or the service hangs up."""
    give_up = time.monotonic() + PATIENCE_S
    connection.settimeout(every_s)
    while time.monotonic() < give_up:
        try:
            connection.sendall(piece)
            return connection.recv(65536)
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            return b""
    raise AssertionError("neither answered nor cut")


def test_an_upload_byte_by_byte_is_408(service: Live) -> None:
    with connect(service) as connection:
        connection.sendall(request(b"x" * 5000, "style=red")[:-5000])
        assert b" 408 " in drip(connection, b"x", 0.2)


def test_a_head_byte_by_byte_is_cut(service: Live) -> None:
    with connect(service) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        assert b" 408 " in drip(connection, b"X", 1)


@pytest.mark.parametrize("count", [10_000, 100_000])
def test_ten_thousand_headers_are_refused(service: Live, count: int) -> None:
    with connect(service) as connection:
        try:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * count + b"\r\n")
        except (ConnectionResetError, BrokenPipeError):
            return
        assert b"200 OK" not in rest(connection)


@pytest.mark.parametrize("path", [b"POST /stylize?style=red", b"POST /nothing", b"GET /livez", b"POST /livez"])
def test_a_chunked_body_without_end_is_cut(service: Live, path: bytes) -> None:
    with connect(service) as connection:
        connection.sendall(path + b" HTTP/1.1\r\n" + CHUNKED)
        answer = drip(connection, b"6000\r\n" + b"x" * 0x6000 + b"\r\n", 0.001)  # too large long before too slow
        assert not answer or b"connection: close" in answer.lower()
        if path.startswith(b"POST /stylize"):
            assert not answer or b" 413 " in answer
        rest(connection)


def test_ten_thousand_parts_are_400(service: Live) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 10_000
    with connect(service) as connection:
        connection.sendall(request(body + b"--b--\r\n", "style=red", "multipart/form-data; boundary=b"))
        assert b" 400 " in rest(connection)


@pytest.mark.parametrize(
    ("length", "status"), [("-1", b" 400 "), ("1, 2", b" 400 "), ("999", b" 408 "), ("nan", b" 400 ")]
)
def test_a_wrong_content_length_is_answered(service: Live, length: str, status: bytes) -> None:
    head = f"POST /stylize?style=red HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"
    with connect(service) as connection:
        connection.sendall(head.encode() + PNG[:100])
        assert status in rest(connection)


def test_what_follows_a_body_that_was_longer_than_said_is_no_request(service: Live) -> None:
    with connect(service) as connection:
        connection.sendall(request(PNG, "style=red") + b"\0 garbage\r\n\r\n")
        answer = rest(connection)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 400 " in answer


@pytest.mark.parametrize("hosts", [b"", b"Host: x\r\nHost: y\r\n"])
def test_a_request_that_does_not_say_one_host_is_400(service: Live, hosts: bytes) -> None:
    with connect(service) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n" + hosts + b"\r\n")
        assert rest(connection).startswith(b"HTTP/1.1 400 ")


def test_requests_sent_ahead_are_answered_in_their_order_and_garbage_after_them(service: Live) -> None:
    known, unknown = request(PNG, "style=red"), request(PNG, "style=nothing")
    with connect(service) as connection:
        connection.sendall(known + unknown + known + b"\0\r\n\r\n")
        statuses = re.findall(rb"HTTP/1.1 (\d+) ", rest(connection))
        assert statuses == [b"200", b"404", b"200", b"400"]


def test_a_request_sent_ahead_whose_body_cannot_be_read_takes_no_answer_from_the_one_before(service: Live) -> None:
    with connect(service) as connection:
        broken = b"POST /stylize?style=red HTTP/1.1\r\n" + CHUNKED + b"ZZZ\r\n"
        connection.sendall(request(PNG, "style=red") + broken)
        statuses = re.findall(rb"HTTP/1.1 (\d+) ", rest(connection))
        assert statuses == [b"200", b"400"]


def test_an_offer_of_another_protocol_is_passed_over(service: Live) -> None:
    offer = b" HTTP/1.1\r\nConnection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    for sent in (request(PNG, "style=red"), b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"):
        with connect(service) as connection:
            for byte in range(0, len(whole := sent.replace(b" HTTP/1.1\r\n", offer)), 50):
                connection.sendall(whole[byte : byte + 50])
            answer = rest(connection)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.count(b"HTTP/1.1") == 1


def test_trailers_without_end_are_cut(service: Live) -> None:
    with connect(service) as connection:
        connection.sendall(b"POST /stylize?style=red HTTP/1.1\r\n" + CHUNKED + b"4\r\nabcd\r\n0\r\na: ")
        assert b" 400 " in drip(connection, b"x" * 1000, 0.001)


def test_a_half_closed_socket_is_cut(service: Live) -> None:
    with connect(service) as connection:
        connection.sendall(request(PNG, "style=red")[:-10])
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection) == b""


def test_all_uploads_together_are_bounded_and_a_small_one_still_fits(toy_store: Path) -> None:
    limits = {"STYLIZE_MAX_UPLOAD_BYTES": "400000", "STYLIZE_MAX_HELD_BYTES": "1000000"}
    large = request(b"x" * 400_000, "style=red")
    with live(STYLIZE_MODEL_STORE=str(toy_store), **limits) as running:
        with ExitStack() as uploads:
            for _ in range(2):
                uploads.enter_context(connect(running)).sendall(large[:-1])  # the last byte does not come
            wait_for(b" 503 ", running, large)
            refused = asked(running, large[:-400_000])  # the head alone: it is not read
            assert refused.startswith(b"HTTP/1.1 503 ")
            assert b"connection: close" in refused
            assert re.search(rb"retry-after: [1-9]", refused)
            assert b" 200 " in asked(running, request(PNG, "style=red"))
        wait_for(b" 400 ", running, large)  # it is read, and is no image
        with ExitStack() as uploads:
            unannounced = [uploads.enter_context(connect(running)) for _ in range(8)]
            for upload in unannounced:
                with suppress(OSError):
                    upload.sendall(b"POST /stylize?style=red HTTP/1.1\r\n" + CHUNKED)
                    upload.sendall(b"493e0\r\n" + b"x" * 300_000 + b"\r\n")
            give_up = time.monotonic() + PATIENCE_S
            while len(ended := select.select(unannounced, [], [], 0.02)[0]) < 5:
                assert time.monotonic() < give_up
            assert len(ended) == 5  # and three are held
        wait_for(b" 400 ", running, large)


def asked(service: Live, wire: bytes) -> bytes:
    """What comes first of an answer, or nothing."""
    with connect(service) as connection, suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(wire)
        return connection.recv(65536)
    return b""


def wait_for(status: bytes, service: Live, wire: bytes) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while status not in (answer := asked(service, wire)):
        assert time.monotonic() < give_up, answer
        time.sleep(0.02)


@pytest.mark.parametrize("late", [b"", b"eXIf"])
def test_photos_that_are_sent_quickly_and_decoded_slowly_are_bounded_and_hold_no_small_one_up(
    toy_store: Path, late: bytes
) -> None:
    """A flat PNG of any size is a few KB, and half a second's work; what is asked of the network is next to nothing."""
    side, count = 4000, 20
    flat = encoded(np.full((side, side, 3), 90, np.uint8)) + late
    with live(STYLIZE_MODEL_STORE=str(toy_store), STYLIZE_MAX_PIXELS=str(side * side)) as service:

        def post(content: bytes) -> httpx.Response:
            url = f"{service.url}/stylize?style=red&max_side=16"
            return httpx.post(url, content=content, headers={"Content-Type": "image/png"}, timeout=PATIENCE_S)

        with ThreadPoolExecutor(count + 1) as clients:
            flats = [clients.submit(post, flat) for _ in range(count)]
            service.wait_for("stylize_in_flight", None)
            assert clients.submit(post, PNG).result().status_code == 200
            assert not all(answered.done() for answered in flats)
            found = [answered.result() for answered in flats]
        refused = [answered for answered in found if answered.status_code == 503]
        assert {answered.status_code for answered in found} == {200, 503}
        assert len(found) - len(refused) >= 8
        for answered in refused:
            assert "decoded" in answered.json()["detail"]
            assert int(answered.headers["retry-after"]) >= 1
        service.wait_for("stylize_in_flight", 0)
        assert post(flat).status_code == 200


def test_neighbours_wait_no_longer_under_bad_input(service: Live) -> None:
    """Slow, silent and endless clients by the hundred cost a neighbour nothing; only medians of turns are compared."""
    attacks = [
        b"POST /stylize?style=red HTTP/1.1\r\nHost: x\r\n",  # the rest of the head never comes
        request(b"x" * 5000, "style=red")[:-4999],
        b"POST /stylize?style=red HTTP/1.1\r\n" + CHUNKED + b"4\r\nabcd\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        request(PNG, "style=red", "multipart/form-data; boundary=b"),
    ]
    quiet, attacked = [], []
    with httpx.Client(timeout=PATIENCE_S, headers={"Content-Type": "image/png"}) as neighbour:

        def asked() -> float:
            started = time.perf_counter()
            assert neighbour.post(f"{service.url}/stylize?style=red", content=PNG).status_code == 200
            return time.perf_counter() - started

        for _ in range(4):  # in turn, so that what else the machine does is in both
            quiet += [asked() for _ in range(15)]
            with ExitStack() as attackers:
                for attack in attacks * 20:
                    attacker = attackers.enter_context(connect(service))
                    with suppress(OSError):
                        attacker.sendall(attack)
                attacked += [asked() for _ in range(15)]
    # 100 attackers at a time; one that was waited for would cost 1.5 s, the limit of an upload
    assert statistics.median(attacked) < 3 * statistics.median(quiet) + 0.05


def test_an_answer_that_nobody_takes_is_cut_and_holds_no_drain(toy_store: Path) -> None:
    photo = encoded(np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8), compress_level=0)
    answered = 'stylize_http_requests_total{code="200",method="POST",route="/stylize"}'
    with (
        live(STYLIZE_MODEL_STORE=str(toy_store), STYLIZE_SEND_TIMEOUT_S="2") as running,
        closing(socket.socket()) as deaf,
    ):
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(PATIENCE_S)
        deaf.connect(running.address)
        deaf.sendall(request(photo, "style=red"))
        running.wait_for(answered, 1)
        assert running.metric("stylize_in_flight") == 0
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE_S) == 0
        head, _, body = rest(deaf).partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length
        assert len(body) < int(length[1])  # 6 MB: more than the kernel keeps for a client


def test_connections_that_never_ask_keep_nobody_waiting(service: Live) -> None:
    idle = [socket.create_connection(service.address) for _ in range(200)]
    try:
        assert httpx.get(f"{service.url}/livez", timeout=PATIENCE_S).status_code == 200
    finally:
        for connection in idle:
            connection.close()
