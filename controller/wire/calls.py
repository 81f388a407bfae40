"""What MCP grants mean: may this caller make this call on this service?

The controller's `explain` asks here, and the gateway's compiled tables are tested against it, so that the answer and
the enforcement cannot disagree. Written to be read; pure; the caller supplies the time.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from .arguments import FollowLinks, compile_tool_rules
from .base import Address
from .file_paths import PathError, readings
from .matching import TextTest, compile_globs, compile_uri_globs
from .mcp import GatewayPolicy, McpGrant

__all__ = [
    "Refusal",
    "RefusalKind",
    "Use",
    "UseKind",
    "Verdict",
    "fold_name",
    "grants_for",
    "judge",
    "needed",
    "template_sample",
    "uri_test",
    "uses",
]

UseKind = Literal["tool", "prompt", "resource", "method"]
RefusalKind = Literal["service", "tool", "prompt", "resource", "method", "argument", "malformed"]

# Any grant to a service opens these: they tell a caller nothing that the filtered lists do not.
CORE_METHODS: Final = frozenset(
    {
        "initialize",
        "ping",
        "server/discover",
        "logging/setLevel",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
    }
)
_NAMED: Final[Mapping[str, tuple[UseKind, str]]] = {
    "tools/call": ("tool", "name"),
    "prompts/get": ("prompt", "name"),
    "resources/read": ("resource", "uri"),
    "resources/subscribe": ("resource", "uri"),
    "resources/unsubscribe": ("resource", "uri"),
}
_EXPRESSION: Final = re.compile(r"\{[^{}]*\}")  # of a URI template, RFC 6570
_DOT_SEGMENT: Final = re.compile(r"(?:^|[/?#])\.{1,2}(?=$|[/?#])")


class Use(NamedTuple):
    """One thing that a call touches, and that a grant must therefore name.

    A tuple, because one is made and looked up for every call: a frozen dataclass costs three times as much.
    """

    kind: UseKind
    name: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call is denied, for the caller to act on. `use` is what was not granted; None when nothing could be."""

    kind: RefusalKind
    message: str
    use: Use | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`grants` are those that allow the call, one for each thing it touches; `refusal` is None exactly when allowed."""

    grants: tuple[str, ...] = ()
    refusal: Refusal | None = None

    @property
    def allowed(self) -> bool:
        return self.refusal is None


def uses(method: str, params: Mapping[str, Any]) -> tuple[Use, ...] | Refusal:
    """What a call touches; empty for what any grant to the service opens. A Refusal when the names are not there."""
    if method in _NAMED:
        kind, key = _NAMED[method]
        return _use(kind, params.get(key), f"{method} needs params.{key}")
    if method in CORE_METHODS or method.startswith("notifications/"):
        return ()
    if method == "completion/complete":
        return _uses_of_completion(params.get("ref"))
    if method == "subscriptions/listen":
        return _uses_of_listen(params.get("notifications"))
    return (Use("method", method),)


def _uses_of_completion(ref: Any) -> tuple[Use, ...] | Refusal:
    if isinstance(ref, dict) and ref.get("type") == "ref/prompt":
        return _use("prompt", ref.get("name"), "completion/complete needs params.ref.name")
    if isinstance(ref, dict) and ref.get("type") == "ref/resource":
        found = _use("resource", ref.get("uri"), "completion/complete needs params.ref.uri")
        return found if isinstance(found, Refusal) else (Use("resource", template_sample(found[0].name)),)
    return Refusal("malformed", "completion/complete needs params.ref of type ref/prompt or ref/resource")


def _uses_of_listen(wanted: Any) -> tuple[Use, ...] | Refusal:
    uris = wanted.get("resourceSubscriptions") if isinstance(wanted, dict) else None
    if uris is None:
        return ()
    if not isinstance(uris, list) or not all(isinstance(uri, str) for uri in uris):
        return Refusal("malformed", "subscriptions/listen needs an array of URIs in resourceSubscriptions")
    return tuple(Use("resource", uri) for uri in uris)


def _use(kind: UseKind, name: Any, otherwise: str) -> tuple[Use, ...] | Refusal:
    return (Use(kind, name),) if isinstance(name, str) and name else Refusal("malformed", f"{otherwise}, a string")


def judge(
    policy: GatewayPolicy,
    address: Address,
    service: str,
    method: str,
    params: Mapping[str, Any],
    *,
    now: float,
    follow: FollowLinks | None = None,
) -> Verdict:
    """May the node with mesh `address` send this request or notification to `service` at `now` (epoch seconds)?"""
    grants = grants_for(policy, address, service, now)
    if not grants:
        return Verdict(refusal=no_grant(service, method, params))
    found = uses(method, params)
    if isinstance(found, Refusal):
        return Verdict(refusal=found)
    if not found:
        return Verdict((grants[0].id,))
    allowing: list[str] = []
    for use in found:
        verdict = _judge_use(grants, use, params, follow)
        if verdict.refusal:
            return verdict
        allowing += verdict.grants
    return Verdict(tuple(dict.fromkeys(allowing)))


def no_grant(service: str, method: str, params: Mapping[str, Any]) -> Refusal:
    """The refusal of a request for which there is no grant to the service at all: what it wanted is named anyway."""
    wanted = uses(method, params)
    use = wanted[0] if not isinstance(wanted, Refusal) and wanted else None
    return Refusal("service", f"no grant lets you use service {service!r}", use)


def taking_out(policy: GatewayPolicy, address: Address, service: str, tool: str, now: float) -> tuple[str, ...]:
    """The grants that name the tool for this address, and take it out again by `deny_tools`."""
    use = Use("tool", tool)
    return tuple(
        grant.id
        for grant in grants_for(policy, address, service, now)
        if grant.deny_tools and compile_globs(grant.tools)(tool) and not _names(grant, use)
    )


def grants_for(policy: GatewayPolicy, address: Address, service: str, now: float) -> list[McpGrant]:
    """The grants that apply between this address and this service now, by id."""
    return [
        grant
        for _, grant in sorted(policy.grants.items())
        if service in policy.services
        and service in grant.services
        and (grant.expires is None or now < grant.expires)
        and any(name in policy.sets and address in policy.sets[name].addresses for name in grant.peers)
    ]


def _judge_use(grants: list[McpGrant], use: Use, params: Mapping[str, Any], follow: FollowLinks | None) -> Verdict:
    naming = [grant for grant in grants if _names(grant, use)]
    if not naming:
        return Verdict(refusal=Refusal(use.kind, f"no grant lets you use {use.kind} {use.name!r}", use))
    if use.kind != "tool":
        return Verdict((naming[0].id,))
    arguments = params.get("arguments", {})
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return Verdict(refusal=Refusal("malformed", "params.arguments must be an object"))
    wrongs: list[str] = []
    for grant in naming:
        check = compile_tool_rules(grant.args, follow)(use.name)
        wrong = check(arguments) if check else None
        if wrong is None:
            return Verdict((grant.id,))
        wrongs.append(wrong)
    return Verdict(refusal=Refusal("argument", f"tool {use.name!r}: {wrongs[0]}", use))


def _names(grant: McpGrant, use: Use) -> bool:
    match use.kind:
        case "tool":
            denied = compile_globs(map(fold_name, grant.deny_tools), fold=True)
            return compile_globs(grant.tools)(use.name) and not denied(fold_name(use.name))
        case "prompt":
            return compile_globs(grant.prompts)(use.name)
        case "resource":
            return uri_test(grant.resources)(use.name)
        case "method":
            return compile_globs(grant.methods)(use.name)


def fold_name(name: str) -> str:
    """A name as a careless server compares it; a tool that is denied is denied in every such spelling."""
    return name if name.isascii() else unicodedata.normalize("NFKC", name)


def uri_test(globs: tuple[str, ...]) -> TextTest:
    """The test whether every reading of a URI matches one of `globs`; dot segments and backslashes never do.

    `*` and `**` alone stand for every URI, however it is spelled.
    """
    if "*" in globs or "**" in globs:
        return lambda _uri: True
    matches = compile_uri_globs(globs)

    def test(uri: str) -> bool:
        if not matches(uri):
            return False
        try:
            return all(
                matches(reading) and "\\" not in reading and reading.isprintable() and not _DOT_SEGMENT.search(reading)
                for reading in readings(uri)
            )
        except PathError:
            return False

    return test


def template_sample(template: str) -> str:
    """A URI that a template (RFC 6570) stands for: policy on templates is policy on what they expand to."""
    return _EXPRESSION.sub("x", template)


def needed(service: str, refusal: Refusal) -> str:
    """The grant that would be needed, in the policy document's words; "" when no grant would help."""
    if refusal.kind == "malformed":
        return ""
    if refusal.kind == "argument" and refusal.use:
        return f"a grant to svc:{service} whose args allow this call of {refusal.use.name}"
    if refusal.use:
        return f"a grant to svc:{service} with mcp: {{{refusal.use.kind}s: [{refusal.use.name[:128]}]}}"
    return f"a grant to svc:{service}"
