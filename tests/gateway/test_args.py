"""Argument rules against the ways that people have got around such rules."""

import os
from pathlib import Path
from typing import Any
from unicodedata import normalize
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.gateway.args import follow_links
from agentd.gateway.types import Code
from controller.wire.arguments import compile_rule, compile_tool_rules, same_json
from controller.wire.file_paths import PathError, compile_under
from controller.wire.mcp import ArgumentRule, ArgumentTest, Equals, HostIn, Matches, OneOf, Range, ToolRules, Under
from tests.gateway.harness import BOB, Lab, tool


def wrong(test: ArgumentTest, value: Any, **rule: Any) -> str | None:
    return compile_rule(ArgumentRule(argument="a", tests=(test,), **rule))({"a": value})


SRV = Under(paths=("/project-x",))


@pytest.mark.parametrize(
    "path",
    [
        "/project-x",
        "/project-x/",
        "/project-x/a.txt",
        "/project-x//a///b",
        "/project-x/./a",
        "/./project-x/a",
        "/project-x/a b/..c/d..",
        "/project-x/.git/config",
        "/project-x/100%",
        "/project-x/a%20b",
        "/project-x/naïve/日本.txt",
        "/project-x/nai\u0308ve",
    ],
)
def test_a_path_below_the_base_passes(path: str) -> None:
    assert wrong(SRV, path) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/project-xy",
        "/project-x.txt",
        "/PROJECT-X/a",
        "project-x/a",
        "./project-x/a",
        "/project-x/..",
        "/project-x/../etc/passwd",
        "/project-x/a/../../etc/passwd",
        "/project-x/a/../b",
        "/../project-x",
        "//project-x/a",
        "///etc/passwd",
        "/project-x/..//../etc",
        "/project-x/.. /etc",
        "/project-x/. ./etc",
        "/project-x/.../etc",
        "/project-x/%2e%2e/etc",
        "/project-x/%2E./etc",
        "/project-x%2f..%2fetc",
        "/project-x/%252e%252e/etc",
        "/project-x/%25252e%25252e/etc",
        "/project-x/%2525252525252525252e./etc",
        "/project-x/%c0%ae%c0%ae/etc",
        "/project-x/%e0%80%ae./etc",
        "/project-x/%u002e%u002e/etc",
        "/project-x/%00",
        "/project-x/a\0/../../etc",
        "/project-x/a\n",
        "/project-x/%0a",
        "/project-x\\..\\etc",
        "/project-x/%5c..%5cetc",
        "\\\\host\\share",
        "C:\\project-x",
        "C:/project-x/a",
        "file:///project-x/a",
        "~/project-x",
        "/project-x/\uff0e\uff0e/etc",
        "/project-x/\u2024\u2024/etc",
        "/project-x/\u2025/etc",
        "/project-x/.\u200d./etc",
        "/project-x/\u00ad..\u00ad/etc",
        "/project-x/..\u2215etc",
        "/project-x/..\u2044etc",
        "/project-x\uff0f..\uff0fetc",
        "/project-x/%ef%bc%8e%ef%bc%8e/etc",
        "/project-x/\ud800",
        "/\u200bproject-x/a",
        "/project-x/" + "a" * 5000,
        "/project-x/%" + "25" * 40 + "2e./etc",
    ],
)
def test_a_path_that_any_reader_could_take_elsewhere_is_refused(path: str) -> None:
    assert wrong(SRV, path) is not None


@pytest.mark.parametrize("value", [None, 7, True, ["/project-x/a"], {"path": "/project-x/a"}, b"/project-x"])
def test_what_is_no_string_is_no_path(value: Any) -> None:
    assert wrong(SRV, value) is not None


def test_relative_bases_hold_relative_paths() -> None:
    assert wrong(Under(paths=("docs",)), "docs/a") is None
    assert wrong(Under(paths=(".",)), "docs/a") is None
    for path in ("../docs", "/docs/a", "doc", "C:docs", "~", "file:docs"):
        assert wrong(Under(paths=("docs", ".")), path) is not None or path == "doc"


@given(st.text("/.%2eEfF5cC\\ ax\u2024\uff0e\u200d\0", max_size=24))
def test_whatever_passes_stays_below_in_the_readings_of_real_decoders(tail: str) -> None:
    path = "/project-x/" + tail
    try:
        compile_under(("/project-x",))(path)
    except PathError:
        return
    for reading in (
        path,
        unquote(path),
        unquote(unquote(path)),
        normalize("NFKC", path),
        normalize("NFKC", unquote(path)),
    ):
        real = os.path.normpath(reading.replace("\\", "/").replace("\u200d", ""))
        assert real == "/project-x" or real.startswith("/project-x/")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "base" / "sub").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("x")
    (tmp_path / "base" / "inside").symlink_to("sub")
    (tmp_path / "base" / "absolute-inside").symlink_to(tmp_path / "base" / "sub")
    (tmp_path / "base" / "out").symlink_to("../outside")
    (tmp_path / "base" / "absolute-out").symlink_to(tmp_path / "outside")
    (tmp_path / "base" / "chain").symlink_to("sub/back")
    (tmp_path / "base" / "sub" / "back").symlink_to("../out")
    (tmp_path / "base" / "dangling").symlink_to("../outside/new")
    (tmp_path / "base" / "up-and-back").symlink_to("../base/sub")
    (tmp_path / "base" / "loop").symlink_to("loop")
    (tmp_path / "alias").symlink_to("base")
    return tmp_path


@pytest.mark.parametrize("name", ["", "/sub", "/inside/new", "/absolute-inside/a/b", "/new/deep", "/up-and-back/x"])
def test_links_that_stay_below_the_base_are_followed(tree: Path, name: str) -> None:
    follow_links(f"{tree}/base{name}", (f"{tree}/base",))
    follow_links(f"{tree}/alias{name}", (f"{tree}/base",))
    follow_links(f"{tree}/base{name}", (f"{tree}/alias",))


