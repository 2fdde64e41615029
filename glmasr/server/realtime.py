"""The realtime API: a WebSocket on which OpenAI's clients send sound and get text while somebody speaks.

    client -> `read` -> `Dialog.take` -> LiveSession -> the worker -> LiveSession -> `Dialog.answer` -> client

What a client may send is in `realtime_messages.py`, what the events mean in `realtime_events.py`, what may be set in
`realtime_settings.py`; here is what flows, and when a session ends.

What is unusual here: nothing is thrown away and nothing piles up. While more than `live_session.ROOM` seconds of sound
wait for the model, the client's next message isn't read, so it is the client that waits.
"""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..errors import GlmAsrError
from .connections import GONE
from .gate import REALTIME
from .live_session import LiveSession
from .messages import LiveSettings
from .problems import (
    Closing,
    InvalidValue,
    Problem,
    SessionExpired,
    SessionIdle,
    UnsupportedParameter,
    UnsupportedValue,
    as_problem,
)
from .realtime_events import Dialog, EventData, check_model
from .realtime_messages import read
from .request_queue import RequestQueue

IDLE = 300.0  # seconds without sound after which a session ends
LARGE = 2**18  # characters of a message, from which on it is read in a thread
TICK = 1.0
PROTOCOL = "realtime"  # which browsers ask for, beside the one with their key
OLDER = "openai-beta.realtime-v1"  # as a protocol; as a header  OpenAI-Beta: realtime=v1
FINE = {1000, 1001}  # codes with which a client ends a session


def add_realtime(
    app: FastAPI, queue: RequestQueue, names: tuple[str, ...], max_duration: float, adapted: Mapping[str, str]
) -> None:
    """Adds the WebSocket. `names`: of the model; `max_duration`: seconds of a session; `adapted`: of the names those of
    the model with an adapter -> the adapter."""

    @app.websocket(REALTIME)
    async def realtime(socket: WebSocket) -> None:
        try:
            check_address(socket, names)
            name = socket.query_params.get("model", names[0])
            session = queue.listen(LiveSettings(adapter=adapted.get(name, "")))
        except Problem as problem:  # TRAP: Starlette makes no answer of an error before the handshake
            queue.metrics.refused(problem.status)
            await problem.response()(socket.scope, socket.receive, socket.send)
            return
        first = name if name in adapted else names[0]
        dialog = partial(Dialog, session, tuple(dict.fromkeys((first, *names))), adapted=adapted)
        await Connection(socket, session, dialog, max_duration).run()


def check_address(socket: WebSocket, names: tuple[str, ...]) -> None:
    """Raises Problem for what the address asks for, other than a transcription by one of `names`."""
    query = socket.query_params
    for name in query:
        if name not in ("intent", "model"):
            raise UnsupportedParameter(
                f"{name[:100]} stands in the address; expected intent and model only", name[:100]
            )
        if len(query.getlist(name)) > 1:
            raise InvalidValue(f"{name} comes several times; send it once", name)
    if query.get("intent", "transcription") != "transcription":
        raise UnsupportedValue(
            f"intent is {query['intent'][:100]!r}; this server has transcription sessions only", "intent"
        )
    check_model(query.get("model", names[0]), names, "model")


class Connection:
    """One client's."""

    def __init__(
        self, socket: WebSocket, session: LiveSession, dialog: Callable[[bool, float], Dialog], max_duration: float
    ):
        self.socket, self.session, self.max_duration = socket, session, max_duration
        protocols = socket.scope.get("subprotocols", [])
        older = OLDER in protocols or socket.headers.get("openai-beta") == "realtime=v1"
        self.dialog = dialog(older, time.time() + max_duration)
        self.protocol = PROTOCOL if PROTOCOL in protocols else None
        self.last_sound = session.started
        self.answered = asyncio.Event()
        self.ending: Problem | None = None  # why no more is taken

    async def run(self) -> None:
        """From the handshake to the end."""
        with self.session:
            try:
                await self.socket.accept(self.protocol)
                await self.send(self.dialog.created())
                await first_of(self.listen(), self.tell(), self.watch(), self.leave())
            except WebSocketDisconnect as left:
                self.session.outcome = "done" if left.code in FINE else "left"
            except (Problem, GlmAsrError) as error:
                self.session.outcome = type(error).__name__
                await self.end(as_problem(error))

    async def send(self, event: EventData) -> None:
        """Sends an event. Waits where the client is slow, and raises WebSocketDisconnect where it has left."""
        try:
            await self.socket.send_text(
                json.dumps(event)
            )  # TRAP: a text may have half a UTF-16 character; ASCII has none
        except RuntimeError:  # after the close of its own side
            raise WebSocketDisconnect(1006) from None

    async def end(self, problem: Problem) -> None:
        """Says why, and closes."""
        try:
            await self.send(self.dialog.ended(problem))
            code = 1001 if isinstance(problem, Closing) else 1011 if problem.status >= 500 else 1008
            await self.socket.close(code, problem.code)
        except (WebSocketDisconnect, RuntimeError):
            self.session.outcome = "left"

    async def listen(self) -> None:
        """What the client sends."""
        while True:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            if self.ending:
                continue
            before = self.session.seconds
            text = message.get("text")
            content = message["bytes"] if text is None else text
            large = len(content) > LARGE
            for event in self.dialog.take(await asyncio.to_thread(read, content) if large else read(content)):
                await self.send(event)
            if self.session.seconds > before:
                self.last_sound = time.monotonic()
            await self.session.room()
            while self.dialog.changing:
                self.answered.clear()
                await self.answered.wait()
            await asyncio.sleep(0)  # TRAP: a thousand tiny messages come at once, and others wait meanwhile

    async def tell(self) -> None:
        """What the worker says. Raises Problem at the end of the server."""
        while True:
            try:
                answer = await self.session.heard()
            except Closing as closing:
                if self.ending:  # it can't be waited for any more
                    raise
                self.ending = closing
                self.session.finish()
                continue
            for event in self.dialog.answer(answer):
                await self.send(event)
            self.answered.set()
            if self.ending and self.session.done:
                raise self.ending

    async def leave(self) -> None:
        """Raises WebSocketDisconnect where the client has left, while `listen` waits for something else."""
        gone = self.socket.scope["extensions"].get(GONE, asyncio.Event())
        await gone.wait()
        raise WebSocketDisconnect(1006)

    async def watch(self) -> None:
        """Raises Problem where the session is idle, or lasts too long."""
        while True:
            await asyncio.sleep(TICK)
            now, most = time.monotonic(), self.max_duration
            if max(now - self.session.started, self.session.seconds) > most:
                raise SessionExpired(f"the session lasted {most:g} s, which is as long as one may; begin another one")
            if self.session.unanswered:
                self.last_sound = now
            elif now - self.last_sound > IDLE:
                raise SessionIdle(f"no sound came for {IDLE:g} s; begin another session when somebody speaks")


async def first_of(*courses: Coroutine[Any, Any, None]) -> None:
    """Runs them until one ends or fails, and raises what it raises."""
    tasks = [asyncio.ensure_future(course) for course in courses]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
