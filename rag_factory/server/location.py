"""Where a server's files are, and the place that root falls back to when the server can't get in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rag_factory.errors import ServerError
from rag_factory.server.account import Account, account_name, can_reach, choose_account
from rag_factory.server.process import SOCKET_PATH_BYTES, socket_file

STATE_FOLDER = Path("/var/lib/rag-factory")
# Not tempfile.gettempdir(): every process of every user has to come to the same folder, and it must be short.
SOCKET_PARENT = Path("/tmp")  # noqa: S108  (the folder made in it is private and checked)


@dataclass(frozen=True)
class Location:
    """The files of one server. All but the data are siblings of the data folder: a cluster stays pure."""

    home: Path
    data_folder: Path
    account: Account | None
    moved_because: str | None

    @property
    def uid(self) -> int:
        """Of the server's processes."""
        return os.geteuid() if self.account is None else self.account.uid

    @property
    def lock(self) -> Path:
        """Held while the cluster is made, started or stopped."""
        return self._sibling(".lock")

    @property
    def life_lock(self) -> Path:
        """Held by the server's processes from the first to the last."""
        return self._sibling(".running")

    @property
    def log(self) -> Path:
        """What the server and initdb say."""
        return self._sibling(".log")

    def socket_folder(self, port: int) -> Path:
        """Return the folder of the Unix socket: beside the data, or a short one where that is too long."""
        beside = self._sibling(".socket")
        if len(os.fsencode(socket_file(str(beside), port))) <= SOCKET_PATH_BYTES:
            return beside
        return SOCKET_PARENT / f"rag-factory-{self.uid}-{digest(self.data_folder)}"

    def _sibling(self, suffix: str) -> Path:
        return self.home / f"{self.data_folder.name}{suffix}"


def locate(home: Path, name: str) -> Location:
    """Decide where the data folder called name of home is; the same answer every time.

    Raises ServerError when root finds no account for the server.
    """
    wanted = Path(os.path.realpath(home))
    account = choose_account(_owned_part(wanted, name))
    if account is None:
        return Location(wanted, wanted / name, None, None)
    fallback = STATE_FOLDER / digest(wanted)
    if can_reach(account, wanted):
        # A folder that was closed before may be open now: data that exists decides.
        if _is_cluster(wanted / name) or not _is_cluster(fallback / name):
            return Location(wanted, wanted / name, account, None)
        because = f"the data of {wanted} was put there when PostgreSQL couldn't get in"
    else:
        because = f"the account {account.name}, which runs PostgreSQL for root, can't get into {wanted}"
    if _is_cluster(fallback / name):
        account = choose_account(fallback / name)
    return Location(fallback, fallback / name, account, because)


def check_data_owner(location: Location) -> None:
    """Raise ServerError when the data folder belongs to somebody else than the server's account."""
    folder = location.data_folder
    try:
        owner = folder.stat().st_uid
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ServerError(
            f"{folder} can't be reached ({exc.strerror}).",
            fix="Mend the permissions of the folders above it, or set EMBEDDED_DATA_FOLDER to another one.",
        ) from exc
    if owner != location.uid:
        raise _foreign(folder, owner, location)


def check_home_owner(location: Location) -> None:
    """Raise ServerError when files can't be made in an existing home because it is somebody else's."""
    try:
        owner = location.home.stat().st_uid
    except OSError:
        return  # making it will tell
    if owner != os.geteuid() and not os.access(location.home, os.W_OK | os.X_OK):
        raise _foreign(location.home, owner, location)


def digest(value: Path | str) -> str:
    """Return a short name for a path."""
    import hashlib

    return hashlib.sha256(os.fsencode(value)).hexdigest()[:16]


def _foreign(folder: Path, owner: int, location: Location) -> ServerError:
    mine = account_name(location.uid)
    return ServerError(
        f"{folder} belongs to {account_name(owner)}; PostgreSQL would run as {mine}.",
        fix=f"Give it to {mine} (sudo chown -R {mine} '{folder}'), or set another EMBEDDED_DATA_FOLDER.",
    )


def _owned_part(home: Path, name: str) -> Path:
    # An existing cluster runs as its owner, whatever the folders around it say by now.
    return home / name if _is_cluster(home / name) else home


def _is_cluster(folder: Path) -> bool:
    return os.path.exists(folder / "PG_VERSION")  # noqa: PTH110  (false, not an error, in a closed folder)
