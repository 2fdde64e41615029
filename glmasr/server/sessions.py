"""Tidies up what the page no longer needs: files, texts, and what Gradio keeps of sessions that have left."""

import asyncio
import time
from typing import Any

from fastapi import FastAPI

from .talks import Talks
from .uploads import KEEP, Uploads


async def tidy(app: FastAPI, uploads: Uploads) -> None:
    """Drops what is no longer needed, for ever. `app`: with the page in it, `page.add`."""
    mounted: Any = app.router.routes[-1]
    gradio_app = mounted.app.app
    talks: Talks = app.state.talks
    unread: dict[str, float] = {}
    while True:
        await asyncio.sleep(5)
        uploads.tidy()
        talks.tidy()
        tidy_sessions(gradio_app.get_blocks()._queue, unread)


def tidy_sessions(waiting: Any, unread: dict[str, float]) -> None:
    """`waiting`: Gradio's queue; `unread`: since when the messages of a session are unread. TRAP: of a client that
    leaves while it listens Gradio keeps a task that sends signs of life, and of one that never listens all messages;
    both for ever."""
    now = time.monotonic()
    for session, messages in list(waiting.pending_messages_per_session.items()):
        if messages.empty():
            unread.pop(session, None)
        elif now > unread.setdefault(session, now) + KEEP:
            del waiting.pending_messages_per_session[session]
            for event in waiting.pending_event_ids_session.pop(session, ()):
                waiting.event_ids_to_events.pop(event, None)
    for session in set(unread) - set(waiting.pending_messages_per_session):
        del unread[session]
    for task in asyncio.all_tasks():
        coroutine: Any = task.get_coro()
        is_heartbeat = coroutine.__qualname__.endswith("queue_data_helper.<locals>.heartbeat")
        frame = coroutine.cr_frame if is_heartbeat else None
        if frame and frame.f_locals["session_hash"] not in waiting.pending_messages_per_session:
            task.cancel()
