"""Files on the admin's machine: read with a sentence on failure, written so that others can never read a secret."""

import os
import sys
import tempfile
from pathlib import Path

from .errors import InputError, LocalFileError

__all__ = ["read_text", "remove", "write_private"]

_LIMIT = 16 * 1024 * 1024  # bytes; a policy document may have 4 MiB


def read_text(path: Path) -> str:
    """The text of a file; `-` is standard input. Raises LocalFileError, InputError."""
    if str(path) == "-":
        return sys.stdin.read(_LIMIT)
    try:
        with path.open("rb") as file:
            content = file.read(_LIMIT)
    except OSError as error:
        raise LocalFileError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})") from error


def write_private(path: Path, text: str, *, replace: bool) -> None:
    """Write a file of mode 0600, whole or not at all. Raises LocalFileError, also when it exists and must not."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp makes it 0600 before the first byte is in it.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            if replace:
                partial.replace(path)
            else:
                path.hardlink_to(partial)  # unlike a rename, fails when the name is taken
        finally:
            partial.unlink(missing_ok=True)
    except FileExistsError as error:
        raise LocalFileError(f"{path} exists already: choose another name, or replace it with --force") from error
    except OSError as error:
        raise LocalFileError(f"{path} cannot be written: {error.strerror}") from error


def remove(path: Path) -> bool:
    """Remove a file; False when there was none. Raises LocalFileError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise LocalFileError(f"{path} cannot be removed: {error.strerror}") from error
    return True
