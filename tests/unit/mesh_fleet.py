"""Fleets and documents for the tests of policy and mesh: by hand, and drawn by hypothesis."""

import base64
import json
from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from controller.records import Fleet, NodeRecord, PolicyRecord, ServiceRecord, TemporaryGrant
from controller.wire.netmap import Mesh

MESH = Mesh(id="mesh1", name="mesh", prefix4="100.64.0.0/16", prefix6="fd00:1::/48")
NOW = 1_800_000_000.0


def key(number: int) -> str:
    """A public key; any 32 bytes that are not of low order are one."""
    return base64.b64encode(number.to_bytes(4, "big") * 8).decode()


def node(number: int, *tags: str, **changes: Any) -> NodeRecord:
    """Node `nNUMBER`, named `hNUMBER`, with an address of each family."""
    facts: dict[str, Any] = {
        "id": f"n{number}",
        "name": f"h{number}",
        "kind": "agent",
        "state": "active",
        "tags": frozenset(f"tag:{tag}" for tag in tags),
        "addresses": (f"100.64.{number >> 8}.{number & 255}", f"fd00:1::{number:x}"),
        "public_key": key(number),
    }
    return NodeRecord(**(facts | changes))


def place(name: str, number: int, holder: str | None = None) -> ServiceRecord:
    """A gateway service at a host number that no node of these tests has."""
    return ServiceRecord(name, (f"100.64.200.{number}", f"fd00:1::c8{number:02x}"), holder)


def fleet(
    nodes: Iterable[NodeRecord],
    text: str = "",
    revision: int = 1,
    grants: Iterable[TemporaryGrant] = (),
    places: Iterable[ServiceRecord] = (),
) -> Fleet:
    return Fleet(
        revision=revision,
        mesh=MESH,
        nodes={n.id: n for n in nodes},
        policy=PolicyRecord(revision, text),
        services={p.name: p for p in places},
        grants={grant.id: grant for grant in grants},
    )


def temporary(number: int, from_: str, to: str, ip: str = "tcp:1", expires: float = NOW + 3600) -> TemporaryGrant:
    """Temporary grant `tNUMBER`; selectors with their kind."""
    return TemporaryGrant(f"t{number}", (from_,), (to,), (ip,), "for a test", "token:wma_x", int(expires))


TAGS = ("a", "b", "c")
HOSTS = {"low": "100.64.0.0/30", "one": "100.64.0.5", "six": "fd00:1::/125", "all": "100.64.0.0/16"}
GROUPS = {"ops": ["tag:a", "h3"], "net": ["low", "node:h6"]}

selectors = st.one_of(
    st.sampled_from([f"tag:{tag}" for tag in TAGS]),
    st.integers(1, 8).map(lambda n: f"h{n}"),
    st.sampled_from(list(HOSTS)),
    st.sampled_from([f"group:{name}" for name in GROUPS]),
    st.just("*"),
)
ports = st.one_of(
    st.integers(1, 6).map(str),
    st.tuples(st.integers(1, 3), st.integers(3, 6)).map(lambda r: f"{r[0]}-{r[1]}"),
    st.just("*"),
)
ips = st.one_of(
    st.builds("{}:{}".format, st.sampled_from(["tcp", "udp"]), ports), st.just("icmp"), st.sampled_from(["*", "tcp:1"])
)
some_selectors = st.lists(selectors, min_size=1, max_size=3)
expiries = st.sampled_from([None, "2020-01-01T00:00:00Z", "2090-01-01T00:00:00+02:00"])


@st.composite
def grants(draw: st.DrawFn) -> dict[str, object]:
    grant: dict[str, object] = {
        "from": draw(some_selectors),
        "to": draw(some_selectors),
        "ip": draw(st.lists(ips, min_size=1, max_size=3)),
    }
    expires = draw(expiries)
    return grant | ({"expires": expires} if expires else {})


SERVICES = ("tools", "web", "db")
_GATEWAYS: tuple[dict[str, object], ...] = (
    {"mcp": {"upstream": "http://127.0.0.1:3000/mcp"}},
    {"mcp": {"upstream": "http://127.0.0.1:3001/mcp"}},
    {"http": {"upstream": "http://127.0.0.1:8000"}},
    {"port": 3},
)


