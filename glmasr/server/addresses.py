"""Where the server listens, and what requests may call it and its model."""

import ipaddress
import os
import re
import socket
from collections.abc import Iterable
from contextlib import suppress

from ..errors import OptionError


def check_address(host: str, port: int) -> None:
    """Raises OptionError if the address can't be listened on: before a model is loaded, or even fetched, for it."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
    except (OSError, UnicodeError) as error:
        raise OptionError(
            f"can't listen at --host {host} --port {port}: {getattr(error, 'strerror', None) or error}; expected "
            "an address of this machine and a free port"
        ) from None


def known_hosts(host: str, port: int, more: list[str]) -> frozenset[str] | None:
    """What `Host` of a request may say, where the server listens at this address, and `more` names are given: None,
    anything, where other machines are let in and no names are given."""
    own = host.lower()
    with suppress(ValueError):
        address = ipaddress.ip_address(own)
        own = f"[{address}]" if address.version == 6 else str(address)
        if not (address.is_loopback or more):
            return None
    if own != "localhost" and not re.match(r"[\d\[]", own) and not more:
        places = {str(place[4][0]) for place in socket.getaddrinfo(own, port, type=socket.SOCK_STREAM)}
        if not all(ipaddress.ip_address(place.partition("%")[0]).is_loopback for place in places):
            return None
    return frozenset({"localhost", "127.0.0.1", "[::1]", own, *more})


def model_names(model: str, more: list[str]) -> list[str]:
    """What requests may call a model that is loaded by this name or path; the first one is its name. A path stays
    here."""
    first = os.path.basename(os.path.normpath(model)) or model
    whole = [model] if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) else []
    return list(dict.fromkeys([first, *whole, *more]))


def adapted_names(names: Iterable[str], adapters: Iterable[str]) -> dict[str, str]:
    """What requests may call the model with an adapter -> the adapter.

    >>> adapted_names(["base", "whisper-1"], ["calls"])
    {'base:calls': 'calls', 'whisper-1:calls': 'calls'}
    """
    some = list(names)
    return {f"{name}:{adapter}": adapter for name in some for adapter in adapters if f"{name}:{adapter}" not in some}
