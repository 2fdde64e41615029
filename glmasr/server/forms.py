"""What programs may ask for: the forms of OpenAI's transcriptions and translations, checked.

What is unusual here: whatever this server can't do is an error that says so. No field is accepted and ignored, not even
an unknown one.
"""

import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar, Literal

import anyio
from fastapi import Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from ..transcription.fallback import TEMPERATURES
from ..transcription.hotwords import listed, parse
from ..transcription.options import Options
from .gate import ROUTES, SLACK
from .messages import Ready
from .problems import InvalidValue, MissingParameter, Problem, TooLarge, UnsupportedParameter, UnsupportedValue

MOST_FIELDS = 50  # of a form
TIMED = ("srt", "vtt", "verbose_json")  # formats with times
GRANULARITIES = ("segment", "word")  # of times; as of OpenAI, the first one where none is asked for


class Translation(BaseModel):
    """The fields of OpenAI's translation that this server supports."""

    model_config = ConfigDict(extra="forbid")
    task: ClassVar[str] = "translate"

    file: UploadFile = Field(
        description="the recording: WAV, FLAC, OGG, MP3, AIFF, AU, CAF; with ffmpeg on the server also M4A, MP4, "
        "WEBM, ..."
    )
    model: str = Field(description="as `/v1/models` names it")
    prompt: str = Field("", description="of a Whisper: what was said before. GLM-ASR takes none")
    hotwords: str = Field(
        "",
        description="not of OpenAI's API. Names that should be spelled right, between commas or a line each, with a "
        "weight after a colon where one counts more: GLM-ASR, Kowloon Tong:2",
    )
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = Field(
        "json", description="the last three with times"
    )
    temperature: float = Field(
        0.0, ge=0, le=1, allow_inf_nan=False, description="0: the best text is searched; above: it is sampled"
    )

    @property
    def granularities(self) -> frozenset[str]:
        """Which of GRANULARITIES `verbose_json` has."""
        return frozenset(GRANULARITIES[:1])

    def options(self, facts: Ready, max_duration: float) -> Options:
        """Of the pipeline, for a model with these facts. Raises Problem for what isn't supported."""
        if self.task not in facts.tasks:
            raise UnsupportedValue(
                f"{self.model} doesn't translate: its vocabulary has no token for it; expected a Whisper of many "
                f"languages, or a request to {ROUTES['transcribe']} for the text as it was spoken",
                "model",
            )
        # As openai-whisper: from there on, what is tried while a text fails the checks.
        temperatures = (self.temperature, *(value for value in TEMPERATURES if value > self.temperature))
        timestamps = (facts.timestamps and self.response_format in TIMED) or None
        return Options(
            self.task,
            temperatures=temperatures,
            max_duration=max_duration,
            timestamps=timestamps,
            hotwords=parse(listed(self.hotwords)),
            prompt=self.prompt,
        )


class Transcription(Translation):
    """The fields of OpenAI's transcription that this server supports."""

    task: ClassVar[str] = "transcribe"

    language: str = Field(
        "auto",
        max_length=40,
        description="zh, yue, en, or what the model supports besides; by default it is detected",
    )
    timestamp_granularities: list[str] = Field(
        [],
        alias="timestamp_granularities[]",
        description="segment (if none is asked for), word, or both; of verbose_json only. A word has `word`, `start`, "
        "`end` and, not of OpenAI's API, `probability`",
    )
    track: str = Field(
        "",
        pattern="^([1-9][0-9]{0,3}|[A-Za-z]{2,3})?$",
        description="not of OpenAI's API. Of a file with several tracks of sound: a number, from 1, or a language such "
        "as eng; by default the file's default, else the first one",
    )
    stream: bool = Field(False, description="events as soon as part of the recording is recognized; of json only")

    @property
    def granularities(self) -> frozenset[str]:
        """Those that are asked for."""
        return frozenset(self.timestamp_granularities) or super().granularities

    def options(self, facts: Ready, max_duration: float) -> Options:
        """The options that the fields ask for. Raises Problem, for a combination that isn't supported as well."""
        self.check_granularities()
        if self.stream and self.response_format != "json":
            raise UnsupportedValue(
                f"stream goes with response_format json, not {self.response_format}; leave one of them out", "stream"
            )
        track = int(self.track) if self.track.isdecimal() else self.track or None
        return replace(super().options(facts, max_duration), track=track, words="word" in self.granularities)

    def check_granularities(self) -> None:
        """Raises Problem unless there are none, or "segment", "word", or both with verbose_json."""
        name = "timestamp_granularities[]"
        if unknown := set(self.timestamp_granularities) - set(GRANULARITIES):
            raise InvalidValue(f"{name} is {min(unknown)[:100]!r}, expected 'segment' or 'word'", name)
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise InvalidValue(f"{name} goes with response_format verbose_json, not {self.response_format}", name)


