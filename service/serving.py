"""The HTTP server and its end: nothing that was accepted is lost.

uvicorn on its own stops listening at the first signal, resets connections that nobody has accepted yet, and ends by
that signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

LAST_CALL_S = 1.0  # for a connection that was just made to send its request
HEAD_TIMEOUT_S = 10.0  # for a request's head to arrive
MAX_HEAD_BYTES = 32 * 2**10
INTERRUPT_S = 2  # for what goes on at SIGINT


class Server(uvicorn.Server):
    """Serves until SIGTERM (drain: ``on_drain``, the grace of ``drain_delay_s``, everything accepted is finished) or
    SIGINT (what goes on has two seconds; a second one ends at once). SIGHUP is ``on_hangup``."""

    def __init__(
        self,
        config: Config,
        on_drain: Callable[[], None],
        drain_delay_s: float,
        on_hangup: Callable[[], Coroutine[None, None, object]],
        admin: tuple[Config, socket.socket] | None = None,
    ) -> None:
        super().__init__(config)
        self._admin = admin
        self._on_hangup = on_hangup
        self._reloads: set[asyncio.Task[object]] = set()
        self._on_drain = on_drain
        self._drain_delay_s = drain_delay_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's, which raises the signals again at the end: the process is to exit with 0."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.drain)
        loop.add_signal_handler(signal.SIGINT, self.interrupt)
        loop.add_signal_handler(signal.SIGHUP, self.hang_up)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and the admin's app beside it on a socket of its own."""
        await super().startup(sockets)
        if self._admin:
            config, listener = self._admin
            config.load()
            loop = asyncio.get_running_loop()
            protocol = functools.partial(Connection, config, self.server_state, {})
            self.servers.append(await loop.create_server(protocol, sock=listener))

    def drain(self) -> None:
        """Go on answering during the grace, then end."""
        log.info("draining: not ready from now on, ending in %g s", self._drain_delay_s)
        self._on_drain()
        asyncio.get_running_loop().call_later(self._drain_delay_s, self._end)

    def interrupt(self) -> None:
        """End soon; asked again, at once."""
        self.force_exit = self.should_exit
        self.config.timeout_graceful_shutdown = INTERRUPT_S
        self._on_drain()
        self._end()

    def hang_up(self) -> None:
        """As daemons do: read again what there is to serve."""
        task = asyncio.get_running_loop().create_task(self._on_hangup())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    def _end(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door behind whoever is through it, let them ask, and only then hang up on the idle."""
        for listener in sockets or []:
            listener.listen(0)  # the kernel takes no more; those that it took are accepted in the next turns
        await asyncio.sleep(0.05)
        for server in self.servers:
            server.close()
        give_up = asyncio.get_running_loop().time() + LAST_CALL_S
        while any(_has_not_asked(connection) for connection in self.server_state.connections):
            if asyncio.get_running_loop().time() > give_up or self.force_exit:
                break
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


class Config(uvicorn.Config):
    """uvicorn's, for our connections: an answer is taken within ``send_timeout_s``, or the connection is cut."""

    def __init__(self, app: ASGIApp, send_timeout_s: float) -> None:
        super().__init__(
            app,
            http=Connection,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        self.send_timeout_s = send_timeout_s


class Connection(H11Protocol):
    """Unlike uvicorn's, it waits for a bounded time for the head of a request, however slowly the bytes come, and for
    its client to take the answer: else one that never reads would hold its buffer, and the drain, for ever."""

    config: Config
    _waiting: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio sees to it only where a socket says that it is TCP, which those of a listener of our own do not:
        # an answer's body waited 44 ms for the client's kernel to acknowledge its head (measured).
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=0)  # paused while there is anything that the kernel did not take
        self._watch_head(begun=True)

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self._sending:
            self._sending = self.loop.call_later(self.config.send_timeout_s, self._not_taken)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch_sending()

    def data_received(self, data: bytes) -> None:
        """A head is fed in pieces, for h11 measures only what is not complete yet."""
        while data and not self.transport.is_closing():
            piece = data[: MAX_HEAD_BYTES // 8] if self.conn.their_state is h11.IDLE else data
            super().data_received(piece)
            data = data[len(piece) :]
        self._watch_head(begun=bool(self.conn.trailing_data[0]))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._watch_head(begun=False)
        self._unwatch_sending()

    def _watch_head(self, begun: bool) -> None:
        waits = begun and self.conn.their_state is h11.IDLE
        if self._waiting and not waits:
            self._waiting.cancel()
            self._waiting = None
        elif waits and not self._waiting:
            self._waiting = self.loop.call_later(HEAD_TIMEOUT_S, self._too_slow)

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            headers = [("Content-Length", "0"), ("Connection", "close")]
            self.transport.write(self.conn.send(h11.Response(status_code=408, headers=headers)) or b"")
            self.transport.close()

    def _unwatch_sending(self) -> None:
        if self._sending:
            self._sending.cancel()
            self._sending = None

    def _not_taken(self) -> None:
        log.info("a client did not take its answer within %g s: its connection is cut", self.config.send_timeout_s)
        self.transport.abort()


def _has_not_asked(connection: object) -> bool:
    return getattr(connection, "cycle", None) is None
