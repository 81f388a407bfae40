"""The messages of MCP policy: what parses, what is refused at the edge, and with which remedy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from controller.wire.matching import (
    check_host_pattern,
    compile_globs,
    compile_hosts,
    compile_pattern,
    compile_uri_globs,
)
from controller.wire.mcp import (
    ArgumentRule,
    Equals,
    GatewayPolicy,
    HostIn,
    HttpUpstream,
    Matches,
    McpGrant,
    Range,
    Service,
    StdioUpstream,
    ToolRules,
    Under,
)


def policy() -> GatewayPolicy:
    return GatewayPolicy(
        revision=3,
        services={
            "files": Service(name="files", addresses=("192.0.2.9",), upstream=StdioUpstream(command=("mcp-files",))),
            "github": Service(name="github", upstream=HttpUpstream(url="http://127.0.0.1:3000/mcp")),
        },
        grants={
            "g1": McpGrant(
                id="g1",
                peers=("tag:agents",),
                services=("github", "files"),
                tools=("search_*", "get_file"),
                deny_tools=("search_private",),
                args=(
                    ToolRules(
                        tools=("get_file",),
                        arguments=(
                            ArgumentRule(argument="path", tests=(Under(paths=("/project-x/",)),)),
                            ArgumentRule(argument="ref", tests=(Equals(value=None),), optional=True),
                            ArgumentRule(argument="url", tests=(HostIn(hosts=("*.Example.com",)),), optional=True),
                            ArgumentRule(argument="depth", tests=(Range(minimum=0, maximum=4),), optional=True),
                        ),
                        arguments_schema={
                            "type": "object",
                            "additionalProperties": {"$ref": "#/$defs/any"},
                            "$defs": {"any": {}},
                        },
                    ),
                ),
            )
        },
    )


def test_a_policy_survives_the_wire() -> None:
    assert GatewayPolicy.model_validate_json(policy().model_dump_json()) == policy()


def test_values_are_canonical_once_parsed() -> None:
    under, _, host, _ = policy().grants["g1"].args[0].arguments
    assert isinstance(under.tests[0], Under)
    assert under.tests[0].paths == ("/project-x",)
    assert isinstance(host.tests[0], HostIn)
    assert host.tests[0].hosts == ("*.example.com",)


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        r"(a)\1",
        "(?=a)",
        "(?<!a)b",
        "a{1,100000000}",
        "(((a{1000}){1000}){1000})",
        "a)|(b",
        "x" * 2000,
    ],
)
def test_a_pattern_that_cannot_be_linear_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        Matches(pattern=pattern)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/schema"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/$defs/missing"},
        {"type": "nosuch"},
        {"properties": {"a": {"$dynamicRef": "https://example.com/x"}}},
    ],
)
def test_a_schema_that_refers_outside_itself_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="JSON Schema"):
        ToolRules(tools=("*",), arguments_schema=schema)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:3000", "ftp://x/", "http://u:p@h/", "http://h/#f", "http://h/a b", "http:///x", "http://h\n/"]
)
def test_an_upstream_is_an_http_url_without_credentials(url: str) -> None:
    with pytest.raises(ValidationError):
        HttpUpstream(url=url)


@pytest.mark.parametrize(
    "host", ["", "*", "*.", "a b", "http://a", "a/b", "é.com", "1.2.3", "0x7f.1", "*.1.2.3.4", "a:0", "a:99999", "[::1"]
)
def test_a_host_that_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        check_host_pattern(host)


@pytest.mark.parametrize("base", ["", "a\\b", "/a/../b", "/a%2fb", "//a", "/a/\u2024\u2024", "~/x", "C:/x", "/a\0"])
def test_a_base_that_has_two_readings_is_refused(base: str) -> None:
    with pytest.raises(ValidationError, match="cannot stand in a rule"):
        Under(paths=(base,))


def test_an_object_stands_under_its_own_name() -> None:
    with pytest.raises(ValidationError, match="under its own name"):
        GatewayPolicy(revision=1, grants={"g2": policy().grants["g1"]})


def test_a_pattern_matches_the_whole_text_and_nothing_after_it() -> None:
    test = compile_pattern("a|bc")
    assert test("a")
    assert test("bc")
    assert not any(map(test, ["ab", "abc", "a\n", "xbc", "", "\ud800"]))


def test_an_exponential_pattern_takes_linear_time() -> None:
    assert not compile_pattern("(a+)+b")("a" * 8192)
    assert not compile_pattern(".*.*.*.*.*.*x")("a" * 8192)


def test_a_text_that_is_too_long_matches_nothing() -> None:
    assert not compile_globs(["*"])("a" * 8193)


def naive_glob(glob: str, text: str) -> bool:
    if not glob:
        return not text
    if glob[0] == "*":
        return naive_glob(glob[1:], text) or (bool(text) and naive_glob(glob, text[1:]))
    return bool(text) and text[0] == glob[0] and naive_glob(glob[1:], text[1:])


ALPHABET = "ab.*?[\\(|^$+/\né"


@given(st.text(ALPHABET, min_size=1, max_size=6), st.text(ALPHABET, max_size=8))
def test_a_glob_means_what_the_naive_matcher_says(glob: str, text: str) -> None:
    assert compile_globs([glob])(text) == naive_glob(glob, text)


@pytest.mark.parametrize(
    ("glob", "uri", "expected"),
    [
        ("file:///srv/*", "file:///srv/a", True),
        ("file:///srv/*", "file:///srv/a/b", False),
        ("file:///srv/**", "file:///srv/a/b", True),
        ("file:///srv/**/x", "file:///srv/a/b/x", True),
        ("test://a.b", "test://a-b", False),
    ],
)
def test_a_uri_glob_tells_one_segment_from_many(glob: str, uri: str, expected: bool) -> None:
    assert compile_uri_globs([glob])(uri) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://api.example.com/x?y#z", True),
        ("API.EXAMPLE.COM", True),
        ("api.example.com.", True),
        ("api.example.com:443", True),
        ("https://api.example.com:8443/", True),
        ("sub.test.example.org", True),
        ("test.example.org", False),
        ("eviltest.example.org", False),
        ("https://evil.example/@api.example.com", False),
        ("https://api.example.com@evil.example/", False),
        ("https://api.example.com:pw@evil.example/", False),
        ("https://evil.example\\@api.example.com/", False),
        ("https://evil.example#@api.example.com/", False),
        ("https://api.example.com\t.evil.example", False),
        ("https://api.example.com%2eevil.example", False),
        ("https:/api.example.com", False),
        ("//api.example.com/", False),
        ("javascript:api.example.com", False),
        ("api.example.com\n", False),
        (" api.example.com", False),
        ("https://\uff41pi.example.com/", False),
        ("http://127.0.0.1/", True),
        ("http://127.1/", False),
        ("http://2130706433/", False),
        ("http://0x7f000001/", False),
        ("http://0177.0.0.1/", False),
        ("http://[2001:db8:0::1]:80/", True),
        ("http://[2001:db8::1]/", True),
        ("https://[2001:db8::1]/", False),
        ("http://[::ffff:127.0.0.1]/", False),
        ("http://[2001:db8::1%25eth0]/", False),
        ("", False),
    ],
)
def test_host_rules_see_the_host_that_every_reader_sees(text: str, expected: bool) -> None:
    test = compile_hosts(["api.example.com", "*.test.example.org", "127.0.0.1", "[2001:db8::1]:80"])
    assert test(text) is expected
