"""The data folder: made by initdb whole or not at all, checked, and given our settings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rag_factory.errors import ServerError
from rag_factory.server.account import account_name, open_file, run_as
from rag_factory.server.logfile import explain_failure, log_size, open_log, read_log
from rag_factory.server.status import SUPERUSER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rag_factory.server.location import Location

# initdb writes 39 MB, the first migrations a few more.
NEEDED_BYTES = 100_000_000
CONF_NAME = "rag_factory.conf"
INCLUDE = f"include = '{CONF_NAME}'  # written by RAG Factory at each start"
# Children get nothing else: no PG* variable that would redirect them, no password of the caller's.
# TZ spares initdb the search through all time zones; LC_ALL keeps messages in English for explain_failure.
ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/local/bin", "LC_ALL": "C", "TZ": "UTC"}
# The character classes that full text search and pg_trgm go by; not every system has the first.
CHARACTER_TYPES = ("C.UTF-8", "en_US.UTF-8", "C")
BUILTIN_LOCALES_SINCE = 17
RESERVED = ("data_directory", "unix_socket_directories", "unix_socket_permissions", "unix_socket_group")
PORT = 5432
# For one developer's machine: room for an HNSW build, little memory until it is used.
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "max_connections": "200",
    "shared_buffers": "128MB",
    "maintenance_work_mem": "256MB",
    "log_line_prefix": "%m [%p] %d ",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def check_settings(settings: Mapping[str, str]) -> None:
    """Raise ServerError for a setting that the launcher decides itself, or that can't be one."""
    for name in settings:
        if name in RESERVED or not re.fullmatch(r"[a-z_][a-z0-9_.]*", name):
            raise ServerError(
                f"The embedded server can't be given the setting {name!r}.", fix="Leave it out."
            )


def cluster_major(data_folder: Path) -> int | None:
    """Return the major version that a data folder was made by; None when there is no cluster.

    Raises ServerError when the folder holds something else.
    """
    try:
        text = (data_folder / "PG_VERSION").read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        if os.path.lexists(data_folder) and not _is_empty_folder(data_folder):
            raise ServerError(
                f"{data_folder} exists and is no PostgreSQL cluster; nothing in it was touched.",
                fix="Move it away, or set EMBEDDED_DATA_FOLDER to another folder.",
            ) from None
        return None
    if not text.isdigit():
        raise ServerError(
            f"{data_folder}/PG_VERSION says {text!r}, which is no major version; nothing was touched.",
            fix="Restore the folder from a backup, or move it away.",
        )
    return int(text)


def check_major(location: Location, major: int) -> None:
    """Raise ServerError when the data at hand belongs to another major version of PostgreSQL."""
    found = cluster_major(location.data_folder)
    if found == major:
        return
    stem = location.data_folder.name.removesuffix(str(major))
    others = {location.data_folder: found} if found is not None else _other_majors(location.home, stem)
    if not others:
        return
    folder, other = next(iter(others.items()))
    raise ServerError(
        f"{folder} holds data of PostgreSQL {other}, and the binaries are PostgreSQL {major}. "
        "The data is left untouched.",
        fix=f"To keep it: set POSTGRES_BIN_FOLDER to the bin folder of a PostgreSQL {other}, dump the "
        f"databases with its pg_dump, and unset it again. To start fresh: move {folder} away, or set "
        "EMBEDDED_DATA_FOLDER to another folder.",
    )


