"""Which code this process runs: its data path compiled (deploy/wheel), or the same sources by the interpreter."""

from importlib.metadata import version
from typing import Final, Literal

from . import jsonrpc, shortcut
from .http import connection

__all__ = ["BUILD", "described"]

Build = Literal["compiled", "interpreted"]

_PATH: Final = (connection, jsonrpc, shortcut)  # some of what is compiled: all or nothing is
BUILD: Final[Build] = "interpreted" if any(str(part.__file__).endswith(".py") for part in _PATH) else "compiled"


def described() -> str:
    """The version and the build, for `--version`."""
    return f"wardmesh-gateway {version('wardmesh')} ({BUILD})"
