"""The names of recordings that are on the web. (`web` opens them; this module costs nothing to import.)"""

import re
from urllib.parse import unquote, urlsplit

LONGEST_NAME = 100  # characters


def is_address(name: str) -> bool:
    """Whether a recording is on the web, and not on this machine."""
    return name.lower().startswith(("http://", "https://"))


def local_name(name: str) -> str:
    """The name in the current folder that a recording on the web would have; that of another one as it is.

    >>> local_name("https://example.org/talks/monday%20one.mp3?key=1"), local_name("https://example.org/")
    ('monday one.mp3', 'example.org')
    """
    if not is_address(name):
        return name
    parts = urlsplit(name)
    last = re.sub(r"[^\w .()-]", "_", unquote(parts.path).rstrip("/").rpartition("/")[2]).strip(" .")
    return last[-LONGEST_NAME:] or parts.hostname or "recording"  # the end says what kind of file it is
