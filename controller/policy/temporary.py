"""Temporary grants: read as if they stood in the document in force, and put beside its own.

Pure. They are written apart from the document, so a later document may not know a name that they use: such a grant
allows nothing until the name is back, and harms nobody else.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import JsonValue

from controller.records import NodeRecord, TemporaryGrant

from .document import Document, Grant, Selector
from .findings import Findings, Place, PolicyError, suggestion
from .parse import parse_grant
from .tree import Pairs, Text, Tree, tree_of

__all__ = ["Fault", "beside", "read_grant"]

# It has no text, so the places of its parts count fields, and lead back to them.
_FIELDS: Final = ("from", "to", "ip", "mcp")
_NOWHERE: Final = Place(0, 0)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an entry, in a document's words; `field` is None when it is the grant as a whole."""

    code: str
    field: str | None
    message: str


def read_grant(
    from_: Sequence[str],
    to: Sequence[str],
    ip: Sequence[str],
    document: Document,
    nodes: Iterable[NodeRecord],
    *,
    mcp: Mapping[str, JsonValue] | None = None,
) -> tuple[Grant | None, list[Fault]]:
    """The grant that these entries mean beside `document`; None, and the faults, when they mean none.

    Stricter than a document: also a tag must be known, by the document or by a node. A temporary grant is for what
    is there, and one with a misspelt name would be found out only when somebody needs it.
    """
    grant, faults = _read(from_, to, ip, mcp, document)
    if grant is not None:
        faults = _unknown(grant, document, list(nodes))
    return (None if faults else grant), faults


def beside(document: Document, grants: Iterable[TemporaryGrant]) -> tuple[Document, Mapping[str, str]]:
    """The document together with the temporary grants, and of those that it cannot read, by id, why."""
    added: list[Grant] = []
    unread: dict[str, str] = {}
    for temporary in sorted(grants, key=lambda one: one.id):
        grant, faults = _read(temporary.from_, temporary.to, temporary.ip, temporary.mcp, document)
        if grant is None:
            unread[temporary.id] = "; ".join(fault.message for fault in faults)
        else:
            added.append(replace(grant, id=temporary.id, note=temporary.reason, expires=temporary.expires))
    return (replace(document, grants=(*document.grants, *added)) if added else document), unread


def _tree(*fields: JsonValue) -> Tree:
    """Raises PolicyError for what is nested too deep."""
    pairs: list[tuple[Tree, Tree]] = []
    for line, (name, value) in enumerate(zip(_FIELDS, fields, strict=True), start=1):
        if value is not None and value != []:
            pairs.append((Text(name, Place(line, 0)), tree_of(value, Place(line, 0))))
    return Pairs(tuple(pairs), _NOWHERE)


def _read(
    from_: Sequence[str],
    to: Sequence[str],
    ip: Sequence[str],
    mcp: Mapping[str, JsonValue] | None,
    document: Document,
) -> tuple[Grant | None, list[Fault]]:
    findings = Findings()
    try:
        tree = _tree([*from_], [*to], [*ip], None if mcp is None else {**mcp})
        grant = parse_grant(tree, document, findings)
        findings.raise_errors()
    except PolicyError as error:
        return None, [Fault(found.code, _field(found.line), found.message) for found in error.findings]
    return grant, []


def _field(line: int | None) -> str | None:
    return _FIELDS[line - 1] if line else None


def _unknown(grant: Grant, document: Document, nodes: Sequence[NodeRecord]) -> list[Fault]:
    names = {node.name for node in nodes}
    tags = {tag for node in nodes for tag in node.tags} | {f"tag:{name}" for name in document.tags or ()}
    faults = []
    for selector in (*grant.from_, *grant.to):
        side = _field(selector.place.line)
        if selector.kind == "node" and selector.name not in names:
            what = "node, host or group" if selector.bare else "node"
            near = suggestion(selector.name, {*names, *document.hosts, *document.groups} if selector.bare else names)
            faults.append(Fault("unknown-node", side, f"there is no {what} {selector.name!r}{near}"))
        if selector.kind == "tag" and selector.key not in tags:
            near = suggestion(selector.key, tags)
            faults.append(Fault("unknown-tag", side, f"no node has {selector.key!r}, and no policy declares it{near}"))
        service = document.services.get(selector.name) if selector.kind == "svc" else None
        speaks_mcp = service is not None and service.gateway is not None and service.gateway.kind == "mcp"
        if speaks_mcp and not _names_calls(grant):
            message = f"{selector.key} speaks MCP: name what may be called on it, like mcp: {{tools: [get_*]}}"
            faults.append(Fault("mcp", side, message))
    if not faults and _is_one_node(grant.from_) and [s.key for s in grant.from_] == [s.key for s in grant.to]:
        only = grant.from_[0].name
        faults.append(
            Fault("unreachable", None, f"{only!r} is on both sides, and a node's traffic with itself is not filtered")
        )
    return faults


def _names_calls(grant: Grant) -> bool:
    mcp = grant.mcp
    return mcp is not None and bool(mcp.tools or mcp.prompts or mcp.resources or mcp.methods)


def _is_one_node(selectors: Sequence[Selector]) -> bool:
    return len(selectors) == 1 and selectors[0].kind == "node"
