"""Database files: made, published and copied without ever being opened by us.

SQLite's locks are POSIX locks: closing any descriptor of a file drops all that the process holds
on it, and rows are lost without an error (measured: 19 of 20).  So nothing here opens a file that
is or may become a live database: names are handled, SQLite does the rest.
"""

from __future__ import annotations

import glob
import logging
import os
import sqlite3
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import quote

from contextwindow.errors import NotAContextDatabase, StoreError, StoreReadOnly

logger = logging.getLogger("contextwindow")


def connect(path: str, *, options: str = "", busy_timeout: float = 10.0) -> sqlite3.Connection:
    """A connection of sqlite3 that begins transactions only when told to.

    Args:
        path: absolute.
        options: of SQLite's URI: ``"mode=ro"``, ``"mode=ro&immutable=1"``.
        busy_timeout: seconds to wait for locks of others.
    """
    # A file that vanished must not be made anew, empty: hence a URI with a mode, always.
    uri = f"file:{quote(os.fsencode(path))}?{options or 'mode=rw'}"
    return sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=busy_timeout
    )


def check_folder(path: str, text: str) -> None:
    """Looks at the directory that *path* is in.

    Raises:
        StoreError: there is none.
    """
    folder = os.path.dirname(path)
    try:
        mode = os.stat(folder).st_mode
    except FileNotFoundError as error:
        raise StoreError(f"{text}: directory {folder} does not exist: create it") from error
    except OSError as error:
        raise StoreError(
            f"{text}: directory {folder} cannot be reached: {error.strerror}"
        ) from error
    if not stat.S_ISDIR(mode):
        raise StoreError(f"{text}: {folder} is not a directory")
    if _lets_anyone_in(mode):
        logger.warning("%s: %s", text, _exposed_folder(folder))


def exposures(path: str) -> list[str]:
    """What of a database others of this machine may read or replace; for people.

    Modes that its owner has chosen are told, never changed.
    """
    found = []
    folder = os.path.dirname(path)
    with suppress(OSError):
        if _lets_anyone_in(os.stat(folder).st_mode):
            found.append(_exposed_folder(folder))
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode & (stat.S_IROTH | stat.S_IWOTH):
            found.append(
                f"anyone on this machine may {'write' if mode & stat.S_IWOTH else 'read'} the file"
                f" (mode {mode:04o}): chmod 600 it, unless that is meant"
            )
    return found


def copies(path: str) -> list[str]:
    """Copies of a database that were made beside it: before migrations, and by rescues."""
    return sorted(
        found
        for kind in ("backup", "rescue", "stale")
        for found in glob.glob(f"{glob.escape(path)}*.{kind}-*")
    )


def _lets_anyone_in(mode: int) -> bool:
    return bool(mode & stat.S_IWOTH and not mode & stat.S_ISVTX)


def _exposed_folder(folder: str) -> str:
    return f"anyone may replace files in {folder} (world-writable, not sticky)"


def check_file(path: str, text: str, *, read_only: bool) -> bool:
    """Whether the database exists; looks at its name and mode alone.

    Args:
        path: absolute, links resolved.
        text: as the user gave it.
        read_only: whether it will only be read.

    Raises:
        NotAContextDatabase: a dangling link, an empty file, a device.
        StoreError: a directory, or a file that may not be read.
        StoreReadOnly: it, or its directory, cannot be written and *read_only* is False.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        if os.path.islink(text):
            raise NotAContextDatabase(
                f"{text}: a link to {path}, which does not exist; nothing was created"
            ) from error
        return False
    except OSError as error:
        raise StoreError(f"{text}: cannot be reached: {error.strerror}") from error
    if stat.S_ISDIR(found.st_mode):
        raise StoreError(f"{text}: is a directory; give the path of a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise NotAContextDatabase(f"{text}: is not a regular file")
    if found.st_size == 0:
        raise NotAContextDatabase(
            f"{text}: is an empty file, not a database; delete it and a database is made there"
        )
    _check_permission(path, text, read_only)
    return True


def _check_permission(path: str, text: str, read_only: bool) -> None:
    if not os.access(path, os.R_OK):
        raise StoreError(f"{text}: no permission to read the file")
    if read_only:
        return
    if not os.access(path, os.W_OK):
        raise StoreReadOnly(f"{text}: the file is read-only; open it with read_only=True")
    check_writable(path, text)


def check_writable(path: str, text: str) -> None:
    """Looks whether SQLite may put its -wal and -journal beside *path*.

    Raises:
        StoreReadOnly: it may not.
    """
    folder = os.path.dirname(path)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreReadOnly(
            f"{text}: directory {folder} is read-only, and SQLite writes beside the file; open it"
            " with read_only=True"
        )


def publish(path: str, fill: Callable[[sqlite3.Connection], None]) -> bool:
    """Makes a database under another name and gives it its own when it is whole.

    Whoever opens *path* at the same time sees no file or all of it.  Readable by the owner alone.

    Args:
        path: absolute; must not exist.
        fill: writes into the new database.

    Returns:
        False when another process was first: its file is there, ours is gone.
    """
    with _temporary(path) as temporary:
        with closing(connect(temporary)) as raw:
            fill(raw)
        _set_aside(path)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:
            # No hard links on this file system (FAT, some mounts): the same but for a gap of
            # microseconds, in which the guard against replaced files notices the loser.
            if os.path.lexists(path):
                return False
            os.rename(temporary, path)
    return True


def _set_aside(path: str) -> None:
    """Keeps a -wal or -journal that outlived its file from being taken for the new one's.

    SQLite would copy its pages over those of whatever file has the name.
    """
    for name in (f"{path}-wal", f"{path}-journal"):
        # Looked at first: another process that makes the file makes its -wal after it.
        stale = identity(name)
        if stale is None or os.path.lexists(path):
            continue
        aside = f"{name}.stale-{uuid.uuid4().hex[:12]}"
        with suppress(FileNotFoundError):
            os.rename(name, aside)
            if identity(aside) != stale:
                os.rename(aside, name)
                continue
            logger.warning("%s: its database is gone; it was set aside as %s", name, aside)


def create(path: str) -> None:
    """Makes an empty file for its owner alone, who may read and write it under any umask.

    Before SQLite sees it, which gives the -wal and -shm the mode of the database.

    Raises:
        OSError: it exists, or cannot be made.
    """
    made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.fchmod(made, 0o600)
    finally:
        os.close(made)


@contextmanager
def _temporary(path: str) -> Iterator[str]:
    """An empty file beside *path*, 0600, gone afterwards."""
    temporary = f"{path}.new-{uuid.uuid4().hex[:12]}"
    create(temporary)
    try:
        yield temporary
    finally:
        for name in (temporary, temporary + "-journal", temporary + "-wal", temporary + "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(name)


def identity(path: str) -> tuple[int, int] | None:
    """What tells a file from another one put in its place; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def warn_of_size(text: str, size: int, most: int) -> None:
    """Say that a database has become larger than it was to be."""
    logger.warning(
        "%s: has %d MB, more than max_database_bytes (%d MB): Store.prune(older_than=…) deletes"
        " conversations that nobody has used for long",
        text,
        size // 1_000_000,
        most // 1_000_000,
    )
