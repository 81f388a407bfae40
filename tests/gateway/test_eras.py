"""Requests that speak alike are of one era, whatever else their `_meta` says."""

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from agentd.gateway.eras import Accepted, classify, speaks_alike
from agentd.gateway.jsonrpc import Message

VERSION, CAPABILITIES = "io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientCapabilities"
ABSENT = object()
VERSIONS = st.sampled_from(["2026-07-28", "2025-06-18", "1999-01-01", "", None, True, 1, {}, ABSENT])
PARTS = st.sampled_from([{}, None, 1, ABSENT])
NO_OBJECTS = st.sampled_from([None, "2026-07-28", 1, [VERSION, CAPABILITIES], ABSENT])


def meta(version: Any, capabilities: Any, other: Any) -> dict[str, Any]:
    given_ = {VERSION: version, CAPABILITIES: capabilities, "progressToken": other}
    return {key: said for key, said in given_.items() if said is not ABSENT}


METAS = st.builds(meta, st.just("2026-07-28"), PARTS, PARTS) | st.builds(meta, VERSIONS, PARTS, PARTS) | NO_OBJECTS
METHODS = st.just("tools/call") | st.sampled_from(
    ["tools/call", "prompts/get", "resources/read", "tools/list", "initialize", "x/y"]
)
RIGHT = {b"mcp-protocol-version": b"2026-07-28", b"mcp-method": b"tools/call", b"mcp-name": b"add"}
ROUTING = st.just(RIGHT) | st.fixed_dictionaries(
    {},
    optional={
        b"mcp-protocol-version": st.sampled_from([b"2026-07-28", b"2025-06-18", b"1999-01-01", b""]),
        b"mcp-method": st.sampled_from([b"tools/call", b"prompts/get", b"resources/read", b"tools/list"]),
        b"mcp-name": st.sampled_from([b"add", b"other"]),
    },
)


def message(method: str, said: Any) -> Message:
    params = {"name": "add", "uri": "add"} | ({} if said is ABSENT else {"_meta": said})
    return Message("request", 1, method, params)


@example(RIGHT, "tools/call", meta("2026-07-28", {}, ABSENT), meta("2026-07-28", ABSENT, ABSENT))
@given(ROUTING, METHODS, METAS, METAS)
def test_what_speaks_as_an_accepted_request_is_accepted_as_the_same(
    routing: dict[bytes, bytes], method: str, first: Any, other: Any
) -> None:
    accepted, like = message(method, first), message(method, other)
    found = classify(routing, frozenset(), accepted)
    alike = speaks_alike(like.params.get("_meta"), accepted.params.get("_meta"))
    if isinstance(found, Accepted) and alike:
        again = classify(routing, frozenset(), like)
        assert isinstance(again, Accepted)
        assert (again.era, again.version, again.name) == (found.era, found.version, found.name)
