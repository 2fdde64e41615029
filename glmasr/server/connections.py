"""Connections that no client can hold for longer than the limits say: uvicorn's own wait for ever for a client that
sends a byte now and then, or doesn't take its answer."""

import asyncio
import logging
import select
from collections.abc import Iterable
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from . import gate

HEADERS = (
    20.0  # seconds in which a request has to be there, but for its body, after the connection or the answer before
)
READ = 2**14  # bytes that are parsed in one go; h11 is slow, and all others wait meanwhile
CHUNKS, SMALLEST = (
    256,
    128,
)  # after so many chunks of a body they have to have so many bytes on average; each costs as much as a large one
MESSAGE = 15 * 2**20  # bytes of a WebSocket's message, as OpenAI has it: three minutes of sound
FRAMES = 1024  # of a message, at most
UNREAD = 2**20  # bytes that a client may let lie while it sends pings
GONE = "glmasr.gone"  # an extension of a WebSocket's scope: an event that is set when the client has left
SILENT = logging.getLogger("glmasr.sockets")  # what uvicorn logs of a WebSocket quotes what its client sent
SILENT.disabled = True
TICK = 1.0
LEFT = getattr(select, "POLLRDHUP", 0)  # that the other side sends no more; Linux only


class Parser(h11.Connection):
    """Counts the chunks of a body."""

    chunks = size = 0

    def next_event(self) -> Any:
        """h11's next event. A body of many tiny chunks is a RemoteProtocolError, which uvicorn answers with a 400."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self.chunks = self.size = 0
        elif isinstance(event, h11.Data):
            self.chunks, self.size = self.chunks + event.chunk_start, self.size + len(event.data)
            if self.chunks > CHUNKS and self.size < self.chunks * SMALLEST:
                raise h11.RemoteProtocolError("chunks too small")
        return event


class Connection(H11Protocol):
    """uvicorn's connection, closed where the client is too slow to send a request or take an answer, or has left."""

    def __init__(self, config: Config, *args: Any, **more: Any):
        super().__init__(config, *args, **more)
        self.conn = Parser(h11.SERVER)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Limits each read to READ bytes, and starts the timers of `check`."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = READ
        self.taken = self.idle = (
            self.loop.time()
        )  # when the client last took all that was sent, and when no request was there

    def send_400_response(self, msg: str) -> None:
        """TRAP: uvicorn's own fails where the answer has begun, and the rest of the body is damaged."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.abort()

    def resume_writing(self) -> None:
        """The client has caught up with what was sent: the timer for a stalled client restarts."""
        super().resume_writing()
        self.taken = self.loop.time()

    def on_response_complete(self) -> None:
        """The connection is idle: the timer for the next request starts."""
        super().on_response_complete()
        self.idle = self.loop.time()

    def check(self, now: float) -> None:
        """Closes the connection where the client is too slow, or has left. Between the calls there is a second."""
        if not self.transport.get_write_buffer_size():
            self.taken = now
        elif now > self.taken + gate.STALL:  # TRAP: to close would wait until all is sent
            self.transport.abort()
        if self.cycle is None or self.cycle.response_complete:
            if (
                self.conn.their_state is h11.SEND_BODY and now > self.idle + gate.LINGER
            ):  # it was refused, and goes on sending
                self.transport.abort()
            elif now > self.idle + HEADERS:
                self.transport.close()
        elif self.flow.read_paused and left(self.transport):
            self.transport.abort()


class Socket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, closed where the client is too slow to take what it is sent."""

    def __init__(self, config: Config, *args: Any, **more: Any):
        super().__init__(config, *args, **more)
        self.logger = self.conn.logger = SILENT
        self.taken = self.loop.time()  # when the client last took all that was sent
        self.gone = asyncio.Event()

    def handle_connect(self, event: Any) -> None:
        """Beside what ASGI has, the application gets GONE."""
        super().handle_connect(event)
        if not self.handshake_complete:
            extensions: Any = self.scope["extensions"]
            extensions[GONE] = self.gone

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, whatever it sent before that nobody has read."""
        super().connection_lost(exc)
        self.gone.set()

    def resume_writing(self) -> None:
        """The client has caught up: the timer for a stalled client restarts."""
        super().resume_writing()
        self.taken = self.loop.time()

    def handle_ping(self) -> None:
        """Answers, unless the client sends ping after ping and takes no answer."""
        super().handle_ping()
        if self.transport.get_write_buffer_size() > UNREAD:
            self.transport.abort()

    def handle_cont(self, event: Any) -> None:
        """Part of a message. TRAP: empty ones count nothing towards its size."""
        super().handle_cont(event)
        if len(self.frames) > FRAMES:
            self.transport.abort()

    def shutdown(self) -> None:
        """At the end of the server. Once it is open, `realtime.py` says goodbye."""
        if not self.handshake_complete:
            super().shutdown()

    def check(self, now: float) -> None:
        """Closes the connection where the client is too slow."""
        if not self.transport.get_write_buffer_size():
            self.taken = now
        elif now > self.taken + gate.STALL:
            self.transport.abort()
        if self.read_paused and left(self.transport):
            self.transport.abort()


def left(transport: asyncio.Transport) -> bool:
    """Whether the client has closed its side. TRAP: a transport that doesn't read, for it holds enough, doesn't see
    that."""
    if not LEFT or transport.is_closing():
        return False
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), LEFT)
    return bool(poll.poll(0))


async def watch(connections: Iterable[object]) -> None:
    """Checks all connections, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(TICK)
        for connection in list(connections):
            if isinstance(connection, Connection | Socket):
                connection.check(loop.time())
