"""What an agent is told when its stream ends: why, and whether it helps to come back. Pure."""

from typing import Final

from controller.wire.stream import Bye

__all__ = ["DISABLED", "REMOVED", "REPLACED", "SHUTDOWN", "RefusedError"]

REMOVED: Final = Bye(
    reason="removed", detail="this node is no member of the mesh: join again with a new join string", retry=False
)
DISABLED: Final = Bye(reason="disabled", detail="an administrator disabled this node; it may be enabled again")
REPLACED: Final = Bye(
    reason="replaced",
    detail="another agentd connected with this node's identity: if that was not a restart, two hosts share one state"
    " directory, and one of them must join again",
)
SHUTDOWN: Final = Bye(reason="shutdown", detail="the controller is stopping; the mesh keeps working without it")


class RefusedError(Exception):
    """The node may not open a stream; `bye` says why."""

    def __init__(self, bye: Bye) -> None:
        self.bye = bye
        super().__init__(bye.detail)
