"""What only some commands need: each module is imported when it is first asked for here.

So `--help` waits neither for the database nor for the web server.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = ["backup", "bootstrap", "engine", "failures", "logs", "migrate", "rest", "server", "tokens"]

if TYPE_CHECKING:
    from controller import backup, bootstrap, failures, logs, server, tokens
    from controller.store import engine, migrate
    from controller.wire import rest
else:
    _ELSEWHERE = {"engine": ".store.engine", "migrate": ".store.migrate", "rest": ".wire.rest"}

    def __getattr__(name: str) -> ModuleType:
        if name not in __all__:
            raise AttributeError(f"{__name__} knows of no module {name!r}")
        return import_module(_ELSEWHERE.get(name, f".{name}"), __package__)
