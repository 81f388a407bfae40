"""What all services of one process share: who callers are, the policy in force, the trail, what is under way."""

import time
from dataclasses import dataclass, field, replace
from typing import Final

from .identity import IdentitySource
from .live import Live, Running
from .passage import Patience
from .sessions import Sessions
from .types import TRANSPORT_RESPONSE, TRANSPORT_STREAM, TRANSPORT_TERMINATE, AuditSink, Call, Caller, Policy

__all__ = ["Gateway", "judged"]

_TRANSPORT: Final = frozenset({TRANSPORT_STREAM, TRANSPORT_TERMINATE, TRANSPORT_RESPONSE})


@dataclass(slots=True)
class Gateway:
    """What all services of one process share. `policy` is replaced whole."""

    identity: IdentitySource
    policy: Policy
    audit: AuditSink
    sessions: Sessions
    live: Live = field(default_factory=Live)
    patience: Patience = field(default_factory=Patience)
    stopping: bool = False

    async def who(self, address: str) -> Caller | None:
        """The caller at this address."""
        return self.identity.known(address) or await self.identity.whois(address)

    def adopt(self, policy: Policy, now: float) -> int:
        """Put a policy in force, also for what is under way; returns how many exchanges that ended.

        `now` is in seconds since the epoch, here and below.
        """
        self.policy = policy
        return self._end_what_is_not_allowed(now, "the policy no longer allows this")

    def expire(self, now: float) -> int:
        """End what grants allowed that have ended; returns how many exchanges."""
        return self._end_what_is_not_allowed(now, "the grant that allowed this has expired")

    async def recheck(self) -> None:
        """End what belongs to callers that are no longer who they were, or whose grants have expired."""
        gone: set[Caller] = set()
        for caller in self.live.callers():
            found = await self.who(caller.address)
            if found is None or found.node_id != caller.node_id:
                gone.add(caller)
        self.live.revoke("the caller is no longer part of the mesh", lambda running: running.caller in gone)
        self.expire(time.time())

    def _end_what_is_not_allowed(self, now: float, why: str) -> int:
        policy = self.policy

        def lost(running: Running) -> bool:
            return not policy.holds(running.caller, judged(running.call), now)

        return self.live.revoke(why, lost)


def judged(call: Call) -> Call:
    """The call that policy is asked about. What belongs to the transport is allowed to whoever may `ping`."""
    return replace(call, method="ping", request_id=None) if call.method in _TRANSPORT else call
