"""One measurement at a time on a machine: two at once would share its cores, caches and memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from egraph_opt.limits import Limits
from egraph_opt.runtime.cache import default_cache_folder

# Seconds between two tries, and after how many a measurement begins although another one has not ended.
_POLL = 0.02
PATIENCE = 600.0


@contextlib.contextmanager
def measuring_alone(limits: Limits, folder: Path | None = None) -> Iterator[None]:
    """Nothing else that this user measures on this machine runs meanwhile, whichever process it belongs to.

    Raises LimitReached where a limit is reached before it is this one's turn. Where the cache folder, in which the lock
    lies, cannot be written there is no lock.
    """
    name = f"measuring-{platform.node() or 'here'}.lock".replace(os.sep, "-")
    try:
        place = (default_cache_folder() if folder is None else folder) / name
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except (OSError, RuntimeError):  # there may be no home folder
        yield
        return
    try:
        until = time.monotonic() + PATIENCE
        while not _taken(lock) and time.monotonic() < until:
            limits.check()
            time.sleep(_POLL)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing alone would not do where a process was forked meanwhile
        os.close(lock)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
