"""Temporary grants as REST shows them: access beside the policy document, which ends by itself."""

from datetime import datetime
from typing import Annotated, Final, Literal, TypeVar

from pydantic import ConfigDict, Field, JsonValue, field_validator

from .base import Message, Revision, Text

__all__ = ["LONGEST_TTL", "GrantCalls", "GrantCreate", "GrantPatch", "GrantState", "TemporaryGrant"]

LONGEST_TTL: Final = 366 * 86400  # seconds; a controller may allow less, and does unless it was told otherwise

GrantState = Literal["active", "ended"]
Entry = Annotated[Text, Field(min_length=1, max_length=300)]
Entries = Annotated[tuple[Entry, ...], Field(min_length=1, max_length=100)]
Globs = Annotated[tuple[Entry, ...], Field(max_length=100)]
T = TypeVar("T")
ByTool = Annotated[dict[Entry, T], Field(max_length=100)]
Ttl = Annotated[int, Field(ge=1, le=LONGEST_TTL, description="seconds from now")]


class GrantCalls(Message):
    """Which calls a grant allows on services that speak MCP: what `mcp` of a policy document's grant says, as JSON.

    What is written here is checked by the policy language, whose errors name the part.
    """

    tools: Globs = ()
    deny_tools: Globs = ()
    prompts: Globs = ()
    resources: Globs = ()
    methods: Globs = ()
    args: ByTool[JsonValue] = Field(default_factory=dict, description="by tool: what each argument must be")
    schemas: ByTool[JsonValue] = Field(default_factory=dict, description="by tool: a JSON Schema for its arguments")
    limits: ByTool[Text] = Field(default_factory=dict, description="by tool: how often, like 500/10s")

    @property
    def written(self) -> dict[str, JsonValue]:
        """What was said, without what was not."""
        return self.model_dump(mode="json", exclude_defaults=True)


class GrantCreate(Message):
    """POST /grants. `from`, `to`, `ip` and `mcp` have entries as in a policy document's grant."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    from_: Entries = Field(alias="from", description="who may open the flows: selectors")
    to: Entries = Field(description="to whom: selectors")
    ip: Annotated[tuple[Entry, ...], Field(max_length=100)] = Field(
        default=(), description="which flows: tcp:PORT, udp:PORT, icmp"
    )
    mcp: GrantCalls | None = Field(default=None, description="which calls, for services that speak MCP")
    ttl: Ttl
    reason: Annotated[Text, Field(min_length=1, max_length=500)] = Field(description="why; it is kept in the audit")

    @field_validator("reason")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("the reason is blank: say why the access is needed")
        return value.strip()


class GrantPatch(Message):
    """PATCH /grants/{id}, with If-Match: the grant ends `ttl` seconds from now, which must be later than it would."""

    ttl: Ttl


class TemporaryGrant(Message):
    """A temporary grant. Selectors are shown with their kind, since bare names depend on the document.

    It is `active` until `expires` or `revoked`, then `ended`. `problem`: why it grants nothing although it is active,
    for instance that the policy in force no longer knows one of its names. `actor` made it.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    id: str
    from_: tuple[str, ...] = Field(alias="from")
    to: tuple[str, ...]
    ip: tuple[str, ...]
    mcp: GrantCalls | None = None
    reason: str
    actor: str
    created: datetime
    expires: datetime
    revoked: datetime | None = None
    state: GrantState
    problem: str | None = None
    revision: Revision
