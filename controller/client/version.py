"""Which version of the command this is. A module of its own, because asking the installation for it takes time."""

from importlib.metadata import version
from typing import Final

__all__ = ["VERSION"]

VERSION: Final = version("wardmesh")
