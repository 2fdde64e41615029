"""The names of recordings that are on the web. (`web` opens them; this module costs nothing to import.)"""

import re
from base64 import b64encode
from urllib.parse import quote, unquote, urlsplit

LONGEST_NAME = 100  # characters
KEPT = "".join(map(chr, range(0x21, 0x7F)))  # what stands in an address as it is, escapes included


def is_address(name: str) -> bool:
    """Whether a recording is on the web, and not on this machine."""
    return name.lower().startswith(("http://", "https://"))


def scheme(name: str) -> str:
    """What an address of any kind begins with, in small letters; "" for what is none.

    >>> scheme("FTP://host/a.wav"), scheme("C:/a.wav")
    ('ftp', '')
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", name)
    return found[1].lower() if found else ""


def shown(name: str) -> str:
    """A name as messages have it: an address without user and password, also one that is written wrong.

    >>> shown("https://me:secret@example.org/a.wav"), shown("https://me:sec/ret@example.org/"), shown("a@b.wav")
    ('https://***@example.org/a.wav', 'https://***@example.org/', 'a@b.wav')
    """
    return re.sub(r"^([A-Za-z][\w+.-]+)://(?:[^/?#]*@|[^@]*:.*@)", r"\1://***@", name)  # see `errors.redacted`


def for_request(name: str) -> tuple[str, str]:
    """An address as it is requested, with what it may not have escaped, as browsers do; and the header of its user and
    password (RFC 7617), "" without. Raises ValueError.

    >>> for_request("http://me:secret@例子.org/a b.wav#t=1")
    ('http://xn--fsqu00a.org/a%20b.wav', 'Basic bWU6c2VjcmV0')
    """
    parts = urlsplit(name.strip())
    user, at, host = parts.netloc.rpartition("@")
    if not parts.hostname or parts.port == 0 or re.search(r"\s", parts.netloc):  # a port that is no number raises it
        raise ValueError("no host and port")
    if not host.isascii():
        host = host.encode("idna").decode()
    header = "Basic " + b64encode(unquote(user if ":" in user else f"{user}:").encode()).decode() if at else ""
    return parts._replace(
        netloc=host, path=quote(parts.path, KEPT), query=quote(parts.query, KEPT), fragment=""
    ).geturl(), header


def local_name(name: str) -> str:
    """The name in the current folder that a recording on the web would have; that of another one as it is.

    >>> local_name("https://example.org/talks/monday%20one.mp3?key=1"), local_name("https://example.org/")
    ('monday one.mp3', 'example.org')
    """
    if not is_address(name):
        return name
    try:
        parts = urlsplit(name)
    except ValueError:  # it is no address, as `web` will say
        return "recording"
    last = re.sub(r"[^\w .()-]", "_", unquote(parts.path).rstrip("/").rpartition("/")[2]).strip(" .")
    return last[-LONGEST_NAME:] or parts.hostname or "recording"  # the end says what kind of file it is
