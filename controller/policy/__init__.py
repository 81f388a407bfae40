"""The policy language: who may open which flows to whom. Read, checked and compiled here; enforced by every host.

A document is YAML or JSON, at most 1 MiB. It has five sections, all optional:

    hosts:                                   # name: a prefix, or one address
      lab: 100.64.8.0/24
    tags:                                    # tag: who may give it to a node, besides the admins
      tag:agents: [group:ops]
      tag:tools: []
    groups:                                  # name: tags, nodes and hosts; groups do not nest
      ops: [tag:laptops, bastion]
    grants:                                  # each allows something; there is no order and no deny
      - from: [tag:agents, group:ops]
        to: [tag:tools]
        ip: [tcp:443, udp:53, tcp:8000-8100, icmp]
        note: agents call tools
        expires: 2027-01-31T18:00:00Z
    tests:                                   # a write whose tests fail is refused
      - from: tag:agents
        to: tag:tools
        accept: [tcp:443]
        deny: [tcp:22, "udp:*"]

What no grant names is denied, and an empty document denies everything. A grant is about the first packet of a flow;
replies follow. Both hosts enforce it: the source what leaves, the destination what arrives. A node's traffic with
itself is not filtered.

**Selectors**, in `from`, `to` and groups; one, or a list: `tag:NAME`, `node:NAME`, `host:NAME`, `group:NAME`, and `"*"`
for every active node. Without a kind, a name means the document's own host or group of that name, else the node. A
selector always stands for whole nodes: a host prefix selects the nodes that have an address in it, with all of their
addresses, IPv4 and IPv6, since one tunnel carries both. A node that joins under a name that a document mentions gets
what the document grants to that name: where those who enrol hosts choose names, grant to tags, which the enrolment
key decides.

**ip**: `tcp:PORT`, `udp:PORT`, `icmp` (ICMP and ICMPv6), with a PORT of 1-65535, a range `LOW-HIGH`, or `*` for all.
`"*"` alone is tcp, udp and icmp, and never another protocol: tunnels (GRE, IP-in-IP) and SCTP do not ride on it. YAML
wants quotes around a star that stands alone.

**tags**: without this section, any tag may be named, and one that no node carries is only warned about, since the
policy often comes before the hosts. With it, a tag that is not declared is an error. Nodes and enrolment keys may
carry tags that no document declares; they are then granted nothing.

**tests**: all of `accept` must pass, and nothing of `deny` may, between every pair of nodes that the selectors match
now and one imagined node for each tag, host or `*` that has nothing else. So a test holds for nodes that join later.

**Errors** have line, column and the nearest known name. Errors: syntax, unknown keys and names, duplicate keys,
anchors and aliases, failed tests. Warnings: selectors that match nobody, grants without effect, duplicates, expired
grants, `"*"` to `"*"`. Names are looked up only when a document is written: a node that is renamed or removed later
leaves a grant that matches nobody, and never stops the server.

The way through the package: `tree` (text to values with places) -> `parse` (values to `document`) -> `check` (for
people) and `compile` (for hosts). `model` says independently of `compile` what a document means. A new kind of
selector is one more case in `parse`, `model`, `population` and in `CompiledPolicy.role`; a new section is one more
reader in `parse`.
"""

from .check import check
from .compile import CompiledPolicy, compile_policy
from .document import Document
from .findings import PolicyError
from .parse import parse

__all__ = ["CompiledPolicy", "Document", "PolicyError", "check", "compile_policy", "parse"]
