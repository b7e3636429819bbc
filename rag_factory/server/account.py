"""Root: the account that the server runs as, what it can reach, and what we hand to it.

PostgreSQL refuses to run as root. No account is created and nothing of the user's changes its owner
or mode: only files and folders that this package made itself belong to that account.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rag_factory.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Tried in this order when the project belongs to root itself.
SYSTEM_ACCOUNTS = ("postgres", "nobody")


@dataclass(frozen=True)
class Account:
    """An unprivileged account of this machine."""

    uid: int
    gid: int
    name: str


def choose_account(folder: Path) -> Account | None:
    """Return the account that a server in folder runs as, or None for the caller's own.

    folder may not exist yet: the owner of its nearest existing parent counts then.
    Raises ServerError when there is no account to choose.
    """
    if os.geteuid() != 0:
        return None
    import pwd

    owner = nearest_existing(folder).stat().st_uid
    for key in (owner, *SYSTEM_ACCOUNTS) if owner != 0 else SYSTEM_ACCOUNTS:
        try:
            entry = pwd.getpwuid(key) if isinstance(key, int) else pwd.getpwnam(key)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid, entry.pw_name)
    raise ServerError(
        "PostgreSQL refuses to run as root, and this machine has no account postgres or nobody.",
        fix="Run the command as an ordinary user, or set DATABASE_URL.",
    )


def account_name(uid: int) -> str:
    """Return the name of an account, or its number when it has no entry."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user id {uid}"


def run_as(account: Account | None) -> dict[str, Any]:
    """Return the arguments that make subprocess start a child as that account."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def can_reach(account: Account, path: Path) -> bool:
    """Tell whether the account may enter every existing folder on the way to path, and path itself.

    Reads the permission bits; access lists are not looked at.
    """
    chain = [path, *path.parents]
    return all(_permits(account, part.stat(), stat.S_IXOTH) for part in chain if part.is_dir())


def can_run(account: Account, program: Path) -> bool:
    """Tell whether the account may execute a program."""
    return can_reach(account, program.parent) and _permits(account, program.stat(), stat.S_IXOTH)


def nearest_existing(path: Path) -> Path:
    """Return path, or the nearest of its parents that exists."""
    return next(part for part in (path, *path.parents) if part.exists())


def make_home(home: Path, account: Account | None) -> None:
    """Make a folder and its missing parents; those inside the account's own folder belong to it."""
    for folder in reversed(list(_missing(home))):
        folder.mkdir(exist_ok=True)
        if account is not None:
            # Root's umask may be 077, and the account has to pass.
            folder.chmod(0o755)
            if folder.parent.stat().st_uid == account.uid:
                os.chown(folder, account.uid, account.gid, follow_symlinks=False)


def make_private_folder(folder: Path, account: Account | None) -> None:
    """Make a folder that only the server's account can enter. Raises FileExistsError."""
    folder.mkdir(mode=0o700)
    if account is not None:
        os.chown(folder, account.uid, account.gid, follow_symlinks=False)


def open_file(path: Path, flags: int, account: Account | None) -> int:
    """Open a file of ours, made when missing, and return its descriptor."""
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags | os.O_NOFOLLOW)
    if account is not None:
        os.fchown(descriptor, account.uid, account.gid)
    return descriptor


def _missing(folder: Path) -> Iterator[Path]:
    for part in (folder, *folder.parents):
        if part.exists():
            return
        yield part


def _permits(account: Account, result: os.stat_result, bit: int) -> bool:
    if result.st_uid == account.uid:
        bit <<= 6
    elif result.st_gid == account.gid:
        bit <<= 3
    return bool(result.st_mode & bit)