@st.composite
def services(draw: st.DrawFn) -> dict[str, dict[str, object]]:
    """Up to three services, of any kind; most have addresses of their own."""
    found = draw(st.dictionaries(st.sampled_from(SERVICES), st.sampled_from(_GATEWAYS)))
    return {name: {"on": draw(some_selectors), **how} for name, how in found.items()}


@st.composite
def service_grants(draw: st.DrawFn, declared: dict[str, dict[str, object]]) -> dict[str, object]:
    to = draw(st.lists(st.sampled_from(sorted(declared)), min_size=1, max_size=2, unique=True))
    grant: dict[str, object] = {"from": draw(some_selectors), "to": [f"svc:{name}" for name in to]}
    if all("mcp" in declared[name] for name in to):
        grant["mcp"] = {"tools": draw(st.sampled_from([["*"], ["search_*"]]))}
    return grant


@st.composite
def policies_with_services(draw: st.DrawFn, max_grants: int = 3) -> str:
    """Like `policies`, with services and grants to them, and with relays."""
    document = json.loads(draw(policies(max_grants)))
    regions = draw(st.dictionaries(st.sampled_from(["eu", "us"]), some_selectors, max_size=2))
    if regions:
        document["relays"] = {name: {"on": on} for name, on in regions.items()}
    declared = draw(services())
    if declared:
        document["services"] = declared
        document["grants"] += draw(st.lists(service_grants(declared), max_size=max_grants))
    return json.dumps(document)


@st.composite
def policies(draw: st.DrawFn, max_grants: int = 5) -> str:
    """The text of a valid document over nodes h1 to h8; what its hosts and groups hold differs, too."""
    hosts = HOSTS | {"low": draw(st.sampled_from(["100.64.0.0/30", "100.64.0.4/30", "100.64.0.0/29"]))}
    groups = GROUPS | {"ops": draw(st.sampled_from([["tag:a", "h3"], ["tag:b"], ["h3", "low"]]))}
    return json.dumps({"hosts": hosts, "groups": groups, "grants": draw(st.lists(grants(), max_size=max_grants))})


@st.composite
def temporaries(draw: st.DrawFn) -> TemporaryGrant:
    """Also one that has ended, and one whose group no document knows."""
    chosen = st.one_of(
        st.sampled_from(["group:nobody", "*", "group:ops", "host:low"]),
        st.sampled_from([f"tag:{tag}" for tag in TAGS]),
        st.integers(1, 8).map(lambda n: f"node:h{n}"),
    )
    return TemporaryGrant(
        id=f"t{draw(st.integers(1, 3))}",
        from_=tuple(draw(st.lists(chosen, min_size=1, max_size=2, unique=True))),
        to=tuple(draw(st.lists(chosen, min_size=1, max_size=2, unique=True))),
        ip=(draw(ips),),
        reason="drawn",
        actor="token:wma_x",
        expires=draw(st.sampled_from([int(NOW) - 1, int(NOW) + 10, int(NOW) + 3600])),
    )


@st.composite
def records(draw: st.DrawFn, number: int) -> NodeRecord:
    return node(
        number,
        *draw(st.sets(st.sampled_from(TAGS), max_size=2)),
        state=draw(st.sampled_from(["active", "active", "active", "pending", "disabled"])),
        behind_nat=draw(st.booleans()),
        kind=draw(st.sampled_from(["agent", "agent", "static"])),
    )


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    numbers = draw(st.sets(st.integers(1, 8), max_size=6))
    nodes = [draw(records(number)) for number in sorted(numbers)]
    return fleet(nodes, draw(policies()), grants=draw(st.lists(temporaries(), max_size=2)))


@st.composite
def places(draw: st.DrawFn, name: str) -> ServiceRecord:
    """Where a service is: at one of two numbers, held by a node that may serve it, by another, or by nobody."""
    number = SERVICES.index(name) * 2 + draw(st.integers(1, 2))
    return place(name, number, draw(st.sampled_from([None, *(f"n{n}" for n in range(1, 9))])))


@st.composite
def fleets_with_services(draw: st.DrawFn) -> Fleet:
    numbers = draw(st.sets(st.integers(1, 8), max_size=6))
    among = [draw(records(number)) for number in sorted(numbers)]
    placed = [draw(places(name)) for name in SERVICES if draw(st.booleans())]
    return fleet(among, draw(policies_with_services()), grants=draw(st.lists(temporaries(), max_size=2)), places=placed)
