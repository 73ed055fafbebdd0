"""Under load: the shipped network, real sockets."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import uvicorn

from service.app import create_app
from service.batching import Admission, Network, Place
from service.settings import Settings
from tests.service.live import PATIENCE_S, Live, answer, live, request
from tests.service.pictures import encoded, gradient, pixels
from tests.service.toy import VECTORS, write_conditional

SMALL = encoded(gradient(64, 64))
BIG_PIXELS = 1600 * 1200
BIG = encoded(gradient(1600, 1200), "JPEG")  # more than a second of two cores
DEPTH = 'stylize_queue_depth{model="deep"}'
RUNS = 'stylize_inference_duration_seconds_count{model="deep",provider="cpu"}'


@pytest.fixture(scope="module")
def service() -> Iterator[Live]:
    with live() as running:
        yield running


def test_500_requests_at_once_never_wait_above_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = 20 * 64 * 64
    waiting: list[int] = []
    admit = Admission.admit

    @contextmanager
    def watched(
        self: Admission, network: Network, pixels: int, give_up: float | None, source_pixels: int
    ) -> Iterator[Place]:
        with admit(self, network, pixels, give_up, source_pixels) as place:
            waiting.append(self.waiting_pixels)
            yield place

    monkeypatch.setattr(Admission, "admit", watched)
    app = create_app(Settings(provider="cpu", max_side=64, sync_max_pixels=64**2, max_queue_pixels=bound))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    address = listener.getsockname()
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        give_up = time.monotonic() + PATIENCE_S
        while httpx.get(f"http://127.0.0.1:{address[1]}/readyz").status_code != 200:
            assert time.monotonic() < give_up
            time.sleep(0.05)

        async def one() -> tuple[int, dict[str, str]]:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(request(SMALL))
            status, headers, _ = await answer(reader)
            writer.close()
            return status, headers

        async def burst() -> list[tuple[int, dict[str, str]]]:
            async with asyncio.timeout(PATIENCE_S):
                return await asyncio.gather(*(one() for _ in range(500)))

        answers = asyncio.run(burst())
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    assert all(int(headers["retry-after"]) >= 1 for status, headers in answers if status == 503)
    assert max(waiting) == bound
    assert len(waiting) == statuses.count(200)


def test_pictures_that_are_cut_short_fail_alone_among_others_of_their_size(service: Live) -> None:
    good = request(SMALL)
    bad = request(SMALL[: len(SMALL) * 3 // 4])

    async def one(wire: bytes) -> int:
        reader, writer = await asyncio.open_connection(*service.address)
        writer.write(wire)
        status, _, _ = await answer(reader)
        writer.close()
        return status

    async def burst() -> list[int]:
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.gather(*(one(bad if number % 3 == 1 else good) for number in range(30)))

    assert asyncio.run(burst()) == [400 if number % 3 == 1 else 200 for number in range(30)]
    service.wait_for("stylize_in_flight", 0)


def test_a_client_that_leaves_frees_its_place_and_stops_its_run(service: Live) -> None:
    expected = post(service, SMALL)
    runs = service.metric(RUNS)
    with socket.create_connection(service.address) as running, socket.create_connection(service.address) as queued:
        running.sendall(request(BIG, content_type="image/jpeg"))
        service.wait_for("stylize_in_flight", BIG_PIXELS)
        queued.sendall(request(BIG, content_type="image/jpeg"))
        service.wait_for(DEPTH, 1)  # hence the other runs
        queued.close()
        service.wait_for('stylize_abandoned_total{stage="queue"}', 1)
        assert service.metric(DEPTH) == 0
        running.close()
        service.wait_for('stylize_abandoned_total{stage="infer"}', 1)
    assert np.array_equal(pixels(post(service, SMALL)), pixels(expected))
    assert service.metric(RUNS) == runs + 1  # the big one did not run to its end
    assert service.metric("stylize_in_flight") == 0


@pytest.mark.parametrize("later", [False, True])
def test_a_client_that_leaves_stops_its_run_though_it_has_sent_another_request_ahead(
    service: Live, later: bool
) -> None:
    runs, stopped = service.metric(RUNS), service.metric('stylize_abandoned_total{stage="infer"}')
    big, small = request(BIG, content_type="image/jpeg"), request(SMALL)
    with socket.create_connection(service.address) as connection:
        connection.sendall(big if later else big + small)
        service.wait_for("stylize_in_flight", BIG_PIXELS)
        service.wait_for(DEPTH, 0)
        if later:
            connection.sendall(small)
            time.sleep(0.1)
    service.wait_for('stylize_abandoned_total{stage="infer"}', stopped + 1)
    assert service.metric("stylize_in_flight") == 0
    assert service.metric(RUNS) == runs  # it did not run to its end


def test_a_deadline_that_passes_during_a_run_stops_it(service: Live) -> None:
    expected = post(service, SMALL)
    runs, stopped = service.metric(RUNS), service.metric('stylize_abandoned_total{stage="infer"}')
    late = httpx.post(
        f"{service.url}/stylize?style=kiss&deadline_ms=400",
        content=BIG,
        headers={"Content-Type": "image/jpeg"},
        timeout=PATIENCE_S,
    )
    assert late.status_code == 504, late.text
    assert np.array_equal(pixels(post(service, SMALL)), pixels(expected))
    assert service.metric(RUNS) == runs + 1
    assert service.metric('stylize_abandoned_total{stage="infer"}') <= stopped + 1


def test_where_the_deadline_is_hopeless_a_request_is_turned_away_unread(service: Live) -> None:
    hurried = request(SMALL, "style=kiss&deadline_ms=1")
    with socket.create_connection(service.address) as running:
        running.sendall(request(BIG, content_type="image/jpeg"))
        service.wait_for("stylize_in_flight", BIG_PIXELS)
        service.wait_for(DEPTH, 0)

        async def ask(*sent: bytes) -> list[tuple[int, dict[str, str], bytes]]:
            reader, writer = await asyncio.open_connection(*service.address)
            answers = []
            for part in sent:
                writer.write(part)
                async with asyncio.timeout(PATIENCE_S):
                    answers.append(await answer(reader))
            writer.close()
            return answers

        twice = asyncio.run(ask(hurried, hurried))  # whole: the connection is kept
        assert [status for status, *_ in twice] == [503, 503]
        assert all("connection" not in headers and int(headers["retry-after"]) >= 1 for _, headers, _ in twice)
        ((status, headers, content),) = asyncio.run(ask(hurried[:-1]))  # the last byte never comes
        assert (status, headers["connection"]) == (503, "close")
        assert json.loads(content)["code"] == "saturated"
        running.close()
    service.wait_for("stylize_in_flight", 0)
    assert httpx.post(f"{service.url}/stylize?style=kiss", content=b"x").status_code == 415  # read again


def test_a_client_that_leaves_during_its_upload_is_counted(service: Live) -> None:
    with socket.create_connection(service.address) as connection:
        connection.sendall(request(BIG, content_type="image/jpeg")[:-10])
        time.sleep(0.1)
    service.wait_for('stylize_abandoned_total{stage="upload"}', 1)


def test_sigterm_loses_no_accepted_request() -> None:
    with live(STYLIZE_DRAIN_DELAY_S="2") as service:
        load = Load(service.address)
        codes: dict[str, int] = {}

        async def scene() -> None:
            clients = [asyncio.create_task(load.client(keep_alive=index % 2 == 0)) for index in range(8)]
            while load.answered < 40:
                await asyncio.sleep(0.02)
            service.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            before = load.answered
            for path in ("/readyz", "/livez"):
                codes[path] = (await asyncio.to_thread(httpx.get, service.url + path, timeout=PATIENCE_S)).status_code
            await asyncio.wait_for(asyncio.gather(*clients), PATIENCE_S)
            assert load.answered > before  # during the grace

        asyncio.run(scene())
        assert service.process.wait(PATIENCE_S) == 0
    assert codes == {"/readyz": 503, "/livez": 200}
    assert load.lost == []
    assert load.reused > 0


class Load:
    """Clients that ask again and again until nobody listens any more."""

    def __init__(self, address: tuple[str, int], query: str = "style=kiss") -> None:
        self.address = address
        self.request = request(SMALL, query)
        self.answered = self.reused = 0
        self.lost: list[str] = []

    async def client(self, keep_alive: bool) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(*self.address)
            except OSError:
                return
            try:
                await self._ask(reader, writer, keep_alive)
            except (asyncio.IncompleteReadError, OSError) as error:
                self.lost.append(repr(error))
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep_alive: bool) -> None:
        for count in range(1_000_000 if keep_alive else 1):
            writer.write(self.request)
            status, headers, body = await answer(reader)
            assert status == 200
            assert pixels(body).shape == (64, 64, 3)
            self.answered += 1
            self.reused += count > 0
            if headers.get("connection") == "close":
                return


def test_sigint_ends_a_run_and_the_process_with_0() -> None:
    with live() as service, socket.create_connection(service.address) as connection:
        connection.sendall(request(BIG, content_type="image/jpeg"))
        service.wait_for("stylize_in_flight", BIG_PIXELS)
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(PATIENCE_S) == 0


def post(service: Live, content: bytes) -> bytes:
    headers = {"Content-Type": "image/png"}
    answered = httpx.post(f"{service.url}/stylize?style=kiss", content=content, headers=headers, timeout=PATIENCE_S)
    assert answered.status_code == 200, answered.text
    return answered.content


def test_sighup_serves_a_new_style_loses_no_request_and_leaves_a_broken_store_alone(tmp_path: Path) -> None:
    store, said = tmp_path / "store", tmp_path / "said"
    write_conditional(store, "toy", {name: VECTORS[name] for name in ("photo", "red")})
    with said.open("w") as stderr, live(stderr, STYLIZE_MODEL_STORE=str(store)) as service:

        def styles() -> list[str]:
            listed = httpx.get(f"{service.url}/styles").json()["styles"]
            return [style["name"] for style in listed]

        async def scene() -> None:
            load = Load(service.address, "style=red")
            clients = [asyncio.create_task(load.client(keep_alive=True)) for _ in range(4)]
            write_conditional(store, "toy", {name: VECTORS[name] for name in ("photo", "red", "green")})
            service.process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(PATIENCE_S):
                while await asyncio.to_thread(styles) != ["green", "red"]:
                    await asyncio.sleep(0.02)
            (store / "toy/1/model.onnx").write_bytes(b"spoiled")
            service.process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(PATIENCE_S):
                while "the store was not reloaded" not in said.read_text():
                    await asyncio.sleep(0.02)
                before = load.answered
                while load.answered < before + 100:
                    await asyncio.sleep(0.02)
            for client in clients:
                client.cancel()
            assert load.lost == []

        asyncio.run(scene())
        assert styles() == ["green", "red"]
        assert httpx.get(f"{service.url}/readyz").status_code == 200


def test_a_style_that_a_reload_changed_is_painted_anew_by_the_same_request(tmp_path: Path) -> None:
    def painted(service: Live) -> int:
        answered = httpx.post(f"{service.url}/stylize?style=red", content=SMALL, headers={"Content-Type": "image/png"})
        return int(pixels(answered.content)[..., 0].mean())

    write_conditional(tmp_path, "toy", {name: VECTORS[name] for name in ("photo", "red")})
    with live(STYLIZE_MODEL_STORE=str(tmp_path)) as service:
        red = painted(service)
        assert painted(service) == red
        write_conditional(tmp_path, "toy", {"photo": VECTORS["photo"], "red": VECTORS["green"]})
        service.process.send_signal(signal.SIGHUP)
        give_up = time.monotonic() + PATIENCE_S
        while painted(service) == red:
            assert time.monotonic() < give_up
            time.sleep(0.02)


def test_reload_on_the_admin_s_port_says_what_was_refused(tmp_path: Path) -> None:
    write_conditional(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with live(STYLIZE_MODEL_STORE=str(tmp_path), STYLIZE_ADMIN_PORT=str(port)) as service:
        reload = f"http://127.0.0.1:{port}/-/reload"
        write_conditional(tmp_path, "second")
        answered = httpx.post(reload, timeout=PATIENCE_S)
        assert (answered.status_code, answered.json()) == (200, {"refused": []})
        assert httpx.get(f"{service.url}/styles/red").json()["models"] == ["second", "toy"]
        (tmp_path / "toy/1/model.onnx").write_bytes(b"spoiled")
        answered = httpx.post(reload, timeout=PATIENCE_S)
        assert answered.status_code == 409
        assert "toy/1" in answered.json()["refused"][0]
        assert httpx.get(f"{service.url}/styles/red").json()["models"] == ["second", "toy"]
        assert httpx.post(f"{service.url}/-/reload").status_code == 404
