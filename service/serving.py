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
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

log = logging.getLogger(__name__)

LAST_TURNS_S = 0.05  # for the loop to accept what the kernel has taken
LAST_CALL_S = 2.0  # for a connection that was just made to send its request
HEAD_TIMEOUT_S = 10.0  # for a request's head to arrive
MAX_HEAD_BYTES = 32 * 2**10
MOST_PIPELINED = 2  # requests that are read ahead of their turn, each up to uvicorn's mark of 64 KiB
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
            listener.listen(0)  # the kernel takes one more at most; those that it took are accepted in the next turns
        await asyncio.sleep(LAST_TURNS_S)
        loop = asyncio.get_running_loop()
        last = [connection for listener in sockets or [] for connection in _accepted(listener)]
        for server in self.servers:
            server.close()
        for connection in last:
            protocol = functools.partial(Connection, self.config, self.server_state, self.lifespan.state)
            await loop.connect_accepted_socket(protocol, connection)
        give_up = loop.time() + LAST_CALL_S
        while any(_has_not_asked(connection) for connection in self.server_state.connections):
            if loop.time() > give_up or self.force_exit:
                break
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)


class Config(uvicorn.Config):
    """uvicorn's, for our connections: an answer is taken within ``send_timeout_s``, or the connection is cut."""

    def __init__(self, app: ASGIApp, send_timeout_s: float) -> None:
        super().__init__(
            app,
            loop="uvloop",
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        self.send_timeout_s = send_timeout_s


class Connection(HttpToolsProtocol):
    """Unlike uvicorn's, it bounds a request's head, in bytes and in time, however slowly they come; it waits for a
    bounded time for its client to take the answer, else one that never reads would hold its buffer, and the drain, for
    ever; and what cannot be read is refused after what came before it was answered."""

    config: Config
    _in_head = True  # the next byte belongs to a head
    _begun = True  # something of that head has come; a connection just made is to send one
    _unread_bytes = 0  # came since the parser last found a head or a piece of a body
    _running: RequestResponseCycle | None = None
    _refusal: bytes | None = None
    _again = b""  # the head of a request that is to be read again
    _waiting: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # The loop sees to it only where a socket says that it is TCP, which those of a listener of our own may not:
        # an answer's body waited 44 ms for the client's kernel to acknowledge its head (measured).
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=0)  # paused while there is anything that the kernel did not take
        self._watch_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self._sending:
            self._sending = self.loop.call_later(self.config.send_timeout_s, self._not_taken)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch_sending()

    def data_received(self, data: bytes) -> None:
        """A head is fed in pieces, for the parser keeps what is not complete without a bound."""
        self._begun = self._begun or self._in_head
        while data and not self._refusal and not self.transport.is_closing():
            piece = data[: MAX_HEAD_BYTES - self._unread_bytes] if self._in_head else data
            self._unread_bytes += len(piece)
            self._feed(piece)
            if self._unread_bytes >= MAX_HEAD_BYTES:
                self._refuse(400)
            data = data[len(piece) :]
        self._watch_head()

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:  # where the head ends: the parser would not read the body
            again, self._again = self._again, b""
            self.parser = httptools.HttpRequestParser(self)  # this one reads no more after a "Connection: close"
            self._feed(again + data[offer.args[0] :])
        except httptools.HttpParserError:
            self._refuse(400)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = True

    def on_headers_complete(self) -> None:
        """An offer of another protocol is passed over (RFC 9110, 7.8): its request is read again without it.

        Raises ValueError, hence 400, where the request does not say one host (RFC 9112, 3.2).
        """
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._again = _without_upgrade(self.parser.get_method(), self.url, self.headers)
            return
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise ValueError("one Host is required")
        self._in_head = self._begun = False
        self._unread_bytes = 0
        super().on_headers_complete()
        if len(self.pipeline) <= MOST_PIPELINED:  # who reads no more does not hear that the client has left
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._again:
            return
        self._in_head, self._begun = True, False
        self._unread_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if len(self.pipeline) > MOST_PIPELINED:  # that went on reading, however many there are
            self.flow.pause_reading()
        if self._refusal and self._running and self._running.response_complete:
            self._hang_up(self._refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._running:  # unlike uvicorn's, which tells the request that came last alone
            self._running.disconnected = True
            self._running.message_event.set()
        self._begun = False
        self._watch_head()
        self._unwatch_sending()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _watch_head(self) -> None:
        if self._waiting and not self._begun:
            self._waiting.cancel()
            self._waiting = None
        elif self._begun and not self._waiting:
            self._waiting = self.loop.call_later(HEAD_TIMEOUT_S, self._refuse, 408)

    def _refuse(self, status: int) -> None:
        """Answer what cannot be read once all that was read is answered, and hang up."""
        answer = STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n"
        broken = self.cycle if self.cycle and self.cycle.more_body else None
        self.pipeline = deque(waiting for waiting in self.pipeline if waiting[0] is not broken)
        running = self._running if self._running and not self._running.response_complete else None
        if running and running is not broken:
            self._refusal = answer
        else:
            self._hang_up(b"" if running and running.response_started else answer)

    def _hang_up(self, last_words: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(last_words)
            self.transport.close()

    def _unwatch_sending(self) -> None:
        if self._sending:
            self._sending.cancel()
            self._sending = None

    def _not_taken(self) -> None:
        log.info("a client did not take its answer within %g s: its connection is cut", self.config.send_timeout_s)
        self.transport.abort()


def _without_upgrade(method: bytes, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A head without its Upgrade."""
    lines = [method + b" " + url + b" HTTP/1.1"]
    for name, value in headers:
        if name == b"connection":
            value = b",".join(token for token in value.split(b",") if token.strip().lower() != b"upgrade")
        if name != b"upgrade":
            lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """Those that wait to be accepted: what closes with its listener is reset."""
    listener.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)
            yield connection


def _has_not_asked(connection: object) -> bool:
    return getattr(connection, "cycle", None) is None
