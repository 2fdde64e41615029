"""A recording on the web -> its bytes, as a stream: `http://` and `https://`, within the limits of all recordings."""

from contextlib import ExitStack
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from ..errors import AudioError

TIMEOUT = 30.0  # seconds without a byte
STATUS = {401: "it is not for everybody", 403: "it is not for everybody", 404: "there is no such recording"}


class Download:
    """An answer, as a binary file that can be read once. Whatever goes wrong while it is read is an OSError."""

    def __init__(self, answer: Any):
        self._answer, self._left = answer, answer.length
        self.stated: int | None = answer.length  # bytes

    def read(self, count: int) -> bytes:
        """At most `count` bytes; b"" at the end. Raises OSError for fewer bytes than Content-Length states."""
        try:
            content: bytes = self._answer.read(count)
        except HTTPException as error:
            raise OSError(f"{type(error).__name__}: the connection was cut off") from error
        if self._left is not None:
            self._left -= len(content)
            if not content and self._left > 0:  # TRAP: Python's client takes an early end for the end
                raise OSError(f"the connection was cut off, {self._left:,} bytes before the end")
        return content


def opened(address: str, stack: ExitStack) -> Download:
    """Raises AudioError. Redirects are followed, but only to `http` and `https`: no file of this machine is read."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        HTTPRedirectHandler(),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    try:
        answer = opener.open(Request(address, headers={"User-Agent": "glmasr"}), timeout=TIMEOUT)
        if answer is None:
            raise AudioError(f"{address}: leads to what is no http or https; expected the address of a recording")
        return Download(stack.enter_context(answer))
    except HTTPError as error:
        circle = "it leads to another address, which isn't http or https, or back to itself"
        way = STATUS.get(
            error.code, circle if error.code < 400 else "try again later, or download it and name the file"
        )
        raise AudioError(f"{address}: the server answers with status {error.code}: {way}") from None
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise AudioError(f"{address}: can't be reached ({reason}); check the address and the connection") from None
