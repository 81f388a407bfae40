"""What the MCP gateway of one host must know: its services, who may call which tools, and with which arguments.

agentd passes one `GatewayPolicy` to the gateway; `controller.wire.calls` says what it means. Values are checked here,
once: a pattern that exists compiles, a schema that exists refers to nothing outside itself.
"""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, JsonValue, model_validator

from .base import Address, Message, NodeName, Revision
from .file_paths import check_base
from .matching import check_glob, check_host_pattern, check_pattern, check_schema, check_uri_glob
from .sets import AddressSet

__all__ = [
    "ArgumentRule",
    "ArgumentTest",
    "AuditRules",
    "Equals",
    "GatewayPolicy",
    "Glob",
    "HostIn",
    "HttpUpstream",
    "Limits",
    "Matches",
    "McpGrant",
    "OneOf",
    "Range",
    "Rate",
    "Service",
    "ServiceName",
    "StdioUpstream",
    "ToolRate",
    "ToolRules",
    "Under",
    "Upstream",
    "UriGlob",
    "certified_names",
]

ServiceName = NodeName
Glob = Annotated[str, AfterValidator(check_glob)]
UriGlob = Annotated[str, AfterValidator(check_uri_glob)]
PathBase = Annotated[str, AfterValidator(check_base)]
HostPattern = Annotated[str, AfterValidator(check_host_pattern)]
LinearPattern = Annotated[str, AfterValidator(check_pattern)]
Schema = Annotated[dict[str, Any], AfterValidator(check_schema)]


def _check_upstream_url(value: str) -> str:
    parts = urlsplit(value)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or "@" in parts.netloc
        or parts.fragment
        or any(c <= " " or c > "~" for c in value)
        or parts.port == 0
    ):
        raise ValueError(f"{value!r} is not an upstream: write it like http://127.0.0.1:3000/mcp, without credentials")
    return value


class HttpUpstream(Message):
    """A local HTTP server: for `kind` mcp its MCP endpoint, for `kind` http the root that paths append to."""

    type: Literal["http"] = "http"
    url: Annotated[str, AfterValidator(_check_upstream_url)]


class StdioUpstream(Message):
    """A command that speaks MCP on its standard input and output; the gateway spawns it, without a shell.

    `per` caller: each calling node has a process of its own. Secrets do not belong in `command` (argument lists are
    visible to every user) nor here: the environment carries settings only.
    """

    type: Literal["stdio"] = "stdio"
    command: Annotated[tuple[str, ...], Field(min_length=1)]
    environment: dict[str, str] = Field(default_factory=dict)
    directory: str | None = None
    per: Literal["service", "caller"] = "service"


Upstream = Annotated[HttpUpstream | StdioUpstream, Field(discriminator="type")]


class Rate(Message):
    """At most `calls` in any burst, refilled evenly over `seconds`: `500/10s`."""

    calls: Annotated[int, Field(ge=1, le=1_000_000)]
    seconds: Annotated[float, Field(gt=0, le=86400)]


class Limits(Message):
    """Bounds of one service, per caller where they count something. Sizes in bytes, `cool_down` in seconds."""

    body: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    headers: Annotated[int, Field(ge=1024)] = 32 * 1024
    depth: Annotated[int, Field(ge=4, le=512)] = 64
    streams: Annotated[int, Field(ge=1)] = 64
    calls: Rate | None = None
    cool_down: Annotated[float, Field(ge=0)] = 10.0


class AuditRules(Message):
    """What is written of a call. Arguments are a digest unless `arguments`; values named by `mask` are never written.

    `full`: what happens to a call when the spool has no room: it is denied, or it passes and the gap is counted.
    """

    arguments: bool = False
    mask: tuple[Glob, ...] = (
        "*token*",
        "*secret*",
        "*password*",
        "*passwd*",
        "*api_key*",
        "*apikey*",
        "*authorization*",
    )
    full: Literal["deny", "drop"] = "deny"


class Service(Message):
    """Something that callers reach under its own mesh addresses and names, and where the gateway passes it on to.

    `kind` http: any HTTP, with identity and audit but no JSON-RPC rules. `names`: what `Host` may say besides the
    addresses. `origins`: web origins that may call; a request with another `Origin` is refused. `local_files`: the
    upstream sees this host's file system, so symbolic links are followed when a path is checked. `tls_port`: where it
    answers over TLS as well, with a certificate of the mesh's CA; None: nowhere.
    """

    name: ServiceName
    kind: Literal["mcp", "http"] = "mcp"
    addresses: tuple[Address, ...] = ()
    port: Annotated[int, Field(ge=1, le=65535)] = 80
    tls_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    path: Annotated[str, Field(pattern=r"^/[!-~]*$")] = "/mcp"
    names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    upstream: Upstream
    local_files: bool = False
    limits: Limits = Limits()
    audit: AuditRules = AuditRules()


