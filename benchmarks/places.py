"""Where a benchmark works: folders that the server's account can enter, and a server in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rag_factory.database.url import DatabaseUrl
from rag_factory.server import EmbeddedServer
from rag_factory.testing.place import FORGETFUL

if TYPE_CHECKING:
    from collections.abc import Iterator

TMPFS = Path("/dev/shm")
NEEDED_BYTES = 3_000_000_000


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder that the server's account can enter too, removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="rag-factory-benchmark-", dir=parent))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def fast_server() -> Iterator[DatabaseUrl]:
    """Start a server with room, in memory where there is a tmpfs; stop and remove it at the end."""
    with temporary_folder(TMPFS if in_memory() else None) as home:
        server = EmbeddedServer(home, settings=FORGETFUL | {"shared_buffers": "1GB", "max_wal_size": "8GB"})
        try:
            address = server.ensure_running()
            yield DatabaseUrl(address.host, address.port, "postgres", user=address.user)
        finally:
            server.stop()


def in_memory() -> bool:
    """Whether there is a tmpfs with room for the server's data."""
    return TMPFS.is_dir() and os.access(TMPFS, os.W_OK) and shutil.disk_usage(TMPFS).free > NEEDED_BYTES
