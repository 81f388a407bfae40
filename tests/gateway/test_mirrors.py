"""Arguments that a tool has mirrored in `Mcp-Param-*`: header and argument say the same, or nothing is done."""

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.inbound import encode_header_value, mcp_param_headers, validate_mcp_param_headers

from agentd.gateway import mirrors
from agentd.gateway.http.exchange import Exchange
from agentd.gateway.mirrors import Mirrors, declared, disagreement
from agentd.gateway.types import AuditEvent, Code
from controller.wire.mcp import ArgumentRule, ToolRules, Under
from tests.gateway.harness import BOB, CALLERS, Answer, Client, Lab, body, caller, modern, tool
from tests.gateway.upstream import Seen, Upstream, echo
from tests.gateway.warming import warm

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "x-mcp-header": "Path"},
        "count": {"type": "integer", "x-mcp-header": "Max-Count"},
        "deep": {"type": "object", "properties": {"flag": {"type": "boolean", "x-mcp-header": "Flag"}}},
        "free": {"type": "string"},
    },
}
PLAIN: dict[str, Any] = {"type": "object", "properties": {"path": {"type": "string"}}}


def listing(*tools: dict[str, Any], **by_token: dict[str, Any]) -> Any:
    """An upstream whose tools/list names these tools; callers that show one of the tokens get that one instead."""

    async def behaviour(seen: Seen) -> None:
        if seen.body and seen.json.get("method") == "tools/list":
            shown = by_token.get((seen.get("authorization") or "").removeprefix("Bearer "))
            seen.result(tools=[shown] if shown is not None else list(tools))
        else:
            await echo(seen)

    return behaviour


def described(schema: dict[str, Any], name: str = "read") -> dict[str, Any]:
    return {"name": name, "inputSchema": schema}


def calls(upstream: Upstream) -> list[Seen]:
    return [seen for seen in upstream.seen if seen.body and seen.json["method"] == "tools/call"]


async def reading(client: Client, headers: dict[str, str], **arguments: object) -> Answer:
    data, given_headers = tool("read", **arguments)
    return await client.ask("POST", data, {**given_headers, **headers})


AGREED: dict[str, tuple[dict[str, str], dict[str, object]]] = {
    "a string": ({"Mcp-Param-Path": "/a"}, {"path": "/a"}),
    "a header in another case": ({"mcp-param-PATH": "/a"}, {"path": "/a"}),
    "padding": ({"Mcp-Param-Path": "  /a\t"}, {"path": "/a"}),
    "base64": ({"Mcp-Param-Path": f"=?base64?{base64.b64encode('/ä '.encode()).decode()}?="}, {"path": "/ä "}),
    "a number": ({"Mcp-Param-Max-Count": "42"}, {"count": 42}),
    "the same number otherwise": ({"Mcp-Param-Max-Count": "42"}, {"count": 42.0}),
    "the same number the other way round": ({"Mcp-Param-Max-Count": "42.00"}, {"count": 42}),
    "a nested argument": ({"Mcp-Param-Flag": "true"}, {"deep": {"flag": True}}),
    "nothing": ({}, {"free": "x"}),
    "null, which is nothing": ({}, {"path": None}),
    "an argument that no header can say": ({}, {"path": ["/a"]}),
    "headers that the tool does not know": ({"Mcp-Param-Free": "y", "Mcp-Param-Other_One": "=?x"}, {"free": "x"}),
}
CONTRADICTED: dict[str, tuple[dict[str, str], dict[str, object]]] = {
    "another string": ({"Mcp-Param-Path": "/etc"}, {"path": "/a"}),
    "a string in another case": ({"Mcp-Param-Path": "/A"}, {"path": "/a"}),
    "no header": ({}, {"path": "/a"}),
    "no argument": ({"Mcp-Param-Path": "/a"}, {}),
    "null": ({"Mcp-Param-Path": "null"}, {"path": None}),
    "another number": ({"Mcp-Param-Max-Count": "41"}, {"count": 42}),
    "a number and a bit": ({"Mcp-Param-Max-Count": "42.5"}, {"count": 42}),
    "a truth in another case": ({"Mcp-Param-Flag": "True"}, {"deep": {"flag": True}}),
    "an empty header": ({"Mcp-Param-Path": ""}, {"path": "/a"}),
    "broken base64": ({"Mcp-Param-Path": "=?base64?L2E?="}, {"path": "/a"}),
    "two headers": ({"Mcp-Param-Path": "/a", "MCP-PARAM-PATH": "/a"}, {"path": "/a"}),
    "a header that CGI takes for it": ({"Mcp-Param-Max-Count": "1", "Mcp-Param-Max_Count": "9"}, {"count": 1}),
    "a list": ({"Mcp-Param-Path": "['/a']"}, {"path": ["/a"]}),
}


