"""Errors as the server answers them: an exception class for each code, with its status.

Answers have OpenAI's shape, {"error": {"message", "type", "param", "code"}}, which its clients show to their users.

What is unusual here: the message of an unexpected error may quote a recording or its text, so it is neither answered
nor logged; the log gets the kind of the error and its place.
"""

import errno
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..errors import AudioError, OptionError, ShortMemoryError

log = logging.getLogger("glmasr")
TYPES = {401: "authentication_error", 429: "rate_limit_error"}  # OpenAI's; of any other status: `Problem.content`


class Problem(Exception):
    """An error to answer with.

    status        of the answer; of the class
    code          a word for programs; of the class, None where no client reads it
    param         the field that caused it, or None
    headers       of the answer
    retry_after   seconds until another attempt makes sense, or None
    """

    status = 500
    code: str | None = None

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.param = param
        self.headers = dict(headers or {}) | ({} if retry_after is None else {"Retry-After": str(retry_after)})

    def content(self) -> dict[str, dict[str, str | None]]:
        """The JSON body of the answer, in the layout of OpenAI's errors."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        # TRAP: what it quotes of a request may be half a UTF-16 character, which JSON can't be encoded with.
        message, param = (
            text and text.encode("utf-8", "backslashreplace").decode() for text in (str(self), self.param)
        )
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The HTTP answer with `status`, `headers` and `content`."""
        return JSONResponse(self.content(), self.status, self.headers)


# ---- the request is wrong --------------------------------------------------------------------------------------------


class InvalidAudio(Problem):
    """The recording can't be read."""

    status, code = 400, "invalid_audio"


class InvalidValue(Problem):
    """A field, a header or the body isn't what was expected."""

    status, code = 400, "invalid_value"


class MissingParameter(Problem):
    """A field that the form needs isn't there, or there is no form."""

    status, code = 400, "missing_required_parameter"


class UnsupportedParameter(Problem):
    """A field that this server doesn't have: nothing is accepted and ignored."""

    status, code = 400, "unsupported_parameter"


class UnsupportedValue(Problem):
    """A value that OpenAI's API has, and this server or its model hasn't."""

    status, code = 400, "unsupported_value"


class InvalidKey(Problem):
    """The API key is missing or wrong."""

    status, code = 401, "invalid_api_key"


class UnknownHost(Problem):
    """The request was made for another server."""

    status, code = 403, "unknown_host"


class ForeignOrigin(Problem):
    """The request was made by a page of another origin."""

    status, code = 403, "foreign_origin"


class ModelNotFound(Problem):
    """The request asks for a model that this server doesn't have."""

    status, code = 404, "model_not_found"


class UnknownUrl(Problem):
    """There is no such route, or no such file."""

    status, code = 404, "unknown_url"


class MethodNotAllowed(Problem):
    """`Allow` of the answer names those that are."""

    status, code = 405, "method_not_allowed"


class UploadTimeout(Problem):
    """The body came too slowly, or stopped coming."""

    status, code = 408, "upload_timeout"


class SessionIdle(Problem):
    """No sound came for too long."""

    status, code = 408, "session_idle"


class SessionExpired(Problem):
    """A live session lasted as long as one may."""

    status, code = 408, "session_expired"


class Gone(Problem):
    """A file of the page that is no longer kept."""

    status, code = 410, "gone"


class TooLarge(Problem):
    """The body, or a part of it, has more bytes than it may have."""

    status, code = 413, "too_large"


class UnsupportedType(Problem):
    """A content type, or a charset of it."""

    status, code = 415, "unsupported_type"


class UpgradeRequired(Problem):
    """A route that is a WebSocket."""

    status, code = 426, "upgrade_required"


class ClientLeft(Problem):
    """No one reads this answer."""

    status, code = 499, None


# ---- the request is fine, but not now --------------------------------------------------------------------------------


class Busy(Problem):
    """The queue is full."""

    status, code = 429, "queue_full"


class WorkerDied(Problem):
    """The process that worked on it has ended."""

    status, code = 500, "worker_died"


class InternalError(Problem):
    """A defect of the server."""

    status, code = 500, "internal_error"


class Closing(Problem):
    """The server is about to end."""

    status, code = 503, "shutting_down"


class Loading(Problem):
    """The model isn't loaded, or not again yet."""

    status, code = 503, "model_loading"


class TooLong(Problem):
    """It took longer than the time limit."""

    status, code = 504, "time_limit"


class NoSpace(Problem):
    """On the disk, or in what the server may use of it."""

    status, code = 507, "no_space"


class NoMemory(Problem):
    """The memory of the server's device doesn't hold the work."""

    status, code = 507, "no_memory"


# ---- any exception -> Problem ----------------------------------------------------------------------------------------


def as_problem(error: BaseException) -> Problem:
    """What an exception is answered with. Logs the place of an unexpected one."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, (AudioError, OptionError)):
        field = re.match(r"(?:has no )?(language|temperature|track|hotwords|prompt)\b", str(error))
        if field or isinstance(error, OptionError):
            return InvalidValue(str(error), field and field[1])
        return InvalidAudio(str(error), "file")
    if isinstance(error, ClientDisconnect):
        return ClientLeft("the client left while it was sending")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace("the server has no room for the upload; try again later, or send a smaller file", retry_after=30)
    if isinstance(error, ShortMemoryError):
        return NoMemory(
            "the server's memory doesn't hold this; try again later, or with a temperature of 0", retry_after=30
        )
    # The message of any other error may quote a recording or its text: it is neither answered nor logged.
    log.error("%s at %s", type(error).__name__, "; ".join(_places(error)))
    return InternalError("the server has a defect; its log says where")


def _of_http(error: HTTPException) -> Problem:
    """Of an error of FastAPI's or Starlette's, which may stand for one of ours: `gate.as_http`."""
    if isinstance(error.__cause__, (Problem, OSError)):
        return as_problem(error.__cause__)
    kinds: dict[int, type[Problem]] = {400: InvalidValue, 404: UnknownUrl, 405: MethodNotAllowed}
    problem = kinds.get(error.status_code, Problem)(str(error.detail), headers=error.headers)
    problem.status = error.status_code
    return problem


def _places(error: BaseException) -> list[str]:
    """The last places of its traceback: "file:line"."""
    places: list[str] = []
    trace = error.__traceback__
    while trace:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return places[-5:]
