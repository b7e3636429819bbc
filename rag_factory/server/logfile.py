"""The server's log: kept from growing for ever, and read when something failed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rag_factory.errors import ServerError
from rag_factory.server.account import open_file

if TYPE_CHECKING:
    from rag_factory.server.location import Location

LIMIT_BYTES = 8_000_000
KEPT_BYTES = 1_000_000
SHOWN_LINES = 8
FULL_DISK = ("No space left on device", "Disk quota exceeded")


def open_log(location: Location) -> int:
    """Return a descriptor that appends to the log, made when missing."""
    return open_file(location.log, os.O_RDWR | os.O_APPEND, location.account)


def log_size(location: Location) -> int:
    """Return the length of the log in bytes, 0 when there is none."""
    try:
        return location.log.stat().st_size
    except FileNotFoundError:
        return 0


def trim_log(location: Location, *, limit_bytes: int = LIMIT_BYTES) -> None:
    """Move the last megabyte of a log that got too long to a file beside it, and empty the log.

    The server keeps writing to the same file: it appends, so that emptying in place is safe.
    """
    size = log_size(location)
    if size <= limit_bytes:
        return
    log = open_log(location)
    try:
        kept = open_file(location.log.with_suffix(".log.1"), os.O_WRONLY | os.O_TRUNC, location.account)
        try:
            os.write(kept, os.pread(log, KEPT_BYTES, max(0, size - KEPT_BYTES)))
        finally:
            os.close(kept)
        os.truncate(log, 0)
    finally:
        os.close(log)


def read_log(location: Location, start: int) -> str:
    """Return what was written to the log after byte start, at most a megabyte."""
    log = open_log(location)
    try:
        return os.pread(log, KEPT_BYTES, start).decode(errors="replace")
    finally:
        os.close(log)


def explain_failure(doing: str, location: Location, start: int) -> ServerError:
    """Build the error for a failed step from what it wrote to the log after byte start."""
    text = read_log(location, start)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = "".join(f"\n  {line}" for line in lines[-SHOWN_LINES:])
    if any(sign in text for sign in FULL_DISK):
        return full_disk(f"{doing} failed", location, said)
    if "Address already in use" in text:
        return ServerError(
            f"{doing} failed: another server listens on its address.{said}\n",
            fix="Give it another port, or stop the other one.",
        )
    return ServerError(
        f"{doing} failed.{said or ' It wrote nothing.'}\n", fix=f"The whole log: {location.log}"
    )


def full_disk(happened: str, location: Location, said: str = "") -> ServerError:
    """Build the error for a disk without space."""
    return ServerError(
        f"{happened}: no space left on the disk of {location.home}.{said}\n",
        fix="Free some space, or set EMBEDDED_DATA_FOLDER to a folder on another disk.",
    )
