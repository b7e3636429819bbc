"""Server processes: what postmaster.pid says, and whether it is true."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROC = Path("/proc")
NAMES = ("postgres", "postmaster")
# struct sockaddr_un holds 108 bytes on Linux and 104 on macOS, each with the final zero.
SOCKET_PATH_BYTES = 103


@dataclass(frozen=True)
class PidFile:
    """The lines of postmaster.pid that matter here, unverified."""

    pid: int
    data_folder: str
    port: int | None
    socket_folder: str | None
    status: str
    """starting, ready, stopping, standby, or empty before the first was written."""


def read_pid_file(data_folder: Path) -> PidFile | None:
    """Read postmaster.pid; None when it is missing, can't be read, or isn't one."""
    try:
        text = os.fsdecode((data_folder / "postmaster.pid").read_bytes())
    except OSError:
        return None
    # PostgreSQL: src/include/utils/pidfile.h. The server adds lines while it starts.
    lines = [*text.split("\n"), *[""] * 8][:8]
    if not lines[0].isdigit():
        return None
    port = int(lines[3]) if lines[3].isdigit() else None
    return PidFile(int(lines[0]), lines[1], port, lines[4] or None, lines[7].strip())


def socket_file(folder: str, port: int) -> str:
    """Return the path of the Unix socket in folder that port names."""
    return f"{folder}/.s.PGSQL.{port}"


def accepts_connections(folder: str, port: int) -> bool:
    """Tell whether something listens on the socket; takes well under a millisecond."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(os.fsencode(socket_file(folder, port)))
        except (BlockingIOError, TimeoutError):
            return True  # its queue is full: busy, but there
        except OSError:
            return False
    return True


def is_server(pid: int, data_folder: Path) -> bool:
    """Tell whether pid is a living PostgreSQL process that works in data_folder.

    Process ids are used again and a stopped child stays as a zombie, so that a number alone proves nothing.
    """
    if not has_proc():
        return _is_server_by_ps(pid, data_folder)
    if not _is_postgres(pid):
        return False
    try:
        return (PROC / str(pid) / "cwd").samefile(data_folder)
    except PermissionError:
        # Root without CAP_SYS_PTRACE, as in most containers, may read the command line only.
        return _command_names(pid, data_folder)
    except OSError:
        return False


def has_proc() -> bool:
    """Tell whether the kernel shows processes as files (Linux)."""
    return (PROC / "self" / "stat").exists()


def is_alive(pid: int) -> bool:
    """Tell whether a process exists and isn't a zombie."""
    if has_proc():
        return _name_and_state(pid)[1] not in {"", "Z", "X"}
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def find_processes(data_folder: Path, *, deleted: bool = False) -> Iterator[int]:
    """Yield the ids of all server processes that work in data_folder.

    deleted: those instead whose folder had this name and was deleted under them.
    Without /proc none is found.
    """
    ghost = f"{data_folder} (deleted)"
    for entry in PROC.iterdir() if has_proc() else ():
        pid = int(entry.name) if entry.name.isdigit() else 0
        if not pid or not _is_postgres(pid):
            continue
        if not deleted:
            if is_server(pid, data_folder):
                yield pid
            continue
        # It may end meanwhile, or belong to somebody else.
        with contextlib.suppress(OSError):
            if str((entry / "cwd").readlink()) == ghost:
                yield pid


def end_processes(pids: Iterable[int]) -> list[int]:
    """Make server processes end at once, also in the middle of a loop; return those there were.

    Only for processes whose postmaster is gone or has lost its data: it leaves crash recovery to do.
    """
    ended = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGQUIT)
            ended.append(pid)
    return ended


def _is_postgres(pid: int) -> bool:
    name, state = _name_and_state(pid)
    return name in NAMES and state not in {"Z", "X"}


def _name_and_state(pid: int) -> tuple[str, str]:
    try:
        text = (PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return "", ""
    # "pid (name) state …", where the name may itself hold parentheses.
    before, _, after = text.rpartition(b")")
    return before.partition(b"(")[2].decode(errors="replace"), after.split()[0].decode()


def _command_names(pid: int, data_folder: Path) -> bool:
    try:
        arguments = (PROC / str(pid) / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return False
    return os.fsencode(data_folder) in arguments[1:]


def _is_server_by_ps(pid: int, data_folder: Path) -> bool:
    import subprocess

    # -ww: macOS cuts lines at 79 columns where there is no terminal.
    command = ["ps", "-ww", "-p", str(pid), "-o", "stat=", "-o", "args="]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        return False
    state, _, arguments = os.fsdecode(done.stdout).strip().partition(" ")
    return not state.startswith("Z") and arguments.endswith(f"postgres -D {data_folder}")
