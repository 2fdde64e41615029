"""What programs get: a transcript in each of OpenAI's formats, as one body or as a stream of events."""

import json
import math
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack
from typing import Any

from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from ..transcription.language import NAMES, join, spaced
from ..writers.formats import WRITERS, record
from .messages import PartReady
from .problems import as_problem
from .request_queue import Event, Finished


def answer(
    finished: Finished, task: str, response_format: str, granularities: Collection[str] = ("segment",)
) -> Response:
    """The response to a recording in one of OpenAI's formats: json, verbose_json, text, or one of WRITERS.
    `granularities`: what verbose_json has, `forms.GRANULARITIES`."""
    if response_format == "json":
        return JSONResponse(as_json(finished))
    if response_format == "verbose_json":
        return JSONResponse(as_verbose_json(finished, task, granularities))
    if response_format == "text":
        return PlainTextResponse(f"{finished.transcript.text}\n")
    return PlainTextResponse(WRITERS[response_format](finished.transcript))


def as_json(finished: Finished) -> dict[str, Any]:
    """OpenAI's format json: the text and the seconds of sound, rounded up; and the warnings, where there are any."""
    transcript = finished.transcript
    warnings = {"warnings": transcript.warnings} if transcript.warnings else {}
    usage = {"type": "duration", "seconds": math.ceil(transcript.seconds)}
    return {"text": transcript.text, "usage": usage, **warnings}


def as_verbose_json(finished: Finished, task: str, granularities: Collection[str] = ("segment",)) -> dict[str, Any]:
    """With the segments that have a text, with the words, or with both. As OpenAI's, segments begin with the space that
    stands before them, and the language of a translation is that of the text."""
    known = record(finished.transcript)
    language = "en" if task == "translate" else known["language"]
    texts = spaced([segment["text"] for segment in known["segments"]])
    segments = [
        {
            "id": number,
            "seek": round(100 * seek),
            "start": segment["start"],
            "end": segment["end"],
            "text": text,
            "tokens": tokens,
            "temperature": segment["temperature"],
            "avg_logprob": segment["mean_logprob"],
            "compression_ratio": segment["compression_ratio"],
            "no_speech_prob": segment["no_speech"],
        }
        for number, (segment, text, tokens, seek) in enumerate(
            zip(known["segments"], texts, finished.tokens, finished.seeks, strict=True)
        )
    ]
    words = [
        {"word": word.text, "start": word.start, "end": word.end, "probability": word.probability}
        for segment in finished.transcript.segments
        for word in segment.words
    ]
    return {
        "task": task,
        "language": NAMES.get(language, language),
        "duration": known["seconds"],
        "text": known["text"],
        **({"segments": segments} if "segment" in granularities else {}),
        **({"words": words} if "word" in granularities else {}),
        **as_json(finished),
    }


# ---- a stream --------------------------------------------------------------------------------------------------------


class EventStream(StreamingResponse):
    """Closes `stack` when it was sent, or can't be sent any more."""

    def __init__(self, events: AsyncIterator[str], stack: AsyncExitStack):
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: sends the events, then closes the stack, after an error or a cancellation as well."""
        async with self.stack:
            await super().__call__(scope, receive, send)


async def as_events(events: AsyncIterator[Event], first: Event) -> AsyncIterator[str]:
    """OpenAI's events: `transcript.text.delta` for each part, `transcript.text.done`. An error is the last event."""
    sent, event = "", first
    try:
        while not isinstance(event, Finished):
            if isinstance(event, PartReady):
                text = join([sent, *(segment.text for segment in event.part.segments)])
                if text != sent:
                    yield _event({"type": "transcript.text.delta", "delta": text[len(sent) :]})
                sent = text
            event = await anext(events)
        yield _event({"type": "transcript.text.done", **as_json(event)})
    except Exception as error:  # the status has been sent
        yield _event(as_problem(error).content(), "error")


def _event(content: dict[str, Any], name: str = "") -> str:
    # TRAP: a text may hold a line break that JSON leaves alone and an event stream does not; ASCII has none.
    return (f"event: {name}\n" if name else "") + f"data: {json.dumps(content)}\n\n"


# ---- errors, as the OpenAPI document has them ------------------------------------------------------------------------


class Failure(BaseModel):
    """What is answered where something went wrong, as OpenAI has it: `problems.Problem`."""

    class Error(BaseModel):
        """The error itself: `type` and `code` are for programs, `message` is for people, `param` is the field."""

        message: str
        type: str
        param: str | None
        code: str | None

    error: Error


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": Failure}
    for status, text in (
        (400, "a field that is missing, wrong or not supported, or a file that is no recording"),
        (401, "the API key is missing or wrong"),
        (403, "the request was made for another server, or by a page of another origin"),
        (404, "no such model"),
        (408, "the upload is too slow"),
        (413, "the upload is too large"),
        (415, "a charset other than UTF-8"),
        (429, "the queue is full; `Retry-After` says when to try again"),
        (500, "a defect of the server"),
        (503, "the server is about to end"),
        (504, "it took longer than the server's time limit"),
        (507, "no room on the disk or in memory; `Retry-After` says when to try again"),
    )
}
ERRORS[422] = ERRORS[400]  # or FastAPI promises its own ones; there are none: `api.Application`
