"""The policy document in force: reading, checking, replacing it. What it means is `controller.policy`'s business."""

import asyncio
from collections.abc import Collection

from controller.audit import Action
from controller.policy import check
from controller.problems import Kind, Refused
from controller.store.store import Store
from controller.store.values import StoredPolicy
from controller.wire.netmap import Mesh
from controller.wire.rest import PolicyDocument, PolicyReport

__all__ = ["PolicyDocuments"]

_SUBJECT = "policy"


class PolicyDocuments:
    """The domain of policy documents."""

    def __init__(self, store: Store, mesh: Mesh) -> None:
        self._store = store
        self._mesh = mesh

    async def current(self) -> PolicyDocument:
        """The document in force; revision 0 with no text before the first."""
        async with self._store.read() as tables:
            return _document(await tables.policy.current())

    async def check(self, text: str) -> PolicyReport:
        """What is wrong with the document, against the nodes as they are now."""
        fleet = await self._store.fleet(self._mesh)
        # A large document takes a while, and the agents' streams share this thread.
        return await asyncio.to_thread(check, text, fleet)

    async def apply(self, actor: str, text: str, expected: Collection[int] | None) -> PolicyDocument:
        """Put the document in force if it checks and its tests pass. Raises Refused (POLICY_REFUSED) with findings."""
        report = await self.check(text)
        if not report.ok:
            findings = [finding.model_dump(exclude_none=True) for finding in report.findings]
            errors = [finding for finding in report.findings if finding.severity == "error"]
            first = errors[0].message if errors else "its tests fail"
            raise Refused(
                Kind.POLICY_REFUSED,
                f"the document has {len(errors)} errors, the policy in force is unchanged; the first: {first}",
                *findings,
            )
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
            tx.record(old={"text": before.text} if before else None, new={"text": text})
        return _document(applied)


def _document(stored: StoredPolicy | None) -> PolicyDocument:
    if stored is None:
        return PolicyDocument(revision=0, text="")
    return PolicyDocument(revision=stored.revision, text=stored.text, applied=stored.applied, actor=stored.actor)
