"""Where a path really leads on this host: what argument rules cannot know from the text alone.

For upstreams that see this host's file system. Walks the path as the kernel would, so a link below the allowed
directory that leads out of it is found, also when its target does not exist yet. The check and the server's own use
are two moments: who can write below the directory can swap a link between them; only a sandbox closes that.
"""

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from controller.wire.file_paths import PathError, segments

__all__ = ["follow_links"]

_MOST_LINKS: Final = 40  # as Linux: MAXSYMLINKS, fs/namei.c


def follow_links(path: str, bases: Sequence[str]) -> None:
    """Raise PathError unless `path`, followed through symbolic links, is at or below one of `bases`, followed too.

    Relative paths are left alone: what they are relative to is the server's own affair.
    """
    if not path.startswith("/"):
        return
    real = resolve(path)
    for base in bases:
        if base.startswith("/"):
            root = resolve(base)
            if real == root or real.startswith(root.rstrip("/") + "/"):
                return
    raise PathError("it leads through a symbolic link to somewhere else")


def resolve(path: str) -> str:
    """The absolute `path` without symbolic links; what does not exist is taken as it is written.

    Raises PathError when it cannot be known: no permission, too many links, not a directory.
    """
    pending = segments(path)[::-1]
    real = ""
    links = 0
    while pending:
        name = pending.pop()
        if name == "..":  # from a link's target; `real` has no links, so its parent is its parent
            real = real.rpartition("/")[0]
            continue
        here = f"{real}/{name}"
        target = _link_target(here)
        if target is None:
            real = here
            continue
        links += 1
        if links > _MOST_LINKS:
            raise PathError(f"it leads through more than {_MOST_LINKS} symbolic links")
        if target.startswith("/"):
            real = ""
        pending += [part for part in target.split("/") if part not in ("", ".")][::-1]
    return real or "/"


def _link_target(path: str) -> str | None:
    try:
        return str(Path(path).readlink())
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):  # no link; not there yet
            return None
        raise PathError(f"it cannot be checked for symbolic links: {error.strerror}") from error
