"""Entry point of `agentd`: no traceback for Ctrl-C, not even while the rest is being imported."""

import sys

from . import late

__all__ = ["main"]


def main() -> None:
    """Run the command and exit with its code."""
    try:
        sys.exit(late.app.run_command(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