class FormRoute(APIRoute):
    """A route that takes a form with one file, and at most SLACK bytes beside it. TRAP: left to itself FastAPI takes a
    thousand fields of a megabyte each into memory."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, called once the form is parsed. Beyond the limits: TooLarge or HTTPException."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            try:  # the form stays with the request
                form = await request.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=SLACK)
            except HTTPException as error:
                raise (too_many_bytes() if "maximum size" in str(error.detail) else error) from error.__cause__
            fields = ((name, value) for name, value in form.multi_items() if isinstance(value, str))
            if sum(len(name) + len(value) for name, value in fields) > SLACK:
                raise too_many_bytes()
            return await handle(request)

        return bounded


def too_many_bytes() -> Problem:
    """The error of a form with more than SLACK bytes beside its file."""
    return TooLarge(f"the fields beside the file have more than {SLACK // 1024} KiB together, which is the limit")


async def check_names(request: Request) -> None:
    """Raises Problem for fields that stand in the address, or come several times."""
    for name in request.query_params:
        raise UnsupportedParameter(f"{name[:100]} stands in the address; send it as a field of the form", name[:100])
    names = [name for name, _ in (await request.form()).multi_items()]  # read by `FormRoute` already
    for name in names:
        if not name.endswith("[]") and names.count(name) > 1:
            raise InvalidValue(f"{name} comes several times; send it once", name)


def invalid(error: RequestValidationError) -> Problem:
    """What is wrong with a form, in words for its sender."""
    first = error.errors()[0]
    param = str(first["loc"][-1]) if len(first["loc"]) > 1 else None
    if param is None:
        return MissingParameter("the request has no form; expected multipart/form-data with file and model")
    if first["type"] == "missing":
        return MissingParameter(f"{param} is missing", param)
    if (
        first["type"] == "extra_forbidden"
        and f"{param}[]" == Transcription.model_fields["timestamp_granularities"].alias
    ):
        return UnsupportedParameter(f"{param} is a list; send it as {param}[], once for each value", param)
    if first["type"] == "extra_forbidden":
        return UnsupportedParameter(f"{param} is not supported by this server; leave it out", param)
    if param == "file":
        return InvalidValue("file has to be a file of the form, with a filename", "file")
    value = first.get("input")
    shown = f" is {value[:100]!r}" if isinstance(value, str) else ""
    return InvalidValue(f"{param}{shown}: {first['msg']}", param)


@asynccontextmanager
async def stored(upload: UploadFile, folder: str) -> AsyncIterator[str]:
    """The path of an upload, in a file of its own that is gone afterwards. Its suffix stays: some decoders go by it."""
    suffix = re.fullmatch(r"\.[a-z0-9]{1,5}", os.path.splitext(upload.filename or "")[1].lower())
    handle, path = tempfile.mkstemp(suffix[0] if suffix else "", "upload-", folder)
    try:
        with open(handle, "wb") as file:
            await anyio.to_thread.run_sync(shutil.copyfileobj, upload.file, file, 2**20)
        yield path
    finally:
        with anyio.CancelScope(shield=True):  # of a client that left too
            await anyio.to_thread.run_sync(os.unlink, path)
