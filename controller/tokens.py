"""Admin tokens: what lets people and programs use the REST API. Shown once, kept as a hash."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from controller.audit import Action
from controller.clock import Clock
from controller.idempotency import Once
from controller.identity.secret import Secret, digest, new_id
from controller.problems import Kind, Refused
from controller.store.store import Store
from controller.store.values import StoredToken
from controller.wire.rest import AdminRole, AdminToken, AdminTokenCreate, AdminTokenCreated

__all__ = ["Principal", "Tokens"]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request. `user`: whose token it is, None when it is nobody's in particular.

    `credential` is what it proved itself with: never logged, never stored.
    """

    actor: str
    role: AdminRole
    user: str | None
    credential: str = field(repr=False)


class Tokens:
    """The domain of admin tokens."""

    def __init__(self, store: Store, now: Clock) -> None:
        self._store = store
        self._now = now

    async def authenticate(self, text: str) -> Principal:
        """Who presents this token. Raises Refused (UNAUTHENTICATED); the detail does not say which check failed."""
        async with self._store.read() as tables:
            token = await tables.tokens.by_hash(digest(text))
        if token is None or token.revoked is not None or (token.expires is not None and token.expires <= self._now()):
            raise Refused(
                Kind.UNAUTHENTICATED,
                "the token is unknown, expired or revoked: make one with `wardmesh-controller token create`",
            )
        actor = f"token:{token.prefix}" if token.user is None else f"user:{token.user}:{token.prefix}"
        return Principal(actor=actor, role=token.role, user=token.user, credential=text)

    async def create(
        self, actor: str, wanted: AdminTokenCreate, once: Once | None = None, action: Action = Action.TOKEN_CREATE
    ) -> AdminTokenCreated:
        """Make a token. The answer is the only place where it can be read."""
        secret = Secret.new("wma")
        token_id = new_id()
        async with self._store.mutation(actor, action, f"token:{token_id}", once) as tx:
            token = StoredToken(
                id=token_id,
                prefix=secret.prefix,
                hash=secret.hash,
                role=wanted.role,
                user=wanted.user,
                note=wanted.note,
                created=tx.now,
                expires=tx.now + timedelta(seconds=wanted.ttl) if wanted.ttl else None,
            )
            await tx.tokens.add(token)
            created = AdminTokenCreated(token=_public(token), secret=secret.text)
            tx.record(new=_summary(token))
            tx.answer(created)
        return created

    async def bootstrap(self) -> AdminTokenCreated | None:
        """The first token of a new controller; None when there ever was one."""
        async with self._store.read() as tables:
            if await tables.tokens.count():
                return None
        wanted = AdminTokenCreate(role="admin", note="made at first start")
        return await self.create("system", wanted, action=Action.TOKEN_BOOTSTRAP)

    async def page(self, *, before: tuple[datetime, str] | None, limit: int) -> list[AdminToken]:
        """At most `limit` tokens, newest first."""
        async with self._store.read() as tables:
            return [_public(token) for token in await tables.tokens.page(before=before, limit=limit)]

    async def revoke(self, actor: str, token_id: str) -> None:
        """End the token. Again is the same as once. Raises Refused (NOT_FOUND)."""
        async with self._store.mutation(actor, Action.TOKEN_REVOKE, f"token:{token_id}") as tx:
            token = await tx.tokens.get(token_id)
            if token is None:
                raise Refused(Kind.NOT_FOUND, f"there is no token {token_id!r}: GET /tokens lists those that exist")
            if token.revoked is not None:
                tx.discard()
                return
            await tx.tokens.revoke(token_id, tx.now)
            tx.record(old=_summary(token))


def _summary(token: StoredToken) -> dict[str, str]:
    whose = {} if token.user is None else {"user": token.user}
    return {"prefix": token.prefix, "role": token.role, "note": token.note, **whose}


def _public(token: StoredToken) -> AdminToken:
    return AdminToken(
        id=token.id,
        prefix=token.prefix,
        role=token.role,
        user=token.user,
        note=token.note,
        created=token.created,
        expires=token.expires,
        revoked=token.revoked,
    )