def make_cluster(
    bin_folder: Path, major: int, location: Location, settings: Mapping[str, str], lock: int
) -> None:
    """Run initdb into a temporary sibling of the data folder and rename it when it is whole.

    lock: descriptor of the lock that the caller holds. initdb inherits it: should its caller be killed,
    nobody clears its folder away while it still writes.
    Raises ServerError.
    """
    _check_user(location)
    _check_space(location)
    prefix = f".{location.data_folder.name}.initdb-"
    for left_over in location.home.glob(f"{prefix}*"):
        shutil.rmtree(left_over, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=prefix, dir=location.home))
    try:
        if location.account is not None:
            os.chown(part, location.account.uid, location.account.gid)
        durable = settings.get("fsync") != "off"
        _run_initdb(_initdb_command(bin_folder, major, part, durable=durable), location, lock)
        _include_conf(part, durable=durable)
        part.rename(location.data_folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def write_conf(location: Location, socket_folder: Path, settings: Mapping[str, str]) -> None:
    """Write our settings beside postgresql.conf, and see to it that it includes them."""
    # A list of folders, in which a comma or a space would part one from the next.
    quoted = str(socket_folder).replace('"', '""')
    chosen = SETTINGS | dict(settings)
    chosen |= {"unix_socket_directories": f'"{quoted}"', "unix_socket_permissions": "0700"}
    text = "# Written at each start; give EmbeddedServer other settings instead of editing this.\n"
    text += "".join(f"{name} = {_quote(value)}\n" for name, value in chosen.items())
    target = location.data_folder / CONF_NAME
    part = target.with_suffix(".part")
    part.unlink(missing_ok=True)
    with os.fdopen(open_file(part, os.O_WRONLY, location.account), "wb") as file:
        file.write(os.fsencode(text))
    part.rename(target)
    _include_conf(location.data_folder, durable=settings.get("fsync") != "off")


def _initdb_command(bin_folder: Path, major: int, folder: Path, *, durable: bool) -> list[str]:
    command = [
        str(bin_folder / "initdb"),
        "-D",
        str(folder),
        "-U",
        SUPERUSER,
        "-E",
        "UTF8",
        "--no-instructions",
    ]
    command.append("--locale=C")
    if major >= BUILTIN_LOCALES_SINCE:
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    # Nobody else gets into the socket folder; whoever opens a TCP port needs a password.
    command += ["--auth-local=trust", "--auth-host=scram-sha-256"]
    # Syncing costs a fifth of initdb's time; without it a power cut in the first half minute could take
    # files that no later checkpoint would write again. A server with fsync off doesn't care.
    return command if durable else [*command, "--no-sync"]


def _run_initdb(command: list[str], location: Location, lock: int) -> None:
    start = log_size(location)
    for character_type in CHARACTER_TYPES:
        attempt = log_size(location)
        log = open_log(location)
        try:
            done = subprocess.run(
                [*command, f"--lc-ctype={character_type}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT,
                cwd="/",
                pass_fds=(lock,),
                start_new_session=True,
                check=False,
                **run_as(location.account),
            )
        except OSError as exc:
            raise ServerError(
                f"{command[0]} can't be run: {exc}.",
                fix="Check that it is built for this system, or set POSTGRES_BIN_FOLDER to another folder.",
            ) from exc
        finally:
            os.close(log)
        if done.returncode == 0:
            return
        if "invalid locale name" not in read_log(location, attempt):
            break
    raise explain_failure(f"Creating {location.data_folder}", location, start)


def _include_conf(folder: Path, *, durable: bool) -> None:
    descriptor = os.open(folder / "postgresql.conf", os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "r+b") as file:
        if INCLUDE.encode() in file.read():
            return
        file.write(f"\n{INCLUDE}\n".encode())
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _check_space(location: Location) -> None:
    free = shutil.disk_usage(location.home).free
    if free < NEEDED_BYTES:
        raise ServerError(
            f"The disk of {location.home} has {free // 1_000_000} MB free, "
            f"and a new PostgreSQL cluster needs {NEEDED_BYTES // 1_000_000} MB.",
            fix="Free some space, or set EMBEDDED_DATA_FOLDER to a folder on another disk.",
        )


def _check_user(location: Location) -> None:
    """Raise ServerError for an account without an entry: initdb refuses it and says less."""
    import pwd

    try:
        pwd.getpwuid(location.uid)
    except KeyError:
        raise ServerError(
            f"The {account_name(location.uid)} has no entry in /etc/passwd, and initdb needs one.",
            fix="Give the container's user an entry, run as another user, or set DATABASE_URL.",
        ) from None


def _other_majors(home: Path, stem: str) -> dict[Path, int]:
    found = {}
    for folder in sorted(home.glob(f"{stem}*")) if home.is_dir() else ():
        number = folder.name.removeprefix(stem)
        if number.isdigit() and (folder / "PG_VERSION").is_file():
            found[folder] = int(number)
    return found


def _is_empty_folder(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def _quote(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
