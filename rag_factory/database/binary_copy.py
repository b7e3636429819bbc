"""COPY in PostgreSQL's binary format: encode rows, keep them in bounded memory, send them.

The format: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS-BINARY
"""

from __future__ import annotations

import struct
import tempfile
from typing import IO, TYPE_CHECKING, Any

from sqlalchemy.engine import AdaptedConnection

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from psycopg import AsyncConnection
    from sqlalchemy.orm import Session

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
NULL = b"\xff\xff\xff\xff"
# More than this of one document goes to a temporary file.
MEMORY_BYTES = 4_000_000
_LENGTH = struct.Struct(">i")


def encode_field(value: bytes) -> bytes:
    """Write one field that isn't NULL."""
    return _LENGTH.pack(len(value)) + value


class Rows:
    """Encoded rows that begin alike. In memory up to MEMORY_BYTES, beyond that in a temporary file.

    size_bytes: how much of them is in memory. count: how many there are.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size_bytes = 0
        self._rows: list[bytes] = []
        self._file: IO[bytes] | None = None

    def append(self, row: bytes) -> None:
        """Add a row, without its beginning."""
        self.count += 1
        self.size_bytes += len(row)
        self._rows.append(row)
        if self.size_bytes >= MEMORY_BYTES:
            self._move_to_file()

    def blocks(self, beginning: bytes) -> Iterator[bytes]:
        """Give all rows, each with this beginning, in pieces of about MEMORY_BYTES."""
        rows: list[bytes] = []
        size_bytes = 0
        for row in self._read_file():
            rows.append(row)
            size_bytes += len(row)
            if size_bytes >= MEMORY_BYTES:
                yield beginning + beginning.join(rows)
                rows.clear()
                size_bytes = 0
        rows += self._rows
        if rows:
            yield beginning + beginning.join(rows)

    def close(self) -> None:
        """Remove the file, if there is one."""
        if self._file is not None:
            self._file.close()

    def _read_file(self) -> Iterator[bytes]:
        if self._file is not None:
            self._file.seek(0)
            while header := self._file.read(_LENGTH.size):
                yield self._file.read(*_LENGTH.unpack(header))

    def _move_to_file(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        for row in self._rows:
            self._file.write(_LENGTH.pack(len(row)) + row)
        self._rows.clear()
        self.size_bytes = 0


def send(session: Session, statement: str, blocks: Iterable[bytes]) -> None:
    """Run COPY … FROM STDIN WITH (FORMAT BINARY) in the session's transaction, synchronous or not."""
    connection: Any = session.connection().connection.dbapi_connection
    if isinstance(connection, AdaptedConnection):
        connection.run_async(lambda driver: _send_async(driver, statement, blocks))
        return
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(HEADER)
        for block in blocks:
            copy.write(block)
        copy.write(TRAILER)


async def _send_async(driver: AsyncConnection[Any], statement: str, blocks: Iterable[bytes]) -> None:
    async with driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        await copy.write(HEADER)
        for block in blocks:
            await copy.write(block)
        await copy.write(TRAILER)
