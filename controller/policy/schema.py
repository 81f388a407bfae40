"""The JSON Schema of a policy document, for editors: completion, descriptions and the first faults while one types.

Made of the keys that the readers know. It says less than `parse` does: whatever `parse` accepts is valid, and what is
valid may still be refused (names that nobody declared, ports that run backwards).
"""

from typing import Any, Final

from .mcp_reader import CALL_KEYS, KEYS, RULE_KEYS
from .parse import GRANT_KEYS, RELAY_KEYS, SECTIONS, TEST_KEYS
from .service_reader import AUDIT_KEYS, COMMON_KEYS, LIMIT_KEYS, MCP_KEYS, SERVICE_KEYS

__all__ = ["SCHEMA_ID", "policy_schema"]

SCHEMA_ID: Final = "urn:wardmesh:schema:policy"
Schema = dict[str, Any]

_LABEL: Final = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NODES: Final = rf"^(\*|tag:{_LABEL}|((node|host|group):)?{_LABEL})$"
_TARGETS: Final = rf"^(\*|tag:{_LABEL}|((node|host|group|svc):)?{_LABEL})$"
_MEMBERS: Final = rf"^(tag:{_LABEL}|((node|host):)?{_LABEL}|user:[a-z0-9][a-z0-9._@+-]{{0,63}})$"
_OWNERS: Final = rf"^(group:{_LABEL}|user:[a-z0-9][a-z0-9._@+-]{{0,63}})$"
_PORTS: Final = r"(\*|[0-9]{1,5}(-[0-9]{1,5})?)"
_RATE: Final = "^[0-9]{1,7}/[0-9]{0,5}[smhd]$"

_DESCRIPTIONS: Final[dict[str, str]] = {
    "hosts": "Named prefixes, or single addresses: each stands for the nodes that have an address in it.",
    "tags": "Declared tags, each with its owners (user:NAME, group:NAME). Without this section, any tag may be named.",
    "groups": "Names for several tags, nodes, hosts and users. Groups do not nest.",
    "services": "What is offered at which port on which nodes: to: [svc:NAME] grants it.",
    "relays": "By region: hosts that pass on sealed packets for those who cannot reach each other directly.",
    "grants": "Each allows something. There is no order and no deny: what no grant names is denied.",
    "tests": "What must and must not pass. A document whose tests fail is refused.",
    "from": "Who opens the flow: tag:NAME, node:NAME, host:NAME, group:NAME, a bare name, or *; one, or a list.",
    "to": "To whom: as from, and svc:NAME.",
    "ip": "tcp:443, udp:53, tcp:8000-8100, tcp:*, icmp, or *. To services it may be left out.",
    "mcp": "Which calls are allowed on services with mcp. Without it, the service opens and no tool does.",
    "note": "Why. Shown by explain.",
    "expires": "When it ends, with a time zone: 2027-01-31T18:00:00Z. The hosts end it, and what is under way.",
    "accept": "What must pass: entries as in ip, or calls: {tools: [NAME, {NAME: {ARGUMENT: VALUE}}]}.",
    "deny": "What must not pass: entries as in ip, or calls.",
    "on": "The nodes that serve it, or may, or that relay: as from.",
    "port": "The TCP port of a server on its hosts' own addresses.",
    "kind": "What the server speaks; packets are treated alike.",
    "http": "The gateway serves it as plain HTTP, with identity and records and without rules about calls.",
    "upstream": "The local server's URL, like http://127.0.0.1:3000/mcp.",
    "command": "A program that speaks MCP on standard input and output, with its arguments. No secrets: all see them.",
    "environment": "The command's environment. Settings, no secrets.",
    "directory": "Where the command starts.",
    "per": "One process for all callers (service), or one for each calling node (caller).",
    "path": "Where callers find the endpoint.",
    "local_files": "The server reads this host's files: symbolic links count when a path is judged.",
    "origins": "Web origins that may call, like https://app.example.com.",
    "limits": "How much one caller may do.",
    "audit": "What is recorded of calls.",
    "body": "Bytes of a request's body.",
    "headers": "Bytes of a request's headers.",
    "depth": "Nesting of JSON.",
    "streams": "Open streams of one caller.",
    "calls": "Calls of one caller, like 500/10s.",
    "cool_down": "Seconds that a caller waits after it went over a limit.",
    "arguments": "Keep arguments; otherwise only their digest.",
    "mask": "Names of arguments whose values are never kept, beside the defaults; * stands for any characters.",
    "full": "When records find no room: deny calls, or drop records and count them.",
    "tools": "Tools, where * stands for any characters.",
    "deny_tools": "Tools that this grant does not allow although tools names them. Other grants are not affected.",
    "prompts": "Prompts, where * stands for any characters.",
    "resources": "URIs of resources; * stops at /, ** does not.",
    "methods": "Further methods of the protocol, like tasks/*.",
    "args": "What arguments of a tool must be: {TOOL: {ARGUMENT: {under: /project-x}}}. All of it must hold.",
    "schemas": "JSON Schema (2020-12) that a tool's arguments must fit, by tool.",
    "equals": "The argument is this JSON value.",
    "one_of": "The argument is one of these JSON values.",
    "pattern": "The argument is text that this matches whole (RE2: no look-around).",
    "range": "The argument is a number from min to max.",
    "under": "The argument is a path at or below this one, or one of these, in every reading.",
    "host": "The argument is a URL, or a host, of one of these; *.example.com for any subdomain.",
    "optional": "The argument may be missing.",
    "each": "The argument is an array, and every element must pass.",
}


