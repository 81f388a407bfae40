"""Spans to a collector, by OpenTelemetry's protocol over HTTP: for `serve --traces`, and only then imported.

Sent in the background, a batch at a time; when the collector is away or slow, spans are lost and requests are not held
up. Headers for the collector, such as a token, come from OTEL_EXPORTER_OTLP_HEADERS in the environment.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from controller.settings import VERSION
from controller.tracing import Attribute, Span, Tracing

__all__ = ["OtlpTracing"]

_SERVICE: Final = "wardmesh-controller"
_SEND_WITHIN: Final = 5.0  # seconds
_FAILED: Final = 500  # and above: our own fault, HTTP's semantic conventions say


class _Span:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def note(self, name: str, value: Attribute) -> None:
        """State a fact of it."""
        self._span.set_attribute(name, value)
        if name == "http.response.status_code" and isinstance(value, int) and value >= _FAILED:
            self._span.set_status(trace.StatusCode.ERROR)

    def rename(self, name: str) -> None:
        """Call it something else, now that more is known."""
        self._span.update_name(name)


class OtlpTracing(Tracing):
    """Makes spans and sends them to the collector at `url`; without a path in it, to its `/v1/traces`."""

    def __init__(self, url: str) -> None:
        endpoint = url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1/traces"
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": _SERVICE, "service.version": VERSION}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=_SEND_WITHIN)))
        self._tracer = self._provider.get_tracer(_SERVICE, VERSION)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, *, alone: bool = True) -> Iterator[Span]:
        """What is done inside; `alone` False: only as a part of something that is traced."""
        if not alone and not trace.get_current_span().get_span_context().is_valid:
            with super().span(name) as none:
                yield none
            return
        with self._made(name, trace.SpanKind.INTERNAL, None) as made:
            yield made

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[Span]:
        """A request that is answered inside, as a part of what its `traceparent` header says (W3C Trace Context)."""
        parent = self._propagator.extract(headers, context=contexts.Context())
        with self._made(name, trace.SpanKind.SERVER, parent) as made:
            yield made

    @contextmanager
    def _made(self, name: str, kind: trace.SpanKind, parent: contexts.Context | None) -> Iterator[Span]:
        # What an exception says may be about a secret: only its type is told.
        with self._tracer.start_as_current_span(
            name, context=parent, kind=kind, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield _Span(span)
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(trace.StatusCode.ERROR)
                raise

    def close(self) -> None:
        """Send what was not sent yet. Blocks for some seconds at most."""
        self._provider.shutdown()
