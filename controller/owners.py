"""Who may give a tag to a node: admins any, everybody else those that the policy in force says are theirs.

A tag decides what a node may reach, so giving one is granting. Knows principals and the document, not nodes.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from controller.policy import Document, PolicyError, parse
from controller.problems import Kind, Refused
from controller.store.store import Store
from controller.tokens import Principal
from controller.wire.rest import NodePatch

__all__ = ["Owners", "Ownership"]


@dataclass(frozen=True, slots=True)
class Ownership:
    """What one principal may do with tags, by one document."""

    principal: Principal
    document: Document

    @property
    def is_admin(self) -> bool:
        return self.principal.role == "admin"

    def check(self, tags: Iterable[str]) -> None:
        """Raise Refused (FORBIDDEN) unless the principal may give, and take away, all of `tags`."""
        user = self.principal.user
        foreign = [tag for tag in sorted(set(tags)) if user is None or not self.document.owns(user, tag)]
        if foreign and not self.is_admin:
            raise Refused(
                Kind.FORBIDDEN,
                f"{user or 'nobody'!r} does not own {', '.join(foreign)}: ask an admin, or have the policy say"
                f" tags: {{{foreign[0]}: [user:{user or 'NAME'}]}}",
            )

    def check_new(self, tags: Iterable[str]) -> None:
        """The same for what makes nodes, which only an admin may do without any tag. Raises Refused (FORBIDDEN)."""
        tags = tuple(tags)
        if not tags and not self.is_admin:
            raise Refused(Kind.FORBIDDEN, "a member's nodes carry at least one tag of the member's: name one")
        self.check(tags)

    def check_patch(self, patch: NodePatch) -> None:
        """What of a node may be changed at all; which tags is asked once the node is known. Raises Refused."""
        others = sorted(patch.model_fields_set - {"tags"})
        if others and not self.is_admin:
            raise Refused(Kind.FORBIDDEN, f"a member changes only tags of a node, not {', '.join(others)}")


class Owners:
    """Asked before anything that gives a node, or takes from it, a tag.

    By the document in the database: the mesh in memory hears of a new one only after its author had the answer.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known = (0, Document())

    async def of(self, principal: Principal) -> Ownership:
        """What the principal may do now."""
        if principal.role == "admin":
            return Ownership(principal, Document())
        async with self._store.read() as tables:
            stored = await tables.policy.current()
        if stored is not None and stored.revision != self._known[0]:
            self._known = stored.revision, await asyncio.to_thread(_parsed, stored.text)
        return Ownership(principal, Document() if stored is None else self._known[1])


def _parsed(text: str) -> Document:
    try:
        return parse(text)
    except PolicyError:
        return Document()  # accepted by a newer version: what this one cannot read makes nobody an owner
