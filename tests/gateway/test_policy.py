"""Decisions: what is allowed, by which grant, what is refused, and with which remedy."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentd.gateway.limits import Limiter
from agentd.gateway.policy import INVALID_PARAMS, METHOD_NOT_FOUND, CompiledPolicy
from agentd.gateway.types import Allow, Call, Code, Deny, UpstreamError
from controller.wire.calls import judge
from controller.wire.mcp import (
    ArgumentRule,
    GatewayPolicy,
    HttpUpstream,
    Limits,
    McpGrant,
    Rate,
    Service,
    ToolRate,
    ToolRules,
    Under,
)

from .policies import ADDRESSES, call, caller, calls, grant, policies, policy, tool_call


def compiled(*grants: McpGrant, services: tuple[Service, ...] = (), now: float = 0.0) -> CompiledPolicy:
    return CompiledPolicy(policy(*grants, services=services), Limiter(), clock=lambda: now)


@settings(max_examples=300)
@given(
    policies(), st.lists(calls(), min_size=1, max_size=6), st.sampled_from(ADDRESSES), st.sampled_from([0.0, 7.0, 20.0])
)
def test_the_tables_decide_as_the_reference_model_does(
    random_policy: GatewayPolicy, some_calls: list[Call], address: str, now: float
) -> None:
    tables = CompiledPolicy(random_policy, Limiter(), clock=lambda: now)
    who = caller(address)
    for each in [*some_calls, *some_calls]:  # twice: what is remembered answers as what was computed
        verdict = judge(random_policy, address, each.service, each.method, each.params, now=now)
        decision = tables.decide(who, each, now)
        assert tables.holds(who, each, now) is verdict.allowed
        if verdict.allowed:
            assert decision == Allow(verdict.grants[0])
        else:
            assert isinstance(decision, Deny)
            assert verdict.refusal is not None
            assert decision.message.startswith(verdict.refusal.message[:100])


def test_nothing_is_allowed_without_a_grant() -> None:
    decision = compiled().decide(caller(), tool_call("get_file"), 0.0)
    assert decision == Deny(
        Code.DENIED,
        "no grant lets you use service 'alpha'; an admin could add "
        "a grant to svc:alpha with mcp: {tools: [get_file]} for agent-1",
        "a grant to svc:alpha with mcp: {tools: [get_file]}",
    )


def test_a_grant_is_for_its_peers_only() -> None:
    tables = compiled(grant(tools=("*",)))
    assert tables.decide(caller(ADDRESSES[0]), tool_call("x"), 0.0) == Allow("g1")
    assert isinstance(tables.decide(caller(ADDRESSES[2]), tool_call("x"), 0.0), Deny)


def test_a_denied_tool_names_the_grant_that_would_be_needed() -> None:
    decision = compiled(grant(tools=("search_*",))).decide(caller(), tool_call("create_issue"), 0.0)
    assert isinstance(decision, Deny)
    assert decision.code == Code.DENIED
    assert decision.grant_needed == "a grant to svc:alpha with mcp: {tools: [create_issue]}"
    assert "create_issue" in decision.message
    assert "agent-1" in decision.message


def test_who_has_no_grant_at_all_is_told_one_that_names_what_was_wanted() -> None:
    tables, stranger = compiled(grant(tools=("*",))), caller(ADDRESSES[2])
    plain = Call(service="alpha", era="http", method="GET", name="/x", arguments=None, request_id=None, body=b"")
    for wanted, needed in (
        (tool_call("add"), "a grant to svc:alpha with mcp: {tools: [add]}"),
        (plain, "a grant to svc:alpha"),
    ):
        decision = tables.decide(stranger, wanted, 0.0)
        assert isinstance(decision, Deny)
        assert decision.grant_needed == needed


def test_deny_tools_holds_in_every_spelling_of_the_name() -> None:
    tables = compiled(grant(tools=("*",), deny_tools=("delete_*",)))
    for name in ("delete_repo", "DELETE_repo", "\uff44elete_repo"):
        assert isinstance(tables.decide(caller(), tool_call(name), 0.0), Deny), name
    assert tables.decide(caller(), tool_call("undelete_repo"), 0.0) == Allow("g1")


def test_deny_tools_narrows_its_own_grant_only() -> None:
    tables = compiled(grant(tools=("*",), deny_tools=("delete_*",)), grant(id="g2", tools=("delete_branch",)))
    assert tables.decide(caller(), tool_call("delete_branch"), 0.0) == Allow("g2")


def test_a_denied_argument_says_what_it_must_be() -> None:
    rules = ToolRules(tools=("get_file",), arguments=(ArgumentRule(argument="path", tests=(Under(paths=("/srv",)),)),))
    tables = compiled(grant(tools=("*",), args=(rules,)))
    assert tables.decide(caller(), tool_call("get_file", {"path": "/srv/x"}), 0.0) == Allow("g1")
    decision = tables.decide(caller(), tool_call("get_file", {"path": "/srv/../etc/passwd"}), 0.0)
    assert isinstance(decision, Deny)
    assert decision.code == Code.ARGUMENT_DENIED
    assert "argument 'path' must be a path below /srv" in decision.message
    assert "'..'" in decision.message


def test_the_next_end_of_a_grant_is_the_first_that_is_still_to_come() -> None:
    tables = compiled(*(grant(id=f"g{end}", expires=end) for end in (30, None, 10, 20, 10)))
    assert [tables.next_end(now) for now in (0.0, 9.9, 10.0, 20.0, 30.0)] == [10, 10, 20, 30, None]


def test_any_grant_is_enough_for_an_argument() -> None:
    def under(path: str) -> tuple[ToolRules, ...]:
        return (ToolRules(tools=("get",), arguments=(ArgumentRule(argument="path", tests=(Under(paths=(path,)),)),)),)

    tables = compiled(grant(tools=("get",), args=under("/a")), grant(id="g2", tools=("get",), args=under("/b")))
    assert tables.decide(caller(), tool_call("get", {"path": "/b/x"}), 0.0) == Allow("g2")
    assert isinstance(tables.decide(caller(), tool_call("get", {"path": "/c/x"}), 0.0), Deny)


def test_a_grant_ends_by_itself() -> None:
    tables = compiled(grant(tools=("*",), expires=100))
    assert tables.decide(caller(), tool_call("x"), 99.9) == Allow("g1")
    assert tables.holds(caller(), tool_call("x"), 99.9)
    assert isinstance(tables.decide(caller(), tool_call("x"), 100.0), Deny)
    assert not tables.holds(caller(), tool_call("x"), 100.0)


def test_a_malformed_call_is_invalid_and_not_denied() -> None:
    decision = compiled(grant(tools=("*",))).decide(caller(), call("tools/call", {"name": 7}), 0.0)
    assert isinstance(decision, Deny)
    assert decision.code == INVALID_PARAMS
    assert decision.grant_needed is None


def test_a_method_that_the_revision_removed_is_not_found_and_not_passed_on() -> None:
    tables = compiled(grant(resources=("*",)))
    for params in ({"uri": "file:///srv/a"}, {}):
        decision = tables.decide(caller(), call("resources/subscribe", params, era="modern"), 0.0)
        assert isinstance(decision, Deny)
        assert decision.code == METHOD_NOT_FOUND
    assert tables.decide(caller(), call("resources/subscribe", {"uri": "file:///srv/a"}), 0.0) == Allow("g1")


def test_every_subscribed_resource_must_be_granted() -> None:
    tables = compiled(grant(resources=("file:///srv/*",)))
    listen = "subscriptions/listen"
    assert tables.decide(
        caller(), call(listen, {"notifications": {"resourceSubscriptions": ["file:///srv/a"]}}), 0.0
    ) == Allow("g1")
    assert isinstance(
        tables.decide(
            caller(),
            call(listen, {"notifications": {"resourceSubscriptions": ["file:///srv/a", "file:///etc/x"]}}),
            0.0,
        ),
        Deny,
    )


@pytest.mark.parametrize(
    "uri",
    [
        "file:///srv/../etc/x",
        "file:///srv/%2e%2e/x",
        "file:///srv/a%2Fb",
        "file:///srv/a\\..\\b",
        "file:///srv/\uff0e\uff0e",
    ],
)
def test_a_resource_that_two_readers_take_differently_is_denied(uri: str) -> None:
    tables = compiled(grant(resources=("file:///srv/*",)))
    assert isinstance(tables.decide(caller(), call("resources/read", {"uri": uri}), 0.0), Deny)


def test_a_rate_is_kept_per_caller_and_survives_a_new_policy() -> None:
    limiter = Limiter()
    limited = policy(grant(tools=("*",), limits=(ToolRate(tools=("read",), rate=Rate(calls=2, seconds=10)),)))
    tables = CompiledPolicy(limited, limiter)
    assert [tables.decide(caller(), tool_call("read"), 0.0) for _ in range(2)] == [Allow("g1")] * 2
    renewed = CompiledPolicy(limited, limiter)
    breach = renewed.decide(caller(), tool_call("read"), 0.0)
    assert isinstance(breach, Deny)
    assert (breach.code, breach.breach) == (
        Code.TOO_MANY_CALLS,
        "more than 2 calls in 10 s by grant g1: nothing is passed for 10 s",
    )
    assert renewed.decide(caller(ADDRESSES[1], "agent-2"), tool_call("read"), 0.0) == Allow("g1")


def test_a_breach_cools_down_and_then_ends() -> None:
    service = Service(
        name="alpha",
        upstream=HttpUpstream(url="http://127.0.0.1:9/"),
        limits=Limits(calls=Rate(calls=1, seconds=2), cool_down=5.0),
    )
    tables = compiled(grant(tools=("*",)), services=(service,))
    assert tables.decide(caller(), tool_call("x"), 0.0) == Allow("g1")
    first = tables.decide(caller(), tool_call("x"), 0.0)
    assert isinstance(first, Deny)
    assert first.breach == "more than 1 calls in 2 s on the service: nothing is passed for 5 s"
    later = tables.decide(caller(), call("tools/list", {}), 4.9)
    assert isinstance(later, Deny)
    assert later.breach is None  # one breach, one event
    assert tables.decide(caller(), tool_call("x"), 5.0) == Allow("g1")


def test_another_grant_without_a_rate_is_enough() -> None:
    rate = (ToolRate(tools=("*",), rate=Rate(calls=1, seconds=60)),)
    tables = compiled(grant(tools=("*",), limits=rate), grant(id="g2", tools=("read",)))
    decisions = [tables.decide(caller(), tool_call("read"), 0.0) for _ in range(3)]
    assert decisions == [Allow("g1"), Allow("g2"), Allow("g2")]


def test_a_service_of_kind_http_needs_a_grant_and_no_names() -> None:
    request = Call(
        service="alpha", era="http", method="POST", name="/v1/chat", arguments=None, request_id=None, body=b""
    )
    assert compiled(grant()).decide(caller(), request, 0.0) == Allow("g1")
    assert isinstance(compiled().decide(caller(), request, 0.0), Deny)


def test_lists_show_what_the_caller_may_use() -> None:
    tables = compiled(grant(tools=("get_*",), deny_tools=("get_secret",), resources=("test://a/*",)))
    tools = {"tools": [{"name": n} for n in ("get_b", "put", "get_secret", "get_a")], "nextCursor": "c2"}
    assert tables.filter(caller(), "alpha", "tools/list", tools) == {
        "tools": [{"name": "get_b"}, {"name": "get_a"}],
        "nextCursor": "c2",
    }
    templates = {"resourceTemplates": [{"uriTemplate": "test://a/{id}"}, {"uriTemplate": "test://{x}/y"}]}
    assert tables.filter(caller(), "alpha", "resources/templates/list", templates) == {
        "resourceTemplates": [{"uriTemplate": "test://a/{id}"}]
    }
    assert tables.filter(caller(), "alpha", "prompts/list", {"prompts": [{"name": "p"}]}) == {"prompts": []}


def test_a_list_that_differs_by_caller_is_private_on_every_page() -> None:
    tables = compiled(grant(tools=("*",)))
    page = {"resultType": "complete", "tools": [{"name": "a"}], "ttlMs": 5, "cacheScope": "public", "nextCursor": "x"}
    assert tables.filter(caller(), "alpha", "tools/list", page) == {**page, "cacheScope": "private"}
    assert tables.filter(caller(), "alpha", "tools/list", {**page, "cacheScope": "private"}) is None
    assert tables.filter(caller(), "alpha", "tools/list", {"tools": []}) is None


def test_a_list_that_cannot_be_read_is_an_upstream_failure() -> None:
    tables = compiled(grant(tools=("*",)))
    with pytest.raises(UpstreamError, match="no array 'tools'"):
        tables.filter(caller(), "alpha", "tools/list", {"items": []})
    assert tables.filter(caller(), "alpha", "tools/list", {"tools": [7, {"name": 7}]}) == {"tools": []}


def test_what_callers_invent_is_not_remembered_without_bound() -> None:
    tables = compiled(grant(tools=("get_*",)))
    for number in range(3000):
        tables.decide(caller(), tool_call(f"get_{number}"), 0.0)
        tables.decide(caller(), tool_call(f"other_{number}"), 0.0)
    (access,), (one,) = tables._accesses.values(), tables._grants["alpha"]
    for memory in (access._ways, one.ways):
        assert len(memory) <= 1024
        assert not any(use.name.startswith("other") for use in memory)
