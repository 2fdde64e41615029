"""Events with a beat between them, for functions of Gradio's."""

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeVar

Event = TypeVar("Event")


async def ticking(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event | None, None]:
    """The same events, and None in every second without one. TRAP: Gradio looks whether a user is still there when a
    function yields, and at no other time."""
    task: asyncio.Future[Event] | None = None
    try:
        while True:
            task = task or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([task], timeout=1.0)
            if done:
                found, task = task, None
                try:
                    yield found.result()
                except StopAsyncIteration:
                    return
            else:
                yield None
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await events.aclose()
