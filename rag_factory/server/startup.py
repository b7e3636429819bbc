"""Bring a server up, and end one. Everything here happens under the cluster's lock."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rag_factory.errors import ServerError
from rag_factory.server.account import make_private_folder, run_as
from rag_factory.server.cluster import ENVIRONMENT, PORT, check_major, cluster_major, make_cluster, write_conf
from rag_factory.server.installation import reachable_binaries
from rag_factory.server.lock import FileLock
from rag_factory.server.logfile import explain_failure, log_size, open_log, trim_log
from rag_factory.server.process import end_processes, find_processes, is_alive, is_server, read_pid_file
from rag_factory.server.status import ServerAddress, find_address, find_pid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rag_factory.server.binaries import Binaries
    from rag_factory.server.location import Location

logger = logging.getLogger("rag_factory.server")

POLL_SECONDS = 0.005
# Orphans of a killed postmaster notice it within milliseconds unless they are in a long computation.
ORPHAN_GRACE_SECONDS = 0.5
# A server that says "ready" and can't be reached for this long has lost its socket.
UNREACHABLE_GRACE_SECONDS = 0.5
# When the life lock is held this long by nobody that can be seen, the holder is in another container.
UNSEEN_GRACE_SECONDS = 10.0
# The shell forks the server off, so that it is nobody's child: no zombie while its starter lives on.
LAUNCH = '"$@" >&2 & echo $!'
PRIVATE = 0o700


@dataclass
class Startup:
    """One attempt to get a server running."""

    binaries: Binaries
    location: Location
    settings: Mapping[str, str]
    deadline: float
    """By time.monotonic()."""
    _began: float = field(default_factory=time.monotonic)
    _unreachable_since: float | None = None
    _life_busy_since: float | None = None

    def run(self, lock: FileLock) -> ServerAddress:
        """Make the cluster if there is none, and wait for a server that is on its way or launch one.

        lock: the cluster's, held. Raises ServerError.
        """
        location = self.location
        bin_folder = reachable_binaries(self.binaries, location.account)
        if location.moved_because is not None:
            logger.info("using %s: %s", location.data_folder, location.moved_because)
        if bin_folder != self.binaries.folder:
            logger.info("using a copy of the binaries in %s", bin_folder)
        trim_log(location)
        log_start = log_size(location)
        check_major(location, self.binaries.major)
        if cluster_major(location.data_folder) is None:
            logger.info("creating PostgreSQL %s in %s", self.binaries.version, location.data_folder)
            make_cluster(bin_folder, self.binaries.major, location, self.settings, lock.descriptor)
        with FileLock(location.life_lock, location.account) as life:
            address = self._bring_up(bin_folder, life, log_start)
        logger.info("started PostgreSQL %s in %s", self.binaries.version, location.data_folder)
        return address

    def _bring_up(self, bin_folder: Path, life: FileLock, log_start: int) -> ServerAddress:
        location = self.location
        launched: int | None = None
        while time.monotonic() < self.deadline:
            if (address := find_address(location)) is not None:
                return address
            if (running := find_pid(location)) is not None:
                if self._has_lost_socket():
                    logger.warning("restarting PostgreSQL in %s: its socket is gone", location.data_folder)
                    end_server(location, running, self.deadline)
                    launched = None
            elif launched is not None:
                if not is_alive(launched) and find_pid(location) is None:
                    raise explain_failure(
                        f"Starting PostgreSQL in {location.data_folder}", location, log_start
                    )
            elif life.try_acquire():
                launched = self._launch(bin_folder, life)
            elif self._is_held_unseen():
                break
            time.sleep(POLL_SECONDS)
        raise self._too_late(find_pid(location) or launched)

    def _has_lost_socket(self) -> bool:
        """Tell whether the server has said for a while that it is ready, and nothing answers."""
        found = read_pid_file(self.location.data_folder)
        if found is None or found.status != "ready":
            self._unreachable_since = None
        elif self._unreachable_since is None:
            self._unreachable_since = time.monotonic()
        elif time.monotonic() - self._unreachable_since > UNREACHABLE_GRACE_SECONDS:
            self._unreachable_since = None
            return True
        return False

    def _is_held_unseen(self) -> bool:
        """End the orphans that hold the life lock; tell whether it is held for long and there are none."""
        if self._life_busy_since is None:
            self._life_busy_since = time.monotonic()
        busy_seconds = time.monotonic() - self._life_busy_since
        if busy_seconds < ORPHAN_GRACE_SECONDS:
            return False
        return (
            not end_processes(find_processes(self.location.data_folder))
            and busy_seconds > UNSEEN_GRACE_SECONDS
        )

    def _launch(self, bin_folder: Path, life: FileLock) -> int:
        """Start the server process and return its id. It inherits the life lock, which the caller holds."""
        location = self.location
        socket_folder = location.socket_folder(int(self.settings.get("port", PORT)))
        # A server whose folder was deleted under it lives on for up to a minute, and takes the socket of the
        # next one with it when it goes.
        doomed = list(find_processes(location.data_folder, deleted=True))
        end_processes(doomed)
        while any(is_alive(pid) for pid in doomed) and time.monotonic() < self.deadline:
            time.sleep(POLL_SECONDS)
        _make_socket_folder(socket_folder, location)
        # The server would refuse to start when the number in a stale file is some other process's by now.
        (location.data_folder / "postmaster.pid").unlink(missing_ok=True)
        for stale in socket_folder.glob(".s.PGSQL.*"):
            stale.unlink(missing_ok=True)
        write_conf(location, socket_folder, self.settings)
        log = open_log(location)
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", LAUNCH, "sh", bin_folder / "postgres", "-D", location.data_folder],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=ENVIRONMENT,
                cwd="/",
                umask=0o077,
                # A new session: no Ctrl-C and no closed terminal reaches the server.
                start_new_session=True,
                pass_fds=(life.descriptor,),
                check=True,
                **run_as(location.account),
            )
        finally:
            os.close(log)
        return int(done.stdout)

    def _too_late(self, pid: int | None) -> ServerError:
        waited = f"{time.monotonic() - self._began:.0f} s"
        if pid is not None:
            return ServerError(
                f"PostgreSQL in {self.location.data_folder} (process {pid}) isn't ready after {waited}; "
                "after a crash it may still be recovering.",
                fix=f"See {self.location.log} and try again.",
            )
        return ServerError(
            f"A PostgreSQL that can't be seen from here has used {self.location.data_folder} for {waited}, "
            "perhaps in another container.",
            fix="Stop it there, or set EMBEDDED_DATA_FOLDER to another folder.",
        )


def end_server(location: Location, pid: int, deadline: float) -> None:
    """Stop a server in fast mode and wait until it is gone; its connections are closed.

    deadline: by time.monotonic(). Raises ServerError when it passes.
    """
    found = read_pid_file(location.data_folder)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)
    while is_server(pid, location.data_folder):
        if time.monotonic() > deadline:
            raise ServerError(
                f"PostgreSQL in {location.data_folder} (process {pid}) doesn't stop.",
                fix=f"See {location.log}, then end it: kill -QUIT {pid}",
            )
        time.sleep(POLL_SECONDS)
    if found is not None and found.socket_folder is not None:
        # It may be another's by now, or gone with its parent: the next start makes what it needs.
        with contextlib.suppress(OSError):
            Path(found.socket_folder).rmdir()


def _make_socket_folder(folder: Path, location: Location) -> None:
    """Make the private folder, or accept one that is private already; refuse anything else."""
    with contextlib.suppress(FileExistsError):
        make_private_folder(folder, location.account)
        return
    found = folder.lstat()
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != location.uid
        or stat.S_IMODE(found.st_mode) != PRIVATE
    ):
        raise ServerError(
            f"{folder}, where the server's socket goes, isn't a private folder of its account.",
            fix=f"Look who made it, and remove it: rm -r '{folder}'",
        )