@pytest.mark.parametrize(
    "name",
    ["/out", "/out/secret", "/absolute-out/secret", "/chain/secret", "/dangling", "/loop", "/loop/x", "/sub/back"],
)
def test_links_that_lead_out_of_the_base_are_refused(tree: Path, name: str) -> None:
    with pytest.raises(PathError):
        follow_links(f"{tree}/base{name}", (f"{tree}/base",))


def test_the_local_check_is_part_of_the_rule(tree: Path) -> None:
    rules = ToolRules(tools=("*",), arguments=(ArgumentRule(argument="path", tests=(Under(paths=(f"{tree}/base",)),)),))
    check = compile_tool_rules((rules,), follow_links)("get_file")
    assert check is not None
    assert check({"path": f"{tree}/base/inside/x"}) is None
    assert "symbolic link" in (check({"path": f"{tree}/base/out/secret"}) or "")


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1, 1.0, True),
        (True, 1, False),
        (0, False, False),
        (None, False, False),
        ("1", 1, False),
        ([1, 2], [1, 2], True),
        ([1, 2], [2, 1], False),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": 1, "b": None}, False),
        (2**70, float(2**70), True),
        ("é", "e\u0301", False),
    ],
)
def test_values_are_equal_as_json_says(left: Any, right: Any, expected: bool) -> None:
    assert same_json(left, right) is expected
    assert same_json(right, left) is expected


def test_equals_and_one_of() -> None:
    assert wrong(Equals(value={"a": [1]}), {"a": [1.0]}) is None
    assert wrong(Equals(value=None), False) is not None
    assert wrong(OneOf(values=("main", 7)), 7) is None
    assert "must be one of 'main', 7" in (wrong(OneOf(values=("main", 7)), "dev") or "")


def test_a_range_is_for_numbers() -> None:
    for value in (0, 4, 0.0, 3.999):
        assert wrong(Range(minimum=0, maximum=4), value) is None
    outside: list[Any] = [-1, 4.0001, 10**400, True, "1", None, float("nan"), float("inf"), [1]]
    for other in outside:
        assert wrong(Range(minimum=0, maximum=4), other) is not None
    assert wrong(Range(), float("inf")) is not None


def test_a_pattern_must_match_the_whole_string() -> None:
    rule = Matches(pattern="[a-z]+-[0-9]+")
    assert wrong(rule, "abc-1") is None
    for value in ("abc-1\n", "xabc-1 ", "ABC-1", "", 7, None, ["abc-1"], "abc-\u0661"):
        assert wrong(rule, value) is not None


def test_a_host_rule_reads_urls() -> None:
    assert wrong(HostIn(hosts=("*.example.com",)), "https://api.example.com/x") is None
    assert wrong(HostIn(hosts=("*.example.com",)), "https://evil.example/@api.example.com") is not None


def test_a_missing_argument_is_refused_unless_optional() -> None:
    rule = ArgumentRule(argument="a", tests=(Equals(value=1),))
    assert "must be given" in (compile_rule(rule)({}) or "")
    assert compile_rule(rule.model_copy(update={"optional": True}))({}) is None
    assert compile_rule(rule.model_copy(update={"optional": True}))({"a": None}) is not None


def test_each_is_for_every_element_of_an_array() -> None:
    assert wrong(SRV, ["/project-x/a", "/project-x/b"], each=True) is None
    assert wrong(SRV, ["/project-x/a", "/etc"], each=True) is not None
    assert wrong(SRV, "/project-x/a", each=True) is not None
    assert wrong(SRV, {"0": "/project-x/a"}, each=True) is not None


def test_a_pointer_reaches_into_arguments() -> None:
    check = compile_rule(ArgumentRule(argument="/files/0/a~1b", tests=(Equals(value=1),)))
    assert check({"files": [{"a/b": 1}]}) is None
    elsewhere: list[Any] = [{"files": []}, {"files": {"0": {"a/b": 2}}}, {"files": [[1]]}, {"files": "x"}, {}]
    for arguments in elsewhere:
        assert check(arguments) is not None
    assert compile_rule(ArgumentRule(argument="/a/00", tests=(Equals(value=1),)))({"a": [1]}) is not None


def test_a_schema_judges_all_arguments() -> None:
    schema = {"type": "object", "properties": {"q": {"type": "string", "maxLength": 3}}, "additionalProperties": False}
    check = compile_tool_rules((ToolRules(tools=("search",), arguments_schema=schema),))
    search = check("search")
    assert search is not None
    assert search({"q": "abc"}) is None
    assert search({"q": "abcd"}) is not None
    assert search({"x": 1}) is not None
    assert check("other") is None


async def test_a_link_that_leads_out_is_denied_by_a_gateway_whose_server_reads_this_hosts_files(
    lab: Lab, tree: Path
) -> None:
    rule = {"argument": "path", "tests": [{"test": "under", "paths": [f"{tree}/base"]}]}
    args = [{"tools": ["read"], "arguments": [rule]}]
    grant = {"id": "bobs", "peers": ["bob"], "services": ["svc"], "tools": ["read"], "args": args}
    upstream = await lab.upstream()
    running = await lab.gateway(upstream, grants=[grant], local_files=True)
    client = await lab.client(running, BOB)
    assert (await client.call(tool("read", path=f"{tree}/base/inside/x"))).status == 200
    denied = await client.call(tool("read", path=f"{tree}/base/out/secret"))
    assert denied.code == Code.ARGUMENT_DENIED
    assert "leads through a symbolic link" in denied.json["error"]["message"]
    assert len(upstream.seen) == 1
