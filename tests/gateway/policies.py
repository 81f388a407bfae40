"""Random and sample policies, callers and calls for the tests of the gateway's decisions."""

from collections.abc import Mapping
from typing import Any, Literal

from hypothesis import strategies as st

from agentd.gateway.types import Call, Caller
from controller.wire.mcp import (
    ArgumentRule,
    Equals,
    GatewayPolicy,
    HostIn,
    HttpUpstream,
    Matches,
    McpGrant,
    OneOf,
    Range,
    Rate,
    Service,
    ToolRate,
    ToolRules,
    Under,
)
from controller.wire.netmap import AddressSet

ADDRESSES = ("192.0.2.1", "192.0.2.2", "2001:db8::3")
SERVICES = ("alpha", "beta")
NAMES = ("get", "get_file", "GET_FILE", "search", "a/b", "", "g" * 300, "\uff47et", "tasks/get")
URIS = (
    "file:///srv/a",
    "file:///srv/a/b",
    "file:///srv/../etc",
    "file:///srv/%2e%2e/etc",
    "file:///srv/%252e%252e/etc",
    "file:///srv/a%2fb",
    "file:///srv/a\\b",
    "test://x?a/../b",
)
GLOBS = ("*", "get*", "*_file", "search", "**", "a/*", "tasks/*", "GET")
URI_GLOBS = ("*", "**", "file:///srv/*", "file:///srv/**", "test://*")
METHODS = (
    "tools/call",
    "tools/call",
    "tools/call",
    "tools/list",
    "prompts/get",
    "resources/read",
    "resources/subscribe",
    "completion/complete",
    "subscriptions/listen",
    "notifications/cancelled",
    "initialize",
    "tasks/get",
)


def caller(address: str = ADDRESSES[0], name: str = "agent-1") -> Caller:
    return Caller(
        node_id=f"n-{name}",
        name=name,
        public_key="nPzpP0wYnqyYkmpDCYQ1qCZh7aiVwXZ4jq1K4wXJpzA=",
        tags=("tag:agents",),
        address=address,
    )


def call(
    method: str,
    params: Mapping[str, Any],
    service: str = "alpha",
    request_id: int | None = 1,
    era: Literal["modern", "legacy"] = "legacy",
) -> Call:
    arguments, name = params.get("arguments"), params.get("name") or params.get("uri")
    return Call(
        service=service,
        era=era,
        method=method,
        name=name if isinstance(name, str) else None,
        arguments=arguments if isinstance(arguments, dict) else None,
        request_id=request_id,
        body=b"",
        params=params,
    )


def tool_call(tool: str, arguments: Mapping[str, Any] | None = None, service: str = "alpha") -> Call:
    return call("tools/call", {"name": tool, "arguments": dict(arguments or {})}, service)


def policy(*grants: McpGrant, services: tuple[Service, ...] = ()) -> GatewayPolicy:
    """One set, `tag:agents`, with the first two addresses; services alpha and beta unless others are given."""
    services = services or tuple(Service(name=n, upstream=HttpUpstream(url="http://127.0.0.1:9/")) for n in SERVICES)
    return GatewayPolicy(
        revision=1,
        services={service.name: service for service in services},
        grants={grant.id: grant for grant in grants},
        sets={"tag:agents": AddressSet(name="tag:agents", addresses=frozenset(ADDRESSES[:2]))},
    )


def grant(**fields: Any) -> McpGrant:
    return McpGrant(**{"id": "g1", "peers": ("tag:agents",), "services": ("alpha",), **fields})


