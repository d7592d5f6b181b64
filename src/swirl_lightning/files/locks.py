"""Locks of files between processes."""

from __future__ import annotations

import errno
from pathlib import Path

from filelock import FileLock

_WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of a file system that has no locks."""


def lock(path: Path, timeout: float = -1) -> FileLock | None:
    """Take a lock, which the system frees when the process ends, however it ends.

    Args:
        path: the lock's file.
        timeout: seconds to wait for whoever holds it; below 0, for ever.

    Returns:
        The lock, to be released; None on a file system that has none.

    Raises:
        filelock.Timeout: somebody else holds it still.
        OSError: the file cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(path, fallback_to_soft=False)  # a file in its place would outlive a process that is killed
    try:
        held.acquire(timeout=timeout)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        return None
    return held
