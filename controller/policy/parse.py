"""Policy text to `Document`: the grammar of the language, section by section.

Judges the text alone. Whether its names exist in the mesh is asked by `check`, when somebody writes a policy, and
never at start-up: a node that was renamed must not lock the server out.
"""

import hashlib
import ipaddress
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

from pydantic_core import to_jsonable_python

from controller.wire.base import check_name, check_user

from .allowances import services
from .document import (
    Allowance,
    Call,
    Document,
    Grant,
    Group,
    Host,
    McpRules,
    Network,
    Reach,
    Region,
    Selector,
    Service,
    Tag,
    Test,
)
from .findings import Findings, suggestion
from .mcp_reader import McpReader
from .selector_reader import SelectorReader
from .service_reader import ServiceReader
from .tree import Pairs, Text, Tree, read_tree

__all__ = ["parse", "parse_grant", "parse_into"]

SECTIONS: Final = ("hosts", "tags", "groups", "services", "relays", "grants", "tests")
RELAY_KEYS: Final = ("on",)
GRANT_KEYS: Final = ("from", "to", "ip", "mcp", "note", "expires")
TEST_KEYS: Final = ("from", "to", "accept", "deny")
_MAX_NOTE: Final = 500
_MAX_TESTS: Final = 1000  # each may look at every pair of nodes


def parse(text: str) -> Document:
    """The document that `text` (YAML or JSON) states; empty text is the empty document, which allows nothing.

    Raises PolicyError with every fault that could be found, each with its line and column.
    """
    findings = Findings()
    document = parse_into(text, findings)
    findings.raise_errors()
    return document


def parse_into(text: str, findings: Findings) -> Document:
    """Like `parse`, but notes faults in `findings` and answers with what remains. Raises PolicyError for bad syntax."""
    tree = read_tree(text)
    return Document() if tree is None else _Parser(findings).document(tree)


def parse_grant(tree: Tree, document: Document, findings: Findings) -> Grant | None:
    """One more grant, written as in a document and with the names that `document` declares. Notes faults."""
    return _Parser(findings).further_grant(tree, document)


_Declared = Host | Tag | Group | Service | Region


