"""What the server has done, in the text format of Prometheus. Counts and times only: no names, no texts."""

from collections.abc import Sized
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class QueueState(Protocol):
    """What `RequestQueue` holds right now, which is looked up when the metrics are asked for."""

    @property
    def waiting(self) -> Sized:
        """Recordings that the worker doesn't have yet."""

    @property
    def running(self) -> Sized:
        """Recordings and live sessions at the worker."""

    @property
    def sessions(self) -> Sized:
        """Live sessions."""

    @property
    def ready(self) -> object:
        """None while the model is not loaded."""

    @property
    def restarts(self) -> int:
        """How often the worker process was restarted."""


class Metrics:
    """Of one `RequestQueue`, which calls `recording` and `batch`, and of its `Gate`, which calls `refused`."""

    def __init__(self, queue: QueueState):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._ended = Counter(
            "glmasr_recordings", "Recordings that left, by task and outcome", ["task", "outcome"], registry=registry
        )
        self._sessions = Counter(
            "glmasr_sessions", "Live sessions that ended, by outcome", ["outcome"], registry=registry
        )
        self._lasted = Histogram(
            "glmasr_session_seconds", "Time that a live session lasted", buckets=SECONDS, registry=registry
        )
        self._refused = Counter(
            "glmasr_refused_requests", "Requests answered with an error, by its status", ["status"], registry=registry
        )
        self._sound = Counter("glmasr_sound_seconds", "Seconds of sound recognized", registry=registry)
        self._waited = Histogram("glmasr_waiting_seconds", "Time in the queue", buckets=SECONDS, registry=registry)
        self._worked = Histogram(
            "glmasr_working_seconds", "Time from the queue to the end", buckets=SECONDS, registry=registry
        )
        self._windows = Histogram(
            "glmasr_batch_windows", "Windows decoded together", buckets=(1, 2, 4, 8, 16, 32, 64), registry=registry
        )
        self._together = Histogram(
            "glmasr_batch_recordings", "Recordings in a batch", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        for name, text, value in (
            ("waiting", "Recordings in the queue", lambda: len(queue.waiting)),
            ("running", "Recordings and live sessions with the worker", lambda: len(queue.running)),
            ("live_sessions", "Live sessions", lambda: len(queue.sessions)),
            ("ready", "1 while the model is loaded", lambda: int(queue.ready is not None)),
            ("worker_restarts", "Times that the worker was started again", lambda: queue.restarts),
        ):
            Gauge(f"glmasr_{name}", text, registry=registry).set_function(value)

    def recording(self, task: str, outcome: str, seconds: float, waited: float, worked: float) -> None:
        """A recording has left: `seconds` of sound, the time in the queue and the time after it."""
        self._ended.labels(task, outcome).inc()
        self._sound.inc(seconds)
        self._waited.observe(waited)
        self._worked.observe(worked)

    def session(self, outcome: str, seconds: float, lasted: float) -> None:
        """A live session has ended: `seconds` of sound, and of time."""
        self._sessions.labels(outcome).inc()
        self._sound.inc(seconds)
        self._lasted.observe(lasted)

    def refused(self, status: int) -> None:
        """A request was answered with a 4xx or 5xx."""
        self._refused.labels(status).inc()

    def batch(self, windows: int, recordings: int) -> None:
        """A batch was decoded: its number of windows, and the recordings that they are from."""
        self._windows.observe(windows)
        self._together.observe(recordings)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
