"""Builds the distributions: hatchling does, and mypyc compiles the gateway's data path where there is a C compiler.

One source: what is compiled is in the wheel as it was written, too, and runs where it was not. $WARDMESH_COMPILE:
`auto` (the default), `always` (the build fails where it cannot) or `never`.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from hatchling.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
)
from hatchling.build import get_requires_for_build_wheel as hatchling_needs
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.builders.wheel import WheelBuilderConfig

__all__ = [
    "CompiledGateway",
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

# The compiler, as in uv.lock: another version compiles other code. And the libraries whose types it must know.
COMPILER: Final = ("mypy==2.4.1", "setuptools>=80")
TYPES: Final = (
    "cryptography>=45",
    "httptools>=0.6",
    "jsonschema-rs>=0.40",
    "orjson>=3.11",
    "pydantic>=2.11",
    "rfc8785",
)


def get_requires_for_build_wheel(config_settings: dict[str, Any] | None = None) -> list[str]:
    """What a build environment needs: the compiler only where it will be used."""
    needed: list[str] = hatchling_needs(config_settings)
    return [*needed, *COMPILER, *TYPES] if _why_not() is None else needed


class CompiledGateway(BuildHookInterface[WheelBuilderConfig]):
    """Puts the compiled modules beside their sources, in wheels that are not editable."""

    _made: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile. Raises RuntimeError when it must and cannot."""
        if version == "editable":
            return
        why_not = _why_not()
        if why_not is not None:
            if _wanted() == "always":
                raise RuntimeError(f"the gateway cannot be compiled: {why_not}")
            self.app.display_warning(f"the gateway is not compiled and does fewer calls a second: {why_not}")
            return
        self._made = tempfile.TemporaryDirectory(prefix="wardmesh-build-")
        made = Path(self._made.name)
        _compile(Path(self.root), made)
        libraries = sorted((made / "lib").rglob("*.so"))
        build_data["force_include"].update({str(one): str(one.relative_to(made / "lib")) for one in libraries})
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written."""
        if self._made is not None:
            self._made.cleanup()


def _wanted() -> str:
    wanted = os.environ.get("WARDMESH_COMPILE", "auto")
    if wanted not in {"auto", "always", "never"}:
        raise RuntimeError(f"WARDMESH_COMPILE is {wanted!r}: set it to auto, always or never")
    return wanted


def _why_not() -> str | None:
    """Why nothing should or can be compiled here; None: it can."""
    if _wanted() == "never":
        return "WARDMESH_COMPILE is never"
    if sys.implementation.name != "cpython":
        return f"mypyc compiles for CPython, and this is {sys.implementation.name}"
    compiler = (os.environ.get("CC") or str(sysconfig.get_config_var("CC") or "cc")).split()[0]
    if shutil.which(compiler) is None:
        return f"there is no {compiler}: install a C compiler"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python.h is missing: install the headers of this Python (python3-dev)"
    return None


def _compile(root: Path, into: Path) -> None:
    if find_spec("mypyc") is None:
        raise RuntimeError("mypyc is missing: build in isolation, or install mypy and setuptools")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compile_gateway.py")), str(into)],
        cwd=root,
        env=os.environ | {"MYPYPATH": str(root), "MYPY_CACHE_DIR": str(into / "cache")},
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the gateway could not be compiled:\n{done.stdout}")
