"""Load a backup into an empty database, and prove that all of it came."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import psycopg

from rag_factory.database.driver import connect, translate
from rag_factory.errors import RagFactoryError
from rag_factory.migrate.backup import child
from rag_factory.migrate.backup.dump import NOT_DUMPED
from rag_factory.migrate.backup.rows import compare_rows, count_rows, snapshot
from rag_factory.migrate.programs import program

if TYPE_CHECKING:
    from collections.abc import Callable

    from rag_factory.migrate.backup.manifest import Backup
    from rag_factory.migrate.target import Target

_TRANSACTION_TIMEOUT_SINCE = 17
# pg_restore says "creating TABLE …" and "processing data for table …" as it comes to each.
_STEP = re.compile(r"^pg_restore: (creating|processing data for|executing) ")


def load(
    backup: Backup,
    into: Target,
    *,
    jobs: int,
    no_owner: bool,
    on_progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Load a backup into an empty database, hold its rows against the manifest, and analyze it.

    jobs: how many tables and indexes are made at a time; one on a server before 17, when the programs are of
    17 or newer. no_owner: all belongs to the role that loads it, and
    nothing is granted. on_progress: told the part that is done, 0 to 1.
    Raises RagFactoryError: it can't be loaded, or rows are missing.
    """
    steps = _count_entries(backup, into)
    done = 0

    def on_line(line: str) -> None:
        nonlocal done
        done += bool(_STEP.match(line))
        on_progress(min(0.99, done / steps))

    timeout = into.config.db_connect_timeout_seconds
    with connect(into.url, connect_timeout_seconds=timeout) as session:
        major = session.info.server_version // 10000
    program_major = int(child.version("pg_restore", into, at_least=dump_major(backup)).split(".")[0])
    # A pg_restore of 17 or newer sets transaction_timeout, which a server before 17 doesn't know: an error
    # that changes nothing. It then has to go on after any other as well, and fails at its end. One job at a
    # time, whose words are to be told apart: several write into each other's lines.
    too_new = major < _TRANSACTION_TIMEOUT_SINCE <= program_major
    child.run(
        "pg_restore",
        into,
        [
            *(() if too_new else ("--exit-on-error",)),
            f"--jobs={1 if too_new else jobs}",
            *NOT_DUMPED,
            *(("--no-owner", "--no-privileges") if no_owner else ()),
            backup.dump,
        ],
        at_least=dump_major(backup),
        on_line=on_line,
        forgive="transaction_timeout" if too_new else None,
    )
    try:
        with snapshot(into) as session:
            found = count_rows(session)
        with connect(into.url, connect_timeout_seconds=timeout) as session:
            session.execute("SET statement_timeout = 0")
            # A dump has no statistics: without them, the first queries would be planned blindly.
            session.execute("ANALYZE")
    except psycopg.Error as error:
        raise translate(error, into.url) from error
    differences = compare_rows(backup.manifest.rows, found)
    if differences:
        raise RagFactoryError(
            f"The backup {backup.name} was loaded, but rows are not as its manifest says: "
            f"{'; '.join(differences)}."
        )
    on_progress(1.0)


def dump_major(backup: Backup) -> int:
    """The major version of the pg_dump that wrote the backup: an older pg_restore may not read it."""
    return int(backup.manifest.pg_dump_version.split(".")[0])


def _count_entries(backup: Backup, into: Target) -> int:
    """How many things a dump has to be made of: tables, their rows, indexes and so on."""
    path = program("pg_restore", into.config, into.server, at_least=dump_major(backup))
    listed = subprocess.run([path, "--list", backup.dump], capture_output=True, text=True, check=False).stdout
    return max(1, sum(not line.startswith(";") for line in listed.splitlines()))
