"""Gradio's routes for files, made anew: uploads, downloads, and the connection that a page holds while it is open."""

import asyncio
import mimetypes
import os
import re
from collections.abc import AsyncIterator

import anyio
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile

from .call_body import BUFFER
from .calls import NAME
from .forms import FormRoute
from .problems import InvalidValue, UnknownUrl
from .uploads import Uploads

PULSE = 15.0  # seconds between two signs of life on the connection of an open page


def add_file_routes(app: FastAPI, uploads: Uploads, ended: asyncio.Event) -> None:
    """`ended`: the server is about to end."""
    forms = APIRouter(route_class=FormRoute, include_in_schema=False)

    @forms.post("/gradio_api/upload")
    async def upload(request: Request) -> list[str]:
        """The paths of the files of a form, by which a call names them."""
        files = [value for _, value in (await request.form()).multi_items() if isinstance(value, UploadFile)]
        paths: list[str] = []
        try:
            for file in files:
                paths.append(uploads.new(file.filename or ""))
                with open(paths[-1], "wb") as target:
                    while part := await file.read(BUFFER):
                        uploads.grow(paths[-1], len(part))
                        await anyio.to_thread.run_sync(target.write, part)
        except BaseException:  # a client that leaves too
            for path in paths:
                uploads.drop(path)
            raise
        return paths

    app.include_router(forms)

    @app.get("/gradio_api/upload_progress", include_in_schema=False)
    async def progress() -> Response:
        """What the page asks beside an upload. (The browser knows by itself how much it has sent.)"""
        return Response('data: {"msg": "done"}\n\n', media_type="text/event-stream")

    @app.head("/gradio_api/file={path:path}", include_in_schema=False)
    @app.get("/gradio_api/file={path:path}", include_in_schema=False)
    async def file(path: str) -> Response:
        """A recording for the page's player, or a result to download."""
        found = uploads.find(path)
        if not found:
            raise UnknownUrl("no such file was uploaded here or made here, or it is no longer kept")
        # TRAP: a page that somebody uploads would be one of this server's, and could do whatever its user may.
        kind = media_type(found)
        headers = {
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "Cache-Control": "private, no-store",
        }
        disposition = "inline" if kind.startswith(("audio/", "video/")) else "attachment"
        return FileResponse(
            found,
            media_type=kind,
            filename=os.path.basename(found),
            headers=headers,
            content_disposition_type=disposition,
        )

    @app.get("/gradio_api/heartbeat/{session}", include_in_schema=False)
    async def heartbeat(session: str) -> Response:
        """A page holds this connection while it is open."""
        if not re.fullmatch(NAME, session, re.ASCII):
            raise InvalidValue("the session is no text of letters, digits and dashes")
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(pulse(uploads, session, ended), media_type="text/event-stream", headers=headers)


async def pulse(uploads: Uploads, session: str, ended: asyncio.Event) -> AsyncIterator[str]:
    """Events for an open page, one every PULSE seconds, until it leaves or the server ends."""
    uploads.page_opened(session)
    try:
        while not ended.is_set():
            yield "data: ALIVE\n\n"
            with anyio.move_on_after(PULSE):
                await ended.wait()
    finally:
        uploads.page_left(session)


def media_type(path: str) -> str:
    """The media type by the suffix of a path if it is sound or video; anything else is application/octet-stream."""
    kind = mimetypes.guess_type(path)[0] or ""
    return kind if kind.startswith(("audio/", "video/")) else "application/octet-stream"