def certified_names(service: Service) -> tuple[str, ...]:
    """Those of its names that a certificate of the mesh's CA may say.

    Full names only: a service may be called `localhost`, which is also a name of the controller.
    """
    return tuple(name for name in service.names if "." in name)


class Equals(Message):
    """The argument is this JSON value: 1 and 1.0 are the same number, true and 1 are not the same."""

    test: Literal["equals"] = "equals"
    value: JsonValue


class OneOf(Message):
    """The argument is one of these JSON values."""

    test: Literal["one_of"] = "one_of"
    values: Annotated[tuple[JsonValue, ...], Field(min_length=1)]


class Matches(Message):
    """The argument is a string that the pattern matches whole. RE2 syntax: no look-around, no back-references."""

    test: Literal["pattern"] = "pattern"
    pattern: LinearPattern


class Range(Message):
    """The argument is a number between `minimum` and `maximum`, inclusive; None: no bound on that side."""

    test: Literal["range"] = "range"
    minimum: int | float | None = None
    maximum: int | float | None = None


class Under(Message):
    """The argument is a path at or below one of `paths`, in every reading that a server could give it."""

    test: Literal["under"] = "under"
    paths: Annotated[tuple[PathBase, ...], Field(min_length=1)]


class HostIn(Message):
    """The argument is a URL, or a host with or without port, whose host is one of `hosts` (`*.` for any subdomain)."""

    test: Literal["host"] = "host"
    hosts: Annotated[tuple[HostPattern, ...], Field(min_length=1)]


ArgumentTest = Annotated[Equals | OneOf | Matches | Range | Under | HostIn, Field(discriminator="test")]


class ArgumentRule(Message):
    """What one argument must be: every test holds. `argument` is a top-level name, or a JSON pointer (RFC 6901).

    An argument that is missing is refused unless `optional`, because the server's default could be anything.
    `each`: the argument is an array and every element must pass.
    """

    argument: Annotated[str, Field(min_length=1, max_length=256)]
    tests: Annotated[tuple[ArgumentTest, ...], Field(min_length=1)]
    optional: bool = False
    each: bool = False


class ToolRules(Message):
    """What the arguments of the tools that `tools` names must be. `schema`: JSON Schema 2020-12 for all of them."""

    tools: Annotated[tuple[Glob, ...], Field(min_length=1)]
    arguments: tuple[ArgumentRule, ...] = ()
    arguments_schema: Schema | None = None


class ToolRate(Message):
    """How often one caller may call the tools that `tools` names, under this grant."""

    tools: Annotated[tuple[Glob, ...], Field(min_length=1)]
    rate: Rate


class McpGrant(Message):
    """One allowance, additive: members of `peers` (names of address sets) may use these parts of `services`.

    `deny_tools` takes tools out of this grant only; there is no denying across grants. `args`: every entry whose
    `tools` name the called tool must hold. `methods`: methods beyond the core protocol (`tasks/*`). A grant to a
    service of kind http needs no names. `expires` is in seconds since the epoch.
    """

    id: str
    peers: tuple[str, ...]
    services: tuple[ServiceName, ...]
    tools: tuple[Glob, ...] = ()
    deny_tools: tuple[Glob, ...] = ()
    prompts: tuple[Glob, ...] = ()
    resources: tuple[UriGlob, ...] = ()
    methods: tuple[Glob, ...] = ()
    args: tuple[ToolRules, ...] = ()
    limits: tuple[ToolRate, ...] = ()
    expires: int | None = None


class GatewayPolicy(Message):
    """Everything one host's gateway enforces, at one revision. Nothing in it: nothing is served."""

    revision: Revision
    services: dict[str, Service] = Field(default_factory=dict, description="by service name")
    grants: dict[str, McpGrant] = Field(default_factory=dict, description="by grant id")
    sets: dict[str, AddressSet] = Field(default_factory=dict, description="by set name; what `peers` of grants name")

    @model_validator(mode="after")
    def _keys_are_names(self) -> "GatewayPolicy":
        for key, name in (
            *((key, service.name) for key, service in self.services.items()),
            *((key, grant.id) for key, grant in self.grants.items()),
            *((key, addresses.name) for key, addresses in self.sets.items()),
        ):
            if key != name:
                raise ValueError(f"{key!r} holds {name!r}: each object stands under its own name")
        return self
