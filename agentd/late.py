"""The modules that only some commands need: each is imported when it is first asked for here.

So the daemon carries no tables for people in its memory, `agentd status` waits for no netlink library, and an
interruption while they are imported, which is what takes longest, finds somebody who expects it.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = ["app", "daemon", "join", "links", "log", "naming", "pinging", "show", "show_paths", "state"]

if TYPE_CHECKING:
    from . import app, daemon, join, log, naming, pinging, show, show_paths, state
    from .kernel import links
else:
    _ELSEWHERE = {"links": ".kernel.links"}

    def __getattr__(name: str) -> ModuleType:
        if name not in __all__:
            raise AttributeError(f"{__name__} knows of no module {name!r}")
        return import_module(_ELSEWHERE.get(name, f".{name}"), __package__)
