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
from .address import for_request, shown

TIMEOUT = 30.0  # seconds without a byte
STATUS = {
    401: "it is for those only whose user and password it knows, as in https://user:password@host/",
    403: "it is not for everybody",
    404: "there is no such recording",
}


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


class Redirects(HTTPRedirectHandler):
    """TRAP: user and password are for one host; another one that it leads to doesn't get them."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        """What is asked for next."""
        try:
            new = super().redirect_request(req, fp, code, msg, headers, for_request(newurl)[0])
        except ValueError as error:
            raise HTTPException("it leads to what is no address") from error
        header = req.unredirected_hdrs.get("Authorization")
        if new is not None and header and new.host == req.host and new.type in (req.type, "https"):
            new.add_unredirected_header("Authorization", header)
        return new


def opened(address: str, stack: ExitStack) -> Download:
    """Raises AudioError. Redirects are followed, but only to `http` and `https`: no file of this machine is read. User
    and password of the address are sent in a header, and are in no message."""
    opener, name = OpenerDirector(), shown(address)
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        Redirects(),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    try:
        plain, header = for_request(address)
    except ValueError:  # whose words may have a part of the password
        raise AudioError(
            f"{name}: can't be reached (it is no address); expected https://host/path, with %40 for @ and %2F for / in "
            "a user or password"
        ) from None
    request = Request(plain, headers={"User-Agent": "glmasr"})
    if header:
        request.add_unredirected_header("Authorization", header)
    try:
        answer = opener.open(request, timeout=TIMEOUT)
        if answer is None:
            raise AudioError(f"{name}: leads to what is no http or https; expected the address of a recording")
        return Download(stack.enter_context(answer))
    except HTTPError as error:
        circle = "it leads to another address, which isn't http or https, or back to itself"
        way = STATUS.get(
            error.code, circle if error.code < 400 else "try again later, or download it and name the file"
        )
        raise AudioError(f"{name}: the server answers with status {error.code}: {way}") from None
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise AudioError(f"{name}: can't be reached ({reason}); check the address and the connection") from None
