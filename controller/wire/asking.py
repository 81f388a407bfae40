"""What the controller asks a host about its kernel, and what the host answers: read back from the kernel, not repeated
from the map."""

from typing import Annotated, Final, Literal

from pydantic import Field

from .base import Message, Revision, Text
from .relay_use import Relayed
from .rules import Flow

__all__ = ["ANSWER_WITHIN", "MOST_COUNTED", "MOST_FLOWS", "Answer", "Ask", "Judged"]

MOST_FLOWS: Final = 16
MOST_COUNTED: Final = 500
ANSWER_WITHIN: Final = 2.0  # seconds; a host that takes longer gave no answer

_Name = Annotated[str, Field(max_length=200)]
_Count = Annotated[int, Field(ge=0)]


class Ask(Message):
    """Controller to agent: may these flows pass the kernel now? With `counters`, what has it counted? With `relayed`,
    what has it passed on as a relay?"""

    type: Literal["ask"] = "ask"
    id: Annotated[int, Field(ge=0)]
    flows: Annotated[tuple[Flow, ...], Field(max_length=MOST_FLOWS)] = ()
    counters: bool = False
    relayed: bool = False


class Judged(Message):
    """What the tables in a kernel do with a flow, both ways, in all tables; `why` is for people.

    `passes` None: it depends on a rule of another program that agentd cannot read. `grant`: by which it passes our own
    table, None when it does not.
    """

    passes: bool | None
    grant: _Name | None = None
    why: Annotated[Text, Field(max_length=1000)] = ""


class Answer(Message):
    """Agent to controller, to the `Ask` of this id. `revision` is that of the map in force.

    `judged` is in the order of the flows, () with `error`. Counters are of packets, since the host's table was last
    written whole, without those at 0 and at most MOST_COUNTED of them, the greatest.
    """

    type: Literal["answer"] = "answer"
    id: Annotated[int, Field(ge=0)]
    revision: Revision | None = None
    judged: Annotated[tuple[Judged, ...], Field(max_length=MOST_FLOWS)] = ()
    accepted: Annotated[dict[_Name, _Count], Field(max_length=MOST_COUNTED)] = Field(default_factory=dict)
    denied: Annotated[dict[_Name, _Count], Field(max_length=16)] = Field(default_factory=dict)
    relayed: Relayed | None = None
    error: Annotated[Text, Field(max_length=1000)] | None = None
