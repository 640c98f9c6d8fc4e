"""What happened, in figures: for Prometheus at ``/metrics``, by model, under the names that OpenTelemetry has for them.

OpenTelemetry's names for servers of models (``gen_ai.server.*``, status Development) are written as its Prometheus exporter
writes them: dots as ``_``, the unit behind. What it has no name for begins with ``tunesmith_``. A model's name is a label only
when it is served, so that nobody can fill the table with names.

A *visit* is one request from the door to its last byte; what is learned of it on the way is written there, and goes into the
figures and into one line of the log at its end. Neither holds a word of a prompt or of an answer.

Source: OpenTelemetry semantic conventions, "Generative AI metrics".
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import HTTPConnection

from tunesmith.serve.asking import End, Served
from tunesmith.serve.limits import House

VISIT = "tunesmith.visit"  # where a scope holds it
_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_EACH = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)


@dataclass
class Visit:
    """One request.

    Attributes:
        id: that the answer's header names.
        key: whose it is, ``key 1``; empty where there are no keys.
        model: that is asked, once it is known to be served; empty before and elsewhere.
        operation: ``chat`` or ``text_completion``; empty elsewhere.
        prompt_tokens, cached_tokens, new_tokens: of all its answers.
        error: code of the error that a stream ended with, after its status was sent.
        started: on the clock of ``time.perf_counter``.
    """

    id: str
    key: str = ""
    model: str = ""
    operation: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    error: str = ""
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self.started


def visit_of(connection: HTTPConnection) -> Visit:
    """The visit that a request belongs to."""
    visit = connection.scope.get(VISIT)
    return visit if isinstance(visit, Visit) else Visit("req_0")  # routes that are tested without the door


class Telemetry:
    """The figures of one server.

    Args:
        house: who is in it.
        served: what is served now.
    """

    def __init__(self, house: House, served: Callable[[], list[Served]]):
        self._served = served
        self.registry = registry = CollectorRegistry()
        asked = ("gen_ai_operation_name", "gen_ai_request_model")

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        self._requests = counter("tunesmith_requests", "Requests by status.", "model", "status")
        self._tokens = counter("tunesmith_tokens", "Tokens: input, cached (part of input), output.", "model", "kind")
        self._usage = histogram("gen_ai_client_token_usage", "Tokens of a request.", _TOKENS, *asked, "gen_ai_token_type")
        self._duration = histogram(
            "gen_ai_server_request_duration_seconds", "From the door to the last byte.", _DURATION, *asked, "error_type"
        )
        self._first = histogram(
            "gen_ai_server_time_to_first_token_seconds", "From the door to the first token of an answer.", _FIRST, *asked
        )
        self._each = histogram(
            "gen_ai_server_time_per_output_token_seconds", "Between the tokens of an answer after its first.", _EACH, *asked
        )
        self._queue = histogram("tunesmith_queue_seconds", "Wait for a slot.", _FIRST, "model")
        self._model = Gauge("tunesmith_model", "Served.", ("model", "parent", "version", "verdict"), registry=registry)
        for name, text, value in (
            ("inside", "Requests in the house.", lambda: house.inside),
            ("running", "Answers under way.", lambda: house.running),
            ("waiting", "Answers that wait for a slot.", lambda: house.waiting),
        ):
            Gauge(f"tunesmith_requests_{name}", text, registry=registry).set_function(value)

    def queued(self, visit: Visit, seconds: float) -> None:
        """An answer has got its slot."""
        self._queue.labels(visit.model).observe(seconds)

    def began(self, visit: Visit) -> None:
        """An answer said its first token."""
        self._first.labels(visit.operation, visit.model).observe(visit.seconds)

    def ended(self, visit: Visit, end: End, seconds: float) -> None:
        """An answer said its last token, ``seconds`` after its first."""
        visit.prompt_tokens += end.prompt_tokens
        visit.cached_tokens += end.cached_tokens
        visit.new_tokens += end.new_tokens
        if end.new_tokens > 1:
            self._each.labels(visit.operation, visit.model).observe(seconds / (end.new_tokens - 1))

    def left(self, visit: Visit, status: int) -> None:
        """A visit is over."""
        self._requests.labels(visit.model, str(status)).inc()
        if not visit.model:
            return
        for kind, count in (("input", visit.prompt_tokens), ("cached", visit.cached_tokens), ("output", visit.new_tokens)):
            self._tokens.labels(visit.model, kind).inc(count)
        asked = (visit.operation, visit.model)
        self._duration.labels(*asked, visit.error or (str(status) if status >= 400 else "")).observe(visit.seconds)
        if visit.new_tokens:
            self._usage.labels(*asked, "input").observe(visit.prompt_tokens)
            self._usage.labels(*asked, "output").observe(visit.new_tokens)

    def text(self) -> bytes:
        """All figures as Prometheus reads them."""
        self._model.clear()
        for model in self._served():
            self._model.labels(model.name, model.parent or "", model.version, model.verdict or "").set(1)
        return generate_latest(self.registry)
