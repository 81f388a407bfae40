"""A call means the same to everybody who speaks of it: `policy explain`, a document's own tests, and the gateway.

Each gets there by its own way: explain by the mesh in memory, tests by the document, the gateway by its host's map.
"""

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from agentd.gateway.limits import Limiter
from agentd.gateway.policy import CompiledPolicy
from agentd.gateway.types import Allow, Call, Caller, Deny
from agentd.serving import gateway_policy
from controller.explain_calls import explain_call
from controller.mesh import Hub
from controller.policy import check
from controller.wire.services import CallQuestion

from .mesh_fleet import NOW, fleet, key, node, place

SERVICES = {"github": {"on": ["tag:tools"], "mcp": {"upstream": "http://127.0.0.1:3000/mcp"}}}
NODES = [node(1, "agents"), node(2, "ops"), node(3, "tools"), node(4, "agents", "ops")]
TOOLS = ("get", "get_file", "GET_FILE", "delete", "\uff44elete")
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {},
    {"path": "/srv/a"},
    {"path": "/srv/../etc"},
    {"path": "/srv/%2e%2e/etc"},
    {"path": "/srv/a", "size": 3},
    {"size": 30},
    {"path": 7, "size": 3},
)
RULES = ({"path": {"under": "/srv"}}, {"size": {"range": {"max": 10}, "optional": True}}, {"path": {"pattern": "/s.*"}})


@st.composite
def grants(draw: st.DrawFn) -> dict[str, object]:
    tools = draw(
        st.lists(st.sampled_from(["get", "get*", "*", "*_file", "delete"]), min_size=1, max_size=2, unique=True)
    )
    mcp: dict[str, object] = {"tools": tools}
    if draw(st.booleans()):
        mcp["deny_tools"] = draw(st.sampled_from([["delete"], ["GET*"]]))
    if draw(st.booleans()):
        mcp["args"] = {tools[0]: draw(st.sampled_from(RULES))}
    grant: dict[str, object] = {"from": draw(st.sampled_from(["tag:agents", "tag:ops", "h2"])), "to": "svc:github"}
    ends = draw(st.sampled_from([None, None, "2020-01-01T00:00:00Z", "2090-01-01T00:00:00Z"]))
    return grant | {"mcp": mcp} | ({"expires": ends} if ends else {})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(grants(), max_size=3),
    st.sampled_from(["h1", "h2", "h4"]),
    st.sampled_from(TOOLS),
    st.sampled_from(ARGUMENTS),
)
async def test_explain_tests_and_the_gateway_agree_on_every_call(
    some: list[dict[str, object]], who: str, tool: str, arguments: dict[str, Any]
) -> None:
    document: dict[str, Any] = {"services": SERVICES, "grants": some}
    hub = Hub(lambda: NOW)
    hub.load(fleet(NODES, json.dumps(document), revision=5, places=[place("github", 1, "n3")]))

    question = CallQuestion(source=who, service="svc:github", tool=tool, arguments=arguments)
    explained = explain_call(hub, question, datetime.fromtimestamp(NOW, UTC))
    decided = decision(hub, who, tool, arguments)
    event("allowed" if explained.allowed else "denied")

    assert isinstance(decided, Allow) is explained.allowed
    if isinstance(decided, Allow):
        assert decided.grant in {grant.id for grant in explained.grants}
    elif isinstance(decided, Deny):
        assert explained.reason is not None
        assert decided.message.startswith(explained.reason)
        assert (decided.grant_needed or "") == explained.needed
    for word in ("accept", "deny"):
        test = {"from": who, "to": "svc:github", word: {"tools": [{tool: arguments}]}}
        report = check(json.dumps(document | {"tests": [test]}), fleet(NODES), now=NOW)
        assert report.ok is (explained.allowed is (word == "accept")), report


def decision(hub: Hub, who: str, tool: str, arguments: dict[str, Any]) -> object:
    """What the gateway of the service's holder decides."""
    netmap = hub.netmap("n3")
    assert netmap is not None
    record = next(one for one in NODES if one.name == who)
    caller = Caller(record.id, record.name, key(1), tuple(sorted(record.tags)), record.addresses[0])
    params = {"name": tool, "arguments": arguments}
    call = Call("github", "modern", "tools/call", tool, arguments, 1, b"", params)
    tables = CompiledPolicy(gateway_policy(netmap), Limiter(), clock=lambda: NOW)
    return tables.decide(caller, call, NOW)
