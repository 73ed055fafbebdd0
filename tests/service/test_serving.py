"""Connections as the service makes them."""

import asyncio
import functools
import socket

import pytest
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

from service.serving import LAST_TURNS_S, Config, Connection, Server


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_answer_s_body_does_not_wait_for_its_head_to_be_acknowledged(host: str) -> None:
    """Not timed: a kernel that acknowledges at once would hide it. Nagle's algorithm is off, or it is not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, 0), family=family)  # as service.__main__ makes it
    except OSError:
        pytest.skip(f"NOT TESTED: no {host} here")

    async def nodelay() -> list[int]:
        config, state = Config(PlainTextResponse("here"), send_timeout_s=60), ServerState()
        config.load()
        protocol = functools.partial(Connection, config, state, {})
        async with await asyncio.get_running_loop().create_server(protocol, sock=listener):
            reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            found = [
                connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                for connection in state.connections
                if isinstance(connection, Connection)
            ]
            writer.close()
            await writer.wait_closed()
            return found

    (found,) = asyncio.run(nodelay())
    assert found


def test_whom_the_kernel_took_as_the_door_closed_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the loop has no turn to accept it before its listener closes, it would be reset."""
    listener, sleep = socket.create_server(("127.0.0.1", 0)), asyncio.sleep
    clients: list[socket.socket] = []

    async def asked_meanwhile(delay_s: float) -> None:
        await sleep(delay_s)
        if delay_s == LAST_TURNS_S:  # from here on the loop has no turn until the door is closed
            clients.append(socket.create_connection(listener.getsockname(), timeout=30))
            clients[0].sendall(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")

    async def nothing() -> None:
        """At SIGHUP."""

    async def scene() -> bytes:
        config = Config(PlainTextResponse("here"), send_timeout_s=60)
        config.lifespan = "off"
        server = Server(config, lambda: None, 0, nothing)
        served = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await sleep(0.01)
        monkeypatch.setattr(asyncio, "sleep", asked_meanwhile)
        server.should_exit = True
        await served
        return await asyncio.to_thread(clients[0].recv, 1000)

    assert asyncio.run(scene()).startswith(b"HTTP/1.1 200")
    clients[0].close()
