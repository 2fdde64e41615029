"""Connections that nobody can hold for longer than the limits say: uvicorn's own wait for ever for a client that sends a byte now and then,
or doesn't take its answer."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from . import gate

HEADERS = 20.0                  # seconds in which a request has to be there, but for its body, after the connection or the answer before
READ = 2 ** 14                  # bytes that are parsed in one go; h11 is slow, and all others wait meanwhile
SMALLEST_CHUNK = 32             # bytes that chunks of a body have to have on average; each costs as much as a large one
TICK = 1.0


class Connection(H11Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = READ
        self.taken = self.idle = self.loop.time()       # when the client last took all that was sent, and when no request was there

    def data_received(self, data: bytes) -> None:
        if len(data) > READ // 4 and data.count(b"\r\n") > 2 * len(data) / SMALLEST_CHUNK and self.chunked():
            self.transport.abort()
            return
        super().data_received(data)

    def chunked(self) -> bool:
        return self.cycle is not None and self.cycle.more_body and any(name == b"transfer-encoding" for name, _ in self.headers)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.taken = self.loop.time()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.idle = self.loop.time()

    def check(self, now: float) -> None:
        """Closes the connection where the client is too slow. Between the calls there is a second."""
        if not self.transport.get_write_buffer_size():
            self.taken = now
        elif now > self.taken + gate.STALL:             # TRAP: to close would wait until all is sent
            self.transport.abort()
        if (self.cycle is None or self.cycle.response_complete) and now > self.idle + HEADERS:
            self.transport.close()


async def watch(connections: set[Connection]) -> None:
    """Checks all connections, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(TICK)
        for connection in list(connections):
            connection.check(loop.time())
