"""Entry point of `agentd`: no traceback for Ctrl-C, not even while the rest is being imported."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command and exit with its code."""
    try:
        from .app import run_command  # noqa: PLC0415  # the imports take longest, so they are where Ctrl-C usually falls

        sys.exit(run_command(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