_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.0, 1.0, 1.5, 10**30, float("inf")]),
    st.sampled_from(["", "x", "get", "/srv/a", "/srv/../etc", "/srv/%2e%2e/x", "https://api.example.com/", *URIS]),
)
json_values = st.recursive(
    _values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
_tests = st.one_of(
    json_values.map(lambda value: Equals(value=value)),
    st.lists(_values, min_size=1, max_size=3).map(lambda values: OneOf(values=tuple(values))),
    st.sampled_from(["[a-z]+", "x|get", "/srv/.*"]).map(lambda pattern: Matches(pattern=pattern)),
    st.tuples(st.none() | st.integers(-2, 1), st.none() | st.integers(0, 2)).map(
        lambda bounds: Range(minimum=bounds[0], maximum=bounds[1])
    ),
    st.sampled_from([("/srv",), ("/", "."), ("docs",)]).map(lambda paths: Under(paths=paths)),
    st.just(HostIn(hosts=("*.example.com",))),
)
_rules = st.builds(
    ArgumentRule,
    argument=st.sampled_from(["a", "b", "/a/0", "/b/a"]),
    tests=st.lists(_tests, min_size=1, max_size=2).map(tuple),
    optional=st.booleans(),
    each=st.booleans(),
)
_tool_rules = st.builds(
    ToolRules,
    tools=st.lists(st.sampled_from(GLOBS), min_size=1, max_size=2).map(tuple),
    arguments=st.lists(_rules, min_size=1, max_size=2).map(tuple),
    arguments_schema=st.none()
    | st.sampled_from([{"required": ["a"]}, {"additionalProperties": False, "properties": {"a": {}}}]),
)


def _globs(of: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(of), max_size=3).map(tuple)


@st.composite
def policies(draw: st.DrawFn) -> GatewayPolicy:
    grants = [
        McpGrant(
            id=f"g{number}",
            peers=draw(st.sampled_from([("tag:a",), ("tag:a", "tag:b"), ("tag:b",), ("tag:gone",)])),
            services=draw(st.sampled_from([("alpha",), ("beta", "alpha"), ("alpha",), ("gone",)])),
            tools=draw(st.sampled_from([("*",), ("get*", "search"), ("*_file", "a/*"), ("*",), ()])),
            deny_tools=draw(st.sampled_from([(), (), ("GET",), ("*_file",), ("*",)])),
            prompts=draw(_globs(GLOBS)),
            resources=draw(_globs(URI_GLOBS)),
            methods=draw(_globs(GLOBS)),
            args=draw(st.lists(_tool_rules, min_size=number % 2, max_size=2).map(tuple)),
            limits=draw(st.sampled_from([(), (ToolRate(tools=("get*",), rate=Rate(calls=1000, seconds=1)),)])),
            expires=draw(st.sampled_from([None, None, 5, 10, 15])),
        )
        for number in range(draw(st.integers(1, 4)))
    ]
    members = st.sampled_from([ADDRESSES, ADDRESSES[:2], ADDRESSES[2:]]).map(frozenset)
    return GatewayPolicy(
        revision=1,
        services={name: Service(name=name, upstream=HttpUpstream(url="http://127.0.0.1:9/")) for name in SERVICES},
        grants={each.id: each for each in grants},
        sets={name: AddressSet(name=name, addresses=draw(members)) for name in ("tag:a", "tag:b")},
    )


@st.composite
def calls(draw: st.DrawFn) -> Call:
    uris = st.sampled_from(URIS)
    params: dict[str, Any] = {
        "name": draw(st.sampled_from([*NAMES, *NAMES[:4], None, 7])),
        "uri": draw(uris),
        "ref": draw(
            st.sampled_from(
                [None, {"type": "ref/prompt", "name": "get"}, {"type": "ref/resource", "uri": "test://{a}"}]
            )
        ),
        "notifications": draw(st.sampled_from([None, {}, {"resourceSubscriptions": "x"}])),
        "arguments": draw(
            st.dictionaries(st.sampled_from("ab"), json_values, min_size=1, max_size=2)
            | st.sampled_from([None, [], "x", {"c": 1}])
        ),
    }
    if draw(st.booleans()):
        params["notifications"] = {"resourceSubscriptions": draw(st.lists(uris, max_size=3))}
    return call(draw(st.sampled_from(METHODS)), params, draw(st.sampled_from([*SERVICES, "alpha", "alpha", "gone"])))
