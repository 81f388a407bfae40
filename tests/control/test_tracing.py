"""Traces: what a real collector receives over OTLP when it is asked for, and that nothing is made when it is not."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from controller.server import running
from controller.settings import Settings, SettingsError
from controller.wire.enrol import JoinString
from controller.wire.stream import Applied

from .hosts import Host, new_key
from .streams import agent, node_id, patch, seen
from .support import Client, MovableClock

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@dataclass
class Collector:
    """What came to it, as it came."""

    url: str = ""
    bodies: list[bytes] = field(default_factory=list)
    paths: set[str] = field(default_factory=set)

    @property
    def exports(self) -> list[ExportTraceServiceRequest]:
        return [ExportTraceServiceRequest.FromString(body) for body in self.bodies]

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for export in self.exports
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def named(self, name: str) -> Span:
        found = [span for span in self.spans if span.name == name]
        assert len(found) == 1, sorted({span.name for span in self.spans})
        return found[0]


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.paths.add(self.path)
            found.bodies.append(self.rfile.read(int(self.headers["content-length"])))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing: the test looks at what came."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield found
        server.shutdown()
        thread.join()


def attributes(span: Span) -> dict[str, str | int]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


async def test_a_request_is_a_span_of_its_callers_trace_with_its_transaction_and_fan_out_in_it(
    settings: Settings, clock: MovableClock, collector: Collector
) -> None:
    async with (
        running(replace(settings, traces=collector.url), clock) as controller,
        Client(controller, token=controller.first_token) as admin,
    ):
        answer = await admin.put("/policy", json={"text": "grants: []"}, headers={"if-match": "*", **TRACEPARENT})
        assert answer.status_code == 200, answer.text
    request = collector.named("PUT /policy")
    ours = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    (mutation,) = (span for span in ours if span.name == "store.mutation")
    (publish,) = (span for span in ours if span.name == "mesh.publish")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert request.kind == Span.SPAN_KIND_SERVER
    assert mutation.parent_span_id == request.span_id
    assert publish.parent_span_id == mutation.span_id
    assert "store.read" in {span.name for span in ours}
    told = attributes(request)
    assert told["http.response.status_code"] == 200
    assert told["wardmesh.request_id"] == answer.headers["x-request-id"]
    assert attributes(mutation)["wardmesh.action"] == "admin:policy:apply"
    assert attributes(mutation)["wardmesh.revision"] == attributes(publish)["wardmesh.revision"]
    assert request.start_time_unix_nano <= mutation.start_time_unix_nano <= publish.start_time_unix_nano
    (resource,) = (resource.resource for export in collector.exports[:1] for resource in export.resource_spans)
    assert {"service.name", "service.version"} <= {each.key for each in resource.attributes}
    assert collector.paths == {"/v1/traces"}


async def test_what_a_host_is_told_and_what_it_has_in_force_are_spans_with_its_node_and_revision(
    settings: Settings, clock: MovableClock, collector: Collector, tmp_path: Path
) -> None:
    async with (
        running(replace(settings, traces=collector.url), clock) as controller,
        Client(controller, token=controller.first_token) as admin,
    ):
        host = Host("host")
        await host.enrol(admin, await new_key(admin))
        async with agent(controller, host, tmp_path) as there:
            await there.hello()
            await patch(admin, host, name="renamed")
            netmap = await there.take_until(lambda netmap: netmap.node.name == "renamed")
            await there.say(Applied(revision=netmap.revision, error="written-by-a-host"))
            await seen(admin, host, lambda node: node["error"] is not None)
            clock.advance(seconds=100)
            await there.say(Applied(revision=netmap.revision))
            await seen(admin, host, lambda node: not node["behind"])
    snapshot, delta = (attributes(collector.named(f"stream.{name}")) for name in ("snapshot", "delta"))
    failed, applied = (attributes(span) for span in collector.spans if span.name == "stream.applied")
    whose = {"wardmesh.node": node_id(host), "wardmesh.revision": netmap.revision}
    assert 0 < int(delta.pop("wardmesh.characters")) < int(snapshot.pop("wardmesh.characters"))
    assert snapshot["wardmesh.node"] == node_id(host)
    assert delta == whose
    assert (failed.pop("wardmesh.outcome"), applied.pop("wardmesh.outcome")) == ("error", "in force")
    assert int(failed.pop("wardmesh.lag_ms")) < 100_000 <= int(applied.pop("wardmesh.lag_ms"))
    assert failed == applied == whose
    assert not any(b"written-by-a-host" in body for body in collector.bodies)


async def test_no_secret_and_nothing_that_a_caller_wrote_is_in_a_span(
    settings: Settings, clock: MovableClock, collector: Collector
) -> None:
    async with (
        running(replace(settings, traces=collector.url), clock) as controller,
        Client(controller, token=controller.first_token) as admin,
    ):
        assert controller.first_token is not None
        made = await admin.post("/enrolment-keys", json={"note": "written-by-a-caller"})
        key = JoinString.decode(made.json()["join"]).key
        await admin.get(f"/nodes/{key}")
        await admin.get("/nodes", params={"name": "written-by-a-caller"})
        await admin.get("/written-by-a-caller")
        secrets = controller.first_token, key, made.json()["join"], "written-by-a-caller"
    assert collector.named("POST /enrolment-keys")
    assert attributes(collector.named("GET /nodes/{node_id}"))["http.response.status_code"] == 404
    for body in collector.bodies:
        assert not [secret for secret in secrets if secret.encode() in body]


async def test_a_request_that_fails_by_our_fault_is_an_error_and_a_refused_one_is_not(
    settings: Settings, clock: MovableClock, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("with a secret in it")

    async with running(replace(settings, traces=collector.url), clock) as controller:
        monkeypatch.setattr("controller.store.ledger.Ledger.revision", broken)
        async with Client(controller, token=controller.first_token) as admin:
            assert (await admin.get("/status")).status_code == 500
        async with Client(controller, token=controller.first_token) as admin:
            assert (await admin.get("/nodes/nobody")).status_code == 404
    failed = collector.named("GET /status")
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert attributes(failed)["error.type"] == "RuntimeError"
    assert collector.named("GET /nodes/{node_id}").status.code == Status.STATUS_CODE_UNSET
    assert not any(b"with a secret in it" in body for body in collector.bodies)


async def test_a_collector_that_is_away_holds_nothing_up(settings: Settings, clock: MovableClock) -> None:
    began = time.monotonic()
    async with (
        running(replace(settings, traces="http://127.0.0.1:1"), clock) as controller,
        Client(controller, token=controller.first_token) as admin,
    ):
        for _ in range(20):
            assert (await admin.get("/nodes")).status_code == 200
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("url", ["127.0.0.1:4318", "ftp://127.0.0.1", "http://user:password@127.0.0.1:4318", "http://"])
def test_a_url_that_names_no_collector_is_refused(settings: Settings, url: str) -> None:
    with pytest.raises(SettingsError, match="--traces"):
        replace(settings, traces=url)


def test_without_the_option_nothing_is_loaded_that_could_send() -> None:
    code = "import sys, controller.main; sys.exit('opentelemetry.sdk' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