@pytest.mark.parametrize("name", AGREED)
async def test_a_call_whose_headers_agree_with_its_arguments_passes_untouched(lab: Lab, name: str) -> None:
    headers, arguments = AGREED[name]
    upstream = await lab.upstream(listing(described(SCHEMA)))
    client = await lab.client(await lab.gateway(upstream))
    assert (await client.call(modern("tools/list"))).status == 200
    assert (await reading(client, headers, **arguments)).status == 200
    (seen,) = calls(upstream)
    assert {key: seen.get(key.lower()) for key in headers} == {key: value.strip() for key, value in headers.items()}


@pytest.mark.parametrize("name", CONTRADICTED)
async def test_a_header_and_an_argument_that_contradict_each_other_are_refused(lab: Lab, name: str) -> None:
    headers, arguments = CONTRADICTED[name]
    upstream = await lab.upstream(listing(described(SCHEMA)))
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    assert (await client.call(modern("tools/list"))).status == 200
    answer = await reading(client, headers, **arguments)
    assert (answer.status, answer.code, answer.json["id"]) == (400, -32020, 1)
    assert "Mcp-Param-" in answer.json["error"]["message"]
    assert calls(upstream) == []
    assert len(running.records.of(AuditEvent.REQUEST_REFUSED)) == 1


async def test_an_argument_rule_cannot_be_passed_by_saying_something_else_in_the_header(lab: Lab) -> None:
    below = ArgumentRule(argument="path", tests=(Under(paths=("/project",)),))
    rules = [ToolRules(tools=("read",), arguments=(below,)).model_dump()]
    grant = {"id": "bobs", "peers": ["bob"], "services": ["svc"], "tools": ["read"], "args": rules}
    upstream = await lab.upstream(listing(described(SCHEMA)))
    client = await lab.client(await lab.gateway(upstream, grants=[grant]), BOB)
    assert (await client.call(modern("tools/list"))).status == 200
    forged = await reading(client, {"Mcp-Param-Path": "/etc/shadow"}, path="/project/a")
    assert (forged.status, forged.code) == (400, -32020)
    honest = await reading(client, {"Mcp-Param-Path": "/etc/shadow"}, path="/etc/shadow")
    assert honest.code == Code.ARGUMENT_DENIED
    assert (await reading(client, {"Mcp-Param-Path": "/project/a"}, path="/project/a")).status == 200
    assert [seen.get("mcp-param-path") for seen in calls(upstream)] == ["/project/a"]


async def test_headers_are_no_ones_to_judge_until_the_upstream_said_what_they_mirror(lab: Lab) -> None:
    upstream = await lab.upstream(listing(described(PLAIN)))
    client = await lab.client(await lab.gateway(upstream))
    for _ in range(2):
        assert (await reading(client, {"Mcp-Param-Path": "/etc"}, path="/a")).status == 200
        assert (await client.call(modern("tools/list"))).status == 200
    upstream.behaviour = listing(described(SCHEMA))
    assert (await client.call(modern("tools/list"))).status == 200
    assert (await reading(client, {"Mcp-Param-Path": "/etc"}, path="/a")).code == -32020
    upstream.behaviour = listing(described(PLAIN))
    assert (await client.call(modern("tools/list"))).status == 200
    assert (await reading(client, {"Mcp-Param-Path": "/etc"}, path="/a")).status == 200


async def test_what_one_caller_was_told_holds_for_those_that_asked_for_no_list(lab: Lab) -> None:
    grant = {"id": "bobs", "peers": ["bob"], "services": ["svc"], "tools": ["read"]}
    upstream = await lab.upstream(listing(described(SCHEMA)))
    running = await lab.gateway(upstream, grants=[grant])
    assert (await (await lab.client(running)).call(modern("tools/list"))).status == 200
    bob = await lab.client(running, BOB)
    assert (await reading(bob, {"Mcp-Param-Path": "/etc"}, path="/a")).code == -32020
    assert (await reading(bob, {"Mcp-Param-Path": "/a"}, path="/a")).status == 200


