"""Entry point of `wardmesh`: no traceback for Ctrl-C, not even while the rest is being imported."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command and exit with its code."""
    try:
        from .app import run  # noqa: PLC0415  # the imports take longest, so they are where Ctrl-C usually falls

        sys.exit(run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
