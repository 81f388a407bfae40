"""Entry point of `wardmesh`: no traceback for Ctrl-C, not even while the rest is being imported."""

import sys
from importlib import import_module

__all__ = ["main"]


def main() -> None:
    """Run the command and exit with its code."""
    try:
        # Imported here, because that takes longest: it is where Ctrl-C usually falls.
        sys.exit(import_module(".app", __package__).run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
