"""A mesh with thousands of nodes in a database, and an identity on disk for each: what enrolment would have left.

Written through the store in few transactions, because enrolling thousands of hosts one by one is another bench.
"""

import base64
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from controller.audit import Action
from controller.identity.ca import identity_of
from controller.server import Running
from controller.store.values import StoredNode

__all__ = ["GROUP", "POLICY", "Identity", "populate"]

GROUP: Final = 50  # nodes that a change of one of them concerns, where there are enough
# The watcher sees everybody, and everybody the beacon; besides, a node sees its group.
POLICY: Final = """\
grants:
  - {{from: [node:watcher], to: ["*"], ip: ["tcp:9100"]}}
  - {{from: ["*"], to: [node:beacon], ip: ["tcp:53"]}}
{groups}
"""
_GROUP_GRANT: Final = "  - {{from: ['tag:g{0}'], to: ['tag:g{0}'], ip: ['tcp:443']}}"
_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Identity:
    """What a host has in its state directory. `group`: None for the watcher."""

    node_id: str
    name: str
    group: int | None
    public_key: str
    certificate: Path


async def populate(controller: Running, agents: int, group_size: int, directory: Path) -> list[Identity]:
    """Make `agents` nodes, of which the first is the watcher, in groups of that size; and a static peer in each group.

    The static peers `mover-N` and the `beacon` are what a bench changes: nobody is connected for them.
    """
    groups = -(-(agents - 1) // group_size)
    wanted = [("watcher", None), *((f"n{n}", n // group_size) for n in range(agents - 1))]
    statics = [("beacon", None), *((f"mover-{group}", group) for group in range(groups))]
    identities: list[Identity] = []
    records: list[StoredNode] = []
    context = controller.context
    for number, (name, group) in enumerate([*wanted, *statics], start=1):
        static = number > len(wanted)
        key = ec.generate_private_key(ec.SECP256R1())
        node_id, public_key = f"id-{name}", _wireguard_key()
        records.append(
            StoredNode(
                id=node_id,
                name=name,
                kind="static" if static else "agent",
                state="active",
                tags=frozenset() if group is None else frozenset({f"tag:g{group}"}),
                number=number,
                addresses=context.store.plan.addresses(number),
                public_key=public_key,
                created=context.now(),
                identity=None if static else identity_of(key.public_key()),
                # Where the bench's agents will be seen from, so that connecting changes nothing.
                reported=(f"127.0.0.1:{51820 if not static else 1}",),
            )
        )
        if not static:
            certificate = directory / f"{node_id}.pem"
            certificate.write_bytes(_pem(key) + _issue(controller, key, node_id))
            identities.append(Identity(node_id, name, group, public_key, certificate))
    for begin in range(0, len(records), _BATCH):
        async with context.store.mutation("system", Action.NODE_ENROL, "bench") as tx:
            for record in records[begin : begin + _BATCH]:
                await tx.addresses.take(record.number, record.id)
                await tx.nodes.save(record)
    text = POLICY.format(groups="\n".join(_GROUP_GRANT.format(group) for group in range(groups)))
    await context.policy.apply("system", text, None)
    return identities


def _issue(controller: Running, key: ec.EllipticCurvePrivateKey, node_id: str) -> bytes:
    context = controller.context
    return context.authority.issue_node(
        key.public_key(), node_id=node_id, mesh_id=context.mesh.id, now=context.now(), lifetime=timedelta(days=3)
    ).encode()


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _wireguard_key() -> str:
    return base64.b64encode(X25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
