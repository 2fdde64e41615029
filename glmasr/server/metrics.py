"""What the server has done, in the text format of Prometheus. Counts and times only: no names, no texts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Figures:
    """Of one `batching.Desk`, which calls `recording` and `batch`; what it holds right now is looked up when somebody asks."""

    def __init__(self, desk):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._ended = Counter("glmasr_recordings", "Recordings that left, by task and by what became of them", ["task", "outcome"], registry=self.registry)
        self._refused = Counter("glmasr_refused_requests", "Requests refused, before or after their upload, by status", ["status"], registry=self.registry)
        self._sound = Counter("glmasr_sound_seconds", "Seconds of sound recognised", registry=self.registry)
        self._waited = Histogram("glmasr_waiting_seconds", "Time in the queue", buckets=SECONDS, registry=self.registry)
        self._worked = Histogram("glmasr_working_seconds", "Time from the queue to the end", buckets=SECONDS, registry=self.registry)
        self._windows = Histogram("glmasr_batch_windows", "Windows decoded together", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry)
        self._together = Histogram("glmasr_batch_recordings", "Recordings in a batch", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry)
        for name, text, value in (("waiting", "Recordings in the queue", lambda: len(desk.waiting)),
                                  ("running", "Recordings with the worker", lambda: len(desk.running)),
                                  ("ready", "1 while the model is loaded", lambda: int(desk.ready is not None)),
                                  ("worker_restarts", "Times that the worker was started again", lambda: desk.restarts)):
            Gauge(f"glmasr_{name}", text, registry=self.registry).set_function(value)

    def recording(self, task: str, outcome: str, seconds: float, waited: float, worked: float) -> None:
        self._ended.labels(task, outcome).inc()
        self._sound.inc(seconds)
        self._waited.observe(waited)
        self._worked.observe(worked)

    def refused(self, status: int) -> None:
        self._refused.labels(status).inc()

    def batch(self, windows: int, recordings: int) -> None:
        self._windows.observe(windows)
        self._together.observe(recordings)

    def text(self) -> bytes:
        return generate_latest(self.registry)
