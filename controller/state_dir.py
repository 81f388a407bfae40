"""The state directory: private to its owner, held by one controller at a time, written atomically.

Knows files only; what is in them is its callers' business.
"""

import errno
import fcntl
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["FULL", "StateDir", "StateDirError", "reason_of"]

FULL: Final = "the disk is full: free some space and try again"


def reason_of(error: OSError) -> str:
    """Why a file could not be used; with the remedy when the disk is full."""
    return FULL if error.errno in {errno.ENOSPC, errno.EDQUOT} else error.strerror or str(error)


class StateDirError(Exception):
    """The state directory cannot be used; the message names it and the remedy."""


class StateDir:
    """A directory of mode 0700 whose files have mode 0600."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def prepare(self) -> None:
        """Create the directory if it is not there. Raises StateDirError."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.path.stat().st_uid == os.geteuid():
                self.path.chmod(0o700)
        except OSError as error:
            raise StateDirError(
                f"cannot use the state directory {self.path}: {reason_of(error)}; choose one with --state-dir"
            ) from error

    def lock(self) -> None:
        """Hold the directory until `unlock` or the end of the process. Raises StateDirError when another holds it."""
        path = self.path / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateDirError(
                f"cannot write to the state directory {self.path}: {reason_of(error)}; choose one with --state-dir"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise StateDirError(
                f"another controller (process {holder or 'unknown'}) uses the state directory {self.path}: "
                "stop it, or choose another directory with --state-dir"
            ) from error
        # Only the message above reads the number, and a full disk must not keep a controller from serving.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock = descriptor

    def unlock(self) -> None:
        """Let another controller have the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write(self, name: str, content: bytes) -> Path:
        """Replace the file `name` in one step: after a crash it has the old content or the new, never a part."""
        target = self.path / name
        try:
            # mkstemp makes the file with mode 0600 before there is anything in it.
            descriptor, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                Path(temporary).replace(target)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StateDirError(f"cannot write {target}: {reason_of(error)}") from error
        return target

    def remove(self, name: str) -> None:
        """Delete the file `name` if it is there. Raises StateDirError."""
        try:
            (self.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise StateDirError(f"cannot remove {self.path / name}: {reason_of(error)}") from error

    def read(self, name: str) -> bytes | None:
        """The content of the file `name`, None when there is none."""
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateDirError(f"cannot read {self.path / name}: {reason_of(error)}") from error
