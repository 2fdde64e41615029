"""Marks in the code for an observer, which `--explain` is: the function is a stage of the way from sound to text.

    @stage("log-mel")
    def log_mel(samples, bands): ...

An observer belongs to the context (of `contextvars`) that set it, so it sees what its own thread does and nothing else.
Without one, a stage is a plain call. An observer calls the function itself: so it can take the time, look at what goes
in and comes out, and hand over what a function takes for watchers, such as `watch` of the searches.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Observer(Protocol):
    """What `observing` takes: it is called in place of each stage, and has to call the function itself."""

    def call(self, name: str, function: Callable[..., R], /, *args: Any, **more: Any) -> R:
        """The stage `name`: what the function gives."""


_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


def stage(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator. Of a generator function, what the observer gets is the call that makes the generator."""

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def marked(*args: P.args, **more: P.kwargs) -> R:
            observer = _observer.get()
            return function(*args, **more) if observer is None else observer.call(name, function, *args, **more)

        return marked

    return mark


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Within this context, it sees all stages."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def observed_by(observer: Observer) -> bool:
    """Whether it is the one of this context: hooks on modules are there for every thread."""
    return _observer.get() is observer
