"""What may end differently through the gateway, each with its reason. Anything else fails the tests.

An entry that no run needs any more fails them, too: the list is exactly what is different.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from .suite import Difference, Leg

__all__ = ["ALLOWED", "NOT_RUN", "Allowance", "unexplained"]


@dataclass(frozen=True)
class Allowance:
    """`scenario` and `check` are patterns; `through` is how it ends behind the gateway."""

    leg: Leg
    revision: str
    scenario: str
    check: str
    through: str
    reason: str

    def covers(self, leg: Leg, revision: str, difference: Difference) -> bool:
        return (
            (self.leg, self.revision) == (leg, revision)
            and fnmatchcase(difference.scenario, self.scenario)
            and fnmatchcase(difference.check, self.check)
            and set(difference.through) == {self.through}
        )


ALLOWED: tuple[Allowance, ...] = (
    Allowance(
        leg="server",
        revision="2026-07-28",
        scenario="http-header-validation",
        check="sep-2243-server-accepts-whitespace-header-value",
        through="SUCCESS",
        reason="The gateway trims white space around header values, as RFC 9110 section 5.5 demands; PyPI mcp 2.3 does "
        "not. Unscored (pending) in this revision.",
    ),
)

# Scenarios of the client leg that are not run, by pattern.
NOT_RUN: dict[str, str] = {
    "auth/*": "The suite's server names itself, by its own URL, in the protected resource metadata that its OAuth "
    "challenge points to. A client that reaches it by the gateway's URL must refuse that (RFC 9728 section 3.3), and "
    "does: the gateway is another resource, and in front of it OAuth can work only when it is a resource server itself."
}


def unexplained(leg: Leg, revision: str, differences: list[Difference]) -> list[str]:
    """The differences that nothing allows, and the allowances of this run that no difference needs."""
    allowed = [one for one in ALLOWED if (one.leg, one.revision) == (leg, revision)]
    found = [str(one) for one in differences if not any(entry.covers(leg, revision, one) for entry in allowed)]
    stale = [entry for entry in allowed if not any(entry.covers(leg, revision, one) for one in differences)]
    return found + [f"no longer different: {entry.scenario} / {entry.check}" for entry in stale]
