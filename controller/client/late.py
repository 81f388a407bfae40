"""What only some ways through the command need: each module is imported when it is first asked for here.

So `--help` waits neither for the wire contract nor for HTTP.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = ["errors", "output", "version"]

if TYPE_CHECKING:
    from . import errors, output, version
else:

    def __getattr__(name: str) -> ModuleType:
        if name not in __all__:
            raise AttributeError(f"{__name__} knows of no module {name!r}")
        return import_module(f".{name}", __package__)
