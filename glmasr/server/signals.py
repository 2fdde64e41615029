"""The signals that end the server."""

import signal


def ends() -> set[int]:
    """Those that do, besides Ctrl-C."""
    return {signal.SIGTERM, *([signal.SIGHUP] if catches_hangup() else [])}


def catches_hangup() -> bool:
    """The terminal may be closed: not where it can't, or under `nohup`."""
    return hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN


def block_signals(blocked: bool) -> None:
    """Lets those that come now wait, until they are let through again."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK if blocked else signal.SIG_UNBLOCK, ends())
