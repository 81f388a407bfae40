"""`python compile_gateway.py FOLDER`: compiles the gateway's data path with mypyc into FOLDER/lib. Runs in the root.

A process of its own, because setuptools works on its process's arguments. What is compiled must be plain code: no
asynchronous generators, no attribute that others replace; a constant that tests replace must not be Final, and an
attribute must be set before it is read, also where it is None. tests/run runs tests/gateway on what comes out.
"""

import sys
from pathlib import Path
from typing import Final

from mypyc.build import mypycify
from setuptools import setup

# What nearly every call runs through. They are compiled together, so that they call each other directly. Not types.py,
# whose frozen dataclasses would take twice as long to make; nor what tests look into (arrivals.py, proxy.py).
COMPILED: Final = {
    "agentd/gateway": (
        *(
            "audit",
            "bodies",
            "eras",
            "identity",
            "jsonrpc",
            "limits",
            "live",
            "mirrors",
            "passage",
            "policy",
            "sessions",
        ),
        *("shortcut", "spool", "sse", "trail", "watch"),
    ),
    "agentd/gateway/http": ("client", "connection", "exchange", "head", "heads", "offers", "pool"),
    "controller/wire": ("arguments", "calls"),
}
# Errors are told elsewhere: here mypy only reads types.
OPTIONS: Final = ("--explicit-package-bases", "--ignore-missing-imports", "--follow-imports=silent")


def main(into: Path) -> None:
    """Compile what is in the current directory."""
    sources = [f"{folder}/{name}.py" for folder, names in COMPILED.items() for name in names]
    modules = mypycify(
        [*OPTIONS, *sources], opt_level="2", debug_level="0", group_name="wardmesh", target_dir=str(into / "c")
    )
    setup(
        name="wardmesh",
        packages=[],
        ext_modules=modules,
        script_args=["build_ext", f"--build-lib={into / 'lib'}", f"--build-temp={into / 'o'}"],
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