async def test_lists_that_differ_by_token_are_each_held_for_who_got_them(lab: Lab) -> None:
    upstream = await lab.upstream(listing(plain=described(PLAIN), full=described(SCHEMA)))
    client = await lab.client(await lab.gateway(upstream))
    plain, full = {"authorization": "Bearer plain"}, {"authorization": "Bearer full"}
    for headers in (full, plain):
        assert (await client.call(modern("tools/list"), **headers)).status == 200
    assert (await reading(client, {**plain, "Mcp-Param-Path": "/etc"}, path="/a")).status == 200
    assert (await reading(client, {**full, "Mcp-Param-Path": "/etc"}, path="/a")).code == -32020


async def test_what_is_mirrored_is_still_known_when_the_policy_changed(lab: Lab) -> None:
    upstream = await lab.upstream(listing(described(SCHEMA)))
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    assert (await client.call(modern("tools/list"))).status == 200
    await running.adopt([], limits={"streams": 7})
    assert (await reading(client, {"Mcp-Param-Path": "/etc"}, path="/a")).code == -32020


async def test_a_tool_that_policy_hides_is_held_to_its_headers_when_policy_shows_it(lab: Lab) -> None:
    hidden = {"id": "few", "peers": ["alice"], "services": ["svc"], "tools": ["other"]}
    upstream = await lab.upstream(listing(described(SCHEMA)))
    running = await lab.gateway(upstream)
    await running.adopt([hidden], without_alice=True)
    client = await lab.client(running)
    assert (await client.call(modern("tools/list"))).json["result"]["tools"] == []
    await running.adopt([])
    assert (await reading(client, {"Mcp-Param-Path": "/etc"}, path="/a")).code == -32020


async def test_legacy_clients_need_no_such_headers_and_may_not_lie_in_them(lab: Lab) -> None:
    upstream = await lab.upstream(listing(described(SCHEMA)))
    client = await lab.client(await lab.gateway(upstream))
    version = {"mcp-protocol-version": "2025-11-25"}
    assert (await client.ask("POST", body("tools/list", meta=None), version)).status == 200
    data = body("tools/call", meta=None, name="read", arguments={"path": "/a"})
    assert (await client.ask("POST", data, version)).status == 200
    assert (await client.ask("POST", data, {**version, "Mcp-Param-Path": "/a"})).status == 200
    assert (await client.ask("POST", data, {**version, "Mcp-Param-Path": "/etc"})).code == -32020


async def test_a_known_head_passes_no_other_argument_than_the_one_that_it_says(lab: Lab, taken: list[Exchange]) -> None:
    upstream = await lab.upstream(listing(described(SCHEMA)))
    client = await lab.client(await lab.gateway(upstream))
    assert (await client.call(modern("tools/list"))).status == 200
    data, headers = tool("read", path="/a")
    headers["Mcp-Param-Path"] = "/a"
    await warm(client, taken, (data, headers))
    before = len(calls(upstream))
    for number in range(3):
        wrong = await client.ask("POST", tool("read", number, path="/b")[0], headers)
        assert (wrong.status, wrong.code) == (400, -32020)
    assert len(calls(upstream)) == before
    shortened = len(taken)
    assert (await client.ask("POST", tool("read", 9, path="/a", free="x")[0], headers)).status == 200
    assert len(taken) == shortened + 1


async def test_a_head_that_was_usual_is_held_to_what_is_learnt_later(lab: Lab, taken: list[Exchange]) -> None:
    upstream = await lab.upstream(listing(described(SCHEMA)))
    client = await lab.client(await lab.gateway(upstream))
    request = tool("read", path="/a")
    await warm(client, taken, request)
    assert (await client.call(modern("tools/list"))).status == 200
    assert (await client.call(request)).code == -32020


def test_what_is_remembered_is_bounded_and_no_caller_can_make_it_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "_MOST_TOLD", 10)
    known, alice = Mirrors(), CALLERS["127.0.0.1"]
    for number in range(100):
        fields = {b"authorization": b"Bearer %d" % number}
        known.learn(mirrors.reader(alice, fields), {"tools": [described(SCHEMA)]})
    other = mirrors.reader(caller("127.0.0.7", "carol"), {})
    assert [mirror.shown for mirror in known.of(other, "read")] != []
    for number in range(100):
        known.learn(other, {"tools": [described(PLAIN, f"plain-{number}"), None, {"name": 7}, {"name": "x" * 9999}]})
    assert known.of(other, "plain-1") == ()


def test_large_annotations_are_remembered_of_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "_MOST_BYTES", 50_000)
    known = Mirrors()

    def header(number: int) -> str:
        return known.of((str(number), 0), "read")[0].shown

    for number in range(100):
        annotated = {"properties": {"x" * 2000: {"type": "string", "x-mcp-header": f"H{number}"}}}
        known.learn((str(number), 0), {"tools": [described(annotated)]})
    assert 1 <= sum(header(number) == f"Mcp-Param-H{number}" for number in range(99)) <= 25
    assert header(99) == header(1000) == "Mcp-Param-H99"


