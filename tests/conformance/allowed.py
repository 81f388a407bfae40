"""What may end differently through the gateway, each with its reason. Anything else fails the tests.

An entry that no run needs any more fails them, too: the list is exactly what is different.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from .suite import Difference

__all__ = ["ALLOWED", "NOT_RUN", "Allowance", "Run", "unexplained"]


# server, client: the suite's legs with an HTTP upstream. stdio: the server leg, the fixture spawned by the gateway.
Run = Literal["server", "client", "stdio"]


@dataclass(frozen=True)
class Allowance:
    """`scenario` and `check` are patterns; `through` is how it may end behind the gateway, "" for not at all."""

    run: Run
    revision: str
    scenario: str
    check: str
    through: frozenset[str]
    reason: str

    def covers(self, difference: Difference) -> bool:
        return (
            set(difference.through or {""}) <= self.through
            and fnmatchcase(difference.scenario, self.scenario)
            and fnmatchcase(difference.check, self.check)
        )


_WHITE_SPACE = (
    "The gateway trims white space around header values, as RFC 9110 section 5.5 demands; PyPI mcp 2.3 does not. "
    "Unscored (pending) in this revision."
)
_NO_RESUMPTION = (
    "A process on standard input and output has no events to resume, and answers with JSON when nothing comes before "
    "the result. Resumption is optional (2025-11-25, basic/transports), and the scenario unscored (pending)."
)
_TOLD_THE_VERSION = (
    "Refused with 403, the client tries initialize, which the suite's server refuses without a word of versions. The "
    "gateway names 2026-07-28, as basic/versioning demands of a modern server, so the client goes back and asks for a "
    "token once more. Every check passes, some of them twice."
)
_PLAIN_ANSWERS = (
    "The check is made of streams only. Three calls at once are answered, each with JSON, because nothing came before "
    "the result."
)

ALLOWED: tuple[Allowance, ...] = (
    Allowance(
        run="client",
        revision="2026-07-28",
        scenario="auth/scope-retry-limit",
        check="*",
        through=frozenset({"SUCCESS"}),
        reason=_TOLD_THE_VERSION,
    ),
    Allowance(
        run="server",
        revision="2026-07-28",
        scenario="http-header-validation",
        check="sep-2243-server-accepts-whitespace-header-value",
        through=frozenset({"SUCCESS"}),
        reason=_WHITE_SPACE,
    ),
    Allowance(
        run="stdio",
        revision="2026-07-28",
        scenario="http-header-validation",
        check="sep-2243-server-accepts-whitespace-header-value",
        through=frozenset({"SUCCESS"}),
        reason=_WHITE_SPACE,
    ),
    Allowance(
        run="stdio",
        revision="2025-11-25",
        scenario="server-sse-polling",
        check="server-sse-*",
        through=frozenset({""}),
        reason=_NO_RESUMPTION,
    ),
    Allowance(
        run="stdio",
        revision="2025-11-25",
        scenario="server-sse-multiple-streams",
        check="server-sse-streams-functional",
        through=frozenset({""}),
        reason=_PLAIN_ANSWERS,
    ),
)

# Scenarios of the client leg that are not run, by pattern.
NOT_RUN: dict[str, str] = dict.fromkeys(
    (
        "auth/client-credentials-*",
        "auth/dpop*",
        "auth/enterprise-managed-authorization",
        "auth/wif-jwt-bearer",
    ),
    "The suite itself refuses to run it under a revision: it tests an extension, which no revision contains.",
)


def unexplained(run: Run, revision: str, differences: list[Difference], scenario: str | None = None) -> list[str]:
    """The differences that nothing allows, and the allowances that no difference needs: of the run, or of one scenario.

    `scenario`: the only one that was run; None for all.
    """
    allowed = [
        one
        for one in ALLOWED
        if (one.run, one.revision) == (run, revision) and (scenario is None or fnmatchcase(scenario, one.scenario))
    ]
    found = [str(one) for one in differences if not any(entry.covers(one) for entry in allowed)]
    stale = [entry for entry in allowed if not any(entry.covers(one) for one in differences)]
    return found + [f"no longer different: {entry.scenario} / {entry.check}" for entry in stale]
