"""The policy document in force: reading, checking, replacing it. What it means is `controller.policy`'s business."""

import asyncio
import time
from collections.abc import Collection, Sequence

from controller.admission import Admission
from controller.audit import Action
from controller.policy import Document, PolicyError, check, compile_policy, parse
from controller.policy.difference import difference
from controller.policy.model import Member
from controller.policy.temporary import beside
from controller.problems import Kind, Refused
from controller.records import Fleet
from controller.services import settle
from controller.store.store import Store
from controller.store.values import StoredPolicy
from controller.wire.mcp import ServiceName
from controller.wire.netmap import Mesh
from controller.wire.rest import PolicyDifference, PolicyDocument, PolicyFinding, PolicyReport

__all__ = ["PolicyDocuments"]

_SUBJECT = "policy"


class PolicyDocuments:
    """The domain of policy documents."""

    def __init__(self, store: Store, mesh: Mesh, admission: Admission) -> None:
        self._store = store
        self._mesh = mesh
        self._admission = admission

    async def current(self) -> PolicyDocument:
        """The document in force; revision 0 with no text before the first."""
        async with self._store.read() as tables:
            return _document(await tables.policy.current())

    async def history(self, *, before: int | None, limit: int) -> list[PolicyDocument]:
        """At most `limit` documents that are or were in force, newest first, from before revision `before`."""
        async with self._store.read() as tables:
            return [_document(stored) for stored in await tables.policy.page(before=before, limit=limit)]

    async def check(self, text: str) -> PolicyReport:
        """What is wrong with the document, against the nodes as they are now."""
        fleet = await self._store.fleet(self._mesh)
        # A large document takes a while, and the agents' streams share this thread.
        return await asyncio.to_thread(_check, text, fleet)

    async def diff(self, text: str) -> PolicyDifference:
        """What the document would change for the active nodes. Raises Refused (POLICY_REFUSED) with findings.

        Temporary grants stand beside either document, so what they allow is no change.
        Its own tests may fail: what it would change helps to see why.
        """
        fleet = await self._store.fleet(self._mesh)
        return await asyncio.to_thread(_difference, text, fleet)

    async def apply(self, actor: str, text: str, expected: Collection[int] | None) -> PolicyDocument:
        """Put the document in force if it checks and its tests pass, and give its services addresses.

        Raises Refused (POLICY_REFUSED with findings, PRECONDITION_FAILED, POOL_EMPTY).
        """
        report = await self.check(text)
        if not report.ok:
            raise _refused(report.findings)
        services = await asyncio.to_thread(_gateway_services, text)
        async with self._store.mutation(actor, Action.POLICY_APPLY, _SUBJECT) as tx:
            before = await tx.policy.current()
            if expected is not None and (before.revision if before else 0) not in expected:
                raise Refused(
                    Kind.PRECONDITION_FAILED,
                    f"the policy is at revision {before.revision if before else 0} by now: get it again, "
                    "merge your change and repeat",
                )
            if before is not None and before.text == text:
                tx.discard()
                return _document(before)
            applied = await tx.policy.apply(text, actor=actor, now=tx.now)
            gone, added = await settle(tx, self._admission, services)
            tx.record(
                old={"text": before.text} | ({"services": gone} if gone else {}) if before else None,
                new={"text": text} | ({"services": added} if added else {}),
            )
        return _document(applied)


def _check(text: str, fleet: Fleet) -> PolicyReport:
    """The document's own report, and warnings of temporary grants that it would leave without meaning."""
    report = check(text, fleet)
    has_errors = any(finding.severity == "error" and finding.code != "test-failed" for finding in report.findings)
    if has_errors or not fleet.grants:
        return report
    _, before = beside(_in_force(fleet.policy.text), fleet.grants.values())
    _, after = beside(parse(text), fleet.grants.values())
    lost = (
        PolicyFinding(
            severity="warning",
            code="temporary-grant",
            message=f"the temporary grant {grant_id} ({fleet.grants[grant_id].reason}) would allow nothing: {why}",
        )
        for grant_id, why in sorted(after.items())
        if grant_id not in before
    )
    return report.model_copy(update={"findings": (*report.findings, *lost)})


def _difference(text: str, fleet: Fleet) -> PolicyDifference:
    now = time.time()
    report = check(text, fleet, now)
    if any(finding.severity == "error" and finding.code != "test-failed" for finding in report.findings):
        raise _refused(report.findings)
    members = (Member(one.name, one.tags, one.addresses) for one in fleet.nodes.values() if one.state == "active")
    old, _ = beside(_in_force(fleet.policy.text), fleet.grants.values())
    new, _ = beside(parse(text), fleet.grants.values())
    return difference(old, new, members, now)


def _gateway_services(text: str) -> frozenset[ServiceName]:
    return frozenset(compile_policy(parse(text)).gateway_services)


def _in_force(text: str) -> Document:
    try:
        return parse(text)
    except PolicyError:
        # A newer version accepted it. The mesh allows nothing by what this one cannot read, so that is what changes.
        return Document()


def _refused(findings: Sequence[PolicyFinding]) -> Refused:
    errors = [finding for finding in findings if finding.severity == "error"]
    first = errors[0].message if errors else "its tests fail"
    return Refused(
        Kind.POLICY_REFUSED,
        f"the document has {len(errors)} errors, the policy in force is unchanged; the first: {first}",
        *(finding.model_dump(exclude_none=True) for finding in findings),
    )


def _document(stored: StoredPolicy | None) -> PolicyDocument:
    if stored is None:
        return PolicyDocument(revision=0, text="")
    return PolicyDocument(revision=stored.revision, text=stored.text, applied=stored.applied, actor=stored.actor)
