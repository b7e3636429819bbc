"""What can be seen of a server without changing anything, and fast: no lock, no child process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rag_factory.server.process import accepts_connections, has_proc, is_server, read_pid_file

if TYPE_CHECKING:
    from pathlib import Path

    from rag_factory.server.location import Location

State = Literal["absent", "stopped", "starting", "running"]
SUPERUSER = "postgres"


@dataclass(frozen=True)
class ServerAddress:
    """Where a running server listens. No password: only its account can enter the socket folder."""

    host: str
    """Absolute folder of the Unix socket."""
    port: int
    """Names the socket file; nothing listens on TCP unless the settings say so."""
    user: str
    """The superuser role."""


@dataclass(frozen=True)
class ServerStatus:
    """One look at a server; it may have changed since."""

    state: State
    """starting also stands for a server that is stopping, or can't be reached."""
    data_folder: Path
    """Where the data really is: for root this may be another place than the one asked for."""
    version: str
    """Of the binaries, such as "18.6"."""
    pid: int | None
    address: ServerAddress | None
    """Set when running."""
    log: Path
    account: str | None
    """The account the server runs as when that isn't the caller's own (the caller is root)."""
    moved_because: str | None
    """Why the data isn't in the folder that was asked for, or None when it is."""


def find_address(location: Location) -> ServerAddress | None:
    """Return the address when a server of this very folder accepts connections."""
    found = read_pid_file(location.data_folder)
    if found is None or found.status != "ready" or found.port is None or found.socket_folder is None:
        return None
    # A copied folder brings along the file of the original's server.
    if found.data_folder != str(location.data_folder):
        return None
    # Without /proc that would take a child process; the private socket has to be proof enough.
    if has_proc() and not is_server(found.pid, location.data_folder):
        return None
    if not accepts_connections(found.socket_folder, found.port):
        return None
    return ServerAddress(found.socket_folder, found.port, SUPERUSER)


def find_pid(location: Location) -> int | None:
    """Return the id of the living postmaster of this very folder."""
    found = read_pid_file(location.data_folder)
    return found.pid if found is not None and is_server(found.pid, location.data_folder) else None


def look(location: Location, version: str) -> ServerStatus:
    """Take one look at the server."""
    address = find_address(location)
    pid = find_pid(location)
    state: State
    if address is not None:
        state = "running"
    elif pid is not None:
        state = "starting"
    else:
        state = "stopped" if os.path.exists(location.data_folder / "PG_VERSION") else "absent"  # noqa: PTH110  (no raise)
    return ServerStatus(
        state=state,
        data_folder=location.data_folder,
        version=version,
        pid=pid,
        address=address,
        log=location.log,
        account=None if location.account is None else location.account.name,
        moved_because=location.moved_because,
    )