class _Parser(SelectorReader):
    def __init__(self, findings: Findings) -> None:
        super().__init__(findings)
        self._groups: dict[str, Group] = {}
        self._services: dict[str, Service] = {}
        self._regions: dict[str, Region] = {}
        self._calls = McpReader(findings)
        self._grant_ids: Counter[str] = Counter()

    def document(self, tree: Tree) -> Document:
        sections = self.fields(tree, "the document", SECTIONS)
        # Names first: a bare selector means whatever the document itself declares under that name.
        for key, value in self._section(sections, "hosts"):
            self._host(key, value)
        groups = self._section(sections, "groups")
        self._group_names = {name for key, _ in groups if (name := key.value.removeprefix("group:"))}
        if "tags" in sections:
            self._tags = {}
            for key, value in self._section(sections, "tags"):
                self._tag(key, value)
        for key, value in groups:
            self._group(key, value)
        services = self._section(sections, "services")
        self._service_names = {key.value.removeprefix("svc:") for key, _ in services}
        self._read_services(services)
        for key, value in self._section(sections, "relays"):
            self._region(key, value)
        grants = [self._grant(item) for item in self.sequence(sections.get("grants"), "grants")]
        tests = [self._test(item) for item in self._tests(sections.get("tests"))]
        return Document(
            hosts=MappingProxyType(self._hosts),
            tags=None if self._tags is None else MappingProxyType(self._tags),
            groups=MappingProxyType(self._groups),
            services=MappingProxyType(self._services),
            relays=MappingProxyType(self._regions),
            grants=tuple(grant for grant in grants if grant is not None),
            tests=tuple(test for test in tests if test is not None),
        )

    def further_grant(self, tree: Tree, document: Document) -> Grant | None:
        """A grant that stands outside of `document` and may use its names."""
        self._hosts = dict(document.hosts)
        self._tags = None if document.tags is None else dict(document.tags)
        self._group_names = set(document.groups)
        self._services = dict(document.services)
        self._service_names = set(document.services)
        return self._grant(tree)

    def _section(self, sections: dict[str, Tree], name: str) -> list[tuple[Text, Tree]]:
        return list(self.entries(sections[name], name)) if name in sections else []

    def _tests(self, tree: Tree | None) -> tuple[Tree, ...]:
        items = self.sequence(tree, "tests")
        if len(items) > _MAX_TESTS:
            place = items[_MAX_TESTS].place
            self.findings.error("too-many-tests", f"a document may have {_MAX_TESTS} tests, not {len(items)}", place)
        return items[:_MAX_TESTS]

    # Names

    def _host(self, key: Text, value: Tree) -> None:
        name = self._declared(key, "host:", self._hosts)
        text = self.text(value, f"the prefix of {key.value!r}")
        prefix = self.checked(text, _network, "prefix") if text is not None else None
        if name is not None and prefix is not None:
            self._hosts[name] = Host(name, prefix, key.place)

    def _tag(self, key: Text, value: Tree) -> None:
        name = self._declared(key, "tag:", self._tags or {})
        is_empty = isinstance(value, Text) and value.is_null
        items = () if is_empty else self.sequence(value, f"the owners of {key.value!r}")
        owners = tuple(owner for item in items if (owner := self._owner(item)) is not None)
        if name is not None and self._tags is not None:
            self._tags[name] = Tag(name, owners, key.place)

    def _owner(self, item: Tree) -> str | None:
        text = self.text(item, "an owner")
        if text is None:
            return None
        kind, _, name = text.value.partition(":")
        if kind == "user":
            return text.value if self.checked(Text(name, text.place), check_user, "owner") is not None else None
        if kind != "group":
            message = f"{text.value!r} owns no tags: an owner is user:NAME or group:NAME"
            self.findings.error("owner", message, text.place)
            return None
        group = name
        if group not in self._group_names:
            near = suggestion(group, self._group_names)
            self.findings.error("unknown-group", f"there is no group {group!r}{near}", text.place)
            return None
        return text.value

    def _group(self, key: Text, value: Tree) -> None:
        name = self._declared(key, "group:", self._groups)
        found = self.one_or_more(value, f"group {key.value!r}", self._member)
        if name is not None:
            members = tuple(member for member in found if isinstance(member, Selector))
            users = frozenset(member for member in found if isinstance(member, str))
            self._groups[name] = Group(name, members, users, key.place)

    def _member(self, text: Text) -> Selector | str | None:
        """What a group holds: a selector, or the name of a user."""
        kind, colon, name = text.value.partition(":")
        if kind == "user" and colon:
            return self.checked(Text(name, text.place), check_user, "user")
        selector = self._selector(text)
        if selector is not None and selector.kind in ("group", "any"):
            self.findings.error(
                "group-member", f"{text.value!r}: a group holds tags, nodes, hosts and users", text.place
            )
            return None
        return selector

    def _read_services(self, pairs: Sequence[tuple[Text, Tree]]) -> None:
        reader = ServiceReader(self.findings, self._selector)
        for key, value in pairs:
            name = self._declared(key, "svc:", self._services)
            service = reader.service(name or key.value, key, value)
            if name is not None and service is not None:
                self._services[name] = service

    def _region(self, key: Text, value: Tree) -> None:
        what = f"region {key.value!r}"
        name = self._declared(key, "relay:", self._regions)
        fields = self.fields(value, what, RELAY_KEYS)
        if self.has(fields, RELAY_KEYS, what, value):
            on = self.one_or_more(fields["on"], f"on of {what}", self._selector)
            if name is not None:
                self._regions[name] = Region(name, on, key.place)

    def _declared(self, key: Text, prefix: str, known: Mapping[str, _Declared]) -> str | None:
        """The name that a key declares; `tag:web` and `web` are the same key of `tags`, and so for the others."""
        stripped = Text(key.value.removeprefix(prefix), key.place)
        name = self.checked(stripped, check_name, "name")
        if name is None:
            return None
        if name in known:
            first = known[name].place.line
            self.findings.error("duplicate-key", f"{key.value!r} is already given on line {first}", key.place)
            return None
        if prefix == "group:" and name in self._hosts:
            first = self._hosts[name].place.line
            self.findings.error("ambiguous", f"{name!r} is also a host (line {first}): rename one", key.place)
        return name

    # Grants and tests

    def _grant(self, tree: Tree) -> Grant | None:
        fields = self.fields(tree, "a grant", GRANT_KEYS)
        if not self.has(fields, ("from", "to"), "a grant", tree):
            return None
        from_ = self.one_or_more(fields["from"], "from", self._selector)
        to = self.one_or_more(fields["to"], "to", self._target)
        ip = self.one_or_more(fields["ip"], "ip", self.allowance) if "ip" in fields else ()
        mcp = self._mcp(fields["mcp"], to) if "mcp" in fields else None
        expires = self.instant(fields["expires"]) if "expires" in fields else None
        note = self._note(fields.get("note"))
        reaches = self._reaches(to, ip if "ip" in fields else None, tree)
        if reaches is None:
            return None
        return Grant(self._grant_id(from_, to, ip, mcp), from_, to, ip, reaches, mcp, note, expires, tree.place)

    def _reaches(self, to: Sequence[Selector], ip: Sequence[Allowance] | None, tree: Tree) -> tuple[Reach, ...] | None:
        """What a grant opens: what `ip` says, or without `ip` the ports of the services."""
        if ip is None:
            nodes = [selector for selector in to if selector.kind != "svc"]
            if nodes:
                message = (
                    f"a grant to {nodes[0].key} needs ip, like ip: [tcp:443]; only services have ports of their own"
                )
                self.findings.error("missing-key", message, tree.place)
                return None
            return tuple(self._reach(selector) for selector in to if selector.name in self._services)
        for selector in to:
            if selector.kind == "svc" and (service := self._services.get(selector.name)) and service.gateway:
                message = f"{selector.key} is reached at its own addresses and port only: grant to it without ip"
                self.findings.error("service-ip", message, selector.place)
        return (Reach(tuple(to), tuple(ip)),)

    def _reach(self, selector: Selector) -> Reach:
        service = self._services[selector.name]
        ports = [service.port]
        if service.gateway is not None and service.gateway.tls_port is not None:
            ports.append(service.gateway.tls_port)
        allowances = tuple(Allowance("tcp", (port, port), f"tcp:{port}", selector.place) for port in ports)
        return Reach((selector,), allowances, None if service.gateway is None else service.name)

    def _mcp(self, tree: Tree, to: Sequence[Selector]) -> McpRules:
        self._speak_mcp(to)
        return self._calls.rules(tree)

    def _speak_mcp(self, to: Sequence[Selector]) -> None:
        """An error for each of `to` that knows no calls."""
        for selector in to:
            service = self._services.get(selector.name) if selector.kind == "svc" else None
            if selector.kind == "svc" and service is None:
                continue  # its declaration is faulty, and reported there
            if service is None or service.gateway is None or service.gateway.kind != "mcp":
                message = f"{selector.key} is no service with mcp, and only such have calls: write it apart"
                self.findings.error("mcp", message, selector.place)

    def _grant_id(
        self, from_: Sequence[Selector], to: Sequence[Selector], ip: Sequence[Allowance], mcp: McpRules | None
    ) -> str:
        """From what is granted to whom; the same grant written twice gets a number."""
        what: list[object] = [sorted(s.key for s in from_), sorted(s.key for s in to), services(ip)]
        if mcp is not None:
            what.append(to_jsonable_python(mcp))
        base = "g" + hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
        self._grant_ids[base] += 1
        number = self._grant_ids[base]
        return base if number == 1 else f"{base}-{number}"

    def _note(self, tree: Tree | None) -> str:
        text = self.text(tree, "note") if tree is not None else None
        if text is not None and len(text.value) > _MAX_NOTE:
            self.findings.error("note", f"the note has {len(text.value)} characters; {_MAX_NOTE} fit", text.place)
        return text.value if text is not None else ""

    def _test(self, tree: Tree) -> Test | None:
        fields = self.fields(tree, "a test", TEST_KEYS)
        if not self.has(fields, ("from", "to"), "a test", tree):
            return None
        if "accept" not in fields and "deny" not in fields:
            self.findings.error("missing-key", "a test needs accept, deny or both, like accept: [tcp:443]", tree.place)
        to = self.one_or_more(fields["to"], "to", self._target)
        return Test(
            from_=self.one_or_more(fields["from"], "from", self._selector),
            to=to,
            accept=self._expected(fields, "accept", to),
            deny=self._expected(fields, "deny", to),
            place=tree.place,
        )

    def _expected(self, fields: dict[str, Tree], key: str, to: Sequence[Selector]) -> tuple[Allowance | Call, ...]:
        """Entries of `ip`, or a mapping of calls."""
        if key not in fields:
            return ()
        if not isinstance(fields[key], Pairs):
            return self.one_or_more(fields[key], key, self.allowance)
        self._speak_mcp(to)
        return self._calls.calls(fields[key], key)


def _network(value: str) -> Network:
    """A prefix, or one address."""
    if "%" in value:
        raise ValueError(f"{value!r}: a mesh prefix has no scope, remove {value[value.index('%') :]!r}")
    try:
        return ipaddress.ip_network(value, strict=True)
    except ValueError as error:
        raise ValueError(f"{value!r} is not a prefix or an address: {error}") from error
