"""Entry point of `wardmesh-controller`: no traceback for Ctrl-C or a missing extra, not even while the rest loads."""

import sys
from importlib import import_module

__all__ = ["main"]


def main() -> None:
    """Run the command. What only some commands need is imported while they run."""
    try:
        import_module(".main", __package__).main()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in {"controller", "agentd"}:
            raise
        sys.exit(f"wardmesh-controller: {error.name} is not installed: install wardmesh[controller]")
    except KeyboardInterrupt:
        sys.exit(130)
