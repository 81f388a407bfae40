"""The mesh in memory: what every host has to know, whom a change concerns, and the agents' connections.

    Change -> state (pure: which objects of whose maps) -> log and connections -> Delta or Snapshot -> the host

The state keeps no map of any host. It keeps, for each selector of the policy, its members and addresses, and for each
selector the ones that policy connects it with. A node's role is the set of selectors that match it; its rules and the
names of its sets follow from the role, and its peers are the members of those sets. So:

- A change of a node touches those who use a set that the node is or was in, and the node itself. Nobody else is
  looked at. It names the objects that may differ (`Dirty`), not their values.
- A delta is written (`maps`) when an agent can take it, from the values of that moment. Several changes that wait for
  a slow agent are the union of their names: one bounded value, and one delta.
- A delta that resumes a host is written in the same way, from what the log names since the host's revision.
- What changed before the controller read the mesh is known by name from the database (`past`): a host that comes back
  after a restart, or from another controller, is told the present value of whatever changed since.
- Temporary grants are compiled together with the document's own.
- A new policy or temporary grant is compared role by role, so each node gets its difference only.
- A grant that expires leaves the maps at that time, with its peers, without a revision of its own: hosts have ended
  it by themselves, and a host that comes back afterwards gets a snapshot.

A gateway service has addresses of its own, which one node holds. Its set holds those addresses, while its members are
the nodes that may serve it: whoever may call it has them all as peers, and a move changes two peers
in the callers' maps and nothing else. What a peer holds is told only to those who may call it.

Nodes that wait for approval have a map with themselves in it and nobody else; disabled ones cannot connect. A record
that a host's kernel would refuse, or that claims what another node holds (name, address, key), is logged and left
out of every map, until it is mended or the other releases it.

Resuming trusts revisions of one timeline only: a mesh that was restored from a backup has another, because hosts may
hold revisions that meant something else.
"""

from .farewells import RefusedError
from .hub import Hub
from .presence import Presence
from .state import MeshState

__all__ = ["Hub", "MeshState", "Presence", "RefusedError"]
