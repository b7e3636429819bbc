"""Locks between processes that the kernel frees when their last holder dies, however it dies."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Self

from rag_factory.errors import ServerError
from rag_factory.server.account import Account, open_file

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType


class FileLock:
    """An exclusive flock on a file of its own. The file stays: removing it would split the lock.

    A child that inherits the descriptor holds the lock too, until it ends.
    """

    def __init__(self, path: Path, account: Account | None) -> None:
        self.path = path
        self.descriptor = open_file(path, os.O_RDWR, account)

    def try_acquire(self) -> bool:
        """Take the lock and write this process's id into the file; False when somebody has it."""
        import fcntl

        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno not in {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS}:
                raise
            raise ServerError(
                f"The file system of {self.path} has no file locks ({exc.strerror}).",
                fix="Set EMBEDDED_DATA_FOLDER to a folder on a local disk.",
            ) from exc
        os.truncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"{os.getpid()}\n".encode(), 0)
        return True

    def holder(self) -> str:
        """Return the process id that the last holder wrote."""
        return os.pread(self.descriptor, 32, 0).decode(errors="replace").strip() or "unknown"

    def close(self) -> None:
        """Let go; children that inherited the lock keep it."""
        os.close(self.descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
