"""What the gateway adds to calls over TLS, beside the least pass-through over TLS and beside itself without.

One run on loopback, 1 KB tools/call, one process each, policy and audit on; connections are kept, as clients do. The
upstream has no TLS, as a server on the gateway's own host. Handshakes are counted apart.
"""

import ssl
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from controller.identity.ca import CertificateAuthority
from tests.bench.figures import Bench, alternate
from tests.bench.gateway import ROUNDS, free_port, gateway, serving, table
from tests.bench.hop.load import Target, greet, load

HOSTS = ("127.0.0.1",)


def measure(bench: Bench) -> None:
    with ExitStack() as undo:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="wm-hop-")))
        trust, pem = certified(directory / "state" / "tls")
        upstream, _ = undo.enter_context(serving("tests.bench.hop.upstream", "{port}"))
        plain, _ = undo.enter_context(serving("tests.bench.hop.passthrough", str(upstream), "{port}"))
        wrapped, _ = undo.enter_context(serving("tests.bench.hop.passthrough", str(upstream), "{port}", str(pem)))
        tls_port = free_port()
        ours, _ = undo.enter_context(gateway(directory, upstream, tls_port=tls_port))
        calls(
            bench,
            {
                "direct": Target(upstream),
                "pass-through": Target(plain),
                "pass-through over TLS": Target(wrapped, tls=trust),
                "the gateway": Target(ours),
                "the gateway over TLS": Target(tls_port, tls=trust),
            },
        )


def certified(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A key and its certificate, where the gateway takes them from; and what a client trusts."""
    now = datetime.now(UTC)
    authority = CertificateAuthority.create("bench", now)
    certificate, key = authority.issue_server(HOSTS, now=now, lifetime=timedelta(hours=12))
    directory.mkdir(parents=True)
    pem = directory / "bench.pem"
    pem.write_bytes(key + certificate)
    return ssl.create_default_context(cadata=authority.pem), pem


def calls(bench: Bench, targets: dict[str, Target]) -> None:
    bench.say("one call after the other …")
    single = alternate({name: partial(p50, target) for name, target in targets.items()}, ROUNDS)
    table(bench, "milliseconds a call, p50, one client", single)
    bench.say("32 clients at once …")
    many = alternate({name: partial(rate, target) for name, target in targets.items()}, ROUNDS)
    table(bench, "calls a second, 32 clients", many)
    bench.say("new connections …")
    new = alternate({name: partial(greet, target, 200) for name, target in targets.items()}, ROUNDS)
    table(bench, "milliseconds to a new connection's first answer, p50", new)
    direct = single["direct"].median
    bench.figure("tls_added_p50_ms", single["the gateway over TLS"].median - direct)
    bench.figure("plain_added_p50_ms", single["the gateway"].median - direct)
    bench.figure("passthrough_tls_added_p50_ms", single["pass-through over TLS"].median - direct)
    bench.figure("tls_rps", many["the gateway over TLS"].median)
    bench.figure("passthrough_tls_rps", many["pass-through over TLS"].median)
    bench.figure("tls_new_connection_p50_ms", new["the gateway over TLS"].median)
    bench.figure("passthrough_tls_new_connection_p50_ms", new["pass-through over TLS"].median)
    bench.figure("tls_rps_by_passthrough", many["the gateway over TLS"].median / many["pass-through over TLS"].median)


def p50(target: Target) -> float:
    return load(target, clients=1, calls=1000).p50


def rate(target: Target) -> float:
    return float(round(load(target, clients=32, calls=4000).rate))