INVALID = {
    "no string": {"properties": {"a": {"type": "string", "x-mcp-header": 7}}},
    "no token": {"properties": {"a": {"type": "string", "x-mcp-header": "A B"}}},
    "a number, which has no one spelling": {"properties": {"a": {"type": "number", "x-mcp-header": "A"}}},
    "an object": {"properties": {"a": {"type": "object", "x-mcp-header": "A"}}},
    "one header for two": {
        "properties": {"a": {"type": "string", "x-mcp-header": "A"}, "b": {"type": "string", "x-mcp-header": "a"}}
    },
    "an item of a list": {"properties": {"a": {"items": {"type": "string", "x-mcp-header": "A"}}}},
    "the whole": {"type": "string", "x-mcp-header": "A"},
    "no schema": None,
}


@pytest.mark.parametrize("name", INVALID)
def test_a_tool_with_an_invalid_annotation_has_nothing_mirrored(name: str) -> None:
    assert declared(INVALID[name]) == ()


def test_an_annotation_that_is_only_data_is_none() -> None:
    data = {"x-mcp-header": "A", "type": "string"}
    schema = {"properties": {"a": {"type": "string", "default": data, "enum": [data], "x-mcp-header": "B"}}}
    assert [mirror.shown for mirror in declared(schema)] == ["Mcp-Param-B"]


# --- the same verdict as the reference server's

LEAF = st.fixed_dictionaries(
    {"type": st.sampled_from(["string", "integer", "boolean", "number", "object", ["string", "null"]])},
    optional={"x-mcp-header": st.sampled_from(["A", "a", "B", "C-d", "", "e f", 3]), "default": st.just({})},
)
SCHEMAS = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.builds(lambda a, b: {"type": "object", "properties": {"x": a, "y": b}}, inner, inner),
        st.builds(lambda key, one: {key: one}, st.sampled_from(["items", "not", "if", "default", "const"]), inner),
        st.builds(lambda key, one: {key: [one]}, st.sampled_from(["anyOf", "prefixItems", "enum"]), inner),
        st.builds(lambda key, one: {key: {"x": one}}, st.sampled_from(["$defs", "patternProperties"]), inner),
    ),
    max_leaves=6,
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["a", "", "42", "true", "=?base64?YQ==?=", "ä", " a "]),
    st.just([]),
)
ARGUMENTS = st.recursive(
    st.dictionaries(st.sampled_from("xy"), SCALARS),
    lambda inner: st.dictionaries(st.sampled_from("xy"), st.one_of(inner, SCALARS)),
    max_leaves=4,
)
SAID = st.sampled_from(
    ["a", "", "42", "42.0", "42.5", "-0", "007", "true", "True", "1e+22", "=?base64?YQ==?=", "=?base64?YQ?="]
)


@given(SCHEMAS, ARGUMENTS, st.dictionaries(st.sampled_from(["A", "B", "C-D", "Z"]), SAID), st.booleans())
def test_we_refuse_exactly_what_the_reference_server_refuses(
    schema: Any, arguments: dict[str, Any], said: dict[str, str], honest: bool
) -> None:
    headers = {f"mcp-param-{name.lower()}": text for name, text in said.items()}
    if honest:  # as a client sends them, with some of them overwritten
        paths = {mirror.path: mirror.shown.removeprefix("Mcp-Param-") for mirror in declared(schema)}
        headers = {name.lower(): text for name, text in mcp_param_headers(paths, arguments).items()} | headers
    fields = {name.encode(): text.encode() for name, text in headers.items()}
    ours = disagreement(declared(schema), arguments, fields, frozenset(), "modern")
    theirs = validate_mcp_param_headers(schema, arguments, headers)
    assert (ours is None) == (theirs is None), (ours, theirs)


@given(st.text(), st.booleans(), st.integers(-(2**63), 2**63 - 1))
def test_what_a_client_mirrors_agrees_with_what_it_sends(path: str, flag: bool, count: int) -> None:
    arguments = {"path": path, "count": count, "deep": {"flag": flag}}
    said = {"path": path, "max-count": str(count), "flag": str(flag).lower()}
    fields = {f"mcp-param-{name}".encode(): encode_header_value(text).encode() for name, text in said.items()}
    assert disagreement(declared(SCHEMA), arguments, fields, frozenset(), "modern") is None