def policy_schema() -> Schema:
    """The schema (draft 2020-12), as JSON values."""
    sections = {
        "hosts": _map(_text()),
        "tags": _map(_nullable(_list(_text(_OWNERS)))),
        "groups": _map(_one_or_more(_text(_MEMBERS))),
        "services": _map(_service()),
        "relays": _map(_closed(RELAY_KEYS, {"on": _one_or_more(_text(_NODES))}, RELAY_KEYS)),
        "grants": _nullable(_list(_grant())),
        "tests": _nullable(_list(_test())),
    }
    whole = _closed(SECTIONS, sections)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "wardmesh policy",
        "description": "Who may open which flows to whom, and call which tools.",
        **whole,
        "type": ["object", "null"],
    }


def _grant() -> Schema:
    parts = {
        "from": _one_or_more(_text(_NODES)),
        "to": _one_or_more(_text(_TARGETS)),
        "ip": _ip(),
        "mcp": _nullable(_mcp()),
        "note": {"type": ["string", "number", "boolean"]},
        "expires": _text(r"^\d{4}"),
    }
    return _closed(GRANT_KEYS, parts, required=("from", "to"))


def _test() -> Schema:
    calls: dict[str, Schema] = {key: _one_or_more(_text(), least=0) for key in CALL_KEYS}
    call = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": {"type": ["object", "null"]},
    }
    tool = {"anyOf": [_text(), call]}
    calls["tools"] = {"anyOf": [_list(tool), tool]}
    expected = {"anyOf": [_ip(), _closed(tuple(CALL_KEYS), calls)]}
    parts = {
        "from": _one_or_more(_text(_NODES)),
        "to": _one_or_more(_text(_TARGETS)),
        "accept": expected,
        "deny": expected,
    }
    return {
        **_closed(TEST_KEYS, parts, required=("from", "to")),
        "anyOf": [{"required": ["accept"]}, {"required": ["deny"]}],
    }


def _service() -> Schema:
    parts = {
        "on": _one_or_more(_text(_NODES)),
        "port": {"type": ["integer", "string"], "minimum": 1, "maximum": 65535, "pattern": "^[0-9]{1,5}$"},
        "kind": {"enum": ["tcp", "mcp"]},
        "mcp": _gateway(MCP_KEYS, ("upstream", "command")),
        "http": _gateway(COMMON_KEYS, ("upstream",)),
    }
    return {
        **_closed(SERVICE_KEYS, parts, required=("on",)),
        "oneOf": [{"required": [key]} for key in ("port", "mcp", "http")],
    }


def _gateway(keys: tuple[str, ...], either: tuple[str, ...]) -> Schema:
    numbers = {key: {"type": "number"} for key in LIMIT_KEYS if key != "calls"}
    parts = {
        "upstream": _text("^[Hh][Tt][Tt][Pp][Ss]?://"),
        "command": _list(_text(), least=1),
        "environment": _map(_text()),
        "directory": _text("^/"),
        "per": {"enum": ["service", "caller"]},
        "path": _text("^/"),
        "local_files": {"type": "boolean"},
        "origins": _one_or_more(_text("^https?://")),
        "limits": _nullable(_closed(LIMIT_KEYS, {**numbers, "calls": _text(_RATE)})),
        "audit": _nullable(
            _closed(
                AUDIT_KEYS,
                {"arguments": {"type": "boolean"}, "mask": _one_or_more(_text()), "full": {"enum": ["deny", "drop"]}},
            )
        ),
    }
    return {**_closed(keys, parts), "oneOf": [{"required": [key]} for key in either]}


def _mcp() -> Schema:
    parts: dict[str, Schema] = {
        key: _one_or_more(_text(), least=0) for key in ("tools", "deny_tools", "prompts", "resources", "methods")
    }
    parts["args"] = _map(_map(_rule()))
    parts["schemas"] = _map({"type": "object"})
    parts["limits"] = _map(_text(_RATE))
    return _closed(KEYS, parts)


def _rule() -> Schema:
    parts: dict[str, Schema] = {
        "equals": {},
        "one_of": {"type": "array", "minItems": 1},
        "pattern": _text(),
        "range": {
            **_closed(("min", "max"), {"min": {"type": "number"}, "max": {"type": "number"}}),
            "minProperties": 1,
        },
        "under": _one_or_more(_text()),
        "host": _one_or_more(_text()),
        "optional": {"type": "boolean"},
        "each": {"type": "boolean"},
    }
    return {**_closed(RULE_KEYS, parts), "minProperties": 1}


def _ip() -> Schema:
    return _one_or_more(_text(rf"^(\*|icmp|(tcp|udp):{_PORTS})$"))


def _closed(keys: tuple[str, ...], parts: dict[str, Schema], required: tuple[str, ...] = ()) -> Schema:
    """An object with exactly these keys. A key without a part is a KeyError: a reader learnt one that is not here."""
    described = {key: _described(key, parts[key]) for key in keys}
    return {
        "type": "object",
        "properties": described,
        "additionalProperties": False,
        **({"required": list(required)} if required else {}),
    }


def _described(key: str, part: Schema) -> Schema:
    words = _DESCRIPTIONS.get(key)
    return part if words is None else {"description": words, **part}


def _map(value: Schema) -> Schema:
    return {"type": ["object", "null"], "additionalProperties": value}


def _list(item: Schema, least: int = 0) -> Schema:
    return {"type": "array", "items": item, **({"minItems": least} if least else {})}


def _one_or_more(item: Schema, least: int = 1) -> Schema:
    return {"anyOf": [item, _list(item, least)]}


def _nullable(part: Schema) -> Schema:
    return {**part, "type": [part["type"], "null"]}


def _text(pattern: str | None = None) -> Schema:
    """What the language reads as text: YAML takes 1234 and yes for other things, the language for names."""
    return {"type": ["string", "number", "boolean"], **({"pattern": pattern} if pattern else {})}
