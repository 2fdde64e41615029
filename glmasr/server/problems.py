"""Errors as the server answers them. They have OpenAI's shape, {"error": {"message", "type", "param", "code"}}, which its clients show to
their users.

What is unusual here: the message of an error that nobody expected may quote a recording or its text, so it is neither answered nor logged;
the log gets the kind of the error and its place.
"""

import errno
import logging
import re
from pathlib import Path

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from ..errors import AudioError, OptionError, ShortMemoryError
from .request_queue import Busy, Closing, Refused, TooLong

log = logging.getLogger("glmasr")


class Problem(Exception):
    """An error to answer with. `param` is the field that caused it."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: int | None = None,
                 headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {}) | ({} if retry_after is None else {"Retry-After": str(retry_after)})

    @classmethod
    def of(cls, error: BaseException) -> "Problem":
        if isinstance(error, Problem):
            return error
        if isinstance(error, Refused):
            status = 429 if isinstance(error, Busy) else 503 if isinstance(error, Closing) else 504 if isinstance(error, TooLong) else 500
            code = {429: "queue_full", 503: "shutting_down", 504: "time_limit", 500: "worker_died"}[status]
            return cls(status, str(error), None, code, error.retry_after)
        if isinstance(error, AudioError):
            return cls(400, str(error), "file", "invalid_audio")
        if isinstance(error, OptionError):
            field = re.match(r"language|temperature", str(error))
            return cls(400, str(error), field and field[0], "invalid_value")
        if isinstance(error, ClientDisconnect):
            return cls(499, "the client left while it was sending")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return cls(507, "the server has no room for the upload; try again later, or send a smaller file", None, "no_space", 30)
        if isinstance(error, ShortMemoryError):
            return cls(507, "the server's memory doesn't hold this; try again later, or with a temperature of 0", None, "no_memory", 30)
        # The message of any other error may quote a recording or its text: it is neither answered nor logged.
        log.error("%s at %s", type(error).__name__, "; ".join(_places(error)))
        return cls(500, "the server has a defect; its log says where", None, "internal_error")

    def content(self) -> dict:
        kind = ("authentication_error" if self.status == 401 else "rate_limit_error" if self.status == 429
                else "invalid_request_error" if self.status < 500 else "server_error")
        # TRAP: what it quotes of a request may be half a UTF-16 character, which JSON can't be encoded with.
        message, param = (text and text.encode("utf-8", "backslashreplace").decode() for text in (str(self), self.param))
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.content(), self.status, self.headers)


def _places(error: BaseException) -> list[str]:
    places, trace = [], error.__traceback__
    while trace:
        places.append(f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return places[-5:]
