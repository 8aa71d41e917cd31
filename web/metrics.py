"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ganscope_requests",
            "Requests answered.",
            ["route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "ganscope_request_seconds",
            "Time to answer a request.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.pictures = Counter(
            "ganscope_pictures",
            "Pictures judged, by verdict; error: could not be read.",
            ["verdict"],
            registry=self.registry,
        )
        self.batches = Histogram(
            "ganscope_batch_pictures",
            "Pictures that the detector was given at a time.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.waiting = Gauge(
            "ganscope_waiting_pictures", "Pictures that wait or are judged.", registry=self.registry
        )
        self.refused = Counter(
            "ganscope_refused", "Requests told to come back (429).", registry=self.registry
        )
        self.restarts = Counter(
            "ganscope_worker_restarts", "Judging processes started anew.", registry=self.registry
        )
