"""The folder that backups are kept in: their names, the half-made ones of killed runs, how many are kept.

A backup is a folder of its own. It is written under a name that begins with ".unfinished-" and gets its own
name when it is complete, so a name that can be listed is never that of half a backup. Who writes or reads one
holds a lock on its folder (flock), which the kernel frees when its last holder dies.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rag_factory.errors import BackupError, RagFactoryError, UsageError
from rag_factory.migrate.backup.manifest import Backup, open_backup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

UNFINISHED = ".unfinished-"
LONGEST_REVISION = 60
_NAME = re.compile(r"(?P<database>.+)_(?P<time>\d{8}T\d{6}Z)_(?P<revision>.+)")


def backup_name(database: str, started: datetime, revisions: Sequence[str]) -> str:
    """The name of a backup: database, UTC time and revision, with nothing that a file name can't hold."""
    revision = _plain("+".join(revisions) or "base")[:LONGEST_REVISION]
    return f"{_plain(database)}_{started:%Y%m%dT%H%M%SZ}_{revision}"


def list_backups(folder: Path, database: str | None = None) -> list[Path]:
    """The backups in a folder, newest first; where a database is given, those whose names fit it.

    They are told by their names: what one of them holds, and of which database, `open_backup` says.
    """
    found = []
    for path in folder.glob("*") if folder.is_dir() else ():
        name = _NAME.fullmatch(path.name)
        if name is None or path.name.startswith(".") or not path.is_dir():
            continue
        if database is None or name["database"] == _plain(database):
            found.append((name["time"], path.name, path))
    return [path for *_, path in sorted(found, reverse=True)]


def find_backup(folder: Path, name: str | None, database: str) -> Backup:
    """Open a backup: the one of that name, or the newest one of the database where name is None.

    Raises UsageError: there is none. Raises RagFactoryError: its manifest is damaged.
    """
    if name is not None:
        if Path(name).name != name or name.startswith("."):
            raise UsageError(f"{name!r} is not the name of a backup.", fix="See them: invoke db.backups")
        return open_backup(folder / name)
    for path in list_backups(folder, database):
        found = open_backup(path)
        # Databases may share a plain name: "my db" and "my-db".
        if found.manifest.database == database:
            return found
    raise UsageError(
        f"There is no backup of {database} in {folder}.",
        fix="See which there are: invoke db.backups; name one: --backup NAME",
    )


@contextmanager
def unfinished_folder(folder: Path, name: str) -> Iterator[tuple[Path, int]]:
    """Make a folder to write a backup into, after those of killed runs were removed; it is gone afterwards.

    Gives its path, and the descriptor that holds its lock, to be handed to the child that writes into it.
    Raises OSError: the folder can't be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder):
        for path in folder.glob(f"{UNFINISHED}*"):
            _remove_unlocked(path)
        path = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{name}-", dir=folder))
        lock = _lock(path)
        assert lock is not None  # noqa: S101 - nobody else looks while the folder is locked
    try:
        yield path, lock
    finally:
        # There is nothing left under this name when the backup was published.
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def publish(path: Path, name: str) -> Path:
    """Give a complete backup its name, or the nearest one that is free. Returns the path it then has."""
    _sync(path)
    folder = path.parent
    with _locked(folder):
        final = folder / name
        number = 1
        while final.exists():
            number += 1
            final = folder / f"{name}-{number}"
        path.rename(final)
        _sync(folder)
    return final


def prune(new: Backup, keep: int) -> list[str]:
    """Remove all but the `keep` newest backups of the same database on the same server; 0: none.

    The new one stays, and so does whatever is damaged or in use, and isn't counted. Returns what was removed.
    """
    if not keep:
        return []
    folder = new.path.parent
    mine = []
    for path in list_backups(folder, new.manifest.database):
        try:
            backup = open_backup(path)
            backup.check_files()
        except RagFactoryError:
            continue
        origin = (backup.manifest.database, backup.manifest.system)
        if path != new.path and origin == (new.manifest.database, new.manifest.system):
            mine.append(path)
    with _locked(folder):
        # First its name goes: a removal that is cut short leaves no half backup under a good one.
        return [path.name for path in mine[keep - 1 :] if _remove_unlocked(path, rename=True)]


@contextmanager
def reading(backup: Backup) -> Iterator[None]:
    """Keep a backup from being removed while the body reads it."""
    lock = _lock(backup.path, shared=True)
    if lock is None:
        raise UsageError(
            f"The backup {backup.name} is being removed.", fix="Choose another: invoke db.backups"
        )
    try:
        yield
    finally:
        os.close(lock)


def _remove_unlocked(path: Path, *, rename: bool = False) -> bool:
    """Remove a backup's folder unless somebody holds its lock."""
    lock = _lock(path)
    if lock is None:
        return False
    try:
        if rename:
            path = path.rename(path.with_name(f"{UNFINISHED}{path.name}-removed"))
        shutil.rmtree(path)
    finally:
        os.close(lock)
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock on the folder of all backups; it is held for moments only, so it is waited for."""
    lock = _lock(folder, wait=True)
    assert lock is not None  # noqa: S101 - it was waited for
    try:
        yield
    finally:
        os.close(lock)


def _lock(path: Path, *, shared: bool = False, wait: bool = False) -> int | None:
    """Lock a folder; the descriptor holds the lock. None: somebody else has it, or the folder is gone."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise BackupError(
            f"The file system of {path} has no locks ({error.strerror}).",
            fix="Set BACKUP_FOLDER to a folder on a local disk.",
        ) from error
    return descriptor


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+-]", "-", text, flags=re.ASCII).lstrip(".") or "-"
