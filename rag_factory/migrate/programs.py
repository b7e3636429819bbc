"""PostgreSQL's own programs, such as psql: find them, and hand them a password without showing it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from rag_factory.errors import NotReadyError

if TYPE_CHECKING:
    from rag_factory.database.plain import Settings
    from rag_factory.database.url import DatabaseUrl
    from rag_factory.server import EmbeddedServer

_LOCATIONS = frozenset({"PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGSERVICE"})


def program(
    name: str, config: Settings, server: EmbeddedServer | None, *, at_least: int | None = None
) -> Path:
    """The path of a program: of the embedded server in use, of POSTGRES_BIN_FOLDER, of PATH, of the extra.

    at_least: the server's major version, where the program may not be older: pg_dump refuses a newer server.
    Raises NotReadyError: it is in none of them.
    """
    from rag_factory.errors import ServerError
    from rag_factory.server import find_binaries

    if server is not None:
        return server.binary(name)
    on_path = shutil.which(name)
    if config.postgres_bin_folder is None and on_path and _serves(Path(on_path), at_least):
        return Path(on_path)
    folder = config.postgres_bin_folder
    try:
        found = find_binaries(config.root / folder.expanduser() if folder else None).folder / name
    except ServerError as error:
        if folder is not None:
            raise
        raise _missing(name) from error
    if not found.is_file():
        raise _missing(name)
    if not _serves(found, at_least):
        raise NotReadyError(
            f"The program {found} is older than the server, PostgreSQL {at_least}.",
            fix=f"Install PostgreSQL {at_least}'s client programs, or set POSTGRES_BIN_FOLDER to theirs.",
        )
    return found


def program_environment(url: DatabaseUrl) -> dict[str, str]:
    """The environment for such a program: ours, and the password where no process list shows it.

    What libpq's own variables say of where the database is, is left out: the address alone decides.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _LOCATIONS}
    if url.password:
        environment["PGPASSWORD"] = url.password
    return environment


def _serves(path: Path, major: int | None) -> bool:
    """Whether the program is at least of this major version: "pg_dump (PostgreSQL) 18.6 (Debian 18.6-1)"."""
    if major is None:
        return True
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\) (\d+)", said)
    return found is not None and int(found[1]) >= major


def _missing(name: str) -> NotReadyError:
    return NotReadyError(
        f"The program {name} is not here.",
        fix="Install PostgreSQL's client programs, or the extra: pip install 'rag-factory[embedded]'",
    )
